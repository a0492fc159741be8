//! The last requests to a cell whose logits exist: its tokenizer's ids, and a repeated forward pass in the same and in a
//! second process.
//!
//! A failure here becomes a note and never discards the cell.

use std::path::{Path, PathBuf};
use std::time::Instant;

use reference::protocol::{Forward, MadeTensor, Prepare, Prepared, Reply, Request, Tokenize, Tokenized};

use super::{Job, Live, Ran, Schedule, out_of_turn, verify_logits};
use crate::execute::cell::{Outcome, TokenDifference, TokenizerParity};
use crate::execute::runner::{NoResult, Session};
use crate::spec::inputs::Texts;
use compare::logits::Logits;
use compare::mask::Mask;
use compare::repeat::{Noise, Repeat, repeat};

impl<'a> Schedule<'a> {
    /// Sends the last requests, ends the worker, repeats the pass in a second process, then writes the record.
    pub(super) fn conclude(&self, live: Live<'a>, ran: &mut Ran) {
        let Live { job, mut session, mut completed } = live;
        let begun = Instant::now();
        let mut noise = Noise::default();
        let first = self.folder.join(&completed.logits);
        let second = self.settings.noise.then(|| repeated(&first));
        let mut interrupted = false;
        let mut note = |what: &str, ended: NoResult| match ended {
            NoResult::Interrupted => interrupted = true,
            NoResult::Unsupported(reason) => completed.notes.push(format!("{what}: {reason}")),
            NoResult::Failed(failure) => completed.notes.push(format!("{what}: {}", failure.reason)),
        };
        if let Some(path) = &second {
            match self.pass(&job, session.as_mut(), path).and_then(|()| compared(&job, &first, path)) {
                Ok(found) => noise.same_process = Some(found),
                Err(ended) => note("no second pass in the same process", ended),
            }
        }
        if let Some(texts) = job.texts {
            match self.parity(&job, session.as_mut(), texts) {
                Ok(found) => completed.tokenizer = Some(found),
                Err(ended) => note("its tokenizer was not compared", ended),
            }
        }
        if let Some(wanted) = job.processed {
            match self.processor(&job, session.as_mut(), wanted) {
                Ok(found) => completed.processor = Some(found),
                Err(ended) => note("its processor was not compared", ended),
            }
        }
        session.end();
        if let Some(path) = &second {
            match self.elsewhere(&job, path).and_then(|()| compared(&job, &first, path)) {
                Ok(found) => noise.second_process = Some(found),
                Err(ended) => note("no pass in a second process", ended),
            }
            let _ = std::fs::remove_file(path);
            noise.elapsed_ns = begun.elapsed().as_nanos() as u64;
            completed.notes.extend(noise.said());
            completed.noise = Some(noise);
        }
        completed.notes.extend(completed.processor.iter().flat_map(processor_said));
        if let Some(parity) = completed.tokenizer.as_ref().filter(|parity| parity.difference.is_some()) {
            completed.notes.push(parity.said());
        }
        if interrupted {
            completed.unfinished = Some(super::not_finished());
        }
        self.keep(&job, Outcome::Completed(completed), ran);
    }

    /// Runs one more forward pass and has the worker write its logits to `path`.
    fn pass(&self, job: &Job, session: &mut dyn Session, path: &Path) -> Result<(), NoResult> {
        let request = Forward::prefilled(path.to_owned(), job.prefill);
        match session.ask(&Request::Forward(request), self.settings.timeout)? {
            Reply::Forwarded(forwarded) => {
                verify_logits(path, &forwarded.shape, forwarded.positions).map(drop)
            }
            _ => Err(out_of_turn("forward")),
        }
    }

    /// As [`Self::pass`], in a new worker process that has ended when this returns.
    fn elsewhere(&self, job: &Job<'a>, path: &Path) -> Result<(), NoResult> {
        let mut session = self.start(job)?;
        match session.ask(&Request::Load(job.load.clone()), self.settings.timeout)? {
            Reply::Ready(_) => {}
            _ => return Err(out_of_turn("load")),
        }
        self.pass(job, session.as_mut(), path)?;
        session.end();
        Ok(())
    }

