//! The core of attention: computes the mixed values from projected queries, keys and values.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, DType, Tensor};
use half::bf16;

use super::elementwise::{scaled, soft_capped};
use super::{Mask, Rope, accumulation};
use crate::cuda::{self, AttentionShape};
use crate::deviations::Deviation;
use crate::error::Result;
use crate::fused::{Float, Host, Slot, Workspace};
use crate::kernels::{self, Band, CacheShape, KvCache, QkvLayout, Relative, rope_into_cache};
use crate::pass::Pass;
use crate::xs::Xs;

/// Multi-head attention with grouped keys and values, between the projections and `o_proj`: rope, cache, scores,
/// mask, softmax, weighted sum of values.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Index of the layer in the cache.
    pub layer: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; a divisor of `num_heads`.
    pub num_kv_heads: usize,
    /// Features of a head.
    pub head_dim: usize,
    /// The factor by which scores are multiplied.
    pub scale: f64,
    /// The cap in `cap * tanh(scores / cap)`, applied before the mask; `None` means no cap.
    pub soft_cap: Option<f64>,
}

impl Attention {
    /// `q: [batch, seq, num_heads * head_dim]`, `k` and `v`: `[batch, seq, num_kv_heads * head_dim]`,
    /// to `[batch, seq, num_heads * head_dim]`.
    ///
    /// Scores are in the model's dtype; the softmax is in F32 (F64 in F64) and its result is rounded to the model's
    /// dtype (transformers 5.23.0, `eager_attention_forward` of `modeling_llama.py` and `modeling_gemma3.py`).
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        pass: &mut Pass,
        [q, k, v]: [Xs; 3],
        rope: Option<&Rope>,
        mask: &Mask,
    ) -> Result<Xs> {
        match pass.workspace() {
            None => {}
            Some(Workspace::Host(host)) if pass.dtype() == DType::BF16 => {
                return self.fused::<bf16>(pass, &host, [q, k, v], rope, mask);
            }
            Some(Workspace::Host(host)) => return self.fused::<f32>(pass, &host, [q, k, v], rope, mask),
            Some(Workspace::Gpu(space)) => {
                let rope = rope.and_then(Rope::device);
                let parts = [q.device_rows(&space)?, k.device_rows(&space)?, v.device_rows(&space)?];
                drop((q, k, v));
                let mixed = cuda::attend(self.shape(mask.band), pass, &space, &parts, rope, None)?;
                return Ok(mixed.into());
            }
        }
        let (mut q, mut k) =
            (split_heads(q.tensor()?, self.num_heads)?, split_heads(k.tensor()?, self.num_kv_heads)?);
        let v = split_heads(v.tensor()?, self.num_kv_heads)?;
        if let Some(rope) = rope {
            if !pass.deviates(Deviation::RopeKeysOnly) {
                q = pass.step("rope_q", q, |q| rope.apply(q))?;
            }
            if !pass.deviates(Deviation::RopeQueriesOnly) {
                k = pass.step("rope_k", k, |k| rope.apply(k))?;
            }
        }
        if pass.deviates(Deviation::QkNormsAfterRope) {
            // The norm of the keys was postponed last.
            for heads in [&mut k, &mut q] {
                if let Some(norm) = pass.postponed_norm() {
                    let (joined, count) = (joined_heads(heads)?, heads.dim(1)?);
                    *heads = split_heads(&norm.normed(pass, &joined)?, count)?;
                }
            }
        }
        let (k, v) = pass.append(self.layer, k, v)?;
        self.mix(pass, &q, &k, &v, mask.bias.as_ref())
    }

    /// The layer's parameters for the GPU kernels.
    pub(super) fn shape(&self, band: Band) -> AttentionShape {
        AttentionShape {
            layer: self.layer,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            scale: self.scale as f32,
            soft_cap: self.soft_cap.map(|cap| cap as f32),
            band,
        }
    }

    /// The fused attention of `tokens` queries, in rows of `q_row` values, to all `keys` of each sequence.
    pub(super) fn kernel<'a>(
        &self,
        tokens: usize,
        q_row: usize,
        keys: &'a [Range<usize>],
    ) -> kernels::Attention<'a> {
        kernels::Attention {
            tokens,
            q_heads: self.num_heads,
            q_row,
            first_slot: 0,
            scale: self.scale as f32,
            softcap: self.soft_cap.map(|cap| cap as f32),
            relative: None,
            band: Band::FULL,
            keys,
            visible: None,
        }
    }

    /// As [`Attention::forward`] in the fused backend on the CPU: rope writes to the cache, then blocked attention
    /// reads it.
    fn fused<T: Float>(
        &self,
        pass: &mut Pass,
        host: &Arc<Host>,
        [q, k, v]: [Xs; 3],
        rope: Option<&Rope>,
        mask: &Mask,
    ) -> Result<Xs> {
        let parts = [q.slot::<T>(host)?, k.slot::<T>(host)?, v.slot::<T>(host)?];
        drop((q, k, v));
        let qkv = joined(host, &parts);
        let (batch, seq, first_slot) = (pass.batch(), pass.seq(), pass.past());
        let shape = CacheShape {
            batch,
            kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            capacity: first_slot + seq,
        };
        let (keys, cache) = pass.keys_and_cache();
        let rope = rope.and_then(|rope| rope.fused(keys.positions));
        let run = |cache: &mut KvCache<T>| {
            let layout = QkvLayout { tokens: seq, q_heads: self.num_heads, first_slot };
            rope_into_cache(&host.pool, layout, &mut qkv.write(), rope, cache);
            let relative = mask.relative.as_deref();
            let spec = kernels::Attention {
                first_slot,
                relative: relative.map(|values| Relative::new(values, first_slot + seq, self.num_heads)),
                band: mask.band,
                visible: keys.visible,
                ..self.kernel(seq, qkv.width, keys.ranges)
            };
            let out = Slot::<T>::take(host, batch, seq, self.num_heads * self.head_dim);
            kernels::attention(&host.pool, &spec, &qkv.read(), cache, &mut out.write());
            Ok(out.into())
        };
        match cache {
            Some(cache) => run(cache.fused(self.layer, &host.pool, shape)?),
            None => host.with_passing_cache(shape, run),
        }
    }

    /// `q: [batch, num_heads, seq, head_dim]`, `k` and `v`: `[batch, num_kv_heads, keys, head_dim]`; `bias` is that of
    /// the mask.
    pub(super) fn mix(
        &self,
        pass: &mut Pass,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        bias: Option<&Tensor>,
    ) -> Result<Xs> {
        let (batch, _, seq, _) = q.dims4()?;
        let keys = k.dim(2)?;
        // The query heads of one key head are rows of one matrix product, so that keys need not be repeated.
        let rows = self.num_heads / self.num_kv_heads * seq;
        let q = q.reshape((batch, self.num_kv_heads, rows, self.head_dim))?;
        let scores = q.matmul(&k.t()?)?.reshape((batch, self.num_heads, seq, keys))?;
        let mut scores = pass.coarse(Deviation::ScoresBf16, scaled(&scores, self.scale)?)?;
        if let Some(cap) = self.soft_cap {
            scores = soft_capped(&scores, cap)?;
        }
        if let Some(bias) = bias {
            scores = scores.broadcast_add(bias)?;
        }
        let softmax = if pass.deviates(Deviation::SoftmaxSumsBf16) {
            softmax_summed_in_bf16
        } else if pass.deviates(Deviation::SoftmaxBf16) {
            softmax_in_bf16
        } else {
            softmax
        };
        let weights =
            pass.step("softmax", scores, softmax)?.reshape((batch, self.num_kv_heads, rows, keys))?;
        let mixed = if pass.deviates(Deviation::ValuesTiled) {
            let order: Vec<u32> = (0..self.num_heads).map(|head| (head % self.num_kv_heads) as u32).collect();
            let tiled = v.index_select(&Tensor::new(order, v.device())?, 1)?;
            weights.reshape((batch, self.num_heads, seq, keys))?.matmul(&tiled)?
        } else {
            weights.matmul(v)?.reshape((batch, self.num_heads, seq, self.head_dim))?
        };
        let mixed = mixed.transpose(1, 2)?.reshape((batch, seq, self.num_heads * self.head_dim))?;
        Ok(mixed.into())
    }
}

