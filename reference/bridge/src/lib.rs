//! The seam between the tfcheck process and the programs that compute.
//!
//! [`protocol`] is what both sides speak, [`yardstick`] what both time beside their passes. With the feature
//! `module` this crate is also the PyO3 extension module `tfcheck_bridge` that an environment's own Python loads
//! to speak it.

pub mod protocol;
pub mod versions;
pub mod yardstick;

#[cfg(feature = "module")]
mod module;
#[cfg(any(feature = "module", test))]
mod translation;
