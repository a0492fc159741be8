//! The log of a bisection, `bisect.json`. It is rewritten after each step and holds all that a resumed bisection
//! needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bounds::limits::RUN_JSON_BYTES;
use serde::{Deserialize, Serialize};

use super::error::BisectError;
use super::git::Commit;
use super::search::{Answer, Change, Found};
use crate::results::diagnosed::Diagnosed;
use crate::results::localized::Localized;
use crate::results::{ResultsError, check_links, write_file};
use crate::spec::atomic::is_component;
use crate::spec::config::Config;
use crate::spec::gate::Gate;

/// The log's name in the bisection's folder.
pub const FILE_NAME: &str = "bisect.json";
/// Version of the log; a reader refuses a newer one.
const SCHEMA_VERSION: u32 = 1;

/// The settings of a bisection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Supplies checkpoints, inputs and run settings; its versions and native models are ignored.
    pub config: Config,
    /// Folder of the config; commands are started in it.
    pub folder: PathBuf,
    /// The good side: a release, or a commit of a repository.
    pub good: String,
    /// The bad side.
    pub bad: String,
    /// The test: a revision for which it holds against the good side is bad.
    pub test: Gate,
    /// Whether every revision is tested.
    pub scan: bool,
    /// Whether pre-releases are included.
    pub pre: bool,
    /// Whether yanked releases are included.
    pub yanked: bool,
    /// Address or folder of a transformers repository.
    pub repository: Option<String>,
    /// The native port whose revisions are searched, instead of transformers.
    pub port: Option<PortQuestion>,
    /// Where the revisions are computed.
    #[serde(default)]
    pub place: Place,
}

/// Where the revisions are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// On this host, step by step.
    #[default]
    Here,
    /// As units on a Slurm cluster, before the steps of a scan.
    Slurm,
}

impl Question {
    /// Whether a cluster computes the revisions.
    pub fn is_on_cluster(&self) -> bool {
        self.place == Place::Slurm
    }

    /// Why a cluster cannot compute the revisions, and the remedy; `None` if it can, or is not asked to.
    pub fn cluster_problem(&self) -> Option<(String, &'static str)> {
        if !self.is_on_cluster() {
            None
        } else if self.port.is_some() {
            let message = "--engine with --command-repository: the port is built on this host, and not on the nodes of a cluster";
            Some((message.to_owned(), "leave --engine out"))
        } else if self.test.is_on_times() {
            let message = format!(
                "--engine with `--test {}`: each revision runs on a node of its own, and times of different machines do not enter one ratio",
                self.test.text()
            );
            Some((
                message,
                "leave --engine out, so that this machine times each revision together with the good one",
            ))
        } else if !self.scan {
            let message = "--engine without --scan: a search tests one revision at a time, because each test depends on the last one";
            Some((message.to_owned(), "add --scan to test every revision, or leave --engine out"))
        } else {
            None
        }
    }
}

/// A native port in a repository of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortQuestion {
    /// Name of the config's command.
    pub command: String,
    /// The folder in which it is built and started, in a git repository.
    pub repository: PathBuf,
    /// The build command.
    pub build: Option<String>,
}

/// A bisection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// The writer's version of the format.
    pub schema_version: u32,
    /// Version of the tfcheck that wrote it.
    pub tfcheck: String,
    /// UTC time stamp of its start.
    pub stamp: String,
    /// The settings.
    pub question: Question,
    /// The searches: over releases, over commits, or over releases and then over the commits between two of them.
    pub phases: Vec<Phase>,
}

/// The kind of revisions that a search covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Over {
    /// Releases of transformers.
    Releases,
    /// Commits of a transformers repository.
    Commits,
    /// Commits of a native port's repository.
    Port,
}

/// One search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// The kind of its revisions.
    pub over: Over,
    /// The revisions, from the good side to the bad one.
    pub revisions: Vec<Revision>,
    /// Upper bound of the number of runs; for a scan, the number of revisions.
    pub bound: usize,
    /// The tested revisions, in order of testing.
    pub steps: Vec<Step>,
    /// The changes found; `None` until the search has ended. A scan may find several.
    pub changes: Option<Vec<ChangePoint>>,
    /// Notes for the reader of the report.
    pub notes: Vec<String>,
}

/// A release or a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The release's number or the commit's full hash.
    pub id: String,
    /// Its name in tables and folders.
    pub name: String,
}

