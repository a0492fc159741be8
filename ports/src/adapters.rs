//! One entry for each port of candle-transformers 0.11.1.
//!
//! If a port's body returns the hidden states of every position, its adapter applies the head of the port's own causal
//! model to them, so that all positions can be compared and not only the last one.

mod audio;
mod encoders;
mod pictures;
mod quantised;
mod recurrent;
mod seq2seq;
mod vision;

use candle_core::{Result, Tensor};
use candle_nn::{Linear, Module};
use candle_transformers::models::smol::smollm3;
use candle_transformers::models::{
    bigcode, deepseek2, falcon, gemma, gemma2, gemma3, gemma4, glm4_new, granite, helium, llama, mistral,
    mixtral, olmo, olmo2, phi, phi3, qwen2, qwen2_moe, qwen3, qwen3_moe, stable_lm, starcoder2,
};
use protocol::{Failed, Positions};
use tfcheck_port::worker::{failure, unsupported};
use tfcheck_port::{Inputs, NamedTensors, Port};

use super::checkpoint::{Checkpoint, Fill};
use audio::{load_encodec, load_mimi, load_voxtral};
use encoders::{
    load_bert, load_debertav2, load_distilbert, load_modernbert, load_nomic_bert, load_xlm_roberta,
};
use pictures::{
    load_blip, load_chinese_clip, load_clip, load_colpali, load_llava, load_llava_next, load_paddleocr_vl,
    load_paligemma, load_qwen3_vl, load_siglip,
};
pub(crate) use quantised::QUANTISED;
use recurrent::{load_granitemoehybrid, load_lfm2, load_mamba, load_mamba2, load_recurrent_gemma};
use seq2seq::{load_marian, load_t5, load_trocr, load_whisper};
use vision::{
    load_beit, load_convnext, load_depth_anything, load_dinov2, load_resnet, load_segformer, load_vit,
};

/// How a port is loaded and run.
pub(crate) struct Adapter {
    pub(crate) model_type: &'static str,
    /// Its module below `candle_transformers::models`.
    pub(crate) module: &'static str,
    /// Which positions it computes.
    pub(crate) positions: Positions,
    pub(crate) reads_mask: bool,
    /// Whether a forward pass can continue from the KV cache of the previous one.
    pub(crate) caches: bool,
    /// Keys that the port's `Config` requires although a config may omit them.
    pub(crate) fill: &'static [(&'static str, Fill)],
    pub(crate) load: Load,
}

impl Adapter {
    const fn without_cache(self) -> Self {
        Self { caches: false, ..self }
    }

    const fn with_mask(self) -> Self {
        Self { reads_mask: true, ..self }
    }

    const fn without_mask(self) -> Self {
        Self { reads_mask: false, ..self }
    }

    const fn filled(self, fill: &'static [(&'static str, Fill)]) -> Self {
        Self { fill, ..self }
    }
}

const TRAINING: &[(&str, Fill)] =
    &[("initializer_range", Fill::Inert("0.02")), ("use_cache", Fill::Inert("true"))];

/// The original repository's names of the config's keys, and no padding of the vocabulary.
const MAMBA: &[(&str, Fill)] = &[
    ("d_model", Fill::Copy("hidden_size")),
    ("n_layer", Fill::Copy("num_hidden_layers")),
    ("pad_vocab_size_multiple", Fill::Inert("1")),
];

/// The original repository's names of the config's keys.
const NOMIC: &[(&str, Fill)] = &[
    ("n_embd", Fill::Copy("hidden_size")),
    ("n_head", Fill::Copy("num_attention_heads")),
    ("n_layer", Fill::Copy("num_hidden_layers")),
    ("n_inner", Fill::Copy("intermediate_size")),
    ("n_positions", Fill::Copy("max_position_embeddings")),
    ("layer_norm_epsilon", Fill::Copy("layer_norm_eps")),
];

/// Generation keys that published configs of Marian have.
const MARIAN: &[(&str, Fill)] =
    &[("use_cache", Fill::Inert("true")), ("forced_eos_token_id", Fill::Copy("eos_token_id"))];

type Load = fn(&Checkpoint) -> std::result::Result<Port, Failed>;

/// A field of the port's `Config` that no published config has.
const FLASH: &[(&str, Fill)] = &[("use_flash_attn", Fill::Inert("false"))];

/// A causal port that returns the last position only.
const fn last(model_type: &'static str, module: &'static str, load: Load) -> Adapter {
    Adapter {
        model_type,
        module,
        positions: Positions::Last,
        reads_mask: false,
        caches: true,
        fill: &[],
        load,
    }
}

