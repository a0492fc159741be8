//! Loaders of the ports that keep a state: Mamba, hybrid models and short convolutions.

use candle_core::Tensor;
use candle_transformers::models::{granitemoehybrid, lfm2, mamba, mamba2, recurrent_gemma};
use protocol::Failed;
use tfcheck_port::Port;
use tfcheck_port::worker::failure;

use super::super::checkpoint::Checkpoint;
use super::{causal, run};

/// The port computes one token at a time.
pub(crate) fn load_mamba(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    causal(checkpoint)?;
    let config: mamba::Config = checkpoint.config()?;
    // The port reads the original repository's names.
    let weights = checkpoint.weights().rename_f(|name| match name {
        "backbone.embedding.weight" => "backbone.embeddings.weight".to_owned(),
        name => name.to_owned(),
    });
    let (dtype, device) = (weights.dtype(), weights.device().clone());
    let model = mamba::Model::new(&config, weights.pp("backbone")).map_err(failure)?;
    let mut state = mamba::State::new(1, &config, dtype, &device).map_err(failure)?;
    run(move |batch, offset| {
        let (rows, seq) = batch.input_ids.dims2()?;
        if offset == 0 {
            state = mamba::State::new(rows, &config, dtype, &device)?;
        }
        let logits = (0..seq).map(|at| model.forward(&batch.input_ids.get_on_dim(1, at)?, &mut state));
        Tensor::stack(&logits.collect::<candle_core::Result<Vec<_>>>()?, 1)
    })
}

/// A prefill in chunks, and then one token at a time.
pub(crate) fn load_mamba2(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Chunks {
        chunk_size: usize,
    }
    causal(checkpoint)?;
    let config: mamba2::Config = checkpoint.config()?;
    let Chunks { chunk_size } = checkpoint.config()?;
    let weights = checkpoint.weights();
    let (dtype, device) = (weights.dtype(), weights.device().clone());
    let model = mamba2::Model::new(&config, weights.pp("backbone")).map_err(failure)?;
    let mut state = mamba2::State::new(1, &config, dtype, &device).map_err(failure)?;
    run(move |batch, offset| {
        let (rows, seq) = batch.input_ids.dims2()?;
        if offset == 0 {
            state = mamba2::State::new(rows, &config, dtype, &device)?;
        }
        if offset > 0 && seq == 1 {
            return model.forward(&batch.input_ids.squeeze(1)?, &mut state)?.unsqueeze(1);
        }
        model.forward_prefill(&batch.input_ids, &mut state, chunk_size)
    })
}

/// The port cannot clear its state, so a pass from position 0 runs a fresh clone of the model.
pub(crate) fn load_recurrent_gemma(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    causal(checkpoint)?;
    let config: recurrent_gemma::Config = checkpoint.config()?;
    let model = recurrent_gemma::Model::new(&config, checkpoint.weights().pp("model")).map_err(failure)?;
    let mut running = model.clone();
    run(move |batch, offset| {
        if offset == 0 {
            running = model.clone();
        }
        running.forward(&batch.input_ids, offset)
    })
}

pub(crate) fn load_granitemoehybrid(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    use granitemoehybrid::{GraniteMoeHybrid, GraniteMoeHybridCache, GraniteMoeHybridConfig};
    causal(checkpoint)?;
    let config = checkpoint.config::<GraniteMoeHybridConfig>()?.into_config(false);
    let weights = checkpoint.weights();
    let (dtype, device) = (weights.dtype(), weights.device().clone());
    let model = GraniteMoeHybrid::load(weights, &config).map_err(failure)?;
    let mut cache = GraniteMoeHybridCache::new(true, dtype, &config, &device).map_err(failure)?;
    run(move |batch, offset| {
        if offset == 0 {
            cache = GraniteMoeHybridCache::new(true, dtype, &config, &device)?;
        }
        model.forward(&batch.input_ids, offset, &mut cache)
    })
}

pub(crate) fn load_lfm2(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    causal(checkpoint)?;
    let config = checkpoint.config::<lfm2::Lfm2Config>()?.into_config(false);
    let weights = checkpoint.weights();
    let mut cache = lfm2::Cache::new(true, weights.dtype(), &config, weights.device()).map_err(failure)?;
    let model = lfm2::Model::new(&config, weights).map_err(failure)?;
    run(move |batch, offset| {
        if offset == 0 {
            cache.clear();
        }
        model.forward(&batch.input_ids, offset, &mut cache)
    })
}
