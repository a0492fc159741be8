//! `tfcheck compare BEFORE AFTER --html`: the changes between two runs, as one HTML page without a script.

use compare::metric::RELATIVE_L2;
use compare::units::bytes;

use super::document::Tone;
use super::html::{class, escape, fragment, head, put, tone, words};
use crate::judge::changes::{ChangedCell, Changes, Direction, apart};
use crate::judge::findings::Mark;
use crate::judge::gates::SLOW_DOWN_PERCENT;

const COLUMNS: [&str; 9] = [
    "Case",
    "Variant",
    "What changed",
    "Group",
    "Verdict",
    "Relative L2",
    "Error against float64",
    "Time (p50)",
    "Peak memory",
];

/// Renders the page. A row's link is `#case=…&cell=…`.
pub fn page(changes: &Changes) -> String {
    let [before, after] = &changes.runs;
    let mut page = head(&format!("tfcheck {before} → {after}"), None);
    put(
        &mut page,
        &format!(
            "<header>\n<h1>tfcheck <span class=\"id\">{} → {}</span></h1>\n",
            escape(before),
            escape(after)
        ),
    );
    summary(&mut page, changes);
    put(&mut page, "</header>\n");
    environment(&mut page, changes);
    put(&mut page, "<section>\n<h2>Variants</h2>\n");
    put(
        &mut page,
        &format!(
            "<p>What got worse comes first. A variant is worse if it left the group of the reference, fails, or rounds worse than the rule allows; its relative L2 is between its own logits of the two runs. A time is slower or faster if its median changed by more than {SLOW_DOWN_PERCENT} % and the 95 % interval leaves out no change; the two runs were not interleaved.</p>\n"
        ),
    );
    let (changed, same): (Vec<&ChangedCell>, Vec<&ChangedCell>) =
        changes.rows.iter().partition(|row| row.numbers != Direction::Same || row.time != Direction::Same);
    table(&mut page, &changed);
    if !same.is_empty() {
        put(
            &mut page,
            &format!("<details{}><summary>{} unchanged variants</summary>\n", open(&changed), same.len()),
        );
        table(&mut page, &same);
        put(&mut page, "</details>\n");
    }
    put(&mut page, "</section>\n");
    if !changes.notes.is_empty() {
        put(&mut page, "<section>\n<h2>Notes</h2>\n<ul>\n");
        for note in &changes.notes {
            put(&mut page, &format!("<li>{}</li>\n", escape(note)));
        }
        put(&mut page, "</ul>\n</section>\n");
    }
    put(&mut page, "</main>\n</body>\n</html>\n");
    page
}

/// The attribute of the fold with unchanged rows: it is open if no row changed.
fn open(changed: &[&ChangedCell]) -> &'static str {
    if changed.is_empty() { " open" } else { "" }
}

fn summary(page: &mut String, changes: &Changes) {
    let numbers = |is| changes.rows.iter().filter(|row| row.numbers == is).count();
    let time = |is| changes.rows.iter().filter(|row| row.time == is).count();
    let counts = [
        (numbers(Direction::Worse), "worse", Tone::Bad),
        (numbers(Direction::Better), "better", Tone::Good),
        (numbers(Direction::Other), "changed", Tone::Warn),
        (time(Direction::Worse), "slower", Tone::Bad),
        (time(Direction::Better), "faster", Tone::Good),
        (numbers(Direction::Same), "unchanged logits or rounding", Tone::Unknown),
    ];
    put(page, "<ul class=\"tally\" id=\"summary\">\n");
    for (count, word, tone) in counts {
        let tone = if count == 0 { Tone::Unknown } else { tone };
        put(page, &format!("<li class=\"{}\"><b>{count}</b> {word}</li>\n", class(tone)));
    }
    put(page, "</ul>\n");
}

