//! The charts of a case: errors along tokens or modules, distances in ULP, times of rounds, speed against error.

use compare::details::UlpHistogram;
use compare::metrics;
use plotters::prelude::RGBColor;
use plotters::style::text_anchor::{HPos, VPos};

use super::chart::{Chart, Decades, FIRST, GRID, Marker, SECOND, Size, THIRD, WRONG, drawn};

/// Most points of a series; a longer series is split into bins, and the largest value of each bin is drawn.
const MOST_POINTS: usize = 256;
/// Size of a chart as wide as the page.
const WIDE: Size = Size { width: 880, height: 240, left: 64 };

/// Values along tokens or modules; `None` for a token or module without a value.
pub(super) struct Series {
    pub(super) values: Vec<Option<f64>>,
    pub(super) look: Look,
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Line of the main series.
    Main,
    /// Line of the second series.
    Second,
    /// Line of the third series.
    Third,
    /// Unconnected points.
    Points,
}

impl Look {
    fn color(self) -> RGBColor {
        match self {
            Self::Main => FIRST,
            Self::Second => SECOND,
            Self::Third | Self::Points => THIRD,
        }
    }
}

/// Relative errors on a logarithmic axis along tokens or modules; empty if there are no values. `breaks` holds the index at
/// which each row of the batch begins and its label; `marked` is the index that the chart highlights.
pub(super) fn errors(
    series: &[Series],
    breaks: &[(usize, String)],
    marked: Option<usize>,
    title: &str,
) -> String {
    let length = series.iter().map(|one| one.values.len()).max().unwrap_or(0);
    if length == 0 {
        return String::new();
    }
    let width = length.div_ceil(MOST_POINTS);
    let binned: Vec<(Look, Vec<(f64, f64)>)> =
        series.iter().map(|one| (one.look, largest(&one.values, width))).collect();
    let decades = Decades::of(binned.iter().flat_map(|(_, points)| points.iter().map(|point| point.1)));
    let last = length as f64 - 0.5;
    drawn(WIDE, -0.5..last, decades.range(), |chart| {
        if let Some(at) = marked {
            let (x, y) = (at as f64, decades.range());
            chart.bar([(x - 0.5, y.start), (x + 0.5, y.end)], WRONG, 0.18);
        }
        chart.rows(&decades.ticks());
        let step = (length / 8).max(1).next_power_of_two();
        let plain = (0..length).step_by(step).map(|at| (at as f64, at.to_string()));
        if breaks.len() > 1 {
            for (at, _) in breaks.iter().skip(1) {
                let (x, y) = (*at as f64 - 0.5, decades.range());
                chart.line(&[(x, y.start), (x, y.end)], GRID, 1);
            }
            let step = breaks.len().div_ceil(12);
            let labels = breaks.iter().step_by(step).map(|(at, label)| (*at as f64, label.clone()));
            chart.columns(&labels.collect::<Vec<_>>(), title);
        } else {
            chart.columns(&plain.collect::<Vec<_>>(), title);
        }
        for (look, points) in binned.iter().rev() {
            curve(chart, *look, points, decades);
        }
    })
}

/// The largest value of each bin of `width` values, at the middle of the bin.
fn largest(values: &[Option<f64>], width: usize) -> Vec<(f64, f64)> {
    let bins = values.chunks(width).enumerate();
    bins.filter_map(|(bin, values)| {
        let value = metrics::largest(values.iter().flatten().copied())?;
        let middle = bin * width + (values.len() - 1) / 2;
        Some((middle as f64, value))
    })
    .collect()
}

fn curve(chart: &mut Chart<'_, '_>, look: Look, points: &[(f64, f64)], decades: Decades) {
    let placed: Vec<(f64, f64, bool)> = points
        .iter()
        .map(|&(x, value)| {
            let (y, is_number) = decades.place(value);
            (x, y, is_number)
        })
        .collect();
    if look != Look::Points {
        for run in placed.split(|point| !point.2).filter(|run| run.len() > 1) {
            let line: Vec<(f64, f64)> = run.iter().map(|&(x, y, _)| (x, y)).collect();
            chart.line(&line, look.color(), if look == Look::Main { 2 } else { 1 });
        }
    }
    let is_dotted = placed.len() <= 80 || look == Look::Points;
    for (x, y, is_number) in placed {
        match (is_number, look) {
            (false, _) => chart.mark((x, y), Marker::Cross, 4, WRONG),
            (true, Look::Points) => chart.mark((x, y), Marker::Triangle, 5, look.color()),
            (true, Look::Main) if is_dotted => chart.mark((x, y), Marker::Dot, 3, look.color()),
            (true, _) => {}
        }
    }
}

