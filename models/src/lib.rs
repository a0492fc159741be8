//! placeholder

pub mod synthetic;
