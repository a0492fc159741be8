//! The findings of a run: per case the groups of variants that compute the same function, and each distinct finding
//! once, with the cases that it applies to.

mod beside;
mod relations;
mod subject;

use std::collections::BTreeMap;

use compare::evidence::optional;
use compare::groups::{Group, Groups, Relation, groups};
use compare::metric::RELATIVE_L2;
use compare::metrics;
use compare::verdict::{Decision, Verdict};
use serde::Serialize;

pub use subject::{subject, version};

use super::view::{CaseView, RunView};
use crate::execute::cell::{Cell, Outcome};
use crate::results::diagnosed::Diagnosed;
use crate::results::localized::{self, Localized};

/// The groups of every case, and the findings across them.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// One per case of the run, in its order.
    pub cases: Vec<CaseGroups>,
    /// Divergences first, then other findings on numbers, then failures.
    pub findings: Vec<Finding>,
}

/// The variants of one case in groups.
#[derive(Clone, Debug, Default)]
pub struct CaseGroups {
    /// Index of the variant that leads group A: the baseline, or its replacement; `None` if nothing ran.
    pub reference: Option<usize>,
    /// The partition of the cells that have logits, without float64 references.
    pub groups: Groups,
    /// The letter of each group: A for the first, then one per leader, the same in every case of the run.
    pub letters: Vec<String>,
    /// One per cell.
    pub marks: Vec<Mark>,
}

/// The grid's mark of a cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A member of a group.
    Member {
        /// The group's letter.
        letter: String,
        /// Whether its rounding error is larger than the rule allows, compared with another member of its group.
        rounds_worse: bool,
    },
    /// A float64 reference, which is evidence and not a variant under test.
    Reference,
    /// The cell failed.
    Failed,
    /// The runner does not support it.
    Unsupported,
    /// The run ended before the cell started.
    NotStarted,
}

impl Mark {
    /// Whether it is a member of group A that rounds as well as it should.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Member { letter, rounds_worse: false } if letter == "A")
    }

    /// Whether it is a member whose rounding error is larger than the rule allows.
    pub fn rounds_worse(&self) -> bool {
        matches!(self, Self::Member { rounds_worse: true, .. })
    }

    /// `A`, `B~`, `!`, `-`, `·`; empty for a reference.
    pub fn text(&self) -> String {
        match self {
            Self::Member { letter, rounds_worse: false } => letter.clone(),
            Self::Member { letter, rounds_worse: true } => format!("{letter}~"),
            Self::Reference => String::new(),
            Self::Failed => "!".to_owned(),
            Self::Unsupported => "-".to_owned(),
            Self::NotStarted => "·".to_owned(),
        }
    }
}

/// A finding, reported once for all cases that it applies to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The kind of finding and its details.
    #[serde(flatten)]
    pub what: What,
    /// The affected variants.
    pub variants: Vec<String>,
    /// The variants in short: `4.40.2 (eager, sdpa)`.
    pub subject: String,
    /// The cases that it applies to.
    pub cases: Vec<String>,
}

/// Kinds of finding.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum What {
    /// A group that computes another function than group A.
    Diverges {
        /// The group's letter.
        letter: String,
        /// Largest relative L2 over the cases between its leader and group A's; `None` if they cannot be compared.
        #[serde(serialize_with = "optional")]
        relative_l2: Option<f64>,
        /// Why they cannot be compared.
        incomparable: Option<String>,
        /// The first diverging module, or the feature that the localisation reports, such as `torch.compile`.
        place: Option<String>,
        /// The localisation in one sentence.
        localized: Option<String>,
        /// The diagnosis in one sentence: what the group computes instead.
        diagnosis: Option<String>,
    },
    /// Members of a group whose rounding error is larger than the rule allows.
    RoundsWorse {
        /// The evidence, of one pair.
        evidence: String,
    },
    /// Agreement is not transitive in these variants.
    Chain {
        /// The pair, and how its verdict contradicts the groups.
        sentence: String,
    },
    /// A relation that variants break by themselves.
    Relation {
        /// Its name.
        relation: String,
        /// On what that rests, of the variant that differs most.
        evidence: String,
        /// The first module whose output differs.
        place: Option<String>,
    },
    /// A variant through its KV cache beside its own full-sequence pass.
    Cache {
        /// The evidence.
        evidence: String,
        /// The first diverging module.
        place: Option<String>,
    },
    /// An output beside the main one that differs, of variants whose main output does not.
    Output {
        /// Its name.
        output: String,
        /// The letter of the group, whose main output they have.
        letter: String,
        /// Largest relative L2 over the cases.
        #[serde(serialize_with = "optional")]
        relative_l2: Option<f64>,
    },
    /// Cells that failed.
    Failed {
        /// The reason.
        reason: String,
    },
    /// Cells that a runner does not support.
    Unsupported {
        /// The reason.
        reason: String,
    },
}

