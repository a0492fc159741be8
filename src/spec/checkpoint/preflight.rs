//! Checks a checkpoint's files before anything loads them, and refuses what cannot be run or is not safe.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bounds::config::Refused;
use bounds::limits::{CHECKPOINT_JSON_BYTES, LINE};
use bounds::shown;
use serde_json::Value;

use super::safetensors_file;
use super::{Error, config_value};

/// The index of a sharded checkpoint.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// The weight file of a checkpoint that is not sharded.
pub(crate) const SINGLE: &str = "model.safetensors";

const LAYOUT: &str = "a checkpoint folder holds config.json, model.safetensors and tokenizer.json, as `save_pretrained` writes them";

const PICKLES: [&str; 7] = ["bin", "pt", "pth", "pkl", "pickle", "ckpt", "joblib"];

/// A checkpoint folder that passed the checks.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) config: Value,
    pub(crate) model_type: String,
    pub(crate) weights: Vec<PathBuf>,
    /// Files that determine token ids and what a processor makes, besides config and weights.
    pub(crate) tokenizer_files: Vec<PathBuf>,
    pub(crate) tokenizer: Option<PathBuf>,
    pub(crate) notes: Vec<String>,
}

/// Files that determine token ids and chat templates, by transformers' names.
pub(crate) const TOKENIZER_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];

/// The config of the pooling, where sentence-transformers saves it.
pub(super) const POOLING: &str = "1_Pooling/config.json";

/// Files that determine what a processor makes of pictures and sounds, and what is made of hidden states.
pub(crate) const PROCESSOR_FILES: [&str; 5] = [
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "modules.json",
    POOLING,
];

/// Checks a folder in transformers' layout.
pub(crate) fn check(folder: &Path, allow_remote_code: bool) -> Result<Checked, Error> {
    let (config, model_type, mut notes) = check_config(folder, allow_remote_code)?;
    let is_quantised = config_value(&config, "quantization_config").is_some_and(|value| !value.is_null());
    let weights = check_weights(folder, is_quantised)?;
    TOKENIZER_FILES.iter().try_for_each(|name| check_kind(&folder.join(name)))?;
    let tokenizer_files: Vec<_> =
        TOKENIZER_FILES.iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect();
    let tokenizer = Some(folder.join("tokenizer.json")).filter(|path| path.is_file());
    if tokenizer.is_none() && !tokenizer_files.is_empty() {
        notes.push("the checkpoint has no tokenizer.json; slow tokenizers are not supported".to_owned());
    }
    PROCESSOR_FILES.iter().try_for_each(|name| check_kind(&folder.join(name)))?;
    let processor = PROCESSOR_FILES.iter().map(|name| folder.join(name)).filter(|path| path.is_file());
    let tokenizer_files = tokenizer_files.into_iter().chain(processor).collect();
    Ok(Checked { config, model_type, weights, tokenizer_files, tokenizer, notes })
}

/// Checks the JSON files of a folder; returns the config, its `model_type`, and notes.
pub(crate) fn check_config(
    folder: &Path,
    allow_remote_code: bool,
) -> Result<(Value, String, Vec<String>), Error> {
    let config_path = folder.join("config.json");
    check_kind(&config_path)?;
    if !config_path.is_file() {
        let help = if let Some(gguf) = files_with(folder, &["gguf"]).first() {
            format!("the folder holds a GGUF file: name it, `{}`", folder.join(gguf).display())
        } else {
            LAYOUT.to_owned()
        };
        return Err(Error::NoConfig { folder: folder.to_owned(), help });
    }
    let config = read_object(&config_path)?;
    let mut notes = Vec::new();
    check_code(&config_path, &config, allow_remote_code, &mut notes)?;
    for name in ["tokenizer_config.json", "generation_config.json"] {
        let path = folder.join(name);
        if path.is_file() {
            check_code(&path, &read_object(&path)?, allow_remote_code, &mut notes)?;
        }
    }
    let model_type = check_values(&config_path, &config)?;
    Ok((config, model_type, notes))
}