/// `[batch, heads, seq, head_dim]` to `[batch, seq, heads * head_dim]`.
fn joined_heads(xs: &Tensor) -> Result<Tensor> {
    Ok(xs.transpose(1, 2)?.flatten_from(2)?)
}

/// `[batch, seq, heads * head_dim]` to `[batch, heads, seq, head_dim]`, contiguous.
pub(super) fn split_heads(xs: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, seq, features) = xs.dims3()?;
    Ok(xs.reshape((batch, seq, heads, features / heads))?.transpose(1, 2)?.contiguous()?)
}

/// Softmax over the last dimension; in F32 for 16-bit dtypes, because candle's own softmax sums in the dtype of its
/// input.
pub(super) fn softmax(scores: &Tensor) -> Result<Tensor> {
    let dtype = scores.dtype();
    let wide = scores.to_dtype(accumulation(dtype))?;
    Ok(candle_nn::ops::softmax_last_dim(&wide)?.to_dtype(dtype)?)
}

/// Softmax over the last dimension, each of whose steps rounds to bf16; dtype of `scores`.
fn softmax_in_bf16(scores: &Tensor) -> Result<Tensor> {
    let dtype = scores.dtype();
    let rounded = |xs: Tensor| xs.to_dtype(DType::BF16)?.to_dtype(accumulation(dtype));
    let scores = rounded(scores.clone())?;
    let largest = scores.max_keepdim(D::Minus1)?;
    let powers = rounded(rounded(scores.broadcast_sub(&largest)?)?.exp()?)?;
    let sums = rounded(powers.sum_keepdim(D::Minus1)?)?;
    Ok(rounded(powers.broadcast_div(&sums)?)?.to_dtype(dtype)?)
}

