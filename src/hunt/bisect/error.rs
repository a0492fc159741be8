//! Errors of a bisection.

use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;

use crate::results::ResultsError;

/// Why a bisection cannot start or continue.
#[derive(Debug, Error, Diagnostic)]
pub enum BisectError {
    /// The good side fails the test too.
    #[error("the good side {good} already fails `{test}`: {reason}")]
    #[diagnostic(help("use an older --good, or a --test that it passes"))]
    GoodFails {
        /// The revision.
        good: String,
        /// The test.
        test: String,
        /// Its evidence.
        reason: String,
    },
    /// The bad side passes the test.
    #[error("the bad side {bad} passes `{test}`, so there is no change to find between the two")]
    #[diagnostic(help(
        "name a --bad that fails, a stricter --test, or use --scan to find changes that were later reverted"
    ))]
    BadPasses {
        /// The revision.
        bad: String,
        /// The test.
        test: String,
    },
    /// The good or the bad side cannot be tested.
    #[error("{revision} cannot be tested: {reason}")]
    #[diagnostic(help(
        "both ends must run: use another revision, or --test loads to find where it stops running"
    ))]
    EndNotRun {
        /// The revision.
        revision: String,
        /// Why.
        reason: String,
    },
    /// A revision could not be tried, through no fault of its own.
    #[error("{revision} was not tried: {reason}")]
    #[diagnostic(help(
        "the finished steps are kept: once that is mended, complete the bisection with --resume"
    ))]
    Untried {
        /// The revision.
        revision: String,
        /// Why.
        reason: String,
    },
    /// A cluster returned no result of the good side.
    #[error("the cluster returned no result of the good side {good}: {reason}")]
    #[diagnostic(help("complete the bisection with --resume, which submits its units again"))]
    Lost {
        /// The revision.
        good: String,
        /// What became of its job.
        reason: String,
    },
    /// The release is not on the package index.
    #[error("the package index has no transformers release {version}{}", .nearest.as_ref().map(|n| format!("; the nearest is {n}")).unwrap_or_default())]
    #[diagnostic(help("{hint}"))]
    UnknownRelease {
        /// The text that the user gave.
        version: String,
        /// The next newer release on the index, or else the newest.
        nearest: Option<String>,
        /// The remedy.
        hint: String,
    },
    /// The repository does not have the commit or tag.
    #[error("{repository} has no commit `{revision}`")]
    #[diagnostic(help(
        "name a commit, tag or branch of the repository; releases are looked up as their tags, v4.54.0"
    ))]
    UnknownCommit {
        /// The text that the user gave.
        revision: String,
        /// Where.
        repository: String,
    },
    /// The good side is newer than the bad side.
    #[error("the good side {good} is newer than the bad side {bad}")]
    #[diagnostic(help(
        "a bisection goes from an older --good to a newer --bad; to find where a bug was fixed, swap them: the test compares with --good"
    ))]
    Reversed {
        /// The good side.
        good: String,
        /// The bad side.
        bad: String,
    },
    /// Both sides are the same revision.
    #[error("{good} and {bad} are the same revision")]
    #[diagnostic(help("name two different ones"))]
    Same {
        /// The good side.
        good: String,
        /// The bad side.
        bad: String,
    },
    /// The two commits have no common ancestor.
    #[error("{good} and {bad} have no common history")]
    #[diagnostic(help(
        "name two commits of one branch, or fetch the history of a shallow clone: git fetch --unshallow"
    ))]
    Unrelated {
        /// The good side.
        good: String,
        /// The bad side.
        bad: String,
    },
    /// The git program cannot be started.
    #[error("git cannot be started: {reason}")]
    #[diagnostic(help("install git; a bisection over PyPI releases alone needs none"))]
    NoGit {
        /// The operating system's error.
        reason: String,
    },
    /// A git command failed.
    #[error("git {command} failed in {}: {reason}", folder.display())]
    #[diagnostic(help("name a folder inside a git repository, or an address that git can clone"))]
    Git {
        /// Its arguments.
        command: String,
        /// Where.
        folder: PathBuf,
        /// git's standard error, or its exit status.
        reason: String,
    },
    /// The list of releases cannot be fetched from the index.
    #[error("the releases of transformers cannot be listed at {index}: {reason}")]
    #[diagnostic(help(
        "check the network and a proxy (HTTPS_PROXY), or name a mirror in UV_DEFAULT_INDEX; it must serve the simple index, PEP 503 or 691"
    ))]
    Index {
        /// The index's URL, without its credentials.
        index: String,
        /// What went wrong.
        reason: String,
    },
    /// The arguments or the config contradict each other.
    #[error("{message}")]
    #[diagnostic(help("{hint}"))]
    Question {
        /// What is wrong.
        message: String,
        /// The remedy.
        hint: String,
    },
    /// The log cannot be read.
    #[error("{} holds no bisection that this tfcheck can resume: {reason}", folder.display())]
    #[diagnostic(help("name a folder such as results/bisect_20260801_150000"))]
    Log {
        /// The bisection's folder.
        folder: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// A file of the bisection cannot be written.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Results(#[from] ResultsError),
}
