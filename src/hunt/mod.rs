//! Where a divergence lies, and which revision brought it.

pub mod bisect;
pub mod localize;
pub mod relations;
