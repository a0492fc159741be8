//! Synthetic checkpoints that transformers makes: both forms of configs, several experts and a state space, read by two releases,
//! which compute the same; and models of each kind that the newest release makes of its own defaults.

use serde_json::Value;

use crate::support::{Sandbox, stderr};

/// A config that runs checkpoints with 24 tokens in releases of transformers, once; `inputs` is added to those of the length.
fn config(checkpoints: &str, releases: &[&str], inputs: &str, oracle: bool) -> String {
    let versions = releases
        .iter()
        .map(|release| format!(r#"{{ name = "{release}", source = "transformers=={release}" }}"#));
    let versions = versions.collect::<Vec<_>>().join(", ");
    format!(
        r#"
checkpoints = [{checkpoints}]
inputs = {{ lengths = [24]{inputs} }}
versions = [{versions}]
candle = {{ modes = [] }}
run = {{ modes = ["eager"], attention = ["eager"], dtypes = ["f32"], rounds = 0, trace = false, noise = false, oracle = {oracle}, diagnose_s = 0 }}
"#
    )
}

/// Synthetic checkpoints as a config lists them.
fn sources(names: &[&str]) -> String {
    names.iter().map(|name| format!(r#"{{ source = "synthetic:{name}" }}"#)).collect::<Vec<_>>().join(", ")
}

/// Requires that all variants of a case compute the same.
fn agrees(case: &Value) {
    let verdicts = case["verdicts"].as_array().unwrap();
    assert!(!verdicts.is_empty(), "{case}");
    for verdict in verdicts {
        let word = verdict["verdict"].as_str().unwrap();
        assert!(["identical", "same_mathematics"].contains(&word), "{}: {verdict}", case["name"]);
    }
}

#[test]
fn the_releases_that_make_checkpoints_compute_the_same_on_them() {
    let sandbox = Sandbox::new();
    let checkpoints = sources(&["qwen2_moe:topk", "mamba2", "olmo:v5", "deberta-v2:headless"]);
    let config = config(&checkpoints, &["4.57.6", "5.23.0"], "", false);
    let output = sandbox.run(&sandbox.write("tfcheck.toml", &config), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    summary["cases"].as_array().unwrap().iter().for_each(agrees);
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
        let refused = only_newest(&sources(&[name]));
        let output = sandbox.run(&sandbox.write("tfcheck.toml", &refused), &[]);
        assert!(!output.status.success());
        let said = stderr(&output).split_whitespace().collect::<Vec<_>>().join(" ").replace("│ ", "");
        assert!(said.contains(sentence), "{name}: {said}");
    }
}

/// The checkpoints in the release that makes them.
fn only_newest(checkpoints: &str) -> String {
    config(checkpoints, &[&reference::Versions::known().makes], ", batch = [2]", false)
}

/// A buffer in float32 beside float64 weights, states in place of keys and values, a cache of the window's length (4.48 to 4.52).
#[test]
fn float64_and_decoding_reach_models_with_states_and_caches_of_a_fixed_length() {
    let sandbox = Sandbox::new();
    let checkpoints = sources(&["recurrent_gemma", "mamba2", "gemma2"]);
    let config = config(&checkpoints, &["4.51.3", "5.23.0"], ", prefill = [8]", true);
    let output = sandbox.run(&sandbox.write("tfcheck.toml", &config), &[]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{}", stderr(&output));
    let run = sandbox.only_run();
    let summary = run.json("summary.json");
    let cases = summary["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 6);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let cells = case["cells"].as_array().unwrap();
        if name.starts_with("recurrent_gemma") && name.contains("prefill") {
            assert!(cells.iter().all(|cell| cell["outcome"] == "unsupported"), "{name}: {cells:?}");
            continue;
        }
        assert_eq!(cells.len(), 4, "{name}: two releases, each also in float64");
        assert!(cells.iter().all(|cell| cell["outcome"] == "completed"), "{name}: {cells:?}");
        // What recurrent_gemma computes changed between the two.
        if !name.starts_with("recurrent_gemma") {
            agrees(case);
        }
    }
    let text = run.text("summary.md");
    assert!(text.contains("RecurrentGemmaForCausalLM takes no cache"), "{text}");
}
