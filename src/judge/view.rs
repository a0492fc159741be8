//! The view of a run that reports render: its cells, their numbers and the verdicts on their pairs.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use compare::matrix::Matrix;
use compare::oracle::Accuracy;
use compare::repeat::{self, Noise};
use compare::timing::{SpeedUp, Summary, speed_up, summarize};
use compare::verdict::{Decision, Verdict};
use rayon::prelude::*;
use reference::protocol::{Dtype, Mode};

use crate::execute::cell::{Cell, Completed, Outcome};
use crate::results::Axes;
use crate::results::diagnosed::Diagnosed;
use crate::results::localized::Localized;
use crate::results::relations::{self, CellRelations};
use crate::spec::checkpoint::Pooling;
use crate::spec::plan::release_numbers;
use crate::spec::variant::{Runner, Variant};
use compare::units::count;

/// The view of a whole run.
#[derive(Clone, Debug)]
pub struct RunView {
    /// The run folder's name.
    pub id: String,
    /// Properties of the machine, in order: `("CPU", "AMD EPYC, 2 cores")`.
    pub environment: Vec<(String, String)>,
    /// The run's cases.
    pub cases: Vec<CaseView>,
    /// Packages of each transformers version's environment (package to version), in the order of the plan.
    pub packages: Vec<(String, BTreeMap<String, String>)>,
    /// What the relations of variants by themselves showed; empty where none was checked.
    pub relations: Vec<CellRelations>,
    /// What holds for the whole run.
    pub notes: Vec<String>,
}

/// One checkpoint with one batch of inputs in all variants.
#[derive(Clone, Debug)]
pub struct CaseView {
    /// The case's name.
    pub name: String,
    /// The checkpoint.
    pub checkpoint: String,
    /// The inputs: `2 × 128 tokens, 3 padded`.
    pub inputs: String,
    /// The case's values on the axes of a sweep.
    pub axes: Option<Axes>,
    /// All cells, in order of the matrix's rows.
    pub cells: Vec<Cell>,
    /// The variant that speed-ups are relative to.
    pub baseline: Option<String>,
    /// The metrics of all pairs; one row per cell.
    pub matrix: Matrix,
    /// One verdict per pair.
    pub verdicts: Vec<Verdict>,
    /// Those on a variant's KV cache.
    pub caches: Vec<CacheVerdict>,
    /// Errors against the float64 reference.
    pub accuracies: Vec<Accuracy>,
    /// Outputs beside the main one, in the order in which the variants return them.
    pub outputs: Vec<OutputView>,
    /// The vectors of texts, of a sentence-transformers checkpoint.
    pub embeddings: Option<EmbeddingsView>,
    /// Probabilities of the tokens that the config lists.
    pub choices: Option<ChoicesView>,
    /// Localisations of the first divergence of pairs.
    pub localized: Vec<Localized>,
    /// Diagnoses of variants that diverge.
    pub diagnosed: Vec<Diagnosed>,
    /// The cells' times, once a report has asked for them.
    pub times: Times,
}

/// A variant's cached decoding was compared with its own full-sequence forward pass.
#[derive(Clone, Copy, Debug)]
pub struct CacheVerdict {
    /// The variant's cell.
    pub cell: usize,
    /// The place of the verdict in [`CaseView::verdicts`]; its first side is the cached one.
    pub verdict: usize,
}

/// What a case's times come to: their intervals take thousands of resamples, and every report shows them.
#[derive(Clone, Debug, Default)]
pub struct Times(OnceLock<Vec<[Timing; 2]>>);

/// A cell's times, and its speed-up over the baseline.
type Timing = (Option<Summary>, Option<SpeedUp>);

/// An output beside the main one in all variants that return it.
#[derive(Clone, Debug)]
pub struct OutputView {
    /// As the model calls it: `loss`, `image_embeds`.
    pub name: String,
    /// The variant that the others are compared with.
    pub reference: String,
    /// The other variants.
    pub rows: Vec<OutputRow>,
}

/// A further output of one variant.
#[derive(Clone, Debug)]
pub struct OutputRow {
    /// The variant's name.
    pub variant: String,
    /// Difference from the reference, relative to it; `None` if the two cannot be compared.
    pub relative_l2: Option<f64>,
    /// The verdict on the pair.
    pub verdict: Verdict,
}

