//! Tests that need no environment, only a plain `python3`; `cargo t` runs them.

mod worker;
