//! Queries and working trees of a git repository, through the `git` program.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bounds::limits::{LINE, PROGRAM_SECONDS};
use bounds::{lines as lines_of, shown};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::BisectError;
use crate::spec::machine::hex;

/// Held while working trees are added, moved or removed: `git worktree` reads the records of all working trees, and
/// fails on one that another thread's `git worktree add` has only partly written.
static WORKING_TREES: Mutex<()> = Mutex::new(());

/// A repository whose history is bisected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Repository {
    /// A folder inside the repository.
    folder: PathBuf,
    /// The folder or address that the user gave.
    name: String,
}

/// One commit, for display.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its full hash.
    pub hash: String,
    /// When it was written, ISO 8601.
    pub author_date: String,
    /// First line of its message.
    pub subject: String,
    /// The changed files, each as `M<tab>path`.
    pub files: Vec<String>,
}

impl Repository {
    /// The repository that contains `folder`.
    pub(crate) fn local(folder: &Path) -> Result<Self, BisectError> {
        let repository = Self { folder: folder.to_owned(), name: folder.display().to_string() };
        repository.run(&["rev-parse", "--git-dir"])?;
        Ok(repository)
    }

    /// Opens a folder, or clones an address into `cache` and fetches its updates. The clone holds commits and trees;
    /// git fetches file contents on demand.
    pub(crate) fn open(place: &str, cache: &Path) -> Result<Self, BisectError> {
        if Path::new(place).is_dir() {
            return Self::local(Path::new(place));
        }
        if !place.contains("://") && !place.contains('@') {
            return Err(BisectError::Question {
                message: format!("--repository {place} is no folder"),
                hint: "name a local clone, or an address such as https://github.com/huggingface/transformers"
                    .into(),
            });
        }
        let clones = cache.join("repositories");
        std::fs::create_dir_all(&clones).map_err(|error| failed("clone", &clones, &error.to_string()))?;
        let folder = clones.join(&hex(&Sha256::digest(place))[..16]);
        if folder.is_dir() {
            let known = Self { folder, name: place.to_owned() };
            known.run(&["fetch", "--quiet", "--tags", "--prune", "--force"])?;
            return Ok(known);
        }
        // Clones under a temporary name, so that an interrupted clone is never taken for a repository.
        let partial = folder.with_extension(format!("partial-{}", std::process::id()));
        let target = partial.to_string_lossy().into_owned();
        run(&clones, &["clone", "--quiet", "--mirror", "--filter=blob:none", "--", place, &target])?;
        std::fs::rename(&partial, &folder).map_err(|error| failed("clone", &folder, &error.to_string()))?;
        Ok(Self { folder, name: place.to_owned() })
    }

    /// The folder's path relative to the repository's top: empty, or `ports/llama/`.
    pub(crate) fn prefix(&self) -> Result<String, BisectError> {
        self.run(&["rev-parse", "--show-prefix"])
    }

    /// The address from which uv installs a commit.
    pub(crate) fn address(&self) -> Result<String, BisectError> {
        if self.name.contains("://") {
            return Ok(self.name.clone());
        }
        // For `git@host:owner/name`, the folder is tfcheck's own clone.
        if let Some((host, path)) = self.name.split_once(':').filter(|(host, _)| host.contains('@')) {
            return Ok(format!("ssh://{host}/{path}"));
        }
        let top = self.run(&["rev-parse", "--path-format=absolute", "--show-toplevel"])?;
        Ok(format!("file://{top}"))
    }

    /// The hash of a commit, tag or branch.
    pub(crate) fn commit(&self, revision: &str) -> Result<String, BisectError> {
        let unknown =
            || BisectError::UnknownCommit { revision: revision.to_owned(), repository: self.name.clone() };
        if revision.starts_with('-') {
            return Err(unknown());
        }
        match self.run(&["rev-parse", "--verify", "--quiet", &format!("{revision}^{{commit}}")]) {
            Err(BisectError::Git { .. }) => Err(unknown()),
            hash => hash,
        }
    }

