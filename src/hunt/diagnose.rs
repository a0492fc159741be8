//! Diagnosis by reproduction: what does a variant compute instead?
//!
//! A mistake is named when the trusted side, made to commit it, gives the suspect's logits within rounding, on two inputs.
//! [`hypotheses`] is the table of mistakes; each is an edit of the checkpoint or the inputs, so that any side that loads a
//! checkpoint folder can be made to commit it. `search` tries them one by one and combined; `surgery` switches parts of the
//! network off on both sides, which separates several faults and says where a fault lies that no row explains. The suspect's
//! inside is never looked at: logits are enough, and last positions of them.

mod candidates;
mod causes;
mod coarse;
mod draft;
mod edits;
mod envelope;
mod fit;
mod hypotheses;
mod knobs;
mod lab;
mod native;
mod parts;
mod recorded;
mod search;
mod shrink;
mod side;
mod surgery;
mod tokens;
mod unread;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

pub use envelope::envelope;
pub use hypotheses::{Hypothesis, hypotheses};
pub use recorded::{Operated, PLACES, operated, operated_natively};
pub use side::Side;
pub use tokens::Tokens;

use crate::execute::runner::NoResult;
use crate::results::diagnosed::sentence;
pub use crate::results::diagnosed::{Alternative, Diagnosed, Diagnosis, Mistake, Part, Trial};
use compare::verdict::Tolerances;
use draft::{Draft, Original};
use lab::Lab;
use reference::protocol::Load;

/// The pair to diagnose.
pub struct Request<'a> {
    /// The case's name.
    pub case: &'a str,
    /// The side that is made to commit mistakes.
    pub trusted: Side<'a>,
    /// The side that diverges from it.
    pub suspect: Side<'a>,
    /// The case's inputs.
    pub tokens: Tokens,
    /// Differences that rounding explains.
    pub tolerances: &'a Tolerances,
    /// Folder of the workers' logs; edited checkpoints go to a temporary folder in it, which is removed.
    pub folder: &'a Path,
    /// Timeout of each request to a worker.
    pub timeout: Duration,
    /// Time after which nothing further is tried.
    pub budget: Duration,
    /// Set when the user interrupts.
    pub stop: &'a AtomicBool,
}

/// Why a diagnosis failed.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum DiagnoseError {
    /// A side gives no logits of the checkpoint as it is.
    #[error("{variant} cannot be diagnosed: {reason}")]
    #[diagnostic(help("see its log in {folder}"))]
    Worker {
        /// The variant.
        variant: String,
        /// How it failed.
        reason: String,
        /// Folder of its log.
        folder: String,
    },
    /// The user interrupted it.
    #[error("interrupted")]
    Interrupted,
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    #[diagnostic(help("check the disk"))]
    Io {
        /// The file.
        path: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The checkpoint cannot be read.
    #[error("{path}: {reason}")]
    #[diagnostic(help("diagnose a checkpoint folder with config.json and safetensors"))]
    Checkpoint {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl DiagnoseError {
    fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io { path: path.display().to_string(), source }
    }

    fn checkpoint(path: &Path, reason: &dyn std::fmt::Display) -> Self {
        Self::Checkpoint { path: path.display().to_string(), reason: reason.to_string() }
    }

    pub(crate) fn ended(variant: &str, folder: &Path, ended: NoResult) -> Self {
        let reason = match ended {
            NoResult::Interrupted => return Self::Interrupted,
            NoResult::Unsupported(reason) => reason,
            NoResult::Failed(failure) => failure.reason,
        };
        Self::Worker { variant: variant.to_owned(), reason, folder: folder.display().to_string() }
    }
}

/// What a side that makes mistakes does with a load request.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The edited checkpoint and inputs.
    pub load: Load,
    /// Mistakes that only the code of a native model can make.
    pub deviations: Vec<models::Deviation>,
}

/// What a side that makes the mistakes of these rows does where others are asked to load `load`; edited files go to `folder`.
/// `None` if a row makes no difference, or changes logits after they are computed.
///
/// # Errors
/// When the checkpoint or the inputs cannot be read, or `folder` cannot be written.
pub fn committed(
    rows: &[&Hypothesis],
    load: &Load,
    folder: &Path,
) -> Result<Option<Committed>, DiagnoseError> {
    let plain = Draft::new(&Arc::new(Original::open(&load.checkpoint, true)?));
    let mut draft = plain.clone();
    for row in rows {
        match row.applied(&draft) {
            Some(edited) => draft = edited,
            None => return Ok(None),
        }
    }
    let tokens = Tokens::open(&load.inputs)?;
    let edited = draft.inputs(&tokens);
    let is_same = draft.has_the_files_of(&plain) && edited == tokens && draft.deviations().is_empty();
    if draft.changes_outputs() || is_same {
        return Ok(None);
    }
    let (checkpoint, inputs) = (folder.join("checkpoint"), folder.join("inputs.safetensors"));
    let _ = std::fs::remove_dir_all(&checkpoint);
    draft.write(&checkpoint)?;
    edited.write(&inputs)?;
    let deviations = draft.deviations().to_vec();
    Ok(Some(Committed { load: Load { checkpoint, inputs, ..load.clone() }, deviations }))
}

/// Finds what the suspect computes instead of what the trusted side computes.
///
/// # Errors
/// When a side gives no logits of the checkpoint as it is, a file cannot be read or written, or the user interrupts.
pub fn diagnose(request: &Request) -> Result<Diagnosed, DiagnoseError> {
    let begun = Instant::now();
    let mut lab = Lab::open(request)?;
    let found = lab.begin().and_then(|trials| {
        let finding =
            if trials.is_empty() { coarse::search(&mut lab)? } else { search::search(&mut lab, &trials)? };
        Ok((trials, finding))
    });
    let (dtype, notes, hypotheses) = (lab.dtype, std::mem::take(&mut lab.notes), lab.hypotheses);
    let limit =
        lab.limit.unwrap_or(request.tolerances.relative_l2.of(crate::spec::variant::measured_dtype(dtype)));
    let is_rounding = lab.limit.is_some();
    let mut trials = lab.trials.clone();
    let forward_passes = lab.end();
    let (_, finding) = found?;
    if !matches!(finding, Diagnosis::Reproduced { .. } | Diagnosis::Parts { .. }) {
        for trial in &mut trials {
            trial.after = None;
        }
    }
    let mut diagnosed = Diagnosed {
        case: request.case.to_owned(),
        trusted: request.trusted.name.clone(),
        suspect: request.suspect.name.clone(),
        dtype,
        limit,
        is_rounding,
        trials,
        finding,
        sentence: String::new(),
        hypotheses,
        forward_passes,
        elapsed_ns: begun.elapsed().as_nanos() as u64,
        notes,
    };
    diagnosed.sentence = sentence(&diagnosed);
    Ok(diagnosed)
}
