//! Measures one relation in one dtype.

use std::path::{Path, PathBuf};

use compare::logits::Logits;
use compare::mapped::{Mapped, Squares, Sum, mapped, values_at};
use reference::protocol::{Dtype, Load, Mode};

use super::process::{Live, Processes, holds, write_inputs};
use super::{Request, Shown, depends_on_arguments};
use crate::execute::cell::FailureKind;
use crate::execute::runner::NoResult;
use crate::spec::relations::{Batch, Drive, Passes, Place, Relation, Step, Trial};

/// Tokens that are generated.
const GENERATED: usize = 8;

/// The workers of a cell, and the results that relations share.
pub(super) struct Bench<'b, 'a> {
    pub(super) request: &'b Request<'b, 'a>,
    processes: &'b mut Processes<'a>,
    scratch: &'b Path,
    files: usize,
    /// Runs of the main worker, by dtype.
    runs: Vec<(Dtype, Step, Result<Logits, NoResult>)>,
    /// What a fresh worker gives, by dtype.
    fresh: Vec<(Dtype, Result<Fresh, NoResult>)>,
    /// Tensors of the inputs that the model has no argument for, once that is known.
    unused: Vec<String>,
}

/// The first results of a freshly loaded model, in this order.
#[derive(Debug)]
struct Fresh {
    first: Logits,
    again: Result<Logits, NoResult>,
    other: Result<Logits, NoResult>,
    after_other: Result<Logits, NoResult>,
}

impl<'b, 'a> Bench<'b, 'a> {
    pub(super) fn new(
        request: &'b Request<'b, 'a>,
        processes: &'b mut Processes<'a>,
        scratch: &'b Path,
    ) -> Self {
        Self {
            request,
            processes,
            scratch,
            files: 0,
            runs: Vec::new(),
            fresh: Vec::new(),
            unused: Vec::new(),
        }
    }

    /// Why a relation does not hold for a model that has no argument for some of the inputs.
    pub(super) fn excluded(&self, relation: &Relation) -> Option<String> {
        let mut traits = self.request.material.traits.clone();
        traits.unused.clone_from(&self.unused);
        let conditions = relation.holds_for.iter().filter(|condition| depends_on_arguments(**condition));
        conditions.copied().find_map(|condition| condition.excludes(&traits))
    }

    /// The largest difference that the relation's trials show in `dtype`.
    pub(super) fn measure(&mut self, relation: &Relation, dtype: Dtype) -> Result<Shown, NoResult> {
        match relation.drive {
            Drive::Trials(trials) => self.trials(trials(self.request.material), dtype),
            Drive::Again => {
                let base = self.base();
                let fresh = self.fresh(dtype)?;
                let again = fresh.again.as_ref().map_err(Clone::clone)?;
                compared(&fresh.first, again, &base, "in a second forward pass")
            }
            Drive::SecondProcess => {
                let path = self.file("second");
                let load = self.loading(&self.base(), dtype)?;
                let mut second = self.second();
                second.load(&load)?;
                let other = second.forward(&Passes::Whole, path)?;
                self.against_first(dtype, &other, "in a second process")
            }
            Drive::OneThread => {
                let path = self.file("one-thread");
                let load = Load { threads: 1, ..self.loading(&self.base(), dtype)? };
                let other = {
                    let request = self.request;
                    let runner = request
                        .one_thread
                        .ok_or_else(|| NoResult::Unsupported("the run has one thread".to_owned()))?;
                    let mut live = Live { process: &mut self.processes.one_thread, runner, request };
                    live.load(&load)?;
                    live.forward(&Passes::Whole, path)?
                };
                let what = format!("with 1 thread instead of {}", self.request.load.threads);
                self.against_first(dtype, &other, &what)
            }
            Drive::Eager => {
                let path = self.file("eager");
                let load = Load { mode: Mode::Eager, ..self.loading(&self.base(), dtype)? };
                let mut second = self.second();
                second.load(&load)?;
                let other = second.forward(&Passes::Whole, path)?;
                self.against_first(dtype, &other, "in eager mode")
            }
            Drive::BothOrders => self.both_orders(dtype),
            Drive::Generate => self.generate(dtype),
        }
    }

