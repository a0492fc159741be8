//! Revisions of a native port: each one is checked out into a git worktree and built there.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::hunt::bisect::error::BisectError;
use crate::hunt::bisect::git::Repository;
use crate::hunt::bisect::record::PortQuestion;
use crate::spec::config;

/// Lines of a build's output that an error shows, from its end.
const TAIL: usize = 4;

/// The port under search. Its worktrees are reused, so that a build is incremental.
pub(super) struct Port {
    pub(super) repository: Repository,
    /// Path below the repository's top in which the port is built and started.
    prefix: String,
    program: Vec<String>,
    build: Option<String>,
    trees: PathBuf,
    logs: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    trees: Vec<Tree>,
    /// Commits that are needed for this or the next steps.
    wanted: BTreeSet<String>,
}

struct Tree {
    folder: PathBuf,
    commit: String,
    /// `None` during the build.
    built: Option<Result<(), Unready>>,
}

/// Why a commit is not ready.
#[derive(Clone, Debug)]
pub(super) enum Unready {
    /// It does not build.
    Fails(String),
    /// It was not tried: git, the shell or the disk failed.
    Untried(String),
}

impl Port {
    /// The port of a question; worktrees go below `cache`, build logs below `folder`.
    pub(super) fn new(
        question: &PortQuestion,
        config: &config::Config,
        cache: &Path,
        folder: &Path,
    ) -> Result<Self, BisectError> {
        let command = config.commands.iter().find(|command| command.name == question.command);
        let command = command.ok_or_else(|| BisectError::Question {
            message: format!("the config has no command `{}`", question.command),
            hint: "list the port under [[commands]], as `program` relative to --command-repository".into(),
        })?;
        let repository = Repository::local(&question.repository)?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            prefix: repository.prefix()?,
            repository,
            program: command.program.clone(),
            build: question.build.clone(),
            trees: std::path::absolute(cache)
                .unwrap_or_else(|_| cache.to_owned())
                .join("worktrees")
                .join(name),
            logs: folder.join("builds"),
            state: Mutex::default(),
        })
    }

    /// Declares which commits are needed for this and the next steps; worktrees of all others may be reused.
    pub(super) fn want(&self, commits: BTreeSet<String>) {
        self.state().wanted = commits;
    }

    /// Checks out and builds a commit unless that was done.
    pub(super) fn prepare(&self, commit: &str) -> Result<(), Unready> {
        let (index, folder) = {
            let mut state = self.state();
            if let Some(tree) = state.trees.iter().find(|tree| tree.commit == commit) {
                return tree
                    .built
                    .clone()
                    .unwrap_or_else(|| Err(Unready::Untried("it is being built".to_owned())));
            }
            let is_free = |tree: &Tree| tree.built.is_some() && !state.wanted.contains(&tree.commit);
            let index = state.trees.iter().position(is_free).unwrap_or(state.trees.len());
            let folder = self.trees.join(index.to_string());
            let tree = Tree { folder: folder.clone(), commit: commit.to_owned(), built: None };
            if index == state.trees.len() {
                state.trees.push(tree);
            } else {
                state.trees[index] = tree;
            }
            (index, folder)
        };
        let built = self.lay_out_and_build(commit, &folder);
        self.state().trees[index].built = Some(built.clone());
        built
    }

    /// The command of a built commit.
    pub(super) fn command(&self, name: &str, commit: &str) -> Option<config::Command> {
        let state = self.state();
        let tree = state.trees.iter().find(|tree| tree.commit == commit)?;
        let folder = tree.folder.join(&self.prefix).to_string_lossy().into_owned();
        // A run starts all its commands in one folder, but each commit needs its own.
        let mut program: Vec<String> = ["sh", "-c", "cd \"$0\" && exec \"$@\""].map(str::to_owned).to_vec();
        program.push(folder);
        program.extend(self.program.iter().cloned());
        Some(config::Command { name: name.to_owned(), program, float64: false })
    }

    fn lay_out_and_build(&self, commit: &str, folder: &Path) -> Result<(), Unready> {
        if let Some(parent) = folder.parent() {
            std::fs::create_dir_all(parent)
                .map_err(|error| Unready::Untried(format!("{}: {error}", parent.display())))?;
        }
        self.repository.check_out(commit, folder).map_err(|error| Unready::Untried(error.to_string()))?;
        let Some(build) = &self.build else { return Ok(()) };
        let place = folder.join(&self.prefix);
        let mut shell = Command::new("sh");
        let output = reference::output(shell.args(["-c", build]).current_dir(&place), Duration::MAX);
        let output = output.map_err(|error| {
            Unready::Untried(match error.kind() {
                ErrorKind::Interrupted => format!("`{build}` was interrupted"),
                _ => format!("`{build}` cannot be started: {error}"),
            })
        })?;
        let said = [output.stdout, output.stderr].concat();
        // A log that cannot be written is ignored: the error message contains its last lines.
        drop(std::fs::create_dir_all(&self.logs));
        drop(std::fs::write(self.logs.join(format!("{commit}.log")), &said));
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said).into_owned();
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join(" / ");
        Err(Unready::Fails(format!("`{build}` failed ({}): {tail}", output.status)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Port {
    /// Removes the worktrees; those that cannot be removed are left to `git worktree prune`.
    fn drop(&mut self) {
        for tree in &self.state().trees {
            drop(self.repository.remove(&tree.folder));
        }
        drop(std::fs::remove_dir_all(&self.trees));
    }
}
