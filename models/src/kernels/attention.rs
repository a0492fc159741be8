//! Blocked attention over the cache with an online softmax (Dao et al. 2022), for causal, windowed and
//! bidirectional masks, grouped queries, soft-capping and padding on either side.
//!
//! A task computes a few tokens' queries for all heads that share a key head, and reads the keys in blocks of 128.
//! Blocks that the mask excludes completely are skipped. Scores, maximum, sum and output are f32; in bf16 the
//! probabilities are rounded to bf16 before they are summed and multiplied by the values.

#![expect(unsafe_code, reason = "tiles on raw pointers; tasks write disjoint places")]

use super::cache::{KvCache, MAX_HEAD_DIM};
use super::element::Element;
use super::math;
use super::pool::{Pool, Shards};
use super::simd::{Op, Simd};
use super::tile::{Every, PANEL, tile_of};
use std::ops::Range;

/// Keys in a block.
const BLOCK: usize = 4 * PANEL;
/// Floats from one row of queries or scores to the next in scratch memory. The 16 added floats keep the distance from
/// being a multiple of 4 KiB, so that the rows of a tile do not fall into the same sets of the first-level cache.
const QUERY_ROW: usize = MAX_HEAD_DIM + 16;
const SCORE_ROW: usize = BLOCK + 16;
/// Upper bound on the rows of a tile at every instruction level.
const MOST_ROWS: usize = 16;
/// Minimum number of keys per part when a task's keys are split among threads; fewer under Miri, which is slow.
const SPLIT: usize = if cfg!(miri) { 32 } else { 256 };

/// The keys that a query attends to, by distance in slots: from `before` slots before the query to `after` slots
/// after it, both included; `None` means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// Slots before the query.
    pub before: Option<usize>,
    /// Slots after the query.
    pub after: Option<usize>,
}

impl Band {
    /// Every key up to the query's own.
    pub const CAUSAL: Self = Self { before: None, after: Some(0) };
    /// Every key.
    pub const FULL: Self = Self { before: None, after: None };

    /// The last `window` keys including the query's own: transformers' `sliding_window`.
    pub const fn causal_window(window: usize) -> Self {
        Self { before: Some(window.saturating_sub(1)), after: Some(0) }
    }

    fn keys(self, slot: usize, allowed: &Range<usize>) -> Range<usize> {
        let start = self.before.map_or(0, |n| slot.saturating_sub(n)).max(allowed.start);
        let end = self.after.map_or(usize::MAX, |n| slot.saturating_add(n + 1)).min(allowed.end);
        start..end.max(start)
    }
}

/// Biases that depend only on the head and on the distance from the query to the key (T5's `relative_attention_bias`).
#[derive(Clone, Copy, Debug)]
pub struct Relative<'a> {
    /// `[q_heads, len]`, by distance.
    values: &'a [f32],
    len: usize,
    /// Index of distance 0: the number of slots before the last query.
    zero: usize,
}

impl<'a> Relative<'a> {
    /// Values of each head for queries of slots below `slots`, see [`Relative::len`].
    ///
    /// # Panics
    /// If there are not [`Relative::len`] values for each head.
    pub fn new(values: &'a [f32], slots: usize, q_heads: usize) -> Self {
        let len = Self::len(slots);
        assert_eq!(values.len(), q_heads * len, "relative: [{q_heads}, {len}]");
        Self { values, len, zero: slots.saturating_sub(1) }
    }

    /// Number of values for each head: the biases of the distances from `1 - slots` on, in order. The kernel reads the
    /// values of distances from `slots` on, but does not use them.
    pub fn len(slots: usize) -> usize {
        2 * slots.saturating_sub(1) + 1 + BLOCK
    }

    /// The biases of a head for a query, from the key `first` on.
    #[inline(always)]
    fn row(&self, head: usize, slot: usize, first: usize) -> &'a [f32] {
        &self.values[head * self.len + self.zero + first - slot..(head + 1) * self.len]
    }
}

