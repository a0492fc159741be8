//! Changes that only round otherwise: never diverged by the verdict, and nothing to localise.

use std::path::PathBuf;

use models::synthetic::catalogue;
use reference::protocol::{Dtype, Load, Mode, Positions};
use tfcheck::compare::logits::{Logits, Mask};
use tfcheck::compare::matrix::{self, Entry};
use tfcheck::compare::oracle::Oracles;
use tfcheck::compare::verdict::{Decision, Tolerances, verdicts};
use tfcheck::localize::Finding;
use tfcheck::runner::Runner;

use crate::engine::InProcess;
use crate::setting::{Setting, Tensors};

fn logits(setting: &Setting, name: &str, load: Load) -> Entry {
    use reference::protocol::{Forward, Request};
    let path: PathBuf = setting.folder.path().join(format!("{name}.safetensors"));
    let dtype = load.dtype;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut session = InProcess.start(PathBuf::new(), &stop).unwrap();
    let limit = std::time::Duration::from_mins(1);
    session.ask(&Request::Load(load), limit).unwrap();
    session.ask(&Request::Forward(Forward::new(path.clone())), limit).unwrap();
    Entry { name: name.into(), dtype, logits: Ok(Logits::open(&path, Positions::All).unwrap()) }
}

#[test]
fn other_kernels_and_other_dtypes_never_diverge() {
    let mut count = 0;
    for entry in catalogue().iter().filter(|entry| !entry.bench && entry.variant.is_empty()) {
        let setting = Setting::new(entry.model_type);
        let config = models::synthetic::config(entry.model_type, "").unwrap();
        if config["architectures"][0].as_str().is_some_and(|name| name.ends_with("SequenceClassification")) {
            continue;
        }
        // In bf16 rounding may choose other experts, which is no rounding of the result.
        let is_sparse = config.get("num_experts_per_tok").is_some();
        let cells: Vec<_> = [
            ("oracle", Mode::Eager, Dtype::F64),
            ("eager f32", Mode::Eager, Dtype::F32),
            ("fused f32", Mode::Fused, Dtype::F32),
            ("eager bf16", Mode::Eager, Dtype::Bf16),
            ("fused bf16", Mode::Fused, Dtype::Bf16),
        ]
        .into_iter()
        .filter(|(_, _, dtype)| !is_sparse || *dtype != Dtype::Bf16)
        .collect();
        let entries: Vec<Entry> = cells
            .iter()
            .map(|(name, mode, dtype)| logits(&setting, name, setting.load(*mode, *dtype)))
            .collect();
        let mask = Mask::open(&setting.inputs()).unwrap();
        let matrix = matrix::matrix(&entries, Some(&mask), &matrix::Options::default()).unwrap();
        let oracles = Oracles::new(&matrix, &vec!["native".to_owned(); entries.len()]);
        for verdict in verdicts(&matrix, &oracles, &Tolerances::default()) {
            assert_ne!(verdict.decision, Decision::Diverged, "{}: {verdict:?}", entry.model_type);
            count += 1;
        }
    }
    assert!(count >= 200, "{count} pairs");
}

#[test]
fn sums_in_another_order_are_nothing_to_localise() {
    // The rows and columns of the MLP between two layers in another order: the same function, other sums.
    for checkpoint in ["llama:tiny", "mistral", "qwen3", "gemma2", "olmo2", "granite"] {
        let setting = Setting::new(checkpoint);
        let changed = setting.changed(
            |_| (),
            |tensors: &mut Tensors| {
                let names: Vec<String> =
                    tensors.keys().filter(|name| name.contains(".mlp.")).cloned().collect();
                for name in names {
                    let dim = usize::from(name.contains("down_proj"));
                    let size = tensors[&name].dim(dim).unwrap() as u32;
                    let order: Vec<u32> = (0..size).rev().collect();
                    let order = candle_core::Tensor::new(order, &candle_core::Device::Cpu).unwrap();
                    let turned = tensors[&name].index_select(&order, dim).unwrap();
                    tensors.insert(name, turned);
                }
            },
        );
        for (mode, dtype) in [(Mode::Eager, Dtype::F32), (Mode::Fused, Dtype::F32)] {
            let right = setting.load(Mode::Eager, Dtype::F32);
            let other = Load { checkpoint: changed.clone(), ..setting.load(mode, dtype) };
            let found = setting.localize(right, other);
            assert_eq!(found.finding, Finding::Nothing, "{checkpoint}: {}", found.sentence);
        }
    }
}
