//! Plants bugs in native checkpoints, of each class found in candle's ports and forks, and localises them.

use candle_core::{DType, Device, Tensor};
use compare::verdict::Decision;
use reference::protocol::{Dtype, Load, Mode};
use serde_json::{Value, json};
use tfcheck::execute::runner::Runner;
use tfcheck::hunt::localize::{Finding, LocalizeError, Localized, Options};

use crate::engine::InProcess;
use crate::setting::{Setting, Tensors, write_inputs};

pub(super) fn divergence<'a>(name: &str, found: &'a Localized) -> &'a tfcheck::hunt::localize::Divergence {
    match &found.finding {
        Finding::Module(divergence) => divergence,
        other => panic!("{name}: {other:?}: {}", found.sentence),
    }
}

/// Asserts that the first diverging module is `path`. `between` holds the neighbouring submodules if the bug is in the
/// module's own code.
pub(super) fn assert_found(name: &str, found: &Localized, path: &str, between: Option<[Option<&str>; 2]>) {
    let divergence = divergence(name, found);
    assert_eq!(divergence.path, path, "{name}: {}", found.sentence);
    let places = divergence.between.as_ref().map(|b| [b.after.as_deref(), b.before.as_deref()]);
    assert_eq!(places, between, "{name}: {}", found.sentence);
    assert!(divergence.output > found.threshold, "{name}: {}", found.sentence);
    assert!(divergence.input.is_none_or(|input| input <= found.threshold), "{name}: {}", found.sentence);
    // Replayed with the other side's input, the first diverging module still differs.
    assert!(divergence.replayed.is_none_or(|apart| apart > found.threshold), "{name}: {}", found.sentence);
    assert!(found.capture_changed_nothing, "{name}");
    assert!(found.is_divergence() && found.modules > 0 && found.captured_bytes > 0);
    assert_eq!(found.dtype, Dtype::F64, "{name}: {:?}", found.notes);
}

/// Asserts that the verdict on the two loads is *diverged* and that the bug is localised to `path`.
pub(super) fn assert_bug(
    name: &str,
    setting: &Setting,
    (right, wrong): (Load, Load),
    path: &str,
    between: Option<[Option<&str>; 2]>,
) {
    let verdict = setting.verdict(&right, &wrong);
    assert_eq!(verdict.decision, Decision::Diverged, "{name}: {}", verdict.evidence);
    assert_found(name, &setting.localize(right, wrong), path, between);
}

/// Sets `key` of the wrong side's config to `value` and asserts that the bug is localised to `path`.
fn config_fault(checkpoint: &str, key: &str, value: &Value, path: &str) {
    config_fault_between(checkpoint, key, value, path, None);
}

fn config_fault_between(
    checkpoint: &str,
    key: &str,
    value: &Value,
    path: &str,
    between: Option<[Option<&str>; 2]>,
) {
    let setting = Setting::new(checkpoint);
    let changed = setting.changed(
        |config| {
            assert_ne!(config[key], *value, "{checkpoint}: {key} is no fault");
            config[key] = value.clone();
            // `rope_parameters` holds the same settings in the newer spelling and would take precedence.
            config.as_object_mut().unwrap().remove("rope_parameters");
        },
        |_| (),
    );
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = Load { checkpoint: changed, ..right.clone() };
    assert_bug(&format!("{checkpoint} with {key} {value}"), &setting, (right, wrong), path, between);
}

fn weight_fault(checkpoint: &str, weights: impl FnOnce(&mut Tensors), path: &str) {
    let setting = Setting::new(checkpoint);
    let changed = setting.changed(|_| (), weights);
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = Load { checkpoint: changed, ..right.clone() };
    assert_bug(checkpoint, &setting, (right, wrong), path, None);
}

