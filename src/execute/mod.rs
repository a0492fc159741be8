//! What computes: runners start workers, the scheduler drives them, each cell leaves a record.

pub mod cell;
pub mod foreseen;
pub mod progress;
pub mod quiet;
pub mod runner;
pub mod schedule;
pub mod worker;
