//! RMS and layer norm, optionally combined with the residual addition. Statistics and arithmetic are f32. The
//! variance is computed from differences to the mean in a second loop, so that a large mean does not cancel it.

#![expect(unsafe_code, reason = "tasks work on disjoint rows with vector code")]

use super::element::Element;
use super::pool::{Pool, Shards};
use super::simd::{Op, Simd};

/// Minimum elements per task: a smaller task costs less than waking a thread.
const ELEMENTS_PER_TASK: usize = 8 << 10;

/// The weights of a norm over the last dimension.
#[derive(Clone, Debug)]
pub struct Norm {
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    eps: f32,
    centred: bool,
}

impl Norm {
    /// `x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019). For gemma, whose weight is stored
    /// around zero, pass `1 + w` computed in f32, as its own code does.
    pub fn rms(weight: Vec<f32>, eps: f32) -> Self {
        Self { weight, bias: None, eps, centred: false }
    }

    /// `(x - mean) / sqrt(variance + eps) * weight + bias` (Ba et al. 2016).
    ///
    /// # Panics
    /// If the bias is not as long as the weight.
    pub fn layer(weight: Vec<f32>, bias: Option<Vec<f32>>, eps: f32) -> Self {
        assert!(bias.as_ref().is_none_or(|b| b.len() == weight.len()), "bias: [{}]", weight.len());
        Self { weight, bias, eps, centred: true }
    }

    /// Number of elements that are normalised together.
    pub fn size(&self) -> usize {
        self.weight.len()
    }

    /// `out = norm(xs)`. `xs`, `out`: `[rows, size]`.
    ///
    /// # Panics
    /// If a slice does not have its shape.
    pub fn forward<T: Element>(&self, pool: &Pool, xs: &[T], out: &mut [T]) {
        let rows = self.rows(xs.len());
        assert_eq!(xs.len(), out.len(), "out: [{rows}, {}]", self.size());
        let out = Shards::new(out);
        self.run(pool, rows, |row| RowOp {
            norm: self,
            x: xs[row * self.size()..].as_ptr(),
            residual: std::ptr::null_mut(),
            out: out.at(row * self.size()),
            form: Form::Norm,
        });
    }

    /// `residual += xs; out = norm(residual)`, all `[rows, size]`: the sum is rounded to `T` before it is normalised,
    /// as when the two operations run separately.
    ///
    /// # Panics
    /// If a slice does not have its shape.
    pub fn add_forward<T: Element>(&self, pool: &Pool, xs: &[T], residual: &mut [T], out: &mut [T]) {
        let rows = self.rows(xs.len());
        assert!(xs.len() == residual.len() && xs.len() == out.len(), "all [{rows}, {}]", self.size());
        let (residual, out) = (Shards::new(residual), Shards::new(out));
        self.run(pool, rows, |row| RowOp {
            norm: self,
            x: xs[row * self.size()..].as_ptr(),
            residual: residual.at(row * self.size()),
            out: out.at(row * self.size()),
            form: Form::AddThenNorm,
        });
    }

    /// `residual += norm(xs)`, both `[rows, size]`: a norm after the layer (gemma 2 and 3, olmo 2).
    ///
    /// # Panics
    /// If a slice does not have its shape.
    pub fn forward_add<T: Element>(&self, pool: &Pool, xs: &[T], residual: &mut [T]) {
        let rows = self.rows(xs.len());
        assert_eq!(xs.len(), residual.len(), "residual: [{rows}, {}]", self.size());
        let residual = Shards::new(residual);
        self.run(pool, rows, |row| RowOp {
            norm: self,
            x: xs[row * self.size()..].as_ptr(),
            residual: residual.at(row * self.size()),
            out: residual.at(row * self.size()),
            form: Form::NormThenAdd,
        });
    }

    /// Normalises `heads` neighbouring groups of `size` elements in place in every row of `xs: [rows, row_len]`, from
    /// column `first` on: the q and k norms inside a joined projection (for a norm across all heads, `heads` is 1 and
    /// `size` the whole width).
    ///
    /// # Panics
    /// If the groups do not lie inside a row.
    pub fn heads_in_place<T: Element>(
        &self,
        pool: &Pool,
        xs: &mut [T],
        row_len: usize,
        first: usize,
        heads: usize,
    ) {
        assert!(row_len > 0 && xs.len().is_multiple_of(row_len), "xs: [rows, {row_len}]");
        assert!(first + heads * self.size() <= row_len, "{heads} heads from column {first} of {row_len}");
        let rows = xs.len() / row_len;
        let xs = Shards::new(xs);
        self.run(pool, rows * heads, |i| {
            let at = xs.at(i / heads * row_len + first + i % heads * self.size());
            RowOp { norm: self, x: at, residual: std::ptr::null_mut(), out: at, form: Form::Norm }
        });
    }

