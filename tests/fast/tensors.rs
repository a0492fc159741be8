//! Named tensors: inputs beside tokens, and outputs beside the main one.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::support::{Sandbox, stderr, stdout};

#[test]
fn an_output_beside_the_main_one_that_differs_is_a_finding_and_exit_1() {
    let code = |second: &str| {
        let sandbox = Sandbox::new();
        let config = sandbox.workers(&[("one", "loss"), ("two", second)], "rounds = 0\nnoise = false");
        let output = sandbox.run(&config, &[]);
        (output.status.code(), stdout(&output), sandbox.only_run().json("summary.json"))
    };
    let (right, _, summary) = code("loss");
    assert_eq!(right, Some(0));
    assert_eq!(summary["cases"][0]["outputs"][0]["rows"][0]["verdict"]["verdict"], "identical");
    let (wrong, said, summary) = code("wrong_loss");
    assert_eq!(wrong, Some(1), "{said}");
    let finding = "two (eager): loss diverges from that of A by 1.0e-1, though the main output agrees";
    assert!(said.replace('\n', " ").contains(finding), "{said}");
    assert_eq!(summary["findings"][0]["finding"], "output", "{summary}");
    // The main outputs are equal, so that both variants are in one group.
    assert_eq!(summary["cases"][0]["groups"]["groups"].as_array().map(Vec::len), Some(1), "{summary}");
}

/// Writes a safetensors file of i64 tensors, each `[2, n]`, and one of floats.
fn write_tensors(path: &std::path::Path, tokens: &[(&str, Vec<i64>)], pixels: Option<Vec<f32>>) {
    let bytes = |values: &[i64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let stored: Vec<_> =
        tokens.iter().map(|(name, values)| (*name, values.len() / 2, bytes(values))).collect();
    let pixels =
        pixels.map(|values| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>());
    let tokens = stored.iter().map(|(name, seq, bytes)| {
        (*name, TensorView::new(safetensors::Dtype::I64, vec![2, *seq], bytes).unwrap())
    });
    let pixels = pixels.iter().map(|bytes| {
        let shape = vec![2, bytes.len() / 8];
        ("pixel_values", TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap())
    });
    safetensors::serialize_to_file(tokens.chain(pixels), None, path).unwrap();
}

#[test]
fn tensors_of_a_file_are_fed_by_name_and_padding_of_the_decoder_is_not_compared() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("one", "good"), ("two", "good")], "rounds = 0\nnoise = false");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("lengths = [12]", "tensors = \"tensors.safetensors\"")).unwrap();
    let file = config.with_file_name("tensors.safetensors");
    let tokens = [
        ("input_ids", vec![1, 2, 3, 4, 5, 6, 7, 8]),
        ("decoder_input_ids", vec![1, 2, 3, 4, 5, 6]),
        ("decoder_attention_mask", vec![1, 1, 1, 1, 1, 0]),
    ];
    write_tensors(&file, &tokens, None);
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    assert_eq!(summary["cases"][0]["positions"].as_array().map(Vec::len), Some(5), "{summary}");
    let inputs = summary["cases"][0]["inputs"].as_str().unwrap();
    assert_eq!(inputs, "batch 2, 4 tokens, decoder_attention_mask i64 2 × 3, decoder_input_ids i64 2 × 3");
}

#[test]
fn a_model_of_pictures_has_no_tokens_and_each_row_one_position() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("one", "good"), ("two", "good")], "rounds = 0\nnoise = false");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("lengths = [12]", "tensors = \"tensors.safetensors\"")).unwrap();
    let file = config.with_file_name("tensors.safetensors");
    write_tensors(&file, &[], Some(vec![0.5; 12]));
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary = sandbox.only_run().json("summary.json");
    assert_eq!(summary["cases"][0]["positions"].as_array().map(Vec::len), Some(2), "{summary}");
    // What the run was fed is unchanged when it is resumed, and a changed file is told.
    let run = sandbox.only_run().path().to_owned();
    write_tensors(&file, &[], Some(vec![0.25; 12]));
    let output = sandbox.tfcheck(&["run", "--resume", run.to_str().unwrap()]);
    assert!(stderr(&output).contains("the inputs have changed"), "{}", stderr(&output));
}

/// A sentence-transformers checkpoint with a tokenizer of single letters.
fn sentence_checkpoint(folder: &std::path::Path) {
    models::synthetic::write("llama", "tiny", 0, folder).unwrap();
    let mut config = models::synthetic::config("llama", "tiny").unwrap();
    config["max_position_embeddings"] = json!(512);
    let letters = (' '..='~').zip(3..).map(|(letter, id)| (letter.to_string(), json!(id)));
    let vocab: serde_json::Map<String, Value> = letters.chain([("<unk>".to_owned(), json!(0))]).collect();
    let split = json!({"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": split,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    let module = |name: &str| json!({"type": format!("sentence_transformers.models.{name}")});
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    for (name, content) in [
        ("config.json", config),
        ("tokenizer.json", tokenizer),
        ("modules.json", json!([module("Transformer"), module("Pooling"), module("Normalize")])),
        ("1_Pooling/config.json", json!({"pooling_mode_mean_tokens": true})),
    ] {
        std::fs::write(folder.join(name), content.to_string()).unwrap();
    }
}

#[test]
fn a_retrieval_set_shows_whether_variants_rank_its_passages_in_the_same_order() {
    let sandbox = Sandbox::new();
    sentence_checkpoint(&sandbox.path().join("sentences"));
    let workers = [("one", "good"), ("two", "good"), ("three", "good 0.5")];
    let config = sandbox.workers(&workers, "rounds = 0\nnoise = false\nbaseline = \"one_eager\"");
    let text = std::fs::read_to_string(&config).unwrap();
    let text =
        text.replace("synthetic:llama:tiny", "./sentences").replace("lengths = [12]", "retrieval = true");
    std::fs::write(&config, &text).unwrap();
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let run = sandbox.only_run();
    let found = run.json("summary.json")["cases"][0]["embeddings"].clone();
    assert_eq!((&found["texts"], &found["questions"]), (&json!(36), &json!(12)));
    let row = |variant: &str| {
        let rows = found["rows"].as_array().unwrap().iter();
        rows.clone().find(|row| row["variant"] == variant).unwrap()["retrieval"].clone()
    };
    let same = row("two_eager");
    assert_eq!((&same["same_first"], &same["tau_mean"]), (&json!(12), &json!(1.0)), "{found}");
    assert_eq!((&same["tau_least"], &same["cosine_change"]), (&json!(1.0), &json!(0.0)), "{found}");
    let other = row("three_eager");
    assert!(other["same_first"].as_u64().unwrap() < 12, "{found}");
    let tau = |name: &str| other[name].as_f64().unwrap();
    assert!(tau("tau_least") < tau("tau_mean") && tau("tau_mean") < 1.0, "{found}");
    assert!(other["cosine_change"].as_f64().unwrap() > 1e-3, "{found}");
    let summary = run.text("summary.md");
    assert!(summary.contains("Kendall's τ") && summary.contains("| 12 of 12 "), "{summary}");
    // A checkpoint without a pooling has no vectors of texts.
    std::fs::remove_file(sandbox.path().join("sentences/modules.json")).unwrap();
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("`retrieval` ranks vectors of texts"), "{}", stderr(&output));
}
