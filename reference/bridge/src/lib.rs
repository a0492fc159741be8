//! What tfcheck knows of transformers releases ([`versions`]) and, with the feature `module`, the PyO3 extension module
//! `tfcheck_bridge`, which an environment's Python loads to serve the worker protocol.

pub mod versions;

#[cfg(feature = "module")]
mod module;
#[cfg(any(feature = "module", test))]
mod translation;
