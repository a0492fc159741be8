//! Logits of edited checkpoints for a recording, on which a port's test finds the part that differs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::Dtype;
use tfcheck_port::surgery::{Given, Stage, Surgery};

use super::draft::{Draft, Original};
use super::edits::all_edits;
use super::side::{Output, Process, Side};
use super::tokens::Tokens;
use super::{DiagnoseError, native};
use crate::execute::runner::NoResult;

/// Most recorded positions of an edited checkpoint's logits, unless more sequences have a last one.
pub const PLACES: usize = 8;
/// Most recorded tokens of a position: the relative L2 over so many, drawn evenly, is that over all of them within a tenth.
const TOKENS: usize = 64;

/// Edited checkpoints with the logits of each, `[places, tokens]`.
#[derive(Clone, Debug)]
pub struct Operated {
    /// The edits, and the stages that gave logits.
    pub surgery: Surgery,
    /// The logits of each stage.
    pub logits: Vec<Vec<f32>>,
    /// Stages that gave none.
    pub failed: usize,
}

/// Runs `side` on every edit of its checkpoint, in its load's dtype, at `places` of `tokens`; edited checkpoints go to `folder`.
///
/// # Errors
/// When the checkpoint cannot be edited, its parts have names that tfcheck does not know, or the user interrupts.
pub fn operated(
    side: &Side,
    tokens: &Tokens,
    places: &[[usize; 2]],
    vocab_size: usize,
    (folder, timeout, stop): (&Path, Duration, &AtomicBool),
) -> Result<Operated, DiagnoseError> {
    let mut process = Process::new(side, (folder, timeout, stop));
    let (inputs, logits) =
        (folder.join("surgery-inputs.safetensors"), folder.join("surgery-logits.safetensors"));
    let mut run = |checkpoint: &Path, tokens: &Tokens| {
        tokens.write(&inputs).map_err(Ran::Stopped)?;
        let output = process.run(checkpoint, &inputs, &logits, side.load.dtype);
        output.map_err(|ended| match ended {
            NoResult::Interrupted => Ran::Stopped(DiagnoseError::Interrupted),
            _ => Ran::Failed,
        })
    };
    let is_told = !side.load.own_positions;
    let done = every_stage(&side.load.checkpoint, tokens, places, vocab_size, (folder, is_told), &mut run);
    process.end();
    done
}

/// [`operated`] with tfcheck's native model of the checkpoint in float64, in this process.
///
/// # Errors
/// As [`operated`].
pub fn operated_natively(
    checkpoint: &Path,
    tokens: &Tokens,
    places: &[[usize; 2]],
    vocab_size: usize,
    folder: &Path,
) -> Result<Operated, DiagnoseError> {
    let plain = Draft::new(&Arc::new(Original::open(checkpoint, false)?));
    let model_type = plain.text("model_type").unwrap_or_default().to_owned();
    let mut run = |checkpoint: &Path, tokens: &Tokens| {
        native::run(checkpoint, &model_type, tokens, Dtype::F64, &[]).map_err(|_| Ran::Failed)
    };
    every_stage(checkpoint, tokens, places, vocab_size, (folder, true), &mut run)
}

/// Why a stage has no logits.
enum Ran {
    /// The side gives none of this checkpoint.
    Failed,
    /// Nothing further can be run.
    Stopped(DiagnoseError),
}

fn every_stage(
    checkpoint: &Path,
    tokens: &Tokens,
    places: &[[usize; 2]],
    vocab_size: usize,
    (folder, is_told_positions): (&Path, bool),
    run: &mut dyn FnMut(&Path, &Tokens) -> Result<Output, Ran>,
) -> Result<Operated, DiagnoseError> {
    let plain = Draft::new(&Arc::new(Original::open(checkpoint, false)?));
    if !plain.is_editable() {
        return Err(DiagnoseError::checkpoint(
            checkpoint,
            &"its weights are above 1 GiB or of a dtype that is not edited, so that surgery is not possible",
        ));
    }
    let known = all_edits(&plain, places.to_vec(), evenly(vocab_size, TOKENS));
    let mut surgery = known.ok_or_else(|| {
        let reason =
            "attention and MLP have names that tfcheck does not know, so that surgery is not possible";
        DiagnoseError::checkpoint(checkpoint, &reason)
    })?;
    let (mut stages, mut logits, mut failed) = (Vec::new(), Vec::new(), 0);
    let mut wanted = std::mem::take(&mut surgery.stages);
    // A side that counts positions itself has no token elsewhere.
    wanted.retain(|stage| is_told_positions || stage.inputs != Given::Together);
    for stage in wanted {
        let edited = folder.join("surgery-checkpoint");
        surgery
            .write(&stage, checkpoint, &edited)
            .map_err(|error| DiagnoseError::checkpoint(checkpoint, &error))?;
        let output = run(&edited, &tokens_of(&stage, tokens));
        std::fs::remove_dir_all(&edited).map_err(|source| DiagnoseError::io(&edited, source))?;
        match output.map(|output| kept(&output, &surgery, &stage)) {
            Ok(Some(values)) => {
                stages.push(stage);
                logits.push(values);
            }
            Ok(None) | Err(Ran::Failed) => failed += 1,
            Err(Ran::Stopped(error)) => return Err(error),
        }
    }
    let used = |piece| stages.iter().any(|stage: &Stage| stage.piece == piece);
    surgery.edits.retain(|piece, _| used(*piece));
    Ok(Operated { surgery: Surgery { stages, ..surgery }, logits, failed })
}

/// `most` of the numbers below `count`, evenly spaced, with the first and the last.
fn evenly(count: usize, most: usize) -> Vec<usize> {
    if count <= most {
        return (0..count).collect();
    }
    (0..most).map(|at| at * (count - 1) / (most - 1)).collect()
}

fn tokens_of(stage: &Stage, whole: &Tokens) -> Tokens {
    match stage.inputs {
        Given::Whole => whole.clone(),
        Given::Together => Tokens { position_ids: vec![0; whole.position_ids.len()], ..whole.clone() },
        Given::One => Tokens { attention_mask: vec![1], position_ids: vec![0], ..whole.part(0, 1) },
    }
}

/// The recorded values of all that was computed; `None` if the logits have another shape or are not finite.
fn kept(output: &Output, surgery: &Surgery, stage: &Stage) -> Option<Vec<f32>> {
    let &[_, seq, width] = output.shape.as_slice() else { return None };
    let mut values = Vec::new();
    for [row, position] in surgery.places(stage) {
        let logits = output.values.get((row * seq + position) * width..)?.get(..width)?;
        for token in &surgery.tokens {
            values.push(*logits.get(*token)? as f32);
        }
    }
    values.iter().all(|value| value.is_finite()).then_some(values)
}

#[cfg(test)]
mod tests {
    use super::evenly;

    #[test]
    fn tokens_are_spread_over_the_vocabulary() {
        assert_eq!(evenly(3, 64), [0, 1, 2]);
        let some = evenly(50_000, 64);
        assert_eq!((some.len(), some[0], some[63]), (64, 0, 49_999));
        assert!(some.is_sorted_by(|a, b| a < b));
    }
}
