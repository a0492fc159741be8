//! The test of one revision: a run of it together with the good side, decided by the question's gate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use miette::{IntoDiagnostic, Result};

use super::cluster::{Cluster, is_not_run};
use super::link::link_results;
use super::port::Unready;
use super::subject::Subject;
use crate::commands::run::{self, Destination, RunRequest};
use crate::execute::cell::{Cell, Completed, Failure, FailureKind, Outcome};
use crate::execute::progress::Progress;
use crate::hunt::bisect::error::BisectError;
use crate::hunt::bisect::record::{Pair, Question, Revision, Step};
use crate::hunt::bisect::search::Answer;
use crate::judge::assess;
use crate::judge::exit_code::ExitCode;
use crate::judge::gates::{self, Numbers, Times};
use crate::judge::view::{CaseView, Timed, side_by_side};
use crate::results::RunFolder;
use crate::spec::machine;
use crate::spec::plan::Plan;
use compare::matrix::PairOutcome;
use compare::metrics::Side;
use compare::timing::{self, Statistic};
use compare::verdict::Decision;

/// Factor on the number of rounds when a slow-down that may be noise is timed again.
const MORE_ROUNDS: usize = 3;

/// Tests revisions of one subject.
pub(super) struct Tester<'a> {
    pub(super) question: &'a Question,
    pub(super) subject: &'a Subject,
    pub(super) cache: &'a Path,
    /// Folder of the runs.
    pub(super) runs: PathBuf,
    /// The phase's first run, which has the good side's results.
    pub(super) first: Option<&'a str>,
    /// The results of all revisions, if a cluster computed them; then nothing is computed here.
    pub(super) cluster: Option<&'a Cluster>,
    pub(super) stop: &'a Arc<AtomicBool>,
}

/// The test of a revision.
pub(super) struct Tested {
    pub(super) step: Step,
    /// The good side's own test; `Err` if it does not pass.
    pub(super) good: Result<(), Fault>,
}

/// Why the good side cannot serve as a reference.
pub(super) enum Fault {
    /// It fails its own gate.
    Fails(String),
    /// It does not run.
    NotRun(String),
    /// The cluster returned no result.
    Lost(String),
}

impl Fault {
    /// The error shown to the user.
    pub(super) fn error(&self, good: &Revision, question: &Question) -> BisectError {
        let (Self::Fails(reason) | Self::NotRun(reason) | Self::Lost(reason)) = self;
        let reason = reason.clone();
        match self {
            Self::Lost(_) => BisectError::Lost { good: good.name.clone(), reason },
            Self::NotRun(_) if !question.test.is_loads() => {
                BisectError::EndNotRun { revision: format!("the good side {}", good.name), reason }
            }
            _ => {
                let test = question.test.text().to_owned();
                BisectError::GoodFails { good: good.name.clone(), test, reason }
            }
        }
    }
}

