//! Localises a divergence in the model, and finds the revision that introduced it.

pub mod bisect;
pub mod diagnose;
pub mod localize;
pub mod relations;
