//! The part of a port that a failing test names by a recording's edited checkpoints, with native models on both sides: as trusted
//! side and, with the planted bugs of the other tests, as ports.

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use tfcheck::hunt::diagnose::{Tokens, operated_natively};
use tfcheck_port::{Inputs, Limits, Recorded, Recording, Reference, SCHEMA_VERSION, Tensors};

use crate::plants::{self, Edit, Plant};

const SEQ: usize = 20;
const VOCABULARY: i64 = 200;

/// The native model of the checkpoint in a folder, as a port.
fn native(folder: &Path, inputs: &Inputs) -> Result<Tensor> {
    let options = models::Options { dtype: DType::F32, device: Device::Cpu, backend: models::Backend::Eager };
    let mut model =
        models::load(folder, &options).map_err(|error| candle_core::Error::Msg(error.to_string()))?;
    let inputs = models::Inputs {
        attention_mask: Some(inputs.attention_mask.clone()),
        position_ids: Some(inputs.position_ids.clone()),
        ..models::Inputs::new(inputs.input_ids.clone())
    };
    model.forward(&inputs).map_err(|error| candle_core::Error::Msg(error.to_string()))
}

/// A synthetic checkpoint, written to a folder, and its recording.
fn recorded(name: &str, folder: &Path) -> Option<Recording> {
    let (model_type, variant) = name.split_once(':').unwrap_or((name, ""));
    let checkpoint = folder.join("checkpoint");
    models::synthetic::write(model_type, variant, 0, &checkpoint).unwrap();
    let config = models::synthetic::config(model_type, variant).unwrap();
    let vocab_size = config["vocab_size"].as_u64()? as usize;
    let tokens = Tokens {
        batch: 1,
        seq: SEQ,
        input_ids: (0..SEQ as i64)
            .map(|at| 10 + (at * 37) % (VOCABULARY.min(vocab_size as i64) - 10))
            .collect(),
        attention_mask: vec![1; SEQ],
        position_ids: (0..SEQ as i64).collect(),
    };
    let places = [[0, 2], [0, 11], [0, SEQ - 1]];
    let found = operated_natively(&checkpoint, &tokens, &places, vocab_size, folder).unwrap();
    assert_eq!(found.failed, 0, "{name}: an edited checkpoint has no logits");
    let limits = |relative_l2| Limits { relative_l2, local_factor: 4.0, dynamo: 1e-4 };
    let recorded = Recorded {
        schema_version: SCHEMA_VERSION,
        checkpoint: name.into(),
        seed: Some(0),
        files: [].into(),
        batch: 1,
        seq: SEQ,
        vocab_size,
        real_positions: SEQ,
        reference: Reference { variant: "native".into(), dtype: "f64".into(), libraries: [].into() },
        reference_rmse: [].into(),
        limits: [("f32".to_owned(), limits(1.04e-5))].into(),
        limits_from: "a test".into(),
        tfcheck: String::new(),
        tensors_sha256: String::new(),
        modules: Vec::new(),
        surgery: Some(found.surgery),
    };
    let tensors = Tensors {
        input_ids: tokens.input_ids,
        attention_mask: tokens.attention_mask,
        position_ids: tokens.position_ids,
        places: vec![[0, 0]],
        logits: vec![0.0; vocab_size],
        modules: Vec::new(),
        surgery: found.logits,
    };
    Recording::write(folder, &recorded, &tensors).unwrap();
    Some(Recording::open(folder).unwrap())
}

/// The parts of a port that commits a bug on every checkpoint that it loads.
fn found(
    recording: &Recording,
    checkpoint: &Path,
    plant: Option<&Plant>,
) -> tfcheck_port::surgery::Localised {
    let port = |folder: &Path, inputs: &Inputs| {
        let Some(plant) = plant else { return native(folder, inputs) };
        let planted = tempfile::tempdir().unwrap();
        plant.edit_checkpoint(folder, planted.path());
        native(planted.path(), inputs)
    };
    recording.localised(checkpoint, port).unwrap().unwrap()
}

#[test]
fn no_part_of_a_right_port_is_blamed() {
    for name in [
        "llama:tiny",
        "gpt2",
        "qwen2",
        "qwen3",
        "gemma3_text",
        "phi3",
        "gpt_neox",
        "mixtral",
        "falcon",
        "cohere",
        "phi",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let Some(recording) = recorded(name, folder.path()) else { panic!("{name} has no vocabulary") };
        let clean = found(&recording, &folder.path().join("checkpoint"), None);
        assert!(clean.parts.is_empty(), "{name}: {clean}");
        assert!(clean.runs <= 4, "{name}: one run for the ends and one for each kind of block: {clean}");
    }
}

#[test]
fn planted_bugs_are_found_in_their_part() {
    let mut wrong = Vec::new();
    let (mut tried, mut named, mut most) = (0, 0, 0);
    for plant in plants::text::localised() {
        if matches!(plant.edit, Edit::Inputs(_)) || !IS_TRIED.contains(&plant.checkpoint) {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let Some(recording) = recorded(plant.checkpoint, folder.path()) else { continue };
        let found = found(&recording, &folder.path().join("checkpoint"), Some(&plant));
        let expected = if plant.parts.is_empty() { plants::parts(&plant.module) } else { plant.parts };
        tried += 1;
        most = most.max(found.runs);
        // A wrong epsilon is in every norm, and so in the final one too.
        let is_of_norms = plant.name().contains("eps");
        let is_expected = |part: &tfcheck_port::surgery::Part| {
            let is_named = |kind: &&str| {
                part.part == **kind
                    || part.part.ends_with(&format!("'s {kind}"))
                    || part.part.starts_with(&format!("the {kind} of layers"))
                    || is_of_norms && part.part == tfcheck_port::surgery::words::ENDS
            };
            expected.iter().any(is_named)
                && plant.layer().is_none_or(|layer| {
                    part.part.starts_with(&format!("layer {layer}'s")) || !part.part.contains("'s ")
                })
        };
        // Some bugs show only with padding, which these inputs do not have.
        named += usize::from(!found.parts.is_empty());
        if !found.parts.is_empty() && !found.parts.iter().all(is_expected) {
            wrong.push(format!("{}: {found}, expected {expected:?}", plant.name()));
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}, at most {most} runs:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{named} of {tried} bugs are found, with at most {most} runs of the port");
    assert!(tried >= 20 && named + 2 >= tried && most <= 12, "{named} of {tried}, {most} runs");
}

/// Checkpoints of one forward kind each, so that the test is quick.
const IS_TRIED: &[&str] =
    &["llama:tiny", "gpt2", "qwen2", "qwen3", "gemma3_text", "mistral", "phi3", "gpt_neox", "mixtral"];
