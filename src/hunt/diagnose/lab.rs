//! The workers of both sides, the stages on which they are compared, and what was counted.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use rayon::prelude::*;
use reference::protocol::{Dtype, Positions};

use super::draft::{Draft, Original};
use super::native;
use super::side::{Apart, Output, Process, apart};
use super::tokens::Tokens;
use super::{DiagnoseError, Request};
use crate::execute::runner::NoResult;
use crate::results::diagnosed::Trial;

/// An edit that both sides are given: a part of the network switched off.
pub(super) type Surgery = Arc<dyn Fn(&mut Draft) + Send + Sync>;

/// Drafts that the native model runs between two looks at the clock.
const AT_ONCE: usize = 16;

/// Inputs and surgery on which both sides are compared, with the suspect's logits.
pub(super) struct Stage {
    pub(super) tokens: Tokens,
    surgery: Surgery,
    suspect: Output,
}

impl Stage {
    pub(super) fn suspect(&self) -> &Output {
        &self.suspect
    }

    /// The positions whose logits the suspect gives.
    pub(super) fn positions(&self) -> Positions {
        self.suspect.positions
    }
}

/// A stage of the whole network: one input, and how far the sides are apart on it as they are.
pub(super) struct Proof {
    pub(super) stage: Stage,
    pub(super) base: Apart,
    /// Index in [`Lab::trials`].
    pub(super) trial: usize,
}

/// Leaves the network whole.
pub(super) fn whole() -> Surgery {
    Arc::new(|_| ())
}

pub(super) struct Lab<'a> {
    pub(super) request: &'a Request<'a>,
    original: Arc<Original>,
    trusted: Process<'a>,
    suspect: Process<'a>,
    scratch: tempfile::TempDir,
    begun: Instant,
    /// Number of folders and files written.
    written: usize,
    /// The inputs that were written last, and their file.
    inputs: Option<(Tokens, PathBuf)>,
    pub(super) dtype: Dtype,
    pub(super) notes: Vec<String>,
    /// Rows of the table that apply.
    pub(super) hypotheses: usize,
    pub(super) trials: Vec<Trial>,
    /// Largest relative L2 that counts as agreement, where it was measured.
    pub(super) limit: Option<f64>,
}

impl<'a> Lab<'a> {
    pub(super) fn open(request: &'a Request<'a>) -> Result<Self, DiagnoseError> {
        let io = |source| DiagnoseError::io(request.folder, source);
        let scratch = tempfile::Builder::new().prefix("diagnose-").tempdir_in(request.folder).map_err(io)?;
        let terms = (request.folder, request.timeout, request.stop);
        Ok(Self {
            original: Arc::new(Original::open(&request.trusted.load.checkpoint, request.trusted.is_native)?),
            trusted: Process::new(&request.trusted, terms),
            suspect: Process::new(&request.suspect, terms),
            request,
            scratch,
            begun: Instant::now(),
            written: 0,
            inputs: None,
            dtype: request.suspect.load.dtype,
            notes: Vec::new(),
            hypotheses: 0,
            trials: Vec::new(),
            limit: None,
        })
    }

    /// Lets the workers exit; the forward passes of the trusted side and of the suspect.
    pub(super) fn end(self) -> [usize; 2] {
        let passes = [self.trusted.passes, self.suspect.passes];
        self.trusted.end();
        self.suspect.end();
        passes
    }

    /// The checkpoint as it is.
    pub(super) fn plain(&self) -> Draft {
        Draft::new(&self.original)
    }

    /// Whether there is time to try further.
    pub(super) fn has_time(&self) -> bool {
        self.begun.elapsed() < self.request.budget
    }

    /// Chooses the dtype, the widest one that both sides compute in, and the inputs: the case's, and others of another
    /// length. No stages if the sides agree on the case's.
    pub(super) fn begin(&mut self) -> Result<Vec<Proof>, DiagnoseError> {
        let [trusted, suspect] = [&self.request.trusted, &self.request.suspect];
        let own = suspect.load.dtype;
        let mut dtypes = vec![Dtype::F32, own];
        if trusted.computes_f64 && suspect.computes_f64 {
            dtypes.insert(0, Dtype::F64);
        }
        dtypes.dedup();
        let (plain, tokens) = (self.plain(), self.request.tokens.clone());
        let mut first = None;
        let mut last_error = None;
        for dtype in dtypes {
            self.dtype = dtype;
            match self.compared(&plain, &tokens) {
                Ok(found) => {
                    first = Some(found);
                    break;
                }
                Err(error @ DiagnoseError::Worker { .. }) => last_error = Some(error),
                Err(error) => return Err(error),
            }
        }
        let (stage, base) = match (first, last_error) {
            (Some(found), _) => found,
            (None, Some(error)) => return Err(error),
            (None, None) => return Err(DiagnoseError::Interrupted),
        };
        let first = self.recorded(stage, base);
        if base.is_rounding {
            if self.dtype != own {
                self.notes.push(format!(
                    "the difference in {} is rounding: in {} both compute the same",
                    crate::spec::variant::dtype_name(own),
                    crate::spec::variant::dtype_name(self.dtype)
                ));
            }
            return Ok(Vec::new());
        }
        let mut stages = vec![first];
        // A second input must show the difference too, or it proves nothing.
        for (seq, seed) in self.lengths().into_iter().zip(1..) {
            let other = tokens.other(seq, self.vocabulary(), seed);
            let (stage, base) = self.compared(&plain, &other)?;
            if !base.is_rounding {
                let proof = self.recorded(stage, base);
                stages.push(proof);
                break;
            }
        }
        Ok(stages)
    }