/// The vectors of the batch's texts.
#[derive(Clone, Debug)]
pub struct EmbeddingsView {
    /// How they are made of hidden states.
    pub pooling: Pooling,
    /// Number of texts.
    pub texts: usize,
    /// Number of questions of the retrieval set, the first of the texts; the others are its passages. `None` for other texts.
    pub questions: Option<usize>,
    /// One row for each variant with hidden states.
    pub rows: Vec<EmbeddingRow>,
}

/// The vectors of one variant beside those of the reference.
#[derive(Clone, Debug)]
pub struct EmbeddingRow {
    /// The variant's name.
    pub variant: String,
    /// Largest difference of the cosine between two texts, 0 to 2.
    pub cosine_change: f64,
    /// Number of texts to which the others are similar in the same order.
    pub same_ranking: usize,
    /// How the passages of a retrieval set are ranked; `None` for other texts.
    pub retrieval: Option<RetrievalRow>,
}

/// The passages of a retrieval set as one variant ranks them for each question, by cosine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetrievalRow {
    /// Number of questions whose first passage is that of the reference.
    pub same_first: usize,
    /// Mean over the questions of Kendall's τ between this ranking and the reference's: the share of pairs of passages in the
    /// same order less that of pairs in the opposite order, -1 to 1. A pair with equal or incomparable cosines counts as
    /// neither.
    pub tau_mean: f64,
    /// Smallest τ of a question.
    pub tau_least: f64,
    /// Largest difference of the cosine between a question and a passage, 0 to 2.
    pub cosine_change: f64,
    /// Number of questions whose first passage is the one that answers it.
    pub answered: usize,
}

/// Softmax probabilities of named tokens at the last real position.
#[derive(Clone, Debug)]
pub struct ChoicesView {
    /// The tokens as the config writes them.
    pub tokens: Vec<String>,
    /// One row per variant and sequence of the batch.
    pub rows: Vec<ChoiceRow>,
}

/// One variant's probabilities for one sequence of the batch.
#[derive(Clone, Debug)]
pub struct ChoiceRow {
    /// The variant's name.
    pub variant: String,
    /// Index of the sequence in the batch.
    pub row: usize,
    /// One per token of [`ChoicesView::tokens`]; `None` if undefined.
    pub probabilities: Vec<Option<f64>>,
}

/// Counts of verdicts and outcomes, for the exit code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pairs with identical values.
    pub identical: usize,
    /// Pairs that differ by rounding.
    pub same_mathematics: usize,
    /// Pairs in which one variant's rounding error is larger than the rule allows.
    pub worse_rounding: usize,
    /// Pairs that compute different functions.
    pub diverged: usize,
    /// Pairs that cannot be compared.
    pub incomparable: usize,
    /// Pairs in which a variant has no logits.
    pub not_run: usize,
    /// Cells that failed.
    pub failed: usize,
    /// Cells that a runner does not support.
    pub unsupported: usize,
    /// Cells that had not started when the run ended.
    pub not_started: usize,
}

impl Tally {
    /// `2 identical, 13 same mathematics`; `none` without a pair.
    pub(crate) fn pairs(&self) -> String {
        let counts = [
            (self.identical, "identical"),
            (self.same_mathematics, "same mathematics"),
            (self.worse_rounding, "worse rounding"),
            (self.diverged, "diverged"),
            (self.incomparable, "incomparable"),
            (self.not_run, "not run"),
        ];
        let said: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, word)| format!("{count} {word}"))
            .collect();
        if said.is_empty() { "none".to_owned() } else { said.join(", ") }
    }
}

impl RunView {
    /// Whether variants were compared with one another; a run of relations alone has no cells.
    pub(crate) fn has_cells(&self) -> bool {
        self.relations.is_empty() || self.cases.iter().any(|case| !case.cells.is_empty())
    }

    /// Relations of each outcome, in the order of [`relations::Outcome::ALL`], without those that do not occur.
    pub(crate) fn relation_counts(&self) -> Vec<(relations::Outcome, usize)> {
        let all = || self.relations.iter().flat_map(|found| &found.relations);
        let count = |outcome| (outcome, all().filter(|held| held.outcome == outcome).count());
        relations::Outcome::ALL.into_iter().map(count).filter(|(_, count)| *count > 0).collect()
    }

    /// Relations that could not be measured because the variant failed.
    pub(crate) fn failed_relations(&self) -> usize {
        let counts = self.relation_counts();
        counts
            .iter()
            .find(|(outcome, _)| *outcome == relations::Outcome::Failed)
            .map_or(0, |(_, count)| *count)
    }