    fn base(&self) -> Batch {
        self.request.material.alone()
    }

    fn main(&mut self) -> Live<'_, 'a> {
        Live { process: &mut self.processes.main, runner: self.request.runner, request: self.request }
    }

    fn second(&mut self) -> Live<'_, 'a> {
        Live { process: &mut self.processes.second, runner: self.request.runner, request: self.request }
    }

    fn file(&mut self, name: &str) -> PathBuf {
        self.files += 1;
        self.scratch.join(format!("{name}-{}.safetensors", self.files))
    }

    /// What is asked of a worker that is to have these inputs.
    pub(super) fn loading(&mut self, batch: &Batch, dtype: Dtype) -> Result<Load, NoResult> {
        let inputs = self.file("inputs");
        write_inputs(batch, &inputs)?;
        Ok(Load { inputs, ..self.request.load.in_dtype(dtype) })
    }

    /// What a freshly loaded model gives: the base input twice, the other one, and the base input again.
    fn fresh(&mut self, dtype: Dtype) -> Result<&Fresh, NoResult> {
        let known = self.fresh.iter().position(|(known, _)| *known == dtype);
        let at = known.unwrap_or_else(|| {
            let found = self.run_fresh(dtype);
            self.fresh.push((dtype, found));
            self.fresh.len() - 1
        });
        self.fresh[at].1.as_ref().map_err(Clone::clone)
    }

    /// Whether the base input can be run.
    pub(super) fn runs_at_all(&mut self, dtype: Dtype) -> Result<(), NoResult> {
        self.fresh(dtype).map(drop)
    }

    fn run_fresh(&mut self, dtype: Dtype) -> Result<Fresh, NoResult> {
        let base = self.loading(&self.base(), dtype)?;
        let other = self.loading(&self.request.material.of_another_length(), dtype)?;
        let paths = ["first", "again", "other", "after-other"].map(|name| self.file(name));
        let [first, again, of_other, after_other] = paths;
        let mut main = self.main();
        main.load(&base)?;
        let first = main.forward(&Passes::Whole, first)?;
        let again = main.forward(&Passes::Whole, again);
        let keeps_shape = main.request.material.traits.is_compiled;
        let of_other = if keeps_shape {
            Err(NoResult::Unsupported("a compiled model would be compiled anew".to_owned()))
        } else {
            main.take(&other, true).and_then(|_| main.forward(&Passes::Whole, of_other))
        };
        let after_other = match &of_other {
            Ok(_) => main.take(&base, true).and_then(|_| main.forward(&Passes::Whole, after_other)),
            Err(ended) => Err(ended.clone()),
        };
        Ok(Fresh { first, again, other: of_other, after_other })
    }

    fn against_first(&mut self, dtype: Dtype, other: &Logits, what: &str) -> Result<Shown, NoResult> {
        let base = self.base();
        compared(&self.fresh(dtype)?.first, other, &base, what)
    }

    /// The base input before and after another one, in both orders.
    fn both_orders(&mut self, dtype: Dtype) -> Result<Shown, NoResult> {
        let (base, other) = (self.base(), self.request.material.of_another_length());
        let (base_load, other_load) = (self.loading(&base, dtype)?, self.loading(&other, dtype)?);
        let paths = [self.file("other-first"), self.file("base-second")];
        let [of_other, of_base] = paths;
        // The worker of the main process must have run its base first.
        let fresh = self.fresh(dtype)?;
        fresh.after_other.as_ref().map_err(Clone::clone)?;
        let (other_first, base_second) = {
            let mut second = self.second();
            second.load(&other_load)?;
            let other_first = second.forward(&Passes::Whole, of_other)?;
            second.take(&base_load, true)?;
            (other_first, second.forward(&Passes::Whole, of_base)?)
        };
        let fresh = self.fresh(dtype)?;
        let (seq, other_seq) = (base.seq(), other.seq());
        let after = format!("after an input of {other_seq} tokens");
        let mut shown = Vec::new();
        let after_other = fresh.after_other.as_ref().map_err(Clone::clone)?;
        shown.push(compared(&fresh.first, after_other, &base, &after)?);
        shown.push(compared(&fresh.first, &base_second, &base, &format!("{after} in a second process"))?);
        let other_after = fresh.other.as_ref().map_err(Clone::clone)?;
        let what = format!("(of an input of {other_seq} tokens) after an input of {seq} tokens");
        shown.push(compared(&other_first, other_after, &other, &what)?);
        largest(shown, 4.0)
    }

