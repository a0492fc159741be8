//! Cross-attention: the tokens of a decoder attend to the positions of an encoder.

use std::sync::Arc;

use candle_core::DType;
use half::bf16;

use super::Attention;
use super::attention::{joined, split_heads};
use super::mask::lowest_unless;
use crate::cache::CrossMask;
use crate::error::{Error, Result};
use crate::fused::{Float, Host, Slot, Workspace};
use crate::inputs::PassInputs;
use crate::kernels::{self, CacheShape, KvCache, QkvLayout, rope_into_cache};
use crate::pass::Pass;
use crate::xs::Xs;

impl CrossMask {
    /// The mask over the positions of `other`.
    fn new(other: &PassInputs) -> Result<Self> {
        let bias = match other.padding() {
            Some(real) if !real.iter().all(|real| *real) => {
                Some(lowest_unless(real, (other.batch(), 1, 1, other.seq()), other)?)
            }
            _ => None,
        };
        let keys = other.keys();
        Ok(Self { bias, keys: keys.ranges.to_vec(), visible: keys.visible.map(<[bool]>::to_vec) })
    }
}

/// What a decoder attends to in its encoder.
pub struct Memory {
    /// The encoder's last hidden states, `[batch, keys, hidden_size]`; `None` if the cache has the keys and values of
    /// every layer.
    states: Option<Xs>,
    mask: CrossMask,
}

impl Memory {
    /// The memory of a forward pass. `encode` runs the encoder and returns its last hidden states and positions; if the
    /// pass continues a cache, the encoder's inputs are not read again.
    ///
    /// # Errors
    /// The error of `encode`, or if another kind of model filled the cache.
    pub fn new(pass: &mut Pass, encode: impl FnOnce(&mut Pass) -> Result<(Xs, PassInputs)>) -> Result<Self> {
        if pass.past() > 0
            && let Some(cache) = pass.cache()
        {
            return Ok(Self { states: None, mask: cache.cross_mask()? });
        }
        let (states, positions) = encode(pass)?;
        let mask = CrossMask::new(&positions)?;
        if let Some(cache) = pass.cache() {
            cache.keep_cross_mask(mask.clone());
        }
        Ok(Self { states: Some(states), mask })
    }

    /// The encoder's last hidden states, for a layer to project; `None` if the cache has the keys and values of every
    /// layer.
    pub fn states(&self) -> Option<&Xs> {
        self.states.as_ref()
    }
}

impl Attention {
    /// Queries of the pass's tokens on keys and values of an encoder, without rope. `q: [batch, seq, num_heads *
    /// head_dim]`, `k` and `v`: `[batch, keys, num_kv_heads * head_dim]`, or `None` to take them from the cache; to
    /// `[batch, seq, num_heads * head_dim]`. dtypes as in [`Attention::forward`].
    ///
    /// # Errors
    /// If the shapes do not fit, or on a GPU.
    pub fn forward_cross(&self, pass: &mut Pass, q: &Xs, kv: Option<[Xs; 2]>, memory: &Memory) -> Result<Xs> {
        let mask = &memory.mask;
        match pass.workspace() {
            None => {}
            Some(Workspace::Host(host)) if pass.dtype() == DType::BF16 => {
                return self.fused_cross::<bf16>(pass, &host, q, kv, mask);
            }
            Some(Workspace::Host(host)) => return self.fused_cross::<f32>(pass, &host, q, kv, mask),
            Some(Workspace::Gpu(_)) => {
                return Err(Error::Unsupported("cross-attention in the fused backend on a GPU".to_owned()));
            }
        }
        let q = split_heads(q.tensor()?, self.num_heads)?;
        let (k, v) = match kv {
            Some([k, v]) => {
                let heads = |xs: &Xs| split_heads(xs.tensor()?, self.num_kv_heads);
                let (k, v) = (heads(&k)?, heads(&v)?);
                if let Some(cache) = pass.cache() {
                    cache.keep_cross(self.layer, k.clone(), v.clone());
                }
                (k, v)
            }
            None => pass.cache().ok_or_else(no_cache)?.cross(self.layer)?,
        };
        self.mix(pass, &q, &k, &v, mask.bias.as_ref())
    }

    /// As [`Attention::forward_cross`] in the fused backend on the CPU.
    fn fused_cross<T: Float>(
        &self,
        pass: &mut Pass,
        host: &Arc<Host>,
        q: &Xs,
        kv: Option<[Xs; 2]>,
        mask: &CrossMask,
    ) -> Result<Xs> {
        let q = q.slot::<T>(host)?.whole();
        let attend = |cache: &KvCache<T>| -> Xs {
            let spec = kernels::Attention {
                visible: mask.visible.as_deref(),
                ..self.kernel(q.seq, q.width, &mask.keys)
            };
            let out = Slot::<T>::take(host, q.batch, q.seq, self.num_heads * self.head_dim);
            kernels::attention(&host.pool, &spec, &q.read(), cache, &mut out.write());
            out.into()
        };
        let Some([k, v]) = kv else {
            return Ok(attend(pass.cache().ok_or_else(no_cache)?.fused_cross::<T>(self.layer)?));
        };
        let kv = joined(host, &[k.slot::<T>(host)?, v.slot::<T>(host)?]);
        drop((k, v));
        let shape = CacheShape {
            batch: kv.batch,
            kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            capacity: kv.seq,
        };
        let fill = |cache: &mut KvCache<T>| {
            let layout = QkvLayout { tokens: kv.seq, q_heads: 0, first_slot: 0 };
            rope_into_cache(&host.pool, layout, &mut kv.write(), None, cache);
        };
        let Some(cache) = pass.cache() else {
            return host.with_passing_cache(shape, |cache: &mut KvCache<T>| {
                fill(cache);
                Ok(attend(cache))
            });
        };
        let mut kept = KvCache::new(shape);
        fill(&mut kept);
        let out = attend(&kept);
        cache.keep_fused_cross(self.layer, kept);
        Ok(out)
    }
}

fn no_cache() -> Error {
    Error::Inputs("a forward pass without an encoder needs a cache".to_owned())
}
