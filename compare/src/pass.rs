//! Reads the files of one vocabulary size once and measures all pairs: one task per row, in blocks within a row.

use std::sync::Mutex;

use rayon::prelude::*;

use super::Dtype;
use super::entry::row_in_file;
use super::fold::Fold;
use super::kernels::{self, LANES, PairLanes, RowScan};
use super::logits::{LogitsError, LogitsRow};
use super::metrics::PositionIndex;
use super::plan::{EntryRow, Measured, PairRow, Plan, RowResult};

/// Largest total size in bytes of the logits of the rows in flight.
const IN_FLIGHT_BYTES: usize = 256 << 20;
/// Largest number of rows between two folds of the results.
const ROWS_AT_ONCE: usize = 64;
/// Pairs accumulated at once if their lanes fit into the vector registers.
const AT_ONCE: usize = 4;

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
    values: Vec<f64>,
    shifted: Vec<f64>,
    exponentials: Vec<f64>,
    ordinals: Vec<u32>,
    rounded: Vec<f64>,
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
        self.values.resize(n * block, 0.0);
        self.shifted.resize(n * block, 0.0);
        self.exponentials.resize(n * block, 0.0);
        self.ordinals.resize(plan.views.len() * block, 0);
        self.rounded.resize(plan.views.len() * block, 0.0);
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
            squares: kernels::total(&lanes.squares),
            dot: kernels::total(&lanes.dot),
            max: kernels::largest(&lanes.max),
            weighted_a: kernels::total(&lanes.weighted_a),
            weighted_b: kernels::total(&lanes.weighted_b),
            ulp: lanes.ulp_f64.max(lanes.ulp.into()),
            rounded_squares: kernels::total(&lanes.rounded_squares),
            rounded_max: kernels::largest(&lanes.rounded_max),
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
    fn with_simd<S: pulp::Simd>(self, _: S) {
        let Self { plan, scratch, length: part } = self;
        let n = plan.files.len();
        let block = plan.block;
        let Scratch {
            rows,
            present,
            scans,
            values,
            shifted,
            exponentials,
            ordinals,
            rounded,
            lanes,
            squares,
            sums,
        } = scratch;
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
            let padded = length.next_multiple_of(LANES);
            for entry in (0..n).filter(|&entry| present[entry]) {
                let values = &mut values[entry * block..][..padded];
                kernels::widen(&rows[entry], from, length, values);
                kernels::squares::<S>(values, &mut squares[entry]);
                if let Some(scan) = &scans[entry] {
                    let exponentials = &mut exponentials[entry * block..][..padded];
                    let shifted = &mut shifted[entry * block..][..padded];
                    kernels::exponentials::<S>(
                        values,
                        scan.max,
                        length,
                        shifted,
                        exponentials,
                        &mut sums[entry],
                    );
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
            let own = |entry: usize| entry * block..entry * block + padded;
            // The pairs of one second entry `b` are contiguous in `lanes`.
            let mut rest = &mut lanes[..];
            for b in 0..n {
                let (row, below) = rest.split_at_mut(b);
                rest = below;
                if present[b] {
                    let values = |entry: usize| &values[own(entry)];
                    if S::REGISTER_COUNT >= AT_ONCE * kernels::DIFFERENCE_SUMS * LANES / S::F64_LANES {
                        row_of_differences::<S, AT_ONCE>(values, b, present, row);
                    } else {
                        row_of_differences::<S, 1>(values, b, present, row);
                    }
                }
            }
            for (pair, lanes) in plan.pairs.iter().zip(&mut *lanes) {
                if !(present[pair.a] && present[pair.b]) {
                    continue;
                }
                let (a, b) = (own(pair.a), own(pair.b));
                if plan.all {
                    let weights = (&exponentials[a.clone()], &exponentials[b.clone()]);
                    kernels::weighted::<S>(
                        &shifted[a.clone()],
                        &shifted[b.clone()],
                        weights.0,
                        weights.1,
                        lanes,
                    );
                    let (view_a, view_b) = (own(pair.view_a), own(pair.view_b));
                    if plan.views[pair.view_a].dtype == Dtype::F64 {
                        kernels::ulps_f64(&values[a], &values[b], lanes);
                    } else {
                        kernels::ulps(&ordinals[view_a.clone()], &ordinals[view_b.clone()], lanes);
                    }
                    if pair.mixed {
                        kernels::rounded_differences::<S>(&rounded[view_a], &rounded[view_b], lanes);
                    }
                }
            }
            from += length;
        }
    }
}

/// The L2 family of entry `b` paired with every entry before it, `M` pairs at once.
#[expect(clippy::inline_always, reason = "compiled with the instruction set of the part")]
#[inline(always)]
fn row_of_differences<'v, S: pulp::Simd, const M: usize>(
    values: impl Fn(usize) -> &'v [f64],
    b: usize,
    present: &[bool],
    row: &mut [PairLanes],
) {
    for (number, group) in row.chunks_mut(M).enumerate() {
        let first = number * M;
        match <&mut [PairLanes; M]>::try_from(&mut *group) {
            Ok(group) if present[first..first + M].iter().all(|present| *present) => {
                let a = std::array::from_fn(|index| values(first + index));
                kernels::differences::<S, M>(a, values(b), group);
            }
            _ => {
                for (index, pair) in group.iter_mut().enumerate().filter(|(index, _)| present[first + index])
                {
                    kernels::differences::<S, 1>(
                        [values(first + index)],
                        values(b),
                        std::array::from_mut(pair),
                    );
                }
            }
        }
    }
}
