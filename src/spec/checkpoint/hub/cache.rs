//! huggingface_hub's cache: `models--owner--name` with `blobs`, `snapshots/<commit>` and `refs`.
//!
//! Only names that are checked here become paths: a model's id by the hub's rules, a commit of letters and digits, and a
//! blob named by an ETag that consists of letters and digits, else by the ETag's digest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bounds::limits::LINE;
use sha2::{Digest, Sha256};

use crate::spec::atomic;
use crate::spec::machine::hex;

/// The folder of one model in the cache.
#[derive(Clone, Debug)]
pub(super) struct Repo {
    folder: PathBuf,
}

impl Repo {
    /// `id` follows the hub's rules, which `Source` checks: no `..`, at most one `/`.
    pub(super) fn new(cache: &Path, id: &str) -> Self {
        Self { folder: cache.join(format!("models--{}", id.replace('/', "--"))) }
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit that a revision's name referred to when it was last looked up; a commit refers to itself.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        let named = self.reference(revision).and_then(|path| bounds::file::read_text(&path, LINE).ok());
        let commit = named.map_or_else(|| revision.to_owned(), |text| text.trim().to_owned());
        is_commit(&commit).then_some(commit)
    }

    /// Notes that a revision's name refers to a commit, so that it can be resolved offline.
    pub(super) fn keep_reference(&self, revision: &str, commit: &str) -> io::Result<()> {
        let Some(path) = self.reference(revision) else { return Ok(()) };
        fs::create_dir_all(path.parent().unwrap_or(&path))?;
        atomic::write(&path, commit.as_bytes())
    }

    /// `refs/<revision>`; `None` for a name that would lead out of the folder.
    pub(super) fn reference(&self, revision: &str) -> Option<PathBuf> {
        let is_plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        revision.split('/').all(is_plain).then(|| self.folder.join("refs").join(revision))
    }

    /// The blob of a file's ETag, whose folder exists then.
    pub(super) fn blob(&self, etag: &str, file: &str) -> io::Result<PathBuf> {
        let blobs = self.folder.join("blobs");
        fs::create_dir_all(&blobs)?;
        Ok(blobs.join(blob_name(etag, file)))
    }

    /// Gives a blob its file's name in a commit's folder.
    #[expect(clippy::unused_self, reason = "the link is relative to the folder of this model")]
    pub(super) fn link(&self, blob: &Path, target: &Path) -> io::Result<()> {
        fs::create_dir_all(target.parent().unwrap_or(target))?;
        let name = blob.file_name().unwrap_or_default();
        let temporary = atomic::temporary(target);
        let is_nested =
            target.parent().and_then(Path::file_name).is_none_or(|name| !is_commit(&name.to_string_lossy()));
        let blobs = if is_nested { "../../../blobs" } else { "../../blobs" };
        // Where links do not exist the file itself goes there.
        std::os::unix::fs::symlink(Path::new(blobs).join(name), &temporary)
            .or_else(|_| fs::copy(blob, &temporary).map(drop))?;
        fs::rename(&temporary, target)
    }
}

/// Whether a text is a commit's hash.
pub(super) fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The file name of an ETag: itself if it is a digest, otherwise its own digest, with the file's name, under another prefix.
fn blob_name(etag: &str, file: &str) -> String {
    if (1..=128).contains(&etag.len()) && etag.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        etag.to_owned()
    } else {
        format!("etag-{}", hex(&Sha256::digest(format!("{etag}\n{file}"))))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]
mod tests {
    use super::*;

    #[test]
    fn no_header_and_no_revision_names_a_path_outside() {
        for etag in ["../../x", "/etc/passwd", "..", ".", "a/b", "a\0b", &"a".repeat(5000)] {
            let name = blob_name(etag, "config.json");
            assert!(name.starts_with("etag-") && name.len() == 69, "{etag}: {name}");
        }
        assert_eq!(blob_name("0123abcd", "config.json"), "0123abcd");
        for commit in ["../../../evil", "", "main", &"a".repeat(65), "0123456/"] {
            assert!(!is_commit(commit), "{commit}");
        }
        let repo = Repo::new(Path::new("cache"), "owner/name");
        for revision in ["../x", "a/../../x", "/etc", "a//b", ""] {
            assert_eq!(repo.reference(revision), None, "{revision}");
        }
        assert!(repo.reference("refs/pr/1").unwrap().ends_with("models--owner--name/refs/refs/pr/1"));
    }
}
