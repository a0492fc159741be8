//! Faults planted in a fork of transformers' newest release, held against the native models, and faults of
//! transformers' own. Each costs a process that imports torch.
//!
//! `TFCHECK_TEST_ENVS=/folder` names a folder of environments, `<folder>/<version>/bin/python`; without it the release
//! is prepared through uv.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

use reference::protocol::{Attention, Dtype, Load, Mode};
use reference::{Environment, Python, Source, Specification, prepare};
use tfcheck::localize::{Finding, Localized, Options};
use tfcheck::runner::{self, ProcessRunner, Runner};

use crate::engine::InProcess;
use crate::setting::Setting;

const NEWEST: &str = "5.23.0";

fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("localize")
}

fn newest() -> &'static Environment {
    static FOUND: LazyLock<Environment> = LazyLock::new(|| {
        let mut specification = Specification::new(Source::Release(NEWEST.to_owned()));
        if let Some(folder) = std::env::var_os("TFCHECK_TEST_ENVS") {
            specification.python = Python::Existing(Path::new(&folder).join(NEWEST));
        }
        prepare(&specification, &cache(), &|line| eprintln!("{line}")).unwrap()
    });
    &FOUND
}

fn runner(environment: &Environment) -> ProcessRunner {
    runner::transformers::runner(environment, &cache(), 2).unwrap()
}