/// Parameters of an attention call, apart from the cache.
#[derive(Clone, Debug)]
pub struct Attention<'a> {
    /// Query tokens per sequence.
    pub tokens: usize,
    /// Query heads, a multiple of the cache's kv heads; head `h` reads kv head `h / (q_heads / kv_heads)`.
    pub q_heads: usize,
    /// Elements from one token's queries to the next token's: the width of a joined q/k/v projection.
    pub q_row: usize,
    /// Cache slot of the first query token.
    pub first_slot: usize,
    /// Factor by which scores are multiplied, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// `cap * tanh(score / cap)` after scaling.
    pub softcap: Option<f32>,
    /// Biases added to the scores after scale and cap.
    pub relative: Option<Relative<'a>>,
    /// The keys that a query attends to, by distance.
    pub band: Band,
    /// For each sequence, the range of slots that hold real keys: `[batch]`. Left padding raises the start, right
    /// padding lowers the end.
    pub keys: &'a [Range<usize>],
    /// `[batch, n]`, false for slots that no query attends to; `n` is at least every key's slot plus one. Needed for
    /// padding between real tokens (a right-padded batch that is continued); `None` masks no slot.
    pub visible: Option<&'a [bool]>,
}

/// `out[b, t, h] = softmax(scale * q k^T + mask) v`. `q: [batch, tokens, q_row]`, where the query heads are the first
/// elements of each row; `out: [batch, tokens, q_heads * head_dim]`. The output is zero for a query that may attend
/// to no key.
///
/// # Panics
/// If a shape does not fit or a range of keys exceeds the cache.
pub fn attention<T: Element>(pool: &Pool, spec: &Attention, q: &[T], cache: &KvCache<T>, out: &mut [T]) {
    let shape = cache.shape();
    let &Attention { tokens, q_heads, q_row, .. } = spec;
    let out_row = q_heads * shape.head_dim;
    assert!(shape.kv_heads > 0 && q_heads % shape.kv_heads == 0, "{q_heads} heads on {}", shape.kv_heads);
    assert!(
        q_row >= out_row && q.len() == shape.batch * tokens * q_row,
        "q: [{}, {tokens}, {q_row}]",
        shape.batch
    );
    assert_eq!(out.len(), shape.batch * tokens * out_row, "out: [{}, {tokens}, {out_row}]", shape.batch);
    assert_eq!(spec.keys.len(), shape.batch, "keys: [{}]", shape.batch);
    assert!(spec.keys.iter().all(|k| k.end <= shape.capacity), "keys within {} slots", shape.capacity);
    assert!(
        spec.visible.is_none_or(|v| {
            v.len().is_multiple_of(shape.batch) && spec.keys.iter().all(|k| k.end <= v.len() / shape.batch)
        }),
        "visible: [batch, past every key]"
    );
    assert!(
        spec.relative.is_none_or(|relative| {
            let slots = relative.zero + 1;
            spec.first_slot + tokens <= slots && spec.keys.iter().all(|k| k.end <= slots)
        }),
        "relative: a bias for every distance"
    );
    if tokens == 0 {
        return;
    }
    let group = q_heads / shape.kv_heads;
    let tile_rows = pool.isa().tile_rows();
    // If the query heads of a key head exceed a tile, they are split into pieces; otherwise a task takes several
    // tokens.
    let pieces = group.div_ceil(tile_rows);
    let heads = group.div_ceil(pieces);
    let token_blocks = tokens.div_ceil(tile_rows / heads);
    let units = shape.batch * shape.kv_heads * pieces * token_blocks;
    // If there are few tasks and many keys (one token, one key head), the keys are split and the partial results
    // merged.
    let longest = spec.keys.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
    let reach = spec.band.before.map_or(longest, |n| longest.min(n + tokens));
    let splits = if units >= 2 * pool.threads() { 1 } else { (reach / SPLIT).clamp(1, 2 * pool.threads()) };
    let value_row = shape.value_row();
    // Scratch memory. Per thread: queries, scores, output. Per part of a split task: its output, maximum and sum.
    let part_row = value_row + 2;
    let per_thread = MOST_ROWS * (QUERY_ROW + SCORE_ROW + value_row);
    let parts_at = pool.threads() * per_thread;
    let parts_len = if splits > 1 { units * splits * tile_rows * part_row } else { 0 };
    let mut scratch = pool.scratch(parts_at + parts_len);
    let memory = Shards::new(&mut scratch);
    let shards = Shards::new(out);
    let part = |unit: usize, split: usize| parts_at + (unit * splits + split) * tile_rows * part_row;
    let task_of = |unit: usize| {
        let (block, rest) = (unit % token_blocks, unit / token_blocks);
        let (piece, rest) = (rest % pieces, rest / pieces);
        let (kv_head, batch) = (rest % shape.kv_heads, rest / shape.kv_heads);
        Task {
            batch,
            kv_head,
            first_head: kv_head * group + piece * heads,
            heads: heads.min(group - piece * heads),
            first_token: block * tokens / token_blocks,
            end_token: (block + 1) * tokens / token_blocks,
        }
    };
    pool.run(units * splits, |i, thread| {
        // Later tokens attend to more keys, so their tasks run first and the short tasks fill the end.
        let (unit, split) = (units - 1 - i / splits, i % splits);
        let task = task_of(unit);
        let mine = thread * per_thread;
        let run = TaskOp {
            spec,
            cache,
            q: q.as_ptr(),
            queries: memory.at(mine),
            scores: memory.at(mine + MOST_ROWS * QUERY_ROW),
            sums: memory.at(mine + MOST_ROWS * (QUERY_ROW + SCORE_ROW)),
            split: (split, splits),
            part: (splits > 1).then(|| memory.at(part(unit, split))),
            out: shards.at(0),
            task,
        };
        // SAFETY: the level exists; shapes were checked; scratch is this thread's, `out` and part this task's.
        unsafe { pool.isa().run(run) };
    });
    if splits > 1 {
        for unit in 0..units {
            let task = task_of(unit);
            for r in 0..task.rows() {
                // SAFETY: all tasks have finished; the parts lie in scratch.
                let parts = unsafe { memory.slice(part(unit, 0), splits * tile_rows * part_row) };
                let to = task.out_at(r, out_row, shape.head_dim, tokens);
                // SAFETY: nothing else writes `out` now.
                let to = unsafe { shards.slice(to, shape.head_dim) };
                merge(parts, tile_rows * part_row, r * part_row, value_row, to);
            }
        }
    }
}

