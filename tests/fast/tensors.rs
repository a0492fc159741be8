//! Named tensors: inputs beside tokens, and outputs beside the main one.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use safetensors::tensor::TensorView;

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
