//! Reads the files of one vocabulary size once and measures all pairs: one task per row, in blocks within a row.

use std::sync::Mutex;

use rayon::prelude::*;

use super::Dtype;
use super::aligned::Aligned;
use super::entry::row_in_file;
use super::fold::Fold;
use super::kernels::{self, Differences, LANES, PairLanes, RowScan, Shifted, WIDE};
use super::logits::{LogitsError, LogitsRow};
use super::metrics::PositionIndex;
use super::plan::{EntryRow, Measured, PairRow, Plan, PlannedPair, RowResult};

/// Largest total size in bytes of the logits of the rows in flight.
const IN_FLIGHT_BYTES: usize = 256 << 20;
/// Largest number of rows between two folds of the results.
const ROWS_AT_ONCE: usize = 64;

/// Reads all files once and measures all pairs, the diagonal included.
pub(super) fn run(plan: &Plan<'_>) -> Result<Vec<Measured>, LogitsError> {
    let arch = pulp::Arch::new();
    let spare: Mutex<Vec<Scratch>> = Mutex::new(Vec::new());
    let rows_at_once = (IN_FLIGHT_BYTES / (plan.files.len() * plan.vocab_size * 8)).clamp(1, ROWS_AT_ONCE);
    let mut fold = Fold::new(plan);
    for (number, positions) in plan.frame.positions.chunks(rows_at_once).enumerate() {
        let results: Vec<RowResult> = positions
            .par_iter()
            .map(|&at| {
                let pool = || spare.lock().expect("no task panics while it holds the lock");
                let mut scratch = pool().pop().unwrap_or_default();
                let result = measure(plan, arch, at, &mut scratch);
                pool().push(scratch);
                result
            })
            .collect::<Result<_, _>>()?;
        for (offset, result) in results.iter().enumerate() {
            fold.add(number * rows_at_once + offset, result);
        }
    }
    fold.finish()
}

/// Measures one row of all files, in parts that stay in a core's cache from the read to the last pair.
fn measure(
    plan: &Plan<'_>,
    arch: pulp::Arch,
    at: PositionIndex,
    scratch: &mut Scratch,
) -> Result<RowResult, LogitsError> {
    let held: Vec<Option<usize>> = plan
        .files
        .iter()
        .map(|logits| {
            let position = row_in_file(logits, &plan.frame.mask, at.position)?;
            Some(at.row * logits.shape()[1] + position)
        })
        .collect();
    scratch.start(plan, &held);
    for from in (0..plan.vocab_size).step_by(plan.part) {
        let tokens = from..plan.vocab_size.min(from + plan.part);
        for ((logits, row), held) in plan.files.iter().zip(&mut scratch.rows).zip(&held) {
            if let Some(index) = *held {
                logits.read_part(index, tokens.clone(), row)?;
            }
        }
        arch.dispatch(Part { plan, scratch, length: tokens.len() });
    }
    Ok(scratch.result())
}

#[derive(Default)]
struct Scratch {
    rows: Vec<LogitsRow>,
    present: Vec<bool>,
    scans: Vec<Option<RowScan>>,
    values: Aligned<f64>,
    shifted: Aligned<f64>,
    exponentials: Aligned<f64>,
    ordinals: Aligned<u32>,
    rounded: Aligned<f64>,
    lanes: Vec<PairLanes>,
    squares: Vec<[f64; LANES]>,
    sums: Vec<[f64; LANES]>,
}

impl Scratch {
    /// Resizes the buffers for a row and resets all sums.
    fn start(&mut self, plan: &Plan<'_>, held: &[Option<usize>]) {
        let (n, block) = (plan.files.len(), plan.block);
        self.rows.resize_with(n, LogitsRow::default);
        self.present.clear();
        self.present.extend(held.iter().map(Option::is_some));
        self.scans.clear();
        self.scans.resize(n, None);
        self.values.resize(n * block);
        let weighted = if plan.all { n * block } else { 0 };
        self.shifted.resize(weighted);
        self.exponentials.resize(weighted);
        self.ordinals.resize(plan.views.len() * block);
        self.rounded.resize(plan.views.len() * block);
        self.lanes.clear();
        self.lanes.resize(plan.pairs.len(), PairLanes::default());
        self.squares.clear();
        self.squares.resize(n, [0.0; LANES]);
        self.sums.clear();
        self.sums.resize(n, [0.0; LANES]);
    }

