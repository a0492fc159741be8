//! Loaders of the ports of sound.

use candle_core::Tensor;
use candle_transformers::models::{encodec, mimi, voxtral};
use protocol::{Failed, INPUT_IDS, Positions};
use serde_json::Value;
use tfcheck_port::Port;
use tfcheck_port::worker::{failure, unsupported};

use super::super::checkpoint::Checkpoint;
use super::tensors;

const VALUES: &str = "input_values";

/// Samples `[batch, channels, samples]`.
fn with_channels(values: &Tensor) -> candle_core::Result<Tensor> {
    if values.rank() == 2 { values.unsqueeze(1) } else { Ok(values.clone()) }
}

/// The port's config names the kinds of norm and padding otherwise than transformers, and its weights those of a weight norm as
/// torch did before it had parametrizations.
pub(crate) fn load_encodec(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let named = |key: &str| {
        let words = checkpoint.text_at(&format!("/{key}")).split('_');
        let capital = |word: &str| {
            let mut letters = word.chars();
            let first = letters.next().map(|letter| letter.to_ascii_uppercase().to_string());
            first.unwrap_or_default() + letters.as_str()
        };
        Value::from(words.map(capital).collect::<String>())
    };
    let keys = [("norm_type", named("norm_type")), ("pad_mode", named("pad_mode"))];
    let config: encodec::Config = checkpoint.config_with(&keys)?;
    let weights = checkpoint.weights().rename_f(|name| {
        name.replace(".weight_g", ".parametrizations.weight.original0")
            .replace(".weight_v", ".parametrizations.weight.original1")
    });
    let model = encodec::Model::new(&config, weights).map_err(failure)?;
    tensors(&[VALUES], move |inputs| {
        let codes = model.encode(&with_channels(inputs.get(VALUES)?)?)?;
        model.decode(&codes)
    })
}

/// The port's config has no `Deserialize`.
pub(crate) fn load_mimi(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Config {
        sampling_rate: f64,
        // As transformers saves it, and as published.
        #[serde(alias = "_frame_rate")]
        frame_rate: f64,
        audio_channels: usize,
        hidden_size: usize,
        num_filters: usize,
        num_residual_layers: usize,
        upsampling_ratios: Vec<usize>,
        kernel_size: usize,
        last_kernel_size: usize,
        residual_kernel_size: usize,
        dilation_growth_rate: usize,
        compress: usize,
        codebook_size: usize,
        codebook_dim: usize,
        num_quantizers: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
        intermediate_size: usize,
        sliding_window: usize,
        rope_theta: f64,
        max_position_embeddings: usize,
        layer_scale_initial_scale: f64,
    }
    let read: Config = checkpoint.config()?;
    let mut config = mimi::Config::v0_1(Some(read.num_quantizers));
    config.channels = read.audio_channels;
    config.sample_rate = read.sampling_rate;
    config.frame_rate = read.frame_rate;
    config.quantizer_bins = read.codebook_size;
    config.quantizer_dim = read.codebook_dim;
    config.seanet.dimension = read.hidden_size;
    config.seanet.channels = read.audio_channels;
    config.seanet.n_filters = read.num_filters;
    config.seanet.n_residual_layers = read.num_residual_layers;
    config.seanet.ratios = read.upsampling_ratios;
    config.seanet.kernel_size = read.kernel_size;
    config.seanet.last_kernel_size = read.last_kernel_size;
    config.seanet.residual_kernel_size = read.residual_kernel_size;
    config.seanet.dilation_base = read.dilation_growth_rate;
    config.seanet.compress = read.compress;
    config.transformer.d_model = read.hidden_size;
    config.transformer.num_heads = read.num_attention_heads;
    config.transformer.num_layers = read.num_hidden_layers;
    config.transformer.dim_feedforward = read.intermediate_size;
    config.transformer.context = read.sliding_window;
    config.transformer.max_period = read.rope_theta as usize;
    config.transformer.max_seq_len = read.max_position_embeddings;
    config.transformer.layer_scale = Some(read.layer_scale_initial_scale);
    let mut model = mimi::Model::new(config, checkpoint.weights()).map_err(failure)?;
    tensors(&[VALUES], move |inputs| {
        let codes = model.encode(&with_channels(inputs.get(VALUES)?)?)?;
        model.decode(&codes)
    })
}

/// The port's config has no `Deserialize`.
pub(crate) fn load_voxtral(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Parts {
        audio_config: Audio,
        text_config: Text,
        audio_token_id: usize,
        projector_hidden_act: String,
    }
    #[derive(serde::Deserialize)]
    struct Audio {
        hidden_size: usize,
        intermediate_size: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
        activation_function: String,
        num_mel_bins: usize,
        max_source_positions: usize,
    }
    #[derive(serde::Deserialize)]
    struct Text {
        hidden_size: usize,
        intermediate_size: usize,
        vocab_size: usize,
        num_hidden_layers: usize,
        num_attention_heads: usize,
        num_key_value_heads: usize,
        head_dim: Option<usize>,
        rms_norm_eps: f64,
        rope_theta: f32,
        max_position_embeddings: usize,
        tie_word_embeddings: Option<bool>,
    }
    let Parts { audio_config: audio, text_config: text, audio_token_id, projector_hidden_act } =
        checkpoint.config()?;
    let head_dim = audio.hidden_size.checked_div(audio.num_attention_heads);
    let head_dim = head_dim.ok_or_else(|| unsupported("the audio tower has no heads"))?;
    let config = voxtral::VoxtralConfig {
        audio_config: voxtral::VoxtralEncoderConfig {
            hidden_size: audio.hidden_size,
            intermediate_size: audio.intermediate_size,
            num_hidden_layers: audio.num_hidden_layers,
            num_attention_heads: audio.num_attention_heads,
            num_key_value_heads: audio.num_attention_heads,
            head_dim,
            activation_function: audio.activation_function,
            num_mel_bins: audio.num_mel_bins,
            max_source_positions: audio.max_source_positions,
            ..voxtral::VoxtralEncoderConfig::default()
        },
        text_config: voxtral::VoxtralLlamaConfig {
            hidden_size: text.hidden_size,
            intermediate_size: text.intermediate_size,
            vocab_size: text.vocab_size,
            num_hidden_layers: text.num_hidden_layers,
            num_attention_heads: text.num_attention_heads,
            num_key_value_heads: text.num_key_value_heads,
            head_dim: text.head_dim,
            use_flash_attn: false,
            rms_norm_eps: text.rms_norm_eps,
            rope_theta: text.rope_theta,
            max_position_embeddings: text.max_position_embeddings,
            tie_word_embeddings: text.tie_word_embeddings.unwrap_or(false),
        },
        audio_token_id,
        projector_hidden_act,
    };
    let weights = checkpoint.weights();
    let (dtype, device) = (weights.dtype(), weights.device().clone());
    let model = voxtral::VoxtralForConditionalGeneration::new(&config, weights).map_err(failure)?;
    let port = tensors(&[INPUT_IDS, "input_features"], move |inputs| {
        let mut cache = voxtral::VoxtralCache::new(true, dtype, &config.text_config, &device)?;
        model.forward(inputs.get(INPUT_IDS)?, Some(inputs.get("input_features")?), &mut cache, 0)
    })?;
    Ok(port.giving(Positions::Last))
}
