//! The workers that relations are measured with, kept from cell to cell.

use std::path::{Path, PathBuf};

use reference::protocol::{
    Capture, Captured, Forward, Generate, Load, NewInputs, Reply, Request as Ask, TakenInputs,
};

use super::Request;
use crate::execute::cell::FailureKind;
use crate::execute::runner::{NoResult, Runner, Session, Start};
use crate::spec::inputs;
use crate::spec::relations::{Batch, Passes, Step};
use crate::spec::variant::measured_positions;
use compare::logits::Logits;

/// The workers of one runner.
#[derive(Default)]
pub struct Processes<'a> {
    pub(super) main: Process<'a>,
    pub(super) second: Process<'a>,
    pub(super) one_thread: Process<'a>,
}

impl Processes<'_> {
    /// Lets all workers end in good order.
    pub fn end(self) {
        for process in [self.main, self.second, self.one_thread] {
            if let Some(session) = process.session {
                session.end();
            }
        }
    }
}

/// One worker, and what it has loaded.
#[derive(Default)]
pub(super) struct Process<'a> {
    session: Option<Box<dyn Session + 'a>>,
    loaded: Option<Load>,
    /// Whether it takes other inputs without loading; `None` where it was not asked.
    takes_inputs: Option<bool>,
}

/// A worker as one request uses it.
pub(super) struct Live<'p, 'a> {
    pub(super) process: &'p mut Process<'a>,
    pub(super) runner: &'a dyn Runner,
    pub(super) request: &'p Request<'p, 'a>,
}

impl Live<'_, '_> {
    /// Loads anew, whatever is loaded.
    pub(super) fn load(&mut self, load: &Load) -> Result<(), NoResult> {
        self.process.loaded = None;
        if self.process.session.is_none() {
            let log = self.request.folder.join("worker.log");
            self.process.session = Some(self.runner.start(log, self.request.stop, Start::default())?);
        }
        match self.ask(&Ask::Load(load.clone()))? {
            Reply::Ready(_) => {
                self.process.loaded = Some(load.clone());
                Ok(())
            }
            _ => Err(out_of_turn()),
        }
    }

    /// Loads unless this is loaded already, with whatever inputs.
    pub(super) fn load_if_needed(&mut self, load: &Load) -> Result<(), NoResult> {
        let same = |known: &Load| Load { inputs: load.inputs.clone(), ..known.clone() } == *load;
        if self.process.loaded.as_ref().is_some_and(same) { Ok(()) } else { self.load(load) }
    }

    /// Gives the loaded model other inputs; a program that cannot take any loads again, where its `state` need not be kept.
    pub(super) fn take(&mut self, load: &Load, keeps_state: bool) -> Result<TakenInputs, NoResult> {
        if self.process.takes_inputs != Some(false) {
            let ask = Ask::Inputs(NewInputs { inputs: load.inputs.clone() });
            match (self.ask(&ask), self.process.takes_inputs) {
                (Ok(Reply::Taken(taken)), _) => {
                    self.process.takes_inputs = Some(true);
                    if let Some(loaded) = &mut self.process.loaded {
                        loaded.inputs.clone_from(&load.inputs);
                    }
                    return Ok(taken);
                }
                (Ok(_), _) => return Err(out_of_turn()),
                (Err(NoResult::Interrupted), _) => return Err(NoResult::Interrupted),
                (Err(ended), Some(_)) => return Err(ended),
                // A program of an older protocol does not know the request.
                (Err(_), None) => self.process.takes_inputs = Some(false),
            }
        }
        if keeps_state {
            return Err(NoResult::Unsupported("it takes its inputs only when it loads a model".into()));
        }
        self.load(load)?;
        Ok(TakenInputs::default())
    }

    /// Logits of what is loaded, written to `path`.
    pub(super) fn forward(&mut self, passes: &Passes, path: PathBuf) -> Result<Logits, NoResult> {
        let (prefill, chunks) = parts(passes);
        let ask = Forward { prefill, chunks: chunks.clone(), ..Forward::new(path) };
        let path = ask.logits.clone();
        let Reply::Forwarded(forwarded) = self.ask(&Ask::Forward(ask))? else {
            return Err(out_of_turn());
        };
        if (forwarded.prefill, &forwarded.chunks) != (prefill, &chunks) {
            let what =
                "the worker runs no forward passes through a cache: it computed one full-sequence pass";
            return Err(NoResult::Unsupported(what.into()));
        }
        Logits::open(&path, measured_positions(forwarded.positions))
            .map_err(|error| NoResult::failed(FailureKind::MissingResult, error.to_string()))
    }

    /// Tokens generated greedily after what is loaded.
    pub(super) fn generate(&mut self, tokens: usize) -> Result<Vec<Vec<i64>>, NoResult> {
        match self.ask(&Ask::Generate(Generate { tokens }))? {
            Reply::Generated(generated) => Ok(generated.ids),
            _ => Err(out_of_turn()),
        }
    }

    /// The modules of a run of what is loaded.
    pub(super) fn capture(
        &mut self,
        passes: &Passes,
        folder: &Path,
        max_bytes: u64,
    ) -> Result<Captured, NoResult> {
        let (prefill, chunks) = parts(passes);
        let (folder, modules) = (folder.to_owned(), vec!["*".to_owned()]);
        match self.ask(&Ask::Capture(Capture { folder, modules, max_bytes, prefill, chunks }))? {
            Reply::Captured(captured) => Ok(captured),
            _ => Err(out_of_turn()),
        }
    }

    fn ask(&mut self, ask: &Ask) -> Result<Reply, NoResult> {
        let Some(session) = self.process.session.as_mut() else {
            return Err(NoResult::failed(FailureKind::Crashed, "the worker has ended"));
        };
        let reply = session.ask(ask, self.request.timeout);
        if let Err(NoResult::Failed(failure)) = &reply {
            // Whatever it has loaded is not trusted after an error; a worker that only raised one goes on.
            self.process.loaded = None;
            if failure.kind != FailureKind::Exception {
                self.process.session = None;
            }
        }
        reply
    }
}

/// [`Forward::prefill`] and [`Forward::chunks`] of these forward passes.
pub(super) fn parts(passes: &Passes) -> (Option<usize>, Vec<usize>) {
    match passes {
        Passes::Whole => (None, Vec::new()),
        Passes::Prefill(prefill) => (Some(*prefill), Vec::new()),
        Passes::Chunks(chunks) => (None, chunks.clone()),
    }
}

/// Writes the inputs of a step where a worker reads them.
pub(super) fn write_inputs(batch: &Batch, path: &Path) -> Result<(), NoResult> {
    let Batch { input_ids, attention_mask, position_ids, .. } = batch;
    let tokens = inputs::Tokens {
        shape: (batch.rows(), batch.seq()),
        input_ids,
        attention_mask: attention_mask.as_deref(),
        position_ids,
    };
    tokens
        .write(path, &inputs::Tensors::new())
        .map_err(|error| NoResult::failed(FailureKind::Environment, error.to_string()))
}

/// The positions of a step's logits that stand for its inputs; of last positions alone, the last one of each row.
pub(super) fn holds(logits: &Logits, step: &Step, place: crate::spec::relations::Place) -> bool {
    logits.positions() == compare::Positions::All || step.batch.real(place.row).last() == Some(place)
}

pub(super) fn out_of_turn() -> NoResult {
    NoResult::failed(FailureKind::MissingResult, "the worker answered with another reply")
}
