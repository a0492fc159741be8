//! `tfcheck bisect`: searches for the release or commit that changed a result, testing each revision in one
//! run with the good side.
//!
//! A step is an ordinary run of two variants, kept in the bisection's folder; [`search`] chooses the next
//! revision and [`record`] stores the results, so that a stopped bisection can be resumed.

mod cause;
mod cluster;
mod link;
mod port;
mod report;
mod step;
mod subject;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use miette::Result;

pub use crate::hunt::bisect::error::BisectError;
use crate::hunt::bisect::record::{ChangePoint, Log, Over, Phase, Question, Revision};
use crate::hunt::bisect::search::{Answer, Change, Found, Search, Seen};
use crate::hunt::bisect::{record, search};
use cluster::Cluster;
use step::{Tester, check_ends};
use subject::Subject;

use crate::execute::progress::Progress;
use crate::judge::exit_code::ExitCode;
use crate::results::write_file;
use crate::spec::config::Config;
use crate::spec::gate::Gate;
use compare::units::count;

/// Revisions that are prepared in the background during a step.
const AHEAD: usize = 2;

/// Shared parameters of a bisection.
pub struct Context<'a> {
    /// Where tfcheck keeps environments, clones and working trees.
    pub cache: &'a Path,
    /// Set when the user asks to stop.
    pub stop: &'a Arc<AtomicBool>,
    /// Where progress and results are shown.
    pub progress: &'a Progress,
}

/// Starts a bisection in a new folder below `results`.
///
/// # Errors
/// When the good and bad sides are unknown, reversed or do not differ, or a step cannot be written.
pub fn begin(context: &Context, question: Question, results: &Path) -> Result<ExitCode> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d_%H%M%S").to_string();
    let folder = (1..=u32::MAX)
        .map(|attempt| if attempt == 1 { stamp.clone() } else { format!("{stamp}_{attempt}") })
        .map(|name| results.join(format!("bisect_{name}")))
        .find(|folder| !folder.exists())
        .unwrap_or_else(|| results.join("bisect"));
    let mut log = Log::new(stamp, question);
    let first = first_phase(&log.question);
    let (good, bad) = (log.question.good.clone(), log.question.bad.clone());
    // Planning comes before any file is written, because most invalid questions fail here.
    let phase = plan(context, &log.question, &folder, first, &good, &bad)?;
    log.phases.push(phase);
    log.write(&folder)?;
    go_on(context, log, &folder)
}

/// Completes the bisection in `folder`.
///
/// # Errors
/// When the folder has no log, or for the reasons of [`begin`].
pub fn resume(context: &Context, folder: &Path) -> Result<ExitCode> {
    let mut log = Log::read(folder)?;
    log.reopen();
    go_on(context, log, folder)
}

fn go_on(context: &Context, mut log: Log, folder: &Path) -> Result<ExitCode> {
    context.progress.log_to(&folder.join("run.log"));
    context.progress.line(&format!("bisection in {}", folder.display()));
    let mut ended = pursue(context, &mut log, folder);
    if !matches!(ended, Ok(false)) {
        // Runs even if the later search failed: changes found before remain valid.
        let is_whole = cause::changes(context, &mut log, folder)?;
        ended = ended.map(|_| is_whole);
    }
    let is_known = |phase: &Phase| phase.changes.is_some();
    if log.phases.iter().any(is_known) {
        // Changes found before are reported even if a later search failed.
        context.progress.result(&report::terminal(&log));
        // It quotes commits of others.
        let page = report::markdown(&log);
        write_file(&folder.join("bisect.md"), bounds::lines(&page, u64::MAX).as_bytes())?;
        context.progress.line(&format!("bisect.md and {} are in {}", record::FILE_NAME, folder.display()));
    }
    if !ended? {
        let path = folder.display();
        context.progress.line(&format!("interrupted; complete it with: tfcheck bisect --resume {path}"));
        return Ok(ExitCode::Interrupted);
    }
    let not_run: usize = log.phases.iter().map(Phase::not_run).sum();
    if not_run > 0 {
        context.progress.line(&format!(
            "the cluster returned no result of {}; submit what is missing again with: tfcheck bisect --resume {}",
            count(not_run, "revision"),
            folder.display()
        ));
    }
    let is_found = |phase: &Phase| phase.changes.as_ref().is_some_and(|changes| !changes.is_empty());
    Ok(if log.phases.iter().any(is_found) { ExitCode::Diverged } else { ExitCode::Agree })
}

