//! `[inputs]`: what every variant is given.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{enabled, is_enabled};
use crate::spec::inputs::retrieval;

/// The inputs: `prompts` or `token_ids` (one batch, a sequence each), `lengths` (a sweep over token counts), or `tensors` (a file).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[serde(rename = "Inputs")]
#[expect(clippy::struct_excessive_bools, reason = "the keys of the config")]
pub struct InputsConfig {
    /// Texts that make one batch, one sequence per text; excludes `lengths`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Vec<String>>,
    /// Whether the checkpoint's chat template is applied to each prompt; only with `prompts`. Default: false.
    pub chat: bool,
    /// Texts whose probability as the next token is reported per variant; only with `prompts`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub choices: Option<Vec<String>>,
    /// Whether the batch is a small built-in retrieval set, 12 questions and 24 passages, for checkpoints of sentence-transformers: the report shows whether each variant ranks the passages in the same order; excludes the other forms. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub retrieval: bool,
    /// Token ids that make one batch, one list per sequence; excludes `prompts` and `lengths`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<Vec<u32>>>,
    /// Pictures that the checkpoint's processor converts once for all variants, one for each prompt or all for the only one; `built-in` is a test picture of tfcheck's. With `chat`, the template says where they stand in the text. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub images: Option<Vec<String>>,
    /// Sounds, WAV files of 16 bits at the model's rate, as `images`; `built-in` is a chirp of a second. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audio: Option<Vec<String>>,
    /// A safetensors file with everything that `forward` gets, each tensor under the name of its argument (`input_ids`, `pixel_values`, `input_features`, `decoder_input_ids` …); excludes the other forms. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensors: Option<PathBuf>,
    /// Whether the model gets the tokens as `labels` too, so that its loss is compared as a further output. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub labels: bool,
    /// Sequence lengths in tokens, one case each; excludes `prompts`. Default: `[128]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lengths: Option<Vec<usize>>,
    /// Batch sizes, one case each; only with `lengths`. Default: `[1]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<Vec<usize>>,
    /// UTF-8 text file from which a sweep cuts its sequences; only with `lengths`. Default: a built-in text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<PathBuf>,
    /// Padding of a batch, one case each: `none` (sequences of one length), `left` or `right`. With a side, the sequences of a sweep have different lengths, and a batch of one is padded by a quarter of its length. Default: `["none"]` for a sweep; for prompts and token ids, shorter sequences are padded on the right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub padding: Option<Vec<Padding>>,
    /// Prefill lengths in tokens, smaller than the sequence length; the rest is decoded token by token through the KV cache. Each makes a case in addition to the full-sequence forward pass, compared but not timed; only with `lengths`. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill: Option<Vec<usize>>,
    /// Whether models get `position_ids`, which count the tokens that are not padding. With false, transformers models count positions themselves, and native models and programs get 0 to the last token, padding included. Default: true.
    #[serde(default = "enabled", skip_serializing_if = "is_enabled")]
    pub position_ids: bool,
    /// Seed that selects where the text is cut, or the random token ids of a checkpoint without a tokenizer. Default: 0.
    pub seed: u64,
}

/// Which of its forms [`InputsConfig`] has.
#[derive(Clone, Debug, PartialEq)]
pub enum InputsForm<'config> {
    /// One batch, a row per prompt.
    Prompts {
        /// The texts.
        prompts: &'config [String],
        /// Whether each is rendered through the chat template.
        chat: bool,
    },
    /// One batch of token ids.
    TokenIds(&'config [Vec<u32>]),
    /// The tensors of a file.
    Tensors(&'config Path),
    /// What the checkpoint's processor makes of pictures, sounds and prompts.
    Processed,
    /// A case for each length, batch size and side.
    Sweep {
        /// Tokens a row.
        lengths: Vec<usize>,
        /// Rows a batch.
        batch: Vec<usize>,
        /// Tokens of each prefill that is followed by decoding; the full-sequence forward pass always runs too.
        prefill: &'config [usize],
        /// Where the rows come from; the built-in text when absent.
        text: Option<&'config Path>,
    },
}

/// The padding of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Sequences of one length.
    None,
    /// Before the first real token.
    Left,
    /// After the last real token.
    Right,
}

impl Default for InputsConfig {
    fn default() -> Self {
        Self {
            prompts: None,
            chat: false,
            choices: None,
            retrieval: false,
            token_ids: None,
            images: None,
            audio: None,
            tensors: None,
            labels: false,
            lengths: None,
            batch: None,
            text: None,
            padding: None,
            prefill: None,
            position_ids: true,
            seed: 0,
        }
    }
}

impl InputsConfig {
    /// Whether the checkpoint's processor makes the inputs.
    pub fn is_processed(&self) -> bool {
        self.images.is_some() || self.audio.is_some()
    }

    /// The form that the inputs have, defaults filled in.
    pub fn form(&self) -> InputsForm<'_> {
        if self.is_processed() {
            return InputsForm::Processed;
        }
        if self.retrieval {
            return InputsForm::Prompts { prompts: &retrieval::TEXTS, chat: false };
        }
        match (&self.prompts, &self.token_ids, &self.tensors) {
            (Some(prompts), ..) => InputsForm::Prompts { prompts, chat: self.chat },
            (None, Some(sequences), _) => InputsForm::TokenIds(sequences),
            (None, None, Some(path)) => InputsForm::Tensors(path),
            (None, None, None) => InputsForm::Sweep {
                lengths: self.lengths.clone().unwrap_or_else(|| vec![128]),
                batch: self.batch.clone().unwrap_or_else(|| vec![1]),
                prefill: self.prefill.as_deref().unwrap_or_default(),
                text: self.text.as_deref(),
            },
        }
    }
}