    fn recorded(&mut self, stage: Stage, base: Apart) -> Proof {
        let (inputs, positions, before) = (stage.tokens.words(), base.positions, base.relative_l2);
        self.trials.push(Trial { inputs, positions, before, after: None });
        Proof { stage, base, trial: self.trials.len() - 1 }
    }

    /// Tokens of the vocabulary.
    pub(super) fn vocabulary(&self) -> usize {
        self.plain().count(&["vocab_size"]).unwrap_or(256)
    }

    /// The largest sequence length that the model takes.
    pub(super) fn longest(&self) -> usize {
        let plain = self.plain();
        let positions = plain.count(&["max_position_embeddings", "n_positions"]).unwrap_or(4096);
        // Learned positions of roberta and opt begin after an offset.
        let offset = plain.count(&["pad_token_id"]).map_or(2, |pad| pad + 1).min(positions / 2);
        positions - offset.max(2)
    }

    /// Lengths of a second input, the best one first.
    fn lengths(&self) -> Vec<usize> {
        let seq = self.request.tokens.seq;
        // The model takes the case's length, whatever its config states.
        let longest = self.longest().max(seq);
        let mut lengths =
            vec![(seq + (seq / 3).max(5)).min(longest), (2 * seq).min(longest), seq.min(longest)];
        lengths.dedup();
        lengths
    }

    /// Runs both sides on a draft, and compares them.
    fn compared(&mut self, plain: &Draft, tokens: &Tokens) -> Result<(Stage, Apart), DiagnoseError> {
        let stage = self.stage(tokens, whole())?.map_err(|ended| self.lost(true, ended))?;
        let output = self.trusted(plain, &stage)?.map_err(|ended| self.lost(false, ended))?;
        let apart = self.measured(&output, &stage);
        Ok((stage, apart))
    }

    fn lost(&self, is_suspect: bool, ended: NoResult) -> DiagnoseError {
        let side = if is_suspect { &self.request.suspect } else { &self.request.trusted };
        DiagnoseError::ended(&side.name, self.request.folder, ended)
    }

    /// A stage, with the suspect run on it; the inner error if the suspect gives no logits.
    pub(super) fn stage(
        &mut self,
        tokens: &Tokens,
        surgery: Surgery,
    ) -> Result<Result<Stage, NoResult>, DiagnoseError> {
        let mut draft = self.plain();
        surgery(&mut draft);
        let output = self.run(&draft, tokens, true)?;
        Ok(output.map(|suspect| Stage { tokens: tokens.clone(), surgery, suspect }))
    }

    /// How far the trusted side is from the suspect with the edits of `draft`; unknown if it gives no logits.
    pub(super) fn apart(&mut self, draft: &Draft, stage: &Stage) -> Result<Apart, DiagnoseError> {
        if self.request.trusted.is_native {
            let found = self.natively(std::slice::from_ref(draft), stage)?;
            return Ok(found.first().copied().unwrap_or(Apart::UNKNOWN));
        }
        let output = self.trusted(draft, stage)?;
        Ok(output.map_or(Apart::UNKNOWN, |output| self.measured(&output, stage)))
    }

    /// [`Self::apart`] of each draft, in their order; fewer once the time is over. The native model runs several at a time.
    pub(super) fn apart_each(
        &mut self,
        drafts: &[Draft],
        stage: &Stage,
    ) -> Result<Vec<Apart>, DiagnoseError> {
        let mut found = Vec::new();
        let at_once = if self.request.trusted.is_native { AT_ONCE } else { 1 };
        for drafts in drafts.chunks(at_once) {
            if !self.has_time() {
                break;
            }
            match drafts {
                [draft] => found.push(self.apart(draft, stage)?),
                drafts => found.extend(self.natively(drafts, stage)?),
            }
        }
        Ok(found)
    }