#[test]
fn a_wrong_epsilon_is_localised_to_the_first_norm() {
    config_fault("llama:tiny", "rms_norm_eps", &json!(1e-6), "model.layers.0.input_layernorm");
    config_fault("gpt2", "layer_norm_epsilon", &json!(1e-5), "transformer.h.0.ln_1");
    config_fault("bert", "layer_norm_eps", &json!(1e-12), "bert.embeddings.LayerNorm");
    config_fault("olmo2", "rms_norm_eps", &json!(1e-6), "model.layers.0.self_attn.q_norm");
}

#[test]
fn a_wrong_rotation_is_localised_to_the_first_layers_queries() {
    let rope = "model.layers.0.self_attn.rope_q";
    config_fault("llama:tiny", "rope_theta", &json!(10_000.0), rope);
    for scaled in ["llama:linear", "llama:dynamic", "llama:yarn", "llama:llama3"] {
        config_fault(scaled, "rope_scaling", &Value::Null, rope);
    }
    config_fault("phi", "partial_rotary_factor", &json!(1.0), rope);
    // One rope base for all layers.
    config_fault("gemma3_text", "rope_local_base_freq", &json!(50_000.0), rope);
    config_fault("gemma3_text", "rope_theta", &json!(500.0), "model.layers.1.self_attn.rope_q");
    config_fault("gpt_neox", "rotary_pct", &json!(0.5), "gpt_neox.layers.0.attention.rope_q");
}

#[test]
fn a_wrong_window_is_localised_to_the_first_windowed_layers_mask() {
    let mask = "model.layers.0.self_attn.mask";
    for window in [json!(7), json!(9), Value::Null] {
        config_fault("mistral", "sliding_window", &window, mask);
    }
    config_fault("qwen2:window", "max_window_layers", &json!(3), "model.layers.2.self_attn.mask");
    config_fault("qwen2:window-off", "use_sliding_window", &json!(true), "model.layers.2.self_attn.mask");
}

#[test]
fn attended_padding_is_localised_to_the_mask() {
    let setting = Setting::new("llama:tiny");
    let inputs = setting.folder.path().join("unmasked.safetensors");
    write_inputs(&inputs, false);
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = Load { inputs, ..right.clone() };
    let verdict = setting.verdict(&right, &wrong);
    assert_eq!(verdict.decision, Decision::Diverged, "{}", verdict.evidence);
    let found = setting.localize(right, wrong);
    assert_found("unmasked padding", &found, "model.layers.0.self_attn.mask", None);
    let worst = divergence("padding", &found).worst.unwrap();
    assert_eq!(worst.row, 1, "the padded row departs: {worst:?}");
}

#[test]
fn a_wrong_scale_or_soft_cap_is_localised_to_the_scores() {
    config_fault("granite", "attention_multiplier", &json!(0.25), "model.layers.0.self_attn.scores");
    config_fault("gemma2", "attn_logit_softcapping", &json!(50.0), "model.layers.0.self_attn.scores");
    config_fault("gemma2", "query_pre_attn_scalar", &json!(24), "model.layers.0.self_attn.scores");
    config_fault("gpt2", "scale_attn_weights", &json!(false), "transformer.h.0.attn.scores");
    config_fault("gpt2", "scale_attn_by_inverse_layer_idx", &json!(true), "transformer.h.1.attn.scores");
    // Layer 1 has no rotation on one side, so the scores are the first step that both sides have.
    config_fault("smollm3", "no_rope_layers", &json!([1, 1, 1, 0]), "model.layers.1.self_attn.scores");
}

#[test]
fn a_wrong_activation_is_localised_to_the_activation() {
    config_fault("llama:tiny", "hidden_act", &json!("gelu"), "model.layers.0.mlp.act_fn");
    config_fault("starcoder2", "hidden_act", &json!("gelu"), "model.layers.0.mlp.act");
    config_fault("gpt2", "activation_function", &json!("gelu"), "transformer.h.0.mlp.act");
}

