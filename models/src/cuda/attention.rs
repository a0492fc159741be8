//! Attention on a GPU: projected queries, keys and values go through the cache to the attention output.

use std::sync::Arc;

use super::cache::DeviceCache;
use super::gpu::Region;
use super::kernels::{Attention, AttentionBias, CacheRegions, QkvLayout, RopeIntoCache, RopeTables};
use super::rows::{DeviceRows, OnColumns};
use super::space::Space;
use super::weights::DeviceNorm;
use crate::error::{Error, Result};
use crate::kernels::Band;
use crate::pass::Pass;

/// Cosines and sines by position.
#[derive(Debug)]
pub(crate) struct DeviceTable {
    pub(crate) cos: Region,
    pub(crate) sin: Region,
    pub(crate) rows: usize,
    pub(crate) pairs: usize,
    pub(crate) interleaved: bool,
}

impl DeviceTable {
    /// `cos` and `sin`: `[rows, pairs]`.
    pub(crate) fn new(
        space: &Space,
        (cos, sin): (&[f32], &[f32]),
        pairs: usize,
        interleaved: bool,
    ) -> Result<Self> {
        let rows = cos.len() / pairs.max(1);
        Ok(Self { cos: space.keep(cos)?, sin: space.keep(sin)?, rows, pairs, interleaved })
    }
}

/// A table and the positions of the tokens: its row indices, u32, `[batch, seq]`.
#[derive(Clone)]
pub(crate) struct DeviceRope {
    pub(crate) table: Arc<DeviceTable>,
    pub(crate) rows: Region,
}

/// F32, `[1 or batch, num_heads, slots]`: added to the attention scores.
#[derive(Clone, Debug)]
pub(crate) struct DeviceBias {
    pub(crate) region: Arc<Region>,
    pub(crate) slots: usize,
    pub(crate) per_sequence: bool,
}

/// q, k and v in one buffer, and the deferred norms of the q and k heads.
struct Projection {
    region: Arc<Region>,
    layout: QkvLayout,
    norms: [Option<Arc<DeviceNorm>>; 2],
}

impl Projection {
    /// Uses the buffer of q, k and v if they share one, else copies them into a new one.
    fn new(space: &Arc<Space>, parts: &[DeviceRows; 3], heads: [usize; 3], head_dim: usize) -> Result<Self> {
        let [num_heads, num_kv_heads, _] = heads;
        let [q, k, v] = parts;
        let is_joined = parts.iter().all(|part| Arc::ptr_eq(&part.place, &q.place))
            && (k.groups, k.stride) == (v.groups, v.stride)
            && parts.iter().all(|part| [1, num_kv_heads].contains(&part.groups));
        if !is_joined {
            let layout = QkvLayout::joined(num_heads, num_kv_heads, head_dim);
            let region = space.acquire_elements(q.rows() * layout.row)?;
            for (part, first) in parts.iter().zip([layout.q_first, layout.k_first, layout.v_first]) {
                part.whole()?.copy_to(&region, layout.row, first)?;
            }
            return Ok(Self { region, layout, norms: [None, None] });
        }
        let layout = QkvLayout {
            q_heads: num_heads,
            kv_heads: num_kv_heads,
            head_dim,
            row: q.width,
            q_first: q.first,
            k_first: k.first,
            v_first: v.first,
            q_group: if q.groups == 1 { num_heads / num_kv_heads * head_dim } else { q.stride },
            kv_head: if k.groups == 1 { head_dim } else { k.stride },
        };
        let (mut q_norm, mut k_norm) = (None, None);
        for ((part, norm), heads) in parts.iter().zip([Some(&mut q_norm), Some(&mut k_norm), None]).zip(heads)
        {
            match &part.pending {
                None => {}
                // The rope kernel norms each head of q and k; any other norm is launched separately.
                Some(OnColumns::Norm(pending)) => match norm {
                    Some(norm) if pending.of_heads(heads, head_dim).is_some() => {
                        *norm = Some(Arc::clone(pending));
                    }
                    _ => part.norm_in_place(pending)?,
                },
                Some(OnColumns::Activation(_)) => {
                    return Err(Error::Unsupported("attention over activated projections".to_owned()));
                }
            }
        }
        Ok(Self { region: q.region()?, layout, norms: [q_norm, k_norm] })
    }
}