impl Findings {
    /// Each cell of the run by name, with its mark in every case (`None` if the case lacks it). Cells that are
    /// float64 references in all cases are left out.
    pub fn grid<'a>(&'a self, run: &'a RunView) -> Vec<(&'a Cell, Vec<Option<&'a Mark>>)> {
        let mut rows: Vec<(&Cell, Vec<Option<&Mark>>)> = Vec::new();
        for (at, (case, groups)) in run.cases.iter().zip(&self.cases).enumerate() {
            for (cell, mark) in case.cells.iter().zip(&groups.marks) {
                let known = rows.iter().position(|(known, _)| known.name == cell.name);
                let row = known.unwrap_or_else(|| {
                    rows.push((cell, vec![None; run.cases.len()]));
                    rows.len() - 1
                });
                rows[row].1[at] = Some(mark);
            }
        }
        rows.retain(|(_, marks)| marks.iter().flatten().any(|mark| **mark != Mark::Reference));
        rows
    }
}

/// Groups the variants of every case and collects the findings.
pub fn findings(run: &RunView) -> Findings {
    let mut letters = Letters::default();
    let mut found = Findings::default();
    for case in &run.cases {
        let groups = group_case(case, &mut letters);
        divergences(case, &groups, &mut found.findings);
        found.cases.push(groups);
    }
    for (case, groups) in run.cases.iter().zip(&found.cases) {
        rounding(case, groups, &mut found.findings);
        chains(case, groups, &mut found.findings);
        beside::caches(case, &mut found.findings);
        beside::outputs(case, groups, &mut found.findings);
    }
    relations::add(&run.relations, &mut found.findings);
    for case in &run.cases {
        failures(case, &mut found.findings);
    }
    found
}

/// Letters of groups by the names of their leaders.
#[derive(Default)]
struct Letters {
    leaders: Vec<String>,
}

impl Letters {
    /// The letter of a group that is not group A.
    fn of(&mut self, leader: &str) -> String {
        let at = self.leaders.iter().position(|known| known == leader).unwrap_or_else(|| {
            self.leaders.push(leader.to_owned());
            self.leaders.len() - 1
        });
        letter(at + 1)
    }
}

/// A, B, …, Z, AA, AB, …
fn letter(index: usize) -> String {
    let last = char::from(b'A' + (index % 26) as u8);
    if index < 26 { last.to_string() } else { format!("{}{last}", letter(index / 26 - 1)) }
}

/// The groups of one case by itself.
pub fn case_groups(case: &CaseView) -> CaseGroups {
    group_case(case, &mut Letters::default())
}

fn group_case(case: &CaseView, letters: &mut Letters) -> CaseGroups {
    let reference = case.reference();
    let mut order: Vec<usize> = (0..case.cells.len()).filter(|&index| case.is_member(index)).collect();
    order.sort_by_key(|&index| Some(index) != reference);
    let verdicts: BTreeMap<(&str, &str), &Decision> =
        case.verdicts.iter().map(|verdict| ((&*verdict.a, &*verdict.b), &verdict.decision)).collect();
    let decision = |a: usize, b: usize| {
        let (a, b) = (case.cells[a].name.as_str(), case.cells[b].name.as_str());
        verdicts.get(&(a, b)).or_else(|| verdicts.get(&(b, a))).copied()
    };
    let relation = |a: usize, b: usize| match decision(a, b) {
        Some(Decision::Identical | Decision::SameMathematics | Decision::WorseRounding { .. }) => {
            Relation::Same
        }
        _ => Relation::Different,
    };
    // Logits that fit no other ones, such as those of another shape than the inputs, are groups of their own: they did not fail.
    let members = order.clone();
    order.extend((0..case.cells.len()).filter(|&index| {
        let is_incomparable =
            |&member: &usize| matches!(decision(index, member), Some(Decision::Incomparable { .. }));
        !members.contains(&index) && !case.is_evidence(index) && members.iter().any(is_incomparable)
    }));
    let groups = groups(&order, relation);
    let letters: Vec<String> = groups
        .groups
        .iter()
        .enumerate()
        .map(|(at, group)| if at == 0 { letter(0) } else { letters.of(&case.cells[group.leader].name) })
        .collect();
    let rounds_worse = |index: usize| {
        let Some(own) = groups.of(index) else { return false };
        groups.groups[own].members.iter().any(|&other| {
            matches!(decision(index, other), Some(Decision::WorseRounding { worse }) if *worse == case.cells[index].name)
        })
    };
    let mark = |(index, cell): (usize, &Cell)| match (groups.of(index), &cell.outcome) {
        (Some(group), _) => {
            Mark::Member { letter: letters[group].clone(), rounds_worse: rounds_worse(index) }
        }
        _ if case.is_evidence(index) => Mark::Reference,
        (None, Outcome::Unsupported { .. }) => Mark::Unsupported,
        _ if cell.is_not_started() => Mark::NotStarted,
        (None, _) => Mark::Failed,
    };
    let marks = case.cells.iter().enumerate().map(mark).collect();
    CaseGroups { reference, groups, letters, marks }
}

