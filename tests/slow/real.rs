//! Slow end-to-end tests on real transformers releases and real checkpoints.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use crate::support::{Run, Sandbox, real_models, stderr, word};
use serde_json::Value;

/// Largest relative L2 of two implementations of a model in f32, which differ by rounding only: about ten times the
/// measured values (1e-6 to 2e-6).
const F32: f64 = 1e-5;

/// Relative L2 of two variants of the only case, with `a` as the reference.
fn relative_l2(run: &Run, a: &str, b: &str) -> f64 {
    let summary = run.json("summary.json");
    let pairs = summary["cases"][0]["pairs"].as_array().unwrap().clone();
    let is = |pair: &Value, a: &str, b: &str| pair["a"] == a && pair["b"] == b;
    let pair = pairs.iter().find(|pair| is(pair, a, b) || is(pair, b, a)).unwrap();
    let to_first = if pair["a"] == a { "relative_l2_to_a" } else { "relative_l2_to_b" };
    pair[to_first].as_f64().unwrap_or_else(|| panic!("{pair} has no relative L2"))
}

fn verdict(run: &Run, a: &str, b: &str) -> String {
    let summary = run.json("summary.json");
    let verdicts = summary["cases"][0]["verdicts"].as_array().unwrap().clone();
    let of = |v: &&Value| (v["a"] == a && v["b"] == b) || (v["a"] == b && v["b"] == a);
    verdicts.iter().find(of).unwrap()["verdict"].as_str().unwrap().to_owned()
}

/// Asserts that every cell completed and every pair is within [`F32`].
fn assert_agrees(run: &Run, message: &str) {
    let cells = run.cells();
    for cell in &cells {
        assert_eq!(word(&cell.outcome), "completed", "{}: {message}", cell.name);
    }
    for a in &cells {
        for b in &cells {
            if a.name != b.name {
                let found = relative_l2(run, &a.name, &b.name);
                assert!(found <= F32, "{} against {}: {found:e}", a.name, b.name);
            }
        }
    }
}

fn real_checkpoint(file: &str, lengths: &str) {
    let sandbox = Sandbox::new();
    let model = real_models().join(file);
    let config = format!(
        "[[checkpoints]]\nsource = \"{}\"\n[inputs]\nlengths = [{lengths}]\n\
         [run]\nmodes = [\"eager\"]\nrounds = 1\niterations = 1\nwarm_up = 0\ntrace = false\nnoise = false\n",
        model.display()
    );
    let config = sandbox.write("tfcheck.toml", &config);
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_agrees(&sandbox.only_run(), &stderr(&output));
}

#[test]
fn smollm2_agrees_between_releases_and_with_both_native_backends() {
    real_checkpoint("SmolLM2-135M-Instruct.Q4_1.gguf", "512");
}

