//! Linear layers over weights packed once at load: matrix product with an epilogue, for any number of rows. For one
//! to four rows the packed weights are read at memory bandwidth. For more rows each panel stays in L2 while all rows
//! are multiplied by it, and the next panel is prefetched. At a level that does not multiply pairs of bf16, each
//! panel is widened once for many rows and the product is computed in f32.
//!
//! `packing.rs` describes the weights' layout. Sums are f32, in chunks of [`CHUNK`] units; for one to four rows in chunks of
//! [`SHORT_CHUNK`] units with a compensated total.

#![expect(unsafe_code, reason = "tasks write disjoint columns of one output through the register tile")]

use super::arena::ask_for_large_pages;
use super::element::Element;
use super::interleave::Interleave;
use super::math::{self, Activation};
use super::packing::{PackedGateUp, PackedLinear, Panels, padded};
use super::pool::{Pool, Shards};
use super::simd::{Op, Simd};
use super::tile::{Apart, Interleaved, LINE, PANEL, UNROLLED, tile_of};
use std::sync::Arc;

/// Units summed in registers before they are added to the running total. The chunk bounds the growth of rounding
/// error with k and the part of a panel that a tile reads at a time. A product that is a thousand times larger than the
/// others, as at the first position of many decoders, is rounded by each addition after it in its chunk, so that shorter
/// chunks are closer to float64.
const CHUNK: usize = 128;
/// [`CHUNK`] for few rows, whose time is that of reading the weights, so that the compensated total costs nothing.
const SHORT_CHUNK: usize = 32;
/// Floats between what a tile of few rows multiplies and what it prefetches: 16 KiB. The processor's own prefetching stops at
/// the end of a page. On a Zen 5, 4 to 32 KiB ahead decode in 0.77 to 0.87 of the time without (15 rounds).
const AHEAD: usize = 4096;
/// Up to this many rows, the input is read in place instead of being interleaved first.
const FEW_ROWS: usize = 4;
/// Approximate bytes of weights that one task reads when the input has few rows.
const GROUP_BYTES: usize = 384 << 10;
/// Most bytes of interleaved rows in one part of a product, so that they stay in L2 beside a panel. On a Zen 5, 4096 rows of
/// MiniLM take 0.8 of the time of one part; 384 KiB and 1.5 MiB are as fast.
const PART_BYTES: usize = 768 << 10;
/// Upper bound on the rows of a tile at every instruction level.
const MOST_ROWS: usize = 16;

/// Operation on the sums (f32, bias included) before they are rounded and written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// `out = y`.
    Store,
    /// `out = factor * y`.
    Scale(f32),
    /// `out = out + factor * y`: the residual stream, in place.
    Add(f32),
    /// `out = activation(y)`.
    Activate(Activation),
    /// `out = cap * tanh(y / cap)`.
    SoftCap(f32),
}

impl<T: Element> PackedLinear<T> {
    /// `out = epilogue(xs W^T + bias)`. `xs: [m, k]`, `out: [m, n]`; f32 sums, rounded once to `O`.
    ///
    /// # Panics
    /// If a slice does not have its shape.
    pub fn forward<O: Element>(&self, pool: &Pool, xs: &[T], m: usize, out: &mut [O], epilogue: Epilogue) {
        assert_eq!(out.len(), m * self.panels.n, "out: [{m}, {}]", self.panels.n);
        // SAFETY: `out` has the shape.
        unsafe { self.panels.forward(pool, xs, m, out.as_mut_ptr(), Finish::Plain(epilogue)) };
    }

    /// As [`PackedLinear::forward`] into newly allocated memory that is not zeroed first.
    ///
    /// # Panics
    /// If `xs` does not have its shape, or the epilogue is [`Epilogue::Add`].
    pub fn forward_new<O: Element>(&self, pool: &Pool, xs: &[T], m: usize, epilogue: Epilogue) -> Vec<O> {
        assert!(!matches!(epilogue, Epilogue::Add(_)), "nothing is there to add to");
        let len = m * self.panels.n;
        let mut out = Vec::with_capacity(len);
        ask_for_large_pages(out.spare_capacity_mut());
        // SAFETY: the memory has room for the shape, and all of it is written before it is read.
        unsafe {
            self.panels.forward(pool, xs, m, out.as_mut_ptr(), Finish::Plain(epilogue));
            out.set_len(len);
        }
        out
    }

