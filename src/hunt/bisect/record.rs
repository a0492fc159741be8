//! The log of a bisection, `bisect.json`: written anew after each step, and all that a resumed one needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::BisectError;
use super::git::Commit;
use super::search::{Answer, Change, Found};
use crate::results::localized::Localized;
use crate::results::{ResultsError, write_file};
use crate::spec::config::Config;
use crate::spec::gate::Gate;

/// The log's name in the bisection's folder.
pub const FILE_NAME: &str = "bisect.json";
/// Version of the log; a reader refuses a newer one.
const SCHEMA_VERSION: u32 = 1;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// Checkpoints, inputs and how they are run; its versions and native models play no part.
    pub config: Config,
    /// Folder of the config, in which a command is started.
    pub folder: PathBuf,
    /// The good side: a release, or a commit of a repository.
    pub good: String,
    /// The bad side.
    pub bad: String,
    /// The test: a revision for which it holds against the good side is bad.
    pub test: Gate,
    /// Whether every revision is tested.
    pub scan: bool,
    /// Whether pre-releases count.
    pub pre: bool,
    /// Whether withdrawn releases count.
    pub yanked: bool,
    /// Address or folder of a transformers repository.
    pub repository: Option<String>,
    /// The native port whose revisions are searched, instead of transformers.
    pub port: Option<PortQuestion>,
}

/// A native port in a repository of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortQuestion {
    /// Name of the config's command.
    pub command: String,
    /// The folder in which it is built and started, in a git repository.
    pub repository: PathBuf,
    /// What builds it.
    pub build: Option<String>,
}

/// A bisection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Log {
    /// The writer's version of the format.
    pub schema_version: u32,
    /// The tfcheck that wrote it.
    pub tfcheck: String,
    /// UTC time stamp of its beginning.
    pub stamp: String,
    /// What is asked.
    pub question: Question,
    /// The searches: over releases, then over the commits between two of them; or one of the two.
    pub phases: Vec<Phase>,
}

/// What a search goes over.
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
    /// Over what.
    pub over: Over,
    /// The revisions, from the good side to the bad one.
    pub revisions: Vec<Revision>,
    /// Most runs that the search takes; of a scan the number of revisions.
    pub bound: usize,
    /// What was tested, in order.
    pub steps: Vec<Step>,
    /// What was found, once it has ended: one change, or those of a scan.
    pub changes: Option<Vec<ChangePoint>>,
    /// What a person must know to read it.
    pub notes: Vec<String>,
}

/// A release or a commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// The release's number or the commit's whole hash.
    pub id: String,
    /// Its name in tables and folders.
    pub name: String,
}

/// The test of one revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Index into [`Phase::revisions`].
    pub revision: usize,
    /// What it said.
    pub answer: Answer,
    /// In a scan, whether the test holds against the last revision before it that could be tested.
    pub departs: bool,
    /// On what that rests.
    pub reason: String,
    /// The numbers of each pair, the good side first.
    pub pairs: Vec<Pair>,
    /// The run behind it, in the bisection's folder `steps`.
    pub run: Option<String>,
    /// Nanoseconds that it took.
    pub elapsed_ns: u64,
}

/// The good side and a revision in one variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// The case's name.
    pub case: String,
    /// The good side's variant.
    pub good: String,
    /// The revision's variant.
    pub variant: String,
    /// The verdict's word; absent where the revision gave no logits.
    pub verdict: Option<String>,
    /// Relative L2 against the good side.
    pub relative_l2: Option<f64>,
    /// Largest difference of a logit.
    pub max_abs: Option<f64>,
    /// The revision's median time over the good side's, with its interval, where both were timed.
    pub time: Option<[f64; 3]>,
    /// Whether the test holds, so that the revision is bad; absent where that cannot be said.
    pub is_bad: Option<bool>,
    /// On what that rests.
    pub evidence: String,
}

/// A change and what is known of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChangePoint {
    /// Between which revisions.
    #[serde(flatten)]
    pub found: Found,
    /// What changed.
    pub change: Change,
    /// Packages that differ between the two environments: before and after, absent where there is none.
    pub packages: BTreeMap<String, [Option<String>; 2]>,
    /// The commits that may have made it, the culprit alone where it is known.
    pub commits: Vec<Commit>,
    /// Where in the model the two revisions depart; absent before that was looked for, and where times are tested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub localization: Option<Localization>,
}

/// Where in the model the last revision before a change and the first one after it depart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Localization {
    /// What was found; the revision before the change is its first side.
    Localized(Box<Localized>),
    /// Why nothing was.
    NotLocalized(String),
}

impl ChangePoint {
    /// Whether the revision that made it is known.
    pub fn is_exact(&self) -> bool {
        self.found.before + 1 == self.found.after
    }
}

impl Step {
    /// The pair that says most: one that fails, else the one that differs most.
    pub fn worst(&self) -> Option<&Pair> {
        let difference = |pair: &&Pair| pair.relative_l2.unwrap_or(-1.0);
        let failing = self.pairs.iter().filter(|pair| pair.is_bad == Some(true));
        let by_size = |a: &&Pair, b: &&Pair| difference(a).total_cmp(&difference(b));
        failing.max_by(by_size).or_else(|| self.pairs.iter().max_by(by_size))
    }
}

impl Phase {
    /// The step of a revision.
    pub fn step(&self, revision: usize) -> Option<&Step> {
        self.steps.iter().find(|step| step.revision == revision)
    }

    /// Runs that gave an answer; both ends take one together.
    pub fn runs(&self) -> usize {
        self.steps.iter().filter(|step| step.revision != 0 && step.answer != Answer::Skipped).count()
    }

    /// Revisions that could not be tested.
    pub fn skipped(&self) -> usize {
        self.steps.iter().filter(|step| step.answer == Answer::Skipped).count()
    }
}

impl Log {
    /// The log of a bisection that begins.
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
        let text =
            std::fs::read(folder.join(FILE_NAME)).map_err(|error| refuse(format!("{FILE_NAME}: {error}")))?;
        let mut log: Self =
            serde_json::from_slice(&text).map_err(|error| refuse(format!("{FILE_NAME}: {error}")))?;
        if log.schema_version > SCHEMA_VERSION {
            return Err(refuse(format!("{FILE_NAME} has schema version {}", log.schema_version)));
        }
        log.question.config.folder.clone_from(&log.question.folder);
        Ok(log)
    }

    /// Writes the log whole.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn write(&self, folder: &Path) -> Result<(), ResultsError> {
        let path = folder.join(FILE_NAME);
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|source| ResultsError::Record { path: path.clone(), source })?;
        bytes.push(b'\n');
        write_file(&path, &bytes)
    }
}
