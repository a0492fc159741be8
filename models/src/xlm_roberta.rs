//! XLM-RoBERTa: `RoBERTa` with another vocabulary. Code, module names and all defaults except the vocabulary size are
//! `RoBERTa`'s (transformers 5.23.0, `models/xlm_roberta/modeling_xlm_roberta.py` and
//! `configuration_xlm_roberta.py`).

use crate::config::ConfigReader;
use crate::error::Result;
use crate::model::{Model, Task};
use crate::roberta;
use crate::weights::Weights;

pub(crate) fn build(config: &ConfigReader, weights: &Weights, task: Option<Task>) -> Result<Box<dyn Model>> {
    roberta::build_as("xlm-roberta", 30522, config, weights, task)
}
