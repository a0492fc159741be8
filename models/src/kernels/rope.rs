//! Rotary position embedding (Su et al. 2021) of a joined q/k/v projection: q is rotated in place, k is rotated while
//! it is copied to the cache, v is copied to the cache. Tables and arithmetic are f32.

#![expect(unsafe_code, reason = "tasks write disjoint slots of the cache, rows are rotated by vector code")]

use super::cache::{CacheShape, KvCache};
use super::element::Element;
use super::pool::{Pool, Shards};
use super::simd::{Op, Simd};
use super::tile::PANEL;

/// Which elements form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + rotary/2` (llama, gpt-neox).
    HalfSplit,
    /// `2i` and `2i + 1` (cohere, gpt-j).
    Interleaved,
}

/// Cosines and sines by position, already multiplied by the attention factor of the rope scaling, if any.
#[derive(Clone, Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    pairs: usize,
    pairing: Pairing,
}

impl RopeTable {
    /// `cos` and `sin` are `[positions, pairs]`; the leading `2 * pairs` elements of a head are rotated, the others
    /// are unchanged (partial rotary).
    ///
    /// # Panics
    /// If the tables differ in length or do not consist of whole rows.
    pub fn new(cos: Vec<f32>, sin: Vec<f32>, pairs: usize, pairing: Pairing) -> Self {
        assert!(
            pairs > 0 && cos.len() == sin.len() && cos.len().is_multiple_of(pairs),
            "tables: [positions, {pairs}]"
        );
        Self { cos, sin, pairs, pairing }
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.pairs
    }
}

/// The shape of the joined projection and its place in the cache.
#[derive(Clone, Copy, Debug)]
pub struct QkvLayout {
    /// New tokens per sequence; `qkv` is `[batch, tokens, (q_heads + 2 kv_heads) * head_dim]`.
    pub tokens: usize,
    /// Query heads.
    pub q_heads: usize,
    /// Cache slot of the first new token, the same for every sequence.
    pub first_slot: usize,
}

/// Rotates q in place and writes k (rotated) and v into `cache` at slots `first_slot..first_slot + tokens`.
/// `positions: [batch, tokens]` are rows of the table; without `rope` nothing is rotated.
///
/// Slots must be filled in order: writing a bf16 value to an even slot clears the odd slot after it.
///
/// # Panics
/// If a shape does not fit, a position is outside the table, or the cache is full.
pub fn rope_into_cache<T: Element>(
    pool: &Pool,
    layout: QkvLayout,
    qkv: &mut [T],
    rope: Option<(&RopeTable, &[u32])>,
    cache: &mut KvCache<T>,
) {
    let shape = cache.shape();
    let QkvLayout { tokens, q_heads, first_slot } = layout;
    let width = (q_heads + 2 * shape.kv_heads) * shape.head_dim;
    assert_eq!(qkv.len(), shape.batch * tokens * width, "qkv: [{}, {tokens}, {width}]", shape.batch);
    assert!(
        first_slot + tokens <= shape.capacity,
        "{tokens} tokens from slot {first_slot} on overfill the cache"
    );
    if let Some((table, positions)) = rope {
        assert_eq!(positions.len(), shape.batch * tokens, "positions: [{}, {tokens}]", shape.batch);
        assert!(2 * table.pairs <= shape.head_dim, "{} pairs in a head of {}", table.pairs, shape.head_dim);
        let last = positions.iter().max().map_or(0, |p| *p as usize);
        assert!(tokens == 0 || last < table.positions(), "position {last} of {}", table.positions());
    }
    // A task takes the slots of one panel of keys, because they share cache lines, and pairs of bf16 values share
    // units.
    let panels = (first_slot + tokens).div_ceil(PANEL) - first_slot / PANEL;
    let qkv = Shards::new(qkv);
    let keys = Shards::new(&mut cache.keys);
    let values = Shards::new(&mut cache.values);
    pool.run(shape.batch * panels, |task, _| {
        let (batch, panel) = (task / panels, first_slot / PANEL + task % panels);
        for slot in first_slot.max(panel * PANEL)..(first_slot + tokens).min((panel + 1) * PANEL) {
            let token = batch * tokens + slot - first_slot;
            // SAFETY: a token belongs to one task.
            let row = unsafe { qkv.slice(token * width, width) };
            let rope = rope.map(|(table, positions)| (table, positions[token] as usize));
            // SAFETY: the level exists; shapes were checked; the slot belongs to this task.
            unsafe {
                pool.isa().run(TokenOp {
                    row,
                    rope,
                    q_heads,
                    shape,
                    batch,
                    slot,
                    keys: &keys,
                    values: &values,
                });
            };
        }
    });
}

