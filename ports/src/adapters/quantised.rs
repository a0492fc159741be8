//! Ports that read GGUF files, on the file of [`gguf::file`]. They compute in f32 and return the last position.

use candle_core::{DType, Device};
use candle_transformers::models::{
    quantized_gemma3, quantized_glm4, quantized_llama, quantized_phi3, quantized_qwen2, quantized_qwen3,
};
use protocol::Failed;
use tfcheck_port::worker::{failure, unsupported};

use super::super::checkpoint::Checkpoint;
use super::super::gguf;
use super::{Adapter, causal, last, run};

/// `from_gguf(content, file, device)`, `forward(ids, offset)`; a pass at offset 0 starts from an empty cache.
macro_rules! port {
    ($checkpoint:ident, $module:ident $(, flash: $flash:literal)? $(, dtype: $dtype:expr)? $(, clear: $clear:ident)?) => {{
        f32_alone($checkpoint)?;
        let (content, mut file) = gguf::file($checkpoint).map_err(failure)?;
        let model = $module::ModelWeights::from_gguf($($flash,)? content, &mut file, &Device::Cpu $(, $dtype)?);
        let mut model = model.map_err(failure)?;
        run(move |batch, offset| {
            $(if offset == 0 {
                model.$clear();
            })?
            model.forward(&batch.input_ids, offset)
        })
    }};
}

/// Sorted as in [`super::ADAPTERS`].
pub(crate) const QUANTISED: &[Adapter] = &[
    last("llama", "quantized_llama", |c| port!(c, quantized_llama)),
    last("mistral", "quantized_llama", |c| port!(c, quantized_llama)),
    last("qwen2", "quantized_qwen2", |c| port!(c, quantized_qwen2)),
    last("qwen3", "quantized_qwen3", |c| port!(c, quantized_qwen3, clear: clear_kv_cache)),
    last("gemma3_text", "quantized_gemma3", |c| port!(c, quantized_gemma3)),
    last("glm4", "quantized_glm4", |c| port!(c, quantized_glm4, dtype: DType::F32)),
    last("phi3", "quantized_phi3", |c| port!(c, quantized_phi3, flash: false)),
];

/// The ports have no other dtype.
fn f32_alone(checkpoint: &Checkpoint) -> Result<(), Failed> {
    causal(checkpoint)?;
    if checkpoint.files.dtype() == DType::F32 {
        Ok(())
    } else {
        Err(unsupported("quantised ports compute in f32"))
    }
}