/// Merges the partial softmaxes of one row.
fn merge<T: Element>(parts: &[f32], distance: usize, row: usize, value_row: usize, to: &mut [T]) {
    let rows = || parts.chunks_exact(distance).map(|p| &p[row..row + value_row + 2]);
    let top = rows().map(|p| p[value_row]).fold(f32::NEG_INFINITY, f32::max);
    let weight = |p: &[f32]| {
        if p[value_row + 1] > 0.0 { (p[value_row] - top).exp() } else { 0.0 }
    };
    let total: f32 = rows().map(|p| weight(p) * p[value_row + 1]).sum();
    let inverse = if total > 0.0 { 1.0 / total } else { 0.0 };
    for (d, x) in to.iter_mut().enumerate() {
        *x = T::from_f32(rows().map(|p| weight(p) * p[d]).sum::<f32>() * inverse);
    }
}

/// The rows of one task: tokens `first_token..end_token`, `heads` heads each; row = token * heads + head.
#[derive(Clone, Copy)]
struct Task {
    batch: usize,
    kv_head: usize,
    first_head: usize,
    heads: usize,
    first_token: usize,
    end_token: usize,
}

impl Task {
    fn rows(&self) -> usize {
        (self.end_token - self.first_token) * self.heads
    }

    fn out_at(&self, row: usize, out_row: usize, head_dim: usize, tokens: usize) -> usize {
        let token = self.batch * tokens + self.first_token + row / self.heads;
        token * out_row + (self.first_head + row % self.heads) * head_dim
    }
}

struct TaskOp<'a, T: Element> {
    spec: &'a Attention<'a>,
    cache: &'a KvCache<T>,
    q: *const T,
    queries: *mut f32,
    scores: *mut f32,
    sums: *mut f32,
    split: (usize, usize),
    part: Option<*mut f32>,
    out: *mut T,
    task: Task,
}

