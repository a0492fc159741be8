//! The search for the revision that changed something: what it goes over, what it asks next, what it found.
//!
//! `commands/bisect` runs the steps.

pub mod error;
pub mod git;
pub mod index;
pub mod record;
pub mod search;
