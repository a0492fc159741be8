//! What a page shows of a case beyond its view: the texts of tokens, and a closer look at the pairs that matter most.
//!
//! Kept are each variant against the reference of its case, each leader of a group against each other, and what the
//! errors against float64 rest on is in the matrix anyway.

use std::collections::{BTreeMap, BTreeSet};

use compare::details::{PairDetails, details};
use compare::logits::Mask;
use compare::matrix::Entry;
use miette::{Result, miette};

use super::assess::entry;
use super::findings::{CaseGroups, Findings};
use super::view::{CaseView, RunView};
use crate::results::{Manifest, RunFolder};
use crate::spec::inputs::{self, Inputs};

/// What a page shows beyond a run's view.
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The run folder as commands name it.
    pub run: String,
    /// One per case, in the order of the view's.
    pub cases: Vec<CaseDetails>,
}

/// What a page shows of one case beyond its view.
#[derive(Clone, Debug, Default)]
pub struct CaseDetails {
    /// The inputs with the text of each token; absent where the files are not readable.
    pub inputs: Option<Inputs>,
    /// The text of each token id that a side of a pair predicts, where the run knows it.
    pub predicted: BTreeMap<u32, String>,
    /// The pairs that were looked at, the most important first.
    pub pairs: Vec<PairDetails>,
}

/// Looks closer at the pairs of a run.
///
/// # Errors
/// When logits that the view was made from cannot be read any more.
pub fn of_run(folder: &RunFolder, manifest: &Manifest, run: &RunView, found: &Findings) -> Result<Details> {
    let mut cases = Vec::new();
    let mut vocabularies: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for ((case, groups), planned) in run.cases.iter().zip(&found.cases).zip(&manifest.cases) {
        let files = folder.case_folder(manifest, &case.name);
        let entries: Vec<Entry> = case.cells.iter().map(|cell| entry(cell, &files)).collect();
        let mask = Mask::open(&files.join("inputs.safetensors")).map_err(|error| miette!("{error}"))?;
        let pairs = details(&entries, Some(&mask), &case.matrix, &wanted(case, groups))
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

/// Pairs in the matrix's order of sides: leaders of groups first, then members that round worse, then the others.
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
