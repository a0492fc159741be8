//! Tests the port against transformers with `recording/`, and checks that planted mistakes fail the test.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Result, Tensor};
use port::{Bug, Llama};
use tfcheck_port::{Inputs, Recording, assert_port, worker};

/// The checkpoint of the recording. It is synthetic, so its weights are generated; for a real checkpoint, the
/// environment variable `PORT_CHECKPOINT` gives its folder.
fn checkpoint() -> PathBuf {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recording");
    Recording::open(&recording).unwrap().checkpoint("PORT_CHECKPOINT").unwrap()
}

fn load(bug: Option<Bug>) -> Llama {
    load_from(&checkpoint(), DType::F32, bug).unwrap()
}

/// The port of the checkpoint in a folder.
fn load_from(folder: &Path, dtype: DType, bug: Option<Bug>) -> Result<Llama> {
    let checkpoint = worker::Checkpoint::open(folder, dtype, &Device::Cpu)?;
    Llama::new(checkpoint.config()?, &checkpoint.var_builder(), bug)
}

#[test]
fn the_port_agrees_with_upstream() {
    let llama = load(None);
    assert_port!("tests/recording", |inputs| llama.forward(&inputs.input_ids));
}

/// The same for a port that is loaded from the checkpoint's folder; a failing test then names the part that differs.
#[test]
fn the_loaded_port_agrees_with_upstream() {
    assert_port!("tests/recording", "PORT_CHECKPOINT", |folder, inputs| {
        load_from(folder, DType::F32, None)?.forward(&inputs.input_ids)
    });
}

/// Runs tests again without PATH and without environment variables.
#[test]
fn the_test_needs_no_python() {
    let test = std::env::current_exe().unwrap();
    let alone =
        ["--exact", "the_port_agrees_with_upstream", "a_planted_bug_is_told_with_the_part_that_differs"];
    let output = Command::new(&test).args(alone).env_clear().env("PATH", "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("2 passed"), "{said}");
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
        let module = format!("first diverging module  {module}: relative L2");
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

/// The failure message of a port that the test can load from any checkpoint.
fn hears_loaded(mut port: impl FnMut(&Path, &Inputs) -> Result<Tensor>) -> String {
    let test = || assert_port!("tests/recording", "PORT_CHECKPOINT", |folder, inputs| port(folder, inputs));
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test)).unwrap_err();
    panic.downcast_ref::<String>().unwrap().clone()
}

#[test]
fn a_planted_bug_is_told_with_the_part_that_differs() {
    for (bug, part, runs) in [
        (Bug::InterleavedRope, "every layer's rotation (", "8 runs"),
        (Bug::FixedEpsilon, "embedding, norms and head (", "1 run "),
        (Bug::MaskOffByOne, "every layer's mask or softmax (", "7 runs"),
        (Bug::Gelu, "every layer's MLP (", "7 runs"),
    ] {
        for dtype in [DType::F32, DType::F64] {
            let message = hears_loaded(|folder, inputs| {
                load_from(folder, dtype, Some(bug))?.forward(&inputs.input_ids)
            });
            let line = message.lines().last().unwrap();
            let expected = format!("  surgery  the difference lies in {part}");
            assert!(line.starts_with(&expected) && line.contains(runs), "{bug:?}: {message}");
            assert!(!line.contains(" and layer") && !line.contains(", layer"), "no other part: {line}");
        }
    }
}

/// Logits of last positions are compared at the last position.
#[test]
fn a_part_is_found_by_last_positions_too() {
    let message = hears_loaded(|folder, inputs| {
        let logits = load_from(folder, DType::F32, Some(Bug::Gelu))?.forward(&inputs.input_ids)?;
        logits.narrow(1, logits.dim(1)? - 1, 1)
    });
    assert!(message.contains("the difference lies in every layer's MLP ("), "{message}");
}

#[test]
fn a_part_that_is_right_is_never_blamed() {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recording");
    let recording = Recording::open(&recording).unwrap();
    let checkpoint = checkpoint();
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        let port =
            |folder: &Path, inputs: &Inputs| load_from(folder, dtype, None)?.forward(&inputs.input_ids);
        let found = recording.localised(&checkpoint, port).unwrap().unwrap();
        assert!(found.parts.is_empty(), "{dtype:?}: {found}");
    }
    // A mistake that the parts by themselves do not show.
    let message = hears_loaded(|folder, inputs| {
        let logits = load_from(folder, DType::F32, None)?.forward(&inputs.input_ids)?;
        if folder == checkpoint { logits * 1.01 } else { Ok(logits) }
    });
    assert!(message.contains("surgery  no part differs by itself"), "{message}");
    assert!(message.contains("4 runs"), "{message}");
}

#[test]
fn a_port_that_is_loaded_already_is_told_what_surgery_needs() {
    let message = hears(Bug::Gelu);
    assert!(message.contains("a closure that loads the port names the part"), "{message}");
}

/// The recording in a temporary folder, with a change in its JSON.
fn damaged(from: &str, to: &str) -> std::result::Result<Recording, String> {
    let folder = std::env::temp_dir().join(format!("tfcheck-example-port-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recording");
    std::fs::copy(recording.join("recording.safetensors"), folder.join("recording.safetensors")).unwrap();
    let text = std::fs::read_to_string(recording.join("recording.json")).unwrap();
    assert!(text.contains(from), "{from} is not in the recording");
    std::fs::write(folder.join("recording.json"), text.replacen(from, to, 1)).unwrap();
    let opened = Recording::open(&folder).map_err(|error| error.to_string());
    std::fs::remove_dir_all(&folder).unwrap();
    opened
}

#[test]
fn damaged_edits_are_refused() {
    let error = damaged("\"model.layers.0.mlp.down_proj.weight\"", "\"model.layers.0.mlp.w2.weight\"");
    let error = error.unwrap().localised(&checkpoint(), |folder, inputs| {
        load_from(folder, DType::F32, None)?.forward(&inputs.input_ids)
    });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("has no tensor model.layers.0.mlp.w2.weight"), "{error}");
    for (from, to, words) in [
        ("\"piece\": \"unrotated\"", "\"piece\": \"rotated\"", "unknown variant `rotated`"),
        ("\"inputs\": \"together\"", "\"inputs\": \"whole\"", "has the logits of attention of layer 0 twice"),
        (
            "\"layer\": 1,\n        \"inputs\"",
            "\"layer\": 7,\n        \"inputs\"",
            "mlp of layer 7, of 3 layers",
        ),
        ("\"head_dim\":", "\"heads\":", "unknown field `heads`"),
    ] {
        let error = damaged(from, to).unwrap_err();
        assert!(error.contains(words), "{from}: {error}");
    }
}
