//! Inputs: prompts converted once to token ids, mask and positions, hashed, and passed identically to every variant.

mod batch;
mod error;
mod foreign;
mod modal;
pub(crate) mod retrieval;
mod saved;
mod sweep;
mod template;
mod tensor_file;
mod tensors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use bounds::limits::VOCAB_SIZE;
use serde::{Deserialize, Serialize};

use crate::spec::checkpoint::{self, Checkpoint, config_value};

pub use error::Error;
pub use foreign::{Apart, serve};
use foreign::{Encoded, Foreign, Lost};
pub use saved::{Saved, Tokens, load};
pub use template::{Message, TemplateError, render};
pub use tensors::{Tensor, Tensors};

/// The source of a run's inputs.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    /// Explicit prompts, one batch.
    Prompts {
        /// One prompt per sequence of the batch.
        prompts: Vec<Prompt>,
        /// Which sequences get padding.
        fill: Fill,
        /// Answers whose first tokens' probabilities are reported.
        choices: Vec<String>,
    },
    /// Explicit token ids, one batch.
    TokenIds {
        /// The token ids of each sequence.
        sequences: Vec<Vec<i64>>,
        /// Which sequences get padding.
        fill: Fill,
    },
    /// Every combination of lengths, batch sizes and paddings, one batch each.
    Lengths {
        /// Sequence lengths in tokens, begin token included.
        lengths: Vec<usize>,
        /// Batch sizes.
        batches: Vec<usize>,
        /// `None`: sequences of equal length. `Some`: sequences of different lengths with padding on that side; a batch of
        /// one sequence has padding too.
        paddings: Vec<Option<Padding>>,
        /// A text file to take tokens from; `None` for the text that tfcheck includes.
        text: Option<PathBuf>,
        /// Seed of the random token ids, used if the checkpoint has no tokenizer.
        seed: u64,
    },
    /// The tensors of a safetensors file.
    Tensors(PathBuf),
    /// The tensors that the checkpoint's processor made of these texts, in a safetensors file.
    Processed {
        /// The file.
        path: PathBuf,
        /// The texts as they were tokenised.
        texts: Vec<String>,
        /// Answers whose first tokens' probabilities are reported.
        choices: Vec<String>,
        /// The processor's class.
        class: String,
    },
}

/// The prompt of one sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompt {
    /// Tokenised unchanged, with the tokenizer's begin and end tokens.
    Text(String),
    /// Rendered by the checkpoint's chat template, with the generation prompt.
    Chat(Vec<Message>),
}

/// The side on which shorter sequences are padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Before the first real token, as for generation.
    Left,
    /// After the last real token.
    Right,
}

/// Which sequences of a batch of given texts or token ids get padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The shorter ones, on the right; none where all have one length.
    AsNeeded,
    /// None: all sequences must have one length.
    Never,
    /// The shorter ones, on this side; where all have one length, each one, by a quarter of the length and at least one
    /// token.
    Always(Padding),
}

/// One batch of inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inputs {
    /// Name in tables and folders: `prompts`, `seq128_batch2_left`.
    pub name: String,
    /// Token ids, `[batch, seq]`, row-major.
    #[serde(skip)]
    pub input_ids: Vec<i64>,
    /// 1 at real tokens and 0 at padding, `[batch, seq]`.
    #[serde(skip)]
    pub attention_mask: Vec<i64>,
    /// Position of each token among the real tokens of its sequence, 0 at padding, `[batch, seq]`.
    #[serde(skip)]
    pub position_ids: Vec<i64>,
    /// Batch size.
    pub batch: usize,
    /// Sequence length in tokens, padding included.
    pub seq: usize,
    /// Side of the padding; `None` if no sequence is padded.
    pub padding: Option<Padding>,
    /// The prompts as given; empty for sweeps.
    pub prompts: Vec<Prompt>,
    /// The prompts as tokenised; empty for sweeps.
    pub rendered: Vec<String>,
    /// The text of each token of `input_ids`; empty without a tokenizer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<String>,
    /// Answer tokens.
    pub choices: Vec<Choice>,
    /// Whether `position_ids` are withheld from models that can count positions themselves.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_positions: bool,
    /// What the model gets beside tokens, mask and positions, by the names of its arguments. Without tokens, `seq` is 0.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tensors: Tensors,
    /// SHA-256 over shape, ids, mask, positions and tensors.
    pub digest: String,
    /// How the inputs were made, and what a reader needs to interpret the numbers.
    pub notes: Vec<String>,
}

