//! A cell in f64 computes in float64 throughout, and a cell in f32 equals unmodified transformers.

use std::path::{Path, PathBuf};

use reference::protocol::{Attention, Dtype, Mode};
use reference::release;
use serde_json::{Value, json};

use crate::tiny::{self, Cell, distance, environments, version};
use crate::truth::{Truth, truth};
use crate::{case, newest, real};

/// Configs with the first version that supports each: llama, mistral with a window shorter than the
/// sequences, and gemma3 with two rope bases.
fn configs() -> Vec<(Value, [u64; 3])> {
    let mut mistral = tiny::config();
    mistral["architectures"] = json!(["MistralForCausalLM"]);
    mistral["model_type"] = "mistral".into();
    mistral["sliding_window"] = 8.into();
    let mut gemma3 = tiny::config();
    for (key, value) in [
        ("architectures", json!(["Gemma3ForCausalLM"])),
        ("model_type", "gemma3_text".into()),
        ("head_dim", 16.into()),
        ("query_pre_attn_scalar", 16.into()),
        ("sliding_window", 8.into()),
        ("sliding_window_pattern", 2.into()),
        ("rope_theta", 1e6.into()),
        ("rope_local_base_freq", 1e4.into()),
        ("hidden_activation", "gelu_pytorch_tanh".into()),
        ("tie_word_embeddings", true.into()),
    ] {
        gemma3[key] = value;
    }
    // The first version that supports each config.
    vec![(tiny::config(), [0; 3]), (mistral, [0; 3]), (gemma3, [4, 50, 0])]
}

fn write(folder: &Path, config: &Value) -> PathBuf {
    let mut shapes = tiny::shapes();
    if config["model_type"] == "gemma3_text" {
        shapes.remove("lm_head.weight");
        for layer in 0..2 {
            let path = format!("model.layers.{layer}");
            for norm in ["q_norm", "k_norm"] {
                shapes.insert(format!("{path}.self_attn.{norm}.weight"), vec![16]);
            }
            for norm in ["pre_feedforward_layernorm", "post_feedforward_layernorm"] {
                shapes.insert(format!("{path}.{norm}.weight"), vec![tiny::HIDDEN]);
            }
        }
    }
    let checkpoint = folder.join(config["model_type"].as_str().unwrap());
    tiny::checkpoint(&checkpoint, config, &shapes);
    checkpoint
}

#[test]
fn f64_is_exact_and_f32_is_untouched() {
    let case = case(|_| ());
    for environment in environments() {
        let release = release(version(environment));
        let known = configs().into_iter().filter(|(_, since)| *since <= release);
        let checkpoints: Vec<_> = known.map(|(config, _)| write(case.folder.path(), &config)).collect();
        let paths: Vec<&Path> = checkpoints.iter().map(PathBuf::as_path).collect();
        let truths = truth(environment, &paths, &case.inputs);
        for (checkpoint, Truth { f64, plain, f32 }) in paths.iter().zip(truths) {
            let run = |dtype| {
                let cell = case.cell(environment, Mode::Eager, Attention::Eager);
                Cell { checkpoint, dtype, ..cell }.run().unwrap()
            };
            let name = format!("{} {}", version(environment), checkpoint.display());
            assert!(run(Dtype::F32).logits == f32, "{name}");
            let exact = run(Dtype::F64);
            assert!(exact.logits == f64, "{name}: {}", distance(&exact.logits, &f64));
            // Unmodified transformers fails on the padded sequence in float64: the mask holds the smallest
            // float64, which float32 cannot represent, so that softmax gives NaN (and 4.40.2 cannot build
            // mistral's mask).
            if let Some(plain) = plain {
                assert!(real(&plain, 0, true).iter().all(|value| value.is_nan()), "{name}");
                // The other sequence shows the effect of float32 inside the model (6e-8 per rounding).
                let apart = distance(&real(&plain, 1, true), &real(&f64, 1, true));
                assert!(apart > 1e-9 && apart < 1e-5, "{name}: {apart}");
            } else {
                assert!(release < [4, 46, 0], "{name}");
            }
            let notes = exact.ready.notes.join("\n");
            assert!(notes.contains("float64 throughout"), "{notes}");
            // The same process then computes in float32.
            assert!(run(Dtype::F32).logits == f32, "{name}, after f64");
        }
    }
}

#[test]
fn a_compiled_model_in_f64_is_exact_too() {
    let case = case(|_| ());
    let run = |mode| {
        let cell = case.cell(newest(), mode, Attention::Eager);
        Cell { dtype: Dtype::F64, ..cell }.run().unwrap()
    };
    let apart =
        distance(&crate::both_rows(&run(Mode::Compiled).logits), &crate::both_rows(&run(Mode::Eager).logits));
    // A float32 operation anywhere would differ by 1e-8 or more; float64 rounds at 1e-16.
    assert!(apart < 1e-13, "{apart}");
}
