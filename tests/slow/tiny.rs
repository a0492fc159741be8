//! Synthetic checkpoints that transformers makes: both forms of configs, several experts and a state space, read by two releases,
//! which compute the same; and models of each kind that the newest release makes of its own defaults.

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

/// One model type for each kind that the general rules reach, and what its inputs are.
const KINDS: [(&str, &str); 10] = [
    // A class that transformers does not export, patches with their grid.
    ("qwen2_vl_vision", "grid_thw i64"),
    // The part of a model that reads texts.
    ("siglip_text_model", "24 tokens"),
    // Sections of rotary positions that its config does not state.
    ("glm4v_text", "24 tokens"),
    // Widths that are divided by one factor, so that stages stay multiples of each other.
    ("swinv2", "pixel_values f32 2 × 3"),
    // A backbone of transformers in place of one of timm.
    ("detr", "pixel_values f32 2 × 3"),
    // Pictures in the places of tokens, as many as the model says.
    ("cohere2_vision", "pixel_values f32"),
    // A spectrum.
    ("parakeet_encoder", "input_features f32"),
    // Samples.
    ("dac", "input_values f32"),
    // A series of numbers.
    ("patchtst", "past_values f32"),
    // Boxes beside tokens.
    ("bros", "bbox i64"),
];

#[test]
fn a_model_of_each_kind_is_made_of_the_newest_release_s_defaults_and_runs() {
    let sandbox = Sandbox::new();
    let sources = KINDS.map(|(name, _)| format!(r#"{{ source = "synthetic:{name}", name = "{name}" }}"#));
    let made = only_newest(&sources.join(", "));
    let output = sandbox.run(&sandbox.write("tfcheck.toml", &made), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    let cases = summary["cases"].as_array().unwrap();
    assert_eq!(cases.len(), KINDS.len());
    for (case, (name, inputs)) in cases.iter().zip(KINDS) {
        assert_eq!(case["checkpoint"], format!("synthetic:{name}"));
        assert_eq!(case["cells"][0]["outcome"], "completed", "{name}: {}", case["cells"][0]);
        assert!(case["inputs"].as_str().unwrap().contains(inputs), "{name}: {}", case["inputs"]);
    }
}

#[test]
fn what_is_no_model_by_itself_is_refused_in_one_sentence() {
    for (name, sentence) in [
        (
            "sam_mask_decoder",
            "sam_mask_decoder is a part of sam without a model of its own: use synthetic:sam",
        ),
        ("dinat", "needs the package natten, which the environment lacks"),
        ("no_such_model", "does not know model_type no_such_model"),
    ] {
        let sandbox = Sandbox::new();
        let refused = only_newest(&format!(r#"{{ source = "synthetic:{name}" }}"#));
        let output = sandbox.run(&sandbox.write("tfcheck.toml", &refused), &[]);
        assert!(!output.status.success());
        let said = stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ").replace("│ ", "");
        assert!(said.contains(sentence), "{name}: {said}");
    }
}

/// The checkpoints in the release that makes them, run once.
fn only_newest(checkpoints: &str) -> String {
    let release = &reference::Versions::known().makes;
    format!(
        r#"
checkpoints = [{checkpoints}]
inputs = {{ lengths = [24], batch = [2] }}
versions = [{{ name = "{release}", source = "transformers=={release}" }}]
candle = {{ modes = [] }}
run = {{ modes = ["eager"], attention = ["eager"], dtypes = ["f32"], rounds = 0, trace = false, noise = false, oracle = false, diagnose_s = 0 }}
"#
    )
}