    /// The commits from `good` to `bad` in order, both included, along first parents. If `good` is not an ancestor of
    /// `bad` (for example a tag on a release branch), their common ancestor is the second entry.
    pub(crate) fn between(&self, good: &str, bad: &str) -> Result<Vec<String>, BisectError> {
        let (from, to) = (self.commit(good)?, self.commit(bad)?);
        let sides = || (good.to_owned(), bad.to_owned());
        if from == to {
            let (good, bad) = sides();
            return Err(BisectError::Same { good, bad });
        }
        let base = match self.run(&["merge-base", &from, &to]) {
            Err(BisectError::Git { .. }) => {
                let (good, bad) = sides();
                return Err(BisectError::Unrelated { good, bad });
            }
            base => base?,
        };
        if base == to {
            let (good, bad) = sides();
            return Err(BisectError::Reversed { good, bad });
        }
        let mut commits = vec![from.clone()];
        if base != from {
            commits.push(base.clone());
        }
        let listed = self.run(&["rev-list", "--reverse", "--first-parent", &to, &format!("^{base}")])?;
        commits.extend(listed.lines().map(str::to_owned));
        Ok(commits)
    }

    /// A commit's date, subject and changed files.
    pub(crate) fn describe(&self, hash: &str) -> Result<Commit, BisectError> {
        let head = self.run(&["show", "--no-patch", "--format=%H%n%aI%n%s", hash])?;
        let files = self.run(&[
            "diff-tree",
            "--no-commit-id",
            "--name-status",
            "-r",
            "-m",
            "--first-parent",
            "--root",
            hash,
        ])?;
        let mut lines = head.lines();
        let mut line = || shown(lines.next().unwrap_or_default(), LINE.most).into_owned();
        Ok(Commit {
            hash: line(),
            author_date: line(),
            subject: line(),
            files: files.lines().map(|line| lines_of(line, LINE.most).into_owned()).collect(),
        })
    }

    /// First line of a commit's message.
    pub(crate) fn subject(&self, hash: &str) -> Result<String, BisectError> {
        let subject = self.run(&["show", "--no-patch", "--format=%s", hash])?;
        Ok(shown(&subject, LINE.most).into_owned())
    }

    /// The content of a file at a commit; `None` if the commit does not have it.
    pub(crate) fn file(&self, hash: &str, path: &str) -> Option<String> {
        self.run(&["show", &format!("{hash}:{path}")]).ok()
    }

    /// Whether the working copy has uncommitted changes to tracked files.
    pub(crate) fn is_dirty(&self) -> bool {
        self.run(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|text| !text.is_empty())
    }

    /// Checks out `hash` in a working tree at `folder`, which is added if it does not exist or git was stopped while it
    /// added it. Ignored files, such as build outputs, are kept.
    pub(crate) fn check_out(&self, hash: &str, folder: &Path) -> Result<(), BisectError> {
        let _turn = WORKING_TREES.lock().unwrap_or_else(PoisonError::into_inner);
        let path = folder.to_string_lossy();
        // In a folder without this link git would check out in the repository around it.
        let is_reused = folder.join(".git").is_file()
            && run(folder, &["checkout", "--quiet", "--force", "--detach", hash])
                .and_then(|_| run(folder, &["clean", "--quiet", "--force", "-d"]))
                .is_ok();
        if !is_reused {
            remove_folder(folder);
            // Twice, because git locks its record of a tree for as long as it adds it.
            self.run(&["worktree", "add", "--quiet", "--force", "--force", "--detach", &path, hash])?;
        }
        Ok(())
    }