#[test]
fn a_missing_multiplier_is_localised_to_the_code_between_the_modules() {
    let first = "model.layers.0";
    config_fault_between(
        "granite",
        "embedding_multiplier",
        &json!(1.0),
        "model",
        Some([Some("model.embed_tokens"), Some(first)]),
    );
    config_fault_between(
        "granite",
        "residual_multiplier",
        &json!(1.0),
        first,
        Some([Some("model.layers.0.self_attn"), Some("model.layers.0.post_attention_layernorm")]),
    );
    let head = Some([Some("lm_head"), None]);
    config_fault_between("granite", "logits_scaling", &json!(1.0), "(root)", head);
    config_fault_between("gemma2", "final_logit_softcapping", &json!(30.0), "(root)", head);
    config_fault_between("cohere", "logit_scale", &json!(1.0), "(root)", head);
    config_fault_between(
        "gpt_neox",
        "use_parallel_residual",
        &json!(false),
        "gpt_neox.layers.0",
        Some([Some("gpt_neox.layers.0.attention"), Some("gpt_neox.layers.0.post_attention_layernorm")]),
    );
}

#[test]
fn a_wrong_choice_of_experts_is_localised_to_the_experts() {
    config_fault("mixtral", "num_experts_per_tok", &json!(1), "model.layers.0.mlp.experts");
    config_fault_between(
        "qwen3_moe",
        "norm_topk_prob",
        &json!(false),
        "model.layers.0.mlp.experts",
        Some([Some("model.layers.0.mlp.experts.5.down_proj"), None]),
    );
}

#[test]
fn a_wrong_weight_is_localised_to_its_module() {
    let swapped = |tensors: &mut Tensors| {
        let [a, b] = ["input_layernorm", "post_attention_layernorm"]
            .map(|name| format!("model.layers.1.{name}.weight"));
        let (one, other) = (tensors[&a].clone(), tensors[&b].clone());
        tensors.insert(a, other);
        tensors.insert(b, one);
    };
    weight_fault("llama:tiny", swapped, "model.layers.1.input_layernorm");
    let zeroed = |name: &'static str| {
        move |tensors: &mut Tensors| {
            let zeros = tensors[name].zeros_like().unwrap();
            tensors.insert(name.to_owned(), zeros);
        }
    };
    for module in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        let path = format!("model.layers.2.self_attn.{module}");
        let name: &'static str = format!("{path}.bias").leak();
        weight_fault("llama:bias", zeroed(name), &path);
    }
    weight_fault("llama:mlp-bias", zeroed("model.layers.1.mlp.up_proj.bias"), "model.layers.1.mlp.up_proj");
    weight_fault(
        "qwen3",
        zeroed("model.layers.3.self_attn.k_norm.weight"),
        "model.layers.3.self_attn.k_norm",
    );
    let tied = |tensors: &mut Tensors| {
        let embedding = tensors["model.embed_tokens.weight"].clone();
        tensors.insert("lm_head.weight".to_owned(), embedding);
    };
    weight_fault("llama:tiny", tied, "lm_head");
    let reversed = |tensors: &mut Tensors| {
        // Key heads in another order: each query attends to another key head.
        let name = "model.layers.0.self_attn.k_proj.weight";
        let heads = tensors[name].chunk(2, 0).unwrap();
        let swapped = Tensor::cat(&[&heads[1], &heads[0]], 0).unwrap();
        tensors.insert(name.to_owned(), swapped);
    };
    weight_fault("llama:tiny", reversed, "model.layers.0.self_attn.k_proj");
    let rounded = |tensors: &mut Tensors| {
        let name = "model.norm.weight";
        let rounded = tensors[name].to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        tensors.insert(name.to_owned(), rounded);
    };
    weight_fault("llama:tiny", rounded, "model.norm");
}

