//! Attention with a learned bias for each head and bucket of distances (T5, Raffel et al. 2020) instead of rope.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::Mask;
use crate::error::{Error, Result};
use crate::fused::Workspace;
use crate::kernels::Relative;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// How distances are sorted into buckets.
#[derive(Clone, Copy, Debug)]
pub struct Buckets {
    /// Number of buckets; half of them are for keys after the query if `bidirectional`.
    pub count: usize,
    /// The distance from which on all keys are in the last bucket.
    pub max_distance: usize,
    /// Whether keys after the query have buckets of their own; else they share that of distance 0.
    pub bidirectional: bool,
}

impl Buckets {
    /// The bucket of the key at `distance` slots after the query (transformers 5.23.0,
    /// `T5Attention._relative_position_bucket`): one for each short distance, then logarithmically wider ones. The
    /// logarithm is computed in F64 if `is_f64`, else in F32, as in transformers, because its result decides the
    /// bucket where two buckets meet.
    fn of(self, distance: i64, is_f64: bool) -> usize {
        let (count, first) = match self.bidirectional {
            true if distance > 0 => (self.count / 2, self.count / 2),
            true => (self.count / 2, 0),
            false => (self.count, 0),
        };
        let distance =
            if self.bidirectional { distance.unsigned_abs() } else { (-distance).max(0).unsigned_abs() }
                as usize;
        let exact = count / 2;
        if distance < exact {
            return first + distance;
        }
        let widest = (self.max_distance as f64 / exact as f64).ln();
        let (ratio, wide) = (distance as f64 / exact as f64, (count - exact) as f64);
        let beyond = if is_f64 {
            ratio.ln() / widest * wide
        } else {
            f64::from((ratio as f32).ln() / widest as f32 * wide as f32)
        };
        first + (exact + beyond as usize).min(count - 1)
    }
}

/// The biases of all layers of an encoder or a decoder, `relative_attention_bias` of its first layer.
pub struct RelativeBias {
    path: String,
    buckets: Buckets,
    num_heads: usize,
    /// `[buckets, num_heads]`.
    weight: Tensor,
}

impl RelativeBias {
    /// Loads `weight`, `[buckets.count, num_heads]`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape, or on a GPU.
    pub fn load(weights: &Weights, buckets: Buckets, num_heads: usize) -> Result<Self> {
        if let Some(Workspace::Gpu(_)) = weights.workspace() {
            return Err(Error::Unsupported("biases by distance in the fused backend on a GPU".to_owned()));
        }
        Ok(Self {
            path: weights.path().to_owned(),
            buckets,
            num_heads,
            weight: weights.get("weight", (buckets.count, num_heads))?,
        })
    }

    /// `mask` with these biases; distances count tokens in the sequence, padding included, not position ids.
    ///
    /// The fused backend has the biases of each distance instead of those of each query and key; it computes both for
    /// a probe.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn mask(&self, pass: &mut Pass, mask: Mask) -> Result<Mask> {
        let is_fused = pass.workspace().is_some();
        let relative = is_fused.then(|| self.by_distance(pass)).transpose()?;
        let mut bias = mask.bias;
        if !is_fused || pass.is_observed() {
            let values = self.by_query_and_key(pass)?;
            if !is_fused {
                bias = Some(match bias {
                    Some(mask) => values.broadcast_add(&mask)?,
                    None => values,
                });
            }
        }
        Ok(Mask { bias, relative, ..mask })
    }

    /// `[1, num_heads, seq, past + seq]`, in the model's dtype.
    fn by_query_and_key(&self, pass: &mut Pass) -> Result<Tensor> {
        let (past, seq) = (pass.past(), pass.seq());
        let bucket = |query: usize, key: usize| {
            self.buckets.of(key as i64 - query as i64, pass.dtype() == DType::F64) as u32
        };
        let buckets: Vec<u32> = (past..past + seq)
            .flat_map(|query| (0..past + seq).map(move |key| (query, key)))
            .map(|(query, key)| bucket(query, key))
            .collect();
        let buckets = Tensor::from_vec(buckets, (seq, past + seq), pass.device())?;
        let values = pass.module(&self.path, buckets.into(), |_, buckets| {
            let buckets = buckets.tensor()?;
            let (queries, keys) = buckets.dims2()?;
            let values = self.weight.index_select(&buckets.flatten_all()?, 0)?;
            Ok(Xs::from(values.reshape((queries, keys, self.num_heads))?))
        })?;
        Ok(values.into_tensor()?.permute((2, 0, 1))?.unsqueeze(0)?.contiguous()?)
    }

    /// The values of [`Relative`] for all slots of the pass.
    fn by_distance(&self, pass: &Pass) -> Result<Arc<[f32]>> {
        let slots = pass.past() + pass.seq();
        let weight = self.weight.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let last = slots as i64 - 1;
        let buckets: Vec<usize> = (-last..=last).map(|distance| self.buckets.of(distance, false)).collect();
        let padding = Relative::len(slots) - buckets.len();
        let head = |head: usize| {
            let values = buckets.iter().map(|bucket| weight[*bucket][head]).collect::<Vec<_>>();
            values.into_iter().chain(std::iter::repeat_n(0.0, padding))
        };
        Ok((0..self.num_heads).flat_map(head).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The buckets of keys at these distances after the query.
    fn check(bidirectional: bool, expected: &[(i64, usize)]) {
        let buckets = Buckets { count: 32, max_distance: 128, bidirectional };
        for &(distance, bucket) in expected {
            for is_f64 in [true, false] {
                assert_eq!(buckets.of(distance, is_f64), bucket, "{bidirectional} {distance}");
            }
        }
    }

    /// The numbers are those of transformers 5.23.0's `_relative_position_bucket`.
    #[test]
    fn short_distances_have_a_bucket_each_and_long_ones_share_wider_buckets() {
        check(true, &[(0, 0), (-1, 1), (-7, 7), (-8, 8), (-11, 8), (-12, 9), (-127, 15), (-500, 15)]);
        check(true, &[(1, 17), (7, 23), (8, 24), (500, 31)]);
        check(false, &[(3, 0), (0, 0), (-1, 1), (-15, 15), (-16, 16), (-18, 16), (-19, 17), (-500, 31)]);
    }
}
