//! Tests that need transformers, torch or real models, or that take minutes: `cargo test --release --workspace` runs them.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod bisect_real;
mod checkpoint_real_models;
mod cuda_kernels;
mod diagnose;
#[path = "../support/localize/engine.rs"]
mod engine;
mod expected_metrics;
mod findings;
#[path = "../support/fork.rs"]
mod fork;
mod gguf_ports;
mod localize;
#[path = "../support/made_run.rs"]
mod made_run;
#[path = "../support/mistaken.rs"]
mod mistaken;
mod modal;
mod page;
#[path = "../support/relations.rs"]
mod planted_relations;
#[path = "../support/plants/mod.rs"]
mod plants;
mod program_size;
mod public_bugs;
mod real;
mod relations_real;
#[path = "../support/localize/setting.rs"]
mod setting;
mod slurm;
#[path = "../support/mod.rs"]
mod support;
mod tiny;