    /// Removes a working tree that [`Repository::check_out`] added or began to add, and git's record of it.
    pub(crate) fn remove(&self, folder: &Path) -> Result<(), BisectError> {
        let _turn = WORKING_TREES.lock().unwrap_or_else(PoisonError::into_inner);
        // git refuses to remove a folder that it was stopped in before it was complete.
        remove_folder(folder);
        let path = folder.to_string_lossy();
        // Also after a request to stop.
        let output = reference::output_after_stop(
            &mut git(&self.folder, &["worktree", "remove", "--force", "--force", &path]),
            Duration::from_secs(PROGRAM_SECONDS.most),
        );
        answered(&self.folder, "worktree", output).map(drop)
    }

    fn run(&self, arguments: &[&str]) -> Result<String, BisectError> {
        run(&self.folder, arguments)
    }
}

/// A folder that cannot be removed is left to git, which names it.
fn remove_folder(folder: &Path) {
    drop(std::fs::remove_dir_all(folder));
}

/// Runs git in `folder` and returns its standard output without trailing white space.
fn run(folder: &Path, arguments: &[&str]) -> Result<String, BisectError> {
    // A clone may take as long as the network does; a request to stop ends it.
    answered(folder, arguments[0], reference::output(&mut git(folder, arguments), Duration::MAX))
}

fn git(folder: &Path, arguments: &[&str]) -> Command {
    let mut git = Command::new("git");
    git.args(arguments)
        .current_dir(folder)
        .env("GIT_TERMINAL_PROMPT", "0")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE");
    git
}

