//! Reference logits from transformers itself, computed by the script that the native models' tests use.

use std::path::Path;
use std::process::Command;

use reference::Environment;

use crate::tiny;

/// Reference logits of one checkpoint, flattened.
pub(crate) struct Truth {
    /// In float64 throughout, as `models/tests/truth.py` computes it.
    pub(crate) f64: Vec<f64>,
    /// Unmodified transformers in float64; absent if that fails (mistral's mask overflows in 4.40.2).
    pub(crate) plain: Option<Vec<f64>>,
    /// Unmodified transformers in float32.
    pub(crate) f32: Vec<f64>,
}

const SCRIPT: &str = r#"
import sys, pathlib
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
import torch, truth
torch.set_num_threads(1)
inputs = truth.load_file(sys.argv[2])

def save(folder, dtype, values):
    truth.save_file({"logits": values.double()}, folder / f"truth.{dtype}")

for folder in map(pathlib.Path, sys.argv[3:]):
    for dtype in ["f64", "f32"]:
        save(folder, dtype, truth.compute(folder, inputs, dtype)[1])
    model = truth.load(folder, torch.float64, "eager")[0]
    (folder / "truth.plain").unlink(missing_ok=True)
    try:
        with torch.no_grad():
            save(folder, "plain", model(**truth.arguments(model, inputs))[0])
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
"#;

/// Reference logits of each of `checkpoints`, by eager attention on one thread.
pub(crate) fn truth(environment: &Environment, checkpoints: &[&Path], inputs: &Path) -> Vec<Truth> {
    let _turn = tiny::turn();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests");
    let output = Command::new(&environment.python)
        .args(["-I", "-c", SCRIPT])
        .args([&script, inputs])
        .args(checkpoints)
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |folder: &Path, dtype: &str| tiny::read(&folder.join(format!("truth.{dtype}"))).0;
    checkpoints
        .iter()
        .map(|folder| Truth {
            f64: read(folder, "f64"),
            plain: folder.join("truth.plain").exists().then(|| read(folder, "plain")),
            f32: read(folder, "f32"),
        })
        .collect()
}
