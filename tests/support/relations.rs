//! The relations of native models, with faults planted into what they give.

// Each test binary uses its own part of this.
#![allow(dead_code, reason = "shared by two test binaries")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use compare::verdict::Tolerances;
use reference::protocol::{Dtype, Generated, Load, Mode, Reply, Request as Ask};
use tfcheck::execute::runner::{NoResult, Runner, Session, Start};
use tfcheck::hunt::relations::{Processes, Request, measure};
use tfcheck::results::relations::{Held, Outcome};
use tfcheck::spec::relations::{Material, RELATIONS, Relation, Traits};

use crate::engine::InProcess;

/// Nobody stops a test.
static NEVER: AtomicBool = AtomicBool::new(false);

/// How much a planted fault moves logits; 1e-2 of their size and more.
const MOVED: f64 = 0.5;

/// A class of bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The rows of a batch see one another.
    BatchLeak,
    /// The result depends on a row's place in the batch.
    RowNumber,
    /// Padding is attended to.
    PaddingLeak,
    /// Without a mask, something else is computed.
    MaskPath,
    /// Positions see the last token.
    NonCausal,
    /// Tokens after a cache was filled are computed otherwise.
    CacheBug,
    /// A cache and padding do not go together.
    CachedPadding,
    /// The length of the input before this one matters.
    StateLeak,
    /// Positions are absolute.
    AbsolutePositions,
    /// Every forward pass gives something else.
    Drift,
    /// Every process gives something else.
    ByProcess,
    /// One thread gives something else.
    OneThread,
    /// Generation takes another token than the most likely one.
    OtherToken,
}

/// Native models inside this process, with a fault.
pub(crate) struct Faulty {
    pub(crate) fault: Option<Fault>,
    sessions: AtomicUsize,
}

impl Faulty {
    pub(crate) fn new(fault: Option<Fault>) -> Self {
        Self { fault, sessions: AtomicUsize::new(0) }
    }
}

impl Runner for Faulty {
    fn start<'a>(
        &'a self,
        log: PathBuf,
        stop: &'a AtomicBool,
        how: Start<'_>,
    ) -> Result<Box<dyn Session + 'a>, NoResult> {
        Ok(Box::new(FaultySession {
            inner: InProcess.start(log, stop, how)?,
            fault: self.fault,
            number: self.sessions.fetch_add(1, Ordering::Relaxed),
            inputs: PathBuf::new(),
            threads: 0,
            seq_before: None,
            forwards: 0,
        }))
    }
}

struct FaultySession<'a> {
    inner: Box<dyn Session + 'a>,
    fault: Option<Fault>,
    number: usize,
    inputs: PathBuf,
    threads: usize,
    seq_before: Option<usize>,
    forwards: usize,
}

/// The inputs as rows: ids, mask (where there is one), positions.
struct Rows {
    ids: Vec<Vec<i64>>,
    mask: Option<Vec<Vec<i64>>>,
    positions: Vec<Vec<i64>>,
}

impl Rows {
    fn read(path: &Path) -> Self {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
        let rows = |name: &str| tensors.get(name).map(|tensor| tensor.to_vec2::<i64>().unwrap());
        Self {
            ids: rows("input_ids").unwrap(),
            mask: rows("attention_mask"),
            positions: rows("position_ids").unwrap(),
        }
    }

    fn pads(&self, row: usize) -> usize {
        self.mask.as_ref().map_or(0, |mask| mask[row].iter().filter(|real| **real == 0).count())
    }
}