/// The test of one revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Index into [`Phase::revisions`].
    pub revision: usize,
    /// The result of the test.
    pub answer: Answer,
    /// In a scan, whether the test holds against the last revision before it that could be tested.
    pub departs: bool,
    /// Whether the cluster returned no result, so that a resumed bisection submits the revision again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub not_run: bool,
    /// The evidence.
    pub reason: String,
    /// The differences of each pair; the good side is the first of a pair.
    pub pairs: Vec<Pair>,
    /// The run of this test, in the bisection's folder `steps`.
    pub run: Option<String>,
    /// Duration in nanoseconds.
    pub elapsed_ns: u64,
}

/// The good side compared with a revision, in one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The case's name.
    pub case: String,
    /// The good side's variant.
    pub good: String,
    /// The revision's variant.
    pub variant: String,
    /// The verdict's name; absent if the revision gave no logits.
    pub verdict: Option<String>,
    /// Relative L2 against the good side.
    pub relative_l2: Option<f64>,
    /// Largest absolute difference of a logit.
    pub max_abs: Option<f64>,
    /// Ratio of the revision's median time to the good side's, and the bounds of its interval; absent unless both
    /// were timed.
    pub time: Option<[f64; 3]>,
    /// Whether the test holds, so that the revision is bad; absent if unknown.
    pub is_bad: Option<bool>,
    /// The evidence.
    pub evidence: String,
}

/// A change and its details.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangePoint {
    /// The revisions before and after it.
    #[serde(flatten)]
    pub found: Found,
    /// The kind of change.
    pub change: Change,
    /// Packages that differ between the two environments: versions before and after, `None` if a package is not
    /// installed.
    pub packages: BTreeMap<String, [Option<String>; 2]>,
    /// The commits that may have caused it; only one if the search is exact.
    pub commits: Vec<Commit>,
    /// First diverging module of the two revisions; absent before localisation, and for timing tests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub localization: Option<Localization>,
    /// What the faulty revision computes instead, if the other one reproduces its logits with a mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Box<Diagnosed>>,
}

/// Localisation of the difference between the last revision before a change and the first one after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Localization {
    /// The result; the revision before the change is the first side.
    Localized(Box<Localized>),
    /// Why nothing was localised.
    NotLocalized(String),
}

impl ChangePoint {
    /// Whether the revision that caused it is known.
    pub fn is_exact(&self) -> bool {
        self.found.before + 1 == self.found.after
    }
}

impl Step {
    /// The failing pair with the largest relative L2, or the pair with the largest one if none fails.
    pub fn worst(&self) -> Option<&Pair> {
        let difference = |pair: &&Pair| pair.relative_l2.unwrap_or(-1.0);
        let failing = self.pairs.iter().filter(|pair| pair.is_bad == Some(true));
        let by_size = |a: &&Pair, b: &&Pair| difference(a).total_cmp(&difference(b));
        failing.max_by(by_size).or_else(|| self.pairs.iter().max_by(by_size))
    }
}

impl Phase {
    /// The step that tested a revision.
    pub fn step(&self, revision: usize) -> Option<&Step> {
        self.steps.iter().find(|step| step.revision == revision)
    }

    /// The number of runs that gave an answer; the two ends share one run.
    pub fn runs(&self) -> usize {
        self.steps.iter().filter(|step| step.revision != 0 && step.answer != Answer::Skipped).count()
    }

    /// The number of revisions for which the cluster returned no result.
    pub fn not_run(&self) -> usize {
        self.steps.iter().filter(|step| step.not_run).count()
    }

    /// The number of revisions that could not be tested.
    pub fn skipped(&self) -> usize {
        self.steps.iter().filter(|step| step.answer == Answer::Skipped).count()
    }
}

