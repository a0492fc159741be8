//! Encoders, and heads other than the causal language model's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reference::protocol::{Attention, Mode, Positions};
use serde_json::{Value, json};

use crate::tiny::{self, Cell, HIDDEN, VOCABULARY, environments, version};
use crate::truth::truth;
use crate::{LONG, case, padded};

const LABELS: usize = 3;
const TOKENS: Option<&str> = Some("input_ids");

fn config(model_type: &str, architecture: &str) -> Value {
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        // Sequence 0 is padded with this token, which RoBERTa uses to find padding.
        "pad_token_id": 0,
        "id2label": { "0": "a", "1": "b", "2": "c" },
    })
}

/// Shapes of an encoder's weights under `prefix`, and of the extra `linear` layers (name, outputs) and
/// `norms`.
fn shapes(prefix: &str, linear: &[(&str, usize)], norms: &[&str]) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::new();
    for (name, rows) in [("word", VOCABULARY), ("position", 64), ("token_type", 2)] {
        shapes.insert(format!("{prefix}embeddings.{name}_embeddings.weight"), vec![rows, HIDDEN]);
    }
    let mut dense = |name: String, rows: usize| {
        shapes.insert(format!("{name}.weight"), vec![rows, HIDDEN]);
        shapes.insert(format!("{name}.bias"), vec![rows]);
    };
    for layer in 0..2 {
        for name in [
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        ] {
            dense(format!("{prefix}encoder.layer.{layer}.{name}"), HIDDEN);
        }
    }
    for (name, rows) in linear {
        dense((*name).to_owned(), *rows);
    }
    let mut all: Vec<String> = norms.iter().map(|name| (*name).to_owned()).collect();
    all.push(format!("{prefix}embeddings.LayerNorm"));
    for layer in 0..2 {
        for name in ["attention.output", "output"] {
            all.push(format!("{prefix}encoder.layer.{layer}.{name}.LayerNorm"));
        }
    }
    for name in all {
        shapes.insert(format!("{name}.weight"), vec![HIDDEN]);
        shapes.insert(format!("{name}.bias"), vec![HIDDEN]);
    }
    shapes
}

/// Writes an encoder with each head; returns folder, width of the output and the tensor whose positions it follows.
fn checkpoints(folder: &Path) -> Vec<(PathBuf, usize, Option<&'static str>)> {
    let masked = |mut shapes: BTreeMap<String, Vec<usize>>, bias: &str| {
        shapes.insert(bias.to_owned(), vec![VOCABULARY]);
        shapes
    };
    let write = |model_type: &str, architecture: &str, shapes: &BTreeMap<String, Vec<usize>>| {
        let checkpoint = folder.join(architecture);
        tiny::checkpoint(&checkpoint, &config(model_type, architecture), shapes);
        checkpoint
    };
    let transform = "cls.predictions.transform";
    let bert =
        shapes("bert.", &[(&format!("{transform}.dense"), HIDDEN)], &[&format!("{transform}.LayerNorm")]);
    let classifier = shapes("bert.", &[("bert.pooler.dense", HIDDEN), ("classifier", LABELS)], &[]);
    let roberta = shapes("roberta.", &[("lm_head.dense", HIDDEN)], &["lm_head.layer_norm"]);
    vec![
        (write("bert", "BertForMaskedLM", &masked(bert, "cls.predictions.bias")), VOCABULARY, TOKENS),
        (write("bert", "BertForSequenceClassification", &classifier), LABELS, None),
        (write("bert", "BertModel", &shapes("", &[("pooler.dense", HIDDEN)], &[])), HIDDEN, TOKENS),
        (write("roberta", "RobertaForMaskedLM", &masked(roberta, "lm_head.bias")), VOCABULARY, TOKENS),
    ]
}

#[test]
fn every_encoder_head_gives_three_dimensions_and_ignores_position_ids() {
    let case = case(|_| ());
    let (ids, mask, positions) = padded(true);
    // Position ids that no encoder counts itself: an encoder that used them would give other logits.
    let spread: Vec<Vec<i64>> =
        positions.iter().map(|row| row.iter().map(|position| 3 * position + 1).collect()).collect();
    tiny::inputs(&case.inputs, &ids, &mask, &spread);
    let checkpoints = checkpoints(case.folder.path());
    let paths: Vec<&Path> = checkpoints.iter().map(|(path, ..)| path.as_path()).collect();
    for environment in [&environments()[0], environments().last().unwrap()] {
        let truths = truth(environment, &paths, &case.inputs);
        for ((checkpoint, width, follows), truth) in checkpoints.iter().zip(truths) {
            let cell = case.cell(environment, Mode::Eager, Attention::Eager);
            let outcome = Cell { checkpoint, ..cell }.run().unwrap();
            let name = format!("{} {}", version(environment), checkpoint.display());
            let seq = if follows.is_some() { LONG } else { 1 };
            assert_eq!(outcome.forwarded.shape, [2, seq, *width], "{name}");
            assert_eq!(outcome.forwarded.positions, Positions::All, "{name}");
            assert_eq!(outcome.forwarded.outputs[0].follows.as_deref(), *follows, "{name}");
            assert!(outcome.logits == truth.f32, "{name}");
        }
    }
}
