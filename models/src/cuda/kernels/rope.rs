//! Norms of q and k heads, rotary embedding and the cache write, in one kernel over a joined projection.

use super::launch::{Params, int, launch, optional, params};
use super::layout::{CacheRegions, PassState, QkvLayout};
use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::Region;
use crate::cuda::kernel_id::{Kernels, kernels, of};
use crate::error::{Error, Result};

const ROPE: Kernels = kernels!(Rope, "rope_into_cache");
const HALVES: Kernels = kernels!(Rope, "rope_halves");
pub(super) const KERNELS: &[Kernels] = &[ROPE, HALVES];
pub(super) const LAYOUTS: &[fn() -> String] = &[RopeParams::layout];
/// Warps per block. A warp processes one head at a time; in `rope_halves`, `head_dim / 16` lanes do.
const WARPS: usize = 4;
/// Features per lane in `rope_halves`.
const OF_LANE: usize = 16;
/// Most features per head, limited by the warps' shared memory.
const MOST_FEATURES: usize = 512;

params! {
    struct RopeParams {
        qkv: u64,
        keys: u64,
        values: u64,
        first_slot: u64,
        positions: u64,
        cos: u64,
        sin: u64,
        q_weight: u64,
        k_weight: u64,
        tokens: i32,
        rows: i32,
        q_heads: i32,
        kv_heads: i32,
        head_dim: i32,
        capacity: i32,
        row: i32,
        q_first: i32,
        k_first: i32,
        v_first: i32,
        q_group: i32,
        kv_head: i32,
        pairs: i32,
        interleaved: i32,
        table_rows: i32,
        q_weight_head: i32,
        k_weight_head: i32,
        centred: i32,
        q_eps: f32,
        k_eps: f32,
    }
}

/// A norm over each head's features.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorm<'a> {
    /// F32, `[head_dim]`, or `[heads, head_dim]` if `per_head`.
    pub weight: &'a Region,
    /// Whether each head has its own weight (cohere, stablelm).
    pub per_head: bool,
    /// Layer norm with a mean (true) or RMS norm; the same for q and k.
    pub centred: bool,
    /// Added to the variance.
    pub eps: f32,
}

/// Rope tables by position; they include the attention factor, if any.
#[derive(Clone, Copy, Debug)]
pub struct RopeTables<'a> {
    /// F32, `[rows, pairs]`.
    pub cos: &'a Region,
    /// F32, `[rows, pairs]`.
    pub sin: &'a Region,
    /// Rows of the tables.
    pub rows: usize,
    /// The first `2 * pairs` features of a head are rotated.
    pub pairs: usize,
    /// A pair is features `2i` and `2i + 1` (true), or `i` and `i + pairs`.
    pub interleaved: bool,
    /// u32, `[batch, tokens]`: row indices into the tables. An index outside them gives NaN.
    pub positions: &'a Region,
}

/// Norms and rotates q in place, writes k (normed, rotated) and v to the cache at slots `first_slot..`; intermediate
/// values are F32, rounded once.
#[derive(Clone, Copy, Debug)]
pub struct RopeIntoCache<'a> {
    /// Element type of qkv and cache.
    pub dtype: Dtype,
    /// Batch size.
    pub batch: usize,
    /// New tokens per sequence.
    pub tokens: usize,
    /// The joined projection, `[batch * tokens, layout.row]`.
    pub qkv: &'a Region,
    /// Layout of `qkv`.
    pub layout: QkvLayout,
    /// The layer's cache. The caller must provide room for the new tokens: tokens in slots from `capacity` on are
    /// dropped.
    pub cache: CacheRegions<'a>,
    /// Cache slot of the first new token.
    pub state: PassState<'a>,
    /// Rotation, if any.
    pub rope: Option<RopeTables<'a>>,
    /// Norm of the q heads.
    pub q_norm: Option<HeadNorm<'a>>,
    /// Norm of the k heads.
    pub k_norm: Option<HeadNorm<'a>>,
}