/// Bar chart of a histogram of distances in ULP, with a logarithmic axis of counts.
pub(super) fn ulps(histogram: &UlpHistogram) -> String {
    let counts = &histogram.counts;
    let most = counts.iter().copied().max().unwrap_or(0).max(1) as f64;
    let top = most.log10().ceil().max(1.0);
    let classes = counts.len().max(1) as f64;
    let size = Size { width: 440, height: 240, left: 64 };
    drawn(size, -0.5..classes - 0.5, -0.3..top + 0.1, |chart| {
        let step = (top as usize).div_ceil(6).max(1);
        let ticks = (0..=top as usize).step_by(step).map(|power| (power as f64, format!("1e{power}")));
        chart.rows(&ticks.collect::<Vec<_>>());
        for (class, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let x = class as f64;
            let color = if class == 0 { THIRD } else { FIRST };
            chart.bar([(x - 0.4, -0.3), (x + 0.4, (*count as f64).log10())], color, 1.0);
        }
        let step = counts.len().div_ceil(7).max(1);
        let labels = (0..counts.len()).step_by(step).map(|class| (class as f64, class_label(class)));
        chart.columns(&labels.collect::<Vec<_>>(), "distance in ULP");
    })
}

/// The distances of a histogram class: `0`, `1`, `2–3`, `≥ 2^10`.
pub(super) fn class_label(class: usize) -> String {
    match class {
        0 => "0".to_owned(),
        1 => "1".to_owned(),
        2..=6 => format!("{}–{}", 1_u64 << (class - 1), (1_u64 << class) - 1),
        _ => format!("≥ 2^{}", class - 1),
    }
}

/// A variant's times, in milliseconds.
pub(super) struct Times {
    /// The variant's number and name.
    pub(super) label: String,
    /// The median of each round, in milliseconds.
    pub(super) rounds: Vec<f64>,
    /// The median of all forward passes.
    pub(super) median: f64,
    /// 95 % confidence interval of `median`.
    pub(super) interval: [f64; 2],
    /// Whether the variant is in group A.
    pub(super) is_first: bool,
}

/// One row per variant, with a point per round, the median and its interval; empty if there are no times.
pub(super) fn times(rows: &[Times]) -> String {
    let most = |of: fn(f64, f64) -> f64, start: f64| {
        rows.iter().flat_map(|row| row.rounds.iter().chain(&row.interval)).copied().fold(start, of)
    };
    let (low, high) = (most(f64::min, f64::INFINITY), most(f64::max, 0.0));
    if rows.is_empty() || high <= 0.0 {
        return String::new();
    }
    // The axis starts at 0 unless the shortest time is more than half of the longest.
    let room = (high - low).max(0.02 * high) * 0.08;
    let start = if low > 0.5 * high { (low - room).max(0.0) } else { 0.0 };
    let longest = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0);
    let left = (longest * 7 + 16).clamp(80, 330) as u32;
    let height = rows.len() as u32 * 22 + 44;
    let end = high + room;
    drawn(Size { width: 880, height, left }, start..end, 0.0..rows.len() as f64, |chart| {
        let ticks = ticks(start, end, 7);
        for (x, _) in &ticks {
            chart.line(&[(*x, 0.0), (*x, rows.len() as f64)], GRID, 1);
        }
        chart.columns(&ticks, "ms");
        for (index, row) in rows.iter().enumerate() {
            let y = rows.len() as f64 - index as f64 - 0.5;
            let (left, middle) = chart.pixel(start, y);
            chart.text(&clipped(&row.label, 44), (left - 8, middle), HPos::Right, VPos::Center);
            let color = if row.is_first { FIRST } else { SECOND };
            chart.bar([(row.interval[0], y - 0.3), (row.interval[1], y + 0.3)], color, 0.3);
            chart.line(&[(row.median, y - 0.36), (row.median, y + 0.36)], color, 2);
            for &round in &row.rounds {
                chart.mark((round, y), Marker::Dot, 2, color);
            }
        }
    })
}

/// At most about `most` round numbers from `start` to `end`, with their labels.
fn ticks(start: f64, end: f64, most: usize) -> Vec<(f64, String)> {
    let rough = (end - start) / most as f64;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|of| of * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(rough);
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let (first, last) = ((start / step).ceil() as i64, (end / step).floor() as i64);
    (first..=last).map(|n| n as f64 * step).map(|x| (x, format!("{x:.decimals$}"))).collect()
}