/// A causal port that returns the hidden states or logits of every position.
const fn all(model_type: &'static str, module: &'static str, load: Load) -> Adapter {
    Adapter {
        model_type,
        module,
        positions: Positions::All,
        reads_mask: false,
        caches: true,
        fill: &[],
        load,
    }
}

const fn encoder(model_type: &'static str, module: &'static str, load: Load) -> Adapter {
    Adapter {
        model_type,
        module,
        positions: Positions::All,
        reads_mask: true,
        caches: false,
        fill: &[],
        load,
    }
}

/// A port of other tensors than text, which says itself whether it reads a mask.
const fn whole(model_type: &'static str, module: &'static str, load: Load) -> Adapter {
    encoder(model_type, module, load)
}

/// The most common interface: `new(&config, weights)`, `forward(ids, offset)`, `clear_kv_cache()`.
macro_rules! decoder {
    ($checkpoint:ident, $module:ident $(, $flash:literal)?) => {{
        causal($checkpoint)?;
        let config: $module::Config = $checkpoint.config()?;
        let mut model =
            $module::Model::new($($flash,)? &config, $checkpoint.weights()).map_err(failure)?;
        run(move |batch, offset| {
            if offset == 0 {
                model.clear_kv_cache();
            }
            model.forward(&batch.input_ids, offset)
        })
    }};
}

/// A body that returns hidden states and cannot clear its cache: it is cloned with an empty cache, which copies only
/// pointers.
macro_rules! body {
    ($checkpoint:ident, $module:ident) => {{
        causal($checkpoint)?;
        let config: $module::Config = $checkpoint.config()?;
        let model = $module::Model::new(&config, $checkpoint.weights()).map_err(failure)?;
        let head = head($checkpoint, config.tie_word_embeddings).map_err(failure)?;
        let mut running = model.clone();
        run(move |batch, offset| {
            if offset == 0 {
                running = model.clone();
            }
            head.forward(&running.forward(&batch.input_ids, offset)?)
        })
    }};
}

/// Every port that tfcheck runs.
pub(crate) const ADAPTERS: &[Adapter] = &[
    last("llama", "llama", load_llama),
    last("mistral", "mistral", |c| decoder!(c, mistral)),
    last("mixtral", "mixtral", load_mixtral).filled(FLASH),
    all("qwen2", "qwen2", load_qwen2).with_mask(),
    last("qwen2_moe", "qwen2_moe", |c| decoder!(c, qwen2_moe)),
    all("qwen3", "qwen3", |c| body!(c, qwen3)),
    all("qwen3_moe", "qwen3_moe", |c| body!(c, qwen3_moe)),
    last("gemma", "gemma", |c| decoder!(c, gemma, false)),
    last("gemma2", "gemma2", |c| decoder!(c, gemma2, false)),
    last("gemma3_text", "gemma3", |c| decoder!(c, gemma3, false)),
    last("gemma4_text", "gemma4::text", load_gemma4_text),
    last("gemma4", "gemma4", load_gemma4),
    last("olmo", "olmo", |c| decoder!(c, olmo)),
    last("olmo2", "olmo2", |c| decoder!(c, olmo2)),
    last("starcoder2", "starcoder2", |c| decoder!(c, starcoder2)),
    last("granite", "granite", load_granite),
    all("smollm3", "smol::smollm3", |c| body!(c, smollm3)),
    last("helium", "helium", |c| decoder!(c, helium)),
    last("glm4", "glm4_new", load_glm4),
    last("phi", "phi", load_phi),
    last("phi3", "phi3", |c| decoder!(c, phi3)),
    last("gpt_bigcode", "bigcode", load_bigcode).without_cache(),
    last("deepseek_v2", "deepseek2", load_deepseek2),
    last("granitemoehybrid", "granitemoehybrid", load_granitemoehybrid),
    last("lfm2", "lfm2", load_lfm2),
    last("recurrent_gemma", "recurrent_gemma", load_recurrent_gemma),
    all("mamba", "mamba", load_mamba).filled(MAMBA),
    all("mamba2", "mamba2", load_mamba2),
    last("stablelm", "stable_lm", load_stable_lm).without_cache(),
    last("falcon", "falcon", load_falcon).filled(TRAINING),
    encoder("bert", "bert", load_bert).filled(TRAINING),
    encoder("distilbert", "distilbert", load_distilbert).filled(TRAINING),
    encoder("roberta", "xlm_roberta", load_xlm_roberta),
    encoder("xlm-roberta", "xlm_roberta", load_xlm_roberta),
    encoder("modernbert", "modernbert", load_modernbert)
        .filled(&[("layer_norm_eps", Fill::Copy("norm_eps"))]),
    encoder("deberta-v2", "debertav2", load_debertav2),
    encoder("nomic_bert", "nomic_bert", load_nomic_bert).filled(NOMIC),
    encoder("t5", "t5", load_t5).without_mask(),
    whole("marian", "marian", load_marian).filled(MARIAN),
    whole("whisper", "whisper", load_whisper),
    whole("vision-encoder-decoder", "trocr", load_trocr),
    whole("vit", "vit", load_vit),
    whole("dinov2", "dinov2", load_dinov2),
    whole("depth_anything", "depth_anything_v2", load_depth_anything),
    whole("beit", "beit", load_beit),
    whole("segformer", "segformer", load_segformer),
    whole("convnext", "convnext", load_convnext),
    whole("convnextv2", "convnext", load_convnext),
    whole("resnet", "resnet", load_resnet),
    whole("clip", "clip", load_clip),
    whole("chinese_clip", "chinese_clip", load_chinese_clip),
    whole("siglip", "siglip", load_siglip),
    whole("blip", "blip", load_blip),
    whole("llava", "llava, pixtral", load_llava),
    whole("llava_next", "llava", load_llava_next),
    whole("paligemma", "paligemma", load_paligemma),
    whole("colpali", "colpali", load_colpali),
    whole("qwen3_vl", "qwen3_vl", load_qwen3_vl),
    whole("paddleocr_vl", "paddleocr_vl", load_paddleocr_vl),
    whole("encodec", "encodec", load_encodec),
    whole("mimi", "mimi", load_mimi),
    whole("voxtral", "voxtral", load_voxtral),
];