/// An answer whose probability is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The answer.
    pub text: String,
    /// Its first token.
    pub id: u32,
    /// Number of tokens of the whole answer; only the first token's probability is reported.
    pub tokens: usize,
}

/// Creates the batches of a spec, each ready to be saved.
///
/// # Errors
/// When something is empty, cannot be tokenised or rendered, or does not fit the model's vocabulary.
pub fn make(spec: &Spec, checkpoint: &Checkpoint) -> Result<Vec<Inputs>, Error> {
    Source::open(checkpoint)?.make(spec)
}

/// The run's texts and token ids, to compare with a runner's own tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// The texts as tokenised.
    pub texts: Vec<String>,
    /// Token ids of each text.
    pub ids: Vec<Vec<i64>>,
    /// Tokens of each text, as the vocabulary writes them.
    pub tokens: Vec<Vec<String>>,
    /// Whether the ids include begin and end tokens.
    pub add_special_tokens: bool,
}

/// A checkpoint's tokenizer, read once, and the config values that inputs depend on.
pub struct Source<'a> {
    checkpoint: &'a Checkpoint,
    foreign: Foreign,
}

impl Inputs {
    /// Adds labels, so that a model of this config computes its loss.
    pub fn label(&mut self, config: &serde_json::Value) {
        modal::label(self, config);
    }

    /// Lets each model count positions itself: transformers get no `position_ids`; whatever needs positions gets those
    /// that most decoders count by default, 0 to seq-1 with padding included.
    pub fn withhold_positions(&mut self) {
        self.own_positions = true;
        self.position_ids = (0..self.batch).flat_map(|_| 0..self.seq as i64).collect();
        self.digest = batch::digest(self);
        self.notes.push(
            "transformers get no position_ids; native models and programs get 0 to the last token, padding included"
                .to_owned(),
        );
    }
}

impl<'a> Source<'a> {
    /// Reads the checkpoint's tokenizer, if it has one, in this process.
    ///
    /// # Errors
    /// When the tokenizer cannot be read.
    pub fn open(checkpoint: &'a Checkpoint) -> Result<Self, Error> {
        Self::open_in(checkpoint, None)
    }

    /// As [`Source::open`], in a process of its own, which has limits and may die.
    ///
    /// # Errors
    /// As [`Source::open`], or when the process cannot be started.
    pub fn open_apart(checkpoint: &'a Checkpoint, apart: &Apart) -> Result<Self, Error> {
        Self::open_in(checkpoint, Some(apart))
    }

    fn open_in(checkpoint: &'a Checkpoint, apart: Option<&Apart>) -> Result<Self, Error> {
        // Without a tokenizer nothing foreign is read.
        let tokenizer = checkpoint.tokenizer.as_deref();
        let foreign = Foreign::open(tokenizer, apart.filter(|_| tokenizer.is_some()));
        Ok(Self { checkpoint, foreign: foreign.map_err(|lost| lost_tokenizer(checkpoint, lost))? })
    }

