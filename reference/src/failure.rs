//! Errors of preparing an environment, classified by uv's messages.

use std::io;
use std::path::PathBuf;

/// An environment that could not be prepared. Messages include the end of uv's own message.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The index knows the package but not the version, or the repository not the ref.
    #[error("{requirement} does not exist: {tail}")]
    NoSuchVersion {
        /// The requirement asked for.
        requirement: String,
        /// The end of uv's message.
        tail: String,
    },
    /// The index or repository could not be reached.
    #[error("the packages of {requirement} could not be fetched: {tail}")]
    Network {
        /// The requirement asked for.
        requirement: String,
        /// The end of uv's message.
        tail: String,
    },
    /// The requirements exclude each other.
    #[error("{requirement} cannot be installed together with torch {torch}: {tail}")]
    Conflict {
        /// The requirement asked for.
        requirement: String,
        /// The pinned torch.
        torch: String,
        /// The end of uv's message.
        tail: String,
    },
    /// No interpreter satisfies the request.
    #[error("no Python satisfies `{request}`: {tail}")]
    NoPython {
        /// The request, as uv spells it.
        request: String,
        /// The end of uv's message.
        tail: String,
    },
    /// Any other failure of uv.
    #[error("uv failed for {requirement}: {tail}")]
    Uv {
        /// The requirement asked for.
        requirement: String,
        /// The end of uv's message.
        tail: String,
    },
    /// uv is not installed and could not be installed.
    #[error("uv was not found: {reason}")]
    NoUv {
        /// What was tried.
        reason: String,
    },
    /// An interpreter named in the config cannot be used.
    #[error("{} cannot serve as an environment: {reason}", python.display())]
    Unusable {
        /// The interpreter.
        python: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The folder of an editable source is not a package.
    #[error("the working copy {} cannot be installed: {reason}", folder.display())]
    WorkingCopy {
        /// The folder.
        folder: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A file of the cache could not be read or written.
    #[error("the cache could not be used: {0}")]
    Io(#[from] io::Error),
}

impl EnvironmentError {
    /// The remedy.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoSuchVersion { .. } => {
                "check the version on https://pypi.org/project/transformers/#history, or the ref in the repository"
            }
            Self::Network { .. } => {
                "check the network, a proxy (HTTPS_PROXY) or a mirror (UV_DEFAULT_INDEX); an environment that is already prepared needs no network"
            }
            Self::Conflict { .. } => {
                "choose another torch for all versions under test, or leave out the extra requirement that uv names"
            }
            Self::NoPython { .. } => {
                "install such a Python, let uv install it (`uv python install`), or set `python` in the config"
            }
            Self::Uv { .. } => "see the end of uv's message for the cause",
            Self::NoUv { .. } => {
                "install uv (https://docs.astral.sh/uv/) or name it in the environment variable UV"
            }
            Self::Unusable { .. } => {
                "`python` names an interpreter whose environment has transformers and torch"
            }
            Self::WorkingCopy { .. } => {
                "`-e` names the root of a transformers working copy, where setup.py or pyproject.toml lies"
            }
            Self::Io(_) => "check the free space and the permissions of the cache folder",
        }
    }

    /// Classifies uv's message.
    pub(crate) fn from_uv(requirement: &str, torch: &str, message: &str) -> Self {
        let requirement = requirement.to_owned();
        let tail = tail(message, 8);
        // uv wraps its messages; phrases are searched in the joined text.
        let joined = message.split_whitespace().collect::<Vec<_>>().join(" ");
        let says = |phrases: &[&str]| phrases.iter().any(|phrase| joined.contains(phrase));
        if says(&[
            "there is no version of transformers==",
            "there are no versions of transformers",
            "failed to fetch branch, tag, or commit",
            "Git operation failed",
            "couldn't find remote ref",
        ]) && !says(&NETWORK)
        {
            Self::NoSuchVersion { requirement, tail }
        } else if says(&NETWORK) {
            Self::Network { requirement, tail }
        } else if says(&["No solution found when resolving"]) {
            Self::Conflict { requirement, torch: torch.to_owned(), tail }
        } else {
            Self::Uv { requirement, tail }
        }
    }
}

/// Phrases of uv 0.13 and git that mean that a host could not be reached.
const NETWORK: [&str; 10] = [
    "error sending request",
    "Failed to fetch",
    "dns error",
    "Could not connect",
    "client error (Connect)",
    "operation timed out",
    "Could not resolve host",
    "unable to access",
    "Connection refused",
    "network was disabled",
];

/// The last `lines` non-empty lines of `text`.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let said: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    said[said.len().saturating_sub(lines)..].join("\n")
}
