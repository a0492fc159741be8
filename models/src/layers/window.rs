//! Which layers use sliding-window attention.

use bounds::config::Refused;
use serde_json::Value;

use super::Mask;
use crate::config::ConfigReader;
use crate::error::Result;
use crate::pass::Pass;

/// Whether a layer attends to all tokens or to a window (`config.layer_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerType {
    /// `full_attention`.
    Full,
    /// `sliding_attention`.
    Sliding,
}

impl LayerType {
    /// Reads `layer_types`; if it is absent, `default` returns the type of each layer.
    ///
    /// # Errors
    /// If a type is unknown, or the number of types differs from the number of layers.
    pub fn read(
        config: &ConfigReader,
        num_hidden_layers: usize,
        default: impl Fn(usize) -> Self,
    ) -> Result<Vec<Self>> {
        let Some(names) = config.optional_strs("layer_types")? else {
            return Ok((0..num_hidden_layers).map(default).collect());
        };
        if names.len() != num_hidden_layers {
            let found = format!("a list of {}", names.len());
            let needed = format!("one entry for each of {num_hidden_layers} layers");
            return Err(Refused::described("layer_types", &found, needed).into());
        }
        names
            .into_iter()
            .map(|name| match name {
                "full_attention" => Ok(Self::Full),
                "sliding_attention" => Ok(Self::Sliding),
                _ => Err(config.unknown("layer_types", &Value::from(name))),
            })
            .collect()
    }

    /// Qwen's window, absent unless `use_sliding_window`, and the layers that have it: those from `max_window_layers` on, if
    /// `layer_types` does not name them (transformers 5.23.0, `Qwen2Config`).
    ///
    /// # Errors
    /// As [`LayerType::read`].
    pub fn read_last_layers(
        config: &ConfigReader,
        num_hidden_layers: usize,
        max_window_layers: usize,
    ) -> Result<(Option<usize>, Vec<Self>)> {
        let window = config.usize_or("sliding_window", 4096)?;
        let first = config.usize_or("max_window_layers", max_window_layers)?;
        let window = config.bool_or("use_sliding_window", false)?.then_some(window);
        let default = |layer| if window.is_some() && layer >= first { Self::Sliding } else { Self::Full };
        Ok((window, Self::read(config, num_hidden_layers, default)?))
    }
}

/// One value per layer type, for example a mask or a rotary embedding.
#[derive(Clone, Debug)]
pub struct PerLayerType<T> {
    /// The value for full attention.
    pub full: T,
    /// The value for sliding attention.
    pub sliding: T,
}

impl<T> PerLayerType<T> {
    /// The value for one layer type.
    pub fn get(&self, layer_type: LayerType) -> &T {
        match layer_type {
            LayerType::Full => &self.full,
            LayerType::Sliding => &self.sliding,
        }
    }
}

impl PerLayerType<Mask> {
    /// The causal masks of a forward pass; without a window both are the same.
    ///
    /// # Errors
    /// If a mask cannot be made.
    pub fn causal(pass: &Pass, window: Option<usize>) -> Result<Self> {
        let full = Mask::causal(pass, None)?;
        let sliding = match window {
            Some(_) => Mask::causal(pass, window)?,
            None => full.clone(),
        };
        Ok(Self { full, sliding })
    }
}
