//! Kernels without packed weights: embedding rows, sums, products, activations, soft-capping, softmax.

#![expect(unsafe_code, reason = "tasks write disjoint rows with vector code")]

use super::element::Element;
use super::math::{self, Activation};
use super::packing::PackedLinear;
use super::pool::{Pool, Shards};
use super::simd::{Op, Simd};

/// Elements of one task.
const CHUNK: usize = 16 << 10;

/// A token id outside the embedding table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("token id {id} is outside the vocabulary of {vocab}")]
pub struct TokenOutOfRange {
    /// The id.
    pub id: u32,
    /// Rows of the table.
    pub vocab: usize,
}

/// Source of embedding rows.
#[derive(Clone, Copy)]
pub enum Embedding<'a, T: Element> {
    /// `[vocab, hidden]`, row-major.
    Table(&'a [T]),
    /// The packed head of the model, which shares its weight with the embedding.
    Tied(&'a PackedLinear<T>),
}

/// `out[i] = table[ids[i]] * scale`, the product rounded to `T`. The caller has already rounded `scale` (gemma's
/// `sqrt(hidden)`) as the model does. `ids: [rows]`, `out: [rows, hidden]`.
///
/// # Errors
/// [`TokenOutOfRange`], before anything is written.
///
/// # Panics
/// If `out` does not have its shape.
pub fn embed<T: Element>(
    pool: &Pool,
    embedding: Embedding<T>,
    ids: &[u32],
    scale: Option<f32>,
    out: &mut [T],
) -> Result<(), TokenOutOfRange> {
    if ids.is_empty() {
        return Ok(());
    }
    assert!(out.len().is_multiple_of(ids.len()), "out: [{}, hidden]", ids.len());
    let hidden = out.len() / ids.len();
    let vocab = match embedding {
        Embedding::Table(table) => table.len() / hidden,
        Embedding::Tied(head) => head.n(),
    };
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab) {
        return Err(TokenOutOfRange { id, vocab });
    }
    let out = Shards::new(out);
    let rows_per_task = (CHUNK / 4 / hidden).max(1);
    pool.run(ids.len().div_ceil(rows_per_task), |task, _| {
        for (i, &id) in ids.iter().enumerate().skip(task * rows_per_task).take(rows_per_task) {
            // SAFETY: row i belongs to this task.
            let to = unsafe { out.slice(i * hidden, hidden) };
            let id = id as usize;
            match embedding {
                Embedding::Table(table) => to.copy_from_slice(&table[id * hidden..][..hidden]),
                Embedding::Tied(head) => head.row(id, to),
            }
            if let Some(scale) = scale {
                for x in to {
                    *x = T::from_f32(x.to_f32() * scale);
                }
            }
        }
    });
    Ok(())
}

/// `xs += factor * other`, rounded once. Equal lengths.
///
/// # Panics
/// If the lengths differ.
pub fn add<T: Element>(pool: &Pool, xs: &mut [T], other: &[T], factor: f32) {
    assert_eq!(xs.len(), other.len(), "summands of equal length");
    each(pool, xs, Some(other), Map::Add(factor));
}

/// `xs *= other`. Equal lengths.
///
/// # Panics
/// If the lengths differ.
pub fn multiply<T: Element>(pool: &Pool, xs: &mut [T], other: &[T]) {
    assert_eq!(xs.len(), other.len(), "factors of equal length");
    each(pool, xs, Some(other), Map::Multiply);
}

/// `xs *= factor` in place.
pub fn scale<T: Element>(pool: &Pool, xs: &mut [T], factor: f32) {
    each(pool, xs, None, Map::Scale(factor));
}

/// `xs = cap * tanh(xs / cap)` in place.
pub fn softcap<T: Element>(pool: &Pool, xs: &mut [T], cap: f32) {
    each(pool, xs, None, Map::SoftCap(cap));
}

/// `xs = activation(xs)` in place.
pub fn activate<T: Element>(pool: &Pool, xs: &mut [T], activation: Activation) {
    each(pool, xs, None, Map::Activate(activation));
}

