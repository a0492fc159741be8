//! The section of relations: the invariants that each variant keeps or breaks.

use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use crate::report::document::{Block, Cell, Content, Medium, Row, Table, Tone};
use crate::results::relations::{CellRelations, Held, Outcome};
use crate::spec::relations::RELATIONS;
use crate::spec::variant::Variant;

/// Most cells that a reason lists by name.
const MOST_NAMES: usize = 4;
/// Most relations that a table cell (per outcome) or a reason lists by name.
const MOST_RELATIONS: usize = 6;

pub(super) fn content(run: &RunView, _: &Judged, medium: Medium) -> Option<Content> {
    if run.relations.is_empty() {
        return None;
    }
    let mut blocks = vec![Block::Table(overall(run))];
    if medium == Medium::Terminal || medium == Medium::Step {
        return Some(Content::titled("Relations", blocks));
    }
    blocks.push(Block::text(
        "A relation is an invariant of one variant by itself (docs/relations.md). `holds` counts the relations that hold bit for bit or up to rounding; broken ones are listed by name. `unproven`: above what rounding explains in its dtype, but there is no float64 result or the variant does not repeat itself; `—`: nothing was measured.",
    ));
    for case in cases(run) {
        blocks.push(Block::Heading(format!("Relations of {case}")));
        blocks.push(Block::Table(of_case(run, case)));
    }
    let reasons = reasons(run);
    if !reasons.is_empty() {
        blocks
            .push(Block::Heading("Relations that were not measured, and broken or unproven ones".to_owned()));
        blocks.push(Block::list(reasons));
    }
    Some(Content::titled("Relations", blocks))
}

fn cases(run: &RunView) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for found in &run.relations {
        if !names.contains(&found.case.as_str()) {
            names.push(&found.case);
        }
    }
    names
}

fn variants(run: &RunView) -> Vec<&Variant> {
    let mut variants: Vec<&Variant> = Vec::new();
    for found in &run.relations {
        if !variants.contains(&&found.variant) {
            variants.push(&found.variant);
        }
    }
    variants
}

fn of<'a>(run: &'a RunView, case: &str, variant: &Variant) -> Option<&'a CellRelations> {
    run.relations.iter().find(|found| found.case == case && found.variant == *variant)
}

fn columns(first: &str, run: &RunView) -> Vec<String> {
    std::iter::once(first.to_owned()).chain(variants(run).iter().map(|variant| variant.name())).collect()
}

/// Table with a row per case and a column per variant.
fn overall(run: &RunView) -> Table {
    let row = |case: &str| -> Row {
        let cells = variants(run)
            .into_iter()
            .map(|variant| of(run, case, variant).map_or_else(Cell::default, summary));
        std::iter::once(Cell::from(case)).chain(cells).collect()
    };
    Table::new(columns("Case", run), cases(run).into_iter().map(row).collect::<Vec<_>>())
}

/// `holds 12`, and the relations that are broken, unproven or failed; `—` if nothing was measured.
fn summary(found: &CellRelations) -> Cell {
    let named = |outcome: Outcome| -> Vec<&str> {
        let is_it = |held: &&Held| held.outcome == outcome;
        found.relations.iter().filter(is_it).map(|held| held.relation.as_str()).collect()
    };
    let holds = named(Outcome::Bitwise).len() + named(Outcome::Rounding).len();
    let mut words = Vec::new();
    for outcome in [Outcome::Broken, Outcome::Unproven, Outcome::Failed] {
        let names = named(outcome);
        if names.len() > MOST_RELATIONS {
            words.push(format!("{}: {} relations", outcome.word(), names.len()));
        } else if !names.is_empty() {
            words.push(format!("{}: {}", outcome.word(), names.join(", ")));
        }
    }
    let tone = if !named(Outcome::Broken).is_empty() {
        Tone::Bad
    } else if !words.is_empty() {
        Tone::Warn
    } else if holds > 0 {
        Tone::Good
    } else {
        Tone::Unknown
    };
    if holds > 0 {
        words.insert(0, format!("holds {holds}"));
    }
    if words.is_empty() {
        words.push("—".to_owned());
    }
    Cell::toned(words.join("; "), tone)
}

