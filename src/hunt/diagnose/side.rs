//! One side of a diagnosis: a worker that is asked for the logits of one checkpoint folder after the other.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bounds::limits::STORED_TENSOR_BYTES;
use reference::protocol::{Dtype, Forward, Load, Positions, Reply, Request as Ask};
use safetensors::tensor::SafeTensors;

use super::draft::decoded;
use super::tokens::Tokens;
use crate::execute::cell::FailureKind;
use crate::execute::runner::{NoResult, Runner, Session, Start};
use crate::spec::variant::measured_positions;
use compare::logits::{Logits, Values};
use compare::matrix::{self, Entry, MetricSet, PairOutcome};
use compare::verdict::{Tolerances, rounding_apart};

/// One of the two variants.
pub struct Side<'a> {
    /// The variant's name.
    pub name: String,
    /// The runner of its workers.
    pub runner: &'a dyn Runner,
    /// The load request of a run; checkpoint, inputs and dtype are replaced.
    pub load: Load,
    /// Whether the runner is known to compute in float64 where it is asked to.
    pub computes_f64: bool,
    /// Whether it is tfcheck's native model in the eager backend, which can make any mistake.
    pub is_native: bool,
}

/// Logits of one forward pass, `[batch, seq, vocab_size]`, `seq` = 1 for last positions only.
#[derive(Clone, Debug)]
pub(super) struct Output {
    pub(super) shape: Vec<usize>,
    pub(super) positions: Positions,
    pub(super) values: Vec<f64>,
    pub(super) is_f64: bool,
}

impl Output {
    /// A classifier's scores, `[batch, num_labels]`, as logits of one position.
    pub(super) fn of_positions(mut self) -> Self {
        if self.shape.len() == 2 {
            self.shape.insert(1, 1);
            self.positions = Positions::Last;
        }
        self
    }

    /// Changes each position's logits.
    pub(super) fn edit(&mut self, edit: impl Fn(&mut [f64])) {
        let width = self.shape.last().copied().unwrap_or(1).max(1);
        self.values.chunks_mut(width).for_each(edit);
    }

    /// The logits of the last position alone, where others give those alone.
    pub(super) fn at(&self, positions: Positions) -> Self {
        let (width, seq) = match self.shape.as_slice() {
            &[_, seq, width] if positions == Positions::Last && self.positions == Positions::All => {
                (width, seq)
            }
            _ => return self.clone(),
        };
        let rows = self.values.chunks(seq * width).flat_map(|row| row[(seq - 1) * width..].iter().copied());
        Self { shape: vec![self.shape[0], 1, width], positions, values: rows.collect(), is_f64: self.is_f64 }
    }

    pub(super) fn logits(&self) -> Option<Logits> {
        let values = if self.is_f64 {
            Values::F64(self.values.clone())
        } else {
            Values::F32(self.values.iter().map(|&value| value as f32).collect())
        };
        Logits::from_values("logits", values, &self.shape, measured_positions(self.positions)).ok()
    }
}

/// How far the logits of two sides differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Apart {
    /// Relative L2, against the larger side; infinite where a side has no numbers or not finite ones.
    pub(super) relative_l2: f64,
    /// Whether rounding explains the difference: overall, at each position and at each token.
    pub(super) is_rounding: bool,
    /// Positions that were compared.
    pub(super) positions: usize,
}

impl Apart {
    pub(super) const UNKNOWN: Self = Self { relative_l2: f64::INFINITY, is_rounding: false, positions: 0 };
}

/// Compares two sides' logits of the same inputs by the rules of a verdict.
pub(super) fn apart(
    [trusted, suspect]: [&Output; 2],
    tokens: &Tokens,
    dtype: Dtype,
    tolerances: &Tolerances,
) -> Apart {
    let entry = |name: &str, output: &Output| Entry {
        name: name.to_owned(),
        dtype: crate::spec::variant::measured_dtype(dtype),
        logits: output.logits().ok_or_else(|| "no logits".to_owned()),
    };
    let entries = [entry("trusted", trusted), entry("suspect", suspect)];
    let options = matrix::Options { metrics: MetricSet::L2Family, ..matrix::Options::default() };
    let Ok(measured) = matrix::matrix(&entries, Some(&tokens.mask()), &options) else {
        return Apart::UNKNOWN;
    };
    let PairOutcome::Compared(pair) = measured.pair(0, 1) else { return Apart::UNKNOWN };
    let relative_l2 = compare::metrics::relative(pair.l2, pair.norm_a.max(pair.norm_b));
    Apart {
        relative_l2: if relative_l2.is_finite() { relative_l2 } else { f64::INFINITY },
        is_rounding: pair.identical || rounding_apart(&measured, (0, 1), tolerances).is_some(),
        positions: pair.elements as usize / trusted.shape.last().copied().unwrap_or(1).max(1),
    }
}

