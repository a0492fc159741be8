//! What tfcheck knows of transformers releases ([`versions`]) and, with the feature `module`, the PyO3 extension module
//! `tfcheck_bridge`, which an environment's Python loads to serve the worker protocol.

pub mod versions;

/// The source of the code that makes synthetic checkpoints, whose digest is part of their name in the cache.
pub const MAKER_CODE: &str = concat!(
    include_str!("module/make.rs"),
    include_str!("module/small.py"),
    include_str!("module/small_inputs.py")
);

#[cfg(feature = "module")]
mod module;
#[cfg(any(feature = "module", test))]
mod translation;
