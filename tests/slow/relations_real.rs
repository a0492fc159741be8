//! Releases of transformers that broke a relation, by public reports, and a release that does not.

use std::process::Command;

use serde_json::Value;

use crate::fork::newest;
use crate::planted_relations::{PLANTED, Synthetic, assert_clean, assert_found};
use crate::support::{Sandbox, fixture, stderr};
use reference::protocol::{Dtype, Mode};

/// 5.9.0 to 5.17.0 do not mask later tokens in decoders of the BERT family, and 5.0.0 to 5.12.1 keep the rotary
/// frequencies of an earlier, longer input.
const BROKEN: &str = "5.10.4";
const FIXED: &str = "5.23.0";

fn outcome<'a>(summary: &'a Value, case: &str, version: &str, relation: &str) -> &'a Value {
    let records = summary["relations"].as_array().unwrap();
    let is_it = |record: &&Value| {
        record["case"].as_str().unwrap().starts_with(case) && record["variant"]["version"] == version
    };
    let record = records.iter().find(is_it).unwrap_or_else(|| panic!("no record of {case} {version}"));
    let held = record["relations"].as_array().unwrap().iter().find(|held| held["relation"] == relation);
    held.unwrap_or_else(|| panic!("no {relation} of {case} {version}"))
}

#[test]
fn a_release_whose_decoder_is_not_causal_and_whose_rope_keeps_state_is_found() {
    let sandbox = Sandbox::new();
    let made = Command::new(newest().python)
        .arg(fixture("relations_checkpoints.py"))
        .arg(sandbox.path())
        .arg("roformer")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", stderr(&made));
    let version =
        |number: &str| format!("[[versions]]\nname = \"{number}\"\nsource = \"transformers=={number}\"\n");
    let config = format!(
        "[[checkpoints]]\nsource = \"./roformer\"\n[[checkpoints]]\nsource = \"synthetic:llama:dynamic\"\n\
         [inputs]\nlengths = [24]\n{}{}[candle]\nmodes = []\n[run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\n\
         [relations]\nonly = [\"repeat\", \"causality\", \"two_inputs\"]\n",
        version(BROKEN),
        version(FIXED)
    );
    sandbox.write("tfcheck.toml", &config);
    let results = sandbox.results();
    let output = sandbox.tfcheck(&["relations", "--results", results.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");

    let causality = outcome(&summary, "roformer", BROKEN, "causality");
    assert_eq!(causality["outcome"], "broken", "{causality}");
    let module = causality["first_module"]["path"].as_str().unwrap();
    assert!(module.contains("attention"), "{module}");
    let state = outcome(&summary, "llama", BROKEN, "two_inputs");
    assert_eq!(state["outcome"], "broken", "{state}");
    for (case, relation) in [("roformer", "causality"), ("llama", "two_inputs"), ("roformer", "repeat")] {
        let held = outcome(&summary, case, FIXED, relation);
        assert!(["bitwise", "rounding"].iter().any(|fine| held["outcome"] == *fine), "{held}");
    }
    // Each broken relation is told once.
    let findings = summary["findings"].as_array().unwrap();
    let told = findings.iter().filter(|finding| finding["finding"] == "relation").count();
    assert_eq!(told, 2, "{findings:?}");
}

/// All synthetic checkpoints but those that are there for times.
#[test]
fn no_synthetic_checkpoint_breaks_a_relation_in_either_backend() {
    // Relations are between inputs of one text.
    for entry in models::synthetic::catalogue().iter().filter(|entry| !entry.bench && entry.is_one_text()) {
        let checkpoint = Synthetic::new(entry.model_type, entry.variant);
        for mode in [Mode::Eager, Mode::Fused] {
            let name = format!("{}:{} {mode:?}", entry.model_type, entry.variant);
            let found = checkpoint.all(&crate::engine::InProcess, (mode, Dtype::F32));
            assert_clean(&name, &found);
            let measured = found.iter().filter(|held| held.measured.is_some()).count();
            let is_decoder = models::kind(entry.model_type) == Some(models::Kind::Decoder);
            let least = if is_decoder { 14 } else { 8 };
            assert!(measured >= least, "{name}: {measured} relations were measured");
        }
    }
}

#[test]
fn every_planted_break_is_found_under_its_own_name_and_nothing_else_is() {
    assert_found(PLANTED.iter());
}
