//! A checkpoint: config, weights and tokenizer at one fixed revision, resolved to verified local files.
//!
//! Hub ids, folders, GGUF files and synthetic checkpoints all become a folder in transformers' layout, so that every
//! variant reads the same weights.

mod digest;
mod error;
mod gguf;
pub mod hub;
mod pooling;
pub(crate) mod preflight;
mod safetensors_file;
mod source;
mod tied;
pub(crate) mod tiny;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use reference::Specification;
use reference::protocol::Dtype;
use serde_json::Value;

pub use error::{Error, SourceError};
pub use pooling::Pooling;
pub use source::Source;

use crate::spec::atomic;
use digest::Digests;

/// A checkpoint whose files are local, complete and safe to load.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// The source string as given.
    pub name: String,
    /// The parsed source.
    pub source: Source,
    /// The commit hash, for hub ids.
    pub revision: Option<String>,
    /// Folder with `config.json`, the weights and the tokenizer.
    pub folder: PathBuf,
    /// `config.json`.
    pub config: Value,
    /// The architecture, `config.json`'s `model_type`.
    pub model_type: String,
    /// The safetensors files, in the order of their names.
    pub weights: Vec<PathBuf>,
    /// `tokenizer.json`, when there is one.
    pub tokenizer: Option<PathBuf>,
    /// SHA-256 over the names and contents of config, weights and tokenizer files.
    pub digest: String,
    /// How the checkpoint was made, and what a reader needs to interpret the numbers.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// How a sentence-transformers checkpoint makes one vector of a text; `None` for another checkpoint.
    pub fn pooling(&self) -> Option<Pooling> {
        pooling::read(&self.folder)
    }

    /// A number of the config, or of the text part of a multimodal config.
    pub fn number(&self, key: &str) -> Option<u64> {
        self.value(key).and_then(Value::as_u64)
    }

    /// What config and weights say differently, in a note; reads the tensors concerned.
    pub(crate) fn contradiction(&self) -> Option<String> {
        let tied = tied::contradiction(&self.config, &self.weights);
        let found: Vec<String> = tied.into_iter().chain(self.two_thetas()).collect();
        (!found.is_empty()).then(|| format!("{}: {}", self.name, found.join("; ")))
    }

    /// A note if the config has two values of `rope_theta`.
    fn two_thetas(&self) -> Option<String> {
        let outer = self.value("rope_theta")?.as_f64()?;
        let inner = self.value("rope_parameters")?.get("rope_theta")?.as_f64()?;
        (outer.to_bits() != inner.to_bits()).then(|| {
            format!(
                "config.json has rope_theta {outer} and rope_parameters.rope_theta {inner}: which of the two counts differs from release to release"
            )
        })
    }

    /// The dtype that transformers loads with `dtype="auto"`: the config's, else that of the first tensor of floats. f32
    /// if neither is one that tfcheck knows.
    pub fn dtype(&self) -> Dtype {
        let stated = ["dtype", "torch_dtype"].iter().find_map(|key| self.value(key)?.as_str());
        let stated = stated.and_then(|name| match name.strip_prefix("torch.").unwrap_or(name) {
            "float64" => Some(Dtype::F64),
            "float32" => Some(Dtype::F32),
            "bfloat16" => Some(Dtype::Bf16),
            "float16" => Some(Dtype::F16),
            _ => None,
        });
        stated
            .or_else(|| self.weights.iter().find_map(|path| safetensors_file::float_dtype(path)))
            .unwrap_or(Dtype::F32)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        config_value(&self.config, key)
    }
}

/// A value of a config, or of the `text_config` of a multimodal config.
pub(crate) fn config_value<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    config.get(key).or_else(|| config.get("text_config")?.get(key))
}

/// What [`resolve`] needs beside the source string.
#[derive(Clone, Debug)]
pub struct Settings {
    /// tfcheck's own cache: GGUF imports, synthetic checkpoints, digests.
    pub cache: PathBuf,
    /// How to reach the hub.
    pub hub: hub::Environment,
    /// Branch, tag or commit of a hub id; `None` is `main`.
    pub revision: Option<String>,
    /// Accept `auto_map` in configs. tfcheck itself never runs the code that it refers to.
    pub allow_remote_code: bool,
    /// Seed of synthetic checkpoints.
    pub seed: u64,
    /// Environment of the transformers releases that make synthetic checkpoints; its source is replaced.
    pub maker: Specification,
    /// Set when the user asks to stop.
    pub stop: Arc<AtomicBool>,
}

impl Settings {
    /// The defaults with this cache folder; the hub's settings come from `HF_*`.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        Self {
            cache: cache.into(),
            hub: hub::Environment::from_env(),
            revision: None,
            allow_remote_code: false,
            seed: 0,
            maker: Specification::new(reference::Source::Newest),
            stop: Arc::default(),
        }
    }
}

/// Progress of a step that can take long.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// Download of a file from the hub.
    Download {
        /// The file.
        file: &'a str,
        /// Bytes so far.
        done: u64,
        /// Total bytes.
        total: u64,
    },
    /// Dequantisation of a GGUF file, in bytes written.
    Import {
        /// The tensor's name in transformers.
        tensor: &'a str,
        /// Bytes so far.
        done: u64,
        /// Total bytes.
        total: u64,
    },
    /// Something that can take long, in words.
    Line(&'a str),
    /// Hashing of a file.
    Hash {
        /// The file.
        file: &'a str,
        /// Bytes so far.
        done: u64,
        /// Total bytes.
        total: u64,
    },
}

