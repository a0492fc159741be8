//! A checkpoint that does not match its config is refused, and the error names the config key or tensor.

#![expect(clippy::unwrap_used, reason = "a test that cannot write its fixtures has failed")]

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use models::{Backend, Cache, Inputs, Loaded, Options, Result, load};
use serde_json::{Value, json};

/// A llama of one layer.
fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 7, "hidden_size": 4,
        "intermediate_size": 6, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "tie_word_embeddings": true, "rope_theta": 100.0,
    })
}

fn tensors() -> HashMap<String, Tensor> {
    let layer = "model.layers.0.";
    let shapes: [(String, &[usize]); 11] = [
        ("model.embed_tokens.weight".into(), &[7, 4]),
        ("model.norm.weight".into(), &[4]),
        (format!("{layer}input_layernorm.weight"), &[4]),
        (format!("{layer}post_attention_layernorm.weight"), &[4]),
        (format!("{layer}self_attn.q_proj.weight"), &[4, 4]),
        (format!("{layer}self_attn.k_proj.weight"), &[2, 4]),
        (format!("{layer}self_attn.v_proj.weight"), &[2, 4]),
        (format!("{layer}self_attn.o_proj.weight"), &[4, 4]),
        (format!("{layer}mlp.gate_proj.weight"), &[6, 4]),
        (format!("{layer}mlp.up_proj.weight"), &[6, 4]),
        (format!("{layer}mlp.down_proj.weight"), &[4, 6]),
    ];
    let tensor = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
    shapes.into_iter().map(|(name, shape)| (name, tensor(shape))).collect()
}

fn try_load(config: &Value, tensors: &HashMap<String, Tensor>) -> Result<Loaded> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    candle_core::safetensors::save(tensors, folder.path().join("model.safetensors")).unwrap();
    load(folder.path(), &Options { dtype: DType::F32, device: Device::Cpu, backend: Backend::Eager })
}

fn check(change: impl Fn(&mut Value, &mut HashMap<String, Tensor>), expected: &str) {
    let (mut config, mut tensors) = (config(), tensors());
    change(&mut config, &mut tensors);
    let Err(error) = try_load(&config, &tensors) else { panic!("loaded, where {expected:?} was expected") };
    assert!(error.to_string().contains(expected), "{error}");
}

#[test]
fn unknown_missing_or_misshapen_keys_and_tensors_are_errors() {
    check(|config, _| config["model_type"] = json!("llama9"), "unknown model_type \"llama9\"");
    check(
        |config, _| config["hidden_act"] = json!("swosh"),
        "config key hidden_act has the unknown value \"swosh\"",
    );
    check(
        |config, _| config["rope_scaling"] = json!({"rope_type": "spiral"}),
        "config key rope_scaling.rope_type has the unknown value \"spiral\"",
    );
    check(
        |config, _| config["rope_parameters"] = json!({"rope_type": "linear"}),
        "config key rope_parameters.factor is missing",
    );
    check(|config, _| config["architectures"] = json!(["LlamaForMaskedLM"]), "llama has no MaskedLm head");
    check(|config, _| config["quantization_config"] = json!({"bits": 4}), "config key quantization_config");
    check(|config, _| config["tie_word_embeddings"] = json!(false), "no tensor lm_head.weight");
    check(
        |_, tensors| drop(tensors.remove("model.layers.0.mlp.up_proj.weight")),
        "the checkpoint has no tensor model.layers.0.mlp.up_proj.weight",
    );
    check(
        |config, _| config["intermediate_size"] = json!(5),
        "tensor model.layers.0.mlp.gate_proj.weight has shape [6, 4] where the config asks for [5, 4]",
    );
}

#[test]
fn surplus_keys_and_tensors_are_listed() {
    let (mut config, mut tensors) = (config(), tensors());
    config["rotary_flavour"] = json!("mint");
    tensors.insert("model.extra".to_owned(), Tensor::ones(1, DType::F32, &Device::Cpu).unwrap());
    let loaded = try_load(&config, &tensors).unwrap();
    assert_eq!(loaded.unread_keys, ["rotary_flavour"]);
    assert_eq!(loaded.unread_tensors, ["model.extra"]);
}

#[test]
fn a_rope_in_both_spellings_is_read_once_and_a_contradiction_is_listed() {
    let rope = |factor: f64| json!({"rope_type": "linear", "factor": factor, "rope_theta": 100.0});
    let mut config = config();
    config["rope_scaling"] = rope(2.0);
    config["rope_parameters"] = rope(2.0);
    assert_eq!(try_load(&config, &tensors()).unwrap().unread_keys, [""; 0]);
    config["rope_parameters"] = rope(3.0);
    assert_eq!(try_load(&config, &tensors()).unwrap().unread_keys, ["rope_parameters"]);
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let mut loaded = try_load(&config(), &tensors()).unwrap();
    let ids = |batch: usize, seq: usize| Tensor::zeros((batch, seq), DType::U32, &Device::Cpu).unwrap();
    let mut cache = Cache::new();
    loaded.forward_with(&Inputs::new(ids(2, 3)), Some(&mut cache), None).unwrap();
    let error = loaded.forward_with(&Inputs::new(ids(1, 3)), Some(&mut cache), None).unwrap_err();
    assert_eq!(error.to_string(), "inputs: the cache holds 2 rows and input_ids 1");
    let mask = Inputs { attention_mask: Some(ids(2, 3)), ..Inputs::new(ids(2, 1)) };
    let error = loaded.forward_with(&mask, Some(&mut cache), None).unwrap_err();
    assert_eq!(error.to_string(), "inputs: attention_mask has shape [2, 3] where [2, 4] is needed");
    assert!(loaded.forward(&Inputs::new(Tensor::new(&[[9u32]], &Device::Cpu).unwrap())).is_err());
}
