//! Models on the hub: the revision is pinned to a commit, and only the needed files are downloaded, into
//! huggingface_hub's cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::preflight::{self, INDEX, SINGLE, TOKENIZER_FILES};
use super::{Error, Progress, Settings, Step};

/// Pauses between the attempts to download a file.
const WAITS: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3)];

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
        let token = variable("HF_TOKEN").or_else(|| std::fs::read_to_string(token_file).ok());
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

/// A model's files at one commit.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) folder: PathBuf,
    pub(crate) commit: String,
    pub(crate) notes: Vec<String>,
}

/// The hub's information about a revision, or why the hub cannot be reached.
enum Answer {
    Info(RepoInfo),
    Unreachable(String),
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
    let cache = Cache::new(hub.cache.clone());
    let note = |commit: &str| format!("{id} at {revision}, commit {commit}");
    if hub.offline {
        let (folder, commit) = cached(&cache, id, revision).ok_or_else(|| Error::HubOffline {
            id: id.to_owned(),
            revision: revision.to_owned(),
            cache: hub.cache.clone(),
        })?;
        let notes =
            vec![note(&commit), "HF_HUB_OFFLINE is set: the newest commit is not looked up".to_owned()];
        return Ok(Snapshot { folder, commit, notes });
    }
    let api = api(&cache, hub).map_err(|error| unreachable(id, hub, error.to_string()))?;
    let info = match ask(&api, id, revision, hub)? {
        Answer::Info(info) => info,
        Answer::Unreachable(reason) => {
            // As in huggingface_hub, a cached copy is used if the hub cannot be reached.
            let Some((folder, commit)) = cached(&cache, id, revision) else {
                return Err(unreachable(id, hub, reason));
            };
            let notes = vec![
                note(&commit),
                format!("{} cannot be reached ({reason}); the cached commit is used", hub.endpoint),
            ];
            return Ok(Snapshot { folder, commit, notes });
        }
    };
    let commit = info.sha.clone();
    let folder = download(&api, &cache, id, &info, settings, progress)?;
    // The ref lets this revision's name be resolved offline.
    let named = cache.repo(Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned()));
    named.create_ref(&commit).map_err(Error::io("write the refs of", &folder))?;
    Ok(Snapshot { folder, notes: vec![note(&commit)], commit })
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

fn api(cache: &Cache, hub: &Environment) -> Result<Api, ApiError> {
    ApiBuilder::from_cache(cache.clone())
        .with_endpoint(hub.endpoint.clone())
        .with_token(hub.token.clone())
        .with_progress(false)
        .with_user_agent("tfcheck", env!("CARGO_PKG_VERSION"))
        .build()
}

/// Requests the commit and the file names of a revision.
fn ask(api: &Api, id: &str, revision: &str, hub: &Environment) -> Result<Answer, Error> {
    let repo = api.repo(Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned()));
    // hf-hub's own `info` drops the headers of an error reply, and only they distinguish its kinds.
    let asked = repo
        .info_request()
        .config()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(10)))
        .timeout_global(Some(Duration::from_mins(1)))
        .build()
        .call();
    let mut response = match asked {
        Ok(response) => response,
        Err(error) => return Ok(Answer::Unreachable(error.to_string())),
    };
    let header = |name: &str| {
        response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (code, message) = (header("x-error-code"), header("x-error-message"));
    let status = response.status().as_u16();
    if status == 200 {
        let body =
            response.body_mut().read_to_string().map_err(|error| unreachable(id, hub, error.to_string()))?;
        let info: RepoInfo = serde_json::from_str(&body).map_err(|error| Error::HubStatus {
            id: id.to_owned(),
            endpoint: hub.endpoint.clone(),
            status,
            message: format!("not a model's description: {error}"),
        })?;
        // The commit is used as a folder's name, so it is checked.
        if info.sha.is_empty() || !info.sha.chars().all(|c| c.is_ascii_alphanumeric()) {
            return Err(Error::HubStatus {
                id: id.to_owned(),
                endpoint: hub.endpoint.clone(),
                status,
                message: format!("`{}` is not a commit hash", info.sha),
            });
        }
        return Ok(Answer::Info(info));
    }
    Err(match (status, code.as_str()) {
        (404, "RevisionNotFound") => Error::HubRevision { id: id.to_owned(), revision: revision.to_owned() },
        (_, "RepoNotFound") | (404, _) => {
            Error::HubNotFound { id: id.to_owned(), endpoint: hub.endpoint.clone() }
        }
        (401 | 403, _) => {
            refused(id, hub, if message.is_empty() { format!("HTTP {status}") } else { message })
        }
        (500.., _) => match cached(&Cache::new(hub.cache.clone()), id, revision) {
            Some(_) => return Ok(Answer::Unreachable(format!("HTTP {status}"))),
            None => Error::HubStatus { id: id.to_owned(), endpoint: hub.endpoint.clone(), status, message },
        },
        _ => Error::HubStatus { id: id.to_owned(), endpoint: hub.endpoint.clone(), status, message },
    })
}

