//! Loaders of the ports of encoder-decoders: of texts, of speech, and of pictures with text.

use candle_core::Tensor;
use candle_transformers::models::{marian, t5, trocr, vit, whisper};
use protocol::{DECODER_INPUT_IDS, Failed, INPUT_IDS, Positions};
use tfcheck_port::Port;
use tfcheck_port::worker::failure;

use super::super::checkpoint::Checkpoint;
use super::{PIXELS, no_head, run, tensors};

/// The whole model, which takes no mask and returns the last position, or the encoder alone, which takes no mask either.
pub(crate) fn load_t5(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: t5::Config = checkpoint.config()?;
    match checkpoint.head() {
        "" => {
            let mut model = t5::T5EncoderModel::load(checkpoint.weights(), &config).map_err(failure)?;
            run(move |batch, _| model.forward(&batch.input_ids))
        }
        "ForConditionalGeneration" => {
            let mut model =
                t5::T5ForConditionalGeneration::load(checkpoint.weights(), &config).map_err(failure)?;
            let port = tensors(&[INPUT_IDS, DECODER_INPUT_IDS], move |inputs| {
                model.clear_kv_cache();
                model.forward(inputs.get(INPUT_IDS)?, inputs.get(DECODER_INPUT_IDS)?)
            })?;
            Ok(port.giving(Positions::Last))
        }
        other => Err(no_head(other)),
    }
}

pub(crate) fn load_marian(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: marian::Config = checkpoint.config()?;
    let mut model = marian::MTModel::new(&config, checkpoint.weights()).map_err(failure)?;
    tensors(&[INPUT_IDS, DECODER_INPUT_IDS], move |inputs| {
        model.reset_kv_cache();
        let encoded = model.encoder().forward(inputs.get(INPUT_IDS)?, 0)?;
        model.decode(inputs.get(DECODER_INPUT_IDS)?, &encoded, 0)
    })
}

pub(crate) fn load_whisper(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    let config: whisper::Config = checkpoint.config()?;
    let mut model = whisper::model::Whisper::load(&checkpoint.weights(), config).map_err(failure)?;
    tensors(&["input_features", DECODER_INPUT_IDS], move |inputs| {
        let encoded = model.encoder.forward(inputs.get("input_features")?, true)?;
        let hidden = model.decoder.forward(inputs.get(DECODER_INPUT_IDS)?, &encoded, true)?;
        model.decoder.final_linear(&hidden)
    })
}

/// As in the port's example, the decoder gets one token at a time: its mask for more is that of the tokens, and does not fit
/// the picture's positions.
pub(crate) fn load_trocr(checkpoint: &Checkpoint) -> Result<Port, Failed> {
    #[derive(serde::Deserialize)]
    struct Config {
        encoder: vit::Config,
        decoder: trocr::TrOCRConfig,
    }
    let config: Config = checkpoint.config()?;
    let mut model =
        trocr::TrOCRModel::new(&config.encoder, &config.decoder, checkpoint.weights()).map_err(failure)?;
    tensors(&[PIXELS, DECODER_INPUT_IDS], move |inputs| {
        model.reset_kv_cache();
        let encoded = model.encoder().forward(inputs.get(PIXELS)?)?;
        let ids = inputs.get(DECODER_INPUT_IDS)?;
        let logits = (0..ids.dim(1)?).map(|at| model.decode(&ids.narrow(1, at, 1)?, &encoded, at));
        Tensor::cat(&logits.collect::<candle_core::Result<Vec<_>>>()?, 1)
    })
}
