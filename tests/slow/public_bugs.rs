//! Public bugs of transformers, each between two releases: the run names the module, or the code that computes what a module
//! is given, and reports nothing else.

use std::process::Command;

use reference::{Source, Specification, prepare};
use serde_json::Value;
use tfcheck::app::cache_folder;

use crate::fork::NEWEST;
use crate::plants::public::MAKER;
use crate::support::{Sandbox, fixture, stderr, stdout};

/// Makes the checkpoints, runs `versions` on them and returns `summary.json`, what the terminal shows, and the sandbox.
fn run(checkpoints: &[&str], versions: &[&str], attention: &str) -> (Value, String, Sandbox) {
    let sandbox = Sandbox::new();
    let specification = Specification::new(Source::Release(MAKER.to_owned()));
    let maker = prepare(&specification, &cache_folder().unwrap(), &|line| eprintln!("{line}")).unwrap();
    let script = fixture("public_bugs.py");
    let made = Command::new(maker.python).arg(script).arg(sandbox.path()).args(checkpoints).output().unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    let checkpoint = |name: &&str| format!("[[checkpoints]]\nsource = \"./{name}\"\nname = \"{name}\"\n");
    let version =
        |name: &&str| format!("[[versions]]\nname = \"{name}\"\nsource = \"transformers=={name}\"\n");
    let config = [
        checkpoints.iter().map(checkpoint).collect::<String>(),
        versions.iter().map(version).collect(),
        format!(
            "[inputs]\nlengths = [12]\n[candle]\nmodes = []\n[run]\nmodes = [\"eager\"]\nattention = [{attention}]\n\
             dtypes = [\"f32\"]\noracle = true\nrounds = 0\ntrace = false\nnoise = false\ndiagnose_s = 0\n"
        ),
    ];
    let config = sandbox.write("tfcheck.toml", &config.concat());
    let output = sandbox.run(&config, &[]);
    let text = stdout(&output);
    assert!(text.lines().count() <= 40, "{text}");
    let summary = sandbox.only_run().json("summary.json");
    (summary, text, sandbox)
}

/// The place of the only finding about a case that is about logits.
fn place<'a>(summary: &'a Value, case: &str) -> Option<&'a str> {
    let findings = summary["findings"].as_array().unwrap();
    let is_of = |finding: &&Value| {
        let cases = finding["cases"].as_array().unwrap();
        finding["finding"] == "diverges" && cases.iter().any(|name| name.as_str().unwrap().starts_with(case))
    };
    let found: Vec<&Value> = findings.iter().filter(is_of).collect();
    assert!(found.len() <= 1, "{case}: {found:?}");
    found.first().map(|finding| finding["place"].as_str().unwrap_or("no place"))
}

fn notes(summary: &Value, case: &str) -> String {
    let cases = summary["cases"].as_array().unwrap();
    let case = cases.iter().find(|known| known["name"].as_str().unwrap().starts_with(case)).unwrap();
    case["cells"].as_array().unwrap().iter().map(|cell| cell["notes"].to_string()).collect()
}

#[test]
fn bugs_between_two_releases_are_told_at_the_code_that_has_them() {
    let checkpoints = ["correction", "rotary", "tied", "encoder"];
    let (summary, text, _sandbox) = run(&checkpoints, &["5.0.0", NEWEST], "\"eager\"");
    // The router's correction bias masks experts with 0 although all scores are negative (DeepseekV3MoE.route_tokens_to_experts).
    let found = place(&summary, "correction");
    assert_eq!(
        found,
        Some("top_k_index of model.layers.0.mlp.experts, computed by model.layers.0.mlp"),
        "{text}"
    );
    let widened = notes(&summary, "correction");
    assert!(widened.contains("e_score_correction_bias (float32)"), "{widened}");
    // Both keys of the written config have an effect, under other names.
    assert_eq!(place(&summary, "rotary"), None, "{text}");
    assert!(!text.contains("ignored"), "{text}");
    assert!(text.contains("stored with different values"), "{text}");
    // The encoder alone is loaded, and both releases agree.
    assert_eq!(place(&summary, "encoder"), None, "{text}");
    assert!(!text.contains("failed:"), "{text}");
}

/// GPT-2 ignored both switches of its scale under sdpa up to 5.3.0 (`GPT2Attention.forward`).
#[test]
fn a_fault_of_sdpa_is_told_at_its_layer_and_the_recommended_commands_run() {
    let checkpoints = ["inverse", "noscale", "olmo3"];
    let (summary, text, sandbox) = run(&checkpoints, &[MAKER, NEWEST], "\"eager\", \"sdpa\"");
    // The scale of the first layer is divided by 1.
    assert_eq!(place(&summary, "inverse"), Some("sdpa attention of transformer.h.1.attn"), "{text}");
    assert_eq!(place(&summary, "noscale"), Some("sdpa attention of transformer.h.0.attn"), "{text}");
    // 5.x gives sliding layers the class's default base (Olmo3Config.convert_rope_params_to_dict). What differs is the tables.
    assert_eq!(
        place(&summary, "olmo3"),
        Some("position_embeddings.cos of model.layers.0, computed by model"),
        "{text}"
    );
    let said = notes(&summary, "olmo3");
    assert!(said.contains("gives some layers rope_theta 500000, which config.json does not have"), "{said}");
    assert!(!said.contains("by transformers itself"), "{said}");

    let run = sandbox.only_run();
    let folder = run.path().to_str().unwrap();
    let [a, b] = [MAKER, NEWEST].map(|version| format!("{version}_eager_sdpa"));
    let told = stdout(&sandbox.tfcheck(&["explain", folder, &a, &b]));
    let commands: Vec<&str> = told.split('`').filter(|span| span.starts_with("tfcheck ")).collect();
    assert!(!commands.is_empty(), "{told}");
    for command in commands.into_iter().filter(|command| !command.contains("bisect")) {
        let words: Vec<&str> =
            command.split_whitespace().skip(1).map(|word| word.trim_matches('\'')).collect();
        let output = sandbox.tfcheck(&words);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{command}: {}", stderr(&output));
    }
}

/// The softmax of GPT-BigCode is under `torch.jit.script` up to 4.53, with a float32 of its own.
#[test]
fn float64_reaches_functions_under_torch_script() {
    let (summary, text, _sandbox) = run(&["bigcode"], &["4.53.3", MAKER], "\"eager\"");
    assert_eq!(place(&summary, "bigcode"), None, "{text}");
    let verdicts = summary["cases"][0]["verdicts"].as_array().unwrap();
    let of_f64 =
        |verdict: &&Value| ["a", "b"].iter().all(|side| verdict[side].as_str().unwrap().ends_with("_f64"));
    let verdict = verdicts.iter().find(of_f64).unwrap();
    // float64 rounds at 1e-16; a part in float32 would differ by 1e-8 or more.
    let agreement = &verdict["basis"]["agreement"];
    let is_exact = verdict["verdict"] == "identical" || agreement.as_f64().is_some_and(|apart| apart < 1e-13);
    assert!(is_exact, "{verdict}");
}
