//! Tests that every finding in candle's ports has a reproduction in `results/findings/` that still shows the finding.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::plants::findings::FINDINGS;
use crate::support::{Run, Sandbox, stderr};
use reference::protocol::Dtype;
use tfcheck::execute::cell::Outcome;
use tfcheck::results::Case;
use tfcheck::spec::config::{CheckpointSource, Config, Padding};
use tfcheck::spec::plan::Plan;
use tfcheck::spec::variant::Runner;

fn reproductions() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/findings");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// Whether tfcheck has a native model and a checkpoint of its own for the reproduction, so that it needs no Python.
fn is_native(path: &Path) -> bool {
    let config = Config::load(Some(path)).unwrap().config;
    let CheckpointSource::Synthetic { model_type, variant } = &config.checkpoints[0].source else {
        return false;
    };
    models::synthetic::config(model_type, variant.as_deref().unwrap_or_default()).is_ok()
}

/// Whether cells of this runner run a port; those that read GGUF files are a program, the worker of tfcheck itself.
fn is_port(runner: Runner) -> bool {
    matches!(runner, Runner::CandleTransformers | Runner::Command)
}

/// Whether it is the name of a port's variant.
fn names_a_port(name: &str) -> bool {
    ["candle-transformers", "gguf"].iter().any(|port| name.starts_with(port))
}

#[test]
fn every_reproduction_plans_our_model_and_the_port_and_is_written_up() {
    let written = Path::new(env!("CARGO_MANIFEST_DIR")).join("results/findings.md");
    let written = std::fs::read_to_string(written).unwrap();
    for path in reproductions() {
        let config = Config::load(Some(&path)).unwrap().config;
        let plan = Plan::new(&config, "cpu").unwrap();
        for runner in [Runner::Transformers, Runner::Candle] {
            if runner == Runner::Candle && !is_native(&path) {
                continue;
            }
            assert!(plan.cells.iter().any(|cell| cell.variant.runner == runner), "{}", name(&path));
        }
        assert!(plan.cells.iter().any(|cell| is_port(cell.variant.runner)), "{}", name(&path));
        assert!(written.contains(&format!("(findings/{})", name(&path))), "{}", name(&path));
    }
    assert_eq!(written.matches("](findings/").count(), reproductions().len(), "a link leads nowhere");
}

/// Defines one test per file, so that they run in parallel; `-` in a file name is `_` here.
macro_rules! reproductions {
    ($($name:ident)*) => {
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        mod every_reproduction_shows_its_finding {
            $(
                #[test]
                fn $name() {
                    super::shows_its_finding(stringify!($name));
                }
            )*
        }
    };
}

reproductions! {
    bert_tied distilbert_bf16 distilbert_gelu falcon_alibi falcon_ffn_size falcon_new_decoder falcon_one_norm
    gemma2_scale gemma2_window gemma3_cache gemma3_scale gemma3_window gemma_two_activations granite_multipliers
    granite_tied llama_attention_bias llama_head_dim llama_mlp_bias llama_padding llama_rope_dynamic
    llama_rope_linear llama_rope_yarn mistral_window mixtral_bf16 mixtral_null_window mixtral_window
    modernbert_bf16 modernbert_bias modernbert_labels phi3_longrope phi3_longrope_short phi3_su phi3_window
    phi_bf16 phi_qk_norm quantized_gemma3_activation quantized_phi3_base quantized_phi_groups quantized_qwen3_f16 qwen2_mask qwen2_window_layers qwen2_window_off qwen2_yarn qwen3_moe_dense_layers qwen3_window
    qwen3_yarn roberta_head_bias smollm3_window smollm3_yarn stablelm_parallel stablelm_qk_norm
    starcoder2_untied starcoder2_window whisper_ffn_size xlm_roberta_head_bias
}

#[test]
fn every_reproduction_has_its_test() {
    let files: Vec<String> = reproductions()
        .iter()
        .filter(|path| is_native(path))
        .map(|path| name(path).replace('-', "_").replace(".toml", ""))
        .collect();
    let (files, tested): (BTreeSet<&str>, BTreeSet<&str>) =
        (files.iter().map(String::as_str).collect(), TESTED.iter().copied().collect());
    assert_eq!(files, tested);
}

/// Findings whose cause is named with proof in seconds. Others may need more than a run's time for a diagnosis on a busy
/// machine; results/diagnosis.md lists what is named of all of them.
const QUICKLY_NAMED: [&str; 6] = [
    "gemma2_scale",
    "gemma2_window",
    "mistral_window",
    "qwen2_window_off",
    "stablelm_parallel",
    "starcoder2_window",
];

