//! Tests the GPU code path on a machine without a GPU: the program reports what is missing and runs the other cells.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use crate::support::Sandbox;
use models::cuda::driver::device_count;
use serde_json::Value;
use tfcheck::execute::cell::Outcome;

/// Whether this machine has a GPU, on which these tests do not apply.
fn has_gpu() -> bool {
    device_count().is_ok_and(|found| found > 0)
}

#[test]
fn gpu_check_reports_what_the_machine_lacks() {
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
fn a_missing_gpu_makes_its_cells_unsupported_and_auto_uses_the_cpu() {
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
    // A missing GPU does not fail the run.
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let environment: Value = serde_json::from_str(&run.text("environment.json")).unwrap();
    assert_eq!(environment["auto_device"]["device"], "cpu");
    assert!(!environment["auto_device"]["reason"].as_str().unwrap().is_empty());
    let summary = run.text("summary.md");
    assert!(summary.contains("cpu, taken for `auto`: "), "{summary}");
    assert!(summary.contains("unsupported") && summary.contains("candle_fused_f32_cuda0"), "{summary}");
}
