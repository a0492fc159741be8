//! Synthetic checkpoints that transformers makes: both forms of configs, several experts and a state space, read by the two
//! releases that make them, which compute the same.

use crate::support::{Sandbox, stderr};

const CONFIG: &str = r#"
checkpoints = [
    { source = "synthetic:qwen2_moe:topk" },
    { source = "synthetic:mamba2" },
    { source = "synthetic:olmo:v5" },
    { source = "synthetic:deberta-v2:headless" },
]
inputs = { lengths = [24] }
versions = [
    { name = "4.57.6", source = "transformers==4.57.6" },
    { name = "5.23.0", source = "transformers==5.23.0" },
]
candle = { modes = [] }
run = { modes = ["eager"], attention = ["eager"], rounds = 0, trace = false, noise = false, oracle = false, diagnose_s = 0 }
"#;

#[test]
fn the_releases_that_make_checkpoints_compute_the_same_on_them() {
    let sandbox = Sandbox::new();
    let output = sandbox.run(&sandbox.write("tfcheck.toml", CONFIG), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    for case in summary["cases"].as_array().unwrap() {
        let verdicts = case["verdicts"].as_array().unwrap();
        assert!(!verdicts.is_empty(), "{case}");
        for verdict in verdicts {
            let word = verdict["verdict"].as_str().unwrap();
            assert!(["identical", "same_mathematics"].contains(&word), "{}: {verdict}", case["name"]);
        }
    }
}
