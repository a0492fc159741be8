//! Plants bugs in native checkpoints, of each class found in candle's ports and forks, and localises them.

use candle_core::{Device, Tensor};
use compare::verdict::Decision;
use reference::protocol::{Dtype, Load, Mode};
use serde_json::{Value, json};
use tfcheck::execute::runner::Runner;
use tfcheck::hunt::localize::{Finding, LocalizeError, Localized, Options};

use crate::engine::InProcess;
use crate::plants::{Edit, Plant, text};
use crate::setting::Setting;

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

/// Asserts that each bug of a table of plants is localised to its module, on the inputs of `setting`.
pub(super) fn are_localised(plants: Vec<Plant>, setting: fn(&str) -> Setting) {
    for plant in plants {
        let setting = setting(plant.checkpoint);
        if let Edit::Key(key, value) = &plant.edit {
            let config = std::fs::read_to_string(setting.checkpoint().join("config.json")).unwrap();
            let config: Value = serde_json::from_str(&config).unwrap();
            assert_ne!(config[*key], *value, "{}: {key} is no fault", plant.checkpoint);
        }
        let right = setting.load(Mode::Eager, Dtype::F32);
        let wrong = plant.committed(&right, &setting.folder.path().join("changed"));
        assert_bug(&plant.name(), &setting, (right, wrong), &plant.module, plant.between);
    }
}

#[test]
fn a_wrong_epsilon_is_localised_to_the_first_norm() {
    are_localised(text::epsilons(), Setting::new);
}

#[test]
fn a_wrong_rotation_is_localised_to_the_first_layers_queries() {
    are_localised(text::rotations(), Setting::new);
}

#[test]
fn a_wrong_window_is_localised_to_the_first_windowed_layers_mask() {
    are_localised(text::windows(), Setting::new);
}

#[test]
fn attended_padding_is_localised_to_the_mask() {
    let setting = Setting::new("llama:tiny");
    let right = setting.load(Mode::Eager, Dtype::F32);
    let plant = text::padding().remove(0);
    let wrong = plant.committed(&right, &setting.folder.path().join("changed"));
    let verdict = setting.verdict(&right, &wrong);
    assert_eq!(verdict.decision, Decision::Diverged, "{}", verdict.evidence);
    let found = setting.localize(right, wrong);
    assert_found("unmasked padding", &found, &plant.module, None);
    let worst = divergence("padding", &found).worst.unwrap();
    assert_eq!(worst.row, 1, "the padded row differs: {worst:?}");
}

#[test]
fn a_wrong_scale_or_soft_cap_is_localised_to_the_scores() {
    are_localised(text::scores(), Setting::new);
}

#[test]
fn a_wrong_activation_is_localised_to_the_activation() {
    are_localised(text::activations(), Setting::new);
}

#[test]
fn a_missing_multiplier_is_localised_to_the_code_between_the_modules() {
    are_localised(text::multipliers(), Setting::new);
}

#[test]
fn a_wrong_choice_of_experts_is_localised_to_the_experts() {
    are_localised(text::experts(), Setting::new);
}

#[test]
fn a_wrong_weight_is_localised_to_its_module() {
    are_localised(text::weights(), Setting::new);
}

#[test]
fn an_interleaved_rotation_is_localised_to_the_query_projection() {
    are_localised(text::pairings(), Setting::new);
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
