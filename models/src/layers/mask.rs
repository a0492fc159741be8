//! Attention masks.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use half::{bf16, f16};

use crate::deviations::Deviation;
use crate::error::{Error, Result};
use crate::inputs::PassInputs;
use crate::kernels::Band;
use crate::pass::Pass;

/// The mask of one layer type, computed once per forward pass (transformers 5.23.0, `masking_utils.py`,
/// `eager_mask`).
#[derive(Clone, Debug)]
pub struct Mask {
    /// The bias added to the scores, `[1 or batch, 1 or num_heads, seq, past + seq]`: 0 or the bias of its distance for
    /// an admitted key, else the dtype's lowest finite value; `None` if every key is admitted.
    pub(super) bias: Option<Tensor>,
    /// The same mask for the fused kernels.
    pub(super) band: Band,
    /// The biases by distance for the fused kernels (see [`Relative`](crate::kernels::Relative)); `None` if there are
    /// none.
    pub(super) relative: Option<Arc<[f32]>>,
}

impl Mask {
    /// Each query attends to itself and the tokens before it; with a window of `w`, to the last `w` keys including
    /// itself. Padding is never attended to. Distances count tokens in the sequence, not position ids.
    ///
    /// # Errors
    /// If the tensor cannot be made.
    pub fn causal(pass: &Pass, window: Option<usize>) -> Result<Self> {
        let mut band = window.map_or(Band::CAUSAL, Band::causal_window);
        if pass.deviates(Deviation::MaskOneAhead) {
            band.after = Some(1);
        }
        if pass.deviates(Deviation::MaskNotCausal) {
            band.after = None;
        }
        Self::build(pass, band, pass.seq() == 1 && window.is_none())
    }

    /// Each query attends to every token that is not padding; with a window of `w`, to those at a distance of at most
    /// `w` (transformers 5.23.0, `sliding_window_bidirectional_overlay`).
    ///
    /// # Errors
    /// If the forward pass has a cache, because earlier tokens would have to attend to later ones, or if the tensor
    /// cannot be made.
    pub fn bidirectional(pass: &Pass, window: Option<usize>) -> Result<Self> {
        if pass.has_cache() {
            return Err(Error::Inputs(
                "an encoder takes its whole input at once, without a cache".to_owned(),
            ));
        }
        Self::build(pass, Band { before: window, after: window }, window.is_none())
    }

    fn build(pass: &Pass, band: Band, admits_all: bool) -> Result<Self> {
        let bias = if pass.workspace().is_some() { None } else { bias(pass, band, admits_all)? };
        Ok(Self { bias, band, relative: None })
    }

    /// The bias of [`Mask::causal`] in either backend, for a layer that adds to it.
    pub(super) fn causal_bias(pass: &Pass) -> Result<Option<Tensor>> {
        bias(pass, Band::CAUSAL, pass.seq() == 1)
    }
}

fn bias(pass: &Pass, band: Band, admits_all: bool) -> Result<Option<Tensor>> {
    let padding = pass.padding();
    if admits_all && padding.is_none_or(|real| real.iter().all(|real| *real)) {
        return Ok(None);
    }
    let excludes_itself = pass.deviates(Deviation::MaskExcludesItself);
    let is_transposed = pass.deviates(Deviation::MaskTransposed);
    let admits = |query: usize, key: usize| {
        let (query, key) = if is_transposed { (key, query) } else { (query, key) };
        !(excludes_itself && query > 0 && key == query)
            && band.before.is_none_or(|before| key + before >= query)
            && band.after.is_none_or(|after| key <= query + after)
    };
    let (seq, keys) = (pass.seq(), pass.past() + pass.seq());
    let rows = if padding.is_some() { pass.batch() } else { 1 };
    let mut admitted = Vec::with_capacity(rows * seq * keys);
    for row in 0..rows {
        let real = padding.map(|real| &real[row * keys..][..keys]);
        for query in 0..seq {
            admitted.extend(
                (0..keys).map(|key| admits(pass.past() + query, key) && real.is_none_or(|real| real[key])),
            );
        }
    }
    lowest_unless(&admitted, (rows, 1, seq, keys), pass).map(Some)
}

/// 0 for an admitted key, else the lowest finite value of the dtype of `inputs`.
pub(super) fn lowest_unless(
    admitted: &[bool],
    shape: (usize, usize, usize, usize),
    inputs: &PassInputs,
) -> Result<Tensor> {
    let device = inputs.device();
    Ok(match inputs.dtype() {
        DType::F64 => Tensor::from_vec(lowest(admitted, 0.0, f64::MIN), shape, device)?,
        DType::BF16 => Tensor::from_vec(lowest(admitted, bf16::ZERO, bf16::MIN), shape, device)?,
        DType::F16 => Tensor::from_vec(lowest(admitted, f16::ZERO, f16::MIN), shape, device)?,
        _ => Tensor::from_vec(lowest(admitted, 0.0, f32::MIN), shape, device)?,
    })
}

fn lowest<T: Copy>(admitted: &[bool], zero: T, min: T) -> Vec<T> {
    admitted.iter().map(|admitted| if *admitted { zero } else { min }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::Inputs;
    use candle_core::{Device, IndexOp};

    fn pass(seq: usize, mask: Option<&[u32]>) -> Pass<'static> {
        let device = Device::Cpu;
        let inputs = Inputs {
            attention_mask: mask.map(|mask| Tensor::new(mask, &device).unwrap().unsqueeze(0).unwrap()),
            ..Inputs::new(Tensor::zeros((1, seq), DType::U32, &device).unwrap())
        };
        Pass::new(&inputs, DType::F64, &device, None, None, None).unwrap()
    }

    /// The keys that each query attends to.
    fn admitted(mask: &Mask) -> Vec<Vec<usize>> {
        let bias: Vec<Vec<f64>> = mask.bias.as_ref().unwrap().i((0, 0)).unwrap().to_vec2().unwrap();
        bias.iter().map(|row| (0..row.len()).filter(|key| row[*key].abs() <= 0.0).collect()).collect()
    }

    #[test]
    fn a_causal_window_of_w_admits_exactly_w_keys() {
        for window in [1, 3, 8] {
            let rows = admitted(&Mask::causal(&pass(8, None), Some(window)).unwrap());
            for (query, keys) in rows.into_iter().enumerate() {
                let expected: Vec<usize> = (0..=query).filter(|key| query - key < window).collect();
                assert_eq!(keys, expected);
                assert_eq!(keys.len(), window.min(query + 1));
            }
        }
    }

    #[test]
    fn a_bidirectional_window_of_w_admits_w_keys_on_either_side() {
        let rows = admitted(&Mask::bidirectional(&pass(8, None), Some(2)).unwrap());
        assert_eq!(rows[4], [2, 3, 4, 5, 6]);
        assert_eq!(rows[0], [0, 1, 2]);
    }

    #[test]
    fn padding_is_never_seen_and_a_query_without_keys_sees_none() {
        let rows = admitted(&Mask::causal(&pass(4, Some(&[0, 1, 0, 1])), None).unwrap());
        assert_eq!(rows, [vec![], vec![1], vec![1], vec![1, 3]]);
    }

    #[test]
    fn nothing_is_masked_where_every_key_is_admitted() {
        assert!(Mask::bidirectional(&pass(4, Some(&[1; 4])), None).unwrap().bias.is_none());
        assert!(Mask::causal(&pass(1, None), None).unwrap().bias.is_none());
    }
}
