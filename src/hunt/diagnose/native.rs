//! The native model as the trusted side: in this process, because hundreds of small forward passes are asked for, and with
//! mistakes that no edit of a checkpoint expresses.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use models::{Backend, Deviation, Inputs, Kind, Options};
use reference::protocol::{Dtype, Positions};

use super::side::Output;
use super::tokens::Tokens;
use crate::execute::cell::FailureKind;
use crate::execute::runner::NoResult;

/// Logits of the native model of the checkpoint in `folder` that makes `deviations`, in the eager backend.
///
/// # Errors
/// When the model cannot be loaded or run.
pub(super) fn run(
    folder: &Path,
    model_type: &str,
    tokens: &Tokens,
    dtype: Dtype,
    deviations: &[Deviation],
) -> Result<Output, NoResult> {
    let failed = |error: String| NoResult::failed(FailureKind::Exception, error);
    let dtype = match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::Bf16 => DType::BF16,
        Dtype::F16 => DType::F16,
    };
    let options = Options { dtype, device: Device::Cpu, backend: Backend::Eager };
    let mut loaded = models::load(folder, &options).map_err(|error| failed(error.to_string()))?;
    loaded.deviations = deviations.to_vec();
    let tensor = |values: &[i64]| {
        let values: Vec<u32> = values.iter().map(|&value| value as u32).collect();
        Tensor::from_vec(values, (tokens.batch, tokens.seq), &Device::Cpu)
    };
    let run = || -> candle_core::Result<Inputs> {
        // Encoders count positions themselves.
        let is_decoder = models::kind(model_type) == Some(Kind::Decoder);
        let position_ids = is_decoder.then(|| tensor(&tokens.position_ids)).transpose()?;
        Ok(Inputs {
            attention_mask: Some(tensor(&tokens.attention_mask)?),
            position_ids,
            ..Inputs::new(tensor(&tokens.input_ids)?)
        })
    };
    let inputs = run().map_err(|error| failed(error.to_string()))?;
    let logits = loaded.forward(&inputs).map_err(|error| failed(error.to_string()))?;
    let shape = logits.dims().to_vec();
    let values = logits.to_dtype(DType::F64).and_then(|logits| logits.flatten_all()?.to_vec1());
    Ok(Output {
        shape,
        positions: Positions::All,
        values: values.map_err(|error| failed(error.to_string()))?,
        is_f64: dtype == DType::F64,
    }
    .of_positions())
}
