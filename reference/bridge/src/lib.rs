//! The interface between the tfcheck process and its workers.
//!
//! [`protocol`] defines the messages, [`yardstick`] the calibration loop that workers time before and after
//! their forward passes. With the feature `module` this crate is also the PyO3 extension module
//! `tfcheck_bridge`, which an environment's Python loads to serve the protocol.

pub mod protocol;
pub mod versions;
pub mod yardstick;

#[cfg(feature = "module")]
mod module;
#[cfg(any(feature = "module", test))]
mod translation;