    /// [`Self::apart`] of each draft by the native model, in parallel.
    fn natively(&mut self, drafts: &[Draft], stage: &Stage) -> Result<Vec<Apart>, DiagnoseError> {
        if self.request.stop.load(Ordering::Relaxed) {
            return Err(DiagnoseError::Interrupted);
        }
        let first = self.written + 1;
        self.written += drafts.len();
        self.trusted.passes += drafts.len();
        let (scratch, dtype, tolerances) = (self.scratch.path(), self.dtype, self.request.tolerances);
        let measure = |(number, draft): (usize, &Draft)| {
            let mut whole = draft.clone();
            (stage.surgery)(&mut whole);
            let folder = scratch.join(format!("checkpoint-{}", first + number));
            whole.write(&folder)?;
            let output = run_natively(&folder, &whole, &whole.inputs(&stage.tokens), dtype);
            let _ = std::fs::remove_dir_all(&folder);
            let Ok(mut output) = output else { return Ok(Apart::UNKNOWN) };
            edit_outputs(&whole, &mut output);
            Ok(apart([&output, &stage.suspect], &stage.tokens, dtype, tolerances))
        };
        drafts.par_iter().enumerate().map(measure).collect()
    }

    /// How far the trusted side with one draft is from itself with another.
    pub(super) fn between(&mut self, drafts: [&Draft; 2], stage: &Stage) -> Result<Apart, DiagnoseError> {
        let [one, other] = drafts;
        let (one, other) = (self.trusted(one, stage)?, self.trusted(other, stage)?);
        let (Ok(one), Ok(other)) = (one, other) else { return Ok(Apart::UNKNOWN) };
        Ok(apart([&one, &other], &stage.tokens, self.dtype, self.request.tolerances))
    }

    /// The trusted side's logits of `tokens` with the edits of `draft`.
    pub(super) fn output(
        &mut self,
        draft: &Draft,
        tokens: &Tokens,
    ) -> Result<Result<Output, NoResult>, DiagnoseError> {
        self.run(draft, &draft.inputs(tokens), false)
    }

    /// The trusted side's logits with the edits of `draft`.
    pub(super) fn trusted(
        &mut self,
        draft: &Draft,
        stage: &Stage,
    ) -> Result<Result<Output, NoResult>, DiagnoseError> {
        let mut whole = draft.clone();
        (stage.surgery)(&mut whole);
        let inputs = whole.inputs(&stage.tokens);
        let mut output = self.run(&whole, &inputs, false)?;
        if let Ok(output) = &mut output {
            edit_outputs(&whole, output);
        }
        Ok(output)
    }

    fn measured(&self, output: &Output, stage: &Stage) -> Apart {
        apart([output, &stage.suspect], &stage.tokens, self.dtype, self.request.tolerances)
    }

    /// The logits of one side; the inner error if it gives none.
    fn run(
        &mut self,
        draft: &Draft,
        tokens: &Tokens,
        is_suspect: bool,
    ) -> Result<Result<Output, NoResult>, DiagnoseError> {
        if self.request.stop.load(Ordering::Relaxed) {
            return Err(DiagnoseError::Interrupted);
        }
        self.written += 1;
        let name = |what: &str| -> PathBuf { self.scratch.path().join(format!("{what}-{}", self.written)) };
        let (folder, logits) = (name("checkpoint"), name("logits"));
        let is_native = self.request.trusted.is_native && !is_suspect;
        let inputs = name("inputs");
        draft.write(&folder)?;
        // Most runs are given the inputs of the one before, and a file is synced when it is written.
        if !is_native && self.inputs.as_ref().is_none_or(|(known, _)| known != tokens) {
            tokens.write(&inputs)?;
            self.inputs = Some((tokens.clone(), inputs.clone()));
        }
        let inputs = self.inputs.as_ref().map_or(inputs, |(_, path)| path.clone());
        let output = if is_suspect {
            self.suspect.run(&folder, &inputs, &logits, self.dtype)
        } else if is_native {
            self.trusted.passes += 1;
            run_natively(&folder, draft, tokens, self.dtype)
        } else {
            self.trusted.run(&folder, &inputs, &logits, self.dtype)
        };
        let _ = std::fs::remove_dir_all(&folder);
        let _ = std::fs::remove_file(logits);
        match output {
            Err(NoResult::Interrupted) => Err(DiagnoseError::Interrupted),
            output => Ok(output),
        }
    }
}

/// Logits of the native model of `draft`, which is written in `folder`.
fn run_natively(folder: &Path, draft: &Draft, tokens: &Tokens, dtype: Dtype) -> Result<Output, NoResult> {
    native::run(folder, draft.text("model_type").unwrap_or_default(), tokens, dtype, draft.deviations())
}

/// Changes the trusted side's logits to those that the mistakes of `draft` give.
fn edit_outputs(draft: &Draft, output: &mut Output) {
    if draft.changes_outputs() {
        output.edit(|row| draft.output(row));
    }
}
