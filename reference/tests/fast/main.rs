//! What needs no environment, only a plain `python3`: `cargo t` runs it.

mod worker;