    /// Counts verdicts and failures.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for case in &self.cases {
            for verdict in &case.verdicts {
                *match verdict.decision {
                    Decision::Identical => &mut tally.identical,
                    Decision::SameMathematics => &mut tally.same_mathematics,
                    Decision::WorseRounding { .. } => &mut tally.worse_rounding,
                    Decision::Diverged => &mut tally.diverged,
                    Decision::Incomparable { .. } => &mut tally.incomparable,
                    Decision::NotRun { .. } => &mut tally.not_run,
                } += 1;
            }
            for cell in &case.cells {
                match &cell.outcome {
                    _ if cell.is_not_started() => tally.not_started += 1,
                    Outcome::Completed(completed) if completed.unfinished.is_some() => tally.failed += 1,
                    Outcome::Completed(_) => {}
                    Outcome::Unsupported { .. } => tally.unsupported += 1,
                    Outcome::Failed(_) => tally.failed += 1,
                }
            }
        }
        tally
    }
}

/// A completed cell's numbers.
pub(crate) struct Performance<'a> {
    pub(crate) completed: &'a Completed,
    /// `None` for a cell that was not timed.
    pub(crate) timing: Option<Summary>,
    /// `None` for the baseline itself and without one.
    pub(crate) speed_up: Option<SpeedUp>,
    pub(crate) is_baseline: bool,
}

impl CaseView {
    /// Whether a cell has logits and is a variant under test.
    pub(crate) fn is_member(&self, index: usize) -> bool {
        self.matrix.compared(index, index).is_some() && !self.is_evidence(index)
    }

    /// Whether a cell is a float64 reference for others. In a run of only float64, every cell is a variant under test.
    pub(crate) fn is_evidence(&self, index: usize) -> bool {
        self.cells[index].variant.dtype == Dtype::F64
            && self.cells.iter().any(|cell| cell.variant.dtype != Dtype::F64)
    }

    /// The variant that leads group A: the baseline if it ran; else the newest transformers that ran, eager mode preferred;
    /// else the first variant that ran.
    pub(crate) fn reference(&self) -> Option<usize> {
        let ran: Vec<usize> = (0..self.cells.len()).filter(|&index| self.is_member(index)).collect();
        let named = ran.iter().find(|&&index| Some(&self.cells[index].name) == self.baseline.as_ref());
        let upstream = ran.iter().filter(|&&index| self.cells[index].variant.runner == Runner::Transformers);
        let newest = upstream.max_by(|&&a, &&b| {
            let [a, b] = [a, b].map(|index| &self.cells[index].variant);
            let age = |variant: &Variant| (variant.mode == Mode::Eager, variant.dtype == Dtype::F32);
            release_numbers(&a.version).cmp(&release_numbers(&b.version)).then(age(a).cmp(&age(b)))
        });
        named.or(newest).or(ran.first()).copied()
    }

    /// The verdict on two variants, in either order.
    pub(crate) fn verdict(&self, a: &str, b: &str) -> Option<&Verdict> {
        let is_it =
            |verdict: &&Verdict| (verdict.a == a && verdict.b == b) || (verdict.a == b && verdict.b == a);
        self.verdicts.iter().find(is_it)
    }

    /// The verdict on each cell's KV cache.
    pub(crate) fn cache_verdicts(&self) -> impl Iterator<Item = (usize, &Verdict)> {
        self.caches.iter().map(|cache| (cache.cell, &self.verdicts[cache.verdict]))
    }

    /// The noise of a row's variant: the difference between its repetitions; `None` if not measured.
    pub(crate) fn noise(&self, row: usize) -> Option<&Noise> {
        match &self.cells.get(row)?.outcome {
            // A cell without a successful repetition has no noise estimate.
            Outcome::Completed(completed) => completed.noise.as_ref().filter(|noise| noise.l2().is_some()),
            _ => None,
        }
    }

    /// L2 of a pair in multiples of its sides' noise; `None` if the noise is 0 or unknown.
    pub(crate) fn multiple(&self, a: usize, b: usize) -> Option<f64> {
        let pair = self.matrix.compared(a, b).filter(|_| a != b)?;
        repeat::multiple(pair.l2, self.noise(a), self.noise(b))
    }

    /// The diagonal entry of an L2 matrix: `bitwise`, or the L2 between the variant's repetitions.
    pub(crate) fn diagonal(&self, row: usize) -> Option<String> {
        let noise = self.noise(row)?;
        Some(match noise.l2() {
            _ if noise.is_bitwise() => "bitwise".to_owned(),
            l2 => format!("{:.6}", l2.unwrap_or(f64::NAN)),
        })
    }