/// A callback for progress.
pub type Progress<'a> = &'a mut dyn FnMut(Step<'_>);

/// Resolves a source string to verified local files.
///
/// # Errors
/// When the checkpoint cannot be found or downloaded, is incomplete, or is not safe to load.
pub fn resolve(given: &str, settings: &Settings, progress: Progress<'_>) -> Result<Checkpoint, Error> {
    let source = given.parse::<Source>()?.find()?;
    if let (Some(revision), false) = (&settings.revision, matches!(source, Source::Hub(_))) {
        return Err(Error::NoRevisions { given: given.to_owned(), revision: revision.clone() });
    }
    let mut digests = Digests::open(&settings.cache, &settings.stop);
    let mut revision = None;
    let mut notes = Vec::new();
    let folder = match &source {
        Source::Hub(id) => {
            let snapshot = hub::fetch(id, settings.revision.as_deref(), settings, progress)?;
            notes.extend(snapshot.notes);
            revision = Some(snapshot.commit);
            snapshot.folder
        }
        Source::Folder(path) => {
            let path = path.canonicalize().map_err(Error::io("read", path))?;
            notes.push(format!("local folder {}", path.display()));
            path
        }
        Source::Gguf(path) => {
            let digest = digests.of(path, progress)?;
            let imported = gguf::import(path, &digest, settings, progress)?;
            notes.extend(imported.notes);
            imported.folder
        }
        Source::Synthetic { model_type, variant } => {
            notes.push(format!("synthetic weights of seed {}", settings.seed));
            let is_native = models::kind(model_type).is_some();
            let unlisted = || (variant.is_none() && !is_native).then(|| tiny::unlisted(model_type));
            match tiny::find(model_type, variant.as_deref()).copied().or_else(unlisted) {
                Some(tiny) => {
                    let (folder, note) = tiny::folder(&tiny, settings, progress)?;
                    notes.push(note);
                    folder
                }
                None => synthetic(given, model_type, variant.as_deref(), settings)?,
            }
        }
    };
    let checked = preflight::check(&folder, settings.allow_remote_code).map_err(|error| match source {
        // tfcheck made it complete.
        Source::Synthetic { .. } => Error::Cached { reason: error.to_string(), folder: folder.clone() },
        _ => error,
    })?;
    notes.extend(checked.notes);

    let config_path = folder.join("config.json");
    let mut parts = Vec::new();
    for path in std::iter::once(&config_path).chain(&checked.weights).chain(&checked.tokenizer_files) {
        let digest = digests.of(path, progress)?;
        if revision.is_some() {
            hub::check_blob(path, &digest)?;
        }
        parts.push((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), digest));
    }
    digests.keep();
    Ok(Checkpoint {
        name: given.to_owned(),
        source,
        revision,
        folder,
        config: checked.config,
        model_type: checked.model_type,
        weights: checked.weights,
        tokenizer: checked.tokenizer,
        digest: digest::combine(parts.iter().map(|(name, digest)| (name.as_str(), digest.as_str()))),
        notes,
    })
}

/// Fills a temporary folder and renames it to `target` once it is complete. If another process creates `target` first,
/// its folder is used.
fn complete_folder(target: &Path, fill: impl FnOnce(&Path) -> Result<(), Error>) -> Result<(), Error> {
    if target.is_dir() {
        return Ok(());
    }
    let parent = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    let temporary = atomic::temporary(target);
    std::fs::create_dir(&temporary).map_err(Error::io("create", &temporary))?;
    let filled = fill(&temporary).and_then(|()| {
        atomic::sync_folder(&temporary).map_err(Error::io("sync", &temporary))?;
        match std::fs::rename(&temporary, target) {
            Err(_) if target.is_dir() => Ok(()),
            renamed => renamed.map_err(Error::io("create", target)),
        }
    });
    if temporary.exists() {
        let _ = std::fs::remove_dir_all(&temporary);
    }
    filled?;
    atomic::sync_folder(parent).map_err(Error::io("sync", parent))
}

/// The folder of a synthetic checkpoint, generated if the cache does not have it.
fn synthetic(
    given: &str,
    model_type: &str,
    variant: Option<&str>,
    settings: &Settings,
) -> Result<PathBuf, Error> {
    // Parallel runs in this process need the same checkpoint; it is generated only once.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let name = format!("{model_type}-{}-{}", variant.unwrap_or("default"), settings.seed);
    let target = settings.cache.join("synthetic").join(name);
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    complete_folder(&target, |folder| write_synthetic(given, model_type, variant, settings.seed, folder))?;
    Ok(target)
}

fn write_synthetic(
    given: &str,
    model_type: &str,
    variant: Option<&str>,
    seed: u64,
    folder: &Path,
) -> Result<(), Error> {
    models::synthetic::write(model_type, variant.unwrap_or_default(), seed, folder).map_err(|error| {
        match error {
            models::synthetic::Error::Io { path, source } => Error::io("write", &path)(source),
            error => {
                let others = tiny::names(model_type).join(", ");
                let reason = format!("{error}; transformers makes {others}");
                Error::Synthetic { given: given.to_owned(), reason }
            }
        }
    })
}