/// The native model replaces transformers, with which it agrees in float64, so that no Python is needed.
fn shows_its_finding(test: &str) {
    let file = format!("results/findings/{}.toml", test.replace('_', "-"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let sandbox = Sandbox::new();
    let config = Config::load(Some(&path)).unwrap().config;
    let only = config.commands.iter().flat_map(|_| ["--only", "*/gguf*"]);
    let only: Vec<&str> = ["--only", "*/candle*"].into_iter().chain(only).collect();
    let output = sandbox.run(&path, &only);
    let run = sandbox.only_run();
    let message = format!("{}: {}", name(&path), stderr(&output));
    let cells = run.cells();
    let port = cells.iter().find(|cell| is_port(cell.variant.runner)).unwrap();
    match &port.outcome {
        Outcome::Completed(_) => {
            assert_eq!(port_verdict(&run), "diverged", "{message}");
            let diagnosed = run.json("diagnosed.json");
            let (found, sentence) = (&diagnosed[0]["finding"]["found"], &diagnosed[0]["sentence"]);
            assert!(found == "reproduced" || !QUICKLY_NAMED.contains(&test), "{test}: {sentence}");
            assert_ne!(found, "nothing", "{test}: {sentence}");
            // What is named is what the port does.
            let known = FINDINGS.iter().find(|known| known.name == test.replace('_', "-"));
            for mistake in diagnosed[0]["finding"]["mistakes"].as_array().into_iter().flatten() {
                let alternatives = mistake["alternatives"].as_array().into_iter().flatten();
                let names: Vec<&str> = std::iter::once(mistake)
                    .chain(alternatives)
                    .map(|named| named["hypothesis"].as_str().unwrap())
                    .collect();
                let is_made = |made: &&[&str]| names.iter().any(|name| made.contains(name));
                assert!(known.unwrap().mistakes.iter().any(is_made), "{test}: {sentence}");
            }
        }
        Outcome::Unsupported { reason } => eprintln!("{}: unsupported: {reason}", name(&path)),
        Outcome::Failed(failure) => eprintln!("{}: failed: {}", name(&path), failure.reason),
    }
    let ours = cells.iter().filter(|cell| cell.variant.runner == Runner::Candle);
    assert!(ours.clone().all(|cell| matches!(cell.outcome, Outcome::Completed(_))), "{message}");
}

/// The verdict on the port and the native model in the same dtype.
fn port_verdict(run: &Run) -> String {
    let summary = run.json("summary.json");
    let verdicts = summary["cases"][0]["verdicts"].as_array().unwrap();
    let names = |verdict: &serde_json::Value| {
        [&verdict["a"], &verdict["b"]].map(|name| name.as_str().unwrap().to_owned())
    };
    let is_port = |name: &String| names_a_port(name);
    let is_it = |verdict: &&serde_json::Value| {
        let names = names(verdict);
        names.iter().any(is_port) && names.iter().any(|name| !is_port(name) && !name.ends_with("f64"))
    };
    let verdict = verdicts.iter().find(is_it).unwrap();
    verdict["verdict"].as_str().unwrap().to_owned()
}

#[test]
fn reproductions_without_a_native_model_show_their_findings_against_transformers() {
    show_their_findings("lengths = [40], batch = [1, 3], padding = [\"none\", \"left\"]", "f32", false);
}

/// Sequences beyond the 256 positions that bf16 counts.
#[test]
fn reproductions_in_bf16_show_their_findings_against_transformers() {
    show_their_findings("lengths = [600]", "bf16", false);
}

#[test]
fn reproductions_of_ports_that_read_gguf_files_show_their_findings_against_transformers() {
    show_their_findings("lengths = [6]", "f32", true);
}

/// One run shows all of them, because most of its time is the start of transformers.
fn show_their_findings(inputs: &str, dtype: &str, is_gguf: bool) {
    // Checkpoint, batch size and padding of each.
    let described = |path: &PathBuf| {
        let config = Config::load(Some(path)).unwrap().config;
        let batch = config.inputs.batch.as_ref().map_or(1, |batch| batch[0]);
        let is_padded = config.inputs.padding.is_some();
        (config.checkpoints[0].source.to_string(), batch, is_padded)
    };
    let is_meant = |path: &PathBuf| {
        let config = Config::load(Some(path)).unwrap().config;
        let is_bf16 = config.run.dtypes == [Dtype::Bf16.into()];
        !is_native(path) && config.commands.is_empty() != is_gguf && is_bf16 == (dtype == "bf16")
    };
    let paths: Vec<PathBuf> = reproductions().into_iter().filter(is_meant).collect();
    assert!(!paths.is_empty());
    let distinct: BTreeSet<String> = paths.iter().map(|path| described(path).0).collect();
    let checkpoints: Vec<String> =
        distinct.iter().map(|source| format!("{{ source = \"{source}\" }}")).collect();
    let config = format!(
        "checkpoints = [{}]\ninputs = {{ {inputs} }}\n\
         versions = [{{ name = \"5.23.0\", source = \"transformers==5.23.0\" }}]\n\
         candle = {{ modes = [], upstream = {} }}\n\
         commands = [{}]\n\
         run = {{ modes = [\"eager\"], attention = [\"eager\"], dtypes = [\"{dtype}\"], rounds = 0, trace = false, noise = false, \
         oracle = true, diagnose_s = 0 }}\n",
        checkpoints.join(", "),
        !is_gguf,
        if is_gguf {
            "{ name = \"gguf\", program = [\"tfcheck\", \"worker\", \"--upstream\", \"--gguf\"] }"
        } else {
            ""
        }
    );
    let sandbox = Sandbox::new();
    let output = sandbox.run(&sandbox.write("tfcheck.toml", &config), &[]);
    let run = sandbox.only_run();
    let summary = run.json("summary.json");
    for path in &paths {
        let (source, batch, is_padded) = described(path);
        let is_it = |case: &Case| {
            let axes = case.axes.unwrap();
            let fits = (axes.batch, axes.padding == Some(Padding::Left)) == (batch, is_padded);
            case.checkpoint == source && fits
        };
        let index = run.manifest.cases.iter().position(is_it);
        let verdicts = summary["cases"][index.unwrap()]["verdicts"].as_array().unwrap();
        let is_port = |verdict: &&serde_json::Value| {
            ["a", "b"].iter().any(|side| names_a_port(verdict[side].as_str().unwrap()))
        };
        let words: Vec<&str> =
            verdicts.iter().filter(is_port).map(|verdict| verdict["verdict"].as_str().unwrap()).collect();
        // Tables in bf16 are the right ones, rounded.
        let worse = if dtype == "bf16" { "worse_rounding" } else { "diverged" };
        let is_shown = words.iter().all(|word| ["diverged", "incomparable", "not_run", worse].contains(word));
        assert!(is_shown && !words.is_empty(), "{}: {words:?}\n{}", name(path), stderr(&output));
    }
}
