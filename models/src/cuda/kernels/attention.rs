//! Attention over the KV cache: tiled for more than one query token, split along the keys for one.

use super::launch::{Params, int, launch, optional, params};
use super::layout::{CacheRegions, MAX_HEAD_DIM, PassState, QkvLayout};
use super::rope::{RopeIntoCache, RopeParams};
use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::{Gpu, Region};
use crate::cuda::kernel_id::{Kernels, kernels, of};
use crate::error::{Error, Result};

/// By head size: at most 64, 128 and 256 features. The F32 kernels are in another source.
const PREFILL: [Kernels; 3] = [prefill!("prefill_64"), prefill!("prefill_128"), prefill!("prefill_256")];
/// By head size, then by query heads per block: 1, 2, 4, 8.
const DECODE: [[Kernels; 4]; 3] = [
    [
        kernels!(Decode, "decode_64_1"),
        kernels!(Decode, "decode_64_2"),
        kernels!(Decode, "decode_64_4"),
        kernels!(Decode, "decode_64_8"),
    ],
    [
        kernels!(Decode, "decode_128_1"),
        kernels!(Decode, "decode_128_2"),
        kernels!(Decode, "decode_128_4"),
        kernels!(Decode, "decode_128_8"),
    ],
    [
        kernels!(Decode, "decode_256_1"),
        kernels!(Decode, "decode_256_2"),
        kernels!(Decode, "decode_256_4"),
        kernels!(Decode, "decode_256_8"),
    ],
];
const COMBINE: Kernels = kernels!(Decode, "decode_combine");
pub(super) const KERNELS: &[Kernels] = &[
    PREFILL[0],
    PREFILL[1],
    PREFILL[2],
    DECODE[0][0],
    DECODE[0][1],
    DECODE[0][2],
    DECODE[0][3],
    DECODE[1][0],
    DECODE[1][1],
    DECODE[1][2],
    DECODE[1][3],
    DECODE[2][0],
    DECODE[2][1],
    DECODE[2][2],
    DECODE[2][3],
    COMBINE,
];
pub(super) const LAYOUTS: &[fn() -> String] = &[AttentionParams::layout];
pub(super) const DECODE_LAYOUTS: &[fn() -> String] =
    &[AttentionParams::layout, RopeParams::layout, DecodeParams::layout, CombineParams::layout];

/// Threads per block for more than one token (per part of the keys), and for one token.
const THREADS: usize = 128;
const DECODE_THREADS: usize = 256;
/// Query rows (token and head) per block in `prefill.cu` and in `prefill_f32.cu`.
const ROWS: usize = 64;
const ROWS_F32: usize = 32;
/// Most parts that the keys of one token are split into, and cache slots per part below which they are not split
/// further.
const MOST_SPLITS: usize = 64;
const SPLIT_KEYS: usize = 256;

/// As `kernels!`, with the F32 kernel in `PrefillF32`.
macro_rules! prefill {
    ($name:literal) => {{
        let [_, bf16, f16] = kernels!(Prefill, $name);
        [kernels!(PrefillF32, $name)[0], bf16, f16]
    }};
}
use prefill;

params! {
    struct AttentionParams {
        q: u64,
        keys: u64,
        values: u64,
        first_slot: u64,
        ranges: u64,
        visible: u64,
        bias: u64,
        out: u64,
        parts: u64,
        batch: i32,
        tokens: i32,
        q_heads: i32,
        kv_heads: i32,
        head_dim: i32,
        capacity: i32,
        q_row: i32,
        q_group: i32,
        visible_row: i32,
        bias_row: i32,
        bias_batch: i32,
        before: i32,
        after: i32,
        splits: i32,
        scale: f32,
        soft_cap: f32,
    }
}

params! {
    struct DecodeParams {
        attention: AttentionParams,
        rope: RopeParams,
    }
}

params! {
    struct CombineParams {
        parts: u64,
        out: u64,
        head_dim: i32,
        splits: i32,
    }
}

/// F32, `[1 or batch, q_heads, row]`: added to the scaled scores (ALiBi); keys from `row` on get no bias.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBias<'a> {
    /// The bias values.
    pub region: &'a Region,
    /// Keys per query head.
    pub row: usize,
    /// Whether each sequence has its own biases.
    pub per_sequence: bool,
}