    fn result(&mut self) -> RowResult {
        let entry_row = |(entry, scan): (usize, Option<RowScan>)| {
            self.present[entry].then(|| EntryRow {
                squares: kernels::total(&self.squares[entry]),
                sum_exp: kernels::total(&self.sums[entry]),
                scan,
            })
        };
        let pair_row = |lanes: &PairLanes| PairRow {
            squares: kernels::total(&lanes.exact.squares),
            max: lanes.exact.max,
            weighted_a: kernels::total(&lanes.weighted_a),
            weighted_b: kernels::total(&lanes.weighted_b),
            ulp: lanes.ulp.iter().fold(lanes.ulp_f64, |most, &ulp| most.max(ulp.into())),
            rounded_squares: kernels::total(&lanes.rounded.squares),
            rounded_max: lanes.rounded.max,
        };
        RowResult {
            entries: std::mem::take(&mut self.scans).into_iter().enumerate().map(entry_row).collect(),
            pairs: self.lanes.iter().map(pair_row).collect(),
        }
    }
}

/// All loops over the elements of a part of a row, in one function that pulp compiles once per instruction set.
struct Part<'a> {
    plan: &'a Plan<'a>,
    scratch: &'a mut Scratch,
    length: usize,
}

impl pulp::WithSimd for Part<'_> {
    type Output = ();

    #[expect(
        clippy::inline_always,
        reason = "pulp compiles it once per instruction set only where it is inlined"
    )]
    #[inline(always)]
    fn with_simd<S: pulp::Simd>(self, simd: S) {
        let Self { plan, scratch, length: part } = self;
        let n = plan.files.len();
        let block = plan.block;
        let Scratch { rows, present, scans, lanes, squares, sums, .. } = scratch;
        let (values, shifted) = (&mut scratch.values[..], &mut scratch.shifted[..]);
        let exponentials = &mut scratch.exponentials[..];
        let (ordinals, rounded) = (&mut scratch.ordinals[..], &mut scratch.rounded[..]);
        if plan.all {
            for entry in (0..n).filter(|&entry| present[entry]) {
                let row = &rows[entry];
                scans[entry] = Some(if row.is_wide {
                    kernels::scan(&row.wide, plan.k)
                } else {
                    kernels::scan(&row.narrow, plan.k)
                });
            }
        }

        let mut from = 0;
        while from < part {
            let length = block.min(part - from);
            let padded = length.next_multiple_of(WIDE);
            for entry in (0..n).filter(|&entry| present[entry]) {
                let values = &mut values[entry * block..][..padded];
                kernels::widen(&rows[entry], from, length, values);
                kernels::squares::<S>(values, &mut squares[entry]);
                if let Some(scan) = &scans[entry] {
                    let shifted = &mut shifted[entry * block..][..padded];
                    let exponentials = &mut exponentials[entry * block..][..padded];
                    let sums = &mut sums[entry];
                    kernels::exponentials::<S>(values, scan.max, length, shifted, exponentials, sums);
                }
            }
            if plan.all {
                for (index, view) in plan.views.iter().enumerate().filter(|(_, view)| present[view.entry]) {
                    let rounded = view.keeps_values.then(|| &mut rounded[index * block..][..padded]);
                    let ordinals = &mut ordinals[index * block..][..padded];
                    let values = &values[view.entry * block..][..padded];
                    kernels::ordinals(values, rows[view.entry].is_wide, view.dtype, ordinals, rounded);
                }
            }
            let blocks = Blocks { plan, padded, values, shifted, exponentials, ordinals, rounded };
            let (mut planned, mut lanes) = (&plan.pairs[..], &mut lanes[..]);
            for b in 0..n {
                let (row, below) = planned.split_at(b);
                let (row_lanes, lanes_below) = lanes.split_at_mut(b);
                if present[b] && plan.all {
                    blocks.measure::<S, true>(simd, b, present, row, row_lanes);
                } else if present[b] {
                    blocks.measure::<S, false>(simd, b, present, row, row_lanes);
                }
                (planned, lanes) = (below, lanes_below);
            }
            from += length;
        }
    }
}

