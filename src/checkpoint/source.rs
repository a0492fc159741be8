//! The forms that a checkpoint's source string can have.

use std::path::{Path, PathBuf};

use super::Error;

/// Where a checkpoint comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A model on the hub, `owner/name`.
    Hub(String),
    /// A folder in transformers' layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// Generated from a seed, `synthetic:<model_type>[:<variant>]`.
    Synthetic {
        /// The architecture.
        model_type: String,
        /// Which of its synthetic configurations.
        variant: Option<String>,
    },
}

impl Source {
    /// Reads a source string. A folder that exists wins over a hub id of the same spelling, as in transformers.
    ///
    /// # Errors
    /// When the string has none of the forms, or names a folder or file that does not exist.
    pub fn parse(given: &str) -> Result<Self, Error> {
        if let Some(rest) = given.strip_prefix("synthetic:") {
            let (model_type, variant) = match rest.split_once(':') {
                Some((model_type, variant)) => (model_type, Some(variant)),
                None => (rest, None),
            };
            let is_word = |word: &str| {
                !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
            };
            if !is_word(model_type) || !variant.is_none_or(is_word) {
                return Err(Error::UnknownSource { given: given.to_owned() });
            }
            return Ok(Self::Synthetic {
                model_type: model_type.to_owned(),
                variant: variant.map(str::to_owned),
            });
        }
        let path = Path::new(given);
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
            return if path.is_file() {
                Ok(Self::Gguf(path.to_owned()))
            } else {
                Err(Error::NoGguf { path: path.to_owned() })
            };
        }
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let names_a_path = given.starts_with(['/', '.', '~']) || given.contains('\\');
        if names_a_path {
            return Err(Error::NoFolder { path: path.to_owned() });
        }
        if is_hub_id(given) {
            return Ok(Self::Hub(given.to_owned()));
        }
        Err(if given.contains('/') {
            Error::NoFolder { path: path.to_owned() }
        } else {
            Error::UnknownSource { given: given.to_owned() }
        })
    }
}

/// Whether `id` is `owner/name` by the hub's rules (huggingface_hub `validate_repo_id`): no `..` or `--`, at most 96 characters.
fn is_hub_id(id: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("..")
            && !part.contains("--")
    };
    id.len() <= 96 && id.split_once('/').is_some_and(|(owner, name)| is_part(owner) && is_part(name))
}
