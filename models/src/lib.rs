//! Native transformer models on candle, each with an eager and a fused backend.
//!
//! [`load`] opens a checkpoint folder by its `model_type`; [`Loaded::forward`] returns logits for every position.
//! Each architecture is one file, named after its `model_type`, that reads from top to bottom. [`layers`] holds the
//! layers that several architectures share, each with both backends, and explains how to add an architecture. This
//! crate uses no network, no subprocess and no Python.

mod cache;
mod check;
mod checkpoints;
mod config;
pub mod cuda;
mod deviations;
mod error;
mod fused;
mod inputs;
pub mod kernels;
pub mod layers;
mod load;
mod lock;
mod matrices;
mod model;
mod pass;
mod registry;
pub mod synthetic;
mod weights;
mod xs;

mod bert;
mod clip;
mod cohere;
mod distilbert;
mod falcon;
mod gemma;
mod gemma2;
mod gemma3_text;
mod gpt2;
mod gpt_neox;
mod granite;
mod llama;
mod mistral;
mod mixtral;
mod modernbert;
mod olmo2;
mod phi;
mod phi3;
mod qwen2;
mod qwen2_vl;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod smollm3;
mod stablelm;
mod starcoder2;
mod t5;
mod whisper;
mod xlm_roberta;

pub use cache::Cache;
pub use check::check_config;
pub use config::{ConfigReader, is_neutral};
pub use deviations::Deviation;
pub use error::{Error, Result};
pub use inputs::{Inputs, PassInputs};
pub use load::{Loaded, load, load_on_gpu};
pub use model::{Backend, Model, Options, Task};
pub use pass::{Pass, Probe};
pub use registry::{Kind, kind, kind_of, model_types};
pub use weights::Weights;
pub use xs::Xs;