/// As [`softmax_in_bf16`], and the sum is rounded after each term, in the order of the keys: terms below half a unit in the last place
/// of the sum so far are lost (candle-nn 0.11.1, ops.rs, `SoftmaxLastDim`).
fn softmax_summed_in_bf16(scores: &Tensor) -> Result<Tensor> {
    let keys = scores.dim(D::Minus1)?;
    let mut values: Vec<f32> = scores.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let rounded = |value: f32| bf16::from_f32(value).to_f32();
    for row in values.chunks_mut(keys.max(1)) {
        let largest = rounded(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        for value in row.iter_mut() {
            *value = rounded(rounded(rounded(*value) - largest).exp());
        }
        let sum = row.iter().fold(0.0, |sum, &power| rounded(sum + power));
        for value in row {
            *value = rounded(*value / sum);
        }
    }
    Ok(Tensor::from_vec(values, scores.dims(), scores.device())?.to_dtype(scores.dtype())?)
}

/// The parts, such as q, k and v, concatenated; if they already are parts of one buffer, that buffer.
pub(super) fn joined<T: Float, const N: usize>(host: &Arc<Host>, parts: &[Slot<T>; N]) -> Slot<T> {
    let first = &parts[0];
    let width = parts.iter().map(|part| part.columns).sum();
    if first.first == 0 && first.width == width && parts.windows(2).all(|pair| pair[0].is_before(&pair[1])) {
        return first.clone();
    }
    let joined = Slot::take(host, first.batch, first.seq, width);
    let mut first = 0;
    for part in parts {
        part.copy_to(&mut joined.write(), width, first);
        first += part.columns;
    }
    joined
}
