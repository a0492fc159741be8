//! What is asked of the hub: a revision's commit and file names, then the files that the cache lacks.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bounds::limits::{HUB_FILE_BYTES, HUB_JSON_BYTES, TENSORS};
use bounds::shown;
use serde::Deserialize;

use super::cache::{Repo, is_commit};
use super::client::{Client, Failure};
use super::{cached, refused};
use crate::spec::checkpoint::preflight::{self, INDEX, PROCESSOR_FILES, SINGLE, TOKENIZER_FILES};
use crate::spec::checkpoint::{Error, Progress, Settings, Step};

/// Pauses between the attempts to download a file.
const WAITS: [Duration; 3] = [Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3)];

/// What the hub lists of a revision.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    /// The commit, once [`ask`] has checked it.
    pub(super) sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Debug, Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The hub's information about a revision, or why the hub cannot be reached.
pub(super) enum Answer {
    Info(Info),
    Unreachable(String),
}

/// A model on the hub.
pub(super) struct Remote<'a> {
    pub(super) client: Client,
    pub(super) repo: Repo,
    pub(super) id: &'a str,
    pub(super) settings: &'a Settings,
}

/// Why one attempt to download a file failed.
enum Attempt {
    /// Another attempt is of no use.
    Final(Error),
    /// Another attempt may help.
    Again(String),
}

