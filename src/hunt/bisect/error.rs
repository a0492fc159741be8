//! Why there is no bisection.

use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;

use crate::results::ResultsError;

/// Why a bisection cannot begin, or cannot go on.
#[derive(Debug, Error, Diagnostic)]
pub enum BisectError {
    /// The fault is on the good side too.
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
    /// The fault is not on the bad side.
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
    /// An end cannot be tested.
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
    /// A release that is not on the index.
    #[error("the package index has no transformers release {version}{}", .nearest.as_ref().map(|n| format!("; the nearest is {n}")).unwrap_or_default())]
    #[diagnostic(help("{hint}"))]
    UnknownRelease {
        /// As it was written.
        version: String,
        /// A listed one beside it.
        nearest: Option<String>,
        /// What may be missing.
        hint: String,
    },
    /// A commit or tag that the repository does not have.
    #[error("{repository} has no commit `{revision}`")]
    #[diagnostic(help(
        "name a commit, tag or branch of the repository; releases are looked up as their tags, v4.54.0"
    ))]
    UnknownCommit {
        /// As it was written.
        revision: String,
        /// Where.
        repository: String,
    },
    /// The sides are the wrong way round.
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
    /// Nothing lies between the sides.
    #[error("{good} and {bad} are the same revision")]
    #[diagnostic(help("name two different ones"))]
    Same {
        /// The good side.
        good: String,
        /// The bad side.
        bad: String,
    },
    /// Two commits without a common ancestor.
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
    /// There is no git program.
    #[error("git cannot be started: {reason}")]
    #[diagnostic(help("install git; a bisection over PyPI releases alone needs none"))]
    NoGit {
        /// What the system said.
        reason: String,
    },
    /// git refused.
    #[error("git {command} failed in {}: {reason}", folder.display())]
    #[diagnostic(help("name a folder inside a git repository, or an address that git can clone"))]
    Git {
        /// Its arguments.
        command: String,
        /// Where.
        folder: PathBuf,
        /// What git said.
        reason: String,
    },
    /// The index gave no list.
    #[error("the releases of transformers cannot be listed at {index}: {reason}")]
    #[diagnostic(help(
        "check the network and a proxy (HTTPS_PROXY), or name a mirror in UV_DEFAULT_INDEX; it must serve the simple index, PEP 503 or 691"
    ))]
    Index {
        /// The index, without its credentials.
        index: String,
        /// What went wrong.
        reason: String,
    },
    /// The arguments or the config do not go together.
    #[error("{message}")]
    #[diagnostic(help("{hint}"))]
    Question {
        /// What is wrong.
        message: String,
        /// What to write.
        hint: String,
    },
    /// A log that cannot be read.
    #[error("{} holds no bisection that this tfcheck can resume: {reason}", folder.display())]
    #[diagnostic(help("name a folder such as results/bisect_20260801_150000"))]
    Log {
        /// The bisection's folder.
        folder: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file of the bisection cannot be written.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Results(#[from] ResultsError),
}
