//! The revisions that are searched (releases, commits of transformers, or commits of a port) and how one is
//! prepared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use miette::Result;
use reference::{Environment, Source};

use super::port::Port;
use crate::commands::run;
use crate::hunt::bisect::error::BisectError;
use crate::hunt::bisect::git::{Commit, Repository};
use crate::hunt::bisect::index::{self, ReleaseKinds};
use crate::hunt::bisect::record::{Over, Question, Revision};
use crate::spec::config::{Config, PATIENCE_S, Version};
use crate::spec::machine;
use crate::spec::plan::Plan;

/// Hexadecimal digits of an abbreviated commit; git uses 12 for a repository of transformers' size.
const SHORT: usize = 12;
/// Commits listed at most for a range of candidates.
const MOST_COMMITS: usize = 20;

/// What a phase searches.
pub(super) enum Subject {
    Releases,
    Commits { repository: Repository, address: String },
    Port(Box<Port>),
}

impl Subject {
    /// The subject of a phase.
    pub(super) fn new(
        over: Over,
        question: &Question,
        cache: &Path,
        folder: &Path,
    ) -> Result<Self, BisectError> {
        Ok(match (over, &question.repository, &question.port) {
            (Over::Commits, Some(place), _) => {
                let repository = Repository::open(place, cache)?;
                Self::Commits { address: repository.address()?, repository }
            }
            (Over::Port, _, Some(port)) => {
                Self::Port(Box::new(Port::new(port, &question.config, cache, folder)?))
            }
            _ => Self::Releases,
        })
    }

    /// The revisions between two sides, and notes for the user.
    pub(super) fn revisions(
        &self,
        question: &Question,
        good: &str,
        bad: &str,
    ) -> Result<(Vec<Revision>, Vec<String>), BisectError> {
        let repository = match self {
            Self::Releases => {
                let kinds = ReleaseKinds { pre: question.pre, yanked: question.yanked };
                let named = |id: String| Revision { name: id.clone(), id };
                let listed = index::between(&index::releases()?, good, bad, kinds)?;
                return Ok((listed.into_iter().map(named).collect(), Vec::new()));
            }
            Self::Commits { repository, .. } => repository,
            Self::Port(port) => &port.repository,
        };
        let named = |id: String| Revision { name: id.chars().take(SHORT).collect(), id };
        let listed = repository.between(good, bad)?;
        let mut notes = Vec::new();
        if repository.is_dirty() {
            notes.push("the working copy has uncommitted changes; they are not tested".to_owned());
        }
        Ok((listed.into_iter().map(named).collect(), notes))
    }

    /// The question's config with these revisions as its only variants.
    pub(super) fn config(&self, question: &Question, revisions: &[&Revision]) -> Config {
        let mut config = question.config.clone();
        config.versions.clear();
        config.commands.clear();
        config.candle.modes.clear();
        config.candle.upstream = false;
        for revision in revisions {
            match self {
                Self::Releases => config.versions.push(Version::release(&revision.id)),
                Self::Commits { address, .. } => {
                    let source = Source::Git { url: address.clone(), reference: Some(revision.id.clone()) };
                    let release = Version::release(&revision.name);
                    config.versions.push(Version { source: Some(source), ..release });
                }
                Self::Port(port) => config.commands.extend(port.command(&revision.name, &revision.id)),
            }
        }
        let run = &mut config.run;
        run.baseline = None;
        run.against = None;
        run.fail_on.clear();
        run.trace = false;
        run.noise = false;
        run.decode = 0;
        if question.test.is_on_times() {
            run.rounds = if run.rounds == 0 { Config::default().run.rounds } else { run.rounds };
            run.patience_s.get_or_insert(PATIENCE_S);
        } else {
            run.rounds = 0;
        }
        config
    }

    /// Prepares a revision that may be tested next, unless it is ready. A failure is left to its test, which reports it.
    pub(super) fn prepare_ahead(&self, question: &Question, revision: &Revision, cache: &Path) {
        match self {
            Self::Port(port) => drop(port.prepare(&revision.id)),
            _ => drop(self.environment(question, revision, cache)),
        }
    }

