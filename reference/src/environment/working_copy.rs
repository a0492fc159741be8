//! The current content of an editable source: git HEAD and a digest of all uncommitted changes.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use bounds::limits::INPUTS_BYTES;

use crate::digest::digest;

/// Suffix of the folder that setuptools writes next to an editable package; it is not a change of the
/// package.
const LEFT_BY_INSTALLING: &str = ".egg-info";

/// Identifies the content of `folder`: `<HEAD>`, or `<HEAD>+<digest of the uncommitted changes>`.
pub(super) fn state(folder: &Path) -> String {
    // A repository that contains the folder may ignore it and then reports none of its changes.
    let is_top =
        git(folder, &["rev-parse", "--show-prefix"]).is_some_and(|prefix| prefix.trim_ascii().is_empty());
    let head = if is_top { git(folder, &["rev-parse", "HEAD"]) } else { None };
    let Some(head) = head else {
        return format!("files:{}", &files(folder)[..16]);
    };
    let head = String::from_utf8_lossy(&head).trim().to_owned();
    let difference = git(folder, &["diff", "HEAD", "--binary", "--no-ext-diff"]).unwrap_or_default();
    let left = format!("--exclude=*{LEFT_BY_INSTALLING}");
    let others = ["ls-files", "--others", "--exclude-standard", "--exclude=__pycache__", &left, "-z"];
    let untracked = git(folder, &others).unwrap_or_default();
    if difference.is_empty() && untracked.is_empty() {
        return head;
    }
    let mut parts = vec![difference];
    for name in untracked.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let path = folder.join(String::from_utf8_lossy(name).as_ref());
        parts.push(name.to_owned());
        // A link counts as what it says, as in git; what it names may be a device.
        let link = fs::read_link(&path).map(|link| link.into_os_string().into_encoded_bytes());
        parts.push(link.or_else(|_| bounds::file::read(&path, INPUTS_BYTES)).unwrap_or_default());
    }
    let dirty = digest(parts.iter().map(Vec::as_slice));
    format!("{head}+{}", &dirty[..16])
}

fn git(folder: &Path, arguments: &[&str]) -> Option<Vec<u8>> {
    let output =
        Command::new("git").arg("-C").arg(folder).args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then_some(output.stdout)
}

/// Digest of the names, sizes and modification times of the files in a folder that is not a git worktree.
fn files(folder: &Path) -> String {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let text = name.to_string_lossy();
            if text == "__pycache__" || text.starts_with('.') || text.ends_with(LEFT_BY_INSTALLING) {
                continue;
            }
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => found.push(format!(
                    "{} {} {:?}",
                    entry.path().display(),
                    metadata.len(),
                    metadata.modified().ok()
                )),
                Err(_) => {}
            }
        }
    }
    found.sort();
    digest(found.iter().map(String::as_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_uncommitted_change_changes_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let run = |arguments: &[&str]| {
            git(folder.path(), arguments).expect("git is part of the test machine");
        };
        fs::write(folder.path().join("a.py"), "a = 1\n").unwrap();
        run(&["init", "-q"]);
        run(&["add", "."]);
        let commit = ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "a"];
        run(&commit);
        let clean = state(folder.path());
        assert_eq!(clean.len(), 40, "{clean}");
        fs::write(folder.path().join("a.py"), "a = 2\n").unwrap();
        let modified = state(folder.path());
        assert!(modified.starts_with(&format!("{clean}+")), "{modified}");
        fs::write(folder.path().join("b.py"), "").unwrap();
        let added = state(folder.path());
        assert_ne!(added, modified);
        fs::write(folder.path().join("b.py"), "b = 1\n").unwrap();
        assert_ne!(state(folder.path()), added);
    }

    #[test]
    fn a_folder_without_git_is_identified_by_its_files() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("ignored");
        fs::create_dir(&folder).unwrap();
        // A parent folder that is a git worktree must not determine the folder's state.
        fs::write(parent.path().join(".gitignore"), "ignored\n").unwrap();
        for arguments in [
            &["init", "-q"][..],
            &["add", "."],
            &["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "a"],
        ] {
            git(parent.path(), arguments).expect("git is part of the test machine");
        }
        let before = state(&folder);
        assert!(before.starts_with("files:"), "{before}");
        fs::create_dir(folder.join("a.egg-info")).unwrap();
        fs::write(folder.join("a.egg-info/PKG-INFO"), "").unwrap();
        assert_eq!(state(&folder), before);
        fs::write(folder.join("a.py"), "a = 1\n").unwrap();
        assert_ne!(state(&folder), before);
    }
}
