//! GGUF import: dequantised once to f32 safetensors with transformers' names, config and tokenizer.
//!
//! The reference for weights and config is what transformers 5.23 reads with `gguf_file=`; the tokenizer also uses
//! metadata of the file that transformers 5.23 ignores (see `tokenizer.rs`).

mod config;
mod header;
mod metadata;
mod names;
mod tokenizer;
mod weights;

use std::io::{BufReader, Seek};
use std::path::{Path, PathBuf};

use bounds::limits::{CHECKPOINT_JSON_BYTES, LINE};
use bounds::shown;
use candle_core::quantized::gguf_file::Content;
use serde_json::Value;

use super::{Error, Progress, Settings, complete_folder};
use crate::spec::atomic;
use metadata::Metadata;
use names::Architecture;

/// Part of an import's folder name; increase it when the output of an import changes.
const IMPORT_VERSION: u32 = 1;

/// A GGUF file imported as a checkpoint folder.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) folder: PathBuf,
    pub(crate) notes: Vec<String>,
}

/// Imports `path`, whose SHA-256 is `digest`, into the cache; a later call finds the folder there.
pub(crate) fn import(
    path: &Path,
    digest: &str,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<Imported, Error> {
    let folder = settings.cache.join("gguf").join(format!("{digest}-{IMPORT_VERSION}"));
    let notes_path = folder.join("import.json");
    complete_folder(&folder, |temporary| {
        // candle's code for foreign files: a panic of it is an error of the file.
        bounds::caught(|| convert(path, digest, temporary, settings, progress)).unwrap_or_else(|panic| {
            let (reason, help) = damaged(format!("its reader {panic}"));
            Err(Error::Gguf { path: path.to_owned(), reason, help })
        })
    })?;
    let notes =
        bounds::file::read(&notes_path, CHECKPOINT_JSON_BYTES).map_err(Error::io("read", &notes_path))?;
    let notes = serde_json::from_slice(&notes).map_err(|error| Error::BadJson {
        path: notes_path,
        reason: format!("is not a list of notes: {error}"),
    })?;
    Ok(Imported { folder, notes })
}

fn convert(
    path: &Path,
    digest: &str,
    folder: &Path,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<(), Error> {
    let problem = |(reason, help): (String, String)| Error::Gguf { path: path.to_owned(), reason, help };
    let mut file = BufReader::new(bounds::file::open(path).map_err(Error::io("read", path))?);
    let length = file.get_ref().metadata().map_err(Error::io("read", path))?.len();
    let alignment = header::check(&mut file, length).map_err(problem)?;
    file.rewind().map_err(Error::io("read", path))?;
    let content = Content::read(&mut file).map_err(|error| {
        problem((
            format!("its header cannot be read: {}", first_line(&error)),
            "the file is incomplete, or not GGUF version 1 to 3; fetch it again".to_owned(),
        ))
    })?;
    header::check_places(&content, alignment, length).map_err(problem)?;
    let metadata = Metadata::new(&content.metadata);
    // A value of another type explains what a look-up misses.
    let problem = |found| problem(metadata.mistyped().unwrap_or(found));
    let name = metadata.text("general.architecture").unwrap_or_default();
    let architecture = Architecture::named(name).map_err(problem)?;
    if metadata.integer("split.count").is_some_and(|count| count > 1) {
        return Err(problem((
            "it is one part of a split model".to_owned(),
            "join the parts with `llama-gguf-split --merge` first".to_owned(),
        )));
    }

    let mut notes = vec![format!(
        "imported from {} (sha-256 {digest}), dequantised to f32 under transformers' names",
        path.file_name().unwrap_or_default().to_string_lossy()
    )];
    let plan = weights::plan(architecture, &content, &metadata).map_err(problem)?;
    let config = config::build(architecture, &content, &metadata, path, &mut notes).map_err(problem)?;
    bounds::config::check(&config)
        .and_then(|()| models::check_config(&config))
        .map_err(|refused| problem(damaged(format!("its metadata make a config in which {refused}"))))?;
    let config = Value::Object(config);
    let write_json = |name: &str, value: &Value| {
        let bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
        atomic::write(&folder.join(name), &bytes).map_err(Error::io("write", &folder.join(name)))
    };
    if let Some(tokenizer) = tokenizer::build(architecture, &metadata, &mut notes).map_err(problem)? {
        atomic::write(&folder.join("tokenizer.json"), &tokenizer.json)
            .map_err(Error::io("write", &folder.join("tokenizer.json")))?;
        write_json("tokenizer_config.json", &tokenizer.config)?;
    } else {
        notes.push("the GGUF file holds no tokenizer".to_owned());
    }
    if let Some(found) = metadata.mistyped() {
        return Err(problem(found));
    }
    weights::write(path, &content, &plan, &folder.join(super::preflight::SINGLE), settings, progress)?;
    write_json("config.json", &config)?;
    write_json("import.json", &Value::from(notes))
}

/// The problem and its remedy.
type Problem = (String, String);

/// A candle error without the backtrace that it may carry.
fn first_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    shown(text.lines().next().unwrap_or_default(), LINE.most).into_owned()
}

/// A problem of a damaged file, which only another file solves.
fn damaged(reason: impl Into<String>) -> Problem {
    (
        reason.into(),
        "the file is incomplete or was made by a converter that tfcheck does not know; take another one"
            .to_owned(),
    )
}
