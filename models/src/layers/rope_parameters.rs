//! The rotary embeddings of a config, with the keys of transformers 4 (`rope_theta`, `rope_scaling`) or of
//! transformers 5 (`rope_parameters`).

use serde_json::Value;

use crate::config::ConfigReader;
use crate::error::{Error, Result};

/// How the inverse frequencies are scaled (transformers 5.23.0, `modeling_rope_utils.py`).
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies are not scaled.
    Default,
    /// Every frequency is divided by `factor`.
    Linear {
        /// Factor by which the context length is extended.
        factor: f64,
    },
    /// The base grows with the sequence length beyond `max_position_embeddings`.
    Dynamic {
        /// Factor by which the context length is extended.
        factor: f64,
    },
    /// Low frequencies are interpolated, high ones are extrapolated.
    Yarn {
        /// Factor by which the context length is extended.
        factor: f64,
        /// Factor by which cos and sin are multiplied.
        attention_factor: f64,
        /// A frequency with more rotations than this over the original context is kept.
        beta_fast: f64,
        /// A frequency with fewer rotations than this is interpolated.
        beta_slow: f64,
        /// Context length in pretraining, in tokens.
        original: usize,
        /// Whether the bounds are rounded to whole dimensions.
        truncate: bool,
    },
    /// One factor per frequency, with one set of factors up to the original context and one beyond it.
    Longrope {
        /// Factor by which cos and sin are multiplied.
        attention_factor: f64,
        /// Factors up to the original context.
        short: Vec<f64>,
        /// Factors beyond the original context.
        long: Vec<f64>,
        /// Context length in pretraining, in tokens.
        original: usize,
    },
    /// A smooth transition between kept and divided frequencies (llama 3.1).
    Llama3 {
        /// Factor by which the context length is extended.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are multiplied by `factor`.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context length in pretraining, in tokens.
        original: usize,
    },
}

/// The rotary embedding of one layer type.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeParameters {
    /// The base of the frequencies, `rope_theta`.
    pub theta: f64,
    /// How the frequencies are scaled.
    pub scaling: RopeScaling,
    /// The share of a head that is rotated, if the config has it and the `rope_type` uses it. With the default
    /// `rope_type` few architectures use it, and those read the key themselves.
    pub partial_rotary_factor: f64,
    /// `max_position_embeddings`.
    pub max_position_embeddings: usize,
}

impl RopeParameters {
    /// Reads the rotary embedding of a model in which all layers use the same one.
    ///
    /// # Errors
    /// If a key is missing or its value unknown.
    pub fn read(config: &ConfigReader, default_theta: f64, max_position_embeddings: usize) -> Result<Self> {
        let theta = config.f64_or("rope_theta", default_theta)?;
        Self::read_either(config, config, "rope_parameters", theta, max_position_embeddings)
    }

    /// Reads `rope_scaling` of `config`, or, if that is absent, `key` of `new_form`. If a config has both, for old
    /// and new versions, `rope_scaling` is used (`convert_rope_params_to_dict`), and the other key is listed as
    /// unread if it differs.
    ///
    /// # Errors
    /// If a key is missing or its value unknown.
    pub fn read_either(
        config: &ConfigReader,
        new_form: &ConfigReader,
        key: &str,
        theta: f64,
        max_position_embeddings: usize,
    ) -> Result<Self> {
        let Some(old) = config.optional_object("rope_scaling")? else {
            let new = new_form.optional_object(key)?;
            return Self::read_object(config, new.as_ref(), theta, max_position_embeddings);
        };
        let old = Self::read_object(config, Some(&old), theta, max_position_embeddings)?;
        if let Some(new) = new_form.peek_object(key)
            && Self::read_object(config, Some(&new), theta, max_position_embeddings)
                .is_ok_and(|new| new == old)
        {
            new_form.skip_object(key);
        }
        Ok(old)
    }

    /// As [`RopeParameters::read`], for an architecture that rotates a share of each head with every `rope_type`: the
    /// nested or top-level `partial_rotary_factor`, else `default_factor`.
    ///
    /// # Errors
    /// If a key is missing or its value unknown.
    pub fn read_partial(
        config: &ConfigReader,
        default_theta: f64,
        max_position_embeddings: usize,
        default_factor: f64,
    ) -> Result<Self> {
        let nested = match described(config)? {
            Some(rope) => rope.optional_f64("partial_rotary_factor")?,
            None => None,
        };
        let top = config.f64_or("partial_rotary_factor", default_factor)?;
        Ok(Self {
            partial_rotary_factor: nested.unwrap_or(top),
            ..Self::read(config, default_theta, max_position_embeddings)?
        })
    }

