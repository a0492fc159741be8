//! Execution: runners start workers, the scheduler drives them, and each cell gets a record.

pub mod answer;
pub mod at_once;
pub mod cell;
pub mod checkout;
pub mod foreseen;
pub mod progress;
pub mod quiet;
pub mod runner;
pub mod schedule;
pub mod worker;
pub mod written;
