//! Times and memory of each variant.

use crate::execute::cell::Cell as Variant;
use crate::judge::view::{CaseView, Performance};
use crate::report::document::{Bar, Block, Cell, Column, Content, Medium, Row, Table};
use crate::report::speed::graph_breaks;
use crate::report::speed_up_text;
use compare::timing::Summary;
use compare::units::{bytes, ms};

const COLUMNS: [&str; 11] = [
    "Variant",
    "Note",
    "p50 (ms)",
    "p90 (ms)",
    "p99 (ms)",
    "Average (ms)",
    "First call (ms)",
    "Load (ms)",
    "Peak memory",
    "Speed-up",
    "n",
];

pub(super) fn content(case: &CaseView, medium: Medium) -> Option<Content> {
    match medium {
        Medium::Terminal => return Some(Content::untitled(vec![Block::Gap, Block::Table(brief(case))])),
        Medium::Step => return Some(Content::untitled(vec![Block::Table(briefest(case))])),
        Medium::Summary | Medium::Page => {}
    }
    let timed = case.cells.iter().filter_map(|cell| case.performance(cell).ok()?.timing);
    let longest = timed.map(|timing| timing.p90_ms.max(timing.median_interval_ms.high)).fold(0.0, f64::max);
    let rows = case.cells.iter().map(|cell| -> Row {
        let note = match graph_breaks(cell) {
            Some(breaks) => format!("{} ({breaks})", cell.variant.note()),
            None => cell.variant.note(),
        };
        let names = [cell.variant.version.clone(), note].map(Cell::from);
        let numbers = match case.performance(cell) {
            Err(reason) => vec![reason.into()],
            Ok(performance) => numbers(&performance, longest),
        };
        names.into_iter().chain(numbers).collect()
    });
    let bars = if medium == Medium::Page {
        " A bar shows the median, its whisker the 95 % interval, its tick p90."
    } else {
        ""
    };
    let text = format!(
        "Percentiles are interpolated (Hyndman–Fan type 7). The speed-up is the baseline's median over the variant's, with its 95 % bootstrap interval over interleaved rounds. Variants may load and make their first call at the same time (`first_passes_at_once`), so these two columns are upper bounds.{bars}"
    );
    let blocks = vec![Block::Table(Table::new(COLUMNS, rows)), Block::text(text)];
    Some(Content::titled("Performance Results", blocks))
}

fn numbers(performance: &Performance<'_>, longest: f64) -> Vec<Cell> {
    let mut numbers = percentiles(performance);
    if let (Some(timing), Some(p50)) = (&performance.timing, numbers.first_mut()) {
        p50.bar = Some(bar(timing, longest));
    }
    numbers.extend(
        [
            format!("{:.2}", ms(performance.completed.first_call_ns)),
            format!("{:.2}", ms(performance.completed.load_ns)),
            performance.completed.peak_bytes.map_or_else(|| "unknown".to_owned(), bytes),
            speed_up_text(performance),
            performance.timing.map_or(0, |timing| timing.n).to_string(),
        ]
        .map(Cell::from),
    );
    numbers
}

fn bar(timing: &Summary, longest: f64) -> Bar {
    let share = |x: f64| if longest > 0.0 { x / longest } else { 0.0 };
    let interval = timing.median_interval_ms;
    Bar {
        length: share(timing.p50_ms),
        interval: [share(interval.low), share(interval.high)],
        tick: share(timing.p90_ms),
    }
}

/// p50, p90, p99 and the mean.
pub(super) fn percentiles(performance: &Performance<'_>) -> Vec<Cell> {
    match &performance.timing {
        Some(timing) => [timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.mean_ms]
            .map(|x| Cell::from(format!("{x:.2}")))
            .to_vec(),
        None => vec!["not timed".into(); 4],
    }
}

/// For a terminal.
fn brief(case: &CaseView) -> Table {
    let column = |title: &str, need| Column { title: title.to_owned(), need };
    let columns = [
        column("variant", None),
        column("p50 ms", None),
        column("p90 ms", Some(2)),
        column("first ms", Some(1)),
        column("memory", Some(0)),
        column("speed-up", None),
    ];
    let time = |x: Option<f64>| x.map_or_else(|| "—".to_owned(), |x| format!("{x:.2}"));
    let row = |cell: &Variant| -> Row {
        match case.performance(cell) {
            Ok(performance) => [
                match graph_breaks(cell) {
                    Some(breaks) => format!("{} ({breaks})", cell.name),
                    None => cell.name.clone(),
                },
                time(performance.timing.map(|timing| timing.p50_ms)),
                time(performance.timing.map(|timing| timing.p90_ms)),
                time(Some(ms(performance.completed.first_call_ns))),
                performance.completed.peak_bytes.map_or_else(|| "—".to_owned(), bytes),
                speed_up_text(&performance),
            ]
            .into_iter()
            .collect(),
            Err(reason) => [cell.name.clone(), reason].into_iter().collect(),
        }
    };
    Table::new(columns, case.cells.iter().map(row))
}

/// The table for GitHub's step summary.
fn briefest(case: &CaseView) -> Table {
    let row = |cell: &Variant| -> Row {
        match case.performance(cell) {
            Ok(performance) => {
                let p50 = performance.timing.map(|timing| format!("{:.2}", timing.p50_ms));
                let p50 = p50.unwrap_or_else(|| "not timed".to_owned());
                [cell.name.clone(), p50, speed_up_text(&performance)].into_iter().collect()
            }
            Err(reason) => [cell.name.clone(), reason].into_iter().collect(),
        }
    };
    Table::new(["Variant", "p50 (ms)", "Speed-up"], case.cells.iter().map(row))
}
