//! The GPU path where there is no GPU: the program starts, says what is missing, and runs what it can.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use crate::support::Sandbox;
use models::cuda::driver::device_count;
use serde_json::Value;
use tfcheck::execute::cell::Outcome;

/// Whether this machine can be asked what one without a GPU says.
fn has_gpu() -> bool {
    device_count().is_ok_and(|found| found > 0)
}

#[test]
fn the_program_starts_and_says_what_a_gpu_check_lacks() {
    let sandbox = Sandbox::new();
    assert!(sandbox.tfcheck(&["--version"]).status.success());
    let listed = sandbox.tfcheck(&["gpu-check", "--dry-run"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.status.code(), Some(0));
    for part in ["kernels", "architectures", "smollm2-135m-bf16-2048", "3b-bf16-512", "nvrtc", "cublaslt"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    if has_gpu() {
        return;
    }
    let checked = sandbox.tfcheck(&["gpu-check"]);
    let text = String::from_utf8(checked.stdout).unwrap();
    assert_eq!(checked.status.code(), Some(4), "{text}");
    assert!(text.starts_with("no GPU check here: ") && text.contains("architectures"), "{text}");
    assert!(!sandbox.path().join("results").exists(), "nothing ran, so nothing is written");
}

#[test]
fn a_gpu_that_is_not_there_leaves_its_cells_with_the_reason_and_auto_takes_the_cpu() {
    if has_gpu() {
        return;
    }
    let sandbox = Sandbox::new();
    let config = sandbox.write(
        "tfcheck.toml",
        "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[inputs]\nlengths = [8]\n\
         [candle]\nmodes = [\"eager\", \"fused\"]\n\
         [run]\ndevices = [\"auto\", \"cuda:0\"]\nrounds = 0\ntrace = false\nnoise = false\n",
    );
    let output = sandbox.run(&config, &[]);
    let run = sandbox.only_run();
    for cell in run.cells() {
        match (&cell.outcome, cell.variant.device.as_str()) {
            (Outcome::Completed(_), "cpu") => {}
            (Outcome::Unsupported { reason }, "cuda:0") if cell.name.contains("fused") => {
                assert!(reason.contains("cuda:0: "), "{reason}");
            }
            (Outcome::Unsupported { reason }, "cuda:0") => assert!(reason.contains("cuda"), "{reason}"),
            (outcome, device) => panic!("{} on {device}: {outcome:?}", cell.name),
        }
    }
    // What is not there is no failure of the variants that are.
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let environment: Value = serde_json::from_str(&run.text("environment.json")).unwrap();
    assert_eq!(environment["auto_device"]["device"], "cpu");
    assert!(!environment["auto_device"]["reason"].as_str().unwrap().is_empty());
    let summary = run.text("summary.md");
    assert!(summary.contains("cpu, taken for `auto`: "), "{summary}");
    assert!(summary.contains("unsupported") && summary.contains("candle_fused_f32_cuda0"), "{summary}");
}
