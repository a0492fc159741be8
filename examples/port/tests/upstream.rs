//! Tests the port against transformers with `recording/`, and checks that planted mistakes fail the test.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device};
use port::{Bug, Llama};
use tfcheck_port::{Recording, assert_port, worker};

/// The checkpoint of the recording. It is synthetic, so its weights are generated; for a real checkpoint, the
/// environment variable `PORT_CHECKPOINT` gives its folder.
fn checkpoint() -> PathBuf {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recording");
    Recording::open(&recording).unwrap().checkpoint("PORT_CHECKPOINT").unwrap()
}

fn load(bug: Option<Bug>) -> Llama {
    let checkpoint = worker::Checkpoint::open(&checkpoint(), DType::F32, &Device::Cpu).unwrap();
    Llama::new(checkpoint.config().unwrap(), &checkpoint.var_builder(), bug).unwrap()
}

#[test]
fn the_port_agrees_with_upstream() {
    let llama = load(None);
    assert_port!("tests/recording", |inputs| llama.forward(&inputs.input_ids));
}

/// Runs the test again without PATH and without environment variables.
#[test]
fn the_test_needs_no_python() {
    let test = std::env::current_exe().unwrap();
    let alone = ["--exact", "the_port_agrees_with_upstream"];
    let output = Command::new(&test).args(alone).env_clear().env("PATH", "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    if let Ok(parts) = std::fs::read_to_string("/proc/self/maps") {
        assert!(!parts.contains("libpython"), "{parts}");
    }
}

/// A port that returns last positions only, as most of candle's models do.
#[test]
fn a_port_of_last_positions_is_compared_at_those() {
    let llama = load(None);
    assert_port!("tests/recording", |inputs| {
        let logits = llama.forward(&inputs.input_ids)?;
        logits.narrow(1, logits.dim(1)? - 1, 1)
    });
}

/// The test's failure message for a port with a planted mistake.
fn hears(bug: Bug) -> String {
    let llama = load(Some(bug));
    let test = || assert_port!("tests/recording", |inputs| llama.forward(&inputs.input_ids));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)).unwrap_err();
    panic.downcast_ref::<String>().unwrap().clone()
}

#[test]
fn a_planted_bug_fails_with_its_verdict_place_and_module() {
    for (bug, module) in [
        (Bug::InterleavedRope, "model.layers.0.self_attn.rope_q"),
        (Bug::FixedEpsilon, "model.layers.0.input_layernorm"),
        (Bug::MaskOffByOne, "model.layers.0.self_attn.o_proj"),
        (Bug::Gelu, "model.layers.0.mlp.act_fn"),
    ] {
        let message = hears(bug);
        assert!(message.starts_with("diverged: relative L2"), "{bug:?}: {message}");
        let module = format!("first module that departs  {module}: relative L2");
        for part in [
            "worst position  row",
            "largest difference  row",
            "top-1 agreement",
            "transformers 5.23.0",
            module.as_str(),
        ] {
            assert!(message.contains(part), "{bug:?}: {part} is not in\n{message}");
        }
    }
}