fn answered(
    folder: &Path,
    command: &str,
    output: std::io::Result<reference::Output>,
) -> Result<String, BisectError> {
    let output = match output {
        Ok(output) => output,
        Err(_) if !folder.is_dir() => return Err(failed(command, folder, "there is no such folder")),
        Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::TimedOut) => {
            return Err(failed(command, folder, &error.to_string()));
        }
        Err(error) => return Err(BisectError::NoGit { reason: error.to_string() }),
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = if said.trim().is_empty() { output.status.to_string() } else { said.trim().to_owned() };
        return Err(failed(command, folder, &said));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

fn failed(command: &str, folder: &Path, reason: &str) -> BisectError {
    BisectError::Git { command: command.to_owned(), folder: folder.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository() -> (tempfile::TempDir, Repository) {
        let folder = tempfile::tempdir().unwrap();
        run(folder.path(), &["init", "--quiet", "--initial-branch=main"]).unwrap();
        for (key, value) in [("user.name", "Test"), ("user.email", "test@example.org")] {
            run(folder.path(), &["config", key, value]).unwrap();
        }
        let repository = Repository::local(folder.path()).unwrap();
        (folder, repository)
    }

    fn commit(repository: &Repository, subject: &str) -> String {
        std::fs::write(repository.folder.join("file"), subject).unwrap();
        repository.run(&["add", "file"]).unwrap();
        repository.run(&["commit", "--quiet", "-m", subject]).unwrap();
        repository.commit("HEAD").unwrap()
    }

    #[test]
    fn commits_from_a_release_branch_to_the_next_release_include_the_common_ancestor() {
        let (_folder, repository) = repository();
        let one = commit(&repository, "one");
        let two = commit(&repository, "two");
        repository.run(&["checkout", "--quiet", "-b", "release"]).unwrap();
        let patch = commit(&repository, "patch");
        repository.run(&["tag", "v1.0.1"]).unwrap();
        repository.run(&["checkout", "--quiet", "main"]).unwrap();
        let three = commit(&repository, "three");
        let four = commit(&repository, "four");
        assert_eq!(repository.between(&one, &three).unwrap(), [&*one, &*two, &*three]);
        assert_eq!(repository.between("v1.0.1", "main").unwrap(), [&*patch, &*two, &*three, &*four]);
        let described = repository.describe(&four).unwrap();
        assert_eq!(
            (described.subject.as_str(), described.files.as_slice()),
            ("four", &["M\tfile".to_owned()][..])
        );
        assert_eq!(repository.describe(&one).unwrap().files, ["A\tfile"]);
    }

    #[test]
    fn an_invalid_commit_range_is_refused() {
        let (_folder, repository) = repository();
        let one = commit(&repository, "one");
        let two = commit(&repository, "two");
        assert!(matches!(repository.between(&two, &one), Err(BisectError::Reversed { .. })));
        assert!(matches!(repository.between(&one, &one), Err(BisectError::Same { .. })));
        assert!(matches!(repository.between(&one, "v9"), Err(BisectError::UnknownCommit { .. })));
        assert!(matches!(repository.between("--all", &one), Err(BisectError::UnknownCommit { .. })));
        repository.run(&["checkout", "--quiet", "--orphan", "other"]).unwrap();
        let other = commit(&repository, "other");
        assert!(matches!(repository.between(&other, &two), Err(BisectError::Unrelated { .. })));
        let nowhere = tempfile::tempdir().unwrap();
        assert!(matches!(Repository::local(nowhere.path()), Err(BisectError::Git { .. })));
    }

    #[test]
    fn working_trees_can_be_added_and_removed_concurrently() {
        let (_folder, repository) = repository();
        let one = commit(&repository, "one");
        let trees = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let (repository, one, tree) = (&repository, &one, trees.path().join(number.to_string()));
                scope.spawn(move || {
                    for _ in 0..10 {
                        repository.check_out(one, &tree).unwrap();
                        repository.remove(&tree).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn check_out_replaces_files_and_keeps_ignored_ones() {
        let (_folder, repository) = repository();
        std::fs::write(repository.folder.join(".gitignore"), "built\n").unwrap();
        repository.run(&["add", ".gitignore"]).unwrap();
        let one = commit(&repository, "one");
        let two = commit(&repository, "two");
        let trees = tempfile::tempdir().unwrap();
        let tree = trees.path().join("tree");
        repository.check_out(&one, &tree).unwrap();
        std::fs::write(tree.join("built"), "output").unwrap();
        std::fs::write(tree.join("stray"), "litter").unwrap();
        std::fs::write(tree.join("file"), "changed").unwrap();
        repository.check_out(&two, &tree).unwrap();
        assert_eq!(std::fs::read_to_string(tree.join("file")).unwrap(), "two");
        assert!(tree.join("built").exists() && !tree.join("stray").exists());
        repository.remove(&tree).unwrap();
        assert!(!tree.exists() && !repository.run(&["worktree", "list"]).unwrap().contains("tree"));
    }

    /// What git leaves when it is stopped while it adds a working tree: a locked record, and a folder that is missing, empty,
    /// or without a valid link to the record.
    #[test]
    fn a_working_tree_that_git_was_stopped_in_is_added_again_and_removed() {
        for (is_folder, link) in [(false, None), (true, None), (true, Some(""))] {
            let (_folder, repository) = repository();
            let one = commit(&repository, "one");
            let trees = tempfile::tempdir_in(&repository.folder).unwrap();
            let tree = trees.path().join("tree");
            let stopped = || {
                repository.run(&["worktree", "add", "--detach", &tree.to_string_lossy(), &one]).unwrap();
                std::fs::write(repository.folder.join(".git/worktrees/tree/locked"), "initializing").unwrap();
                std::fs::remove_dir_all(&tree).unwrap();
                if is_folder {
                    std::fs::create_dir(&tree).unwrap();
                }
                if let Some(link) = link {
                    std::fs::write(tree.join(".git"), link).unwrap();
                }
            };
            let listed = || repository.run(&["worktree", "list"]).unwrap().contains("tree");
            stopped();
            repository.remove(&tree).unwrap();
            assert!(!tree.exists() && !listed());
            stopped();
            repository.check_out(&one, &tree).unwrap();
            assert_eq!(std::fs::read_to_string(tree.join("file")).unwrap(), "one");
            repository.remove(&tree).unwrap();
            assert!(!tree.exists() && !listed());
        }
    }
}