/// Runs every unfinished phase and plans the next one; false when the user stopped it.
fn pursue(context: &Context, log: &mut Log, folder: &Path) -> Result<bool> {
    let mut index = 0;
    while index < log.phases.len() {
        if log.phases[index].changes.is_none() {
            let over = log.phases[index].over;
            let subject = Subject::new(over, &log.question, context.cache, folder)?;
            if !(Pursuit { context, folder, subject: &subject, index }.run(log)?) {
                return Ok(false);
            }
        }
        if let Some(next) = next_phase(context, log, folder)? {
            log.phases.push(next);
            log.write(folder)?;
        }
        index += 1;
    }
    Ok(true)
}

/// What the first search covers: commits if the sides are commits.
fn first_phase(question: &Question) -> Over {
    if question.port.is_some() {
        return Over::Port;
    }
    // `4540000` may be a commit hash, and `v4.54.0` is a tag.
    let is_release = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_digit())
            && text.contains('.')
            && text.parse::<pep440_rs::Version>().is_ok()
    };
    if question.repository.is_some() && !(is_release(&question.good) && is_release(&question.bad)) {
        Over::Commits
    } else {
        Over::Releases
    }
}

/// The phase over commits between the two releases found, if the bisection has a repository.
fn next_phase(context: &Context, log: &Log, folder: &Path) -> Result<Option<Phase>> {
    let question = &log.question;
    let [phase] = log.phases.as_slice() else { return Ok(None) };
    let change = phase.changes.as_deref().unwrap_or_default().first();
    let (Over::Releases, Some(_), Some(change), false) =
        (phase.over, &question.repository, change, question.scan)
    else {
        return Ok(None);
    };
    let tag = |index: usize| format!("v{}", phase.revisions[index].id);
    let (good, bad) = (tag(change.found.before), tag(change.found.after));
    Ok(Some(plan(context, question, folder, Over::Commits, &good, &bad)?))
}

fn plan(
    context: &Context,
    question: &Question,
    folder: &Path,
    over: Over,
    good: &str,
    bad: &str,
) -> Result<Phase> {
    let subject = Subject::new(over, question, context.cache, folder)?;
    let (revisions, notes) = subject.revisions(question, good, bad)?;
    let bound = if question.scan { revisions.len() - 1 } else { search::bound(revisions.len()) };
    let what = match over {
        Over::Releases => "releases",
        Over::Commits | Over::Port => "commits",
    };
    context.progress.line(&format!(
        "{} {what} from {good} to {bad}; `{}` against {good}; at most {}",
        revisions.len(),
        question.test.text(),
        count(bound, "run"),
    ));
    Ok(Phase { over, revisions, bound, steps: Vec::new(), changes: None, notes })
}

/// A running phase.
struct Pursuit<'a> {
    context: &'a Context<'a>,
    folder: &'a Path,
    subject: &'a Subject,
    index: usize,
}

/// Background preparation of environments and builds, by revision index.
type UnderWay<'scope> = BTreeMap<usize, thread::ScopedJoinHandle<'scope, ()>>;

