//! Compares a case of prefill and decoding with the full-sequence forward pass over the same inputs, variant by
//! variant.

use std::path::Path;

use miette::{Result, miette};
use reference::protocol::{Attention, Mode};

use super::entry;
use super::origin::{bears_on, origin};
use crate::execute::cell::{Cell, Outcome};
use crate::judge::view::CaseView;
use crate::results::localized::Localized;
use crate::results::{Case, Manifest};
use crate::spec::variant::{Variant, Way};
use compare::evidence::{Replayed, Routing};
use compare::mask::Mask;
use compare::matrix::{self, Entry, Matrix};
use compare::oracle::Oracles;
use compare::verdict::{Decision, Tolerances, Verdict, rounding_apart, verdicts};

/// A variant with its KV cache, compared with its own full-sequence forward pass.
pub(super) struct Beside {
    /// The place of the variant's cell in the case.
    pub(super) cell: usize,
    /// The verdict on decoded logits and full-sequence logits.
    pub(super) verdict: Verdict,
    /// Evidence that it differs from float64 only by routing near-ties.
    near_ties: Option<Routing>,
}

impl Beside {
    /// The variant, if it is known to differ from float64 only by routing near-ties, with the evidence.
    pub(super) fn near_ties(&self) -> Option<(String, Routing)> {
        Some((self.verdict.a.clone(), self.near_ties.clone()?))
    }
}

/// Index of the case with the full-sequence forward pass over the inputs of a case of prefill and decoding; `None` if
/// `case` does not decode or the run has no such pass.
pub(super) fn one_pass(manifest: &Manifest, case: &Case) -> Option<usize> {
    let same = |other: &Case| {
        (&other.checkpoint_digest, &other.inputs_digest) == (&case.checkpoint_digest, &case.inputs_digest)
    };
    let is_it = |other: &Case| !goes_through_a_cache(other) && same(other);
    manifest.cases.iter().position(is_it).filter(|_| goes_through_a_cache(case))
}

pub(super) fn goes_through_a_cache(case: &Case) -> bool {
    case.axes.and_then(|axes| axes.prefill).is_some()
}

/// Compares each variant of `decoded` (the cells of `case`) that also has full-sequence logits; `whole` is the view
/// of that case, `files` are the folders of the two cases.
pub(super) fn compared(
    (case, decoded): (&Case, &[Cell]),
    whole: &CaseView,
    files: [&Path; 2],
    localized: &[Localized],
    mask: &Mask,
    tolerances: &Tolerances,
) -> Result<Vec<Beside>> {
    let tolerances = tolerances.with(case.tolerances.as_ref());
    let mut found = Vec::new();
    for (place, cell) in decoded.iter().enumerate() {
        let Some(own) = whole.cells.iter().find(|own| own.name == cell.name) else { continue };
        let variant = &cell.variant;
        // Each side with the cells that its verdict depends on, of the same family only.
        let judges = |other: &&Cell| {
            (other.variant.runner, &other.variant.version) == (variant.runner, &variant.version)
                && other.name != cell.name
                && bears_on(&other.variant, [variant, variant])
                && matches!(other.outcome, Outcome::Completed(_))
        };
        let pair = [(cell, Way::Cached), (own, Way::Full)];
        let rest = decoded.iter().filter(judges).map(|other| (other, Way::Cached));
        let rest = rest.chain(whole.cells.iter().filter(judges).map(|other| (other, Way::Full)));
        let (mut entries, mut origins) = (Vec::new(), Vec::new());
        for (other, way) in pair.into_iter().chain(rest) {
            let (files, made) = match way {
                Way::Cached => (files[0], "decoded"),
                Way::Full => (files[1], "one pass"),
            };
            let entry = entry(other, files);
            entries.push(Entry { name: way.name(&entry.name), ..entry });
            origins.push(origin(&other.variant).made(made));
        }
        if entries[..2].iter().any(|entry| entry.logits.is_err()) {
            // The cells hold the reason.
            continue;
        }
        let matrix: Matrix = matrix::matrix(&entries, Some(mask), &matrix::Options::default())
            .map_err(|error| miette!("{error}"))?;
        let in_one_pass = in_one_pass(whole, variant);
        let near_ties = match (of_the_cache(localized, case, cell), &in_one_pass) {
            (Some(cached), Some(full)) => Some(Routing::InBoth { cached, full: full.clone() }),
            (Some(cached), None) => Some(Routing::Replayed(cached)),
            (None, Some(full)) => rounding_apart(&matrix, (0, 1), &tolerances)
                .map(|relative_l2| Routing::LikeFull { relative_l2, full: full.clone() }),
            (None, None) => None,
        };
        let mut oracles = Oracles::new(&matrix, &origins);
        let in_one_pass = in_one_pass.map(Routing::Replayed);
        for (way, known) in [near_ties.clone(), in_one_pass].into_iter().enumerate() {
            oracles = known.into_iter().fold(oracles, |oracles, known| oracles.with_near_ties(way, known));
        }
        // The first pair is the variant's decoded and full-sequence logits.
        let verdict = verdicts(&matrix, &oracles, &tolerances).swap_remove(0);
        let near_ties = near_ties.filter(|_| verdict.decision != Decision::Diverged);
        found.push(Beside { cell: place, verdict, near_ties });
    }
    Ok(found)
}

/// Evidence that a variant's full-sequence forward pass differs only by routing near-ties.
fn in_one_pass(whole: &CaseView, variant: &Variant) -> Option<Replayed> {
    let name = variant.name();
    let same = |localized: &&Localized| {
        let verdict = whole.verdict(&localized.a, &localized.b);
        verdict.is_some_and(|verdict| verdict.decision == Decision::SameMathematics)
    };
    let found = whole.localized.iter().filter(|found| found.b == name && found.dtype == variant.dtype);
    found.filter(same).find_map(Localized::near_ties)
}

/// Evidence that a variant's decoded logits differ from its own full-sequence ones only by routing near-ties.
fn of_the_cache(localized: &[Localized], case: &Case, cell: &Cell) -> Option<Replayed> {
    let Variant { mode, attention, dtype, .. } = &cell.variant;
    // Other variants are captured through a twin.
    let is_seen_itself = match mode {
        Mode::Fused => true,
        Mode::Eager => attention.is_none_or(|attention| attention == Attention::Eager),
        _ => false,
    };
    let is_it = |found: &&Localized| {
        found.case == case.name
            && found.a == Way::Full.name(&cell.name)
            && found.b == cell.name
            && found.dtype == *dtype
    };
    localized.iter().filter(|_| is_seen_itself).filter(is_it).find_map(Localized::near_ties)
}