    fn rows(&self, len: usize) -> usize {
        assert!(len.is_multiple_of(self.size()), "xs: [rows, {}]", self.size());
        len / self.size()
    }

    fn run<'a, T: Element>(&self, pool: &Pool, rows: usize, row_op: impl Fn(usize) -> RowOp<'a, T> + Sync) {
        let rows_per_task = (ELEMENTS_PER_TASK / self.size()).max(1);
        pool.run(rows.div_ceil(rows_per_task), |task, _| {
            for row in task * rows_per_task..rows.min((task + 1) * rows_per_task) {
                // SAFETY: the level exists; every row is a place of its own inside slices checked above.
                unsafe { pool.isa().run(row_op(row)) };
            }
        });
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Form {
    Norm,
    AddThenNorm,
    NormThenAdd,
}

/// One row. `out` may be `x` or `residual`: each element is read before it is written.
struct RowOp<'a, T> {
    norm: &'a Norm,
    x: *const T,
    residual: *mut T,
    out: *mut T,
    form: Form,
}

impl<T: Element> Op for RowOp<'_, T> {
    type Output = ();
    const HAS_BF16: bool = T::IS_BF16;

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let n = self.norm.size();
        // SAFETY: all rows have n elements; loads and stores are cut to what is left.
        unsafe {
            let mut x = self.x;
            if self.form == Form::AddThenNorm {
                let mut i = 0;
                while i < n {
                    let sum =
                        S::add(T::load::<S>(x.add(i), n - i), T::load::<S>(self.residual.add(i), n - i));
                    T::store::<S>(self.residual.add(i), sum, n - i);
                    i += S::LANES;
                }
                x = self.residual;
            }
            let mean = if self.norm.centred { total::<S, T>(x, n, None) / n as f32 } else { 0.0 };
            let variance = total::<S, T>(x, n, Some(mean)) / n as f32;
            let scale = S::splat(1.0 / (variance + self.norm.eps).sqrt());
            let mean = S::splat(mean);
            let mut i = 0;
            while i < n {
                let left = n - i;
                let y = S::mul(S::sub(T::load::<S>(x.add(i), left), mean), scale);
                let weight = <f32 as Element>::load::<S>(self.norm.weight.as_ptr().add(i), left);
                let mut y = S::mul(y, weight);
                if let Some(bias) = &self.norm.bias {
                    y = S::add(y, <f32 as Element>::load::<S>(bias.as_ptr().add(i), left));
                }
                if self.form == Form::NormThenAdd {
                    y = S::add(y, T::load::<S>(self.residual.add(i), left));
                }
                T::store::<S>(self.out.add(i), y, left);
                i += S::LANES;
            }
        }
    }
}

/// Sum of `x`, or with a mean the sum of `(x - mean)^2`, in two interleaved vectors.
#[inline(always)]
unsafe fn total<S: Simd, T: Element>(x: *const T, n: usize, mean: Option<f32>) -> f32 {
    // SAFETY: n elements are readable.
    unsafe {
        let centre = S::splat(mean.unwrap_or(0.0));
        let mut sums = [S::splat(0.0); 2];
        let mut i = 0;
        while i < n {
            let which = i / S::LANES % 2;
            let v = T::load::<S>(x.add(i), n - i);
            sums[which] = if mean.is_none() {
                S::add(sums[which], v)
            } else {
                let d = S::sub(v, centre);
                // Lanes past the end are zero; their difference to the mean must not be summed.
                let d = if n - i < S::LANES { first_lanes::<S>(d, n - i) } else { d };
                S::fma(d, d, sums[which])
            };
            i += S::LANES;
        }
        S::sum(S::add(sums[0], sums[1]))
    }
}

/// Zeroes the lanes from `n` on.
#[inline(always)]
unsafe fn first_lanes<S: Simd>(v: S::F, n: usize) -> S::F {
    let mut lanes = [0.0_f32; 16];
    // SAFETY: no level has more than 16 lanes.
    unsafe {
        S::store(lanes.as_mut_ptr(), v);
        S::load_n(lanes.as_ptr(), n)
    }
}
