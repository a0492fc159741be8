//! Attention with linear biases instead of rope (ALiBi, Press et al. 2021), for falcon.

use candle_core::{DType, Tensor};
use half::bf16;

use super::attention::{softmax, split_heads};
use super::{Attention, Mask, accumulation, rounded};
use crate::cuda::{self, AttentionShape, DeviceBias};
use crate::error::{Error, Result};
use crate::fused::Workspace;
use crate::inputs::PassInputs;
use crate::kernels::Band;
use crate::pass::Pass;
use crate::xs::Xs;

/// The biases of one forward pass. On the CPU the fused backend computes the biases and the attention as the eager
/// backend does.
#[derive(Clone, Debug)]
pub struct Alibi(Biases);

#[derive(Clone, Debug)]
enum Biases {
    Tensors {
        /// `slope * position` of each head and key, `[1 or batch, num_heads, 1, past + seq]`, in the model's dtype.
        bias: Tensor,
        /// The scaled biases if the causal mask admits a key, else the dtype's lowest value, `[1 or batch, num_heads,
        /// seq, past + seq]`.
        mask: Tensor,
    },
    /// The sum of the two biases that attention adds. The kernels apply the mask.
    Gpu(DeviceBias),
}

impl Alibi {
    /// Biases for heads of `head_dim` features. Positions count from each sequence's first real token; padding has
    /// position 0.
    ///
    /// Slopes, positions and their products are rounded to BF16 whatever the model's dtype, F64 included
    /// (transformers 5.23.0, `build_alibi_tensor` of `modeling_falcon.py`).
    ///
    /// # Errors
    /// If the tensors cannot be made.
    pub fn new(pass: &Pass, num_heads: usize, head_dim: usize) -> Result<Self> {
        if let Ok(device) = pass.device_pass() {
            let (slots, per_sequence) = (pass.slots(), pass.padding().is_some());
            let region = device.input(pass, move |inputs| {
                let (bias, scaled) = biases(inputs, num_heads, head_dim, slots)?;
                // The kernels derive the scale of the scores from `head_dim`; the bias uses the same scale.
                let scale = (head_dim as f64).sqrt().recip();
                let both = ((bias.to_dtype(DType::F32)? * scale)? + scaled.to_dtype(DType::F32)?)?;
                Ok(both.flatten_all()?.to_vec1::<f32>()?)
            })?;
            return Ok(Self(Biases::Gpu(DeviceBias { region, slots, per_sequence })));
        }
        let (bias, scaled) = biases(pass, num_heads, head_dim, pass.past() + pass.seq())?;
        let mask = match Mask::causal_bias(pass)? {
            // An admitted key gets 0 + bias. For other keys the bias is not negative and vanishes next to the lowest
            // value.
            Some(mask) => mask.broadcast_add(&scaled)?,
            None => scaled,
        };
        Ok(Self(Biases::Tensors { bias, mask }))
    }
}

/// The biases of `keys` keys, `[1 or batch, num_heads, 1, keys]`, unscaled and multiplied by the scores' scale, both
/// in the model's dtype.
fn biases(inputs: &PassInputs, num_heads: usize, head_dim: usize, keys: usize) -> Result<(Tensor, Tensor)> {
    let positions = key_positions(inputs, keys);
    let rows = positions.len() / keys;
    let mut biases = Vec::with_capacity(rows * num_heads * keys);
    for row in positions.chunks(keys) {
        for slope in slopes(num_heads) {
            biases.extend(row.iter().map(|position| slope * bf16::from_f64(*position as f64)));
        }
    }
    let bias = Tensor::from_vec(biases, (rows, num_heads, 1, keys), inputs.device())?
        .to_dtype(DType::F32)?
        .to_dtype(inputs.dtype())?;
    let divisor = Tensor::new((head_dim as f64).sqrt(), inputs.device())?;
    let scaled = rounded(&bias, |bias| bias.broadcast_div(&divisor.to_dtype(bias.dtype())?))?;
    Ok((bias, scaled))
}