    /// Declares which revisions are needed for this and the next steps.
    pub(super) fn want<'a>(&self, revisions: impl Iterator<Item = &'a Revision>) {
        if let Self::Port(port) = self {
            port.want(revisions.map(|revision| revision.id.clone()).collect::<BTreeSet<_>>());
        }
    }

    /// The environment of a transformers revision.
    fn environment(
        &self,
        question: &Question,
        revision: &Revision,
        cache: &Path,
    ) -> Result<Environment, String> {
        let plan = Plan::new(&self.config(question, &[revision]), machine::auto_device())
            .map_err(|error| error.to_string())?;
        let environment = plan.environments.first().ok_or("it has no environment")?;
        reference::prepare(&run::specification(environment), cache, &|_| ())
            .map_err(|error| format!("{error} ({})", error.hint()))
    }

    /// The packages whose versions differ between the lock files of two revisions.
    pub(super) fn packages(
        &self,
        question: &Question,
        sides: [&Revision; 2],
        cache: &Path,
    ) -> BTreeMap<String, [Option<String>; 2]> {
        let lock = |revision: &Revision| match self {
            Self::Port(port) => port.repository.file(&revision.id, "Cargo.lock"),
            _ => self.environment(question, revision, cache).ok().map(|environment| environment.lock),
        };
        let [before, after] = sides.map(|revision| lock(revision).map(|text| locked(&text)));
        let (Some(before), Some(after)) = (before, after) else { return BTreeMap::new() };
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        names
            .into_iter()
            .map(|name| (name.clone(), [before.get(name).cloned(), after.get(name).cloned()]))
            .filter(|(_, [before, after])| before != after)
            .collect()
    }

    /// The commits of the revisions; empty for releases.
    pub(super) fn commits(&self, revisions: &[Revision]) -> Result<Vec<Commit>, BisectError> {
        let repository = match self {
            Self::Releases => return Ok(Vec::new()),
            Self::Commits { repository, .. } => repository,
            Self::Port(port) => &port.repository,
        };
        revisions.iter().take(MOST_COMMITS).map(|revision| repository.describe(&revision.id)).collect()
    }

    /// The revision's title: `4.41.0`, or `4f3a… subject`.
    pub(super) fn title(&self, revision: &Revision) -> String {
        let repository = match self {
            Self::Releases => return revision.name.clone(),
            Self::Commits { repository, .. } => repository,
            Self::Port(port) => &port.repository,
        };
        repository
            .subject(&revision.id)
            .map_or_else(|_| revision.name.clone(), |subject| format!("{} {subject}", revision.name))
    }
}

/// Package to version of a `uv.lock` or `Cargo.lock`; all versions of a package that is locked in several.
fn locked(text: &str) -> BTreeMap<String, String> {
    let document: toml::Table = text.parse().unwrap_or_default();
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    for package in document.get("package").and_then(toml::Value::as_array).into_iter().flatten() {
        let field = |key: &str| package.get(key).and_then(toml::Value::as_str);
        let Some(name) = field("name") else { continue };
        let source = package.get("source").and_then(|source| source.get("git")).and_then(toml::Value::as_str);
        let commit = source.and_then(|source| source.rsplit_once('#')).map(|(_, commit)| commit);
        let version = commit.or(field("version")).unwrap_or("?");
        let all = found.entry(name.to_owned()).or_default();
        if !all.is_empty() {
            all.push_str(", ");
        }
        all.push_str(version);
    }
    // The project that tfcheck generates for an environment.
    found.remove("tfcheck-environment");
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_from_uv_lock_and_cargo_lock() {
        let text = "[[package]]\nname = \"tfcheck-environment\"\nversion = \"0\"\n\
            [[package]]\nname = \"numpy\"\nversion = \"2.1.0\"\nsource = { registry = \"https://pypi.org/simple\" }\n\
            [[package]]\nname = \"transformers\"\nversion = \"4.0.0\"\nsource = { git = \"file:///x?rev=abc#abc\" }\n\
            [[package]]\nname = \"half\"\nversion = \"1.0.0\"\n[[package]]\nname = \"half\"\nversion = \"2.0.0\"\n";
        let found = locked(text);
        let expected = [("half", "1.0.0, 2.0.0"), ("numpy", "2.1.0"), ("transformers", "abc")];
        let expected = expected.map(|(name, version)| (name.to_owned(), version.to_owned()));
        assert_eq!(found, BTreeMap::from(expected));
        assert!(locked("not a lock").is_empty());
    }
}
