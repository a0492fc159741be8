//! Errors of checkpoints: each message gives the problem and its location, each help the remedy.

use std::path::{Path, PathBuf};

use miette::Diagnostic;
use thiserror::Error;

/// A source string that does not follow the syntax.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SourceError(pub(crate) String);

/// Why a checkpoint cannot be used.
#[derive(Debug, Error, Diagnostic)]
pub enum Error {
    /// The source string does not follow any known syntax.
    #[error(transparent)]
    #[diagnostic(help("a folder is `./name`"))]
    UnknownSource(#[from] SourceError),
    /// The folder does not exist.
    #[error("checkpoint folder {} does not exist", path.display())]
    #[diagnostic(help("check the path; a relative path starts at the working directory"))]
    NoFolder {
        /// The folder.
        path: PathBuf,
    },
    /// Something other than a folder has that path.
    #[error("the checkpoint {} is not a folder", path.display())]
    #[diagnostic(help("name the folder that holds config.json, or a file that ends in .gguf"))]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// The GGUF file does not exist.
    #[error("GGUF file {} does not exist", path.display())]
    #[diagnostic(help("check the path; a relative path starts at the working directory"))]
    NoGguf {
        /// The file.
        path: PathBuf,
    },
    /// A revision was given for a source that has no revisions.
    #[error("checkpoint `{given}` has no revisions, but revision `{revision}` was asked for")]
    #[diagnostic(help("only hub ids have revisions; remove `revision`"))]
    NoRevisions {
        /// The source string.
        given: String,
        /// The revision.
        revision: String,
    },
    /// A checkpoint that tfcheck made was changed in its cache.
    #[error("{reason}")]
    #[diagnostic(help("delete {}; the next run makes it again", folder.display()))]
    Cached {
        /// What is wrong with it.
        reason: String,
        /// Its folder.
        folder: PathBuf,
    },
    /// `config.json` is absent.
    #[error("{} has no config.json", folder.display())]
    #[diagnostic(help("{help}"))]
    NoConfig {
        /// The folder.
        folder: PathBuf,
        /// The remedy, which depends on the folder's content.
        help: String,
    },
    /// A JSON file is invalid.
    #[error("{}: {reason}", path.display())]
    #[diagnostic(help("fetch the file again, or compare it with the one on the hub"))]
    BadJson {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `config.json` holds a value that no checkpoint can have.
    #[error("{}: {refused}", path.display())]
    #[diagnostic(help("correct the value, or fetch the file again"))]
    BadValue {
        /// The config.
        path: PathBuf,
        /// The key, its value and what is needed.
        refused: bounds::config::Refused,
    },
    /// Two shards hold the same tensor.
    #[error("{} and {} both hold `{tensor}`", shards[0].display(), shards[1].display())]
    #[diagnostic(help("one of the files belongs to another checkpoint; fetch all of them again"))]
    TwoShards {
        /// The tensor.
        tensor: String,
        /// The two files.
        shards: [PathBuf; 2],
    },
    /// A weight is stored as integers.
    #[error("{} holds `{tensor}` as {dtype} where floats belong", path.display())]
    #[diagnostic(help(
        "the file is damaged, or its config lacks the `quantization_config` that says how to read it"
    ))]
    IntegerWeight {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype, as safetensors writes it.
        dtype: String,
    },
    /// `config.json` has no `model_type`.
    #[error("{} has no `model_type`", path.display())]
    #[diagnostic(help(
        "add the architecture's name as transformers spells it, such as \"model_type\": \"llama\""
    ))]
    NoModelType {
        /// The config.
        path: PathBuf,
    },
    /// The checkpoint contains its own Python code.
    #[error("{} asks for remote code (`{key}`)", path.display())]
    #[diagnostic(help(
        "tfcheck runs no code from checkpoints; read that code first, then set `allow_remote_code = true` for this checkpoint"
    ))]
    RemoteCode {
        /// The file.
        path: PathBuf,
        /// The key that refers to it.
        key: String,
    },
    /// A config key that makes some transformers version load and run code.
    #[error("{} sets `{key}` to {value}, which makes some transformers versions load and run code", path.display())]
    #[diagnostic(help("remove the key from the config (CVE-2026-4372 affects 4.56.0 to 5.2)"))]
    DangerousKey {
        /// The file.
        path: PathBuf,
        /// The key, with its path.
        key: String,
        /// Its value.
        value: String,
    },
    /// There are weights, but only in formats that can execute code.
    #[error("{} holds its weights only as pickles: {}", folder.display(), files.join(", "))]
    #[diagnostic(help(
        "tfcheck reads safetensors only; convert them (safetensors.torch.save_file in a sandbox) or take a revision that has them"
    ))]
    PicklesOnly {
        /// The folder, or the hub id.
        folder: PathBuf,
        /// The files.
        files: Vec<String>,
    },
    /// There are no weights.
    #[error("{} has no model.safetensors and no model.safetensors.index.json", folder.display())]
    #[diagnostic(help("{help}"))]
    NoWeights {
        /// The folder, or the hub id.
        folder: PathBuf,
        /// The remedy.
        help: String,
    },
    /// A weight file is shorter or longer than its header requires.
    #[error("{} should be {expected} bytes by its header, but is {found}", path.display())]
    #[diagnostic(help("the file is incomplete or damaged; delete it and fetch it again"))]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// Bytes according to the header.
        expected: u64,
        /// Bytes on disk.
        found: u64,
    },
    /// A weight file is not valid safetensors.
    #[error("{} is not valid safetensors: {reason}", path.display())]
    #[diagnostic(help("the file is incomplete or damaged; delete it and fetch it again"))]
    BadSafetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The index lists files that do not exist.
    #[error("{} names files that are missing: {}", index.display(), missing.join(", "))]
    #[diagnostic(help("fetch the missing shards, or take a complete copy of the checkpoint"))]
    MissingShards {
        /// The index.
        index: PathBuf,
        /// The files.
        missing: Vec<String>,
    },
    /// A shard lacks a tensor that the index assigns to it.
    #[error("{} places `{tensor}` in {shard}, which does not hold it", index.display())]
    #[diagnostic(help("the index and the shards belong to different revisions; fetch both again"))]
    WrongIndex {
        /// The index.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// The hub has no such model.
    #[error("{endpoint} has no model `{id}`")]
    #[diagnostic(help("check the spelling; a private model needs HF_TOKEN"))]
    HubNotFound {
        /// The hub id.
        id: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub refuses access.
    #[error("{endpoint} refuses access to `{id}`: {reason}")]
    #[diagnostic(help("{help}"))]
    HubRefused {
        /// The hub id.
        id: String,
        /// The hub.
        endpoint: String,
        /// The hub's answer.
        reason: String,
        /// The remedy.
        help: String,
    },
    /// The model exists, but the revision does not.
    #[error("`{id}` has no revision `{revision}`")]
    #[diagnostic(help("give a branch, a tag or a full commit hash"))]
    HubRevision {
        /// The hub id.
        id: String,
        /// The revision.
        revision: String,
    },
    /// Offline, and the cache does not hold the model.
    #[error("`{id}` at `{revision}` is not (completely) in the cache {} and HF_HUB_OFFLINE is set", cache.display())]
    #[diagnostic(help(
        "unset HF_HUB_OFFLINE once to fetch it, or point HF_HUB_CACHE at the cache that has it"
    ))]
    HubOffline {
        /// The hub id.
        id: String,
        /// The revision.
        revision: String,
        /// The cache.
        cache: PathBuf,
    },
    /// The hub could not be reached, and the cache does not hold the model.
    #[error("{endpoint} cannot be reached for `{id}`: {reason}")]
    #[diagnostic(help(
        "check the network, HF_ENDPOINT and the proxy; a copy in HF_HUB_CACHE is used when there is one"
    ))]
    HubUnreachable {
        /// The hub id.
        id: String,
        /// The hub.
        endpoint: String,
        /// The cause.
        reason: String,
    },
    /// The hub returned an unexpected answer.
    #[error("{endpoint} {} for `{id}`{}", if *status == 0 { "gave no valid answer".to_owned() } else { format!("answered {status}") }, if message.is_empty() { String::new() } else { format!(": {message}") })]
    #[diagnostic(help("try again later; if it persists, see the hub's status page"))]
    HubStatus {
        /// The hub id.
        id: String,
        /// The hub.
        endpoint: String,
        /// The HTTP status; 0 without one.
        status: u16,
        /// The hub's answer.
        message: String,
    },
    /// A file could not be downloaded.
    #[error("{file} of `{id}` cannot be fetched: {reason}")]
    #[diagnostic(help("{help}"))]
    HubDownload {
        /// The hub id.
        id: String,
        /// The file.
        file: String,
        /// The cause.
        reason: String,
        /// The remedy.
        help: &'static str,
    },
    /// HF_ENDPOINT or HF_TOKEN cannot be used.
    #[error("{reason}")]
    #[diagnostic(help("correct the environment variable, or unset it"))]
    HubSetting {
        /// What is wrong with which of them.
        reason: String,
    },
    /// A cached file does not match the hub's digest.
    #[error("{} has sha-256 {found}, but the hub lists {expected}", path.display())]
    #[diagnostic(help("the file is damaged; delete it and run again"))]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// Digest according to the hub.
        expected: String,
        /// Digest of the file.
        found: String,
    },
    /// The GGUF file cannot be imported.
    #[error("{} cannot be imported: {reason}", path.display())]
    #[diagnostic(help("{help}"))]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// The remedy.
        help: String,
    },
    /// A synthetic checkpoint cannot be generated.
    #[error("`{given}` cannot be generated: {reason}")]
    #[diagnostic(help("`tfcheck list models` lists every synthetic checkpoint"))]
    Synthetic {
        /// The source string.
        given: String,
        /// What is wrong.
        reason: String,
    },
    /// transformers cannot make a synthetic checkpoint.
    #[error("`{given}` cannot be made: {reason}")]
    #[diagnostic(help("{help}"))]
    Tiny {
        /// The source string.
        given: String,
        /// What is wrong.
        reason: String,
        /// The remedy.
        help: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Reading or writing failed.
    #[error("cannot {action} {}", path.display())]
    #[diagnostic(help("{}", crate::spec::atomic::io_hint(source)))]
    Io {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    /// Adds the action and the path to an I/O error.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}