    /// Creates the batches of a spec, each ready to be saved.
    ///
    /// # Errors
    /// When something is empty, cannot be tokenised or rendered, or does not fit the model's vocabulary.
    pub fn make(&self, spec: &Spec) -> Result<Vec<Inputs>, Error> {
        let mut made = match spec {
            Spec::Prompts { prompts, fill, choices } => {
                vec![batch::from_prompts(self, prompts, *fill, choices)?]
            }
            Spec::TokenIds { sequences, fill } => {
                vec![batch::from_sequences(self, "token_ids".to_owned(), sequences, *fill, Vec::new())?]
            }
            Spec::Lengths { .. } if let Some(path) = self.own_inputs() => {
                let mut inputs = tensor_file::of_file(&path)?;
                "own".clone_into(&mut inputs.name);
                inputs.notes.push(
                    "the inputs lie beside the synthetic checkpoint, and `lengths` are not read".to_owned(),
                );
                return Ok(vec![inputs]);
            }
            Spec::Lengths { lengths, batches, paddings, text, seed } => {
                sweep::from_lengths(self, lengths, batches, paddings, text.as_deref(), *seed)?
            }
            Spec::Tensors(path) => vec![tensor_file::of_file(path)?],
            Spec::Processed { path, texts, choices, class } => {
                let mut inputs = tensor_file::of_file(path)?;
                "processed".clone_into(&mut inputs.name);
                inputs.rendered.clone_from(texts);
                inputs.choices = batch::choices(self, choices)?;
                inputs.notes.push(format!("made by {class} of the newest release"));
                vec![inputs]
            }
        };
        for inputs in &mut made {
            if matches!(spec, Spec::Lengths { .. }) {
                modal::end(inputs, &self.checkpoint.config);
            }
            if !matches!(spec, Spec::Tensors(_) | Spec::Processed { .. }) {
                modal::complete(inputs, &self.checkpoint.config)?;
            }
            inputs.texts = self.token_texts(&inputs.input_ids)?;
        }
        Ok(made)
    }

    /// The texts of a batch of `spec` with their ids; `None` if the checkpoint has no tokenizer.
    ///
    /// # Errors
    /// When a text cannot be read or tokenised.
    pub fn texts(&self, spec: &Spec, inputs: &Inputs) -> Result<Option<Texts>, Error> {
        if !self.has_tokenizer() {
            return Ok(None);
        }
        let (texts, add_special_tokens) = match spec {
            Spec::Prompts { prompts, .. } => {
                (inputs.rendered.clone(), matches!(prompts.first(), Some(Prompt::Text(_))))
            }
            Spec::Lengths { text, .. } => (vec![sweep::read(text.as_deref())?.0], false),
            Spec::TokenIds { .. } | Spec::Tensors(_) | Spec::Processed { .. } => return Ok(None),
        };
        let mut found = Texts { add_special_tokens, ..Texts::default() };
        for text in texts {
            let Encoded { ids, tokens } =
                self.foreign.encode(&text, add_special_tokens, true).map_err(|lost| self.lost(lost))?;
            found.ids.push(ids.into_iter().map(i64::from).collect());
            found.tokens.push(tokens);
            found.texts.push(text);
        }
        Ok(Some(found))
    }