impl Remote<'_> {
    /// Requests the commit and the file names of a revision.
    pub(super) fn ask(&self, revision: &str) -> Result<Answer, Error> {
        let (id, hub) = (self.id, &self.settings.hub);
        let path = format!("/api/models/{id}/revision/{}", encoded(revision));
        let asked = self.client.get(&path, None, &self.settings.stop);
        let mut transfer = match asked {
            Ok(transfer) => transfer,
            Err(Failure::Interrupted) => return Err(Error::Interrupted),
            Err(Failure::Answer(reason)) => return Err(self.bad_answer(0, reason)),
            Err(failure) => return Ok(Answer::Unreachable(failure.to_string())),
        };
        let head = transfer.head.clone();
        let (status, message) = (head.status, head.error_message);
        if status == 200 {
            let body = match transfer.whole(HUB_JSON_BYTES) {
                Ok(body) => body,
                Err(Failure::Interrupted) => return Err(Error::Interrupted),
                Err(Failure::Answer(reason)) => return Err(self.bad_answer(status, reason)),
                Err(failure) => return Ok(Answer::Unreachable(failure.to_string())),
            };
            let info: Info = serde_json::from_slice(&body)
                .map_err(|error| self.bad_answer(status, format!("not a model's description: {error}")))?;
            // The commit is used as a folder's name, so it is checked.
            if !is_commit(&info.sha) {
                let reason = format!("`{}` is not a commit hash", shown(&info.sha, 100));
                return Err(self.bad_answer(status, reason));
            }
            TENSORS
                .check(info.siblings.len() as u64)
                .map_err(|_| self.bad_answer(status, format!("it lists {} files", info.siblings.len())))?;
            return Ok(Answer::Info(info));
        }
        Err(match (status, head.error_code.as_str()) {
            (404, "RevisionNotFound") => {
                Error::HubRevision { id: id.to_owned(), revision: revision.to_owned() }
            }
            (_, "RepoNotFound") | (404, _) => {
                Error::HubNotFound { id: id.to_owned(), endpoint: hub.endpoint.clone() }
            }
            (401 | 403, _) => {
                refused(id, hub, if message.is_empty() { format!("HTTP {status}") } else { message })
            }
            (500.., _) if cached(&self.repo, revision).is_some() => {
                return Ok(Answer::Unreachable(format!("HTTP {status}")));
            }
            _ => self.bad_answer(status, message),
        })
    }

    fn bad_answer(&self, status: u16, message: String) -> Error {
        Error::HubStatus {
            id: self.id.to_owned(),
            endpoint: self.settings.hub.endpoint.clone(),
            status,
            message,
        }
    }

    /// Downloads the missing files of a commit and returns its folder. Configs come first, so that a checkpoint that is not
    /// safe to load costs no download of weights.
    pub(super) fn download(&self, info: &Info, progress: Progress<'_>) -> Result<PathBuf, Error> {
        let folder = self.repo.snapshot(&info.sha);
        let has = |name: &str| info.siblings.iter().any(|file| file.rfilename == name);
        if !has("config.json") {
            let help =
                "the repository is not in transformers' layout; choose one that has config.json".to_owned();
            return Err(Error::NoConfig { folder: PathBuf::from(self.id), help });
        }
        if !has(SINGLE) && !has(INDEX) {
            let names = || info.siblings.iter().map(|file| file.rfilename.as_str());
            let pickles: Vec<String> = preflight::pickles_among(names())
                .into_iter()
                .take(20)
                .map(|name| shown(&name, 100).into_owned())
                .collect();
            if !pickles.is_empty() {
                return Err(Error::PicklesOnly { folder: PathBuf::from(self.id), files: pickles });
            }
            let help = if names().any(|name| name.to_lowercase().ends_with(".gguf")) {
                "it holds GGUF files: download one and name the file".to_owned()
            } else {
                "choose a repository or a revision with safetensors weights".to_owned()
            };
            return Err(Error::NoWeights { folder: PathBuf::from(self.id), help });
        }
        let mut get = |name: &str| self.fetch_file(&info.sha, name, &folder.join(name), progress);
        for name in ["config.json", "generation_config.json"]
            .iter()
            .chain(&TOKENIZER_FILES)
            .chain(&PROCESSOR_FILES)
            .filter(|name| has(name))
        {
            get(name)?;
        }
        preflight::check_config(&folder, self.settings.allow_remote_code)?;
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
    fn fetch_file(
        &self,
        commit: &str,
        name: &str,
        target: &Path,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        let mut waits = WAITS.iter();
        while !target.exists() {
            let reason = match self.attempt(commit, name, target, progress) {
                Ok(()) => break,
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::Again(reason)) => reason,
            };
            let Some(wait) = waits.next() else {
                return Err(self.lost(name, reason));
            };
            let begun = Instant::now();
            while begun.elapsed() < *wait {
                self.check_stop()?;
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<(), Error> {
        if self.settings.stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// A download that another run may complete.
    fn lost(&self, file: &str, reason: String) -> Error {
        let help = "run again: what has arrived is kept and the download goes on from there";
        Error::HubDownload { id: self.id.to_owned(), file: file.to_owned(), reason, help }
    }

    /// A download that the hub's own answer makes impossible.
    fn wrong(&self, file: &str, reason: String) -> Attempt {
        let help = "the answer is not a hub's: check HF_ENDPOINT and the proxy, or try again later";
        Attempt::Final(Error::HubDownload { id: self.id.to_owned(), file: file.to_owned(), reason, help })
    }

    /// What a failed request to download `file` comes to. Only a broken connection is tried again at once.
    fn failed(&self, file: &str, failure: Failure) -> Attempt {
        match failure {
            Failure::Interrupted => Attempt::Final(Error::Interrupted),
            Failure::Network(reason) => Attempt::Again(reason),
            Failure::Stalled { .. } => Attempt::Final(self.lost(file, failure.to_string())),
            Failure::Answer(reason) => self.wrong(file, reason),
        }
    }

    /// Asks for the file's size and ETag, then for the bytes that are missing.
    fn attempt(
        &self,
        commit: &str,
        name: &str,
        target: &Path,
        progress: Progress<'_>,
    ) -> Result<(), Attempt> {
        let path = format!("/{}/resolve/{commit}/{}", self.id, encoded(name));
        let stop = &self.settings.stop;
        let failed = |failure| self.failed(name, failure);
        let head = self.client.get(&path, Some((0, Some(0))), stop).map_err(failed)?.head;
        let total = match (head.status, head.range, head.length) {
            (200, _, length) => length,
            (206, Some((_, total)), _) => Some(total),
            // A file without bytes has no first byte.
            (416, Some((_, 0)), _) => Some(0),
            (206 | 416, ..) => {
                return Err(self.wrong(name, "its size is not stated (content-range)".to_owned()));
            }
            (status, ..) => return Err(self.refusal(name, status)),
        };
        let total = total.ok_or_else(|| self.wrong(name, "its size is not stated".to_owned()))?;
        HUB_FILE_BYTES.check(total).map_err(|error| self.wrong(name, format!("it has {error}")))?;
        let etag = head
            .etag
            .ok_or_else(|| self.wrong(name, "the hub gives it no ETag, by which it is cached".to_owned()))?;
        let blob = self.repo.blob(&etag, name).map_err(|error| self.broken(target, error))?;
        let _turn = self.lock(&blob)?;
        if !blob.exists() {
            self.fill(&path, name, &blob, total, progress)?;
        }
        self.repo.link(&blob, target).map_err(|error| self.broken(target, error))
    }

    /// Completes `<blob>.part` and renames it.
    fn fill(
        &self,
        path: &str,
        name: &str,
        blob: &Path,
        total: u64,
        progress: Progress<'_>,
    ) -> Result<(), Attempt> {
        let part = blob.with_extension("part");
        let failed = |failure| self.failed(name, failure);
        let broken = |error| self.broken(&part, error);
        let mut file = bounds::file::lockable(&part).map_err(broken)?;
        let mut done = file.metadata().map_err(broken)?.len();
        if done > total {
            done = 0;
        }
        if done < total {
            let mut transfer =
                self.client.get(path, Some((done, None)), &self.settings.stop).map_err(failed)?;
            match (transfer.head.status, transfer.head.range) {
                (206, Some((first, _))) if first == done => {}
                // The server sends all of it again.
                (200, _) => done = 0,
                (206, _) => return Err(self.wrong(name, "the hub sends another part".to_owned())),
                (status, _) => return Err(self.refusal(name, status)),
            }
            file.set_len(done).map_err(broken)?;
            file.seek(SeekFrom::Start(done)).map_err(broken)?;
            while let Some(bytes) = transfer.next().map_err(failed)? {
                done += bytes.len() as u64;
                if done > total {
                    file.set_len(0).map_err(broken)?;
                    return Err(self.wrong(name, format!("more than the {total} bytes that the hub states")));
                }
                file.write_all(&bytes).map_err(broken)?;
                progress(Step::Download { file: name, done, total });
            }
        } else {
            file.set_len(total).map_err(broken)?;
        }
        if done < total {
            return Err(Attempt::Again(format!("only {done} of {total} bytes arrived")));
        }
        file.sync_all().map_err(broken)?;
        std::fs::rename(&part, blob).map_err(broken)
    }

    /// The lock of a blob, which another tfcheck may hold while it downloads it.
    fn lock(&self, blob: &Path) -> Result<File, Attempt> {
        let path = blob.with_extension("lock");
        let file = bounds::file::lockable(&path).map_err(|error| self.broken(&path, error))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(std::fs::TryLockError::WouldBlock) => {
                    self.check_stop().map_err(Attempt::Final)?;
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(std::fs::TryLockError::Error(error)) => return Err(self.broken(&path, error)),
            }
        }
    }

    #[expect(clippy::unused_self, reason = "as the other kinds of failure")]
    fn broken(&self, path: &Path, error: std::io::Error) -> Attempt {
        Attempt::Final(Error::io("write", path)(error))
    }

    /// The failure of a file that the hub answered with an error.
    fn refusal(&self, name: &str, status: u16) -> Attempt {
        let reason = format!("the hub answers with http status: {status}");
        match status {
            401 | 403 => Attempt::Final(refused(self.id, &self.settings.hub, format!("{name}: {reason}"))),
            408 | 416 | 429 | 500.. => Attempt::Again(reason),
            404 | 410 => {
                let help = "the hub lists this file and does not have it: choose another revision, or try again later";
                let (id, file) = (self.id.to_owned(), name.to_owned());
                Attempt::Final(Error::HubDownload { id, file, reason, help })
            }
            _ => Attempt::Final(self.lost(name, reason)),
        }
    }
}

/// A part of a path with every character escaped that an address gives a meaning to.
fn encoded(part: &str) -> String {
    part.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}