    /// Reads one embedding from the object that describes it; `theta` is the default of `rope_theta`.
    ///
    /// # Errors
    /// If a key is missing or its value unknown.
    pub fn read_object(
        config: &ConfigReader,
        rope: Option<&ConfigReader>,
        theta: f64,
        max_position_embeddings: usize,
    ) -> Result<Self> {
        let Some(rope) = rope else {
            return Ok(Self {
                theta,
                scaling: RopeScaling::Default,
                partial_rotary_factor: 1.0,
                max_position_embeddings,
            });
        };
        let scaling = read_scaling(config, rope, max_position_embeddings)?;
        let partial_rotary_factor = match scaling {
            RopeScaling::Default => 1.0,
            _ => match rope.optional_f64("partial_rotary_factor")? {
                Some(factor) => factor,
                None => config.f64_or("partial_rotary_factor", 1.0)?,
            },
        };
        Ok(Self {
            theta: rope.f64_or("rope_theta", theta)?,
            scaling,
            partial_rotary_factor,
            max_position_embeddings,
        })
    }
}

/// The object that describes the embedding: `rope_scaling` (transformers 4), which takes precedence, or
/// `rope_parameters` (`RotaryEmbeddingConfigMixin.convert_rope_params_to_dict`).
pub(crate) fn described(config: &ConfigReader) -> Result<Option<ConfigReader>> {
    match config.optional_object("rope_scaling")? {
        Some(rope) => Ok(Some(rope)),
        None => config.optional_object("rope_parameters"),
    }
}

fn read_scaling(
    config: &ConfigReader,
    rope: &ConfigReader,
    max_position_embeddings: usize,
) -> Result<RopeScaling> {
    let (key, rope_type) = match rope.optional_str("rope_type")? {
        Some(rope_type) => ("rope_type", rope_type),
        None => ("type", rope.str_or("type", "default")?),
    };
    // The top-level key takes precedence (`standardize_rope_params`), because phi3 saves it there.
    let original = || -> Result<usize> {
        let nested = rope.optional_usize("original_max_position_embeddings")?;
        let top = config.optional_usize("original_max_position_embeddings")?;
        Ok(top.or(nested).unwrap_or(max_position_embeddings))
    };
    let ratio = |original: usize| max_position_embeddings as f64 / original as f64;
    Ok(match rope_type {
        "default" => RopeScaling::Default,
        "linear" => RopeScaling::Linear { factor: rope.f64("factor")? },
        "dynamic" => RopeScaling::Dynamic { factor: rope.f64("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: rope.f64("factor")?,
            low_freq_factor: rope.f64("low_freq_factor")?,
            high_freq_factor: rope.f64("high_freq_factor")?,
            original: original()?,
        },
        "yarn" => {
            let original = original()?;
            let factor = rope.f64_or("factor", ratio(original))?;
            RopeScaling::Yarn {
                factor,
                attention_factor: yarn_attention_factor(rope, factor)?,
                // transformers uses `or` here, so 0 also selects the default.
                beta_fast: nonzero(rope.optional_f64("beta_fast")?).unwrap_or(32.0),
                beta_slow: nonzero(rope.optional_f64("beta_slow")?).unwrap_or(1.0),
                original,
                truncate: rope.bool_or("truncate", true)?,
            }
        }
        "longrope" | "su" => read_longrope(rope, original()?, max_position_embeddings)?,
        unknown => return Err(rope.unknown(key, &Value::from(unknown))),
    })
}

/// Reads the factors as `_compute_longrope_parameters` does.
pub(crate) fn read_longrope(
    rope: &ConfigReader,
    original: usize,
    max_position_embeddings: usize,
) -> Result<RopeScaling> {
    let factor = rope.f64_or("factor", max_position_embeddings as f64 / original as f64)?;
    let attention_factor = match rope.optional_f64("attention_factor")? {
        Some(factor) => factor,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
    };
    let list = |key: &str| {
        rope.optional_f64s(key)?.ok_or_else(|| Error::MissingKey { key: format!("rope_parameters.{key}") })
    };
    Ok(RopeScaling::Longrope {
        attention_factor,
        short: list("short_factor")?,
        long: list("long_factor")?,
        original,
    })
}

fn nonzero(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.abs() > 0.0)
}

/// The factor of cos and sin as in `_compute_yarn_parameters`: the config's, else one derived from `mscale`, else one
/// derived from `factor`.
fn yarn_attention_factor(rope: &ConfigReader, factor: f64) -> Result<f64> {
    if let Some(given) = rope.optional_f64("attention_factor")? {
        return Ok(given);
    }
    let mscale = nonzero(rope.optional_f64("mscale")?);
    let mscale_all_dim = nonzero(rope.optional_f64("mscale_all_dim")?);
    let magnitude = |mscale: f64| {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    };
    Ok(match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all)) => magnitude(mscale) / magnitude(all),
        _ => magnitude(1.0),
    })
}