fn divergences(case: &CaseView, found: &CaseGroups, findings: &mut Vec<Finding>) {
    let Some(first) = found.groups.groups.first() else { return };
    for (group, letter) in found.groups.groups.iter().zip(&found.letters).skip(1) {
        let pair = case.matrix.compared(first.leader, group.leader);
        let relative_l2 = pair.and_then(|pair| RELATIVE_L2.of(pair));
        let incomparable =
            verdict(case, first.leader, group.leader).and_then(|verdict| match &verdict.decision {
                Decision::Incomparable { reason } => Some(reason.clone()),
                _ => None,
            });
        let localized = localized(case, first, group);
        let place = localized.and_then(place);
        // Beside a module, the part of the network that surgery finds adds nothing.
        let diagnosis = diagnosis(case, group)
            .filter(|diagnosed| place.is_none() || !diagnosed.mistakes().is_empty())
            .map(|diagnosed| diagnosed.sentence.clone());
        let what = What::Diverges {
            letter: letter.clone(),
            relative_l2,
            incomparable,
            place,
            localized: localized.map(|found| found.sentence.clone()),
            diagnosis,
        };
        add(findings, case, &group.members, what);
    }
}

/// The localisation of a pair of a member of group A and a member of `group`.
fn localized<'a>(case: &'a CaseView, first: &Group, group: &Group) -> Option<&'a Localized> {
    let is_in =
        |name: &str, group: &Group| group.members.iter().any(|&member| case.cells[member].name == name);
    let is_of = |found: &&Localized| {
        is_in(&found.a, first) && is_in(&found.b, group) || is_in(&found.b, first) && is_in(&found.a, group)
    };
    case.localized.iter().filter(is_of).max_by_key(|found| found.path().is_some())
}

/// The diagnosis of a member of `group`.
fn diagnosis<'a>(case: &'a CaseView, group: &Group) -> Option<&'a Diagnosed> {
    let is_member = |found: &&Diagnosed| {
        group
            .members
            .iter()
            .any(|&member| [&found.trusted, &found.suspect].contains(&&case.cells[member].name))
            && found.is_divergence()
    };
    case.diagnosed.iter().find(is_member)
}

/// The place that a localisation reports: the first diverging module, or an argument that a module's own code computes, or
/// `torch.compile` or the attention.
fn place(found: &Localized) -> Option<String> {
    match &found.finding {
        localized::Finding::Module(divergence) => Some(match divergence.arguments.first() {
            Some(argument) if !divergence.is_given() => {
                format!("{argument}, computed by {}", divergence.path)
            }
            _ => divergence.path.clone(),
        }),
        localized::Finding::Execution { what, at: Some(at), .. } => Some(format!("{what} of {at}")),
        localized::Finding::Execution { what, at: None, .. } => Some(what.clone()),
        localized::Finding::Logits { .. }
        | localized::Finding::Spread { .. }
        | localized::Finding::Nothing => None,
    }
}

fn verdict(case: &CaseView, a: usize, b: usize) -> Option<&Verdict> {
    case.verdict(&case.cells[a].name, &case.cells[b].name)
}

fn rounding(case: &CaseView, found: &CaseGroups, findings: &mut Vec<Finding>) {
    let worse: Vec<usize> =
        (0..found.marks.len()).filter(|&index| found.marks[index].rounds_worse()).collect();
    for index in worse {
        let name = &case.cells[index].name;
        let is_it = |verdict: &&Verdict| matches!(&verdict.decision, Decision::WorseRounding { worse } if worse == name);
        let evidence = case.verdicts.iter().find(is_it).map(|verdict| verdict.evidence.clone());
        add(findings, case, &[index], What::RoundsWorse { evidence: evidence.unwrap_or_default() });
    }
}