/// Position of each key, `[1 or batch, keys]`: 0 for padding, unspecified for keys after the current tokens.
fn key_positions(inputs: &PassInputs, keys: usize) -> Vec<i64> {
    let Some(padding) = inputs.padding() else {
        return (0..keys as i64).collect();
    };
    let row = |row: &[bool]| -> Vec<i64> {
        let mut count = 0;
        row.iter()
            .map(|real| {
                count += i64::from(*real);
                if *real { count - 1 } else { 0 }
            })
            .chain(std::iter::repeat_n(0, keys - row.len()))
            .collect()
    };
    padding.chunks(inputs.past() + inputs.seq()).flat_map(row).collect()
}

/// One slope per head: a geometric sequence whose first term is its ratio. If `num_heads` is not a power of two, the
/// slopes are those of the next lower power, then every other slope of the next higher power.
fn slopes(num_heads: usize) -> Vec<bf16> {
    let power = 1_usize << num_heads.ilog2();
    let base = |heads: usize| 2_f64.powf(-8.0 / heads as f64);
    let first = (1..=power).map(|exponent| base(power).powi(exponent as i32));
    let rest = (0..num_heads - power).map(|i| base(2 * power).powi(2 * i as i32 + 1));
    first.chain(rest).map(|slope| bf16::from_f32(slope as f32)).collect()
}

impl Attention {
    /// As [`Attention::forward`], with linear biases instead of positions and without a soft cap: `q: [batch, seq,
    /// num_heads * head_dim]`, `k` and `v`: `[batch, seq, num_kv_heads * head_dim]`, to `[batch, seq, num_heads *
    /// head_dim]`.
    ///
    /// The biases are added twice, before and after the scaling, as in transformers 5.23.0's eager attention:
    /// `FalconModel.forward` merges them into the mask and `FalconAttention.forward` adds them again. Its sdpa
    /// attention, and the eager attention of 4.40.2, add them once. In 16-bit dtypes scores are F32 until the
    /// softmax's input is rounded.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_alibi(&self, pass: &mut Pass, [q, k, v]: [Xs; 3], alibi: &Alibi) -> Result<Xs> {
        let Biases::Tensors { bias, mask } = &alibi.0 else {
            let (Some(Workspace::Gpu(space)), Biases::Gpu(bias)) = (pass.workspace(), &alibi.0) else {
                return Err(Error::Gpu("biases of another pass".to_owned()));
            };
            let parts = [q.device_rows(&space)?, k.device_rows(&space)?, v.device_rows(&space)?];
            drop((q, k, v));
            let shape = AttentionShape { soft_cap: None, ..self.shape(Band::CAUSAL) };
            let mixed = cuda::attend(shape, pass, &space, &parts, None, Some(bias))?;
            return Ok(mixed.into());
        };
        let q = split_heads(q.tensor()?, self.num_heads)?;
        let k = split_heads(k.tensor()?, self.num_kv_heads)?;
        let v = split_heads(v.tensor()?, self.num_kv_heads)?;
        let (k, v) = pass.append(self.layer, k, v)?;
        let (batch, _, seq, _) = q.dims4()?;
        let keys = k.dim(2)?;
        let rows = self.num_heads / self.num_kv_heads * seq;
        let scores = q
            .reshape((batch, self.num_kv_heads, rows, self.head_dim))?
            .matmul(&k.t()?)?
            .reshape((batch, self.num_heads, seq, keys))?;
        let scores = rounded(&scores, |scores| {
            let wide = |xs: &Tensor| xs.to_dtype(accumulation(xs.dtype()));
            (scores.broadcast_add(&wide(bias)?)? * self.scale)?.broadcast_add(&wide(mask)?)
        })?;
        let mixed = pass
            .step("softmax", scores, softmax)?
            .reshape((batch, self.num_kv_heads, rows, keys))?
            .matmul(&v)?
            .reshape((batch, self.num_heads, seq, self.head_dim))?
            .transpose(1, 2)?
            .reshape((batch, seq, self.num_heads * self.head_dim))?;
        Ok(mixed.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_paper_and_of_transformers_beyond_powers_of_two() {
        let values = |heads| -> Vec<f32> { slopes(heads).into_iter().map(bf16::to_f32).collect() };
        assert_eq!(values(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25]);
        // The slopes of four heads, 2^-2, 2^-4, ..., then the odd members of those of eight heads, 2^-1, 2^-2, ...
        assert_eq!(values(6), [0.25, 0.0625, 0.015_625, 0.003_906_25, 0.5, 0.125]);
    }
}