/// `out[b, t, h] = softmax(cap(scale * q k^T) + bias) v` over the visible keys; zeros if no key is visible.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Element type of q, cache and out.
    pub dtype: Dtype,
    /// Batch size.
    pub batch: usize,
    /// Query tokens per sequence.
    pub tokens: usize,
    /// Layout of `qkv`.
    pub layout: QkvLayout,
    /// The joined projection, `[batch * tokens, layout.row]`.
    pub qkv: &'a Region,
    /// Norm, rope and cache write of the new tokens, done first (for one token in the same launch). If `None`, the
    /// queries are already rotated and the cache already holds the new tokens.
    pub turn: Option<RopeIntoCache<'a>>,
    /// The layer's cache.
    pub cache: CacheRegions<'a>,
    /// Cache slots and key ranges of the forward pass.
    pub state: PassState<'a>,
    /// Added to scaled and capped scores.
    pub bias: Option<AttentionBias<'a>>,
    /// Factor of the scores, before the cap and the bias.
    pub scale: f32,
    /// The cap: scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// Number of slots before its own that a query sees; `None` is all. A causal window of W keys is `Some(W - 1)`.
    pub before: Option<usize>,
    /// Number of slots after its own that a query sees; `None` is all, causal is `Some(0)`.
    pub after: Option<usize>,
    /// `[batch, tokens, q_heads * head_dim]`.
    pub out: &'a Region,
    /// F32, [`Attention::scratch_len`] elements; may be `None` if that is 0.
    pub scratch: Option<&'a Region>,
}

impl Attention<'_> {
    /// Number of F32 scratch elements: partial results, if the keys of one token are split; else 0.
    pub fn scratch_len(
        gpu: &dyn Gpu,
        batch: usize,
        tokens: usize,
        layout: QkvLayout,
        capacity: usize,
    ) -> usize {
        let splits = splits(gpu, batch, tokens, layout, capacity);
        if splits > 1 { batch * layout.q_heads * splits * (layout.head_dim + 2) } else { 0 }
    }

    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small, heads have more than [`MAX_HEAD_DIM`] features, or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let Self { dtype, batch, tokens, layout, cache, state, .. } = *self;
        let (size, rows) = (dtype.size(), batch * tokens);
        if rows == 0 || layout.q_heads == 0 {
            return Ok(());
        }
        let QkvLayout { q_heads, kv_heads, head_dim, .. } = layout;
        layout.check()?;
        if head_dim > MAX_HEAD_DIM {
            return Err(Error::Unsupported(format!("attention heads of {head_dim} features on a GPU")));
        }
        let gpu = &**self.out.gpu();
        let splits = splits(gpu, batch, tokens, layout, cache.capacity);
        let scratch = Self::scratch_len(gpu, batch, tokens, layout, cache.capacity);
        if scratch > 0 && self.scratch.is_none() {
            return Err(Error::Gpu("split attention has no scratch".to_owned()));
        }
        let bias_batch = self.bias.map_or(0, |bias| if bias.per_sequence { q_heads * bias.row } else { 0 });
        let limit = |limit: Option<usize>| limit.map_or(Ok(-1), |limit| int("window", limit));
        let params = AttentionParams {
            q: self.qkv.checked("q", rows * layout.row, size)? + (layout.q_first * size) as u64,
            keys: cache.checked(cache.keys, dtype, batch, layout)?,
            values: cache.checked(cache.values, dtype, batch, layout)?,
            first_slot: state.first_slot.checked("first slot", 1, 4)?,
            ranges: state.keys.checked("ranges of keys", 2 * batch, 4)?,
            visible: optional(
                state.visible.map(|visible| visible.region),
                "visible",
                batch * state.visible.map_or(0, |visible| visible.row),
                1,
            )?,
            bias: optional(
                self.bias.map(|bias| bias.region),
                "bias of attention",
                self.bias.map_or(0, |bias| q_heads * bias.row * if bias.per_sequence { batch } else { 1 }),
                4,
            )?,
            out: self.out.checked("out of attention", rows * q_heads * head_dim, size)?,
            parts: optional(self.scratch, "scratch of attention", scratch, 4)?,
            batch: int("batch", batch)?,
            tokens: int("tokens", tokens)?,
            q_heads: int("heads", q_heads)?,
            kv_heads: int("heads", kv_heads)?,
            head_dim: int("head", head_dim)?,
            capacity: int("capacity", cache.capacity)?,
            q_row: int("row", layout.row)?,
            q_group: int("stride", layout.q_group)?,
            visible_row: int("row", state.visible.map_or(0, |visible| visible.row))?,
            bias_row: int("row", self.bias.map_or(0, |bias| bias.row))?,
            bias_batch: int("stride", bias_batch)?,
            before: limit(self.before)?,
            after: limit(self.after)?,
            splits: int("splits", splits)?,
            scale: self.scale,
            soft_cap: self.soft_cap.unwrap_or(0.0),
        };
        let width = [64, 128, 256].iter().position(|most| head_dim <= *most).unwrap_or(2);
        let features = [64, 128, 256][width];
        let group = q_heads / kv_heads;
        if tokens > 1 {
            self.turn.map_or(Ok(()), |turn| turn.launch())?;
            let (rows, threads, shared) = match dtype {
                Dtype::F32 => (ROWS_F32, THREADS, prefill_f32_shared(features)),
                _ => (ROWS, THREADS * prefill_parts(features), prefill_shared(features)),
            };
            let grid = [(tokens * group).div_ceil(rows) * kv_heads, 1, batch];
            let params = AttentionParams { splits: int("blocks", gpu.multiprocessors())?, ..params };
            return launch(gpu, of(PREFILL[width], dtype), grid, threads, shared, &params);
        }
        let heads = decode_heads(group);
        let kernel = of(DECODE[width][heads.trailing_zeros() as usize], dtype);
        let grid = [splits, kv_heads * group.div_ceil(heads), batch];
        let rope = self.turn.map_or(Ok(RopeParams::default()), |turn| turn.params())?;
        let both = DecodeParams { attention: params, rope };
        launch(gpu, kernel, grid, DECODE_THREADS, decode_shared(features, heads), &both)?;
        if splits == 1 {
            return Ok(());
        }
        let combine = CombineParams {
            parts: params.parts,
            out: params.out,
            head_dim: params.head_dim,
            splits: params.splits,
        };
        let threads = head_dim.next_multiple_of(32);
        launch(gpu, of(COMBINE, dtype), [batch * q_heads, 1, 1], threads, 0, &combine)
    }
}