    /// The logits of a run of the main worker, computed once for all relations.
    pub(super) fn run(&mut self, step: &Step, dtype: Dtype) -> Result<usize, NoResult> {
        let is_it = |known: &(Dtype, Step, Result<Logits, NoResult>)| known.0 == dtype && known.1 == *step;
        if let Some(at) = self.runs.iter().position(is_it) {
            return Ok(at);
        }
        let load = self.loading(&step.batch, dtype)?;
        let path = self.file("logits");
        let mut main = self.main();
        let found = main
            .load_if_needed(&load)
            .and_then(|()| main.take(&load, false))
            .and_then(|taken| Ok((taken, main.forward(&step.passes, path)?)));
        let found = match found {
            Err(NoResult::Interrupted) => return Err(NoResult::Interrupted),
            Err(ended) => Err(ended),
            Ok((taken, logits)) => {
                for name in taken.unused {
                    if !self.unused.contains(&name) {
                        self.unused.push(name);
                    }
                }
                Ok(logits)
            }
        };
        self.runs.push((dtype, step.clone(), found));
        Ok(self.runs.len() - 1)
    }

    fn trials(&mut self, trials: Vec<Trial>, dtype: Dtype) -> Result<Shown, NoResult> {
        if trials.is_empty() {
            return Err(NoResult::Unsupported("the model has no positions left for other inputs".to_owned()));
        }
        let (mut shown, mut lost) = (Vec::new(), Vec::new());
        for trial in trials {
            match self.trial(&trial, dtype) {
                Ok(mapped) => {
                    let what = trial.what.clone();
                    shown.push(Shown { mapped, what, trial: Some(trial), trials: 1 });
                }
                Err(NoResult::Interrupted) => return Err(NoResult::Interrupted),
                Err(ended) => lost.push(ended),
            }
        }
        // A failure counts more than what other trials show; what the variant cannot do is left out.
        if let Some(at) = lost.iter().position(|ended| matches!(ended, NoResult::Failed(_))) {
            return Err(lost.swap_remove(at));
        }
        match lost.pop() {
            Some(ended) if shown.is_empty() => Err(ended),
            _ => largest(shown, self.request.tolerances.local_factor),
        }
    }

    fn trial(&mut self, trial: &Trial, dtype: Dtype) -> Result<Mapped, NoResult> {
        let base = self.run(&trial.base, dtype)?;
        let varied = self.run(&trial.varied, dtype)?;
        let logits = |at: usize| self.runs[at].2.as_ref().map_err(Clone::clone);
        let (base, varied) = (logits(base)?, logits(varied)?);
        let at = |place: &Place| (place.row, place.position);
        let pairs: Vec<_> = trial
            .pairs
            .iter()
            .filter(|[a, b]| holds(base, &trial.base, *a) && holds(varied, &trial.varied, *b))
            .map(|[a, b]| (at(a), at(b)))
            .collect();
        if pairs.is_empty() {
            return Err(NoResult::Unsupported("it gives logits of the last position only".to_owned()));
        }
        mapped(base, varied, &pairs).map_err(|error| missing(&error))
    }

