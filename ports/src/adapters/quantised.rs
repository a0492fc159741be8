//! Ports that read GGUF files, on the files of [`gguf`]. They compute in f32.

use candle_core::{DType, Device};
use candle_transformers::models::{
    quantized_blip, quantized_gemma3, quantized_glm4, quantized_lfm2, quantized_llama, quantized_mistral,
    quantized_phi, quantized_phi3, quantized_qwen2, quantized_qwen3, quantized_recurrent_gemma,
    quantized_stable_lm, quantized_t5,
};
use protocol::{DECODER_INPUT_IDS, Failed, INPUT_IDS, Positions};
use tfcheck_port::Port;
use tfcheck_port::worker::{failure, unsupported};

use super::super::checkpoint::Checkpoint;
use super::super::gguf;
use super::pictures::{TIED_BLIP, blip_weights};
use super::{Adapter, PIXELS, causal, encoder, last, no_head, run, tensors, whole};

/// llama.cpp's names: `from_gguf(content, file, device)`, `forward(ids, offset)`; a pass at offset 0 starts from an empty cache.
macro_rules! port {
    ($checkpoint:ident, $module:ident $(, flash: $flash:literal)? $(, dtype: $dtype:expr)? $(, clear: $clear:ident)?) => {{
        causal($checkpoint)?;
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

/// transformers' names: `new(config, weights)`, `forward(ids, offset)`. A pass at offset 0 runs a fresh clone of the model, as not
/// all of them can clear their cache.
macro_rules! named {
    ($checkpoint:ident, $module:ident, $config:expr $(, $prefix:literal)?) => {{
        causal($checkpoint)?;
        f32_alone($checkpoint)?;
        let weights = gguf::named($checkpoint, &$checkpoint.weights(), None).map_err(failure)?;
        let model = $module::Model::new(&$config, weights$(.pp($prefix))?).map_err(failure)?;
        let mut running = model.clone();
        run(move |batch, offset| {
            if offset == 0 {
                running = model.clone();
            }
            running.forward(&batch.input_ids, offset)
        })
    }};
}

/// Sorted as in [`super::ADAPTERS`].
pub(crate) const QUANTISED: &[Adapter] = &[
    last("llama", "quantized_llama", |c| port!(c, quantized_llama)),
    last("mistral", "quantized_mistral", |c| named!(c, quantized_mistral, c.config()?)),
    last("qwen2", "quantized_qwen2", |c| port!(c, quantized_qwen2)),
    last("qwen3", "quantized_qwen3", |c| port!(c, quantized_qwen3, clear: clear_kv_cache)),
    last("gemma3_text", "quantized_gemma3", |c| port!(c, quantized_gemma3)),
    last("glm4", "quantized_glm4", |c| port!(c, quantized_glm4, dtype: DType::F32)),
    last("phi", "quantized_phi", |c| port!(c, quantized_phi)),
    last("phi3", "quantized_phi3", |c| port!(c, quantized_phi3, flash: false)),
    last("lfm2", "quantized_lfm2", |c| port!(c, quantized_lfm2)),
    last("recurrent_gemma", "quantized_recurrent_gemma", |c| {
        named!(c, quantized_recurrent_gemma, c.config()?, "model")
    }),
    last("stablelm", "quantized_stable_lm", |c| named!(c, quantized_stable_lm, c.config()?)).without_cache(),
    encoder("t5", "quantized_t5", load_t5).without_mask(),
    whole("blip", "quantized_blip", load_blip),
];

/// As the port in full precision.
fn load_t5(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    f32_alone(checkpoint)?;
    let config: quantized_t5::Config = checkpoint.config()?;
    let weights = gguf::named(checkpoint, &checkpoint.weights(), None).map_err(failure)?;
    match checkpoint.head() {
        "" => {
            let mut model = quantized_t5::T5EncoderModel::load(weights, &config).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids))
        }
        "ForConditionalGeneration" => {
            let mut model =
                quantized_t5::T5ForConditionalGeneration::load(weights, &config).map_err(failure)?;
            let port = tensors(&[INPUT_IDS, DECODER_INPUT_IDS], move |inputs| {
                model.clear_kv_cache();
                model.forward(inputs.get(INPUT_IDS)?, inputs.get(DECODER_INPUT_IDS)?)
            })?;
            Ok(port.giving(Positions::Last))
        }
        other => Err(no_head(other)),
    }
}

fn load_blip(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    f32_alone(checkpoint)?;
    if checkpoint.head() != "ForConditionalGeneration" {
        return Err(no_head(checkpoint.head()));
    }
    let head = TIED_BLIP[0].0;
    let more = (!checkpoint.weights().contains_tensor(head)).then_some(head);
    let weights = gguf::named(checkpoint, &blip_weights(checkpoint), more).map_err(failure)?;
    let config = checkpoint.config()?;
    let mut model = quantized_blip::BlipForConditionalGeneration::new(&config, weights).map_err(failure)?;
    tensors(&[INPUT_IDS, PIXELS], move |inputs| {
        use candle_core::Module;
        model.reset_kv_cache();
        let seen = model.vision_model().forward(inputs.get(PIXELS)?)?;
        model.text_decoder().forward(inputs.get(INPUT_IDS)?, &seen)
    })
}

/// The ports have no other dtype.
fn f32_alone(checkpoint: &Checkpoint) -> Result<(), Failed> {
    if checkpoint.files.dtype() == DType::F32 {
        Ok(())
    } else {
        Err(unsupported("quantised ports compute in f32"))
    }
}
