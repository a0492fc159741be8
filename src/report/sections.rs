//! The sections of a report on a run and on each of its cases, in order, for every format that people read.
//!
//! To add a section, write its file and add a row to [`SECTIONS`].

#![expect(clippy::unnecessary_wraps, reason = "a section may have nothing to show, and some always have")]

mod accuracies;
mod against;
mod case_notes;
mod choices;
mod decoding;
mod diagnosis;
mod differences;
mod embeddings;
mod environment;
mod failures;
mod findings;
mod first_divergence;
mod gates;
mod groups;
mod noise;
mod notes;
mod outputs;
mod pairs;
mod performance;
mod preflight;
mod relations;
mod relative;
mod speed;
mod sweep;
mod verdicts;

use super::Source;
use super::document::{Content, Medium};
use crate::judge::findings::{CaseGroups, Findings};
use crate::judge::gates::Judged;
use crate::judge::view::{CaseView, RunView};
use Medium::{Page, Step, Summary, Terminal};
pub(super) use against::row as change_row;
pub(super) use differences::heat;

/// The subject of a section and the function that builds it, which returns `None` if there is nothing to show.
enum Of {
    Run(fn(&RunView, &Judged, Medium) -> Option<Content>),
    Case(fn(&CaseView, Medium) -> Option<Content>),
    /// The findings of the run.
    Findings(fn(&RunView, &Findings, Medium) -> Option<Content>),
    /// The groups of each case.
    Groups(fn(&CaseView, &CaseGroups, Medium) -> Option<Content>),
}

struct Section {
    of: Of,
    media: &'static [Medium],
    /// Whether the section decides the result; a terminal shows such sections last.
    decides: bool,
    /// Whether the section is background information; a page shows such sections last.
    is_background: bool,
}

impl Section {
    /// Sort key on a page: findings, then sections that decide the result, then the others; cases precede [`BACKGROUND`].
    fn on_page(&self) -> u8 {
        match self.of {
            _ if self.is_background => BACKGROUND,
            Of::Findings(_) => 0,
            _ if self.decides => 1,
            _ => 2,
        }
    }
}

const BACKGROUND: u8 = 3;

/// A section of the run.
const fn run(content: fn(&RunView, &Judged, Medium) -> Option<Content>, media: &'static [Medium]) -> Section {
    Section { of: Of::Run(content), media, decides: false, is_background: false }
}

/// A section of each case.
const fn case(content: fn(&CaseView, Medium) -> Option<Content>, media: &'static [Medium]) -> Section {
    Section { of: Of::Case(content), media, decides: false, is_background: false }
}

/// A section of the run's findings, shown in files only.
const fn findings(content: fn(&RunView, &Findings, Medium) -> Option<Content>) -> Section {
    Section { of: Of::Findings(content), media: FILES, decides: false, is_background: false }
}

/// A section of the groups of each case, shown in files only.
const fn groups(content: fn(&CaseView, &CaseGroups, Medium) -> Option<Content>) -> Section {
    Section { of: Of::Groups(content), media: FILES, decides: false, is_background: false }
}

const FILES: &[Medium] = &[Summary, Page];
const EVERYWHERE: &[Medium] = &[Summary, Page, Terminal];
const STEP_TOO: &[Medium] = &[Summary, Page, Terminal, Step];

/// All sections.
const SECTIONS: &[Section] = &[
    Section { is_background: true, ..run(environment::content, FILES) },
    Section { decides: true, ..run(gates::content, STEP_TOO) },
    Section { decides: true, ..run(against::content, STEP_TOO) },
    findings(findings::of_several_cases),
    // The summary lists the speeds in each case's section.
    run(speed::content, &[Page]),
    run(sweep::content, EVERYWHERE),
    case(performance::content, STEP_TOO),
    case(decoding::content, EVERYWHERE),
    case(differences::content, EVERYWHERE),
    groups(groups::content),
    // The page shows both in the colours and tooltips of the differences.
    case(noise::content, &[Summary]),
    case(relative::content, &[Summary]),
    case(verdicts::content, EVERYWHERE),
    case(pairs::content, FILES),
    case(first_divergence::content, EVERYWHERE),
    case(diagnosis::content, EVERYWHERE),
    case(accuracies::content, FILES),
    case(outputs::content, FILES),
    case(embeddings::content, FILES),
    case(choices::content, FILES),
    case(failures::content, FILES),
    case(case_notes::content, FILES),
    findings(findings::of_one_case),
    run(relations::content, STEP_TOO),
    Section { is_background: true, ..run(preflight::content, EVERYWHERE) },
    Section { is_background: true, ..run(notes::content, EVERYWHERE) },
];

/// A part of a document.
pub(super) enum Part<'a> {
    Run(Content),
    Case(&'a CaseView, Vec<Content>),
}

/// Builds the document for a format: a terminal shows the sections that decide the result last, a page sorts by
/// [`Section::on_page`], the other formats keep the order of [`SECTIONS`].
pub(super) fn document<'a>(source: &Source<'a>, medium: Medium) -> Vec<Part<'a>> {
    let Source { run, found, judged, .. } = *source;
    let cases = || {
        run.cases.iter().zip(&found.cases).map(|(case, groups)| {
            let of_case = |section: &Section| match section.of {
                Of::Case(content) if section.media.contains(&medium) => content(case, medium),
                Of::Groups(content) if section.media.contains(&medium) => content(case, groups, medium),
                _ => None,
            };
            Part::Case(case, SECTIONS.iter().filter_map(of_case).collect())
        })
    };
    let of_run = |section: &Section| match section.of {
        Of::Run(content) if section.media.contains(&medium) => content(run, judged, medium).map(Part::Run),
        Of::Findings(content) if section.media.contains(&medium) => {
            content(run, found, medium).map(Part::Run)
        }
        _ => None,
    };
    if medium == Terminal {
        let rest = SECTIONS.iter().filter(|section| !section.decides).filter_map(of_run);
        let deciding = SECTIONS.iter().rev().filter(|section| section.decides).filter_map(of_run);
        return cases().chain(rest).chain(deciding).collect();
    }
    if medium == Page {
        let mut order: Vec<&Section> = SECTIONS.iter().collect();
        order.sort_by_key(|section| section.on_page());
        let (told, looked_up) =
            order.split_at(order.partition_point(|section| section.on_page() < BACKGROUND));
        let parts = |sections: &[&Section]| sections.iter().copied().filter_map(of_run).collect::<Vec<_>>();
        return parts(told).into_iter().chain(cases()).chain(parts(looked_up)).collect();
    }
    let first_case = SECTIONS.iter().position(|section| matches!(section.of, Of::Case(_) | Of::Groups(_)));
    let (before, after) = SECTIONS.split_at(first_case.unwrap_or(SECTIONS.len()));
    before.iter().filter_map(of_run).chain(cases()).chain(after.iter().filter_map(of_run)).collect()
}