/// In bf16 as well, with each side's own float64 result as the oracle.
#[test]
fn smollm2_computes_the_same_function_in_f32_and_bf16() {
    let sandbox = Sandbox::new();
    let model = real_models().join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let config = format!(
        "[[checkpoints]]\nsource = \"{}\"\n[inputs]\nlengths = [64]\n\
         [run]\nmodes = [\"eager\"]\ndtypes = [\"f32\", \"bf16\"]\noracle = true\nrounds = 0\ntrace = false\nnoise = false\n",
        model.display()
    );
    let output = sandbox.run(&sandbox.write("tfcheck.toml", &config), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = sandbox.only_run();
    let case = run.json("summary.json")["cases"][0].clone();
    // 11 variants: 4.54.0, 5.23.0, candle eager and candle fused in two dtypes each, and three float64 results.
    let verdicts = case["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), 11 * 10 / 2);
    for verdict in verdicts {
        let known = ["identical", "same_mathematics"].map(|word| verdict["verdict"] == word);
        assert!(known.contains(&true), "{verdict}");
    }
    assert_eq!(case["accuracies"].as_array().unwrap().len(), 8, "each variant's own error: {case}");
    assert!(run.text("summary.md").contains("### Error against float64"));
    // 4.7e-15 was measured; the limit allows for other machines.
    let exact = relative_l2(&run, "5.23.0_eager_eager_f64", "candle_eager_f64");
    assert!(exact <= 1e-10, "{exact:e}");
}

#[test]
fn gemma3_agrees_past_its_window() {
    real_checkpoint("gemma-3-270m-q4_k_m.gguf", "520");
}

/// An encoder whose output is hidden states, with a batch size of 1 and in a batch padded on the left.
#[test]
fn minilm_gives_the_hidden_states_of_transformers() {
    let sandbox = Sandbox::new();
    let model = real_models().join("all-MiniLM-L6-v2");
    let config = format!(
        "[[versions]]\nname = \"5.23.0\"\nsource = \"transformers==5.23.0\"\n\
         [[checkpoints]]\nsource = \"{}\"\n[inputs]\nlengths = [64]\nbatch = [1, 3]\npadding = [\"left\"]\n\
         [candle]\nmodes = [\"eager\", \"fused\"]\n\
         [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\nrounds = 0\noracle = true\ntrace = false\nnoise = false\n",
        model.display()
    );
    let config = sandbox.write("tfcheck.toml", &config);
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = sandbox.only_run();
    assert_agrees(&run, &stderr(&output));
    // 2.7e-15 was measured; the limit allows for other machines.
    let exact = relative_l2(&run, "5.23.0_eager_eager_f64", "candle_eager_f64");
    assert!(exact <= 1e-12, "{exact:e}");
}

#[test]
fn minilm_ranks_the_passages_of_the_retrieval_set_alike_in_each_variant() {
    let sandbox = Sandbox::new();
    let config = format!(
        "[[versions]]\nname = \"5.23.0\"\nsource = \"transformers==5.23.0\"\n\
         [[checkpoints]]\nsource = \"{}\"\n[inputs]\nretrieval = true\n\
         [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\nrounds = 0\ntrace = false\nnoise = false\n",
        real_models().join("all-MiniLM-L6-v2").display()
    );
    let output = sandbox.run(&sandbox.write("tfcheck.toml", &config), &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let run = sandbox.only_run();
    let found = run.json("summary.json")["cases"][0]["embeddings"].clone();
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "{found}");
    for row in rows {
        let row = &row["retrieval"];
        assert_eq!((&row["same_first"], &row["answered"]), (&12.into(), &12.into()), "{found}");
        // Rounding in f32 exchanges at most near-equal passages: one of 276 pairs is 0.0072.
        assert!(row["tau_least"].as_f64().unwrap() > 0.98, "{found}");
        assert!(row["cosine_change"].as_f64().unwrap() < 1e-5, "{found}");
    }
}

#[test]
fn a_window_of_one_key_more_is_found_between_releases() {
    let sandbox = Sandbox::new();
    // The synthetic mistral has sliding_window 8; in 4.40.2 each token attends to nine keys.
    let versions: String = ["4.40.2", "4.54.0", "5.23.0"]
        .map(|version| format!("[[versions]]\nname = \"{version}\"\nsource = \"transformers=={version}\"\n"))
        .concat();
    let config = format!(
        "{versions}[[checkpoints]]\nsource = \"synthetic:mistral\"\n[inputs]\nlengths = [48]\n[candle]\nmodes = [\"eager\"]\n\
         [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\nrounds = 0\ntrace = false\nnoise = false\n"
    );
    let config = sandbox.write("tfcheck.toml", &config);
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let run = sandbox.only_run();
    let new = "5.23.0_eager_eager";
    assert_eq!(verdict(&run, "4.40.2_eager_eager", new), "diverged");
    assert!(relative_l2(&run, "4.40.2_eager_eager", new) > 0.1);
    assert_ne!(verdict(&run, "4.54.0_eager_eager", new), "diverged");
    assert!(relative_l2(&run, "4.54.0_eager_eager", new) <= F32);
    assert_ne!(verdict(&run, "candle_eager", new), "diverged");
    // The baseline is the newest version; the run itself localises what diverges from it.
    let mask = "model.layers.0.self_attn.mask";
    let localized = run.json("localized.json");
    assert_eq!(localized[0]["b"], "4.40.2_eager_eager", "{localized}");
    assert_eq!(localized[0]["finding"]["path"], mask, "{localized}");
    assert_eq!(
        localized[0]["finding"]["worst"]["position"], 8,
        "the ninth token is the first to see a ninth key"
    );
    assert!(run.text("summary.md").contains(mask) && run.text("report.html").contains(mask));
    let config = config.to_str().unwrap();
    let output = sandbox.tfcheck(&["localize", "--config", config, "4.40.2_eager_eager", "candle_eager"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(crate::support::stdout(&output).contains(mask), "{}", crate::support::stdout(&output));
    let output = sandbox.tfcheck(&["localize", "--config", config, "4.54.0_eager_eager", "candle_eager"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = sandbox.tfcheck(&["localize", "--config", config, "4.54_eager_eager", "candle_eager"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("did you mean `4.54.0_eager_eager`"), "{}", stderr(&output));
}

#[test]
fn a_version_that_does_not_exist_fails_its_cells_and_no_others() {
    let sandbox = Sandbox::new();
    let config = "[[versions]]\nname = \"future\"\nsource = \"transformers==999.0.0\"\n\
        [[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[inputs]\nlengths = [16]\n\
        [run]\nmodes = [\"eager\"]\nrounds = 0\ntrace = false\nnoise = false\n";
    let config = sandbox.write("tfcheck.toml", config);
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    let run = sandbox.only_run();
    let words: Vec<String> = run.cells().iter().map(|cell| word(&cell.outcome)).collect();
    assert_eq!(words, ["environment", "completed", "completed"]);
    assert!(run.text("summary.md").contains("999.0.0"), "the table names the version that is missing");
}

/// The recording that the example crate's tests use equals what `tfcheck record` writes today.
#[test]
fn the_committed_recording_is_upstreams() {
    let sandbox = Sandbox::new();
    let config = sandbox.write("tfcheck.toml", include_str!("../../examples/port/tfcheck.toml"));
    let out = sandbox.path().join("recording");
    let (config, folder) = (config.to_str().unwrap(), out.to_str().unwrap());
    let kept = ["--positions", "12", "--modules", "model.layers.0.*", "--surgery"];
    let output = sandbox.tfcheck(&[&["record", config, "--out", folder][..], &kept].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let now = tfcheck_port::Recording::open(&out).unwrap();
    let committed = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/port/tests/recording");
    let committed = tfcheck_port::Recording::open(&committed).unwrap();
    assert_eq!(
        (&now.recorded().files, &now.recorded().checkpoint),
        (&committed.recorded().files, &committed.recorded().checkpoint)
    );
    let places = committed.tensors().places.iter().map(|place| (place[0] as usize, place[1] as usize));
    let (seq, vocab) = (now.recorded().seq, now.recorded().vocab_size);
    let mut logits = vec![0.0; now.recorded().batch * seq * vocab];
    for ((row, position), values) in places.zip(committed.tensors().logits.chunks_exact(vocab)) {
        logits[(row * seq + position) * vocab..][..vocab].copy_from_slice(values);
    }
    // Another processor may sum in another order in float64; two float64 results agree up to 1e-10.
    let comparison = now.compare_values(&[now.recorded().batch, seq, vocab], &logits, "f64").unwrap();
    assert!(comparison.verdict.decision.agrees(), "{comparison}");
    assert_eq!(now.recorded().modules, committed.recorded().modules);
    for (now, then) in now.tensors().modules.iter().zip(&committed.tensors().modules) {
        // Recorded as f32: a float64 result that rounds to the next f32 differs by 1e-7.
        let apart = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
        assert!(now.values.iter().zip(&then.values).all(apart), "{}", now.path);
    }
    assert_eq!(now.recorded().surgery, committed.recorded().surgery);
    for (now, then) in now.tensors().surgery.iter().zip(&committed.tensors().surgery) {
        let apart = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs().max(1.0);
        assert!(now.iter().zip(then).all(apart));
    }
}

#[test]
fn a_scoreboard_flags_the_port_resumes_and_shares_workers_without_changing_logits() {
    let sandbox = Sandbox::new();
    let version = "[[versions]]\nname = \"5.23.0\"\nsource = \"transformers==5.23.0\"\n";
    let config = sandbox.write("tfcheck.toml", version);
    let results = sandbox.results();
    let (config, results) = (config.to_str().unwrap(), results.to_str().unwrap());
    let output = sandbox.tfcheck(&["scoreboard", config, "--only", "mistral", "--results", results]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let run = sandbox.only_run();
    let scoreboard = run.json("scoreboard.json");
    let word = |row: usize, variant: &str| {
        let variants = scoreboard["variants"].as_array().unwrap();
        let index = variants.iter().position(|name| name == variant).unwrap();
        scoreboard["rows"][row]["scores"][index]["word"].as_str().unwrap().to_owned()
    };
    let inputs = |row: usize| scoreboard["rows"][row]["inputs"].as_str().unwrap().to_owned();
    assert_eq!([inputs(0), inputs(2)], ["batch 1, 6 tokens", "batch 1, 40 tokens"]);
    for ours in ["candle_eager_f64", "candle_eager_f32", "candle_eager_bf16", "candle_fused_f32"] {
        for row in 0..3 {
            assert!(["identical", "same mathematics"].contains(&word(row, ours).as_str()), "{ours}: {row}");
        }
    }
    // The window of 8 keys has no effect on 6 tokens.
    assert_eq!(word(0, "candle-transformers_eager_f32"), "same mathematics");
    assert_eq!(word(2, "candle-transformers_eager_f32"), "diverged");

    // After one record is deleted, only its cell is run again.
    let case = &run.manifest.cases[1];
    let name = "5.23.0_eager_eager_f32";
    let record = format!("timing_{}_{name}.json", run.manifest.stamp);
    let case_folder = run.folder.case_folder(&run.manifest, &case.name);
    std::fs::remove_file(case_folder.join("5.23.0").join(record)).unwrap();
    let output = sandbox.tfcheck(&["scoreboard", "--resume", run.path().to_str().unwrap()]);
    let said = stderr(&output);
    assert_eq!(said.matches(": loaded in").count(), 1, "{said}");
    assert_eq!(run.json("scoreboard.json"), scoreboard);

    // The same cell in a worker that runs no other cell.
    let own = Sandbox::new();
    let config = own.write("tfcheck.toml", &run.text("config.toml"));
    let output = own.run(&config, &["--only", &format!("{}/{name}", case.name)]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let own = own.only_run();
    let own_folder = own.folder.case_folder(&own.manifest, &own.manifest.cases[0].name);
    let logits = "5.23.0/logits_eager_eager_f32.safetensors";
    let [shared, own] = [case_folder, own_folder].map(|folder| std::fs::read(folder.join(logits)).unwrap());
    assert!(shared == own, "the shared worker's logits are not those of a worker of its own");
}