    /// Unpacks row `j` of the weight into `out: [k]`: the embedding of a token if the head is tied.
    ///
    /// # Panics
    /// If there is no such row or `out` is not `k` long.
    pub fn row(&self, j: usize, out: &mut [T]) {
        let Panels { n, k, ref units, .. } = self.panels;
        assert!(j < n && out.len() == k, "row {j} of [{n}, {k}]");
        let units = &units[(j / PANEL) * k.div_ceil(T::PER_UNIT) * PANEL + j % PANEL..];
        for (i, x) in out.iter_mut().enumerate() {
            *x = T::from_unit(units[i / T::PER_UNIT * PANEL], i);
        }
    }
}

impl<T: Element> PackedGateUp<T> {
    /// `out = activation(xs G^T) * (xs U^T)`. `xs: [m, k]`, `out: [m, n]`; f32 until rounded once.
    ///
    /// # Panics
    /// If a slice does not have its shape.
    pub fn forward(&self, pool: &Pool, xs: &[T], m: usize, out: &mut [T], activation: Activation) {
        assert_eq!(out.len(), m * self.panels.n, "out: [{m}, {}]", self.panels.n);
        // SAFETY: `out` has the shape.
        unsafe { self.panels.forward(pool, xs, m, out.as_mut_ptr(), Finish::Gate(activation)) };
    }

    /// `gate = xs G^T` and `up = xs U^T`, each `[m, n]`, each rounded once. Allocates.
    ///
    /// # Panics
    /// If a slice does not have its shape.
    pub fn parts(&self, pool: &Pool, xs: &[T], m: usize, gate: &mut [T], up: &mut [T]) {
        let (n, half, columns) = (self.panels.n, PANEL / 2, self.panels.count * PANEL);
        assert!(gate.len() == m * n && up.len() == m * n, "gate and up: [{m}, {n}]");
        // The panels are those of a linear layer whose columns alternate between 16 of gate and 16 of up.
        let bias = self.panels.bias.as_ref().map(|bias| padded(bias, self.panels.count));
        let units = Arc::clone(&self.panels.units);
        let both = PackedLinear { panels: Panels { units, bias, n: columns, ..self.panels } };
        let mut rows = vec![T::default(); m * columns];
        both.forward(pool, xs, m, &mut rows, Epilogue::Store);
        for (row, (gate, up)) in
            rows.chunks_exact(columns).zip(gate.chunks_exact_mut(n).zip(up.chunks_exact_mut(n)))
        {
            for (column, (gate, up)) in gate.iter_mut().zip(up).enumerate() {
                let lane = column / half * PANEL + column % half;
                (*gate, *up) = (row[lane], row[lane + half]);
            }
        }
    }
}

/// The epilogue of a tile.
#[derive(Clone, Copy)]
enum Finish {
    Plain(Epilogue),
    Gate(Activation),
}

impl Finish {
    /// Output columns of a panel.
    fn columns(self) -> usize {
        if matches!(self, Self::Gate(_)) { PANEL / 2 } else { PANEL }
    }
}

impl<T: Element> Panels<T> {
    /// # Safety
    /// `out` is writable, and with an epilogue that adds also initialised, for `m * n` values.
    unsafe fn forward<O: Element>(&self, pool: &Pool, xs: &[T], m: usize, out: *mut O, finish: Finish) {
        assert_eq!(xs.len(), m * self.k, "xs: [{m}, {}]", self.k);
        let row = self.k.div_ceil(T::PER_UNIT) * size_of::<f32>();
        let parts = m.div_ceil((PART_BYTES / row).max(MOST_ROWS));
        for part in 0..parts {
            let (first, end) = (part * m / parts, (part + 1) * m / parts);
            let xs = &xs[first * self.k..end * self.k];
            // SAFETY: the part's rows of `out`.
            unsafe { self.forward_part(pool, xs, end - first, out.add(first * self.n), finish) };
        }
    }

