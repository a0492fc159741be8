//! The diagnosis of native models that make mistakes: every row of its table, several at once, and mistakes outside of it.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use reference::protocol::{Dtype, Load, Mode};
use tfcheck::hunt::diagnose::{Committed, Diagnosed, Diagnosis, Hypothesis, hypotheses};

use crate::mistaken::{
    NOT_SHOWN, checkpoints, diagnosed, diagnosed_in, diagnosed_within, planted, rows, shown, tokens,
    unchanged,
};
use crate::plants;
use crate::setting::Tensors;

fn names(found: &Diagnosed) -> Vec<String> {
    found.mistakes().iter().map(|mistake| mistake.hypothesis.clone()).collect()
}

#[test]
fn every_row_is_named_where_it_is_planted() {
    let wrong: Mutex<Vec<String>> = Mutex::default();
    let all: Vec<&'static Hypothesis> = hypotheses().filter(|row| !NOT_SHOWN.contains(&row.name)).collect();
    all.par_iter().for_each(|row| {
        let said = match shown(row) {
            Some(shown) if shown.is_named => return,
            Some(shown) => format!("{} in {}: {}", row.name, shown.checkpoint, shown.found.sentence),
            None => format!("{}: no checkpoint shows it", row.name),
        };
        wrong.lock().unwrap().push(said);
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn several_mistakes_are_named_together() {
    for (checkpoint, planted) in plants::text::SEVERAL {
        let mistake = rows(planted);
        let found = diagnosed(checkpoint, &tokens(&[40]), &mistake);
        assert!(matches!(found.finding, Diagnosis::Reproduced { .. }), "{checkpoint}: {}", found.sentence);
        let mut named = names(&found);
        named.sort();
        let mut planted: Vec<&str> = planted.to_vec();
        planted.sort_unstable();
        assert_eq!(named, planted, "{checkpoint}: {}", found.sentence);
    }
}

#[test]
fn a_mistake_outside_the_table_is_localised_and_not_named() {
    for plant in plants::text::outside_the_table() {
        let (checkpoint, part) = (plant.checkpoint, plant.parts[0]);
        let found = diagnosed(checkpoint, &tokens(&[40]), &planted(&plant));
        assert!(found.mistakes().is_empty(), "{checkpoint}: {}", found.sentence);
        let Diagnosis::Parts { parts, .. } = &found.finding else {
            panic!("{checkpoint}: {}", found.sentence)
        };
        let part = plant.layer().map_or_else(|| part.to_owned(), |layer| format!("layer {layer}'s {part}"));
        let found_parts = parts.iter().map(|part| part.part.as_str()).collect::<Vec<_>>();
        assert_eq!(found_parts, [part], "{}", found.sentence);
    }
}

#[test]
fn tensors_that_a_port_does_not_read_are_noted() {
    // A port that reads the gate in place of `up_proj`.
    let gate_twice = |tensors: &mut Tensors| {
        let names: Vec<String> = tensors.keys().filter(|name| name.contains(".up_proj.")).cloned().collect();
        for name in names {
            let gate = tensors[&name.replace(".up_proj.", ".gate_proj.")].clone();
            tensors.insert(name, gate);
        }
    };
    let plant =
        plants::Plant::new("mistral", plants::Edit::Weights(gate_twice), "model.layers.0.mlp.up_proj");
    // What the port computes instead is not of interest.
    let budget = Duration::from_secs(20);
    let found = diagnosed_within(budget, Dtype::F32, "mistral", &tokens(&[40]), &planted(&plant));
    let note = found.notes.iter().find(|note| note.contains("may not read"));
    let expected = "may not read `model.layers.*.mlp.up_proj.weight`: with other values";
    assert!(note.is_some_and(|note| note.contains(expected)), "{}\n{:?}", found.sentence, found.notes);
}

#[test]
fn a_factor_is_fitted_and_compared_with_the_configs_numbers() {
    for (plant, factor) in plants::text::factors() {
        let checkpoint = plant.checkpoint;
        let found = diagnosed(checkpoint, &tokens(&[40]), &planted(&plant));
        assert_eq!(names(&found), plant.hypotheses, "{checkpoint}: {}", found.sentence);
        assert!(found.sentence.contains(factor), "{checkpoint}: {}", found.sentence);
    }
}

#[test]
fn pairs_that_compute_the_same_are_not_diagnosed() {
    let mut pairs = 0;
    for checkpoint in checkpoints() {
        // The fused backend rounds otherwise; it does not pool over padding on the left.
        for (mode, lengths) in [(Mode::Eager, [40, 25]), (Mode::Fused, [40, 40])] {
            let in_mode = |load: &Load, _: &Path| unchanged(&Load { mode, ..load.clone() });
            let found = diagnosed(&checkpoint, &tokens(&lengths), &in_mode);
            assert_eq!(found.finding, Diagnosis::Nothing, "{checkpoint}: {}", found.sentence);
            pairs += 1;
        }
    }
    assert!(pairs >= 100, "{pairs}");
}

/// The same function, with the sums over an MLP's hidden features in another order.
fn turned(load: &Load, folder: &Path) -> Load {
    let path = load.checkpoint.join("model.safetensors");
    let mut tensors: Tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    for (name, tensor) in tensors.iter_mut().filter(|(name, _)| name.contains(".mlp.")) {
        let dim = usize::from(name.contains("down_proj"));
        let order: Vec<u32> = (0..tensor.dim(dim).unwrap() as u32).rev().collect();
        let order = Tensor::new(order, &Device::Cpu).unwrap();
        *tensor = tensor.index_select(&order, dim).unwrap();
    }
    std::fs::copy(load.checkpoint.join("config.json"), folder.join("config.json")).unwrap();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
    Load { checkpoint: folder.to_owned(), ..load.clone() }
}

/// Checkpoints whose MLPs have hidden features that can be turned, and that take 300 positions.
const TURNED: [&str; 6] = ["llama:tiny", "mistral", "qwen2", "qwen3", "gemma", "granite"];

#[test]
fn what_is_rounded_to_bf16_is_named_where_the_sides_agree_in_a_wider_dtype() {
    let (mut named, mut all) = (0, 0);
    for row in ["rope-angles-bf16", "softmax-bf16", "softmax-sums-bf16", "norm-sums-bf16", "norm-root-bf16"] {
        for checkpoint in TURNED {
            let mistake = rows(&[row]);
            let in_bf16 = |load: &Load, folder: &Path| {
                if load.dtype != Dtype::Bf16 {
                    return unchanged(load);
                }
                let turned = turned(load, folder);
                let own = folder.join("rounded");
                std::fs::create_dir_all(&own).unwrap();
                let Committed { load, deviations } = mistake(&turned, &own);
                Committed { load, deviations }
            };
            let found = diagnosed_in(Dtype::Bf16, checkpoint, &tokens(&[300]), &in_bf16);
            assert!(!found.is_divergence(), "{checkpoint}: {}", found.sentence);
            eprintln!("{row} in {checkpoint}: {}", found.sentence);
            all += 1;
            // What rounding hides is not named; what is named was made, or rounds the same.
            let Diagnosis::Reproduced { mistakes } = &found.finding else { continue };
            let is_it = |mistake: &tfcheck::hunt::diagnose::Mistake| {
                mistake.hypothesis == row || mistake.alternatives.iter().any(|other| other.hypothesis == row)
            };
            assert!(mistakes.iter().any(is_it), "{row} in {checkpoint}: {}", found.sentence);
            named += 1;
            assert!(found.is_rounding && found.dtype == Dtype::Bf16, "{}", found.sentence);
        }
    }
    eprintln!("{named} of {all} roundings are named");
    assert!(named >= 10, "{named} of {all} roundings are named");
}

#[test]
fn ordinary_rounding_to_bf16_is_not_diagnosed() {
    let mut pairs = 0;
    for checkpoint in TURNED {
        for lengths in [&[40][..], &[300]] {
            for mode in [Mode::Eager, Mode::Fused] {
                let other = |load: &Load, folder: &Path| unchanged(&Load { mode, ..turned(load, folder) });
                let found = diagnosed_in(Dtype::Bf16, checkpoint, &tokens(lengths), &other);
                assert_eq!(found.finding, Diagnosis::Nothing, "{checkpoint}: {}", found.sentence);
                pairs += 1;
            }
        }
    }
    assert!(pairs >= 24, "{pairs}");
}