impl Tester<'_> {
    /// Tests the revision `index` against the good one, and in a scan also against the `previous` one. `None`
    /// when the user stopped it.
    pub(super) fn test(
        &self,
        revisions: &[Revision],
        index: usize,
        previous: Option<usize>,
    ) -> Result<Option<Tested>> {
        let started = Instant::now();
        let (good, revision) = (&revisions[0], &revisions[index]);
        let previous = previous.filter(|&known| known != 0).map(|known| &revisions[known]);
        let step = |answer, reason: String| Step {
            revision: index,
            answer,
            departs: false,
            not_run: false,
            reason,
            pairs: Vec::new(),
            run: None,
            elapsed_ns: started.elapsed().as_nanos() as u64,
        };
        let all: Vec<&Revision> = [Some(good), previous, Some(revision)].into_iter().flatten().collect();
        if let Subject::Port(port) = self.subject {
            for &one in &all {
                let Err(unready) = port.prepare(&one.id) else { continue };
                // A build that a request to stop ended is built again when the bisection is resumed.
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                return match unready {
                    Unready::Untried(reason) => {
                        Err(BisectError::Untried { revision: one.name.clone(), reason }.into())
                    }
                    Unready::Fails(reason) if one.id == good.id => {
                        Err(Fault::NotRun(reason).error(good, self.question).into())
                    }
                    Unready::Fails(reason) => {
                        Ok(Some(Tested { step: step(Answer::Skipped, reason), good: Ok(()) }))
                    }
                };
            }
        }
        let mut rounds = 1;
        loop {
            let Some((name, cases)) = self.run(&all, rounds)? else { return Ok(None) };
            let judge = RevisionJudge { question: self.question, cases: &cases };
            let pairs = judge.pairs(good, revision);
            let is_unsure = pairs.iter().any(|pair| pair.is_bad.is_none() && pair.time.is_some());
            let is_bad = pairs.iter().any(|pair| pair.is_bad == Some(true));
            if self.question.test.is_on_times() && is_unsure && !is_bad && rounds == 1 {
                rounds = MORE_ROUNDS;
                continue;
            }
            let untested = judge.untested(revision);
            let not_run = untested.is_some_and(|failure| failure.kind != FailureKind::Environment);
            let (answer, reason) = match untested {
                Some(failure) => (Answer::Skipped, failure.reason.clone()),
                None => answer(&pairs),
            };
            let departs = previous.map_or(answer == Answer::Bad, |previous| {
                judge.pairs(previous, revision).iter().any(|pair| pair.is_bad == Some(true))
            });
            let step = Step { departs, not_run, pairs, run: Some(name), ..step(answer, reason) };
            return Ok(Some(Tested { step, good: judge.good(good) }));
        }
    }

    /// Runs the revisions together; returns the run's name and its cases. `None` when the user stopped it.
    fn run(&self, revisions: &[&Revision], times_rounds: usize) -> Result<Option<(String, Vec<CaseView>)>> {
        let mut config = self.subject.config(self.question, revisions);
        config.run.rounds *= times_rounds;
        if let Some(cluster) = self.cluster {
            return cluster.step(&self.runs, config, revisions).map(Some);
        }
        let plan = Plan::new(&config, machine::auto_device())?;
        let text = toml::to_string(&config).into_diagnostic()?;
        let quiet = Progress::new(true).without_results();
        let request = RunRequest {
            config: &config,
            text: &text,
            plan: &plan,
            cache: self.cache,
            clean: false,
            // Most steps are not the change; the change is localised when the search has ended.
            localize: false,
            stop: self.stop,
            progress: &quiet,
            turn: None,
            sharing: None,
        };
        let finished = run::run(&request, self.destination(revisions[0])?)?;
        if finished.code == ExitCode::Interrupted {
            return Ok(None);
        }
        let view = assess::saved(&RunFolder::open(&finished.folder)?)?;
        Ok(Some((view.id, view.cases)))
    }
}

impl Tester<'_> {
    /// A new run; if the test is not on times, one that already contains the good side's results.
    fn destination(&self, good: &Revision) -> Result<Destination> {
        let Some(first) = self.first.filter(|_| !self.question.test.is_on_times()) else {
            return Ok(Destination::New(self.runs.clone()));
        };
        let known = RunFolder::open(&self.runs.join(first))?;
        let manifest = known.manifest()?;
        let folder =
            RunFolder::create(&self.runs, &jiff::Timestamp::now().strftime("%Y%m%d_%H%M%S").to_string())?;
        folder.write_manifest(&manifest)?;
        link_results((&known, &manifest), (&folder, &manifest), &[&good.name])?;
        Ok(Destination::Resume(folder))
    }
}

