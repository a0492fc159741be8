//! The tables of times.

use super::super::speed_up_text;
use super::{escape, put, table};
use crate::judge::view::CaseView;
use compare::units::{bytes, ms};

/// Medians as bars, their bootstrap intervals as whiskers, p90 as a tick.
pub(super) fn timings(page: &mut String, case: &CaseView) {
    let results: Vec<_> = case.cells.iter().map(|cell| (cell, case.performance(cell))).collect();
    let timed = || results.iter().filter_map(|(_, result)| result.as_ref().ok()?.timing);
    let longest = timed().map(|timing| timing.p90_ms.max(timing.median_interval_ms.high)).fold(0.0, f64::max);
    let share = |x: f64| {
        if longest > 0.0 { 100.0 * x / longest } else { 0.0 }
    };
    put(
        page,
        "<h3>Performance</h3>\n<p>Median of the steady passes in ms, with its 95 % interval (whisker) and p90 (tick).</p>\n",
    );
    put(
        page,
        "<div class=\"scroll\"><table class=\"bars\">\n<thead><tr><th>Variant</th><th class=\"bar\"></th><th>p50</th><th>p90</th><th>p99</th><th>Mean</th><th>First call</th><th>Load</th><th>Peak memory</th><th>Speed-up</th><th>n</th></tr></thead>\n<tbody>\n",
    );
    for (cell, result) in &results {
        put(page, &format!("<tr><th scope=\"row\">{}</th>", escape(&cell.name)));
        match result {
            Err(reason) => {
                put(page, &format!("<td class=\"absent bad\" colspan=\"10\">{}</td>", escape(reason)));
            }
            Ok(performance) => {
                match &performance.timing {
                    Some(timing) => {
                        let interval = timing.median_interval_ms;
                        put(
                            page,
                            &format!(
                                "<td class=\"bar\"><div style=\"width:{:.2}%\"></div><i style=\"left:{:.2}%;width:{:.2}%\"></i><u style=\"left:{:.2}%\"></u></td>",
                                share(timing.p50_ms),
                                share(interval.low),
                                share(interval.high - interval.low),
                                share(timing.p90_ms)
                            ),
                        );
                        for value in [timing.p50_ms, timing.p90_ms, timing.p99_ms, timing.mean_ms] {
                            put(page, &format!("<td>{value:.2}</td>"));
                        }
                    }
                    None => put(page, "<td class=\"absent\" colspan=\"5\">not timed</td>"),
                }
                let completed = performance.completed;
                let peak = completed.peak_bytes.map_or_else(|| "unknown".to_owned(), bytes);
                let samples = performance.timing.map_or(0, |timing| timing.n);
                let (first, load) = (ms(completed.first_call_ns), ms(completed.load_ns));
                let speed_up = speed_up_text(performance);
                put(
                    page,
                    &format!(
                        "<td>{first:.2}</td><td>{load:.2}</td><td>{peak}</td><td>{speed_up}</td><td>{samples}</td>"
                    ),
                );
            }
        }
        put(page, "</tr>\n");
    }
    put(page, "</tbody></table></div>\n");
}

/// Nothing where no variant decoded.
pub(super) fn decoding(page: &mut String, case: &CaseView) {
    let rows: Vec<Vec<String>> = case
        .decoding()
        .iter()
        .filter_map(|(cell, performance)| {
            let timing = performance.timing.as_ref()?;
            Some(vec![
                escape(&cell.name),
                format!("{:.2}", timing.p50_ms),
                format!("{:.2}–{:.2}", timing.median_interval_ms.low, timing.median_interval_ms.high),
                format!("{:.2}", timing.p90_ms),
                speed_up_text(performance),
                timing.n.to_string(),
            ])
        })
        .collect();
    if !rows.is_empty() {
        let header = ["Variant", "p50 (ms)", "95 % interval", "p90 (ms)", "Speed-up", "n"];
        table(page, "Decoding one token after the inputs", &header, &rows);
    }
}
