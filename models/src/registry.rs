//! Which `model_type` is built by which file.

use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::model::{Model, Task};
use crate::weights::Weights;
use crate::{
    bert, cohere, distilbert, falcon, gemma, gemma2, gemma3_text, gpt_neox, gpt2, granite, llama, mistral,
    mixtral, modernbert, olmo2, phi, phi3, qwen2, qwen3, qwen3_moe, roberta, smollm3, stablelm, starcoder2,
    xlm_roberta,
};

/// Builds a model, or says that the architecture lacks the head.
type Build = fn(&ConfigReader, &Weights, Option<Task>) -> Result<Box<dyn Model>>;

const ARCHITECTURES: &[(&str, Build)] = &[
    ("bert", bert::build),
    ("cohere", cohere::build),
    ("distilbert", distilbert::build),
    ("falcon", falcon::build),
    ("gemma", gemma::build),
    ("gemma2", gemma2::build),
    ("gemma3_text", gemma3_text::build),
    ("gpt2", gpt2::build),
    ("gpt_neox", gpt_neox::build),
    ("granite", granite::build),
    ("llama", llama::build),
    ("mistral", mistral::build),
    ("mixtral", mixtral::build),
    ("modernbert", modernbert::build),
    ("olmo2", olmo2::build),
    ("phi", phi::build),
    ("phi3", phi3::build),
    ("qwen2", qwen2::build),
    ("qwen3", qwen3::build),
    ("qwen3_moe", qwen3_moe::build),
    ("roberta", roberta::build),
    ("smollm3", smollm3::build),
    ("stablelm", stablelm::build),
    ("starcoder2", starcoder2::build),
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