    /// The product of rows that stay in L2.
    ///
    /// # Safety
    /// As above.
    unsafe fn forward_part<O: Element>(&self, pool: &Pool, xs: &[T], m: usize, out: *mut O, finish: Finish) {
        if m == 0 || self.n == 0 {
            return;
        }
        let units = self.k.div_ceil(T::PER_UNIT);
        let blocks = m.div_ceil(pool.isa().tile_rows());
        // Blocks have nearly equal heights: 128 rows become ten blocks of 13 or 12, not nine of 14 and one of 2.
        let block = |i: usize| (i * m / blocks, (i + 1) * m / blocks);
        // Up to `FEW_ROWS` rows are read in place if they consist of whole units.
        let in_place = m <= FEW_ROWS && self.k.is_multiple_of(T::PER_UNIT);
        let widens = !in_place && T::PER_UNIT > 1 && pool.isa().widens(m);
        let steps = if widens { units * T::PER_UNIT } else { units };
        // Scratch memory: the interleaved rows, then one widened panel per thread.
        let panels_at = if in_place { 0 } else { (m * steps).next_multiple_of(PANEL) };
        let widened = if widens { steps * PANEL } else { 0 };
        let mut scratch = pool.scratch(panels_at + pool.threads() * widened);
        let memory = Shards::new(&mut scratch);
        if !in_place {
            pool.run(blocks, |i, _| {
                let (first, end) = block(i);
                // SAFETY: task i alone writes its block.
                let to = unsafe { memory.slice(first * steps, (end - first) * steps) };
                let xs = &xs[first * self.k..end * self.k];
                // SAFETY: the pool's level exists on this machine.
                unsafe { pool.isa().run(Interleave { xs, k: self.k, widens, to }) };
            });
        }
        let a = if in_place { xs.as_ptr().cast::<f32>() } else { memory.at(0) };
        let a = ConstPtr(a);
        // For few rows, long runs of panels are read fastest; for many rows, single panels divide the work most
        // evenly.
        let group = if in_place {
            let long = GROUP_BYTES / (units * PANEL * size_of::<f32>());
            (self.count / (pool.threads() * 16)).min(long).max(1)
        } else {
            1
        };
        let shards = Shards::raw(out, m * self.n);
        pool.run(self.count.div_ceil(group), |task, thread| {
            let op = Group {
                panels: self,
                first: task * group,
                end: self.count.min((task + 1) * group),
                steps,
                widened: memory.at(panels_at + thread * widened),
                m,
                blocks,
                in_place,
                ahead: pool.threads(),
                a: a.get(),
                out: shards.at(0),
                finish,
            };
            // SAFETY: the pool's level exists on this machine; the shapes were checked above; the group's
            // columns of `out` belong to this task alone, and the widened panel to this thread.
            unsafe { pool.isa().run(op) };
        });
    }
}

/// A shared read-only pointer.
#[derive(Clone, Copy)]
struct ConstPtr(*const f32);
// SAFETY: only read through, while the slice that it came from is borrowed.
unsafe impl Send for ConstPtr {}
// SAFETY: as above.
unsafe impl Sync for ConstPtr {}

impl ConstPtr {
    fn get(self) -> *const f32 {
        self.0
    }
}

/// A group of panels times all rows.
struct Group<'a, T, O> {
    panels: &'a Panels<T>,
    first: usize,
    end: usize,
    /// Steps of a tile: one per unit of a row, or one per element if panels are widened.
    steps: usize,
    widened: *mut f32,
    m: usize,
    blocks: usize,
    in_place: bool,
    /// Distance in panels to the one that this thread will probably multiply next.
    ahead: usize,
    a: *const f32,
    out: *mut O,
    finish: Finish,
}

