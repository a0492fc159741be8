//! The source of a transformers version: the requirement grammar of `tfcheck.toml`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Versions;

/// One transformers version to install.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// `transformers`: the newest release that this build of tfcheck knows ([`Versions::newest`]).
    Newest,
    /// `transformers==4.54.0`.
    Release(String),
    /// `git+https://host/repository@ref`.
    Git {
        /// The URL after `git+`, without the ref: `https://host/repository`.
        url: String,
        /// Branch, tag or commit; the repository's default branch when absent.
        reference: Option<String>,
    },
    /// `-e path/`: a working copy, installed editable.
    Editable(PathBuf),
}

/// A requirement that does not follow the grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{requirement}` is not a transformers requirement: {reason}")]
pub struct SourceError {
    requirement: String,
    reason: String,
}

impl SourceError {
    /// The accepted spellings.
    pub fn hint(&self) -> &'static str {
        "write `transformers==4.54.0`, `transformers` (newest), `git+https://host/repository@ref` or `-e path/`"
    }
}

impl Source {
    /// The release that is pinned, when the source is a release.
    pub fn release(&self) -> Option<&str> {
        match self {
            Self::Newest => Some(&Versions::known().newest),
            Self::Release(version) => Some(version),
            Self::Git { .. } | Self::Editable(_) => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest => write!(out, "transformers"),
            Self::Release(version) => write!(out, "transformers=={version}"),
            Self::Git { url, reference: None } => write!(out, "git+{url}"),
            Self::Git { url, reference: Some(reference) } => write!(out, "git+{url}@{reference}"),
            Self::Editable(path) => write!(out, "-e {}", path.display()),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(requirement: &str) -> Result<Self, SourceError> {
        let text = requirement.trim();
        let refuse =
            |reason: &str| SourceError { requirement: requirement.to_owned(), reason: reason.to_owned() };
        if let Some(path) = text.strip_prefix("-e") {
            if !path.starts_with([' ', '\t']) || path.trim().is_empty() {
                return Err(refuse("`-e` is followed by a space and a folder"));
            }
            return Ok(Self::Editable(PathBuf::from(path.trim())));
        }
        if let Some(address) = text.strip_prefix("git+") {
            return git(address).map_err(refuse);
        }
        let Some(rest) = text.strip_prefix("transformers") else {
            return Err(refuse(
                "only transformers is installed by version; other packages belong in the extra requirements",
            ));
        };
        let rest = rest.trim_start();
        if rest.is_empty() {
            return Ok(Self::Newest);
        }
        match rest.strip_prefix("==").map(str::trim) {
            Some(version) if is_version(version) => Ok(Self::Release(version.to_owned())),
            Some(_) => Err(refuse("one full version follows `==`, such as 4.54.0")),
            None if rest.starts_with(['<', '>', '~', '!', '=']) => {
                Err(refuse("a range names no single version, and two runs could compare different ones"))
            }
            None => Err(refuse("a version follows `transformers` as `==4.54.0`")),
        }
    }
}

/// Parses the part after `git+`.
fn git(address: &str) -> Result<Source, &'static str> {
    let Some((scheme, rest)) = address.split_once("://") else {
        return Err("a git address has a scheme: git+https://, git+ssh:// or git+file://");
    };
    if !["https", "http", "ssh", "file"].contains(&scheme) {
        return Err("a git address is https, http, ssh or file");
    }
    if address.contains(char::is_whitespace) || address.contains('#') {
        return Err("a git address has no blanks and no fragment");
    }
    // An `@` before the first slash belongs to a user name (`ssh://git@host/…`); only a later one starts the
    // ref.
    let path_start = rest.find('/').unwrap_or(rest.len());
    let (path, reference) = match rest[path_start..].split_once('@') {
        Some((_, "")) => return Err("a branch, tag or commit follows `@`"),
        Some((path, reference)) => (path, Some(reference.to_owned())),
        None => (&rest[path_start..], None),
    };
    if path.trim_matches('/').is_empty() {
        return Err("a git address names a repository");
    }
    Ok(Source::Git { url: format!("{scheme}://{}{path}", &rest[..path_start]), reference })
}

/// Whether `text` is one concrete PEP 440 version rather than a pattern such as `4.*`.
fn is_version(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+' | '-' | '_' | '!'))
}

impl TryFrom<String> for Source {
    type Error = SourceError;

    fn try_from(requirement: String) -> Result<Self, SourceError> {
        requirement.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_round_trip_through_display() {
        let check = |text: &str, expect: Source| {
            let parsed: Source = text.parse().unwrap();
            assert_eq!(parsed, expect, "{text}");
            assert_eq!(parsed.to_string().parse::<Source>().unwrap(), expect);
        };
        let git = |url: &str, reference: Option<&str>| Source::Git {
            url: url.into(),
            reference: reference.map(Into::into),
        };
        check("transformers", Source::Newest);
        check(" transformers ", Source::Newest);
        check("transformers==4.54.0", Source::Release("4.54.0".into()));
        check("transformers == 5.0.0rc1", Source::Release("5.0.0rc1".into()));
        check("git+https://host/x@v4.1-fix/a", git("https://host/x", Some("v4.1-fix/a")));
        check("git+https://host/x.git", git("https://host/x.git", None));
        check("git+ssh://git@host/x@main", git("ssh://git@host/x", Some("main")));
        check("git+file:///a/b@main", git("file:///a/b", Some("main")));
        check("-e ../my transformers/", Source::Editable("../my transformers/".into()));
    }

    #[test]
    fn an_invalid_requirement_is_refused_with_a_reason() {
        let check = |text: &str, reason: &str| {
            let error = text.parse::<Source>().unwrap_err();
            assert!(error.to_string().contains(reason), "{text}: {error}");
            assert!(error.to_string().contains(text));
        };
        check("", "only transformers");
        check("torch==2.15.0", "only transformers");
        check("transformers>=4.54", "range");
        check("transformers~=4.54", "range");
        check("transformers===4.54.0", "one full version");
        check("transformers==4.*", "one full version");
        check("transformers==", "one full version");
        check("transformers-fork==1.0", "a version follows");
        check("transformers[torch]==4.54.0", "a version follows");
        check("transformers==4.54.0,<5", "one full version");
        check("-e", "followed by");
        check("-epath", "followed by");
        check("git+host/x", "scheme");
        check("git+ftp://host/x", "https, http, ssh or file");
        check("git+https://host/x@", "follows `@`");
        check("git+https://host", "names a repository");
        check("git+https://host/x@main#egg=transformers", "no fragment");
    }
}
