//! The interface of an architecture: the model trait, the task of its head, and the options for loading.

use candle_core::{DType, Device};

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::pass::Pass;
use crate::xs::Xs;

/// How the layers compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// One tensor operation at a time, with the semantics of transformers' eager attention.
    Eager,
    /// Computes the same function with packed weights and fused kernels: F32 and BF16 on the CPU, and with
    /// [`load_on_gpu`](crate::load_on_gpu) also F16. An operation without a fused kernel runs as in the eager
    /// backend.
    Fused,
}

/// Backend, dtype and device with which a checkpoint is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// dtype of weights and activations: F64, F32, BF16 or F16.
    ///
    /// With F64 every operation is in F64, including those that transformers always computes in F32 (norms, softmax,
    /// rope tables), because the F64 model is the float64 reference.
    pub dtype: DType,
    /// The device that computes.
    pub device: Device,
    /// How the layers compute.
    pub backend: Backend,
}

/// The output of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Logits of the next token, `[batch, seq, vocab_size]`.
    CausalLm,
    /// Logits of the masked token, `[batch, seq, vocab_size]`.
    MaskedLm,
    /// Logits of each label, `[batch, num_labels]`.
    SequenceClassification,
    /// Hidden states, `[batch, seq, hidden_size]`; of an encoder-decoder those of the decoder.
    HiddenStates,
    /// One projected vector for each text or image, `text_embeds` or `image_embeds`, `[batch, projection_dim]`.
    Embeddings,
    /// Logits of an encoder-decoder for the decoder's next token, `[batch, decoder_seq, vocab_size]`.
    Seq2SeqLm,
    /// Scaled cosines of images and texts, `logits_per_image`, `[images, texts]`.
    Similarity,
}

impl Task {
    /// The head given by `architectures`; `None` if the config has none.
    pub(crate) fn read(config: &ConfigReader) -> Result<Option<Self>> {
        let Some(architectures) = config.optional_strs("architectures")? else {
            return Ok(None);
        };
        let Some(name) = architectures.first() else {
            return Ok(None);
        };
        let unknown = || Error::UnknownValue { key: "architectures".to_owned(), value: (*name).to_owned() };
        Self::of_class(name).map(Some).ok_or_else(unknown)
    }

    /// The head of transformers' class of this name; `None` if no model of this crate has one of its kind.
    pub fn of_class(name: &str) -> Option<Self> {
        Some(match name {
            _ if name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel") => Self::CausalLm,
            _ if name.ends_with("ForMaskedLM") => Self::MaskedLm,
            _ if name.ends_with("ForSequenceClassification") => Self::SequenceClassification,
            // Its name ends as that of an encoder-decoder.
            "Qwen2VLForConditionalGeneration" => Self::CausalLm,
            _ if name.ends_with("ForConditionalGeneration") => Self::Seq2SeqLm,
            "CLIPModel" => Self::Similarity,
            "CLIPTextModelWithProjection" | "CLIPVisionModelWithProjection" => Self::Embeddings,
            // The encoder by itself, which has a row of its own in the table of architectures.
            "T5EncoderModel" => Self::HiddenStates,
            // The name of the encoder of an encoder-decoder ends thus too.
            _ if name.ends_with("Model") && !name.ends_with("EncoderModel") => Self::HiddenStates,
            _ => return None,
        })
    }
}

/// One architecture with its weights.
pub trait Model: Send + Sync {
    /// One forward pass over [`PassInputs::input_ids`](crate::PassInputs::input_ids); the output depends on the
    /// [`Task`].
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn forward(&self, pass: &mut Pass) -> Result<Xs>;

    /// Names of the inputs that the model takes beside token ids, their mask and their positions.
    fn inputs(&self) -> &'static [&'static str] {
        &[]
    }

    /// transformers' name of the output, for a model that has further outputs ([`Pass::output`]).
    fn output(&self) -> &'static str {
        "logits"
    }
}

/// The error for an architecture that lacks a head.
pub(crate) fn unknown_head(model_type: &str, task: Task) -> Error {
    Error::UnknownHead { model_type: model_type.to_owned(), task: format!("{task:?}") }
}
