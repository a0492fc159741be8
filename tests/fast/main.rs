//! Tests that need no Python package, no emulated GPU and no real model: `cargo t` runs them.
//!
//! One executable for all of them, because linking one costs seconds. Scripted workers run under a plain `python3`.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

mod answers;
mod bisect;
mod cached_decoding;
mod checkpoint_errors;
mod checkpoint_files;
mod checkpoint_gguf;
mod checkpoint_hub;
mod commands;
mod compare;
mod diagnose;
#[path = "../support/localize/engine.rs"]
mod engine;
mod faults;
#[path = "../../fuzz/src/targets/mod.rs"]
mod fuzz_targets;
mod gates;
mod gpu_check;
mod hostile;
mod hub_server;
mod inputs_batches;
mod known_positives;
mod layers;
mod localize;
mod mel;
mod overview;
mod pipeline;
#[path = "../support/relations.rs"]
mod planted_relations;
#[path = "../support/plants/mod.rs"]
mod plants;
mod ports;
mod recording;
mod recording_surgery;
mod relations;
mod report;
#[path = "../support/localize/setting.rs"]
mod setting;
mod shards;
mod shared_worker;
mod tensors;
#[path = "../support/mod.rs"]
mod support;