/// Refuses values that no checkpoint can have, so that no runner computes with them; returns the `model_type`.
fn check_values(path: &Path, config: &Value) -> Result<String, Error> {
    let wrong = |refused: Refused| Error::BadValue { path: path.to_owned(), refused };
    let model_type = match config.get("model_type") {
        Some(Value::String(model_type)) if !model_type.is_empty() => model_type,
        None | Some(Value::Null | Value::String(_)) => {
            return Err(Error::NoModelType { path: path.to_owned() });
        }
        Some(other) => return Err(wrong(Refused::new("model_type", other, "a name"))),
    };
    // It becomes a part of names and of tables.
    let is_name =
        model_type.len() <= 100 && model_type.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    if !is_name {
        let needed = "a name of at most 100 letters, digits, `_`, `-` and `.`";
        return Err(wrong(Refused::new("model_type", &Value::from(model_type.as_str()), needed)));
    }
    if let Value::Object(map) = config {
        bounds::config::check(map).map_err(wrong)?;
        models::check_config(map).map_err(wrong)?;
    }
    Ok(model_type.clone())
}

/// Why a text is no JSON. Python writes numbers that are not finite by name, which JSON does not have.
fn no_json(bytes: &[u8], error: &serde_json::Error) -> String {
    let line = bytes.split(|byte| *byte == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let near = error.column().saturating_sub(2)..error.column() + 1;
    let is_named = |at: usize| {
        let rest = line.get(at..).unwrap_or_default();
        rest.starts_with(b"NaN") || rest.starts_with(b"Infinity")
    };
    if near.into_iter().any(is_named) {
        return format!("a number that is not finite at line {} column {}", error.line(), error.column());
    }
    error.to_string()
}

/// Reads a JSON file whose top level must be an object.
pub(crate) fn read_object(path: &Path) -> Result<Value, Error> {
    let bytes = bounds::file::read(path, CHECKPOINT_JSON_BYTES).map_err(Error::io("read", path))?;
    let bad = |reason: String| Error::BadJson { path: path.to_owned(), reason };
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(bad("is a git-lfs pointer, not the file itself; run `git lfs pull` there".to_owned()));
    }
    if bytes.starts_with(b"\xef\xbb\xbf") || bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff")
    {
        return Err(bad("begins with a byte order mark; save it as plain UTF-8".to_owned()));
    }
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| bad(format!("is not JSON: {}", no_json(&bytes, &error))))?;
    if value.is_object() {
        Ok(value)
    } else {
        let found = match value {
            Value::Array(_) => "an array",
            Value::String(_) => "a string",
            Value::Number(_) => "a number",
            Value::Bool(_) => "a boolean",
            _ => "null",
        };
        Err(bad(format!("holds {found} where an object belongs")))
    }
}

/// Refuses every config key that makes transformers import code from the checkpoint or the hub.
fn check_code(path: &Path, config: &Value, allow: bool, notes: &mut Vec<String>) -> Result<(), Error> {
    let mut found = Vec::new();
    walk("", config, &mut found);
    for (key, value) in found {
        let leaf = key.rsplit('.').next().unwrap_or(&key);
        if leaf == "auto_map" || leaf == "custom_pipelines" {
            if !allow {
                return Err(Error::RemoteCode {
                    path: path.to_owned(),
                    key: shown(&key, LINE.most).into_owned(),
                });
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            notes.push(format!("{name} asks for remote code (`{key}`), which was allowed"));
        } else {
            return Err(Error::DangerousKey {
                path: path.to_owned(),
                key: shown(&key, LINE.most).into_owned(),
                value: shown(&value.to_string(), 200).into_owned(),
            });
        }
    }
    Ok(())
}

/// Collects such keys at any depth, because sub-configs are configs too.
fn walk<'a>(prefix: &str, value: &'a Value, found: &mut Vec<(String, &'a Value)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                if is_code_key(key, value) {
                    found.push((path, value));
                } else {
                    walk(&path, value, found);
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| walk(prefix, item, found)),
        _ => {}
    }
}

fn is_code_key(key: &str, value: &Value) -> bool {
    match key {
        "auto_map" | "custom_pipelines" => true,
        // configuration_utils.py before 5.3 sets any attribute in the file, and these two are behind the checked
        // properties (CVE-2026-4372).
        "_attn_implementation_internal" | "_experts_implementation_internal" => !value.is_null(),
        // A value with a slash refers to a repository of kernels; plain names are built in.
        key if key.ends_with("attn_implementation") || key.ends_with("experts_implementation") => {
            any_string(value, &|text| text.contains(['/', ':', '@', '|']))
        }
        "kernel_config" => !value.is_null(),
        "use_kernels" => *value == Value::Bool(true),
        _ => false,
    }
}

