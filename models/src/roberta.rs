//! `RoBERTa`: BERT's encoder with positions that start after the padding id, and different heads (transformers
//! 5.23.0, `models/roberta/modeling_roberta.py` and `configuration_roberta.py`).

use crate::bert::{Config, Encoder, Positions};
use crate::config::ConfigReader;
use crate::error::Result;
use crate::layers::{Activation, Embedding, LayerNorm, Linear, first_position, one_per_row};
use crate::model::{Model, Task, unknown_head};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// The head, by task.
enum Head {
    MaskedLm(MaskedLm),
    SequenceClassification(SequenceClassification),
    HiddenStates,
}

struct MaskedLm {
    path: String,
    dense: Linear,
    layer_norm: LayerNorm,
    decoder: Linear,
}

impl MaskedLm {
    fn load(config: &Config, weights: &Weights, words: &Embedding) -> Result<Self> {
        let size = config.hidden_size;
        Ok(Self {
            path: weights.path().to_owned(),
            dense: Linear::load(&weights.pp("dense"), size, size, true)?,
            layer_norm: config.norm(&weights.pp("layer_norm"))?,
            // With tied weights the decoder still has its own bias.
            decoder: if config.tie_word_embeddings {
                Linear::tied(&weights.pp_as("decoder", ""), words, true)?
            } else {
                Linear::load(&weights.pp("decoder"), size, config.vocab_size, true)?
            },
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.dense.forward(pass, &xs)?;
            // `RobertaLMHead` uses the exact gelu whatever `hidden_act` is.
            let h = Activation::Gelu.inline(&h)?;
            let h = self.layer_norm.forward(pass, &h)?;
            self.decoder.forward(pass, &h)
        })
    }
}

struct SequenceClassification {
    path: String,
    dense: Linear,
    out_proj: Linear,
}

impl SequenceClassification {
    fn load(config: &Config, weights: &Weights, num_labels: usize) -> Result<Self> {
        let size = config.hidden_size;
        Ok(Self {
            path: weights.path().to_owned(),
            dense: Linear::load(&weights.pp("dense"), size, size, true)?,
            out_proj: Linear::load(&weights.pp("out_proj"), size, num_labels, true)?,
        })
    }

    fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |pass, xs| {
            let h = self.dense.forward(pass, &first_position(pass, &xs)?)?;
            let labels = self.out_proj.forward(pass, &Activation::Tanh.inline(&h)?)?;
            one_per_row(pass, &labels)
        })
    }
}

struct Roberta {
    encoder: Encoder,
    head: Head,
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    build_as("roberta", 50265, config, weights, task)
}

/// Builds the model for `roberta` and `xlm-roberta`, which differ only in their name and the default vocabulary size.
pub(crate) fn build_as(
    model_type: &str,
    default_vocab_size: usize,
    reader: &ConfigReader,
    weights: &Weights,
    task: Option<Task>,
) -> Result<Box<dyn Model>> {
    let config = Config::read(reader, default_vocab_size, Positions::AfterPadding)?;
    let task = task.unwrap_or(Task::HiddenStates);
    let encoder = Encoder::load(&config, &weights.body("roberta", task != Task::HiddenStates))?;
    let words = &encoder.embeddings.word_embeddings;
    let head = match task {
        Task::MaskedLm => Head::MaskedLm(MaskedLm::load(&config, &weights.pp("lm_head"), words)?),
        Task::SequenceClassification => {
            let classifier = weights.pp("classifier");
            let labels = reader.num_labels()?;
            Head::SequenceClassification(SequenceClassification::load(&config, &classifier, labels)?)
        }
        Task::HiddenStates => Head::HiddenStates,
        Task::CausalLm | Task::Seq2SeqLm | Task::Similarity | Task::Embeddings => {
            return Err(unknown_head(model_type, task));
        }
    };
    Ok(Box::new(Roberta { encoder, head }))
}

impl Model for Roberta {
    fn forward(&self, pass: &mut Pass) -> Result<Xs> {
        let xs = self.encoder.forward(pass)?;
        match &self.head {
            Head::MaskedLm(head) => head.forward(pass, &xs),
            Head::SequenceClassification(head) => head.forward(pass, &xs),
            Head::HiddenStates => Ok(xs),
        }
    }
}