    /// The worker's own processor beside the run's inputs.
    fn processor(
        &self,
        job: &Job,
        session: &mut dyn Session,
        wanted: &Prepare,
    ) -> Result<Prepared, NoResult> {
        let request = Prepare { frozen: Some(job.load.inputs.clone()), ..wanted.clone() };
        match session.ask(&Request::Prepare(request), self.settings.timeout)? {
            Reply::Prepared(prepared) => Ok(prepared),
            _ => Err(out_of_turn("prepare")),
        }
    }

    fn parity(
        &self,
        job: &Job,
        session: &mut dyn Session,
        texts: &Texts,
    ) -> Result<TokenizerParity, NoResult> {
        let request = Request::Tokenize(Tokenize {
            checkpoint: job.load.checkpoint.clone(),
            texts: texts.texts.clone(),
            add_special_tokens: texts.add_special_tokens,
        });
        match session.ask(&request, self.settings.timeout)? {
            Reply::Tokenized(tokenized) => Ok(held_against(texts, tokenized)),
            _ => Err(out_of_turn("tokenize")),
        }
    }
}

/// The path of the repeated logits until they are compared.
fn repeated(first: &Path) -> PathBuf {
    let name = first.file_name().unwrap_or_default().to_string_lossy();
    first.with_file_name(format!(".again-{name}"))
}

fn compared(job: &Job, first: &Path, second: &Path) -> Result<Repeat, NoResult> {
    let failed = |error: compare::logits::LogitsError| {
        NoResult::failed(crate::execute::cell::FailureKind::MissingResult, error.to_string())
    };
    let open = |path: &Path| {
        // The repeated logits hold the same positions as the first ones: `verify_logits` has checked their shape.
        let all = Logits::open(path, compare::Positions::All);
        all.map_err(failed)
    };
    let (first, second) = (open(first)?, open(second)?);
    // Padding positions are not compared. Logits of the last position only do not fit the mask; they are compared whole.
    let [batch, seq, _] = first.shape();
    let mask = Mask::fitting(Mask::of_inputs(&job.load.inputs).ok().flatten(), (batch, seq));
    repeat(&first, &second, Some(&mask)).map_err(failed)
}

/// The tensors in which a processor differs from the run's inputs, each in a sentence.
fn processor_said(found: &Prepared) -> Vec<String> {
    let differs = |tensor: &&MadeTensor| tensor.problem.is_some() || tensor.first.is_some();
    let said = |tensor: &MadeTensor| {
        let MadeTensor { name, relative_l2, problem, first } = tensor;
        let apart = relative_l2.map(|apart| format!(" by {apart:.1e}")).unwrap_or_default();
        let at = first.as_ref().map(|first| format!(", first at {first:?}")).unwrap_or_default();
        let why = problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default();
        format!("{} makes another {name} than the run's inputs{apart}{at}{why}", found.class)
    };
    found.compared.iter().filter(differs).map(said).collect()
}

/// Compares the ids of a runner's tokenizer with those of the run.
fn held_against(texts: &Texts, found: Tokenized) -> TokenizerParity {
    let difference = texts.ids.iter().enumerate().find_map(|(text, expected)| {
        let found = found.ids.get(text).map_or(&[][..], Vec::as_slice);
        let position = (0..expected.len().max(found.len()))
            .find(|&position| expected.get(position) != found.get(position))?;
        Some(TokenDifference {
            text,
            position,
            expected: expected.get(position).copied(),
            token: texts.tokens[text].get(position).cloned(),
            found: found.get(position).copied(),
        })
    });
    TokenizerParity { class: found.class, tokens: texts.ids.iter().map(Vec::len).sum(), difference }
}