impl Log {
    /// The log of a new bisection.
    pub fn new(stamp: String, question: Question) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            tfcheck: env!("CARGO_PKG_VERSION").to_owned(),
            stamp,
            question,
            phases: Vec::new(),
        }
    }

    /// The log in a bisection's folder.
    ///
    /// # Errors
    /// A folder without one, or one that this tfcheck cannot read.
    pub fn read(folder: &Path) -> Result<Self, BisectError> {
        let refuse = |reason: String| BisectError::Log { folder: folder.to_owned(), reason };
        let text = bounds::file::read_unlinked(&folder.join(FILE_NAME), RUN_JSON_BYTES)
            .map_err(|error| refuse(format!("{FILE_NAME}: {error}")))?;
        let mut log: Self =
            serde_json::from_slice(&text).map_err(|error| refuse(format!("{FILE_NAME}: {error}")))?;
        if log.schema_version > SCHEMA_VERSION {
            return Err(refuse(format!("{FILE_NAME} has schema version {}", log.schema_version)));
        }
        if let Some(problem) = log.problem() {
            return Err(refuse(format!("{FILE_NAME} {problem}")));
        }
        check_links(folder, 0)?;
        log.question.config.folder.clone_from(&log.question.folder);
        Ok(log)
    }

    /// Drops the steps from the first one on for which the cluster returned no result: later steps may compare with its revision.
    pub fn reopen(&mut self) {
        for phase in &mut self.phases {
            if let Some(first) = phase.steps.iter().position(|step| step.not_run) {
                phase.steps.truncate(first);
                phase.changes = None;
            }
        }
    }

    /// The first thing in a log that this tfcheck did not write so, as a predicate of the file: it is used as an index, as a
    /// name of a folder or as an argument of git.
    fn problem(&self) -> Option<String> {
        if let Some(problem) = self.question.config.beyond_limits() {
            return Some(format!("has a config that cannot be used: {problem}"));
        }
        if self.phases.is_empty() {
            return Some("lists no search".to_owned());
        }
        if let Some((problem, _)) = self.question.cluster_problem() {
            return Some(format!("asks for {problem}"));
        }
        let shown = |text: &str| bounds::shown(text, 100).into_owned();
        if !is_component(&self.stamp) {
            return Some(format!("has the time stamp `{}`, which is not a file name", shown(&self.stamp)));
        }
        for phase in &self.phases {
            let revisions = phase.revisions.len();
            if revisions < 2 {
                return Some(format!("has a search over {revisions} revisions, and a search has two ends"));
            }
            let is_named = |text: &&String| {
                let is_plain = |c: char| c.is_ascii_alphanumeric() || "._+!-".contains(c);
                text.len() <= 100
                    && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && text.chars().all(is_plain)
            };
            let names = phase.revisions.iter().flat_map(|revision| [&revision.id, &revision.name]);
            if let Some(name) = names.into_iter().find(|name| !is_named(name)) {
                return Some(format!(
                    "names a revision `{}`, which is neither a release nor a commit",
                    shown(name)
                ));
            }
            let runs = phase.steps.iter().filter_map(|step| step.run.as_ref());
            if let Some(run) = runs.into_iter().find(|run| !is_component(run)) {
                return Some(format!("names a run `{}`, which is not a file name", shown(run)));
            }
            let found = phase.changes.iter().flatten().map(|change| &change.found);
            let is_beyond = |found: &&Found| found.before >= found.after || found.after >= revisions;
            if found.into_iter().any(|found| is_beyond(&found)) || !self.is_a_search(phase) {
                return Some(format!("has a step or a change that is not one of its {revisions} revisions"));
            }
        }
        None
    }

    /// Whether each step tests a revision between the ends that the steps before it left.
    fn is_a_search(&self, phase: &Phase) -> bool {
        let last = phase.revisions.len() - 1;
        let (mut good, mut bad) = (0, last);
        phase.steps.iter().all(|step| {
            let is_new = step.revision == last || (good < step.revision && step.revision < bad);
            if self.question.scan || step.revision == last {
                return step.revision <= last;
            }
            match step.answer {
                Answer::Good => good = step.revision,
                Answer::Bad => bad = step.revision,
                Answer::Skipped => {}
            }
            is_new
        })
    }

    /// Writes the whole log.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, folder: &Path) -> Result<(), ResultsError> {
        let path = folder.join(FILE_NAME);
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|cause| ResultsError::Record { path: path.clone(), cause })?;
        bytes.push(b'\n');
        write_file(&path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_scan_repeats_the_steps_from_the_first_revision_without_a_result() {
        let step = |revision, not_run| Step {
            revision,
            answer: if not_run { Answer::Skipped } else { Answer::Good },
            departs: false,
            not_run,
            reason: String::new(),
            pairs: Vec::new(),
            run: None,
            elapsed_ns: 1,
        };
        let check = |not_run: [bool; 3], expected: &[usize]| {
            let question = Question {
                config: Config::default(),
                folder: PathBuf::new(),
                good: "4.41.1".into(),
                bad: "4.42.1".into(),
                test: "verdict>=diverged".parse().unwrap(),
                scan: true,
                pre: false,
                yanked: false,
                repository: None,
                port: None,
                place: Place::Slurm,
            };
            let mut log = Log::new("20260801_150000".into(), question);
            log.phases.push(Phase {
                over: Over::Releases,
                revisions: Vec::new(),
                bound: 3,
                steps: (1..).zip(not_run).map(|(revision, not_run)| step(revision, not_run)).collect(),
                changes: Some(Vec::new()),
                notes: Vec::new(),
            });
            log.reopen();
            let phase = &log.phases[0];
            assert!(phase.steps.iter().map(|step| step.revision).eq(expected.iter().copied()));
            assert_eq!(phase.changes.is_some(), expected.len() == 3);
        };
        check([false, false, false], &[1, 2, 3]);
        check([false, true, false], &[1]);
        check([true, false, true], &[]);
    }
}