impl<T: Element> Op for TaskOp<'_, T> {
    type Output = ();
    const HAS_BF16: bool = T::IS_BF16;

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let Self { spec, task, .. } = self;
        let shape = self.cache.shape;
        let rows = task.rows();
        let allowed = &spec.keys[task.batch];
        // The keys that any row of the task attends to; both ends grow with the token.
        let first = spec.band.keys(spec.first_slot + task.first_token, allowed);
        let last = spec.band.keys(spec.first_slot + task.end_token - 1, allowed);
        let (start, end) = part_of(first.start..last.end.max(first.end), self.split);
        // SAFETY: see the individual steps; shapes were checked by `attention`.
        unsafe {
            self.gather_queries(rows);
            let mut top = [f32::NEG_INFINITY; MOST_ROWS];
            let mut total = [0.0_f32; MOST_ROWS];
            let value_row = shape.value_row();
            for i in 0..rows * value_row {
                *self.sums.add(i) = 0.0;
            }
            let mut block = start / PANEL * PANEL;
            while block < end {
                let panels = (end - block).div_ceil(PANEL).min(BLOCK / PANEL);
                let units = shape.key_units::<T>();
                let keys = self.cache.keys.as_ptr().add(shape.key_at::<T>(task.batch, task.kv_head, block));
                for p in 0..panels {
                    let (b, s) = (keys.add(p * PANEL * units), self.scores.add(p * PANEL));
                    let q = self.queries;
                    tile_of::<S, T, _>(rows, units, q, Every::<QUERY_ROW>, b, PANEL, s, SCORE_ROW, false);
                }
                for r in 0..rows {
                    let token = spec.first_slot + task.first_token + r / task.heads;
                    let band = spec.band.keys(token, allowed);
                    let seen = band.start.max(start)..band.end.min(end);
                    let row = self.scores.add(r * SCORE_ROW);
                    let sums = self.sums.add(r * value_row);
                    self.mask::<S>(row, block, panels * PANEL, &seen);
                    if let Some(relative) = &spec.relative {
                        let head = task.first_head + r % task.heads;
                        add_to::<S>(row, relative.row(head, token, block), panels * PANEL);
                    }
                    softmax_step::<S, T>(row, panels * PANEL, &mut top[r], &mut total[r], sums, value_row);
                }
                let steps = (end - block).min(BLOCK).div_ceil(T::PER_UNIT);
                let values =
                    self.cache.values.as_ptr().add(shape.value_at::<T>(task.batch, task.kv_head, block));
                let mut column = 0;
                while column < value_row {
                    let (b, o) = (values.add(column), self.sums.add(column));
                    let p = self.scores;
                    tile_of::<S, T, _>(rows, steps, p, Every::<SCORE_ROW>, b, value_row, o, value_row, true);
                    column += PANEL;
                }
                block += BLOCK;
            }
            self.finish::<S>(rows, &top, &total);
        }
    }
}

/// Part `split.0` of `split.1` parts of a range; parts end at panel borders.
#[inline(always)]
fn part_of(range: Range<usize>, split: (usize, usize)) -> (usize, usize) {
    if split.1 == 1 || range.is_empty() {
        return (range.start, range.end.max(range.start));
    }
    let (first, panels) = (range.start / PANEL, range.end.div_ceil(PANEL) - range.start / PANEL);
    let cut = |i: usize| (first + i * panels / split.1) * PANEL;
    let start = cut(split.0).max(range.start);
    (start, cut(split.0 + 1).min(range.end).max(start))
}

