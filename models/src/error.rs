//! What can go wrong in loading or running a model, each naming the key, tensor or shape at fault.

use std::path::PathBuf;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No architecture goes by this `model_type`.
    #[error("unknown model_type {model_type:?}; known are {known}")]
    UnknownModelType {
        /// As config.json has it.
        model_type: String,
        /// The known ones, comma separated.
        known: String,
    },
    /// The architecture exists but not with this head.
    #[error("{model_type} has no {task} head")]
    UnknownHead {
        /// As config.json has it.
        model_type: String,
        /// The head that was asked for.
        task: String,
    },
    /// A config value that the architecture does not know.
    #[error("config key {key} has the unknown value {value}")]
    UnknownValue {
        /// The key, dotted where it is nested.
        key: String,
        /// The value as JSON.
        value: String,
    },
    /// A config key without which the architecture is not defined.
    #[error("config key {key} is missing")]
    MissingKey {
        /// The key, dotted where it is nested.
        key: String,
    },
    /// A tensor that the architecture needs and no file has.
    #[error("the checkpoint has no tensor {name}")]
    MissingTensor {
        /// Its full name.
        name: String,
    },
    /// A tensor whose shape does not follow from the config.
    #[error("tensor {name} has shape {found:?} where the config asks for {expected:?}")]
    ShapeMismatch {
        /// The tensor's full name.
        name: String,
        /// What the config implies.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file whose content does not match its name.
    #[error("cannot parse {path}: {reason}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Inputs that do not fit each other, the model or the cache.
    #[error("inputs: {0}")]
    Inputs(String),
    /// The backend or dtype does not support the request.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// A GPU, its driver or the emulator of one failed, or was asked for what does not fit its memory.
    #[error("gpu: {0}")]
    Gpu(String),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;