impl<T: Element, O: Element> Op for Group<'_, T, O> {
    type Output = ();
    const HAS_BF16: bool = T::IS_BF16 || O::IS_BF16;

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let mut sums = Sums([0.0; MOST_ROWS * PANEL]);
        let sums = sums.0.as_mut_ptr();
        let mut few = FewSums([[0.0; FEW_ROWS * PANEL]; 2]);
        let units = self.panels.k.div_ceil(T::PER_UNIT);
        let panel_len = units * PANEL;
        for panel in self.first..self.end {
            let mut panel_at = self.panels.units.as_ptr().wrapping_add(panel * panel_len);
            let mut next = panel_at.wrapping_add(self.ahead * panel_len);
            if self.steps > units {
                // SAFETY: the panel has so many units, this thread's memory twice as many values.
                unsafe { widen::<S>(panel_at, units, self.widened) };
                panel_at = self.widened;
            }
            // Each tile of a panel prefetches a share of the next panel, `lines` cache lines per iteration.
            let across = PANEL / (2 * S::LANES);
            let turns = self.blocks * across * (self.steps / UNROLLED);
            let lines = (panel_len / LINE).div_ceil(turns.max(1));
            for i in 0..self.blocks {
                let (row, end) = (i * self.m / self.blocks, (i + 1) * self.m / self.blocks);
                let rows = end - row;
                let mut step = 0;
                few.0[1] = [0.0; FEW_ROWS * PANEL];
                while step < self.steps {
                    let chunk = if self.in_place { SHORT_CHUNK } else { CHUNK };
                    let count = chunk.min(self.steps - step);
                    // SAFETY: panel, rows and steps are inside the operands; `sums` holds a tile.
                    unsafe {
                        let b = panel_at.add(step * PANEL);
                        if self.in_place {
                            let a = self.a.add(row * self.steps + step);
                            let apart = Apart { distance: self.steps, next: b.wrapping_add(AHEAD) };
                            // `each_mut` with `map` would be a call: closures are not compiled for the level.
                            let [part, low] = &mut few.0;
                            let (part, low) = (part.as_mut_ptr(), low.as_mut_ptr());
                            if step == 0 {
                                few_rows::<S, T>(rows, count, a, apart, b, sums);
                            } else {
                                few_rows::<S, T>(rows, count, a, apart, b, part);
                                add_compensated::<S>(rows, part, sums, low);
                            }
                        } else {
                            let a = self.a.add(row * self.steps + step * rows);
                            let left = Interleaved { next, lines };
                            next = next.wrapping_add(across * (count / UNROLLED) * lines * LINE);
                            if S::MULTIPLIES_PAIRS && self.steps == units {
                                tile_of::<S, T, _>(rows, count, a, left, b, PANEL, sums, PANEL, step > 0);
                            } else {
                                tile_of::<S, f32, _>(rows, count, a, left, b, PANEL, sums, PANEL, step > 0);
                            }
                        }
                    }
                    step += count;
                }
                if self.in_place {
                    // SAFETY: both hold the rows.
                    unsafe { add_to::<S>(rows, few.0[1].as_ptr(), sums) };
                }
                // SAFETY: as above; this task owns the panel's columns of `out`.
                unsafe { self.write::<S>(panel, row, rows, sums) };
            }
        }
    }
}

/// The tile for rows read in place; separate from `tile_of` so that only four heights are compiled.
#[inline(always)]
unsafe fn few_rows<S: Simd, T: Element>(
    rows: usize,
    steps: usize,
    a: *const f32,
    apart: Apart,
    b: *const f32,
    sums: *mut f32,
) {
    debug_assert!(rows <= FEW_ROWS);
    // SAFETY: the caller's contract.
    unsafe { tile_of::<S, T, _>(rows.min(FEW_ROWS), steps, a, apart, b, PANEL, sums, PANEL, false) };
}