    /// The result of the repetitions in one sentence; `None` without repetitions.
    pub(crate) fn noise_said(&self) -> Option<String> {
        let known: Vec<&Noise> = (0..self.cells.len()).filter_map(|row| self.noise(row)).collect();
        if known.is_empty() {
            return None;
        }
        let seconds: f64 = known.iter().map(|noise| noise.elapsed_ns as f64 / 1e9).sum();
        let loud: Vec<&str> = (0..self.cells.len())
            .filter(|&row| self.noise(row).is_some_and(|noise| !noise.is_bitwise()))
            .map(|row| self.cells[row].name.as_str())
            .collect();
        let half = known.iter().filter(|n| n.same_process.is_none() || n.second_process.is_none()).count();
        let half = if half == 0 { String::new() } else { format!(" ({half} of them in one place only)") };
        let cost = format!("repeating took {seconds:.1} s");
        Some(if loud.is_empty() {
            format!(
                "noise floor 0: {} repeat{} bit for bit, in the same process and in a second process{half}; {cost}",
                count(known.len(), "variant"),
                if known.len() == 1 { "s" } else { "" }
            )
        } else {
            format!(
                "noise floor: {} of {} do not repeat themselves bit for bit{half}: {}; {cost}",
                loud.len(),
                count(known.len(), "variant"),
                loud.join(", ")
            )
        })
    }

    /// Numbers of one cell, or the reason in one line why there are none.
    pub(crate) fn performance<'a>(&self, cell: &'a Cell) -> Result<Performance<'a>, String> {
        self.timed(Timed::Prefill, cell)
    }

    /// The cells that decoded tokens, with their times per token.
    pub(crate) fn decoding(&self) -> Vec<(&Cell, Performance<'_>)> {
        let timed = |cell| Some((cell, self.timed(Timed::Decode, cell).ok()?));
        self.cells.iter().filter_map(timed).filter(|(_, performance)| performance.timing.is_some()).collect()
    }

    fn timed<'a>(&self, what: Timed, cell: &'a Cell) -> Result<Performance<'a>, String> {
        let completed = match &cell.outcome {
            Outcome::Completed(completed) => completed,
            outcome => return Err(outcome.reason()),
        };
        let is_baseline = self.baseline.as_ref() == Some(&cell.name);
        let times = self.times.0.get_or_init(|| {
            self.cells.par_iter().map(|cell| Timed::ALL.map(|what| self.timing(what, cell))).collect()
        });
        let known = self.cells.iter().position(|known| known.name == cell.name);
        let known = known.and_then(|index| times.get(index)).map(|times| times[what as usize]);
        let (timing, speed_up) = known.unwrap_or_else(|| self.timing(what, cell));
        Ok(Performance { completed, timing, speed_up, is_baseline })
    }

    fn timing(&self, what: Timed, cell: &Cell) -> Timing {
        let Outcome::Completed(completed) = &cell.outcome else { return (None, None) };
        let is_baseline = self.baseline.as_ref() == Some(&cell.name);
        let baseline = self.cells.iter().find_map(|other| match &other.outcome {
            Outcome::Completed(completed) if self.baseline.as_ref() == Some(&other.name) => Some(completed),
            _ => None,
        });
        let speed_up = baseline.filter(|_| !is_baseline).and_then(|baseline| {
            let (baseline, variant) = side_by_side(what, baseline, completed);
            speed_up(&baseline, &variant)
        });
        (summarize(what.rounds(completed)), speed_up)
    }
}

/// The operation that is timed in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timed {
    /// Forward passes over all inputs.
    Prefill,
    /// One decoded token after the inputs.
    Decode,
}

impl Timed {
    const ALL: [Self; 2] = [Self::Prefill, Self::Decode];

    /// A cell's rounds of it.
    pub(crate) fn rounds(self, completed: &Completed) -> &[Vec<u64>] {
        match self {
            Self::Prefill => &completed.rounds_ns,
            Self::Decode => &completed.decode_rounds_ns,
        }
    }
}

/// The rounds in which both cells were timed; only those may form a ratio.
pub(crate) fn side_by_side(what: Timed, a: &Completed, b: &Completed) -> (Vec<Vec<u64>>, Vec<Vec<u64>>) {
    let round = |of: &Completed, number: &u32| {
        let index = of.round_numbers.iter().position(|known| known == number)?;
        what.rounds(of).get(index).cloned()
    };
    a.round_numbers.iter().filter_map(|number| Some((round(a, number)?, round(b, number)?))).unzip()
}
