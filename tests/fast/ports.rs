//! A user's port as a variant: the example port is a worker of this executable, with and without a planted mistake.

use port::{Bug, Llama};
use tfcheck_port::Port;

use crate::support::{Sandbox, stderr, stdout};

/// Set in the process that is the worker, to the name of a mistake or to nothing.
const WORKER: &str = "TFCHECK_TEST_PORT";

/// The worker: the other tests start this executable with this test alone.
#[test]
fn worker() {
    let Ok(bug) = std::env::var(WORKER) else { return };
    tfcheck_port::serve("example-port", |checkpoint| {
        let llama = Llama::new(checkpoint.config()?, &checkpoint.var_builder(), Bug::named(&bug))?;
        Ok(Port::new(move |inputs| llama.forward(&inputs.input_ids)).without_mask())
    });
}

/// The command of the port with a mistake; of the right one without a name.
pub(crate) fn program(bug: &str) -> Vec<String> {
    let this = std::env::current_exe().unwrap().to_string_lossy().into_owned();
    let bug = format!("{WORKER}={bug}");
    ["env", &bug, &this, "--exact", "ports::worker", "--nocapture"].map(str::to_owned).to_vec()
}

#[test]
fn the_kit_answers_every_request_but_those_of_a_cache() {
    let mut arguments = vec!["check-worker".to_owned(), "--".to_owned()];
    arguments.extend(program(""));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = Sandbox::new().tfcheck(&arguments);
    let text = stdout(&output);
    assert!(output.status.success(), "{text}{}", stderr(&output));
    assert!(text.contains("11 passed, 3 unsupported, 0 wrong"), "{text}");
    let keys = "leaves unread attention_bias, hidden_act, mlp_bias, rope_parameters, tie_word_embeddings\n";
    assert!(text.contains(keys), "{text}");
}

#[test]
fn a_program_that_answers_wrongly_is_told_what_is_wrong() {
    let worker = crate::support::fixture("worker.py");
    for (fault, wrong) in [
        ("good", "0 wrong"),
        ("truncate", "forward                required  WRONG"),
        ("cache", "forward with prefill   optional  WRONG        differs from one forward pass"),
        ("exception", "forward                required  WRONG        ValueError: planted"),
        (
            "unsupported",
            "load                   required  WRONG        unsupported: this worker has no such model",
        ),
    ] {
        let program = ["check-worker", "--timeout", "20", "--", "python3", worker.to_str().unwrap(), fault];
        let output = Sandbox::new().tfcheck(&program);
        let text = stdout(&output);
        assert!(text.contains(wrong), "{fault}: {text}{}", stderr(&output));
        assert_eq!(output.status.code(), Some(i32::from(fault != "good")), "{fault}: {text}");
    }
}

#[test]
fn a_run_names_the_module_of_each_planted_mistake() {
    let modules = [
        ("interleaved-rope", "model.layers.0.self_attn.rope_q"),
        ("fixed-epsilon", "model.layers.0.input_layernorm"),
        ("mask-off-by-one", "model.layers.0.self_attn.mask"),
        ("gelu", "model.layers.0.mlp.act_fn"),
    ];
    assert_eq!(modules.len(), Bug::ALL.len());
    let sandbox = Sandbox::new();
    let mut text = String::from(
        "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[inputs]\nlengths = [24]\n\
         [candle]\nmodes = [\"eager\"]\n[run]\nrounds = 0\ntrace = false\nnoise = false\noracle = true\n",
    );
    for (name, bug) in [("right", "")].into_iter().chain(modules.map(|(bug, _)| (bug, bug))) {
        let program = program(bug);
        text.extend([format!("[[commands]]\nname = \"{name}\"\nprogram = {program:?}\nfloat64 = true\n")]);
    }
    let config = sandbox.write("tfcheck.toml", &text);
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    let case = &summary["cases"][0];
    let localized = case["localized"].as_array().unwrap();
    for (bug, module) in modules {
        let is_it =
            |found: &&serde_json::Value| found["b"].as_str().is_some_and(|name| name.starts_with(bug));
        let found = localized.iter().find(is_it).unwrap_or_else(|| panic!("{bug} is not localised: {case}"));
        assert_eq!(found["finding"]["path"], module, "{found}");
    }
    let verdict = case["verdicts"].as_array().unwrap().iter().find(|verdict| {
        let names = [&verdict["a"], &verdict["b"]].map(|name| name.as_str().unwrap());
        names.iter().any(|name| name.starts_with("right"))
            && names.iter().any(|name| name.starts_with("candle"))
    });
    assert_eq!(verdict.unwrap()["verdict"], "same_mathematics", "{case}");
    let told = stdout(&output);
    assert!(told.contains("rope_parameters"), "unread keys are told: {told}");
}

#[test]
fn a_checkout_that_cannot_be_judged_is_an_error_before_anything_runs() {
    let sandbox = Sandbox::new();
    let check = |path: &str, expected: &str| {
        let output = sandbox.tfcheck(&["scoreboard", "--crate", path]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    };
    check("/no/such/folder", "/no/such/folder");
    check(env!("CARGO_MANIFEST_DIR"), "is not the crate candle-transformers");
}
