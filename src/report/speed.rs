//! The speed of each variant over the whole run, in one sentence.

use compare::timing::SpeedUp;
use compare::units::count;

use crate::execute::cell::{Cell, Outcome};
use crate::judge::view::RunView;

/// Each variant's speed-up over the baseline, over all cases, fastest first; empty if no variant has a speed-up.
pub(super) fn sentence(run: &RunView) -> String {
    let mut ratios: Vec<(&Cell, Vec<&SpeedUp>)> = Vec::new();
    let performances: Vec<_> = run
        .cases
        .iter()
        .flat_map(|case| case.cells.iter().filter_map(|cell| Some((cell, case.performance(cell).ok()?))))
        .collect();
    for (cell, performance) in &performances {
        let Some(speed_up) = &performance.speed_up else { continue };
        match ratios.iter_mut().find(|(known, _)| known.name == cell.name) {
            Some((_, known)) => known.push(speed_up),
            None => ratios.push((cell, vec![speed_up])),
        }
    }
    let Some(baseline) =
        run.cases.iter().find_map(|case| case.baseline.as_ref()).filter(|_| !ratios.is_empty())
    else {
        return String::new();
    };
    // The geometric mean: ratios of 2 and 1/2 average to 1.
    let mean = |known: &[&SpeedUp]| {
        (known.iter().map(|speed_up| speed_up.ratio.ln()).sum::<f64>() / known.len() as f64).exp()
    };
    ratios.sort_by(|a, b| mean(&b.1).total_cmp(&mean(&a.1)));
    let words: Vec<String> = ratios
        .iter()
        .map(|(cell, known)| {
            let breaks = graph_breaks(cell).map(|breaks| format!(", {breaks}")).unwrap_or_default();
            let name = &cell.name;
            match known.as_slice() {
                [only] => {
                    let interval = &only.interval;
                    format!("{name} {:.2}× ({:.2}–{:.2}{breaks})", only.ratio, interval.low, interval.high)
                }
                several => {
                    let low = several.iter().map(|known| known.ratio).fold(f64::INFINITY, f64::min);
                    let high = several.iter().map(|known| known.ratio).fold(0.0, f64::max);
                    format!("{name} {:.2}× ({low:.2}–{high:.2} by case{breaks})", mean(several))
                }
            }
        })
        .collect();
    format!("speed beside {baseline}: {}", words.join(", "))
}

/// `2 graph breaks` or `not compiled`; `None` for a compiled variant without graph breaks and for one without graph counts.
pub(super) fn graph_breaks(cell: &Cell) -> Option<String> {
    let Outcome::Completed(completed) = &cell.outcome else { return None };
    let graphs = completed.graphs?;
    match (graphs.count, graphs.breaks) {
        (0, _) => Some("not compiled".to_owned()),
        (_, 0) => None,
        (_, breaks) => Some(count(breaks as usize, "graph break")),
    }
}
