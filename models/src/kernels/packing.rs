//! Packed weights. Matrices are packed into panels block by block, so that no second copy of a whole matrix is in
//! memory.
//!
//! A weight `[n, k]`, as checkpoints store it, becomes panels of 32 rows, `[n/32][k units][32]` (a unit is one f32 or
//! two bf16, see [`Element`]).

#![expect(unsafe_code, reason = "tasks write disjoint panels")]

use std::marker::PhantomData;
use std::sync::Arc;

use super::arena::AlignedBuf;
use super::element::Element;
use super::pool::{Pool, Shards};
use super::tile::PANEL;

/// A weight `[n, k]` (and bias `[n]`), packed.
pub struct PackedLinear<T: Element> {
    pub(super) panels: Panels<T>,
}

/// The gate and up projections `[n, k]` of a gated MLP, packed so that `activation(gate) * up` is computed in
/// registers and written once.
pub struct PackedGateUp<T: Element> {
    pub(super) panels: Panels<T>,
}

pub(super) struct Panels<T> {
    pub(super) units: Arc<AlignedBuf<f32>>,
    pub(super) bias: Option<AlignedBuf<f32>>,
    /// Columns of the output.
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) count: usize,
    pub(super) kind: PhantomData<T>,
}

impl<T: Element> PackedLinear<T> {
    /// Packs `parts`, each `[n_i, k]` row-major, concatenated along n (for example q, k and v); `bias` is `[sum of
    /// n_i]`.
    ///
    /// # Panics
    /// If a part is not a multiple of `k` long, or the bias does not fit.
    pub fn new(pool: &Pool, parts: &[&[T]], k: usize, bias: Option<&[f32]>) -> Self {
        let mut packing = Packing::linear(parts.iter().map(|part| part.len() / k).sum(), k);
        let mut first = 0;
        for part in parts {
            packing.fill(pool, first, part);
            first += part.len() / k;
        }
        packing.into_linear(bias)
    }

    /// A layer that shares this weight without a copy and adds a bias `[n]`.
    ///
    /// # Panics
    /// If the bias does not fit.
    #[must_use]
    pub fn with_bias(&self, bias: &[f32]) -> Self {
        assert_eq!(bias.len(), self.panels.n, "a bias of {} values", self.panels.n);
        let units = Arc::clone(&self.panels.units);
        Self { panels: Panels { units, bias: Some(padded(bias, self.panels.count)), ..self.panels } }
    }

    /// Output columns.
    pub fn n(&self) -> usize {
        self.panels.n
    }

    /// Input columns.
    pub fn k(&self) -> usize {
        self.panels.k
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.panels.units.len() * size_of::<f32>()
    }
}

impl<T: Element> PackedGateUp<T> {
    /// Packs `gate` and `up`, each `[n, k]` row-major, with biases `[n]` (both or none).
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn new(pool: &Pool, gate: &[T], up: &[T], k: usize, bias: Option<(&[f32], &[f32])>) -> Self {
        assert_eq!(gate.len(), up.len(), "gate and up of one shape");
        let n = gate.len() / k;
        let mut packing = Packing::gate_up(n, k);
        packing.fill(pool, 0, gate);
        packing.fill(pool, n, up);
        packing.into_gate_up(bias)
    }

    /// Output columns (the intermediate size).
    pub fn n(&self) -> usize {
        self.panels.n
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.panels.units.len() * size_of::<f32>()
    }
}

/// Panels that are being packed; rows that are never packed stay zero.
pub struct Packing<T: Element> {
    units: AlignedBuf<f32>,
    /// Columns of the output.
    n: usize,
    k: usize,
    /// Rows of one matrix in a panel: 32 for a linear layer; 16 for gate and up, where 16 rows of gate precede 16 of
    /// up.
    share: usize,
    kind: PhantomData<T>,
}

impl<T: Element> Packing<T> {
    /// Allocates panels for a weight `[n, k]`.
    pub fn linear(n: usize, k: usize) -> Self {
        Self::new(n, k, PANEL)
    }