impl Pursuit<'_> {
    /// Runs the phase to its end; false when the user stopped it.
    fn run(&self, log: &mut Log) -> Result<bool> {
        let question = log.question.clone();
        let revisions = log.phases[self.index].revisions.clone();
        let mut cluster = None;
        if question.is_on_cluster() && Self::next(&log.phases[self.index], question.scan).is_some() {
            cluster = Cluster::computed(self.context, &question, self.subject, &revisions, self.folder)?;
            if cluster.is_none() {
                return Ok(false);
            }
        }
        let ended = thread::scope(|scope| {
            let mut under_way = UnderWay::new();
            let mut begun: Vec<usize> = Vec::new();
            while let Some(next) = Self::next(&log.phases[self.index], question.scan) {
                if self.context.stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                if let Some(made) = under_way.remove(&next.revision) {
                    // A failed preparation fails again in the step, which reports it.
                    drop(made.join());
                }
                let needed =
                    [0, next.revision].into_iter().chain(next.previous).chain(next.ahead.iter().copied());
                self.subject.want(needed.map(|index| &revisions[index]));
                under_way.retain(|_, made| !made.is_finished());
                // A build during a timed step would distort its times; a cluster's results need none.
                let is_prepared = !question.test.is_on_times() && cluster.is_none();
                for &ahead in next.ahead.iter().filter(|_| is_prepared) {
                    if under_way.len() < AHEAD && !begun.contains(&ahead) {
                        begun.push(ahead);
                        let (question, revision, subject, cache) =
                            (&question, &revisions[ahead], self.subject, self.context.cache);
                        under_way.insert(
                            ahead,
                            scope.spawn(move || subject.prepare_ahead(question, revision, cache)),
                        );
                    }
                }
                if !self.step(&question, log, (&revisions, cluster.as_ref()), &next)? {
                    return Ok(false);
                }
            }
            Ok::<bool, miette::Report>(true)
        })?;
        if ended {
            let changes = self.changes(&log.phases[self.index], &question)?;
            log.phases[self.index].changes = Some(changes);
            log.write(self.folder)?;
        }
        Ok(ended)
    }

    /// Tests one revision and records the result; false when the user stopped it.
    fn step(
        &self,
        question: &Question,
        log: &mut Log,
        (revisions, cluster): (&[Revision], Option<&Cluster>),
        next: &Next,
    ) -> Result<bool> {
        let title = self.subject.title(&revisions[next.revision]);
        let task = self.context.progress.task("bisect", log.phases[self.index].bound as u64);
        task.at(log.phases[self.index].runs() as u64, &title);
        let first = log.phases[self.index].steps.iter().find_map(|step| step.run.clone());
        let tester = Tester {
            question,
            subject: self.subject,
            cache: self.context.cache,
            runs: self.folder.join("steps"),
            first: first.as_deref(),
            cluster,
            stop: self.context.stop,
        };
        let Some(tested) = tester.test(revisions, next.revision, next.previous)? else { return Ok(false) };
        drop(task);
        let is_first = log.phases[self.index].steps.is_empty();
        if is_first {
            if !question.scan {
                check_ends(&tested, revisions, question)?;
            } else if let Err(fault) = &tested.good {
                return Err(fault.error(&revisions[0], question).into());
            }
        }
        let said = match tested.step.answer {
            Answer::Good => "good",
            Answer::Bad => "bad",
            Answer::Skipped => "skipped",
        };
        let reason = tested.step.reason.lines().next().unwrap_or_default();
        let seconds = tested.step.elapsed_ns as f64 / 1e9;
        self.context.progress.line(&format!("{title}: {said}: {reason} ({seconds:.1} s)"));
        log.phases[self.index].steps.push(tested.step);
        log.write(self.folder)?;
        Ok(true)
    }

    /// The next test; `None` when the phase has ended.
    fn next(phase: &Phase, is_scan: bool) -> Option<Next> {
        let last = phase.revisions.len() - 1;
        if is_scan {
            let revision = (1..=last).find(|&index| phase.step(index).is_none())?;
            let tested =
                |&index: &usize| phase.step(index).is_some_and(|step| step.answer != Answer::Skipped);
            let previous = (1..revision).rev().find(tested);
            return Some(Next { revision, previous, ahead: (revision + 1..=last).take(AHEAD).collect() });
        }
        let search = searched(phase);
        if phase.step(last).is_none() {
            return Some(Next { revision: last, previous: None, ahead: search.next().into_iter().collect() });
        }
        search.next().map(|revision| Next { revision, previous: None, ahead: search.ahead() })
    }

    /// The changes that a finished phase found.
    fn changes(&self, phase: &Phase, question: &Question) -> Result<Vec<ChangePoint>> {
        let found: Vec<(Found, Change)> = if question.scan {
            let seen = |index: usize| match phase.step(index) {
                Some(step) => Seen { answer: step.answer, departs: step.departs },
                // The good side has no step.
                None => Seen { answer: Answer::Good, departs: false },
            };
            search::change_points(&(0..phase.revisions.len()).map(seen).collect::<Vec<_>>())
        } else {
            vec![(searched(phase).found(), Change::Came)]
        };
        let change = |(found, change): (Found, Change)| {
            let sides = [&phase.revisions[found.before], &phase.revisions[found.after]];
            Ok(ChangePoint {
                found,
                change,
                packages: self.subject.packages(question, sides, self.context.cache),
                commits: self.subject.commits(&phase.revisions[found.before + 1..=found.after])?,
                localization: None,
                diagnosis: None,
            })
        };
        found.into_iter().map(change).collect()
    }
}