    /// The text of every token id; nothing without a tokenizer.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn vocabulary(&self) -> Result<Vec<String>, Error> {
        if !self.has_tokenizer() {
            return Ok(Vec::new());
        }
        let size = self.foreign.size().map_err(|lost| self.lost(lost))?;
        if let Err(exceeded) = VOCAB_SIZE.check(size as u64) {
            return Err(self.lost(Lost::Failed(format!("it has {exceeded}"))));
        }
        self.foreign.texts((0..size as u32).collect()).map_err(|lost| self.lost(lost))
    }

    /// What each token stands for, so that a run can be read without its tokenizer; nothing without one.
    fn token_texts(&self, ids: &[i64]) -> Result<Vec<String>, Error> {
        if !self.has_tokenizer() {
            return Ok(Vec::new());
        }
        let distinct: BTreeSet<u32> = ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        let texts = self.foreign.texts(distinct.iter().copied().collect()).map_err(|lost| self.lost(lost))?;
        let known: BTreeMap<i64, String> = distinct.into_iter().map(i64::from).zip(texts).collect();
        Ok(ids.iter().map(|id| known.get(id).cloned().unwrap_or_default()).collect())
    }

    /// The inputs that were made with a synthetic checkpoint, because tokens alone do not do.
    fn own_inputs(&self) -> Option<PathBuf> {
        let is_synthetic = matches!(self.checkpoint.source, checkpoint::Source::Synthetic { .. });
        let path = self.checkpoint.folder.join("inputs.safetensors");
        (is_synthetic && path.is_file()).then_some(path)
    }

    fn has_tokenizer(&self) -> bool {
        self.checkpoint.tokenizer.is_some()
    }

    fn lost(&self, lost: Lost) -> Error {
        lost_tokenizer(self.checkpoint, lost)
    }

    fn need_tokenizer(&self, what: impl Fn() -> String) -> Result<(), Error> {
        if self.has_tokenizer() {
            return Ok(());
        }
        Err(Error::NoTokenizer { checkpoint: self.checkpoint.name.clone(), what: what() })
    }

    fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
        what: impl Fn() -> String,
    ) -> Result<Vec<i64>, Error> {
        self.need_tokenizer(what)?;
        let encoded = self.foreign.encode(text, add_special_tokens, false).map_err(|lost| self.lost(lost))?;
        Ok(encoded.ids.into_iter().map(i64::from).collect())
    }

    /// A conversation by the checkpoint's template.
    fn render(&self, messages: &[Message]) -> Result<template::Chat, Error> {
        let folder = &self.checkpoint.folder;
        match self.foreign.render(folder, messages) {
            Ok(rendered) => Ok(rendered?),
            Err(Lost::Interrupted) => Err(Error::Interrupted),
            Err(Lost::Failed(reason)) => Err(TemplateError::Fails { path: folder.clone(), reason }.into()),
        }
    }

    /// Token ids of a config key that holds one id or several.
    fn ids(&self, key: &str) -> Vec<i64> {
        token_ids(&self.checkpoint.config, key)
    }

    /// The token id of padding and a note if the checkpoint's own cannot be used.
    fn pad_id(&self) -> (i64, Option<String>) {
        let config = &self.checkpoint.config;
        let id = pad_token_id(config);
        let outside =
            PADDING.iter().flat_map(|key| self.ids(key)).find(|own| *own >= 0).filter(|own| *own != id);
        let note =
            outside.map(|own| format!("padding is token 0: pad_token_id {own} is outside the vocabulary"));
        (id, note)
    }
}

fn lost_tokenizer(checkpoint: &Checkpoint, lost: Lost) -> Error {
    match lost {
        Lost::Interrupted => Error::Interrupted,
        Lost::Failed(reason) => {
            Error::Tokenizer { path: checkpoint.tokenizer.clone().unwrap_or_default(), reason }
        }
    }
}

/// Token ids of a config key that holds one id or several.
fn token_ids(config: &serde_json::Value, key: &str) -> Vec<i64> {
    match config.get(key) {
        Some(serde_json::Value::Array(ids)) => ids.iter().filter_map(serde_json::Value::as_i64).collect(),
        Some(id) => id.as_i64().into_iter().collect(),
        None => Vec::new(),
    }
}

/// Config keys of the token that pads, in the order of preference.
const PADDING: [&str; 2] = ["pad_token_id", "eos_token_id"];

/// The token id of padding: the checkpoint's own, or 0 if it has none or one outside its vocabulary. Padding is masked, so
/// any id of the vocabulary would do; the checkpoint's own is the least surprising.
pub(crate) fn pad_token_id(config: &serde_json::Value) -> i64 {
    let own = PADDING.iter().flat_map(|key| token_ids(config, key)).find(|id| *id >= 0);
    let vocab_size = config_value(config, "vocab_size").and_then(serde_json::Value::as_i64);
    own.filter(|id| vocab_size.is_none_or(|size| *id < size)).unwrap_or(0)
}
