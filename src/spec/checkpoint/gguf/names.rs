//! llama.cpp's tensor names and transformers' names for them, by architecture (gguf-py `tensor_mapping.py`).

use super::{Problem, damaged};

/// An architecture that tfcheck imports, by llama.cpp's `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
}

/// How the values of a tensor in llama.cpp are converted to those in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The values are equal.
    None,
    /// llama.cpp stores each head's rows interleaved (`convert_hf_to_gguf.py`, `LlamaModel.permute`).
    Interleaved {
        /// Heads of this projection.
        heads: usize,
    },
    /// llama.cpp stores `w + 1` for norms that compute `x · (1 + w)`.
    PlusOne,
}

const COMMON: [(&str, &str); 8] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];
const PLAIN_NORMS: [(&str, &str); 1] = [("ffn_norm", "post_attention_layernorm")];
const GEMMA_NORMS: [(&str, &str); 3] = [
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];
const QUERY_KEY_NORMS: [(&str, &str); 2] =
    [("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm")];

impl Architecture {
    const ALL: [Self; 5] = [Self::Llama, Self::Qwen2, Self::Qwen3, Self::Gemma2, Self::Gemma3];

    pub(super) fn named(name: &str) -> Result<Self, Problem> {
        Self::ALL.into_iter().find(|architecture| architecture.name() == name).ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|architecture| architecture.name()).collect();
            if name.is_empty() {
                damaged("its metadata lacks `general.architecture`")
            } else {
                (
                    format!("architecture `{}` is not known", bounds::shown(name, 200)),
                    format!(
                        "tfcheck imports {}; for others, take the checkpoint's safetensors",
                        known.join(", ")
                    ),
                )
            }
        })
    }

    /// llama.cpp's name, which is also the prefix of the metadata keys.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma2 => "gemma2",
            Self::Gemma3 => "gemma3",
        }
    }

    /// A layer's modules: llama.cpp's name, then transformers' name.
    fn modules(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let (norms, more): (&[_], &[_]) = match self {
            Self::Llama | Self::Qwen2 => (&PLAIN_NORMS, &[]),
            Self::Qwen3 => (&PLAIN_NORMS, &QUERY_KEY_NORMS),
            Self::Gemma2 => (&GEMMA_NORMS, &[]),
            Self::Gemma3 => (&GEMMA_NORMS, &QUERY_KEY_NORMS),
        };
        COMMON.iter().chain(norms).chain(more).copied()
    }

    /// transformers' name of a tensor.
    pub(super) fn translate(self, name: &str, layers: usize) -> Option<String> {
        let (module, parameter) = name.rsplit_once('.')?;
        if parameter != "weight" && parameter != "bias" {
            return None;
        }
        let module = match module {
            "token_embd" => "model.embed_tokens".to_owned(),
            "output_norm" => "model.norm".to_owned(),
            "output" => "lm_head".to_owned(),
            _ => {
                let (layer, module) = module.strip_prefix("blk.")?.split_once('.')?;
                let layer: usize = layer.parse().ok().filter(|layer| *layer < layers)?;
                let (_, module) = self.modules().find(|(theirs, _)| *theirs == module)?;
                format!("model.layers.{layer}.{module}")
            }
        };
        Some(format!("{module}.{parameter}"))
    }

    /// Every weight that a complete model has, by llama.cpp's names.
    pub(super) fn required(self, layers: usize) -> impl Iterator<Item = String> {
        let of_layer =
            move |layer| self.modules().map(move |(module, _)| format!("blk.{layer}.{module}.weight"));
        ["token_embd.weight", "output_norm.weight"]
            .into_iter()
            .map(str::to_owned)
            .chain((0..layers).flat_map(of_layer))
    }

    /// The change that llama.cpp's converter made to a tensor's values.
    pub(super) fn change(self, name: &str, heads: usize, key_value_heads: usize) -> Change {
        match self {
            Self::Llama if name.contains(".attn_q.") => Change::Interleaved { heads },
            Self::Llama if name.contains(".attn_k.") => Change::Interleaved { heads: key_value_heads },
            Self::Gemma2 | Self::Gemma3 if name.ends_with("norm.weight") => Change::PlusOne,
            _ => Change::None,
        }
    }
}
