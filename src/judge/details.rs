//! Data of `report.html` that a run's view lacks: the texts of tokens, and details of the most important pairs.
//!
//! These pairs are each variant with the reference of its case, and the leaders of groups with each other.

use std::collections::{BTreeMap, BTreeSet};

use compare::details::{PairDetails, details};
use compare::matrix::Entry;
use miette::{Result, miette};

use super::assess::{entry, mask};
use super::findings::{CaseGroups, Findings};
use super::view::{CaseView, RunView};
use crate::results::{Manifest, RunFolder};
use crate::spec::inputs::{self, Inputs};

/// Data of `report.html` that a run's view lacks.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// Path of the run folder, as used in commands.
    pub run: String,
    /// One entry per case, in the order of the view.
    pub cases: Vec<CaseDetails>,
}

/// Data of one case that its view lacks.
#[derive(Clone, Debug, Default)]
pub struct CaseDetails {
    /// The inputs with the text of each token; `None` if the files cannot be read.
    pub inputs: Option<Inputs>,
    /// The text of each predicted token id in `pairs`; ids that the vocabulary lacks are left out.
    pub predicted: BTreeMap<u32, String>,
    /// Details of the most important pairs, in order of importance.
    pub pairs: Vec<PairDetails>,
}

/// Computes the details of each case's most important pairs.
///
/// # Errors
/// The input mask or the logits of a case cannot be read.
pub fn of_run(folder: &RunFolder, manifest: &Manifest, run: &RunView, found: &Findings) -> Result<Details> {
    let mut cases = Vec::new();
    let mut vocabularies: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((case, groups), planned) in run.cases.iter().zip(&found.cases).zip(&manifest.cases) {
        let files = folder.case_folder(manifest, &case.name);
        let entries: Vec<Entry> = case.cells.iter().map(|cell| entry(cell, &files)).collect();
        let mask = mask(&files, &case.cells)?;
        let pairs = details(&entries, mask.as_ref(), &case.matrix, &wanted(case, groups))
            .map_err(|error| miette!("{error}"))?;
        let digest = planned.checkpoint_digest.as_str();
        let vocabulary = vocabularies.entry(digest).or_insert_with(|| folder.vocabulary(digest));
        let ids = pairs.iter().flat_map(|pair| &pair.worst).flat_map(|worst| worst.top.iter().flatten());
        let predicted = ids
            .filter_map(|found| Some((found.token, vocabulary.get(found.token as usize)?.clone())))
            .filter(|(_, text)| !text.is_empty())
            .collect();
        cases.push(CaseDetails { inputs: inputs::load(&files).ok(), predicted, pairs });
    }
    Ok(Details { run: folder.path().display().to_string(), cases })
}

/// The pairs `(a, b)`, `a < b`, that get details: the reference with leaders of groups, with variants that round worse and
/// with the other variants; then the leaders with each other. Pairs that were not compared are left out.
fn wanted(case: &CaseView, groups: &CaseGroups) -> Vec<(usize, usize)> {
    let Some(reference) = groups.reference else { return Vec::new() };
    let leaders: Vec<usize> = groups.groups.groups.iter().map(|group| group.leader).collect();
    let worse = (0..case.cells.len()).filter(|&index| groups.marks[index].rounds_worse());
    let others = 0..case.cells.len();
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for other in leaders.iter().copied().chain(worse).chain(others) {
        pairs.push((reference.min(other), reference.max(other)));
    }
    let between = leaders.iter().flat_map(|&a| leaders.iter().map(move |&b| (a, b)));
    pairs.extend(between.filter(|(a, b)| a < b));
    let mut seen = BTreeSet::new();
    pairs.retain(|&(a, b)| a != b && case.matrix.compared(a, b).is_some() && seen.insert((a, b)));
    pairs
}