/// Text of at most `most` characters: `…` replaces the middle of longer text.
fn clipped(text: &str, most: usize) -> String {
    let characters: Vec<char> = text.chars().collect();
    if characters.len() <= most {
        return text.to_owned();
    }
    let half = most / 2;
    let part = |part: &[char]| part.iter().collect::<String>();
    format!("{}…{}", part(&characters[..half]), part(&characters[characters.len() - half + 1..]))
}

/// A variant's speed and error.
pub(super) struct Trade {
    /// The variant's number in the case's list.
    pub(super) number: usize,
    pub(super) ms: f64,
    pub(super) error: f64,
    /// Whether the variant is in group A.
    pub(super) is_first: bool,
}

/// Scatter chart of time against error, one numbered point per variant; a number that would overlap is left out.
pub(super) fn trade(points: &[Trade], title: &str) -> String {
    if points.is_empty() {
        return String::new();
    }
    let decades = Decades::of(points.iter().map(|point| point.error));
    let most = points.iter().map(|point| point.ms).fold(0.0, f64::max) * 1.06;
    let size = Size { width: 880, height: 280, left: 64 };
    drawn(size, 0.0..most.max(f64::MIN_POSITIVE), decades.range(), |chart| {
        chart.rows(&decades.ticks());
        chart.columns(&ticks(0.0, most, 8), title);
        // The area below `floor` holds the axis labels.
        let floor = chart.pixel(0.0, decades.range().start).1 + 4;
        let mut taken: Vec<[i32; 4]> = Vec::new();
        let mut placed = Vec::new();
        for point in points {
            let (y, is_number) = decades.place(point.error);
            let (marker, color) = match (is_number, point.is_first) {
                (false, _) => (Marker::Cross, WRONG),
                (true, true) => (Marker::Dot, FIRST),
                (true, false) => (Marker::Triangle, SECOND),
            };
            chart.mark((point.ms, y), marker, 5, color);
            let (x, y) = chart.pixel(point.ms, y);
            taken.push([x - 5, y - 5, x + 5, y + 5]);
            placed.push((x, y, point.number.to_string()));
        }
        for (x, y, label) in placed {
            let width = label.len() as i32 * 7;
            let free =
                [(x + 8, y - 7), (x - 8 - width, y - 7), (x - width / 2, y - 21), (x - width / 2, y + 7)]
                    .into_iter()
                    .map(|(left, top)| [left, top, left + width, top + 14])
                    .find(|own| own[3] <= floor && !taken.iter().any(|other| is_overlapping(*own, *other)));
            if let Some(own) = free {
                chart.text(&label, (own[0], own[1]), HPos::Left, VPos::Top);
                taken.push(own);
            }
        }
    })
}

/// Whether two boxes `[left, top, right, bottom]` overlap.
fn is_overlapping(one: [i32; 4], other: [i32; 4]) -> bool {
    one[0] < other[2] && other[0] < one[2] && one[1] < other[3] && other[1] < one[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bin_is_drawn_as_its_largest_value() {
        let values = [Some(1.0), Some(f64::NAN), None, Some(2.0), None, None];
        let found = largest(&values, 2);
        assert!(found[0].1.is_nan() && found.len() == 2);
        assert_eq!(found[1], (2.0, 2.0));
        assert_eq!(largest(&values[2..4], 1), [(1.0, 2.0)]);
    }

    #[test]
    fn ticks_are_round_numbers_within_the_limits() {
        let labels = |start, end| ticks(start, end, 5).into_iter().map(|tick| tick.1).collect::<Vec<_>>();
        assert_eq!(labels(0.0, 9.6), ["0", "2", "4", "6", "8"]);
        assert_eq!(labels(0.11, 0.18), ["0.12", "0.14", "0.16", "0.18"]);
    }

    #[test]
    fn long_labels_keep_their_start_and_end() {
        assert_eq!(clipped("abcdefgh", 8), "abcdefgh");
        assert_eq!(clipped("abcdefghij", 6), "abc…ij");
    }

    #[test]
    fn numbers_in_a_scatter_chart_do_not_overlap() {
        let point = |number| Trade { number, ms: 5.0, error: 1e-7, is_first: true };
        let svg = trade(&(11..=19).map(point).collect::<Vec<_>>(), "ms");
        let shown = (11..=19).filter(|number| svg.contains(&format!(">{number}</text>"))).count();
        assert_eq!(shown, 4, "four places around one point: {svg}");
    }
}
