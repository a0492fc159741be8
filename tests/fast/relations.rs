//! Relations: planted breaks are found under their own names; what a program and a run say of them.

use reference::protocol::{Dtype, Mode};
use tfcheck::results::relations::Outcome;
use tfcheck::spec::relations::Relation;

use crate::engine::InProcess;
use crate::planted_relations::{Fault, Faulty, PLANTED, Synthetic, assert_found};
use crate::support::{Run, Sandbox, stderr, stdout};

const F32: (Mode, Dtype) = (Mode::Eager, Dtype::F32);

/// Faults of four kinds; the slow tests plant all of them.
#[test]
fn a_planted_break_is_found_under_its_own_name_and_nothing_else_is() {
    let quick = [Fault::BatchLeak, Fault::NonCausal, Fault::CacheBug, Fault::StateLeak];
    assert_found(PLANTED.iter().filter(|(fault, _)| quick.contains(fault)));
}

#[test]
fn the_first_module_of_a_model_that_is_not_causal_is_its_attention() {
    let bert = Synthetic::new("bert", "");
    let mut material = bert.material(12);
    // An encoder that is taken for a decoder.
    material.traits.is_causal = true;
    let causality = Relation::named("causality").unwrap();
    let found = bert.measure(&InProcess, F32, &material, &[causality]);
    let [held] = &found[..] else { panic!("{found:?}") };
    assert_eq!(held.outcome, Outcome::Broken, "{}", held.evidence);
    let module = held.first_module.as_ref().expect("its modules are seen");
    assert!(module.path.starts_with("bert.encoder.layer.0.attention.self"), "{module:?}");
    assert!(
        held.evidence.contains("when token") && held.evidence.contains("in float64"),
        "{}",
        held.evidence
    );
}

#[test]
fn a_difference_without_a_float64_result_is_broken_only_far_above_rounding() {
    // The fused backend has no float64.
    let llama = Synthetic::new("llama", "tiny");
    let found = llama.all(&Faulty::new(Some(Fault::PaddingLeak)), (Mode::Fused, Dtype::F32));
    let held = found.iter().find(|held| held.relation == "padding_left").unwrap();
    assert_eq!(held.outcome, Outcome::Broken);
    assert!(
        held.proof.is_none() && held.evidence.contains("there is no float64 result"),
        "{}",
        held.evidence
    );
}

/// Programs of the user's that know none of the newer requests are loaded anew for each input.
#[test]
fn a_program_is_checked_as_far_as_its_protocol_goes_and_a_break_is_told_once() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("good", "good"), ("cached", "cache"), ("drifting", "drifts")], "threads = 2");
    let results = sandbox.results();
    let run = |more: &[&str]| {
        let mut arguments = vec!["relations", "--results", results.to_str().unwrap()];
        arguments.extend(more);
        sandbox.tfcheck(&arguments)
    };
    let output = run(&["--only", "*/good*"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("No relation is broken."), "{text}");

    let output = run(&[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let run = Run::open(sandbox.runs().last().unwrap());
    let summary = run.json("summary.json");
    let of = |version: &str, relation: &str| {
        let records = summary["relations"].as_array().unwrap();
        let record = records.iter().find(|record| record["variant"]["version"] == version).unwrap();
        let all = record["relations"].as_array().unwrap();
        all.iter().find(|held| held["relation"] == relation).unwrap()["outcome"].as_str().unwrap().to_owned()
    };
    for relation in
        ["repeat", "second_process", "batch_other", "padding_left", "causality", "cached_decoding"]
    {
        assert_eq!(of("good", relation), "bitwise", "{relation}");
    }
    for relation in ["two_inputs", "chunked_prefill", "generate"] {
        assert_eq!(of("good", relation), "unsupported", "{relation}");
    }
    assert_eq!(of("cached", "cached_decoding"), "broken");
    assert_eq!(of("cached", "causality"), "bitwise");
    assert_eq!(of("drifting", "repeat"), "broken");
    let findings = summary["findings"].as_array().unwrap();
    let told = |relation: &str| findings.iter().filter(|finding| finding["relation"] == relation).count();
    assert_eq!((told("repeat"), told("cached_decoding"), told("causality")), (1, 1, 0));
    // What does not repeat itself breaks nothing else.
    assert_eq!(of("drifting", "causality"), "unproven");
    let page = run.text("summary.md");
    assert!(page.contains("## Relations") && page.contains("Relations of llama-tiny-12"), "{page}");
    // A second look at the run computes nothing and says the same.
    let again = sandbox.tfcheck(&["compare", run.path().to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1), "{}", stderr(&again));
}