impl FaultySession<'_> {
    /// What the fault adds to the logits of a position.
    fn added(&self, fault: Fault, inputs: &Rows, (row, position): (usize, usize), first: usize) -> f64 {
        let (rows, seq) = (inputs.ids.len(), inputs.ids[0].len());
        let is_it = match fault {
            Fault::BatchLeak => rows > 1,
            Fault::RowNumber => return MOVED * row as f64,
            Fault::PaddingLeak => return MOVED * inputs.pads(row) as f64,
            Fault::MaskPath => inputs.mask.is_none(),
            Fault::NonCausal => {
                return MOVED * (inputs.ids[row][seq - 1] % 7) as f64;
            }
            Fault::CacheBug => position >= first,
            Fault::CachedPadding => position >= first && inputs.pads(row) > 0,
            Fault::StateLeak => self.seq_before.is_some_and(|before| before != seq),
            Fault::AbsolutePositions => return MOVED * inputs.positions[row][position] as f64,
            Fault::Drift => return MOVED * self.forwards as f64,
            Fault::ByProcess => return MOVED * self.number as f64,
            Fault::OneThread => self.threads == 1,
            Fault::OtherToken => false,
        };
        if is_it { MOVED } else { 0.0 }
    }

    fn damage(&mut self, logits: &Path, first: usize) {
        let inputs = Rows::read(&self.inputs);
        if let Some(fault) = self.fault {
            let tensor =
                candle_core::safetensors::load(logits, &Device::Cpu).unwrap().remove("logits").unwrap();
            let dtype = tensor.dtype();
            let mut values: Vec<Vec<Vec<f64>>> = tensor.to_dtype(DType::F64).unwrap().to_vec3().unwrap();
            for (row, positions) in values.iter_mut().enumerate() {
                for (position, values) in positions.iter_mut().enumerate() {
                    let added = self.added(fault, &inputs, (row, position), first);
                    // Not the same for all tokens, which a softmax would not notice.
                    values[0] += added;
                }
            }
            let shape = tensor.dims().to_vec();
            let flat: Vec<f64> = values.into_iter().flatten().flatten().collect();
            let tensor = Tensor::from_vec(flat, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            candle_core::safetensors::save(&[("logits", tensor)].into(), logits).unwrap();
        }
        self.seq_before = Some(inputs.ids[0].len());
        self.forwards += 1;
    }
}

impl Session for FaultySession<'_> {
    fn ask(&mut self, request: &Ask, timeout: Duration) -> Result<Reply, NoResult> {
        let reply = self.inner.ask(request, timeout)?;
        match request {
            Ask::Load(load) => {
                self.inputs.clone_from(&load.inputs);
                self.threads = load.threads;
                self.seq_before = None;
            }
            Ask::Inputs(new) => self.inputs.clone_from(&new.inputs),
            Ask::Forward(forward) => {
                let first = forward.prefill.or(forward.chunks.first().copied()).unwrap_or(usize::MAX);
                self.damage(&forward.logits, first);
            }
            Ask::Generate(_) if self.fault == Some(Fault::OtherToken) => {
                let Reply::Generated(Generated { mut ids }) = reply else { panic!("{reply:?}") };
                ids[0][2] = (ids[0][2] + 1) % 100;
                return Ok(Reply::Generated(Generated { ids }));
            }
            _ => {}
        }
        Ok(reply)
    }

    fn end(self: Box<Self>) {
        self.inner.end();
    }
}

/// A synthetic checkpoint in a folder, with its config.
pub(crate) struct Synthetic {
    folder: tempfile::TempDir,
    pub(crate) config: serde_json::Value,
}

impl Synthetic {
    pub(crate) fn new(model_type: &str, variant: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        models::synthetic::write(model_type, variant, 0, &folder.path().join("checkpoint")).unwrap();
        Self { folder, config: models::synthetic::config(model_type, variant).unwrap() }
    }

    /// Material of `seq` tokens.
    pub(crate) fn material(&self, seq: usize) -> Material {
        // Token 1 is RoBERTa's padding, token 2 an end token.
        let vocab = self.config["vocab_size"].as_u64().unwrap_or(100).min(270) as i64 - 3;
        let row = |by: i64| (0..seq as i64).map(|at| 3 + (by * 7919 + at * 104_729) % vocab).collect();
        Material::new(row(3), &[row(4), row(5)], Traits::of(&self.config, seq, false))
    }