/// `xs = softmax(xs)` over rows of `row_len` in place; f32 sums. A row that holds only minus infinity becomes zeros.
///
/// # Panics
/// If the length of `xs` is not a multiple of `row_len`.
pub fn softmax<T: Element>(pool: &Pool, xs: &mut [T], row_len: usize) {
    assert!(row_len > 0 && xs.len().is_multiple_of(row_len), "xs: [rows, {row_len}]");
    let rows = xs.len() / row_len;
    let rows_per_task = (CHUNK / row_len).max(1);
    let xs = Shards::new(xs);
    pool.run(rows.div_ceil(rows_per_task), |task, _| {
        for row in task * rows_per_task..rows.min((task + 1) * rows_per_task) {
            // SAFETY: the row belongs to this task; the level exists.
            unsafe { pool.isa().run(SoftmaxRow(xs.slice(row * row_len, row_len))) };
        }
    });
}

#[derive(Clone, Copy)]
enum Map {
    Add(f32),
    Multiply,
    Scale(f32),
    SoftCap(f32),
    Activate(Activation),
}

fn each<T: Element>(pool: &Pool, xs: &mut [T], other: Option<&[T]>, map: Map) {
    let len = xs.len();
    let xs = Shards::new(xs);
    pool.run(len.div_ceil(CHUNK), |task, _| {
        let (at, n) = (task * CHUNK, CHUNK.min(len - task * CHUNK));
        // SAFETY: the chunk belongs to this task; the level exists.
        unsafe { pool.isa().run(MapOp { xs: xs.slice(at, n), other: other.map(|o| &o[at..at + n]), map }) };
    });
}

struct MapOp<'a, T> {
    xs: &'a mut [T],
    other: Option<&'a [T]>,
    map: Map,
}

impl<T: Element> Op for MapOp<'_, T> {
    type Output = ();
    const HAS_BF16: bool = T::IS_BF16;

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let n = self.xs.len();
        let mut i = 0;
        while i < n {
            // SAFETY: loads and stores are cut to what is left.
            unsafe {
                let p = self.xs.as_mut_ptr().add(i);
                let x = T::load::<S>(p, n - i);
                let y = match (self.map, self.other) {
                    (Map::Add(f), Some(other)) => {
                        S::fma(T::load::<S>(other.as_ptr().add(i), n - i), S::splat(f), x)
                    }
                    (Map::Multiply, Some(other)) => S::mul(x, T::load::<S>(other.as_ptr().add(i), n - i)),
                    (Map::Add(_) | Map::Multiply, None) => x,
                    (Map::Scale(f), _) => S::mul(x, S::splat(f)),
                    (Map::SoftCap(cap), _) => {
                        S::mul(math::tanh::<S>(S::div(x, S::splat(cap))), S::splat(cap))
                    }
                    (Map::Activate(activation), _) => activation.apply::<S>(x),
                };
                T::store::<S>(p, y, n - i);
            }
            i += S::LANES;
        }
    }
}

struct SoftmaxRow<'a, T>(&'a mut [T]);

impl<T: Element> Op for SoftmaxRow<'_, T> {
    type Output = ();
    const HAS_BF16: bool = T::IS_BF16;

    #[inline(always)]
    unsafe fn call<S: Simd>(self) {
        let row = self.0;
        let mut top = f32::NEG_INFINITY;
        for x in row.iter() {
            top = top.max(x.to_f32());
        }
        let base = if top == f32::NEG_INFINITY { 0.0 } else { top };
        let n = row.len();
        // SAFETY: loads and stores are cut to what is left. The exponentials are taken twice so that a bf16
        // row is rounded only once.
        unsafe {
            let p = row.as_mut_ptr();
            let mut sum = 0.0;
            let mut i = 0;
            while i < n {
                let e = math::exp::<S>(S::sub(T::load::<S>(p.add(i), n - i), S::splat(base)));
                let mut lanes = [0.0_f32; 16];
                S::store(lanes.as_mut_ptr(), e);
                sum += S::sum(if n - i < S::LANES { S::load_n(lanes.as_ptr(), n - i) } else { e });
                i += S::LANES;
            }
            let inverse = S::splat(if sum > 0.0 { 1.0 / sum } else { 0.0 });
            i = 0;
            while i < n {
                let e = math::exp::<S>(S::sub(T::load::<S>(p.add(i), n - i), S::splat(base)));
                T::store::<S>(p.add(i), S::mul(e, inverse), n - i);
                i += S::LANES;
            }
        }
    }
}