fn any_string(value: &Value, test: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => test(text),
        Value::Array(items) => items.iter().any(|item| any_string(item, test)),
        Value::Object(map) => map.values().any(|item| any_string(item, test)),
        _ => false,
    }
}

/// Refuses a file that is there and cannot be opened: a FIFO, a device, a link that leads nowhere.
fn check_kind(path: &Path) -> Result<(), Error> {
    if path.symlink_metadata().is_ok() && !path.is_file() {
        bounds::file::open(path).map(drop).map_err(Error::io("read", path))?;
    }
    Ok(())
}

fn check_weights(folder: &Path, is_quantised: bool) -> Result<Vec<PathBuf>, Error> {
    let single = folder.join(SINGLE);
    let index = folder.join(INDEX);
    for path in [&single, &index] {
        check_kind(path)?;
    }
    // transformers prefers the single file if both exist (`_get_resolved_checkpoint_files`).
    if single.is_file() {
        safetensors_file::check(&single, is_quantised)?;
        return Ok(vec![single]);
    }
    if index.is_file() {
        return check_shards(folder, &index, is_quantised);
    }
    let pickles = files_with(folder, &PICKLES);
    if !pickles.is_empty() {
        return Err(Error::PicklesOnly { folder: folder.to_owned(), files: pickles });
    }
    let others = files_with(folder, &["safetensors"]);
    let help = if others.is_empty() {
        LAYOUT.to_owned()
    } else {
        format!(
            "it holds {}; transformers looks for model.safetensors or an index, so rename the file",
            others.join(", ")
        )
    };
    Err(Error::NoWeights { folder: folder.to_owned(), help })
}

fn check_shards(folder: &Path, index: &Path, is_quantised: bool) -> Result<Vec<PathBuf>, Error> {
    let shards = shards_of(index, &read_object(index)?)?;
    let missing: Vec<_> = shards.keys().filter(|name| !folder.join(name).is_file()).cloned().collect();
    if !missing.is_empty() {
        return Err(Error::MissingShards { index: index.to_owned(), missing });
    }
    let mut weights: Vec<PathBuf> = Vec::new();
    // The file that holds each tensor: two files with one tensor would leave it to the reader which one counts.
    let mut holders: BTreeMap<String, usize> = BTreeMap::new();
    for (name, tensors) in shards {
        let path = folder.join(&name);
        let held = safetensors_file::check(&path, is_quantised)?;
        if let Some(tensor) = tensors.into_iter().find(|tensor| !held.contains(tensor)) {
            let tensor = shown(&tensor, LINE.most).into_owned();
            return Err(Error::WrongIndex { index: index.to_owned(), tensor, shard: name });
        }
        for tensor in held {
            if let Some(before) = holders.insert(tensor.clone(), weights.len()) {
                let tensor = shown(&tensor, LINE.most).into_owned();
                return Err(Error::TwoShards { tensor, shards: [weights[before].clone(), path] });
            }
        }
        weights.push(path);
    }
    Ok(weights)
}

/// The shards of an index, each with the tensors that it assigns to them.
pub(crate) fn shards_of(path: &Path, index: &Value) -> Result<BTreeMap<String, BTreeSet<String>>, Error> {
    let bad = |reason: String| Error::BadJson { path: path.to_owned(), reason };
    let map = index
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| bad("has no `weight_map` object".to_owned()))?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().unwrap_or_default();
        if shard.len() > 255 {
            return Err(bad("names a shard of more than 255 bytes".to_owned()));
        }
        // A shard must be a file in the same folder; any other path would read outside the checkpoint.
        if !shard.ends_with(".safetensors") || shard.contains(['/', '\\']) || shard.starts_with('.') {
            return Err(bad(format!(
                "places `{}` in `{}`, which is not a safetensors file of this folder",
                shown(tensor, LINE.most),
                shown(shard, LINE.most)
            )));
        }
        shards.entry(shard.to_owned()).or_default().insert(tensor.clone());
    }
    if shards.is_empty() {
        return Err(bad("has an empty `weight_map`".to_owned()));
    }
    Ok(shards)
}

/// Names of pickled weight files among `names`.
pub(crate) fn pickles_among<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    names.filter(|name| has_extension(Path::new(name), &PICKLES)).map(str::to_owned).collect()
}

fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    path.extension()
        .is_some_and(|found| extensions.iter().any(|extension| found.eq_ignore_ascii_case(extension)))
}

fn files_with(folder: &Path, extensions: &[&str]) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|entry| has_extension(&entry.path(), extensions))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}
