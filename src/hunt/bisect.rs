//! Bisection: the searched revisions, the choice of the next one to test, and the log of the results.
//!
//! `commands/bisect` runs the steps.

pub mod error;
pub mod git;
pub mod index;
pub mod record;
pub mod search;