/// `sums += part`, and adds the rounding error of each addition to `low` (Knuth's TwoSum; Ogita, Rump and Oishi 2005).
///
/// # Safety
/// [`Simd`]'s contract; all hold `rows` rows of a panel.
#[inline(always)]
unsafe fn add_compensated<S: Simd>(rows: usize, part: *const f32, sums: *mut f32, low: *mut f32) {
    let mut i = 0;
    while i < rows * PANEL {
        // SAFETY: the caller's contract.
        unsafe {
            let (sum, part) = (S::load(sums.add(i)), S::load(part.add(i)));
            let total = S::add(sum, part);
            let added = S::sub(total, sum);
            let error = S::add(S::sub(sum, S::sub(total, added)), S::sub(part, added));
            S::store(sums.add(i), total);
            S::store(low.add(i), S::add(S::load(low.add(i)), error));
        }
        i += S::LANES;
    }
}

/// `sums += part`.
///
/// # Safety
/// As [`add_compensated`].
#[inline(always)]
unsafe fn add_to<S: Simd>(rows: usize, part: *const f32, sums: *mut f32) {
    let mut i = 0;
    while i < rows * PANEL {
        // SAFETY: the caller's contract.
        unsafe { S::store(sums.add(i), S::add(S::load(sums.add(i)), S::load(part.add(i)))) };
        i += S::LANES;
    }
}

/// Widens a panel `[unit][column]` of bf16 pairs to f32 `[element][column]`.
///
/// # Safety
/// [`Simd`]'s contract; `units` units per column are readable at `from`, and twice as many values writable at `to`.
#[inline(always)]
unsafe fn widen<S: Simd>(from: *const f32, units: usize, to: *mut f32) {
    for unit in 0..units {
        let mut column = 0;
        while column < PANEL {
            // SAFETY: inside both by the caller's contract.
            unsafe {
                let pairs = S::load(from.add(unit * PANEL + column));
                let to = to.add(2 * unit * PANEL + column);
                S::store(to, S::low_bf16(pairs));
                S::store(to.add(PANEL), S::high_bf16(pairs));
            }
            column += S::LANES;
        }
    }
}

#[repr(align(64))]
struct Sums([f32; MOST_ROWS * PANEL]);

/// For few rows, the sums of a chunk and the rounding errors of the total.
#[repr(align(64))]
struct FewSums([[f32; FEW_ROWS * PANEL]; 2]);

impl<T: Element, O: Element> Group<'_, T, O> {
    /// Applies the epilogue to a tile and writes it.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, panel: usize, row: usize, rows: usize, sums: *const f32) {
        let n = self.panels.n;
        let width = self.finish.columns();
        let first = panel * width;
        let count = width.min(n - first);
        for r in 0..rows {
            let mut c = 0;
            while c < count {
                // SAFETY: `c` is inside the tile, and `first + c` with the lanes left inside the row.
                unsafe {
                    let out = self.out.add((row + r) * n + first + c);
                    let left = count - c;
                    let y = self.sum::<S>(panel, sums, r, c);
                    let y = match self.finish {
                        Finish::Plain(Epilogue::Store) => y,
                        Finish::Plain(Epilogue::Scale(f)) => S::mul(y, S::splat(f)),
                        Finish::Plain(Epilogue::Add(f)) => S::fma(y, S::splat(f), O::load::<S>(out, left)),
                        Finish::Plain(Epilogue::Activate(activation)) => activation.apply::<S>(y),
                        Finish::Plain(Epilogue::SoftCap(cap)) => {
                            let t = math::tanh::<S>(S::div(y, S::splat(cap)));
                            S::mul(t, S::splat(cap))
                        }
                        Finish::Gate(activation) => {
                            let up = self.sum::<S>(panel, sums, r, c + PANEL / 2);
                            S::mul(activation.apply::<S>(y), up)
                        }
                    };
                    O::store::<S>(out, y, left);
                }
                c += S::LANES;
            }
        }
    }

    /// One vector of a tile's sums, bias added.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, panel: usize, sums: *const f32, r: usize, c: usize) -> S::F {
        // SAFETY: the caller's `c` is inside the tile; biases are padded to whole panels.
        unsafe {
            let y = S::load(sums.add(r * PANEL + c));
            match &self.panels.bias {
                Some(bias) => S::add(y, S::load(bias.as_ptr().add(panel * PANEL + c))),
                None => y,
            }
        }
    }
}