/// Query heads per block in `decode.cu`.
fn decode_heads(group: usize) -> usize {
    group.next_power_of_two().min(8)
}

/// Number of parts of the keys, enough for two blocks per multiprocessor. It depends on the cache's capacity, not on
/// its content, so that a captured graph stays valid as the cache fills.
fn splits(gpu: &dyn Gpu, batch: usize, tokens: usize, layout: QkvLayout, capacity: usize) -> usize {
    if tokens != 1 {
        return 1;
    }
    let group = layout.q_heads / layout.kv_heads.max(1);
    let blocks = batch * layout.kv_heads * group.div_ceil(decode_heads(group.max(1)));
    let wanted = (2 * gpu.multiprocessors()).div_ceil(blocks.max(1));
    wanted.min(capacity.div_ceil(SPLIT_KEYS)).clamp(1, MOST_SPLITS)
}

/// Parts that a tile's keys are split into; each part has its own warps.
fn prefill_parts(features: usize) -> usize {
    if features == 64 { 2 } else { 1 }
}

/// Shared memory in bytes: queries, and two stages of keys and values (32 rows of 256 features, else 64 rows, per
/// part), in 16 bits.
fn prefill_shared(features: usize) -> usize {
    let keys = if features == 256 { 32 } else { 64 } * prefill_parts(features);
    (ROWS + 4 * keys) * features * 2
}

/// Shared memory in bytes: queries, keys and values, 32 rows each with 4 floats of padding, and the probabilities.
fn prefill_f32_shared(features: usize) -> usize {
    (3 * ROWS_F32 * (features + 4) + ROWS_F32 * 36) * 4
}

/// Shared memory in bytes: rotated queries and key, the value, and each warp's sums, maxima and totals.
fn decode_shared(features: usize, heads: usize) -> usize {
    let warps = DECODE_THREADS / 32;
    ((heads + 2) * features + warps * heads * (features + 2)) * size_of::<f32>()
}
