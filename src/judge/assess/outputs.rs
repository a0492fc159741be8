//! Outputs beside the main one: embeddings, router logits, the loss. A release can be right in its logits and wrong in these.

use std::path::Path;

use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{self, Entry, PairOutcome};
use compare::metrics::Side;
use compare::oracle::{Oracles, Origin};
use compare::verdict::{Tolerances, verdicts};
use miette::{Result, miette};
use reference::protocol::Output;

use super::super::view::{OutputRow, OutputView};
use crate::execute::cell::Cell;
use crate::spec::variant::measured_dtype;

/// Compares each further output of the cells with that of the cell `reference`, or of the first that has it.
///
/// # Errors
/// When outputs that exist cannot be read.
pub(super) fn outputs(
    cells: &[Cell],
    files: &Path,
    origins: &[Origin],
    reference: Option<usize>,
    tolerances: &Tolerances,
) -> Result<Vec<OutputView>> {
    let mut names: Vec<&str> = Vec::new();
    for (_, output) in cells.iter().flat_map(further) {
        if !names.contains(&output.name.as_str()) {
            names.push(&output.name);
        }
    }
    names.into_iter().map(|name| output(name, cells, files, origins, reference, tolerances)).collect()
}

/// The logits file and the further outputs of a cell.
fn further(cell: &Cell) -> impl Iterator<Item = (&Path, &Output)> {
    cell.completed().into_iter().flat_map(|completed| {
        completed.outputs.iter().skip(1).map(|output| (completed.logits.as_path(), output))
    })
}

/// The real positions of the tokens that the output `name` follows; `None` if it follows none.
///
/// # Errors
/// When the inputs cannot be read.
fn positions(name: &str, cells: &[Cell], files: &Path) -> Result<Option<Mask>> {
    let known = cells.iter().flat_map(further).map(|(_, output)| output).find(|output| output.name == name);
    let Some(tokens) = known.and_then(|output| output.follows.as_deref()) else { return Ok(None) };
    Mask::of_tokens(&files.join("inputs.safetensors"), tokens)
        .map_err(|error| miette!(help = "`tfcheck run --resume RUN` writes the inputs again", "{error}"))
}

fn output(
    name: &str,
    cells: &[Cell],
    files: &Path,
    origins: &[Origin],
    reference: Option<usize>,
    tolerances: &Tolerances,
) -> Result<OutputView> {
    let mask = positions(name, cells, files)?;
    let open = if mask.is_some() { Logits::open_sequences } else { Logits::open_output };
    let entry = |cell: &Cell| {
        let logits = match further(cell).find(|(_, output)| output.name == name) {
            Some((logits, _)) => open(&files.join(logits), name).map_err(|error| error.to_string()),
            None => Err(format!("returns no {name}")),
        };
        Entry { name: cell.name.clone(), dtype: measured_dtype(cell.variant.dtype), logits }
    };
    let entries: Vec<Entry> = cells.iter().map(entry).collect();
    beside((name, mask.as_ref()), &entries, origins, reference, tolerances)
}

/// Compares the output `name` of each entry, at the positions of `mask` or at all, with that of the entry `reference`, or of
/// the first that has it.
///
/// # Errors
/// When an output cannot be read.
pub(super) fn beside(
    (name, mask): (&str, Option<&Mask>),
    entries: &[Entry],
    origins: &[Origin],
    reference: Option<usize>,
    tolerances: &Tolerances,
) -> Result<OutputView> {
    let matrix =
        matrix::matrix(entries, mask, &matrix::Options::default()).map_err(|error| miette!("{error}"))?;
    let has_it = |index: &usize| entries[*index].logits.is_ok();
    let reference = reference.filter(has_it).or_else(|| (0..entries.len()).find(has_it)).unwrap_or_default();
    let judged = verdicts(&matrix, &Oracles::new(&matrix, origins), tolerances);
    let others = (0..entries.len()).filter(|index| has_it(index) && *index != reference);
    let row = |index: usize| {
        let names = [&matrix.names[reference.min(index)], &matrix.names[reference.max(index)]];
        let verdict = judged.iter().find(|verdict| [&verdict.a, &verdict.b] == names)?;
        let relative_l2 = match matrix.oriented(reference, index) {
            PairOutcome::Compared(pair) => Some(pair.relative_l2(Side::A)),
            _ => None,
        };
        Some(OutputRow { variant: entries[index].name.clone(), relative_l2, verdict: verdict.clone() })
    };
    let rows = others.filter_map(row).collect();
    let reference = entries.get(reference).map(|entry| entry.name.clone()).unwrap_or_default();
    Ok(OutputView { name: name.to_owned(), reference, rows })
}
