//! The two workers of a localisation, and its results so far.

use reference::protocol::{Dtype, Reply, Request as Ask};

use super::sequences::Sequences;
use super::{Finding, LocalizeError, Request, Side};
use crate::execute::cell::FailureKind;
use crate::execute::runner::{NoResult, Session};
use crate::results::localized::ModuleError;

/// The result in one dtype.
pub(super) struct Found {
    pub(super) dtype: Dtype,
    pub(super) logits: Option<f64>,
    pub(super) finding: Finding,
    pub(super) modules: usize,
    pub(super) bytes: u64,
    /// Nanoseconds of the captured forward passes, and of as many plain ones.
    pub(super) passes_ns: [u64; 2],
    pub(super) unchanged: bool,
    pub(super) notes: Vec<String>,
    /// Every module call that was measured, each once.
    pub(super) profile: Vec<ModuleError>,
}

impl Found {
    /// Adds a module call, or what is newly known of one.
    pub(super) fn measured(&mut self, module: ModuleError) {
        let is_it = |known: &&mut ModuleError| (&known.path, known.call) == (&module.path, module.call);
        match self.profile.iter_mut().find(is_it) {
            Some(known) => {
                let replayed = module.replayed.or(known.replayed);
                *known = ModuleError { replayed, ..module };
            }
            None => self.profile.push(module),
        }
    }
}

/// The running worker of one side.
pub(super) struct Live<'a> {
    pub(super) side: &'a Side<'a>,
    pub(super) session: Box<dyn Session + 'a>,
    pub(super) request: &'a Request<'a>,
}

impl Live<'_> {
    pub(super) fn ask(&mut self, ask: &Ask) -> Result<Reply, LocalizeError> {
        self.try_ask(ask).map_err(|ended| LocalizeError::worker(self.side, self.request.folder, ended))
    }

    pub(super) fn try_ask(&mut self, ask: &Ask) -> Result<Reply, NoResult> {
        self.session.ask(ask, self.request.timeout)
    }

    /// The error for a reply of an unexpected kind.
    pub(super) fn out_of_turn(&self) -> LocalizeError {
        let ended = NoResult::failed(FailureKind::MissingResult, "it answered with another reply");
        LocalizeError::worker(self.side, self.request.folder, ended)
    }

    pub(super) fn end(self) {
        self.session.end();
    }
}

/// A localisation in progress.
pub(super) struct Open<'a> {
    pub(super) request: &'a Request<'a>,
    pub(super) sequences: &'a Sequences,
    pub(super) scratch: &'a std::path::Path,
}
