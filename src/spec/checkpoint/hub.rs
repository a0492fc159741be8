//! Models on the hub: the revision is pinned to a commit, and only the needed files are downloaded, into
//! huggingface_hub's cache.

mod cache;
mod client;
mod remote;

use std::fmt;
use std::path::{Path, PathBuf};

use bounds::limits::{LINE, TOKEN_BYTES};
use bounds::shown;

use super::preflight::{self, INDEX, SINGLE};
use super::{Error, Progress, Settings};
use cache::Repo;
use client::Client;
use remote::{Answer, Remote};

/// The hub's settings, as `huggingface_hub` reads them from the environment.
#[derive(Clone)]
pub struct Environment {
    /// `HF_HUB_CACHE`, or `hub` under `HF_HOME`.
    pub cache: PathBuf,
    /// `HF_ENDPOINT`.
    pub endpoint: String,
    /// `HF_TOKEN`, or the content of `token` under `HF_HOME`. It is never shown and never passed to a worker.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`.
    pub offline: bool,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish()
    }
}

impl Environment {
    /// Reads `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    /// Reads the same variables from any source; defaults as in huggingface_hub's `constants.py`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let home = variable("HF_HOME").map_or_else(
            || {
                let caches = variable("XDG_CACHE_HOME").map(PathBuf::from);
                let user = || Path::new(&variable("HOME").unwrap_or_default()).join(".cache");
                caches.unwrap_or_else(user).join("huggingface")
            },
            PathBuf::from,
        );
        let token_file = variable("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = variable("HF_TOKEN").or_else(|| bounds::file::read_text(&token_file, TOKEN_BYTES).ok());
        let is_true = |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Self {
            cache: variable("HF_HUB_CACHE")
                .or_else(|| variable("HUGGINGFACE_HUB_CACHE"))
                .map_or_else(|| home.join("hub"), PathBuf::from),
            endpoint: variable("HF_ENDPOINT").map_or_else(
                || "https://huggingface.co".to_owned(),
                |endpoint| endpoint.trim_end_matches('/').to_owned(),
            ),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE").is_some_and(is_true),
        }
    }
}

/// What tfcheck makes of an answer's headers, for the fuzzer: the paths in the cache `folder` that the ETag and the stated
/// commit name, and where a redirect leads, with whether the token goes there too.
pub(crate) fn of_headers(
    folder: &Path,
    from: &ureq::http::Uri,
    answer: &ureq::http::Response<()>,
) -> (Vec<PathBuf>, Option<(String, bool)>) {
    let repo = Repo::new(folder, "owner/name");
    let head = client::head(answer, client::etag_of(answer.headers()));
    let mut paths: Vec<PathBuf> =
        head.etag.iter().filter_map(|etag| repo.blob(etag, "config.json").ok()).collect();
    if cache::is_commit(&head.error_message) {
        paths.push(repo.snapshot(&head.error_message));
    }
    paths.extend(repo.reference(&head.error_message));
    let next = client::target(from, answer).ok();
    (paths, next.map(|next| (next.to_string(), client::is_same_origin(&next, from))))
}

/// A model's files at one commit.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) folder: PathBuf,
    pub(crate) commit: String,
    pub(crate) notes: Vec<String>,
}

/// Finds `id` at `revision` in the cache, or downloads it.
pub(crate) fn fetch(
    id: &str,
    revision: Option<&str>,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<Snapshot, Error> {
    let hub = &settings.hub;
    let revision = revision.unwrap_or("main");
    let repo = Repo::new(&hub.cache, id);
    let note = |commit: &str| format!("{id} at {revision}, commit {commit}");
    if hub.offline {
        let (folder, commit) = cached(&repo, revision).ok_or_else(|| Error::HubOffline {
            id: id.to_owned(),
            revision: revision.to_owned(),
            cache: hub.cache.clone(),
        })?;
        let notes =
            vec![note(&commit), "HF_HUB_OFFLINE is set: the newest commit is not looked up".to_owned()];
        return Ok(Snapshot { folder, commit, notes });
    }
    let client = Client::new(&hub.endpoint, hub.token.as_deref())
        .map_err(|failure| Error::HubSetting { reason: failure.to_string() })?;
    let remote = Remote { client, repo, id, settings };
    let info = match remote.ask(revision)? {
        Answer::Info(info) => info,
        Answer::Unreachable(reason) => {
            // As in huggingface_hub, a cached copy is used if the hub cannot be reached.
            let Some((folder, commit)) = cached(&remote.repo, revision) else {
                return Err(unreachable(id, hub, &reason));
            };
            let notes = vec![
                note(&commit),
                format!("{} cannot be reached ({reason}); the cached commit is used", hub.endpoint),
            ];
            return Ok(Snapshot { folder, commit, notes });
        }
    };
    let folder = remote.download(&info, progress)?;
    remote.repo.keep_reference(revision, &info.sha).map_err(Error::io("write the refs of", &folder))?;
    Ok(Snapshot { folder, notes: vec![note(&info.sha)], commit: info.sha })
}

/// Refuses a cached file whose name is a SHA-256 other than `digest`, that of its content.
pub(crate) fn check_blob(path: &Path, digest: &str) -> Result<(), Error> {
    let blob = path.canonicalize().map_err(Error::io("read", path))?;
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    // The ETag of a large file is its SHA-256; that of a small file is git's SHA-1 with 40 digits.
    if name.len() == 64 && name.chars().all(|c| c.is_ascii_hexdigit()) && name != digest {
        return Err(Error::WrongDigest { expected: name.into_owned(), path: blob, found: digest.to_owned() });
    }
    Ok(())
}

fn refused(id: &str, hub: &Environment, reason: String) -> Error {
    let help = if hub.token.is_some() {
        format!(
            "accept the model's conditions at {}/{id} with the account of HF_TOKEN, or check that the token is valid",
            hub.endpoint
        )
    } else {
        format!(
            "the model is gated, private or absent: accept its conditions at {}/{id} and set HF_TOKEN",
            hub.endpoint
        )
    };
    Error::HubRefused { id: id.to_owned(), endpoint: hub.endpoint.clone(), reason, help }
}

fn unreachable(id: &str, hub: &Environment, reason: &str) -> Error {
    let reason = shown(reason, LINE.most).into_owned();
    Error::HubUnreachable { id: id.to_owned(), endpoint: hub.endpoint.clone(), reason }
}

/// The folder and commit of a revision if the cache has its config and all its weights.
fn cached(repo: &Repo, revision: &str) -> Option<(PathBuf, String)> {
    let commit = repo.commit_of(revision)?;
    let folder = repo.snapshot(&commit);
    if !folder.join("config.json").exists() {
        return None;
    }
    let index = folder.join(INDEX);
    let complete = folder.join(SINGLE).exists() || {
        let shards = preflight::shards_of(&index, &preflight::read_object(&index).ok()?).ok()?;
        shards.keys().all(|shard| folder.join(shard).exists())
    };
    complete.then_some((folder, commit))
}