/// An environment whose transformers has replacements in the text of one module.
fn fork(folder: &Path, model_type: &str, replacements: &[(&str, &str)]) -> Environment {
    let base = newest();
    let run = |python: &Path, arguments: &[&str]| {
        let output = Command::new(python).args(arguments).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let packages = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let installed = run(&base.python, &["-c", packages]);
    run(&base.python, &["-m", "venv", "--without-pip", "fork"]);
    let python = folder.join("fork/bin/python");
    let own = PathBuf::from(run(&python, &["-c", packages]));
    let module = format!("transformers.models.{model_type}.modeling_{model_type}");
    let pairs: Vec<String> = replacements.iter().map(|(old, new)| format!("({old:?}, {new:?})")).collect();
    let site = include_str!("fork_site.py")
        .replace("{module!r}", &format!("{module:?}"))
        .replace("{replacements!r}", &format!("[{}]", pairs.join(", ")))
        .replace("{{", "{")
        .replace("}}", "}");
    std::fs::write(own.join("tfcheck_fork.py"), site).unwrap();
    std::fs::write(own.join("tfcheck_fork.pth"), format!("{installed}\nimport tfcheck_fork\n")).unwrap();
    Environment { python, ..base.clone() }
}

/// One Python process at a time: each holds a gigabyte.
static TURN: Mutex<()> = Mutex::new(());

fn localized(setting: &Setting, a: &Load, b: (&ProcessRunner, Load)) -> Localized {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    setting.localize_with((&InProcess, a.clone()), (b.0, b.1), &Options::default()).unwrap()
}

/// What `b`'s cache gives after a prefill, against its own one pass.
fn cached(setting: &Setting, (runner, load): (&ProcessRunner, Load), prefill: usize) -> Localized {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let sides = ((runner as &dyn Runner, load.clone(), None), (runner as &dyn Runner, load, Some(prefill)));
    setting.localize_through_caches(sides.0, sides.1, &Options::default()).unwrap()
}

fn check(checkpoint: &str, replacements: &[(&str, &str)], path: &str) {
    let setting = Setting::new(checkpoint);
    let fork = fork(setting.folder.path(), &setting.model_type, replacements);
    let right = setting.load(Mode::Eager, Dtype::F32);
    let found = localized(&setting, &right, (&runner(&fork), setting.transformers()));
    let Finding::Module(divergence) = &found.finding else { panic!("{}", found.sentence) };
    assert_eq!(divergence.path, path, "{}", found.sentence);
    assert_eq!(found.dtype, Dtype::F64, "{:?}", found.notes);
    assert!(divergence.replayed.is_none_or(|apart| apart > found.threshold), "{}", found.sentence);
    assert!(found.capture_changed_nothing);
}

#[test]
fn rotation_of_neighbours_instead_of_halves() {
    let halves = [
        ("x1 = x[..., : x.shape[-1] // 2]", "x1 = x[..., 0::2]"),
        ("x2 = x[..., x.shape[-1] // 2 :]", "x2 = x[..., 1::2]"),
        ("torch.cat((-x2, x1), dim=-1)", "torch.stack((-x2, x1), dim=-1).flatten(-2)"),
    ];
    check("llama:tiny", &halves, "model.layers.0.self_attn.rope_q");
}

#[test]
fn rotation_tables_in_bfloat16() {
    let tables = [("cos = emb.cos() *", "cos = emb.cos().to(torch.bfloat16).to(emb.dtype) *")];
    check("llama:tiny", &tables, "model.layers.0.self_attn.rope_q");
}

#[test]
fn key_heads_repeated_in_the_wrong_order() {
    let order = [(
        "hidden_states[:, :, None, :, :].expand(batch, num_key_value_heads, n_rep, slen, head_dim)",
        "hidden_states[:, None, :, :, :].expand(batch, n_rep, num_key_value_heads, slen, head_dim)",
    )];
    check("llama:tiny", &order, "model.layers.0.self_attn.scores");
}

#[test]
fn a_softmax_over_queries() {
    let softmax = [("softmax(attn_weights, dim=-1", "softmax(attn_weights, dim=-2")];
    check("qwen3", &softmax, "model.layers.0.self_attn.softmax");
}

#[test]
fn a_block_whose_norms_are_swapped() {
    let norms = [
        ("hidden_states = self.input_layernorm(hidden_states)", "hidden_states = self.x(hidden_states)"),
        (
            "hidden_states = self.post_attention_layernorm(hidden_states)",
            "hidden_states = self.input_layernorm(hidden_states)",
        ),
        ("self.x(hidden_states)", "self.post_attention_layernorm(hidden_states)"),
    ];
    check("mistral", &norms, "model.layers.0");
}

#[test]
fn a_release_that_is_right_has_nothing_to_localise_and_sdpa_is_told_from_eager() {
    let setting = Setting::new("falcon:alibi");
    let right = setting.load(Mode::Eager, Dtype::F32);
    let newest = runner(newest());
    let found = localized(&setting, &right, (&newest, setting.transformers()));
    assert_eq!(found.finding, Finding::Nothing, "{}", found.sentence);
    // Eager attention adds the biases of positions twice, sdpa once (`FalconModel.forward` and
    // `FalconAttention.forward` of 5.23.0).
    let sdpa = Load { attention: Some(Attention::Sdpa), ..setting.transformers() };
    let found = localized(&setting, &right, (&newest, sdpa));
    let Finding::Execution { variant, what, .. } = &found.finding else { panic!("{}", found.sentence) };
    assert_eq!((variant.as_str(), what.as_str()), ("wrong", "sdpa attention"));
}

#[test]
fn a_fault_of_the_cache_alone_is_localised_beside_the_variant_s_own_one_pass() {
    let setting = Setting::new("llama:tiny");
    let shifted =
        [("position_ids=position_ids)", "position_ids=position_ids * (hidden_states.shape[1] > 1))")];
    let fork = fork(setting.folder.path(), &setting.model_type, &shifted);
    let (fork, right) = (runner(&fork), setting.load(Mode::Eager, Dtype::F32));
    let found = localized(&setting, &right, (&fork, setting.transformers()));
    assert_eq!(found.finding, Finding::Nothing, "one pass has no decoded token: {}", found.sentence);
    let found = cached(&setting, (&fork, setting.transformers()), 20);
    let Finding::Module(divergence) = &found.finding else { panic!("{}", found.sentence) };
    assert_eq!(divergence.path, "model.rotary_emb", "{}", found.sentence);
    assert!(divergence.worst.unwrap().position >= 20 && found.capture_changed_nothing, "{}", found.sentence);
    assert!(found.notes.iter().any(|note| note.contains("put together")), "{:?}", found.notes);
}

#[test]
fn a_compiled_variant_is_looked_into_through_its_eager_twin() {
    let setting = Setting::new("qwen3");
    let right = setting.load(Mode::Eager, Dtype::F32);
    let softmax = [("softmax(attn_weights, dim=-1", "softmax(attn_weights, dim=-2")];
    let fork = fork(setting.folder.path(), &setting.model_type, &softmax);
    // A fault of the model's is found without compiling anything.
    let frozen = Load { mode: Mode::Frozen, ..setting.transformers() };
    let found = localized(&setting, &right, (&runner(&fork), frozen));
    let Finding::Module(divergence) = &found.finding else { panic!("{}", found.sentence) };
    assert_eq!(divergence.path, "model.layers.0.self_attn.softmax", "{}", found.sentence);
    let note = "wrong was looked into without torch.compile";
    assert!(found.notes.iter().any(|known| known.starts_with(note)), "{:?}", found.notes);
    // Where the twins agree the compiled model itself is run, and held against its twin.
    let compiled = Load { mode: Mode::Compiled, ..setting.transformers() };
    let found = localized(&setting, &right, (&runner(newest()), compiled));
    assert_eq!(found.finding, Finding::Nothing, "{} {:?}", found.sentence, found.notes);
    assert!(!found.notes.iter().any(|note| note.contains("is not known")), "{:?}", found.notes);
}