/// The answer for a revision, and the reason. A failing pair takes precedence over one that could not be
/// decided.
fn answer(pairs: &[Pair]) -> (Answer, String) {
    let found = |is_bad| pairs.iter().find(|pair| pair.is_bad == is_bad).map(|pair| pair.evidence.clone());
    if let Some(reason) = found(Some(true)) {
        (Answer::Bad, reason)
    } else if let Some(reason) = found(None) {
        (Answer::Skipped, reason)
    } else if let Some(reason) = found(Some(false)) {
        (Answer::Good, reason)
    } else {
        (Answer::Skipped, "the good revision did not run in the same step".to_owned())
    }
}

/// Decides pairs of revisions from a run.
struct RevisionJudge<'a> {
    question: &'a Question,
    cases: &'a [CaseView],
}

impl RevisionJudge<'_> {
    /// Each variant of `revision` paired with the same variant of `good`; variants that the good side lacks
    /// are left out.
    fn pairs(&self, good: &Revision, revision: &Revision) -> Vec<Pair> {
        let mut pairs = Vec::new();
        for case in self.cases {
            for (b, cell) in case.cells.iter().enumerate() {
                if cell.variant.version != revision.name || self.is_oracle(cell) {
                    continue;
                }
                let same = |other: &Cell| {
                    other.variant.version == good.name && other.variant.note() == cell.variant.note()
                };
                let a = case.cells.iter().position(same);
                let a = a.filter(|&a| matches!(case.cells[a].outcome, Outcome::Completed(_)));
                pairs.extend(a.map(|a| self.pair(case, a, b)));
            }
        }
        pairs
    }

    /// Why the good side cannot serve as a reference: it does not run, or fails its own gate.
    fn good(&self, good: &Revision) -> Result<(), Fault> {
        let cells = || {
            self.cases.iter().flat_map(|case| &case.cells).filter(|cell| cell.variant.version == good.name)
        };
        if let Some(failure) = self.untested(good) {
            let reason = failure.reason.clone();
            let is_installed = failure.kind != FailureKind::Environment;
            return Err(if is_installed { Fault::Lost(reason) } else { Fault::NotRun(reason) });
        }
        if !cells().any(|cell| matches!(cell.outcome, Outcome::Completed(_))) {
            let reason = cells().next().map_or_else(String::new, |cell| cell.outcome.reason());
            return Err(Fault::NotRun(reason));
        }
        let failed = self.pairs(good, good).into_iter().find(|pair| pair.is_bad == Some(true));
        failed.map_or(Ok(()), |pair| Err(Fault::Fails(format!("{}: {}", pair.variant, pair.evidence))))
    }

    /// Why a revision could not be tested: it could not be installed, or the cluster returned no result. Neither counts as bad.
    fn untested(&self, revision: &Revision) -> Option<&Failure> {
        let cells = self.cases.iter().flat_map(|case| &case.cells);
        let own = cells.filter(|cell| cell.variant.version == revision.name);
        own.filter_map(|cell| match &cell.outcome {
            Outcome::Failed(failure) => Some((cell, failure)),
            _ => None,
        })
        .find(|(cell, failure)| {
            failure.kind == FailureKind::Environment || (self.question.is_on_cluster() && is_not_run(cell))
        })
        .map(|(_, failure)| failure)
    }

    /// Whether the cell is an oracle that is not itself a variant: it is not timed.
    fn is_oracle(&self, cell: &Cell) -> bool {
        self.question.test.is_on_times()
            && matches!(&cell.outcome, Outcome::Completed(known) if known.rounds_ns.is_empty() && known.unfinished.is_none())
    }

    fn pair(&self, case: &CaseView, a: usize, b: usize) -> Pair {
        let (good, cell) = (&case.cells[a], &case.cells[b]);
        let absent = || match &cell.outcome {
            Outcome::Completed(_) => "not measured".to_owned(),
            outcome => outcome.reason(),
        };
        let both = completed(good).zip(completed(cell));
        let compared = match case.matrix.pair(a.min(b), a.max(b)) {
            PairOutcome::Compared(_) => Ok(case.matrix.oriented(a, b)),
            PairOutcome::Incomparable(reason) => Err(reason.to_string()),
            PairOutcome::NotRun(_) => Err(absent()),
        };
        let metrics = match &compared {
            Ok(PairOutcome::Compared(pair)) => Ok(&**pair),
            Ok(_) => Err(absent()),
            Err(reason) => Err(reason.clone()),
        };
        let identical = Decision::Identical;
        let decision = if a == b { Some(&identical) } else { decision(case, &good.name, &cell.name) };
        let timed = both.map(|(good, cell)| side_by_side(Timed::Prefill, good, cell));
        let timed = timed.filter(|(good, _)| !good.is_empty()).ok_or_else(|| match &cell.outcome {
            Outcome::Completed(Completed { unfinished: Some(failure), .. }) => failure.reason.clone(),
            _ => absent(),
        });
        let times = timed.as_ref().map_err(Clone::clone);
        let times = times.map(|(baseline, variant)| Times { baseline, variant, paired: true });
        let numbers = Numbers {
            loads: completed(cell).map(drop).ok_or_else(absent),
            verdict: if metrics.is_ok() { decision.ok_or_else(absent) } else { Err(absent()) },
            pair: metrics.clone(),
            times: times.clone(),
            peak_bytes: both
                .and_then(|(good, cell)| Some([good.peak_bytes?, cell.peak_bytes?]))
                .ok_or_else(|| "its peak memory is not known".to_owned()),
        };
        let (is_bad, evidence) = match gates::evaluate(&self.question.test, &numbers) {
            gates::Outcome::Passed => (Some(false), self.passed(case, good, cell)),
            gates::Outcome::Failed { evidence } => (Some(true), evidence),
            gates::Outcome::Unknown { reason } => (None, reason),
        };
        let change =
            times.ok().and_then(|times| timing::change(times.baseline, times.variant, Statistic::P50, true));
        Pair {
            case: case.name.clone(),
            good: good.name.clone(),
            variant: cell.name.clone(),
            verdict: metrics.is_ok().then(|| decision.map(|decision| decision.word().to_owned())).flatten(),
            relative_l2: metrics
                .as_ref()
                .ok()
                .map(|pair| pair.relative_l2(Side::A))
                .filter(|value| value.is_finite()),
            max_abs: metrics.as_ref().ok().map(|pair| pair.max_abs).filter(|value| value.is_finite()),
            time: change.map(|change| [change.ratio, change.interval.low, change.interval.high]),
            is_bad,
            evidence,
        }
    }

    /// The evidence of a pair that passes.
    fn passed(&self, case: &CaseView, good: &Cell, cell: &Cell) -> String {
        match decision(case, &good.name, &cell.name) {
            Some(decision) if !self.question.test.is_on_times() => decision.word().to_owned(),
            _ => "passes".to_owned(),
        }
    }
}

fn completed(cell: &Cell) -> Option<&Completed> {
    match &cell.outcome {
        Outcome::Completed(completed) => Some(completed),
        _ => None,
    }
}

fn decision<'a>(case: &'a CaseView, a: &str, b: &str) -> Option<&'a Decision> {
    case.verdict(a, b).map(|verdict| &verdict.decision)
}

/// Checks the ends of a bisection: the good one must pass, the bad one must fail.
pub(super) fn check_ends(
    tested: &Tested,
    revisions: &[Revision],
    question: &Question,
) -> Result<(), BisectError> {
    let name = |index: usize| revisions[index].name.clone();
    let bad = tested.step.revision;
    if let Err(fault) = &tested.good {
        return Err(fault.error(&revisions[0], question));
    }
    match tested.step.answer {
        Answer::Bad => Ok(()),
        Answer::Good => Err(BisectError::BadPasses { bad: name(bad), test: question.test.text().to_owned() }),
        Answer::Skipped => {
            let revision = format!("the bad side {}", name(bad));
            Err(BisectError::EndNotRun { revision, reason: tested.step.reason.clone() })
        }
    }
}
