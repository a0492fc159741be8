//! Loaders of the encoders' ports.

use candle_transformers::models::{bert, debertav2, distilbert, modernbert, nomic_bert, xlm_roberta};
use protocol::Failed;
use tfcheck_port::worker::failure;
use tfcheck_port::{Inputs, Port};

use super::super::checkpoint::Checkpoint;
use super::{no_head, run};

pub(crate) fn load_bert(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: bert::Config = checkpoint.config()?;
    let weights = checkpoint.weights();
    match checkpoint.head() {
        "ForMaskedLM" => {
            let model = bert::BertForMaskedLM::load(weights, &config).map_err(failure)?;
            run(move |batch, _| {
                model.forward(&batch.input_ids, &batch.input_ids.zeros_like()?, Some(&batch.attention_mask))
            })
        }
        "" => {
            let model = bert::BertModel::load(weights, &config).map_err(failure)?;
            run(move |batch, _| {
                model.forward(&batch.input_ids, &batch.input_ids.zeros_like()?, Some(&batch.attention_mask))
            })
        }
        other => Err(no_head(other)),
    }
}

/// The port's mask is 1 at keys that must be masked and must broadcast to `[batch, heads, seq, seq]`.
pub(crate) fn load_distilbert(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: distilbert::Config = checkpoint.config()?;
    let weights = checkpoint.weights();
    let hidden = |batch: &Inputs| batch.attention_mask.eq(0u32)?.unsqueeze(1)?.unsqueeze(1);
    match checkpoint.head() {
        "ForMaskedLM" => {
            let model = distilbert::DistilBertForMaskedLM::load(weights, &config).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids, &hidden(batch)?))
        }
        "" => {
            let model = distilbert::DistilBertModel::load(weights, &config).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids, &hidden(batch)?))
        }
        other => Err(no_head(other)),
    }
}

pub(crate) fn load_xlm_roberta(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: xlm_roberta::Config = checkpoint.config()?;
    let weights = checkpoint.weights();
    match checkpoint.head() {
        "ForMaskedLM" => {
            let model = xlm_roberta::XLMRobertaForMaskedLM::new(&config, weights).map_err(failure)?;
            run(move |batch, _| {
                let types = batch.input_ids.zeros_like()?;
                model.forward(&batch.input_ids, &batch.attention_mask, &types, None, None, None)
            })
        }
        "ForSequenceClassification" => {
            let model =
                xlm_roberta::XLMRobertaForSequenceClassification::new(checkpoint.labels(), &config, weights)
                    .map_err(failure)?;
            run(move |batch, _| {
                model.forward(&batch.input_ids, &batch.attention_mask, &batch.input_ids.zeros_like()?)
            })
        }
        "" => {
            let model = xlm_roberta::XLMRobertaModel::new(&config, weights).map_err(failure)?;
            run(move |batch, _| {
                let types = batch.input_ids.zeros_like()?;
                model.forward(&batch.input_ids, &batch.attention_mask, &types, None, None, None)
            })
        }
        other => Err(no_head(other)),
    }
}

pub(crate) fn load_modernbert(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: modernbert::Config = checkpoint.config()?;
    let weights = checkpoint.weights();
    match checkpoint.head() {
        "ForMaskedLM" => {
            let model = modernbert::ModernBertForMaskedLM::load(weights, &config).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids, &batch.attention_mask))
        }
        "ForSequenceClassification" => {
            let model =
                modernbert::ModernBertForSequenceClassification::load(weights, &config).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids, &batch.attention_mask))
        }
        "" => {
            let model = modernbert::ModernBert::load(weights, &config).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids, &batch.attention_mask))
        }
        other => Err(no_head(other)),
    }
}

/// The port reads the encoder below `deberta` for every head, and without it for the headless model.
pub(crate) fn load_debertav2(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: debertav2::Config = checkpoint.config()?;
    let weights = checkpoint.weights();
    let prefixed = weights.clone().set_prefix("deberta");
    match checkpoint.head() {
        "ForTokenClassification" => {
            let model = debertav2::DebertaV2NERModel::load(prefixed, &config, None).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids, None, Some(batch.attention_mask.clone())))
        }
        "ForSequenceClassification" => {
            let model =
                debertav2::DebertaV2SeqClassificationModel::load(prefixed, &config, None).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids, None, Some(batch.attention_mask.clone())))
        }
        "" => {
            let model = debertav2::DebertaV2Model::load(weights, &config).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids, None, Some(batch.attention_mask.clone())))
        }
        other => Err(no_head(other)),
    }
}

pub(crate) fn load_nomic_bert(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: nomic_bert::Config = checkpoint.config()?;
    let weights = checkpoint.weights();
    match checkpoint.head() {
        "" => {
            let model = nomic_bert::NomicBertModel::load(weights, &config).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids, None, Some(&batch.attention_mask)))
        }
        other => Err(no_head(other)),
    }
}