    pub(crate) fn measure(
        &self,
        runner: &dyn Runner,
        (mode, dtype): (Mode, Dtype),
        material: &Material,
        relations: &[&'static Relation],
    ) -> Vec<Held> {
        let load = Load {
            mode,
            dtype,
            threads: 2,
            ..Load::new(self.folder.path().join("checkpoint"), PathBuf::new())
        };
        let mut processes = Processes::default();
        let found = measure(
            &Request {
                runner,
                one_thread: Some(runner),
                load: &load,
                material,
                relations,
                tolerances: &Tolerances::default(),
                folder: self.folder.path(),
                timeout: Duration::from_mins(5),
                stop: &NEVER,
            },
            &mut processes,
        );
        processes.end();
        found.unwrap()
    }

    /// All relations on 24 tokens.
    pub(crate) fn all(&self, runner: &dyn Runner, how: (Mode, Dtype)) -> Vec<Held> {
        self.measure(runner, how, &self.material(24), &RELATIONS.iter().collect::<Vec<_>>())
    }
}

/// Panics unless every relation that was measured holds.
pub(crate) fn assert_clean(name: &str, found: &[Held]) {
    for held in found {
        let is_fine = matches!(
            held.outcome,
            Outcome::Bitwise | Outcome::Rounding | Outcome::Excluded | Outcome::Unsupported
        );
        assert!(is_fine, "{name}: {} {}: {}", held.relation, held.outcome.word(), held.evidence);
    }
}

const BATCH: &[&str] = &["batch_equal", "batch_other"];
const PADDING: &[&str] = &["padding_left", "padding_right"];

/// Every fault, with the relations that it breaks.
pub(crate) const PLANTED: [(Fault, &[&[&str]]); 13] = [
    (Fault::BatchLeak, &[BATCH, PADDING]),
    (Fault::RowNumber, &[BATCH, &["row_order"], PADDING]),
    (Fault::PaddingLeak, &[PADDING]),
    (Fault::MaskPath, &[&["mask_of_ones"]]),
    (Fault::NonCausal, &[&["causality"]]),
    (Fault::CacheBug, &[&["chunked_prefill", "cached_decoding", "cached_padding"]]),
    (Fault::CachedPadding, &[&["cached_padding"]]),
    // Every relation whose runs are of several lengths sees it.
    (Fault::StateLeak, &[&["two_inputs"]]),
    (Fault::AbsolutePositions, &[&["position_shift"]]),
    (Fault::Drift, &[&["repeat"]]),
    (Fault::ByProcess, &[&["second_process", "threads", "two_inputs"]]),
    (Fault::OneThread, &[&["threads"]]),
    (Fault::OtherToken, &[&["generate"]]),
];

/// Asserts that each of these faults breaks its relations and no others, with a proof in float64.
pub(crate) fn assert_found<'a>(planted: impl Iterator<Item = &'a (Fault, &'a [&'a [&'a str]])>) {
    let llama = Synthetic::new("llama", "tiny");
    for (fault, expected) in planted {
        let all = llama.all(&Faulty::new(Some(*fault)), (Mode::Eager, Dtype::F32));
        let is_broken = |held: &&Held| held.outcome == Outcome::Broken;
        let mut found: BTreeSet<&str> =
            all.iter().filter(is_broken).map(|held| held.relation.as_str()).collect();
        // The tokens are those of the model without the fault, and so not what faulty logits ask for.
        if *fault != Fault::OtherToken {
            found.remove("generate");
        }
        let expected: BTreeSet<&str> = expected.concat().into_iter().collect();
        match fault {
            // Padding on the right is another last token.
            Fault::StateLeak | Fault::NonCausal => {
                assert!(expected.is_subset(&found), "{fault:?}: {found:?}");
            }
            _ => assert_eq!(found, expected, "{fault:?}"),
        }
        for held in all.iter().filter(|held| held.outcome == Outcome::Broken && held.relation != "generate") {
            let proof = held.proof.as_ref().unwrap();
            assert_eq!(proof.dtype, Dtype::F64, "{fault:?} {}", held.relation);
            assert!(proof.relative_l2 > 1e-3, "{fault:?} {}: {proof:?}", held.relation);
        }
    }
}