/// One block of all entries.
struct Blocks<'a> {
    plan: &'a Plan<'a>,
    /// Length of the block, padding included.
    padded: usize,
    values: &'a [f64],
    shifted: &'a [f64],
    exponentials: &'a [f64],
    ordinals: &'a [u32],
    rounded: &'a [f64],
}

#[expect(clippy::inline_always, reason = "compiled with the instruction set of the part")]
impl Blocks<'_> {
    /// The part of a buffer that belongs to an entry or a view.
    #[inline(always)]
    fn own<'b, T>(&self, buffer: &'b [T], index: usize) -> &'b [T] {
        &buffer[index * self.plan.block..][..self.padded]
    }

    #[inline(always)]
    fn shifted(&self, entry: usize) -> Shifted<'_> {
        Shifted { values: self.own(self.shifted, entry), exponentials: self.own(self.exponentials, entry) }
    }

    /// Measures entry `b` with every entry before it, as many pairs at once as leave vector registers for what is read.
    #[inline(always)]
    fn measure<S: pulp::Simd, const ALL: bool>(
        &self,
        simd: S,
        b: usize,
        present: &[bool],
        planned: &[PlannedPair],
        lanes: &mut [PairLanes],
    ) {
        let registers = kernels::SUMS_PER_PAIR * LANES / S::F64_LANES;
        let most = (S::REGISTER_COUNT * 3 / 4 / registers).clamp(1, 4);
        let mut first = 0;
        while first < b {
            let count = present[first..b].iter().take(most).take_while(|present| **present).count();
            let (planned, lanes) = (&planned[first..first + count], &mut lanes[first..first + count]);
            match count {
                4 => self.at_once::<S, 4, ALL>(simd, first, b, planned, lanes),
                3 => self.at_once::<S, 3, ALL>(simd, first, b, planned, lanes),
                2 => self.at_once::<S, 2, ALL>(simd, first, b, planned, lanes),
                1 => self.at_once::<S, 1, ALL>(simd, first, b, planned, lanes),
                _ => {}
            }
            first += count.max(1);
        }
    }

    /// Measures entry `b` with `M` entries from `first` on.
    #[inline(always)]
    fn at_once<S: pulp::Simd, const M: usize, const ALL: bool>(
        &self,
        simd: S,
        first: usize,
        b: usize,
        planned: &[PlannedPair],
        lanes: &mut [PairLanes],
    ) {
        let lanes = <&mut [PairLanes; M]>::try_from(lanes).expect("the caller cuts `M` pairs");
        let values_b = self.own(self.values, b);
        let mut values = [values_b; M];
        let mut exact = [Differences::default(); M];
        for m in 0..M {
            (values[m], exact[m]) = (self.own(self.values, first + m), lanes[m].exact);
        }
        exact = kernels::differences::<S, M>(values, values_b, exact);
        for m in 0..M {
            lanes[m].exact = exact[m];
        }
        if !ALL {
            return;
        }
        let shifted_b = self.shifted(b);
        let mut shifted = [shifted_b; M];
        for (m, shifted) in shifted.iter_mut().enumerate() {
            *shifted = self.shifted(first + m);
        }
        kernels::weighted::<S, M>(shifted, shifted_b, lanes);
        for (pair, lanes) in planned.iter().zip(&mut *lanes) {
            if self.plan.views[pair.view_b].dtype == Dtype::F64 {
                kernels::ulps_f64(self.own(self.values, pair.a), self.own(self.values, pair.b), lanes);
            } else {
                let [a, b] = [pair.view_a, pair.view_b].map(|view| self.own(self.ordinals, view));
                kernels::ulps(simd, a, b, lanes);
            }
        }
        for (pair, lanes) in planned.iter().zip(lanes).filter(|(pair, _)| pair.mixed) {
            let (a, b) = (self.own(self.rounded, pair.view_a), self.own(self.rounded, pair.view_b));
            [lanes.rounded] = kernels::differences::<S, 1>([a], b, [lanes.rounded]);
        }
    }
}
