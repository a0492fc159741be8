//! The strings of `tfcheck.toml` that have a grammar of their own, parsed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A string of the config that does not follow its grammar.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(String);

/// Where a checkpoint comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum CheckpointSource {
    /// A repository of the hub, `owner/name` or `name`.
    Hub(String),
    /// A folder with `config.json` and safetensors.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// Weights that tfcheck generates from a seed.
    Synthetic {
        /// transformers' `model_type`.
        model_type: String,
        /// Which of the model_type's synthetic configs; the plain one when absent.
        variant: Option<String>,
    },
}

/// A device as the config names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The first GPU found, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The CUDA device of this number.
    Cuda(usize),
}

impl FromStr for CheckpointSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if let Some(rest) = text.strip_prefix("synthetic:") {
            let (model_type, variant) = match rest.split_once(':') {
                Some((model_type, variant)) => (model_type, Some(variant)),
                None => (rest, None),
            };
            let word = |part: &str| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
            };
            if !word(model_type) || !variant.is_none_or(word) {
                return Err(SourceError(format!(
                    "`{text}` does not read synthetic:<model_type> or synthetic:<model_type>:<variant>"
                )));
            }
            return Ok(Self::Synthetic {
                model_type: model_type.to_owned(),
                variant: variant.map(str::to_owned),
            });
        }
        if text.to_ascii_lowercase().ends_with(".gguf") {
            return Ok(Self::Gguf(PathBuf::from(text)));
        }
        if text.starts_with("./")
            || text.starts_with("../")
            || text == "."
            || text == ".."
            || Path::new(text).is_absolute()
        {
            return Ok(Self::Folder(PathBuf::from(text)));
        }
        let part = |part: &str| {
            !part.is_empty()
                && !part.starts_with(['-', '.'])
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if parts.len() <= 2 && parts.iter().all(|one| part(one)) {
            return Ok(Self::Hub(text.to_owned()));
        }
        Err(SourceError(format!(
            "`{text}` is neither a hub id (owner/name), a folder (./folder), a .gguf file nor synthetic:<model_type>"
        )))
    }
}

impl FromStr for Device {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let number = match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => Some(0),
            _ => text.strip_prefix("cuda:").and_then(|number| number.parse().ok()),
        };
        number.map(Self::Cuda).ok_or_else(|| {
            SourceError(format!("`{text}` is no device; there are auto, cpu and cuda:0 and the like"))
        })
    }
}

impl fmt::Display for CheckpointSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(id) => f.write_str(id),
            Self::Folder(path) | Self::Gguf(path) => path.display().fmt(f),
            Self::Synthetic { model_type, variant: None } => write!(f, "synthetic:{model_type}"),
            Self::Synthetic { model_type, variant: Some(variant) } => {
                write!(f, "synthetic:{model_type}:{variant}")
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// serde reads and writes each of these as the string that the file shows.
macro_rules! as_string {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = SourceError;

            fn try_from(text: String) -> Result<Self, SourceError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

as_string!(CheckpointSource, Device);
