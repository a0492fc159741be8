//! A sweep's verdicts in one table: a row per pair of variants, a column per value of each axis, the worst verdict
//! of all cells that have that value.

use crate::execute::cell::Cell;
use crate::judge::view::{CaseView, RunView};
use crate::spec::config::Padding;
use crate::spec::variant::{Variant, Way, dtype_name};
use compare::verdict::Decision;

/// A collapsed sweep.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sweep {
    /// `("length", "512")`, axis by axis.
    pub(crate) columns: Vec<(&'static str, String)>,
    pub(crate) rows: Vec<PairRow>,
}

/// One pair of variants, without their dtypes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PairRow {
    pub(crate) a: String,
    pub(crate) b: String,
    /// The worst verdict over all columns.
    pub(crate) worst: Mark,
    /// One per column; `None` if the pair has no verdict there.
    pub(crate) marks: Vec<Option<Mark>>,
}

/// The worst of several verdicts.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mark {
    pub(crate) decision: Decision,
    /// The number of verdicts that equal the worst.
    pub(crate) count: usize,
    pub(crate) of: usize,
}

impl Mark {
    fn add(mark: &mut Option<Self>, decision: &Decision) {
        let Some(known) = mark else {
            *mark = Some(Self { decision: decision.clone(), count: 1, of: 1 });
            return;
        };
        known.of += 1;
        match rank(decision).cmp(&rank(&known.decision)) {
            std::cmp::Ordering::Greater => {
                known.decision = decision.clone();
                known.count = 1;
            }
            std::cmp::Ordering::Equal => known.count += 1,
            std::cmp::Ordering::Less => {}
        }
    }

    /// `diverged 1/4`, `identical`.
    pub(crate) fn text(&self) -> String {
        let word = self.decision.word();
        if self.count == self.of { word.to_owned() } else { format!("{word} {}/{}", self.count, self.of) }
    }

    pub(crate) fn is_good(&self) -> bool {
        matches!(self.decision, Decision::Identical | Decision::SameMathematics)
    }
}

/// Rank of a verdict, 0 is best. "Not run" ranks worse than rounding, because nothing is known about it.
fn rank(decision: &Decision) -> u8 {
    match decision {
        Decision::Identical => 0,
        Decision::SameMathematics => 1,
        Decision::NotRun { .. } => 2,
        Decision::WorseRounding { .. } => 3,
        Decision::Incomparable { .. } => 4,
        Decision::Diverged => 5,
    }
}

/// The run's verdicts as one table; `None` for one case in one dtype, because the case's own table shows the same.
pub(crate) fn sweep(run: &RunView) -> Option<Sweep> {
    let placed: Vec<Placed> = run
        .cases
        .iter()
        .flat_map(|case| (0..case.verdicts.len()).filter_map(|index| Placed::new(case, index)))
        .collect();
    let mut columns: Vec<(&'static str, String)> = Vec::new();
    for axis in AXES {
        let mut values: Vec<String> = Vec::new();
        for placed in &placed {
            if let Some(value) = placed.value(axis)
                && !values.contains(value)
            {
                values.push(value.clone());
            }
        }
        if values.len() > 1 {
            columns.extend(values.into_iter().map(|value| (axis, value)));
        }
    }
    // Any run has f64 from its oracle.
    let dtypes =
        columns.iter().filter(|(axis, value)| *axis == "dtype" && value != "f64" && value != "mixed");
    if columns.is_empty() || run.cases.len() == 1 && dtypes.count() < 2 {
        return None;
    }
    let mut rows: Vec<Unfinished> = Vec::new();
    for placed in &placed {
        let index = rows.iter().position(|row| (&row.0, &row.1) == (&placed.a, &placed.b));
        let index = index.unwrap_or_else(|| {
            rows.push((placed.a.clone(), placed.b.clone(), None, vec![None; columns.len()]));
            rows.len() - 1
        });
        let (_, _, worst, marks) = &mut rows[index];
        Mark::add(worst, placed.decision);
        for (mark, (axis, value)) in marks.iter_mut().zip(&columns) {
            if placed.value(axis) == Some(value) {
                Mark::add(mark, placed.decision);
            }
        }
    }
    let row = |(a, b, worst, marks): Unfinished| Some(PairRow { a, b, worst: worst?, marks });
    Some(Sweep { columns, rows: rows.into_iter().filter_map(row).collect() })
}

/// The fields of a [`PairRow`] while its verdicts are still being added.
type Unfinished = (String, String, Option<Mark>, Vec<Option<Mark>>);

const AXES: [&str; 6] = ["checkpoint", "length", "batch", "padding", "prefill", "dtype"];

/// A verdict with its place on each axis.
struct Placed<'a> {
    a: String,
    b: String,
    decision: &'a Decision,
    values: [Option<String>; AXES.len()],
}

impl<'a> Placed<'a> {
    /// The verdict at a place in the case's list; `None` if it is not on two variants' main outputs.
    fn new(case: &'a CaseView, index: usize) -> Option<Self> {
        let verdict = &case.verdicts[index];
        let cell = |name: &str| case.cells.iter().find(|cell| cell.name == name);
        let cached = case.caches.iter().find(|cache| cache.verdict == index);
        let ([cell_a, cell_b], way_b) = if let Some(cache) = cached {
            ([&case.cells[cache.cell]; 2], Way::Full)
        } else {
            ([cell(&verdict.a)?, cell(&verdict.b)?], Way::Cached)
        };
        let (dtype_a, dtype_b) = (cell_a.variant.dtype, cell_b.variant.dtype);
        let dtype = if dtype_a == dtype_b { dtype_name(dtype_a) } else { "mixed" };
        let label = |cell: &Cell, way: Way| way.name(&without_dtype(&cell.name, &cell.variant));
        let axes = case.axes;
        let side = |side: Option<Padding>| match side {
            None | Some(Padding::None) => "none",
            Some(Padding::Left) => "left",
            Some(Padding::Right) => "right",
        };
        Some(Self {
            a: label(cell_a, Way::Cached),
            b: label(cell_b, way_b),
            decision: &verdict.decision,
            values: [
                Some(case.checkpoint.clone()),
                axes.map(|axes| axes.length.to_string()),
                axes.map(|axes| axes.batch.to_string()),
                axes.map(|axes| side(axes.padding).to_owned()),
                axes.map(|axes| axes.prefill.map_or_else(|| "one pass".to_owned(), |n| n.to_string())),
                Some(dtype.to_owned()),
            ],
        })
    }

    fn value(&self, axis: &str) -> Option<&String> {
        AXES.iter().position(|known| *known == axis).and_then(|index| self.values[index].as_ref())
    }
}

/// The variant's name without its dtype, which has columns of its own.
fn without_dtype(name: &str, variant: &Variant) -> String {
    if !variant.qualified {
        return name.to_owned();
    }
    name.replacen(&format!("_{}", dtype_name(variant.dtype)), "", 1)
}
