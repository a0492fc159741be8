//! Interpretation of results: views of a run, gates, baselines, history.

pub mod against;
pub mod assess;
pub mod baseline;
pub mod changes;
pub mod details;
pub mod exit_code;
pub mod findings;
pub mod gates;
pub mod history;
pub mod relations;
pub mod view;
