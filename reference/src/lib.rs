//! uv environments, one per transformers version, and the worker processes that run in them.
//!
//! [`Source`] is the user's requirement, [`Specification`] adds torch and Python, [`prepare`] turns it into
//! an [`Environment`] with uv, and [`Worker`] runs the bridge (or any program that implements [`protocol`])
//! in its own process group.

mod cache;
mod digest;
mod embedded;
mod environment;
mod failure;
mod helper;
mod source;
mod uv;
mod worker;

pub use ::protocol;
pub use ::protocol::yardstick;
pub use bridge::MAKER_CODE;
pub use bridge::versions::{Dialect, RopeForm, Versions, WrongShapes, release};
pub use embedded::bridge_digest;
pub use environment::{
    Environment, Python, Specification, TorchBackend, forget, interpreter, lacks_model_type, prepare,
    prepare_all, torch_cuda,
};
pub use failure::EnvironmentError;
pub use helper::{Output, end_all, heed, is_stopped, output, output_after_stop};
pub use source::{Source, SourceError};
pub use worker::{Launch, Template, Worker, WorkerEnd, compiler_caches};
