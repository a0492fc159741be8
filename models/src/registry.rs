//! Which `model_type` is built by which file.

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::load::{Model, Task};
use crate::weights::Weights;
use crate::{
    bert, distilbert, falcon, gemma3_text, gpt_neox, gpt2, llama, mistral, modernbert, qwen2, qwen3, roberta,
    xlm_roberta,
};

/// Builds a model, or says that the architecture lacks the head.
type Build = fn(&ConfigReader, &Weights, Option<Task>) -> Result<Box<dyn Model>>;

const ARCHITECTURES: &[(&str, Build)] = &[
    ("bert", bert::build),
    ("distilbert", distilbert::build),
    ("falcon", falcon::build),
    ("gemma3_text", gemma3_text::build),
    ("gpt2", gpt2::build),
    ("gpt_neox", gpt_neox::build),
    ("llama", llama::build),
    ("mistral", mistral::build),
    ("modernbert", modernbert::build),
    ("qwen2", qwen2::build),
    ("qwen3", qwen3::build),
    ("roberta", roberta::build),
    ("xlm-roberta", xlm_roberta::build),
];

/// Every `model_type` that [`crate::load`] knows, sorted.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name)
}

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    let model_type = config.str_or("model_type", "")?;
    let Some((_, build)) = ARCHITECTURES.iter().find(|(name, _)| *name == model_type) else {
        return Err(Error::UnknownModelType {
            model_type: model_type.to_owned(),
            known: model_types().collect::<Vec<_>>().join(", "),
        });
    };
    build(config, weights, task)
}

/// The error of an architecture that lacks a head.
pub(crate) fn unknown_head(model_type: &str, task: Task) -> Error {
    Error::UnknownHead { model_type: model_type.to_owned(), task: format!("{task:?}") }
}
