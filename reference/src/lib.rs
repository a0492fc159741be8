//! uv environments, one per transformers version, and the worker processes that run in them.

pub use bridge::protocol;