#[expect(clippy::unnecessary_wraps, reason = "it is what every loader ends in")]
fn run(pass: impl FnMut(&Inputs, usize) -> Result<Tensor> + 'static) -> std::result::Result<Port, Failed> {
    Ok(Port::cached(pass))
}

/// The argument of pictures.
const PIXELS: &str = "pixel_values";

/// What every loader of a port of tensors of these names ends in.
#[expect(clippy::unnecessary_wraps, reason = "it is what every loader ends in")]
fn tensors(
    takes: &'static [&'static str],
    pass: impl FnMut(&NamedTensors) -> Result<Tensor> + 'static,
) -> std::result::Result<Port, Failed> {
    Ok(Port::of_tensors(takes, pass))
}

fn causal(checkpoint: &Checkpoint) -> std::result::Result<(), Failed> {
    match checkpoint.head() {
        "ForCausalLM" => Ok(()),
        other => Err(no_head(other)),
    }
}

fn no_head(head: &str) -> Failed {
    let head = if head.is_empty() { "hidden states" } else { head };
    unsupported(format!("the port has no `{head}`"))
}

/// The head that the port's own causal model uses.
fn head(checkpoint: &Checkpoint, is_tied: bool) -> Result<Linear> {
    let name = if is_tied { "model.embed_tokens.weight" } else { "lm_head.weight" };
    Ok(Linear::new(checkpoint.weights().get_unchecked(name)?, None))
}

fn load_llama(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config = checkpoint.config::<llama::LlamaConfig>()?.into_config(false);
    let weights = checkpoint.weights();
    let empty = llama::Cache::new(true, weights.dtype(), &config, weights.device()).map_err(failure)?;
    let model = llama::Llama::load(weights, &config).map_err(failure)?;
    let mut cache = empty.clone();
    run(move |batch, offset| {
        if offset == 0 {
            cache = empty.clone();
        }
        model.forward(&batch.input_ids, offset, &mut cache)
    })
}

fn load_granite(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config = checkpoint.config::<granite::GraniteConfig>()?.into_config(false);
    let weights = checkpoint.weights();
    let empty = granite::Cache::new(true, weights.dtype(), &config, weights.device()).map_err(failure)?;
    let model = granite::Granite::load(weights, &config).map_err(failure)?;
    let mut cache = empty.clone();
    run(move |batch, offset| {
        if offset == 0 {
            cache = empty.clone();
        }
        model.forward(&batch.input_ids, offset, &mut cache)
    })
}

/// The port cannot clear its cache, so a pass from position 0 runs a fresh clone of the model with an empty cache.
fn load_mixtral(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config: mixtral::Config = checkpoint.config()?;
    let model = mixtral::Model::new(&config, checkpoint.weights()).map_err(failure)?;
    let mut running = model.clone();
    run(move |batch, offset| {
        if offset == 0 {
            running = model.clone();
        }
        running.forward(&batch.input_ids, offset)
    })
}