fn environment(page: &mut String, changes: &Changes) {
    put(page, "<section>\n<h2>Environment</h2>\n");
    if changes.environment.is_empty() {
        put(
            page,
            "<p>Machine, threads and packages are the same, as far as both runs recorded them.</p>\n</section>\n",
        );
        return;
    }
    put(
        page,
        "<div class=\"scroll\"><table><thead><tr><th>What differs</th><th>Before</th><th>After</th></tr></thead>\n<tbody>\n",
    );
    for [name, before, after] in &changes.environment {
        put(
            page,
            &format!(
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td></tr>\n",
                escape(name),
                escape(before),
                escape(after)
            ),
        );
    }
    put(page, "</tbody></table></div>\n</section>\n");
}

fn table(page: &mut String, rows: &[&ChangedCell]) {
    if rows.is_empty() {
        return;
    }
    put(page, "<div class=\"scroll\"><table class=\"changes\"><thead><tr>");
    for column in COLUMNS {
        put(page, &format!("<th>{column}</th>"));
    }
    put(page, "</tr></thead>\n<tbody>\n");
    for row in rows {
        one(page, row);
    }
    put(page, "</tbody></table></div>\n");
}

fn one(page: &mut String, row: &ChangedCell) {
    let compared = &row.compared;
    let [then, now] = row.marks.each_ref().map(|mark| {
        let sign = if *mark == Mark::Reference { "f64".to_owned() } else { mark.text() };
        format!("<b class=\"{}\" title=\"{}\">{}</b>", class(tone(mark)), escape(&words(mark)), escape(&sign))
    });
    let error = |error: Option<f64>| error.map_or_else(|| "—".to_owned(), |error| RELATIVE_L2.written(error));
    let errors = match row.errors {
        [None, None] => "—".to_owned(),
        [then, now] => format!("{} → {}", error(then), error(now)),
    };
    let time = match (&compared.times, compared.change()) {
        (Ok(_), Some(change)) => change.text(),
        (Ok(_), None) => "not timed".to_owned(),
        (Err(why), _) => why.clone(),
    };
    let memory = match &compared.peak_bytes {
        Ok([then, now]) => format!("{} → {}", bytes(*then), bytes(*now)),
        Err(why) => why.clone(),
    };
    let link = format!("case={}&amp;cell={}", fragment(&compared.case), fragment(&compared.variant));
    let changed = [numbers_word(row.numbers), time_word(row.time)].into_iter().flatten().collect::<Vec<_>>();
    let kind = match (row.numbers, row.time) {
        (Direction::Worse, _) | (Direction::Same, Direction::Worse) => "worse",
        (Direction::Better, _) | (Direction::Same, Direction::Better) => "better",
        _ => "",
    };
    let notes = if compared.notes.is_empty() {
        String::new()
    } else {
        format!("<br><small>{}</small>", escape(&compared.notes.join("; ")))
    };
    put(
        page,
        &format!(
            "<tr class=\"{kind}\" id=\"case={}&amp;cell={}\"><td>{}</td><th scope=\"row\"><a href=\"#{link}\">{}</a></th><td>{}</td><td>{then} → {now}</td><td title=\"{}\">{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>{}{notes}</td><td>{}</td></tr>\n",
            escape(&compared.case),
            escape(&compared.variant),
            escape(&compared.case),
            escape(&compared.variant),
            if changed.is_empty() { "nothing".to_owned() } else { changed.join(", ") },
            escape(&compared.verdict.evidence),
            compared.verdict.decision.word(),
            escape(&apart(row)),
            errors,
            escape(&time),
            escape(&memory)
        ),
    );
}

fn numbers_word(direction: Direction) -> Option<&'static str> {
    match direction {
        Direction::Worse => Some("worse"),
        Direction::Other => Some("computes something else"),
        Direction::Better => Some("better"),
        Direction::Same => None,
    }
}

fn time_word(direction: Direction) -> Option<&'static str> {
    match direction {
        Direction::Worse => Some("slower"),
        Direction::Better => Some("faster"),
        Direction::Other | Direction::Same => None,
    }
}
