//! What a recording holds beside logits: the outputs of a variant's modules on a run's inputs, and its logits of edited checkpoints.

use std::path::Path;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, miette};
use reference::protocol::{Capture, CapturedModule, Load, Reply, Request as Ask};

use super::prepare::{self, PreparedCase};
use super::{RunRequest, Runners, load};
use crate::execute::runner::{Runner, Start};
use crate::hunt::diagnose::{Operated, Side, Tokens, operated};
use crate::hunt::localize::LocalizeError;
use crate::spec::machine::Machine;

/// Most bytes of captured tensors.
const MOST_BYTES: u64 = 2 << 30;

/// The variant of a recording, and what runs it.
struct Recorded<'a> {
    prepared: &'a PreparedCase,
    runner: &'a dyn Runner,
    /// For inputs that are in the folder as `inputs.safetensors`.
    load: Load,
    timeout: Duration,
}

/// Prepares the variant of the plan's only case, whose files go to `folder`, for `work`.
fn with_variant<T>(
    request: &RunRequest,
    variant: &str,
    folder: &Path,
    work: impl FnOnce(Recorded<'_>) -> Result<T>,
) -> Result<T> {
    let prepare::Preparation { plan, cases, environments } = prepare::prepare(request)?;
    let request = &RunRequest { plan: &plan, ..*request };
    let runners = Runners::new(request, &environments, Machine::detect().fingerprint())?;
    let cell = plan.cells.iter().find(|cell| cell.variant.name() == variant);
    let cell = cell.ok_or_else(|| miette!("the plan has no variant `{variant}`"))?;
    let prepared = &cases[cell.case];
    work(Recorded {
        prepared,
        runner: runners.of(cell).map_err(|ended| LocalizeError::ended(variant, folder, ended))?,
        load: load(request, prepared, &folder.join("inputs.safetensors"), &runners, cell),
        timeout: Duration::from_secs(request.config.run.timeout_s),
    })
}

/// Captures the modules of the plan's only case that match a glob; their files are in `folder`.
///
/// # Errors
/// When the variant cannot be prepared, run or captured.
pub fn modules(
    request: &RunRequest,
    variant: &str,
    globs: &[String],
    folder: &Path,
) -> Result<Vec<CapturedModule>> {
    with_variant(request, variant, folder, |Recorded { prepared, runner, load, timeout }| {
        prepared.inputs.save(folder)?;
        let failed = |ended| LocalizeError::ended(variant, folder, ended);
        let mut session =
            runner.start(folder.join("worker.log"), request.stop, Start::default()).map_err(failed)?;
        session.ask(&Ask::Load(load), timeout).map_err(failed)?;
        let tensors = folder.join("modules");
        std::fs::create_dir(&tensors).into_diagnostic()?;
        let capture = Capture {
            folder: tensors,
            modules: globs.to_vec(),
            max_bytes: MOST_BYTES,
            prefill: None,
            chunks: Vec::new(),
        };
        let reply = session.ask(&Ask::Capture(capture), timeout).map_err(failed)?;
        session.end();
        match reply {
            Reply::Captured(captured) => Ok(captured.modules),
            _ => Err(miette!("{variant} answered with another reply than the captured modules")),
        }
    })
}

/// Runs the variant of the plan's only case on every edit of its checkpoint; the logits at `places` are kept.
///
/// # Errors
/// When the variant cannot be prepared, or the checkpoint cannot be edited.
pub fn surgery(
    request: &RunRequest,
    variant: &str,
    places: &[[usize; 2]],
    vocab_size: usize,
    folder: &Path,
) -> Result<Operated> {
    with_variant(request, variant, folder, |Recorded { prepared, runner, load, timeout }| {
        let side = Side { name: variant.to_owned(), runner, load, computes_f64: true, is_native: false };
        let tokens = Tokens::from(&prepared.inputs);
        Ok(operated(&side, &tokens, places, vocab_size, (folder, timeout, request.stop))?)
    })
}