/// The next test.
struct Next {
    revision: usize,
    /// In a scan, the last earlier revision that was not skipped.
    previous: Option<usize>,
    /// Candidates for the following tests, to prepare in the background.
    ahead: Vec<usize>,
}

/// The search state after all steps of a phase.
fn searched(phase: &Phase) -> Search {
    let last = phase.revisions.len() - 1;
    let mut search = Search::new(phase.revisions.len());
    for step in phase.steps.iter().filter(|step| step.revision != last) {
        search.tell(step.revision, step.answer);
    }
    search
}

/// The options of a bisection as given on the command line.
pub struct BisectOptions {
    /// The good side.
    pub good: Option<String>,
    /// The bad side.
    pub bad: Option<String>,
    /// The gate; a revision is bad if it fails.
    pub test: Gate,
    /// Whether every revision is tested.
    pub scan: bool,
    /// Whether pre-releases are included.
    pub pre: bool,
    /// Whether yanked releases are included.
    pub yanked: bool,
    /// A transformers repository whose commits are searched.
    pub repository: Option<String>,
    /// The port's folder in its repository.
    pub command_repository: Option<PathBuf>,
    /// Name of the config's command that is the port.
    pub command: Option<String>,
    /// The build command of the port.
    pub build: Option<String>,
    /// Where the revisions are computed.
    pub place: record::Place,
}

/// Makes the question from the command line's options.
///
/// # Errors
/// When options contradict each other or a required one is missing.
pub fn question(asked: BisectOptions, config: Config) -> Result<Question, BisectError> {
    let refuse = |message: &str, hint: &str| {
        Err(BisectError::Question { message: message.to_owned(), hint: hint.to_owned() })
    };
    let (Some(good), Some(bad)) = (&asked.good, &asked.bad) else {
        return refuse("a bisection needs a good and a bad revision", "name both with --good and --bad");
    };
    let port = match (&asked.command, &asked.command_repository) {
        (_, None) => None,
        (Some(command), Some(folder)) => Some((command.clone(), folder)),
        (None, Some(folder)) => match config.commands.as_slice() {
            [command] => Some((command.name.clone(), folder)),
            [] => {
                return refuse(
                    "--command-repository without a command in the config",
                    "list the port under [[commands]], as `program` relative to --command-repository",
                );
            }
            _ => return refuse("the config has several commands", "name the port with --command"),
        },
    };
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let place = |place: &String| {
        if Path::new(place).is_dir() {
            absolute(&PathBuf::from(place)).to_string_lossy().into_owned()
        } else {
            place.clone()
        }
    };
    let question = Question {
        folder: config.folder.clone(),
        config,
        good: good.clone(),
        bad: bad.clone(),
        test: asked.test,
        scan: asked.scan,
        pre: asked.pre,
        yanked: asked.yanked,
        repository: asked.repository.as_ref().map(place),
        port: port.map(|(command, folder)| record::PortQuestion {
            command,
            repository: absolute(folder),
            build: asked.build,
        }),
        place: asked.place,
    };
    match question.cluster_problem() {
        Some((message, hint)) => refuse(&message, hint),
        None => Ok(question),
    }
}