impl RopeIntoCache<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small, a shape does not fit, or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let params = self.params()?;
        let QkvLayout { q_heads, kv_heads, head_dim, .. } = self.layout;
        let (gpu, heads) = (&**self.qkv.gpu(), self.batch * self.tokens * (q_heads + 2 * kv_heads));
        if self.is_in_halves(&params) {
            let grid = [heads.div_ceil(WARPS * 32 * OF_LANE / head_dim), 1, 1];
            return launch(gpu, of(HALVES, self.dtype), grid, WARPS * 32, 0, &params);
        }
        let shared = WARPS * head_dim * size_of::<f32>();
        let grid = [heads.div_ceil(WARPS), 1, 1];
        launch(gpu, of(ROPE, self.dtype), grid, WARPS * 32, shared, &params)
    }

    /// Whether all features are rotated, feature `i` with `i + head_dim / 2`, and all addresses and strides are
    /// multiples of 16 bytes.
    fn is_in_halves(&self, params: &RopeParams) -> bool {
        let QkvLayout { head_dim, row, q_first, k_first, v_first, q_group, kv_head, .. } = self.layout;
        let size = self.dtype.size();
        let columns = [row, q_first, k_first, v_first, q_group, kv_head];
        let addresses = [params.qkv, params.keys, params.values, params.cos, params.sin];
        [64, 128, 256].contains(&head_dim)
            && params.interleaved == 0
            && 2 * params.pairs as usize == head_dim
            && columns.iter().all(|columns| (columns * size).is_multiple_of(16))
            && addresses.iter().all(|address| address.is_multiple_of(16))
    }

    /// The parameters of the kernels.
    pub(super) fn params(&self) -> Result<RopeParams> {
        let Self { dtype, batch, tokens, layout, cache, rope, q_norm, k_norm, .. } = *self;
        let (size, rows) = (dtype.size(), batch * tokens);
        if rows == 0 {
            return Ok(RopeParams::default());
        }
        let QkvLayout { q_heads, kv_heads, head_dim, .. } = layout;
        layout.check()?;
        if head_dim > MOST_FEATURES || rope.is_some_and(|rope| 2 * rope.pairs > head_dim) {
            return Err(Error::Unsupported(format!(
                "heads of {head_dim} features with {} rotated pairs on a GPU",
                rope.map_or(0, |rope| rope.pairs)
            )));
        }
        if let (Some(q), Some(k)) = (q_norm, k_norm)
            && q.centred != k.centred
        {
            return Err(Error::Unsupported("q and k norms of different kinds".to_owned()));
        }
        let weight = |norm: Option<HeadNorm>, heads: usize| {
            let len = norm.map_or(0, |norm| if norm.per_head { heads * head_dim } else { head_dim });
            optional(norm.map(|norm| norm.weight), "weight of a head's norm", len, 4)
        };
        let per_head =
            |norm: Option<HeadNorm>| norm.map_or(0, |norm| if norm.per_head { head_dim } else { 0 });
        let table = |region: Option<&Region>| {
            optional(region, "rope table", rope.map_or(0, |rope| rope.rows * rope.pairs), 4)
        };
        Ok(RopeParams {
            qkv: self.qkv.checked("qkv", rows * layout.row, size)?,
            keys: cache.checked(cache.keys, dtype, batch, layout)?,
            values: cache.checked(cache.values, dtype, batch, layout)?,
            first_slot: self.state.first_slot.checked("first slot", 1, 4)?,
            positions: optional(rope.map(|rope| rope.positions), "positions", rows, 4)?,
            cos: table(rope.map(|rope| rope.cos))?,
            sin: table(rope.map(|rope| rope.sin))?,
            q_weight: weight(q_norm, q_heads)?,
            k_weight: weight(k_norm, kv_heads)?,
            tokens: int("tokens", tokens)?,
            rows: int("rows", rows)?,
            q_heads: int("heads", q_heads)?,
            kv_heads: int("heads", kv_heads)?,
            head_dim: int("head", head_dim)?,
            capacity: int("capacity", cache.capacity)?,
            row: int("row", layout.row)?,
            q_first: int("column", layout.q_first)?,
            k_first: int("column", layout.k_first)?,
            v_first: int("column", layout.v_first)?,
            q_group: int("stride", layout.q_group)?,
            kv_head: int("stride", layout.kv_head)?,
            pairs: int("pairs", rope.map_or(0, |rope| rope.pairs))?,
            interleaved: i32::from(rope.is_some_and(|rope| rope.interleaved)),
            table_rows: int("rows", rope.map_or(0, |rope| rope.rows))?,
            q_weight_head: int("stride", per_head(q_norm))?,
            k_weight_head: int("stride", per_head(k_norm))?,
            centred: i32::from(q_norm.or(k_norm).is_some_and(|norm| norm.centred)),
            q_eps: q_norm.map_or(0.0, |norm| norm.eps),
            k_eps: k_norm.map_or(0.0, |norm| norm.eps),
        })
    }
}
