//! Errors of loading or running a model; each contains the key, tensor or shape that caused it.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No architecture has this `model_type`.
    #[error("unknown model_type {model_type:?}; known are {known}")]
    UnknownModelType {
        /// The `model_type` in `config.json`.
        model_type: String,
        /// The known model types, separated by commas.
        known: String,
    },
    /// The architecture does not have this head.
    #[error("{model_type} has no {task} head")]
    UnknownHead {
        /// The `model_type` in `config.json`.
        model_type: String,
        /// The requested head.
        task: String,
    },
    /// A config value that the architecture does not support.
    #[error("config key {key} has the unknown value {value}")]
    UnknownValue {
        /// The key; nested keys are joined with a dot.
        key: String,
        /// The value as JSON.
        value: String,
    },
    /// A config value that no checkpoint can have.
    #[error("config.json: {0}")]
    BadValue(bounds::config::Refused),
    /// A required config key is missing.
    #[error("config key {key} is missing")]
    MissingKey {
        /// The key; nested keys are joined with a dot.
        key: String,
    },
    /// A tensor that the architecture needs and that no file contains.
    #[error("the checkpoint has no tensor {name}")]
    MissingTensor {
        /// Its full name.
        name: String,
    },
    /// A tensor whose shape differs from the one that the config implies.
    #[error("tensor {name} has shape {found:?} where the config asks for {expected:?}")]
    ShapeMismatch {
        /// The tensor's full name.
        name: String,
        /// The shape that the config implies.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor of integers where a weight belongs.
    #[error("tensor {name} holds {dtype} where floats belong")]
    IntegerTensor {
        /// The tensor's full name.
        name: String,
        /// Its dtype.
        dtype: String,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A file whose content is not in the expected format.
    #[error("cannot parse {path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong with the content.
        reason: String,
    },
    /// Inputs that do not fit each other, the model or the cache.
    #[error("inputs: {0}")]
    Inputs(String),
    /// The backend or dtype does not support the request.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A GPU, its driver or its emulator failed, or the request does not fit into its memory.
    #[error("gpu: {0}")]
    Gpu(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl From<bounds::config::Refused> for Error {
    fn from(refused: bounds::config::Refused) -> Self {
        Self::BadValue(refused)
    }
}
