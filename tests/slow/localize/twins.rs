//! Variants that are localised with a second run of themselves: decoding from a cache is compared with the full-sequence
//! forward pass, a compiled model is traced through its eager twin. One editable fork has both bugs, in separate files.

use std::sync::{LazyLock, Mutex, PoisonError};

use reference::Environment;
use reference::protocol::{Dtype, Load, Mode};
use tfcheck::execute::runner::{ProcessRunner, Runner};
use tfcheck::hunt::localize::{Finding, Localized, Options};

use crate::engine::InProcess;
use crate::fork::{Fork, newest};
use crate::plants::fork::{Branch, NONE, Plant};
use crate::setting::Setting;

const FAULTS: Branch = &[
    Plant {
        class: "position-restarts-in-decoding",
        file: "llama",
        edits: &[("position_ids=position_ids)", "position_ids=position_ids * (hidden_states.shape[1] > 1))")],
        ..NONE
    },
    Plant {
        class: "softmax-over-queries",
        file: "qwen3",
        edits: &[("softmax(attn_weights, dim=-1", "softmax(attn_weights, dim=-2")],
        ..NONE
    },
];

fn fork() -> &'static Environment {
    static FORK: LazyLock<Environment> = LazyLock::new(|| {
        let fork = Fork::new("twins");
        fork.plant(FAULTS);
        fork.environment()
    });
    &FORK
}

fn runner(environment: &Environment) -> ProcessRunner {
    super::transformers(environment)
}

/// Serialises the tests' Python processes, because each uses about 1 GB of memory.
static TURN: Mutex<()> = Mutex::new(());

fn localized(setting: &Setting, a: &Load, b: (&ProcessRunner, Load)) -> Localized {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    setting.localize_with((&InProcess, a.clone()), (b.0, b.1), &Options::default()).unwrap()
}

/// Localises a variant's decoding from a cache after a prefill against its own full-sequence forward pass.
fn cached(setting: &Setting, (runner, load): (&ProcessRunner, Load), prefill: usize) -> Localized {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let sides = ((runner as &dyn Runner, load.clone(), None), (runner as &dyn Runner, load, Some(prefill)));
    setting.localize_through_caches(sides.0, sides.1, &Options::default()).unwrap()
}

#[test]
fn a_fault_of_the_cache_alone_is_localised_against_the_full_sequence_pass() {
    let setting = Setting::new("llama:tiny");
    let (fork, right) = (runner(fork()), setting.load(Mode::Eager, Dtype::F32));
    let found = localized(&setting, &right, (&fork, setting.transformers()));
    assert_eq!(found.finding, Finding::Nothing, "one pass has no decoded token: {}", found.sentence);
    let found = cached(&setting, (&fork, setting.transformers()), 20);
    let Finding::Module(divergence) = &found.finding else { panic!("{}", found.sentence) };
    assert_eq!(divergence.path, "model.rotary_emb", "{}", found.sentence);
    assert!(divergence.worst.unwrap().position >= 20 && found.capture_changed_nothing, "{}", found.sentence);
    assert!(found.notes.iter().any(|note| note.contains("are concatenated")), "{:?}", found.notes);
}

#[test]
fn a_compiled_variant_is_traced_through_its_eager_twin() {
    let setting = Setting::new("qwen3");
    let right = setting.load(Mode::Eager, Dtype::F32);
    // A bug in the model is found without compiling.
    let frozen = Load { mode: Mode::Frozen, ..setting.transformers() };
    let found = localized(&setting, &right, (&runner(fork()), frozen));
    let Finding::Module(divergence) = &found.finding else { panic!("{}", found.sentence) };
    assert_eq!(divergence.path, "model.layers.0.self_attn.softmax", "{}", found.sentence);
    let note = "wrong was captured without torch.compile";
    assert!(found.notes.iter().any(|known| known.starts_with(note)), "{:?}", found.notes);
    // If the eager twin agrees, the compiled model itself is run and compared with its twin.
    let compiled = Load { mode: Mode::Compiled, ..setting.transformers() };
    let found = localized(&setting, &right, (&runner(&newest()), compiled));
    assert_eq!(found.finding, Finding::Nothing, "{} {:?}", found.sentence, found.notes);
    assert!(!found.notes.iter().any(|note| note.contains("could not check")), "{:?}", found.notes);
}