/// Table of one case with a row per relation and a column per variant.
fn of_case(run: &RunView, case: &str) -> Table {
    let row = |name: &str| -> Row {
        let cells = variants(run).into_iter().map(|variant| {
            of(run, case, variant).and_then(|found| found.of(name)).map_or_else(Cell::default, cell)
        });
        std::iter::once(Cell::from(name)).chain(cells).collect()
    };
    let is_known =
        |name: &str| run.relations.iter().any(|found| found.case == case && found.of(name).is_some());
    let rows = RELATIONS.iter().filter(|relation| is_known(relation.name)).map(|relation| row(relation.name));
    Table { folded: Some("relations"), ..Table::new(columns("Relation", run), rows.collect::<Vec<_>>()) }
}

fn cell(held: &Held) -> Cell {
    let number = held.measured.as_ref().map(|measured| format!("{:.1e}", measured.relative_l2));
    let number = number.unwrap_or_default();
    match held.outcome {
        Outcome::Bitwise => Cell::toned("bitwise", Tone::Good),
        Outcome::Rounding => Cell { hover: held.evidence.clone(), ..Cell::toned(number, Tone::Good) },
        Outcome::Broken => {
            Cell { hover: held.evidence.clone(), ..Cell::toned(format!("broken {number}"), Tone::Bad) }
        }
        Outcome::Unproven => {
            Cell { hover: held.evidence.clone(), ..Cell::toned(format!("unproven {number}"), Tone::Warn) }
        }
        Outcome::Failed => Cell { hover: held.evidence.clone(), ..Cell::toned("failed", Tone::Warn) },
        Outcome::Unsupported | Outcome::Excluded => {
            Cell { hover: held.evidence.clone(), is_absent: true, ..Cell::toned("—", Tone::Unknown) }
        }
    }
}

/// An outcome with its evidence, and the relations and cells that have both.
struct Reason<'a> {
    held: &'a Held,
    relations: Vec<&'a str>,
    cells: Vec<String>,
}

/// Each distinct reason with its relations and cells. Relations that hold or do not apply to the model are left out.
fn reasons(run: &RunView) -> Vec<String> {
    let mut found: Vec<Reason> = Vec::new();
    for record in &run.relations {
        for held in &record.relations {
            if matches!(held.outcome, Outcome::Bitwise | Outcome::Rounding | Outcome::Excluded) {
                continue;
            }
            let cell = format!("{}/{}", record.case, record.variant.name());
            let is_same = |known: &&mut Reason| {
                (known.held.outcome, &known.held.evidence) == (held.outcome, &held.evidence)
            };
            let at = found.iter_mut().find(is_same);
            match at {
                Some(known) => {
                    if !known.relations.contains(&held.relation.as_str()) {
                        known.relations.push(&held.relation);
                    }
                    if !known.cells.contains(&cell) {
                        known.cells.push(cell);
                    }
                }
                None => found.push(Reason { held, relations: vec![&held.relation], cells: vec![cell] }),
            }
        }
    }
    found.sort_by_key(|reason| reason.held.outcome);
    found.iter().map(Reason::told).collect()
}

impl Reason<'_> {
    fn told(&self) -> String {
        let Self { held, relations, cells } = self;
        let more = cells.len().saturating_sub(MOST_NAMES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let cells = cells.iter().take(MOST_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
        let relations = if relations.len() > MOST_RELATIONS {
            format!("{} relations", relations.len())
        } else {
            relations.join(", ")
        };
        let place = held.first_module.as_ref().map(|module| {
            format!("; first at {} ({}, {:.1e})", module.path, module.class, module.relative_l2)
        });
        let place = place.unwrap_or_default();
        format!("{relations} {}: {}{place} ({cells}{more})", held.outcome.word(), held.evidence)
    }
}
