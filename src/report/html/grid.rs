//! The grid of variants × cases; each cell links to its case. Cases are rows if they outnumber the variants.

use super::{class, escape, fragment, put};
use crate::judge::findings::{Findings, Mark};
use crate::judge::view::RunView;
use crate::report::document::Tone;

/// The tone of a mark.
pub(in crate::report) fn tone(mark: &Mark) -> Tone {
    match mark {
        Mark::Member { letter, rounds_worse: false } if letter == "A" => Tone::Good,
        Mark::Member { letter, .. } if letter == "A" => Tone::Warn,
        Mark::Member { .. } | Mark::Failed => Tone::Bad,
        Mark::Reference | Mark::Unsupported | Mark::NotStarted => Tone::Unknown,
    }
}

/// The meaning of a mark in words.
pub(in crate::report) fn words(mark: &Mark) -> String {
    match mark {
        Mark::Member { letter, rounds_worse } => {
            let worse = if *rounds_worse { ", rounds worse than the rule allows" } else { "" };
            format!("group {letter}{worse}")
        }
        Mark::Reference => "float64 reference".to_owned(),
        Mark::Failed => "failed".to_owned(),
        Mark::Unsupported => "not supported".to_owned(),
        Mark::NotStarted => "not started".to_owned(),
    }
}

/// Writes the grid; writes nothing for a run without variants.
pub(super) fn grid(page: &mut String, run: &RunView, found: &Findings) {
    let rows = found.grid(run);
    if rows.is_empty() {
        return;
    }
    let variants: Vec<&str> = rows.iter().map(|(cell, _)| cell.name.as_str()).collect();
    let cases: Vec<&str> = run.cases.iter().map(|case| case.name.as_str()).collect();
    let is_case_down = cases.len() > variants.len();
    let (down, across) = if is_case_down { (&cases, &variants) } else { (&variants, &cases) };
    let corner = if is_case_down { "case" } else { "variant" };
    put(page, "<section id=\"grid\">\n<h2>Variants × cases</h2>\n");
    put(
        page,
        "<p>Variants with the same letter in a case compute the same; A holds the reference. <b class=\"warn\">~</b> rounds worse, <b class=\"bad\">!</b> failed, <b>-</b> not supported, <b>·</b> not started. A cell leads to its case; arrow keys move between cells.</p>\n",
    );
    put(
        page,
        "<p class=\"controls\" hidden><label><input type=\"checkbox\" id=\"differences\"> only rows with differences</label></p>\n",
    );
    put(page, &format!("<div class=\"scroll tall\"><table class=\"grid\">\n<thead><tr><th>{corner}</th>"));
    for name in across {
        put(page, &format!("<th scope=\"col\"><span>{}</span></th>", escape(name)));
    }
    put(page, "</tr></thead>\n<tbody>\n");
    for (at, name) in down.iter().enumerate() {
        let mark = |other: usize| {
            let (variant, case) = if is_case_down { (other, at) } else { (at, other) };
            (variants[variant], cases[case], rows[variant].1[case])
        };
        let is_plain = (0..across.len()).all(|other| mark(other).2.is_none_or(Mark::is_plain));
        let head = if is_case_down {
            format!("<a href=\"#case={}\">{}</a>", fragment(name), escape(name))
        } else {
            escape(name)
        };
        let plain = if is_plain { " class=\"plain\"" } else { "" };
        put(page, &format!("<tr{plain}><th scope=\"row\">{head}</th>"));
        for other in 0..across.len() {
            let (variant, case, mark) = mark(other);
            match mark {
                None => put(page, "<td></td>"),
                Some(mark) => put(
                    page,
                    &format!(
                        "<td class=\"{}\"><a href=\"#case={}&amp;cell={}\" title=\"{} in {}: {}\">{}</a></td>",
                        class(tone(mark)),
                        fragment(case),
                        fragment(variant),
                        escape(variant),
                        escape(case),
                        escape(&words(mark)),
                        escape(
                            match mark {
                                Mark::Reference => "f64".to_owned(),
                                mark => mark.text(),
                            }
                            .as_str()
                        )
                    ),
                ),
            }
        }
        put(page, "</tr>\n");
    }
    put(page, "</tbody></table></div>\n</section>\n");
}
