//! Properties of every entry of the catalogue.

use std::fs;

use safetensors::{SafeTensors, tensor::TensorView};

use super::fill::fill;
use super::*;
use crate::checkpoints::Tensor;

fn small() -> impl Iterator<Item = Entry> {
    catalogue().iter().copied().filter(|entry| !entry.bench)
}

fn weights(entry: &Entry, seed: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    write(entry.model_type, entry.variant, seed, folder.path()).unwrap();
    fs::read(folder.path().join("model.safetensors")).unwrap()
}

fn tensors(entry: &Entry) -> Vec<Tensor> {
    let (architecture, variant) = find(entry.model_type, entry.variant).unwrap();
    let config = architecture.synthetic.config(architecture.model_type, variant).unwrap();
    architecture.synthetic.tensors(architecture.model_type, &config).unwrap()
}

#[test]
fn same_seed_same_bytes_other_seed_other_bytes() {
    for entry in small() {
        let bytes = weights(&entry, 7);
        assert!(bytes == weights(&entry, 7), "{entry:?}");
        assert!(bytes != weights(&entry, 8), "{entry:?}");
    }
}

#[test]
fn threads_may_make_one_checkpoint_at_the_same_time() {
    let entry = find_entry("llama", "tiny");
    let folder = tempfile::tempdir().unwrap();
    let started = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                started.wait();
                write(entry.model_type, entry.variant, 0, folder.path()).unwrap();
            });
        }
    });
    assert!(fs::read(folder.path().join("model.safetensors")).unwrap() == weights(&entry, 0));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing but the two files is left");
}

#[test]
fn bytes_do_not_change_with_platform_or_release() {
    // FNV-1a of the file. An intended change of the tables changes this number; no other change may.
    let bytes = weights(&find_entry("llama", "tiny"), 0);
    let digest = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    assert_eq!(format!("{digest:016x}"), "7338f083681e1189");
}

#[test]
fn streamed_file_equals_the_one_serialized_in_memory() {
    for entry in small() {
        let streamed = weights(&entry, 3);
        let values: Vec<(Tensor, Vec<u8>)> = tensors(&entry)
            .into_iter()
            .map(|tensor| {
                let mut values = vec![0f32; tensor.len()];
                fill(&tensor, 3, 0, &mut values);
                (tensor, values.iter().flat_map(|value| value.to_le_bytes()).collect())
            })
            .collect();
        let views = values.iter().map(|(tensor, bytes)| {
            (&tensor.name, TensorView::new(safetensors::Dtype::F32, tensor.shape.clone(), bytes).unwrap())
        });
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let serialized = safetensors::serialize(views, Some(metadata)).unwrap();
        assert!(streamed == serialized, "{entry:?}");
    }
}

#[test]
fn headers_are_well_formed_and_values_finite_and_uneven() {
    for entry in small() {
        let bytes = weights(&entry, 0);
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), tensors(&entry).len(), "{entry:?}: a tensor twice");
        for (name, view) in file.tensors() {
            let values: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            assert!(values.iter().all(|value| value.is_finite()), "{entry:?} {name}");
            assert!(
                values.len() == 1 || values.iter().any(|value| value.to_bits() != values[0].to_bits()),
                "{entry:?} {name}"
            );
        }
    }
}

#[test]
fn configs_name_their_model_type_and_class() {
    for entry in catalogue() {
        let config = config(entry.model_type, entry.variant).unwrap();
        assert_eq!(config["model_type"], entry.model_type, "{entry:?}");
        assert!(config["architectures"][0].is_string(), "{entry:?}");
    }
}

#[test]
fn names_are_unique_and_the_first_of_each_model_type_is_the_default() {
    let mut seen = std::collections::HashSet::new();
    for entry in catalogue() {
        let first = !seen.iter().any(|(model_type, _)| *model_type == entry.model_type);
        assert_eq!(first, entry.variant.is_empty(), "{entry:?}");
        assert!(seen.insert((entry.model_type, entry.variant)), "{entry:?}");
    }
}

#[test]
fn bench_shapes_have_the_parameters_of_their_models() {
    // From the model cards: 134.5 M, 1.24 B, 3.21 B.
    for (variant, parameters) in [("smollm2-135m", 134_515_008), ("1b", 1_235_814_400), ("3b", 3_212_749_824)]
    {
        let total: usize = tensors(&find_entry("llama", variant)).iter().map(Tensor::len).sum();
        assert_eq!(total, parameters, "{variant}");
    }
}

#[test]
fn values_have_the_mean_and_deviation_asked_for() {
    let tensor = Tensor { name: "w".into(), shape: vec![1 << 20], mean: 1.0, std: 0.5 };
    let mut values = vec![0f32; tensor.len()];
    fill(&tensor, 0, 0, &mut values);
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let variance = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
    // Five standard errors of a mean (0.5 / 1024) and of a deviation (smaller).
    assert!((mean - 1.0).abs() < 2.5e-3, "{mean}");
    assert!((variance.sqrt() - 0.5).abs() < 2.5e-3, "{variance}");
}

#[test]
fn unknown_names_list_the_available_ones() {
    let folder = tempfile::tempdir().unwrap();
    let error = |model_type, variant| write(model_type, variant, 0, folder.path()).unwrap_err().to_string();
    assert!(error("lama", "").contains("llama"), "{}", error("lama", ""));
    assert!(error("llama", "big").contains("yarn"), "{}", error("llama", "big"));
}

fn find_entry(model_type: &str, variant: &str) -> Entry {
    *catalogue().iter().find(|entry| (entry.model_type, entry.variant) == (model_type, variant)).unwrap()
}