fn chains(case: &CaseView, found: &CaseGroups, findings: &mut Vec<Finding>) {
    for chain in &found.groups.chains {
        let [a, b] = [chain.a, chain.b].map(|index| &case.cells[index].name);
        let letter = |index: usize| found.groups.of(index).map_or("", |group| &found.letters[group]);
        let sentence = match chain.relation {
            Relation::Same => format!(
                "{a} (group {}) and {b} (group {}) agree, though their groups do not",
                letter(chain.a),
                letter(chain.b)
            ),
            Relation::Different => format!(
                "{a} and {b} both agree with the leader of group {}, but not with each other",
                letter(chain.a)
            ),
        };
        add(findings, case, &[chain.a, chain.b], What::Chain { sentence });
    }
}

fn failures(case: &CaseView, findings: &mut Vec<Finding>) {
    let has_no_logits = |index: usize| case.matrix.compared(index, index).is_none();
    for (index, cell) in case.cells.iter().enumerate() {
        // A float64 reference that fails like another variant of its version is not a separate finding.
        let is_alike = |other: usize| {
            !case.is_evidence(other) && version(&case.cells[other]) == version(cell) && has_no_logits(other)
        };
        if case.is_evidence(index) && (0..case.cells.len()).any(is_alike) {
            continue;
        }
        let what = match &cell.outcome {
            _ if cell.is_not_started() => continue,
            Outcome::Completed(completed) => match &completed.unfinished {
                Some(failure) => What::Failed { reason: format!("not timed: {}", failure.reason) },
                None => continue,
            },
            Outcome::Unsupported { reason } => What::Unsupported { reason: reason.clone() },
            Outcome::Failed(failure) => {
                What::Failed { reason: format!("{}: {}", failure.kind.words(), failure.reason) }
            }
        };
        add(findings, case, &[index], what);
    }
}

/// Adds a finding of a case; equal findings of other cases or other variants are merged.
fn add(findings: &mut Vec<Finding>, case: &CaseView, members: &[usize], what: What) {
    let variants: Vec<String> = members.iter().map(|&member| case.cells[member].name.clone()).collect();
    let known = findings.iter_mut().find(|known| match (&known.what, &what) {
        (
            What::Diverges { letter: a, place: at, incomparable: why, .. },
            What::Diverges { letter: b, place, incomparable, .. },
        ) => (a, at, why, &known.variants) == (b, place, incomparable, &variants),
        (What::RoundsWorse { .. }, What::RoundsWorse { .. }) => known.variants == variants,
        (What::Cache { place: at, .. }, What::Cache { place, .. }) => at == place,
        (What::Output { output: a, letter: of, .. }, What::Output { output: b, letter, .. }) => {
            (a, of) == (b, letter)
        }
        (What::Chain { sentence: a }, What::Chain { sentence: b })
        | (What::Failed { reason: a }, What::Failed { reason: b })
        | (What::Unsupported { reason: a }, What::Unsupported { reason: b }) => a == b,
        _ => false,
    });
    let Some(known) = known else {
        let subject = subject(members.iter().map(|&member| &case.cells[member]));
        findings.push(Finding { what, variants, subject, cases: vec![case.name.clone()] });
        return;
    };
    if !known.cases.contains(&case.name) {
        known.cases.push(case.name.clone());
    }
    if let (
        What::Diverges { relative_l2: most, localized: sentence, diagnosis: known_diagnosis, .. },
        What::Diverges { relative_l2, localized, diagnosis, .. },
    ) = (&mut known.what, what)
    {
        *most = metrics::largest([*most, relative_l2].into_iter().flatten());
        *sentence = sentence.take().or(localized);
        *known_diagnosis = known_diagnosis.take().or(diagnosis);
    }
    if variants.iter().any(|name| !known.variants.contains(name)) {
        let known_before = known.variants.clone();
        known.variants.extend(variants.into_iter().filter(|name| !known_before.contains(name)));
        let is_known = |cell: &&Cell| known.variants.contains(&cell.name);
        known.subject = subject(case.cells.iter().filter(is_known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_continue_with_aa_after_z() {
        assert_eq!([0, 1, 25, 26, 27, 52].map(letter), ["A", "B", "Z", "AA", "AB", "BA"]);
    }
}