/// The worker of a side.
pub(super) struct Process<'a> {
    side: &'a Side<'a>,
    /// Folder of its log, timeout of a request, and whether the user interrupts.
    folder: &'a Path,
    timeout: Duration,
    stop: &'a AtomicBool,
    session: Option<Box<dyn Session + 'a>>,
    /// Forward passes so far.
    pub(super) passes: usize,
}

impl<'a> Process<'a> {
    pub(super) fn new(
        side: &'a Side<'a>,
        (folder, timeout, stop): (&'a Path, Duration, &'a AtomicBool),
    ) -> Self {
        Self { side, folder, timeout, stop, session: None, passes: 0 }
    }

    /// Logits of the checkpoint in `folder` for the inputs in the file `inputs`; `path` is where the worker writes them.
    ///
    /// # Errors
    /// When the worker cannot load the checkpoint or run it.
    pub(super) fn run(
        &mut self,
        folder: &Path,
        inputs: &Path,
        path: &Path,
        dtype: Dtype,
    ) -> Result<Output, NoResult> {
        let load = Load {
            checkpoint: folder.to_owned(),
            inputs: inputs.to_owned(),
            ..self.side.load.in_dtype(dtype)
        };
        let is_old = self.session.is_some();
        match self.ask(&Ask::Load(load.clone())) {
            // A worker that an earlier checkpoint ended is noticed with the next one.
            Err(NoResult::Failed(failure)) if is_old && failure.kind == FailureKind::Crashed => {
                self.ask(&Ask::Load(load))?;
            }
            reply => drop(reply?),
        }
        let reply = self.ask(&Ask::Forward(Forward::new(path.to_owned())))?;
        self.passes += 1;
        let missing = |reason: String| NoResult::failed(FailureKind::MissingResult, reason);
        let Reply::Forwarded(forwarded) = reply else {
            return Err(missing("the worker answered with another reply".to_owned()));
        };
        let bytes = bounds::file::read_unlinked(path, STORED_TENSOR_BYTES)
            .map_err(|error| missing(format!("{}: {error}", path.display())))?;
        let read = SafeTensors::deserialize(&bytes)
            .ok()
            .and_then(|file| decoded(&file.tensor(reference::protocol::LOGITS).ok()?));
        let values = read.ok_or_else(|| missing(format!("{} holds no logits", path.display())))?;
        let is_f64 = values.dtype == safetensors::Dtype::F64;
        Ok(Output { shape: values.shape, positions: forwarded.positions, values: values.data, is_f64 }
            .of_positions())
    }

    fn ask(&mut self, ask: &Ask) -> Result<Reply, NoResult> {
        if self.session.is_none() {
            let log = self.folder.join(format!("diagnose-{}.log", self.side.name));
            self.session = Some(self.side.runner.start(log, self.stop, Start::default())?);
        }
        let Some(session) = self.session.as_mut() else {
            return Err(NoResult::failed(FailureKind::Crashed, "the worker has ended"));
        };
        let reply = session.ask(ask, self.timeout);
        let survives = match &reply {
            Ok(_) | Err(NoResult::Unsupported(_)) => true,
            Err(NoResult::Failed(failure)) => failure.kind == FailureKind::Exception,
            Err(NoResult::Interrupted) => false,
        };
        // A worker that raised an error goes on with the next checkpoint; one that ended is started anew.
        if !survives && let Some(session) = self.session.take() {
            session.end();
        }
        reply
    }

    /// Lets the worker exit.
    pub(super) fn end(self) {
        if let Some(session) = self.session {
            session.end();
        }
    }
}
