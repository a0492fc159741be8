//! The syntax of a checkpoint's source string.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::error::{Error, SourceError};

/// Where a checkpoint comes from, as written; `Source::find` checks whether it exists.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// A model on the hub, `owner/name` or, for the oldest ones, `name`.
    Hub(String),
    /// A folder in transformers' layout, `config.json` and safetensors.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// Weights that tfcheck generates from a seed, `synthetic:<model_type>[:<variant>]`.
    Synthetic {
        /// transformers' `model_type`.
        model_type: String,
        /// Which synthetic config of the `model_type`; the default one if `None`.
        variant: Option<String>,
    },
}

impl Source {
    /// Finds the source on this machine's disk: an existing folder takes precedence over a hub id of the same spelling,
    /// as in transformers.
    ///
    /// # Errors
    /// When the folder or file does not exist or is something else.
    pub(super) fn find(self) -> Result<Self, Error> {
        match self {
            Self::Hub(id) if Path::new(&id).is_dir() => Ok(Self::Folder(PathBuf::from(id))),
            Self::Folder(path) if !path.exists() => Err(Error::NoFolder { path }),
            Self::Folder(path) if !path.is_dir() => Err(Error::NotAFolder { path }),
            Self::Gguf(path) if !path.exists() => Err(Error::NoGguf { path }),
            Self::Gguf(path) if !path.is_file() => {
                let refused =
                    bounds::file::open(&path).map_or_else(|error| error, |_| io::ErrorKind::Other.into());
                Err(Error::io("read", &path)(refused))
            }
            found => Ok(found),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if let Some(rest) = text.strip_prefix("synthetic:") {
            let (model_type, variant) = match rest.split_once(':') {
                Some((model_type, variant)) => (model_type, Some(variant)),
                None => (rest, None),
            };
            // A model_type may have a point in it (`kosmos-2.5`), and names a folder.
            let is_word = |word: &str| {
                word.starts_with(|c: char| c.is_ascii_alphanumeric())
                    && word.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
            };
            if !is_word(model_type) || !variant.is_none_or(is_word) {
                return Err(SourceError(format!(
                    "`{text}` does not read synthetic:<model_type> or synthetic:<model_type>:<variant>"
                )));
            }
            return Ok(Self::Synthetic {
                model_type: model_type.to_owned(),
                variant: variant.map(str::to_owned),
            });
        }
        let path = Path::new(text);
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return Ok(Self::Gguf(path.to_owned()));
        }
        if is_hub_id(text) {
            return Ok(Self::Hub(text.to_owned()));
        }
        if text.contains("://") {
            return Err(SourceError(format!(
                "`{text}` is an address; name a hub id (owner/name) and set HF_ENDPOINT for another hub, or download it"
            )));
        }
        if text.contains(['/', '\\']) || matches!(text, "." | "..") {
            return Ok(Self::Folder(path.to_owned()));
        }
        Err(SourceError(format!(
            "`{text}` is neither a hub id (owner/name), a folder (./folder), a .gguf file nor synthetic:<model_type>"
        )))
    }
}

/// Whether `id` is `owner/name` or `name` by the hub's rules (huggingface_hub `validate_repo_id`): no `..` or `--`, at
/// most 96 characters.
fn is_hub_id(id: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("..")
            && !part.contains("--")
    };
    id.len() <= 96 && id.split('/').count() <= 2 && id.split('/').all(is_part)
}

impl fmt::Display for Source {
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

impl TryFrom<String> for Source {
    type Error = SourceError;

    fn try_from(text: String) -> Result<Self, SourceError> {
        text.parse()
    }
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}
