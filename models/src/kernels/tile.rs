//! The GEMM micro-kernel of both the matrix product and attention: a few rows times 32 columns, summed over 32-bit
//! units (one f32, or a pair of bf16). The right operand is a *panel*: for each step, 32 consecutive units, one per
//! column.

#![expect(unsafe_code, reason = "the innermost loop runs on raw pointers")]
#![expect(clippy::needless_range_loop, reason = "counted loops over registers, which must unroll whole")]

use super::element::Element;
use super::simd::Simd;

/// Columns of a panel: two AVX-512 vectors.
pub(crate) const PANEL: usize = 32;

/// Steps per iteration of the innermost loop. Unrolling reduces the loop's overhead, which matters on a shared core.
pub(crate) const UNROLLED: usize = 4;
/// Floats of a cache line.
pub(crate) const LINE: usize = 16;

/// Index of unit `step` of row `row` of the left operand.
pub(crate) trait Rows: Copy {
    fn at<const R: usize>(self, row: usize, step: usize) -> usize;

    /// Prefetches a part of the data used later; called once per iteration.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&mut self) {}
}

/// Units interleaved over the tile's rows, `[step][row]`. Each iteration also prefetches `lines` cache lines from
/// `next`, the panel that this thread needs next, into L2.
#[derive(Clone, Copy)]
pub(crate) struct Interleaved {
    pub(crate) next: *const f32,
    pub(crate) lines: usize,
}

impl Rows for Interleaved {
    #[inline(always)]
    fn at<const R: usize>(self, row: usize, step: usize) -> usize {
        step * R + row
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&mut self) {
        for _ in 0..self.lines {
            // SAFETY: any address may be asked for.
            unsafe { S::prefetch(self.next) };
            self.next = self.next.wrapping_add(LINE);
        }
    }
}

/// Rows at a distance known at run time; suited to few rows, whose addresses stay in registers. Each iteration also prefetches
/// as much of the panels from `next` on as it multiplies, at levels that gain by it.
#[derive(Clone, Copy)]
pub(crate) struct Apart {
    pub(crate) distance: usize,
    pub(crate) next: *const f32,
}

impl Rows for Apart {
    #[inline(always)]
    fn at<const R: usize>(self, row: usize, step: usize) -> usize {
        row * self.distance + step
    }

    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&mut self) {
        let lines = if S::PREFETCHES_AHEAD { UNROLLED * PANEL / LINE } else { 0 };
        for _ in 0..lines {
            // SAFETY: any address may be asked for.
            unsafe { S::prefetch(self.next) };
            self.next = self.next.wrapping_add(LINE);
        }
    }
}

/// Rows at a distance known at compile time, which the instruction encodes.
#[derive(Clone, Copy)]
pub(crate) struct Every<const N: usize>;

impl<const N: usize> Rows for Every<N> {
    #[inline(always)]
    fn at<const R: usize>(self, row: usize, step: usize) -> usize {
        row * N + step
    }
}

/// `out[r][c] (+)= sum over steps of a[r] . b[c]` for `R` rows and 32 columns, `V` vectors of columns at a time. Each
/// element has `U` interleaved sums, so that a tile of few rows still hides the latency of the multiply-add. `U`
/// divides [`UNROLLED`]; otherwise the sums do not stay in registers.
///
/// # Safety
/// `Simd`'s contract; `a` is readable at `rows.at(r, s)`, `b` at `s * b_step..+32`, `out` writable (and with
/// `add` readable) at `r * out_row..+32`, for all rows and steps.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product with their strides")]
unsafe fn tile<S: Simd, T: Element, A: Rows, const R: usize, const V: usize, const U: usize>(
    steps: usize,
    a: *const f32,
    mut rows: A,
    b: *const f32,
    b_step: usize,
    out: *mut f32,
    out_row: usize,
    add: bool,
) {
    const { assert!(UNROLLED.is_multiple_of(U)) };
    // SAFETY: the caller's contract.
    unsafe {
        let mut column = 0;
        while column < PANEL {
            let (mut a, mut b) = (a, b.add(column));
            let mut sums = [[[S::splat(0.0); V]; R]; U];
            for _ in 0..steps / UNROLLED {
                rows.prefetch::<S>();
                for u in 0..UNROLLED {
                    multiply::<S, T, A, R, V>(a, rows, b.add(u * b_step), u, &mut sums[u % U]);
                }
                // Behind the last step the pointers may be beyond their operands, where nothing is read.
                a = a.wrapping_add(rows.at::<R>(0, UNROLLED));
                b = b.wrapping_add(UNROLLED * b_step);
            }
            for step in 0..steps % UNROLLED {
                multiply::<S, T, A, R, V>(a, rows, b.add(step * b_step), step, &mut sums[0]);
            }
            for r in 0..R {
                for v in 0..V {
                    let mut sum = sums[0][r][v];
                    for other in &sums[1..] {
                        sum = S::add(sum, other[r][v]);
                    }
                    let p = out.add(r * out_row + column + v * S::LANES);
                    S::store(p, if add { S::add(S::load(p), sum) } else { sum });
                }
            }
            column += V * S::LANES;
        }
    }
}

/// Adds the products of one step.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn multiply<S: Simd, T: Element, A: Rows, const R: usize, const V: usize>(
    a: *const f32,
    rows: A,
    b: *const f32,
    step: usize,
    sums: &mut [[S::F; V]; R],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut columns = [S::splat(0.0); V];
        for v in 0..V {
            columns[v] = S::load(b.add(v * S::LANES));
        }
        for r in 0..R {
            // Pairs of bf16 values that are read in place are aligned like one of them.
            let x = S::splat(a.add(rows.at::<R>(r, step)).read_unaligned());
            for v in 0..V {
                sums[r][v] = T::dot::<S>(sums[r][v], x, columns[v]);
            }
        }
    }
}

/// [`tile`] for a number of rows known at run time, at most `S::TILE_ROWS`.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the operands of a matrix product with their strides")]
pub(crate) unsafe fn tile_of<S: Simd, T: Element, A: Rows>(
    count: usize,
    steps: usize,
    a: *const f32,
    rows: A,
    b: *const f32,
    b_step: usize,
    out: *mut f32,
    out_row: usize,
    add: bool,
) {
    debug_assert!(count <= S::TILE_ROWS);
    macro_rules! by_count {
        ($($n:literal $wide:literal $columns:literal $narrow:literal),*) => {
            match count {
                $($n if $n <= S::TILE_ROWS => {
                    // SAFETY: the caller's contract.
                    unsafe {
                        // Only the level with 32 registers has room for more sums. The others read a panel's rows
                        // whole if possible, in one stream from memory.
                        if S::LANES == 16 {
                            tile::<S, T, A, $n, 2, $wide>(steps, a, rows, b, b_step, out, out_row, add);
                        } else {
                            tile::<S, T, A, $n, $columns, $narrow>(steps, a, rows, b, b_step, out, out_row, add);
                        }
                    }
                })*
                _ => unreachable!("a tile has 1..=TILE_ROWS rows"),
            }
        };
    }
    by_count!(
        1 4 4 2, 2 4 4 1, 3 2 4 1, 4 2 2 1, 5 2 2 1, 6 2 2 1, 7 1 2 1, 8 1 2 1, 9 1 2 1, 10 1 2 1, 11 1 2 1, 12 1 2 1,
        13 1 2 1, 14 1 2 1
    );
}