/// The heads of one layer's attention and how their scores are scaled, capped and masked.
#[derive(Clone, Copy)]
pub(crate) struct AttentionShape {
    /// Index of the layer, for the cache.
    pub(crate) layer: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) scale: f32,
    pub(crate) soft_cap: Option<f32>,
    /// Which keys a query sees.
    pub(crate) band: Band,
}

/// Attention over projected `[q, k, v]`: norms the heads, applies rope and writes to the cache in one launch, then
/// computes attention over the cache.
pub(crate) fn attend(
    shape: AttentionShape,
    pass: &mut Pass,
    space: &Arc<Space>,
    parts: &[DeviceRows; 3],
    rope: Option<&DeviceRope>,
    bias: Option<&DeviceBias>,
) -> Result<DeviceRows> {
    let AttentionShape { layer, num_heads, num_kv_heads, head_dim, scale, soft_cap, band } = shape;
    let heads = [num_heads, num_kv_heads, num_kv_heads];
    if parts.iter().zip(heads).any(|(part, heads)| part.columns() != heads * head_dim) {
        let found = parts.each_ref().map(DeviceRows::columns);
        return Err(Error::Inputs(format!("{found:?} features for {heads:?} heads of {head_dim}")));
    }
    let Projection { region: qkv, layout, norms: [q_norm, k_norm] } =
        Projection::new(space, parts, heads, head_dim)?;
    let (batch, tokens, dtype) = (pass.batch(), pass.seq(), space.dtype);
    let (shape, slots) = ([batch, num_kv_heads, head_dim], pass.past() + tokens);
    let cache = match pass.cache() {
        Some(cache) => cache.device(layer, space, shape, slots)?.clone(),
        None => DeviceCache::passing(space, shape, tokens)?,
    };
    let regions = CacheRegions { keys: &cache.keys, values: &cache.values, capacity: cache.capacity };
    let device = pass.device_pass()?;
    let state = device.state(pass)?;
    let turn = RopeIntoCache {
        dtype,
        batch,
        tokens,
        qkv: &qkv,
        layout,
        cache: regions,
        state,
        rope: rope.map(|DeviceRope { table, rows }| RopeTables {
            cos: &table.cos,
            sin: &table.sin,
            rows: table.rows,
            pairs: table.pairs,
            interleaved: table.interleaved,
            positions: rows,
        }),
        q_norm: q_norm.as_ref().and_then(|norm| norm.of_heads(num_heads, head_dim)),
        k_norm: k_norm.as_ref().and_then(|norm| norm.of_heads(num_kv_heads, head_dim)),
    };
    let scratch = match Attention::scratch_len(&*space.gpu, batch, tokens, layout, cache.capacity) {
        0 => None,
        len => Some(space.acquire(len * size_of::<f32>())?),
    };
    let out = space.acquire_elements(batch * tokens * num_heads * head_dim)?;
    Attention {
        dtype,
        batch,
        tokens,
        layout,
        qkv: &qkv,
        turn: Some(turn),
        cache: regions,
        state,
        bias: bias.map(|bias| AttentionBias {
            region: &bias.region,
            row: bias.slots,
            per_sequence: bias.per_sequence,
        }),
        scale,
        soft_cap,
        before: band.before,
        after: band.after,
        out: &out,
        scratch: scratch.as_deref(),
    }
    .launch()?;
    Ok(DeviceRows::within(space, out, [batch, tokens, num_heads * head_dim], false))
}