/// The port ties the head to the embedding if the checkpoint has no head, whatever the config sets. It gets the mask where there
/// is padding; without a mask it is causal.
fn load_qwen2(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config: qwen2::Config = checkpoint.config()?;
    let weights = checkpoint.weights();
    let is_tied = !weights.contains_tensor("lm_head.weight");
    let mut model = qwen2::Model::new(&config, weights).map_err(failure)?;
    let head = head(checkpoint, is_tied).map_err(failure)?;
    run(move |batch, offset| {
        if offset == 0 {
            model.clear_kv_cache();
        }
        let is_padded = batch.attention_mask.min_all()?.to_scalar::<u32>()? == 0;
        let mask = (is_padded && offset == 0).then_some(&batch.attention_mask);
        head.forward(&model.forward(&batch.input_ids, offset, mask)?)
    })
}

fn load_glm4(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config: glm4_new::Config = checkpoint.config()?;
    let mut model = glm4_new::ModelForCausalLM::new(&config, checkpoint.weights()).map_err(failure)?;
    run(move |batch, offset| {
        if offset == 0 {
            model.clear_kv_cache();
        }
        model.forward(&batch.input_ids, offset)
    })
}

fn load_gemma4_text(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config: gemma4::Gemma4TextConfig = checkpoint.config()?;
    let mut model = gemma4::text::TextModel::new(&config, checkpoint.weights()).map_err(failure)?;
    run(move |batch, offset| {
        if offset == 0 {
            model.clear_kv_cache();
        }
        model.forward(&batch.input_ids, offset)
    })
}

/// Texts alone.
fn load_gemma4(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    let config: gemma4::config::Gemma4Config = checkpoint.config()?;
    let mut model = gemma4::Model::new(&config, checkpoint.weights()).map_err(failure)?;
    run(move |batch, offset| {
        if offset == 0 {
            model.clear_kv_cache();
        }
        model.forward(&batch.input_ids, offset)
    })
}

fn load_phi(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config: phi::Config = checkpoint.config()?;
    let mut model = phi::Model::new(&config, checkpoint.weights()).map_err(failure)?;
    run(move |batch, offset| {
        if offset == 0 {
            model.clear_kv_cache();
        }
        model.forward(&batch.input_ids)
    })
}

/// The port has no way to read a config. It can neither clear its cache nor be cloned, so its cache is switched off.
fn load_bigcode(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Config {
        vocab_size: usize,
        n_positions: usize,
        n_layer: usize,
        n_embd: usize,
        n_head: usize,
        n_inner: Option<usize>,
        layer_norm_epsilon: f64,
        multi_query: bool,
    }
    causal(checkpoint)?;
    let config: Config = checkpoint.config()?;
    let config = bigcode::Config {
        vocab_size: config.vocab_size,
        max_position_embeddings: config.n_positions,
        num_hidden_layers: config.n_layer,
        hidden_size: config.n_embd,
        layer_norm_epsilon: config.layer_norm_epsilon,
        n_inner: config.n_inner,
        num_attention_heads: config.n_head,
        multi_query: config.multi_query,
        use_cache: false,
    };
    let mut model = bigcode::GPTBigCode::load(checkpoint.weights(), config).map_err(failure)?;
    run(move |batch, _| model.forward(&batch.input_ids, 0))
}

fn load_deepseek2(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config: deepseek2::DeepSeekV2Config = checkpoint.config()?;
    let mut model = deepseek2::DeepSeekV2::new(&config, checkpoint.weights()).map_err(failure)?;
    run(move |batch, offset| {
        if offset == 0 {
            model.clear_kv_cache();
        }
        model.forward(&batch.input_ids, offset)
    })
}

/// The port can neither clear its cache nor be cloned, so its cache is switched off.
fn load_stable_lm(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config: stable_lm::Config = checkpoint.config_with(&[("use_cache", false.into())])?;
    let mut model = stable_lm::Model::new(&config, checkpoint.weights()).map_err(failure)?;
    run(move |batch, _| model.forward(&batch.input_ids, 0))
}

fn load_falcon(checkpoint: &Checkpoint) -> std::result::Result<Port, Failed> {
    causal(checkpoint)?;
    let config: falcon::Config = checkpoint.config()?;
    config.validate().map_err(|error| unsupported(format!("the port refuses this config.json: {error}")))?;
    let mut model = falcon::Falcon::load(checkpoint.weights(), config).map_err(failure)?;
    run(move |batch, offset| {
        if offset == 0 {
            model.clear_kv_cache();
        }
        model.forward(&batch.input_ids)
    })
}
