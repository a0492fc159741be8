//! Attention inside of the segments of one sequence, such as the images whose patches follow each other.

use std::sync::Arc;

use candle_core::{DType, Tensor};
use half::bf16;

use super::attention::{joined, split_heads};
use super::{Attention, Rope};
use crate::error::{Error, Result};
use crate::fused::{Float, Host, Slot, Workspace};
use crate::kernels::{self, CacheShape, KvCache, QkvLayout, rope_into_cache};
use crate::pass::Pass;
use crate::xs::Xs;

impl Attention {
    /// As [`Attention::forward`] over one sequence without a mask or a cache, in which each position attends to all positions
    /// of its own segment; `lengths` are those of the segments (transformers 5.24.0, `VisionAttention` of
    /// `modeling_qwen2_vl.py`).
    ///
    /// # Errors
    /// If the shapes do not fit, or on a GPU.
    pub fn forward_segments(
        &self,
        pass: &mut Pass,
        [q, k, v]: [Xs; 3],
        rope: &Rope,
        lengths: &[usize],
    ) -> Result<Xs> {
        if (pass.batch(), pass.seq()) != (1, lengths.iter().sum()) {
            let (batch, seq) = (pass.batch(), pass.seq());
            return Err(Error::Inputs(format!("segments of {lengths:?} positions in {batch} rows of {seq}")));
        }
        match pass.workspace() {
            None => {}
            Some(Workspace::Host(host)) if pass.dtype() == DType::BF16 => {
                return self.fused_segments::<bf16>(&host, &[q, k, v], rope, lengths);
            }
            Some(Workspace::Host(host)) => {
                return self.fused_segments::<f32>(&host, &[q, k, v], rope, lengths);
            }
            Some(Workspace::Gpu(_)) => {
                return Err(Error::Unsupported("segments in the fused backend on a GPU".to_owned()));
            }
        }
        let (q, k) =
            (split_heads(q.tensor()?, self.num_heads)?, split_heads(k.tensor()?, self.num_kv_heads)?);
        let v = split_heads(v.tensor()?, self.num_kv_heads)?;
        let q = pass.step("rope_q", q, |q| rope.apply(q))?;
        let k = pass.step("rope_k", k, |k| rope.apply(k))?;
        let mut first = 0;
        let mut parts = Vec::with_capacity(lengths.len());
        for length in lengths {
            let part = |xs: &Tensor| xs.narrow(2, first, *length)?.contiguous();
            parts.push(self.mix(pass, &part(&q)?, &part(&k)?, &part(&v)?, None)?.into_tensor()?);
            first += length;
        }
        Ok(Tensor::cat(&parts, 1)?.into())
    }

    /// As [`Attention::forward_segments`] in the fused backend on the CPU: the rows of each segment are a sequence of their
    /// own.
    fn fused_segments<T: Float>(
        &self,
        host: &Arc<Host>,
        [q, k, v]: &[Xs; 3],
        rope: &Rope,
        lengths: &[usize],
    ) -> Result<Xs> {
        let qkv = joined(host, &[q.slot::<T>(host)?, k.slot::<T>(host)?, v.slot::<T>(host)?]);
        let out = Slot::<T>::take(host, 1, qkv.rows(), self.num_heads * self.head_dim);
        let (mut rows, mut mixed) = (qkv.write(), out.write());
        let mut first = 0;
        for &length in lengths {
            let shape = CacheShape {
                batch: 1,
                kv_heads: self.num_kv_heads,
                head_dim: self.head_dim,
                capacity: length,
            };
            let keys = 0..length;
            let (from, to) = (first * qkv.width, first * out.width);
            let rows = &mut rows[from..from + length * qkv.width];
            let mixed = &mut mixed[to..to + length * out.width];
            host.with_passing_cache(shape, |cache: &mut KvCache<T>| {
                let layout = QkvLayout { tokens: length, q_heads: self.num_heads, first_slot: 0 };
                let rope = rope.fused(&[]).map(|(table, rows)| (table, &rows[first..first + length]));
                rope_into_cache(&host.pool, layout, rows, rope, cache);
                let spec = self.kernel(length, qkv.width, std::slice::from_ref(&keys));
                kernels::attention(&host.pool, &spec, rows, cache, mixed);
                Ok(())
            })?;
            first += length;
        }
        drop((rows, mixed));
        Ok(out.into())
    }
}