    /// Allocates panels for gate and up, each `[n, k]`: rows `0..n` are the gate's, `n..2 n` are up's.
    pub fn gate_up(n: usize, k: usize) -> Self {
        Self::new(n, k, PANEL / 2)
    }

    fn new(n: usize, k: usize, share: usize) -> Self {
        assert!(k > 0, "weights have columns");
        let units = AlignedBuf::zeroed(n.div_ceil(share) * k.div_ceil(T::PER_UNIT) * PANEL);
        Self { units, n, k, share, kind: PhantomData }
    }

    /// Packs `rows: [_, k]` as the rows from `first` on; a call must not contain rows of both gate and up.
    ///
    /// # Panics
    /// If the rows exceed the weight, or their length is not a multiple of `k`.
    pub fn fill(&mut self, pool: &Pool, first: usize, rows: &[T]) {
        let (n, k, share) = (self.n, self.k, self.share);
        let count = rows.len() / k;
        assert!(rows.len().is_multiple_of(k), "weights of {k} columns");
        let (source, first) = if share < PANEL && first >= n { (share, first - n) } else { (0, first) };
        assert!(first + count <= n, "rows {first}..{} of {n}", first + count);
        if count == 0 {
            return;
        }
        let steps = k.div_ceil(T::PER_UNIT);
        let start = first / share;
        let shards = Shards::new(&mut self.units);
        pool.run((first + count).div_ceil(share) - start, |task, _| {
            let panel = start + task;
            // SAFETY: this task alone writes the panel.
            let to = unsafe { shards.slice(panel * steps * PANEL, steps * PANEL) };
            let mine = first.max(panel * share)..(first + count).min((panel + 1) * share);
            // 16 units of every row at a time, so that the written part stays in L1.
            for step in (0..steps).step_by(16) {
                for row in mine.clone() {
                    let from = &rows[(row - first) * k..][..k];
                    let lane = source + row % share;
                    for step in step..steps.min(step + 16) {
                        to[step * PANEL + lane] = T::unit(from, step);
                    }
                }
            }
        });
    }

    /// The linear layer, with a bias `[n]`.
    ///
    /// # Panics
    /// If the bias does not fit.
    pub fn into_linear(self, bias: Option<&[f32]>) -> PackedLinear<T> {
        assert!(self.share == PANEL, "one source to a panel");
        assert!(bias.is_none_or(|bias| bias.len() == self.n), "a bias of {} values", self.n);
        PackedLinear { panels: self.into_panels(bias) }
    }

    /// Gate and up, with biases `[n]` (both or none).
    ///
    /// # Panics
    /// If the biases do not fit.
    pub fn into_gate_up(self, bias: Option<(&[f32], &[f32])>) -> PackedGateUp<T> {
        let (n, half) = (self.n, PANEL / 2);
        assert!(self.share == half, "two sources to a panel");
        assert!(bias.is_none_or(|(g, u)| g.len() == n && u.len() == n), "biases of {n} values");
        let joined: Option<Vec<f32>> = bias.map(|(gate, up)| {
            let value = |lane: usize| {
                let from = if lane % PANEL < half { gate } else { up };
                from.get(lane / PANEL * half + lane % half).copied().unwrap_or(0.0)
            };
            (0..n.div_ceil(half) * PANEL).map(value).collect()
        });
        PackedGateUp { panels: self.into_panels(joined.as_deref()) }
    }

    fn into_panels(self, bias: Option<&[f32]>) -> Panels<T> {
        let count = self.n.div_ceil(self.share);
        Panels {
            units: Arc::new(self.units),
            bias: bias.map(|bias| padded(bias, count)),
            n: self.n,
            k: self.k,
            count,
            kind: PhantomData,
        }
    }
}

/// A bias padded to whole panels.
pub(super) fn padded(bias: &[f32], panels: usize) -> AlignedBuf<f32> {
    let mut padded = AlignedBuf::zeroed(panels * PANEL);
    padded[..bias.len()].copy_from_slice(bias);
    padded
}
