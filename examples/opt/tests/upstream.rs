//! Tests the port against transformers with `recording/`, without Python, and checks that a mistake is told with its module.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::{DType, Device};
use opt::Opt;
use tfcheck_port::worker::Checkpoint;
use tfcheck_port::{Inputs, assert_port};

/// The port of `tiny/`, with a config key changed.
fn load(key: &str, value: &str) -> Opt {
    load_from(Path::new("tiny"), key, value)
}

/// The same of an edited copy.
fn load_from(folder: &Path, key: &str, value: &str) -> Opt {
    let checkpoint = Checkpoint::open(folder, DType::F32, &Device::Cpu).unwrap();
    let mut config = checkpoint.json().clone();
    config[key] = value.into();
    Opt::new(&checkpoint.config_from(&config).unwrap(), &checkpoint.var_builder()).unwrap()
}

#[test]
fn agrees_with_transformers() {
    let opt = load("activation_function", "relu");
    assert_port!("tests/recording", |inputs| opt.forward(inputs));
}

#[test]
fn a_mistake_is_told_with_its_module() {
    let opt = load("activation_function", "gelu");
    let test = || assert_port!("tests/recording", |inputs| opt.forward(inputs));
    let panic = catch_unwind(AssertUnwindSafe(test)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    let module = "first diverging module  model.decoder.layers.0.activation_fn: relative L2";
    assert!(message.starts_with("diverged") && message.contains(module), "{message}");
    assert!(message.contains("model.decoder.layers.0.fc1 before it agrees to"), "{message}");
}

#[test]
fn a_mistake_is_told_with_its_part_without_probes() {
    let hears = |key: &str, value: &str| {
        let load = |folder: &Path, inputs: &Inputs| load_from(folder, key, value).forward(inputs);
        catch_unwind(AssertUnwindSafe(|| assert_port!("tests/recording", "tiny", load)))
    };
    assert!(hears("activation_function", "relu").is_ok());
    let panic = hears("activation_function", "gelu").unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert!(message.contains("surgery  the difference lies in every layer's MLP"), "{message}");
}