/// Downloads the missing files of a commit and returns its folder. Configs come first, so that a checkpoint that is not
/// safe to load costs no download of weights.
fn download(
    api: &Api,
    cache: &Cache,
    id: &str,
    info: &RepoInfo,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<PathBuf, Error> {
    let hub = &settings.hub;
    let pinned = Repo::with_revision(id.to_owned(), RepoType::Model, info.sha.clone());
    let folder = cache.repo(pinned.clone()).pointer_path(&info.sha);
    let repo = api.repo(pinned.clone());
    let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);

    if !has("config.json") {
        let help =
            "the repository is not in transformers' layout; choose one that has config.json".to_owned();
        return Err(Error::NoConfig { folder: PathBuf::from(id), help });
    }
    if !has(SINGLE) && !has(INDEX) {
        let names = || info.siblings.iter().map(|file| file.rfilename.as_str());
        let pickles = preflight::pickles_among(names());
        if !pickles.is_empty() {
            return Err(Error::PicklesOnly { folder: PathBuf::from(id), files: pickles });
        }
        let help = if names().any(|name| name.to_lowercase().ends_with(".gguf")) {
            "it holds GGUF files: download one and name the file".to_owned()
        } else {
            "choose a repository or a revision with safetensors weights".to_owned()
        };
        return Err(Error::NoWeights { folder: PathBuf::from(id), help });
    }
    let mut get = |name: &str| fetch_file(api, &repo, cache, &pinned, id, &folder.join(name), hub, progress);
    for name in
        ["config.json", "generation_config.json"].iter().chain(&TOKENIZER_FILES).filter(|name| has(name))
    {
        get(name)?;
    }
    preflight::check_config(&folder, settings.allow_remote_code)?;
    if has(SINGLE) {
        get(SINGLE)?;
    } else {
        let index = folder.join(INDEX);
        get(INDEX)?;
        let shards = preflight::shards_of(&index, &preflight::read_object(&index)?)?;
        let missing: Vec<_> = shards.keys().filter(|shard| !has(shard)).cloned().collect();
        if !missing.is_empty() {
            return Err(Error::MissingShards { index, missing });
        }
        for shard in shards.keys() {
            get(shard)?;
        }
    }
    Ok(folder)
}

/// Downloads one file unless the cache has it, resuming an earlier attempt.
///
/// hf-hub's own retries are not used: they read the position of a file opened for appending, which is 0, and so append
/// the whole file to the existing part.
#[expect(clippy::too_many_arguments, reason = "one call site; a struct would only rename the arguments")]
fn fetch_file(
    api: &Api,
    repo: &ApiRepo,
    cache: &Cache,
    pinned: &Repo,
    id: &str,
    target: &Path,
    hub: &Environment,
    progress: Progress<'_>,
) -> Result<(), Error> {
    let file = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut waits = WAITS.iter();
    while !target.exists() {
        let reporter = Reporter { report: &mut *progress, file: &file, done: 0, total: 0 };
        let Err(error) = repo.download_with_progress(&file, reporter) else { break };
        let reason = error.to_string();
        let status = status_in(&reason);
        if matches!(status, Some(401 | 403)) {
            return Err(refused(id, hub, format!("{file}: {reason}")));
        }
        if status == Some(416) || matches!(error, ApiError::InvalidResume) {
            // The part is complete (the process ended before its rename) or too long.
            if let Ok(metadata) = api.metadata(&repo.url(&file)) {
                let part = cache.repo(pinned.clone()).blob_path(metadata.etag()).with_extension("part");
                let _ = std::fs::remove_file(part);
            }
        }
        let is_final =
            status.is_some_and(|status| (400..500).contains(&status) && ![408, 416, 429].contains(&status));
        match waits.next() {
            Some(wait) if !is_final => std::thread::sleep(*wait),
            _ => return Err(Error::HubDownload { id: id.to_owned(), file, reason }),
        }
    }
    Ok(())
}

/// The HTTP status in ureq's message; hf-hub does not re-export ureq's error type.
fn status_in(reason: &str) -> Option<u16> {
    let (_, after) = reason.split_once("http status: ")?;
    after.get(..3)?.parse().ok()
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

fn unreachable(id: &str, hub: &Environment, reason: String) -> Error {
    Error::HubUnreachable { id: id.to_owned(), endpoint: hub.endpoint.clone(), reason }
}

/// The folder and commit of a revision if the cache has its config and all its weights.
fn cached(cache: &Cache, id: &str, revision: &str) -> Option<(PathBuf, String)> {
    let repo = cache.repo(Repo::with_revision(id.to_owned(), RepoType::Model, revision.to_owned()));
    // `get` follows refs/<revision>; a full commit hash is itself the folder's name.
    let config = repo
        .get("config.json")
        .or_else(|| Some(repo.pointer_path(revision).join("config.json")).filter(|path| path.exists()))?;
    let folder = config.parent()?.to_owned();
    let commit = folder.file_name()?.to_str()?.to_owned();
    let index = folder.join(INDEX);
    let complete = folder.join(SINGLE).exists() || {
        let shards = preflight::shards_of(&index, &preflight::read_object(&index).ok()?).ok()?;
        shards.keys().all(|shard| folder.join(shard).exists())
    };
    complete.then_some((folder, commit))
}

/// Converts hf-hub's callbacks to [`Step::Download`].
struct Reporter<'a> {
    report: Progress<'a>,
    file: &'a str,
    done: u64,
    total: u64,
}

impl hf_hub::api::Progress for Reporter<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        self.done = 0;
        self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.report)(Step::Download { file: self.file, done: self.done, total: self.total });
    }

    fn finish(&mut self) {}
}