#[test]
fn an_interleaved_rotation_is_localised_to_the_query_projection() {
    // Reordering the rows of the projections makes the half-split rotation equal to an interleaved one.
    let interleaved = |tensors: &mut Tensors| {
        for (name, tensor) in tensors.iter_mut() {
            if name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight") {
                let (rows, inner) = tensor.dims2().unwrap();
                let pairs = tensor.reshape((rows / 16, 8, 2, inner)).unwrap().transpose(1, 2).unwrap();
                *tensor = pairs.contiguous().unwrap().reshape((rows, inner)).unwrap();
            }
        }
    };
    weight_fault("mistral", interleaved, "model.layers.0.self_attn.q_proj");
}

/// Shifts all positions by `first`; the wrong side gets `wrong(position)` instead of each position.
fn position_fault(checkpoint: &str, first: i64, wrong: impl Fn(i64) -> i64, path: &str) {
    let setting = Setting::new(checkpoint);
    let mut tensors = candle_core::safetensors::load(setting.inputs(), &Device::Cpu).unwrap();
    let positions = tensors["position_ids"].to_vec2::<i64>().unwrap();
    let mut inputs = |name: &str, position: &dyn Fn(i64) -> i64| {
        let row = |row: &Vec<i64>| row.iter().map(|at| position(at + first)).collect::<Vec<_>>();
        let changed: Vec<Vec<i64>> = positions.iter().map(row).collect();
        tensors.insert("position_ids".into(), Tensor::new(changed, &Device::Cpu).unwrap());
        let path = setting.folder.path().join(name);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        path
    };
    let loads = [inputs("right.safetensors", &|at| at), inputs("wrong.safetensors", &wrong)];
    let [right, wrong] = loads.map(|inputs| Load { inputs, ..setting.load(Mode::Eager, Dtype::F32) });
    assert_bug(checkpoint, &setting, (right, wrong), path, None);
}

#[test]
fn positions_rounded_to_bf16_are_localised_to_the_rotation() {
    // Simulates a rope table built in bf16, whose 8 significand bits represent integers exactly up to 256 only.
    let rounded = |at: i64| half::bf16::from_f64(at as f64).to_f64() as i64;
    position_fault("llama:tiny", 300, rounded, "model.layers.0.self_attn.rope_q");
    position_fault("qwen3", 300, rounded, "model.layers.0.self_attn.rope_q");
}

#[test]
fn the_fused_backend_is_localised_in_f32() {
    for (checkpoint, key, value, path) in [
        ("llama:tiny", "hidden_act", json!("gelu"), "model.layers.0.mlp.act_fn"),
        ("llama:tiny", "rms_norm_eps", json!(1e-6), "model.layers.0.input_layernorm"),
        // The fused backend has no probe points for rotation and softmax.
        ("mistral", "sliding_window", json!(9), "model.layers.0.self_attn"),
    ] {
        let setting = Setting::new(checkpoint);
        let changed = setting.changed(|config| config[key] = value.clone(), |_| ());
        let right = setting.load(Mode::Eager, Dtype::F32);
        let wrong = Load { checkpoint: changed, ..setting.load(Mode::Fused, Dtype::F32) };
        let verdict = setting.verdict(&right, &wrong);
        assert_eq!(verdict.decision, Decision::Diverged, "{key}: {}", verdict.evidence);
        let found = setting.localize(right, wrong);
        assert_eq!(divergence(key, &found).path, path, "{}", found.sentence);
        assert_eq!(found.dtype, Dtype::F32);
        assert!(found.capture_changed_nothing, "{}", found.sentence);
        assert!(
            found.notes.iter().any(|note| note.contains("does not support float64")),
            "{:?}",
            found.notes
        );
    }
    let setting = Setting::new("llama:mlp-bias");
    for module in ["gate_proj", "up_proj"] {
        let changed = setting.changed(
            |_| (),
            |tensors| {
                let name = format!("model.layers.1.mlp.{module}.bias");
                let zeros = tensors[&name].zeros_like().unwrap();
                tensors.insert(name, zeros);
            },
        );
        let wrong = Load { checkpoint: changed, ..setting.load(Mode::Fused, Dtype::F32) };
        let right = setting.load(Mode::Eager, Dtype::F32);
        let verdict = setting.verdict(&right, &wrong);
        assert_eq!(verdict.decision, Decision::Diverged, "{module}: {}", verdict.evidence);
        let found = setting.localize(right, wrong);
        assert_eq!(
            divergence(module, &found).path,
            format!("model.layers.1.mlp.{module}"),
            "{}",
            found.sentence
        );
    }
}