impl<T: Element> TaskOp<'_, T> {
    /// Copies the task's queries to scratch as units, one row every `QUERY_ROW`.
    #[inline(always)]
    unsafe fn gather_queries(&self, rows: usize) {
        let dim = self.cache.shape.head_dim;
        for r in 0..rows {
            let token = self.task.batch * self.spec.tokens + self.task.first_token + r / self.task.heads;
            let head = self.task.first_head + r % self.task.heads;
            // SAFETY: the head lies inside row `token` of q; scratch has a row for each of the tile's.
            unsafe {
                let from = self.q.add(token * self.spec.q_row + head * dim);
                let to = self.queries.add(r * QUERY_ROW);
                // With an odd bf16 `head_dim` the high half of the last unit is zero.
                *to.add(dim.div_ceil(T::PER_UNIT) - 1) = 0.0;
                std::ptr::copy_nonoverlapping(from, to.cast::<T>(), dim);
            }
        }
    }

    /// Scales and caps a row of scores and sets masked keys to minus infinity.
    #[inline(always)]
    unsafe fn mask<S: Simd>(&self, row: *mut f32, block: usize, width: usize, seen: &Range<usize>) {
        // SAFETY: the row has `width` scores, a multiple of every level's lanes.
        unsafe {
            let scale = S::splat(self.spec.scale);
            let mut i = 0;
            while i < width {
                let mut s = S::mul(S::load(row.add(i)), scale);
                if let Some(cap) = self.spec.softcap {
                    let cap = S::splat(cap);
                    s = S::mul(math::tanh::<S>(S::div(s, cap)), cap);
                }
                S::store(row.add(i), s);
                i += S::LANES;
            }
            for i in 0..seen.start.saturating_sub(block).min(width) {
                *row.add(i) = f32::NEG_INFINITY;
            }
            for i in seen.end.saturating_sub(block).min(width)..width {
                *row.add(i) = f32::NEG_INFINITY;
            }
            if let Some(visible) = self.spec.visible {
                let len = visible.len() / self.cache.shape.batch;
                let visible = &visible[self.task.batch * len + block..(self.task.batch + 1) * len];
                for (i, seen) in visible.iter().enumerate().take(width) {
                    if !seen {
                        *row.add(i) = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }

    /// Divides by the sums and writes the output, or stores the partial results for `merge`.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, rows: usize, top: &[f32; MOST_ROWS], total: &[f32; MOST_ROWS]) {
        let shape = self.cache.shape;
        let value_row = shape.value_row();
        for r in 0..rows {
            // SAFETY: parts have `value_row + 2` floats a row; the head lies inside its row of `out`.
            unsafe {
                let sums = self.sums.add(r * value_row);
                if let Some(part) = self.part {
                    let part = part.add(r * (value_row + 2));
                    std::ptr::copy_nonoverlapping(sums, part, value_row);
                    *part.add(value_row) = top[r];
                    *part.add(value_row + 1) = total[r];
                    continue;
                }
                let inverse = S::splat(if total[r] > 0.0 { 1.0 / total[r] } else { 0.0 });
                let at =
                    self.task.out_at(r, self.spec.q_heads * shape.head_dim, shape.head_dim, self.spec.tokens);
                let out = self.out.add(at);
                let mut d = 0;
                while d < shape.head_dim {
                    let y = S::mul(S::load(sums.add(d)), inverse);
                    T::store::<S>(out.add(d), y, shape.head_dim - d);
                    d += S::LANES;
                }
            }
        }
    }
}

/// Adds the first `width` values to a row of scores; minus infinity stays.
#[inline(always)]
unsafe fn add_to<S: Simd>(row: *mut f32, values: &[f32], width: usize) {
    let values = &values[..width];
    // SAFETY: row and values have `width` floats, a multiple of every level's lanes.
    unsafe {
        let mut i = 0;
        while i < width {
            S::store(row.add(i), S::add(S::load(row.add(i)), S::load(values.as_ptr().add(i))));
            i += S::LANES;
        }
    }
}

/// One step of the online softmax of a row: replaces scores by probabilities relative to the new maximum, as units of
/// `T`, and rescales the running sum and output to that maximum.
#[inline(always)]
unsafe fn softmax_step<S: Simd, T: Element>(
    row: *mut f32,
    width: usize,
    top: &mut f32,
    total: &mut f32,
    sums: *mut f32,
    value_row: usize,
) {
    // SAFETY: `width` and `value_row` are multiples of every level's lanes. bf16 probabilities are written
    // over the scores, behind the place where those are read.
    unsafe {
        let mut highest = S::load(row);
        let mut i = S::LANES;
        while i < width {
            highest = S::max(highest, S::load(row.add(i)));
            i += S::LANES;
        }
        let new = S::max_lane(highest).max(*top);
        // If no key was admitted yet, subtracting minus infinity would give NaN instead of zero.
        let base = if new == f32::NEG_INFINITY { 0.0 } else { new };
        let mut sum = S::splat(0.0);
        let to = row.cast::<T>();
        i = 0;
        while i < width {
            let p = math::exp::<S>(S::sub(S::load(row.add(i)), S::splat(base)));
            T::store::<S>(to.add(i), p, S::LANES);
            sum = S::add(sum, T::load::<S>(to.add(i), S::LANES));
            i += S::LANES;
        }
        let keep = if *top == f32::NEG_INFINITY { 0.0 } else { (*top - new).exp() };
        *total = *total * keep + S::sum(sum);
        if *top < new && *top > f32::NEG_INFINITY {
            let keep = S::splat(keep);
            let mut d = 0;
            while d < value_row {
                S::store(sums.add(d), S::mul(S::load(sums.add(d)), keep));
                d += S::LANES;
            }
        }
        *top = new;
    }
}
