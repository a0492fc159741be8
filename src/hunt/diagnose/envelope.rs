//! Measures what rounding alone does to a variant: it is run again with its embedding moved by one unit in the last place.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use compare::envelope::Envelope;
use compare::matrix::Entry;

use super::DiagnoseError;
use super::draft::{Draft, Original};
use super::hypotheses::{REPETITIONS, with_nudged_embeddings};
use super::side::{Process, Side};
use super::tokens::Tokens;
use crate::execute::runner::NoResult;
use crate::spec::variant::measured_dtype;

/// The envelope of `side` on `tokens`, in its load's dtype; edited checkpoints go to `folder`. `None` if its weights cannot be edited
/// or it gives no logits of an edited checkpoint.
///
/// # Errors
/// When the checkpoint cannot be read, a file cannot be written, or the user interrupts.
pub fn envelope(
    side: &Side,
    tokens: &Tokens,
    (folder, timeout, stop): (&Path, Duration, &AtomicBool),
) -> Result<Option<Envelope>, DiagnoseError> {
    let plain = Draft::new(&Arc::new(Original::open(&side.load.checkpoint, false)?));
    if !plain.is_editable() {
        return Ok(None);
    }
    let io = |source| DiagnoseError::io(folder, source);
    let scratch = tempfile::Builder::new().prefix("envelope-").tempdir_in(folder).map_err(io)?;
    let at = |name: &str| scratch.path().join(name);
    let (inputs, logits) = (at("inputs"), at("logits"));
    tokens.write(&inputs)?;
    let dtype = side.load.dtype;
    let mut process = Process::new(side, (folder, timeout, stop));
    let mut results = Vec::new();
    let drafts = std::iter::once(plain.clone()).chain(with_nudged_embeddings(&plain, dtype));
    for (number, draft) in drafts.enumerate() {
        // Without a change, results would agree by construction.
        if number > 0 && draft == plain {
            break;
        }
        let checkpoint = at(&format!("checkpoint-{number}"));
        draft.write(&checkpoint)?;
        let output = process.run(&checkpoint, &inputs, &logits, dtype);
        let _ = std::fs::remove_dir_all(&checkpoint);
        match output {
            Ok(output) => results.push(Entry {
                name: side.name.clone(),
                dtype: measured_dtype(dtype),
                logits: output.logits().ok_or_else(|| "no logits".to_owned()),
            }),
            Err(NoResult::Interrupted) => {
                process.end();
                return Err(DiagnoseError::Interrupted);
            }
            Err(_) => break,
        }
    }
    process.end();
    let is_complete = results.len() as u64 == REPETITIONS + 1;
    Ok(is_complete.then(|| Envelope::of(&results, Some(&tokens.mask()))).flatten())
}