#[test]
fn captured_bytes_are_bounded_and_omissions_are_reported() {
    let setting = Setting::new("llama:tiny");
    let changed = setting.changed(|config| config["rms_norm_eps"] = json!(1e-6), |_| ());
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = Load { checkpoint: changed, ..right.clone() };
    let max_bytes = 300_000;
    let options = Options { max_bytes, ..Options::default() };
    let sides = ((&InProcess as _, right.clone()), (&InProcess as _, wrong.clone()));
    let found = setting.localize_with(sides.0, sides.1, &options).unwrap();
    // At most two captures of `max_bytes` exist at a time.
    assert!(found.captured_bytes <= 2 * max_bytes, "{}", found.captured_bytes);
    assert!(found.notes.iter().any(|note| note.contains("--max-disk is too small")), "{:?}", found.notes);
    let leftovers = std::fs::read_dir(setting.folder.path()).unwrap();
    let leftovers = leftovers
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("localize-"));
    assert_eq!(leftovers.count(), 0, "captured tensors are removed");

    let only = Options { modules: vec!["model.layers.2*".into()], ..Options::default() };
    let found =
        setting.localize_with((&InProcess, right.clone()), (&InProcess, wrong.clone()), &only).unwrap();
    assert!(found.path().is_none_or(|path| path == "(root)"), "{}", found.sentence);
    let none = Options { modules: vec!["encoder.*".into()], ..Options::default() };
    let error = setting.localize_with((&InProcess, right), (&InProcess, wrong), &none).unwrap_err();
    assert!(matches!(error, LocalizeError::NothingInCommon { .. }), "{error}");
}

#[test]
fn decoding_from_a_cache_is_localised_against_a_full_pass_and_against_another_cache() {
    let setting = Setting::new("mistral");
    let right = setting.load(Mode::Eager, Dtype::F32);
    let localize = |b: &Load, prefills: [Option<usize>; 2]| {
        let sides = [(right.clone(), prefills[0]), (b.clone(), prefills[1])];
        let [a, b] = sides.map(|(load, prefill)| (&InProcess as &dyn Runner, load, prefill));
        setting.localize_through_caches(a, b, &Options::default()).unwrap()
    };
    // The sequence length is 40, the sliding window 8.
    let found = localize(&right, [None, Some(20)]);
    assert_eq!(found.finding, Finding::Nothing, "{}", found.sentence);
    // The token at 30 is rotated as if it were at 31; with a prefill of 20 it is processed through the cache.
    let inputs = setting.folder.path().join("shifted.safetensors");
    let mut tensors = candle_core::safetensors::load(setting.inputs(), &Device::Cpu).unwrap();
    let mut positions = tensors["position_ids"].to_vec2::<i64>().unwrap();
    positions[0][30] += 1;
    tensors.insert("position_ids".into(), Tensor::new(positions, &Device::Cpu).unwrap());
    candle_core::safetensors::save(&tensors, &inputs).unwrap();
    let wrong = Load { inputs, ..right.clone() };
    for prefills in [[None, Some(20)], [Some(20), Some(20)]] {
        let found = localize(&wrong, prefills);
        assert_found("a shifted token", &found, "model.layers.0.self_attn.rope_q", None);
        let worst = divergence("a shifted token", &found).worst.unwrap();
        assert_eq!((worst.row, worst.position), (0, 30), "{}", found.sentence);
    }
}
