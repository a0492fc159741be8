//! Metrics, matrix and verdicts over logits files that the tests write.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod files;
mod matrix;
mod metric_table;
mod metrics;
mod verdict;