struct TokenOp<'a, T> {
    row: &'a mut [T],
    rope: Option<(&'a RopeTable, usize)>,
    q_heads: usize,
    shape: CacheShape,
    batch: usize,
    slot: usize,
    keys: &'a Shards<f32>,
    values: &'a Shards<f32>,
}

impl<T: Element> Op for TokenOp<'_, T> {
    type Output = ();
    const HAS_BF16: bool = T::IS_BF16;

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let Self { row, rope, q_heads, shape, batch, slot, .. } = self;
        let dim = shape.head_dim;
        let (qk, v) = row.split_at_mut((q_heads + shape.kv_heads) * dim);
        if let Some((table, position)) = rope {
            for head in qk.chunks_exact_mut(dim) {
                // SAFETY: the head has at least 2 * pairs elements and the table the position.
                unsafe { rotate::<S, T>(head, table, position) };
            }
        }
        for head in 0..shape.kv_heads {
            let k = &qk[(q_heads + head) * dim..][..dim];
            let key = self.keys.at(shape.key_at::<T>(batch, head, slot));
            for unit in 0..shape.key_units::<T>() {
                // SAFETY: the slot is below the capacity, so its units are inside the buffer.
                unsafe { *key.add(unit * PANEL) = T::unit(k, unit) };
            }
            let v = &v[head * dim..][..dim];
            let value = self.values.at(shape.value_at::<T>(batch, head, slot));
            for (d, x) in v.iter().enumerate() {
                // SAFETY: as above; a bf16 unit is shared by two slots of the same task.
                unsafe {
                    let unit = value.add(d);
                    *unit = if slot % T::PER_UNIT == 0 {
                        T::unit(&[*x], 0)
                    } else {
                        T::unit(&[T::from_unit(*unit, 0), *x], 0)
                    };
                }
            }
        }
    }
}

/// Rotates the leading `2 * pairs` elements of one head.
#[inline(always)]
unsafe fn rotate<S: Simd, T: Element>(head: &mut [T], table: &RopeTable, position: usize) {
    let pairs = table.pairs;
    let cos = &table.cos[position * pairs..][..pairs];
    let sin = &table.sin[position * pairs..][..pairs];
    if table.pairing == Pairing::Interleaved {
        for (i, (cos, sin)) in cos.iter().zip(sin).enumerate() {
            let (a, b) = (head[2 * i].to_f32(), head[2 * i + 1].to_f32());
            head[2 * i] = T::from_f32(a * cos - b * sin);
            head[2 * i + 1] = T::from_f32(b * cos + a * sin);
        }
        return;
    }
    let mut i = 0;
    while i < pairs {
        let left = pairs - i;
        // SAFETY: both halves have `left` elements from here on.
        unsafe {
            let low = head.as_mut_ptr().add(i);
            let high = low.add(pairs);
            let (a, b) = (T::load::<S>(low, left), T::load::<S>(high, left));
            let cos = <f32 as Element>::load::<S>(cos.as_ptr().add(i), left);
            let sin = <f32 as Element>::load::<S>(sin.as_ptr().add(i), left);
            T::store::<S>(low, S::sub(S::mul(a, cos), S::mul(b, sin)), left);
            T::store::<S>(high, S::fma(b, cos, S::mul(a, sin)), left);
        }
        i += S::LANES;
    }
}