    /// How far below the largest logit of its position each generated token is, in units of the RMS of those logits.
    fn generate(&mut self, dtype: Dtype) -> Result<Shown, NoResult> {
        let base = self.base();
        let tokens = GENERATED.min(self.request.material.traits.room());
        if tokens == 0 {
            return Err(NoResult::Unsupported("the model has no positions left for more tokens".to_owned()));
        }
        let load = self.loading(&base, dtype)?;
        let mut main = self.main();
        main.load_if_needed(&load)?;
        main.take(&load, false)?;
        let ids = main.generate(tokens)?.into_iter().next().unwrap_or_default();
        let step = Step::whole(base.followed_by(&ids[..ids.len().saturating_sub(1)]));
        let run = self.run(&step, dtype)?;
        let logits = self.runs[run].2.as_ref().map_err(Clone::clone)?;
        if ids.is_empty() || logits.positions() == compare::Positions::Last {
            return Err(NoResult::Unsupported("it gives logits of the last position only".to_owned()));
        }
        let mut sum = Sum::default();
        for (at, &id) in ids.iter().enumerate() {
            let position = (0, base.seq() - 1 + at);
            let values = values_at(logits, position).map_err(|error| missing(&error))?;
            let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let chosen = usize::try_from(id).ok().and_then(|id| values.get(id)).copied().unwrap_or(f64::NAN);
            let rms = (values.iter().map(|x| x * x).sum::<f64>() / values.len() as f64).sqrt();
            let mut here = Squares::default();
            // The gap over the RMS, as the relative L2 of one number.
            here.add(rms, rms + (most - chosen));
            sum.add(position, position, here);
        }
        let mapped = sum.finish();
        let worst = mapped.worst.map_or(0.0, |worst| worst.relative_l2);
        // The gap of one token is a quantity of one position.
        let relative_l2 = worst / self.request.tolerances.local_factor;
        let what = "greedily generated tokens".to_owned();
        Ok(Shown { mapped: Mapped { relative_l2, ..mapped }, what, trial: None, trials: ids.len() })
    }

    /// A run of the main worker whose modules are captured.
    pub(super) fn captured(
        &mut self,
        step: &Step,
        dtype: Dtype,
        folder: &Path,
        max_bytes: u64,
    ) -> Result<reference::protocol::Captured, NoResult> {
        let load = self.loading(&step.batch, dtype)?;
        let mut main = self.main();
        main.load_if_needed(&load)?;
        main.take(&load, false)?;
        main.capture(&step.passes, folder, max_bytes)
    }

    pub(super) fn scratch(&self) -> &'b Path {
        self.scratch
    }
}

/// One input's logits of two runs.
fn compared(a: &Logits, b: &Logits, batch: &Batch, what: &str) -> Result<Shown, NoResult> {
    let step = Step::whole(batch.clone());
    let places = batch.real(0).filter(|place| holds(a, &step, *place) && holds(b, &step, *place));
    let pairs: Vec<_> =
        places.map(|place| ((place.row, place.position), (place.row, place.position))).collect();
    let mapped = mapped(a, b, &pairs).map_err(|error| missing(&error))?;
    Ok(Shown { mapped, what: what.to_owned(), trial: None, trials: 1 })
}

/// The trial that differs most, for all of them.
fn largest(shown: Vec<Shown>, local_factor: f64) -> Result<Shown, NoResult> {
    let trials = shown.iter().map(|shown| shown.trials).sum();
    let size = |shown: &Shown| {
        let local = shown.mapped.worst.map_or(0.0, |worst| worst.relative_l2 / local_factor);
        shown.mapped.relative_l2.max(local)
    };
    let most = shown.into_iter().max_by(|a, b| size(a).total_cmp(&size(b)));
    most.map(|most| Shown { trials, ..most })
        .ok_or_else(|| NoResult::failed(FailureKind::MissingResult, "nothing was measured"))
}

fn missing(error: &compare::logits::LogitsError) -> NoResult {
    NoResult::failed(FailureKind::MissingResult, error.to_string())
}
