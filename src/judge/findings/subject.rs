//! Cells in short words.

use crate::execute::cell::Cell;

/// A cell's version, with the run if cells of several runs are compared: `4.40.2`, `4.40.2@run_2`.
pub fn version(cell: &Cell) -> String {
    let run = cell.name.strip_prefix(&cell.variant.name()).unwrap_or_default();
    format!("{}{run}", cell.variant.version)
}

/// Cells in short, by version: `4.40.2 (eager, sdpa), candle (eager, fused)`.
pub fn subject<'a>(cells: impl Iterator<Item = &'a Cell>) -> String {
    let mut versions: Vec<(String, Vec<String>)> = Vec::new();
    for cell in cells {
        let note = cell.variant.note();
        // In transformers' eager mode the attention alone distinguishes variants.
        let note = note.strip_prefix("eager_").map_or(note.clone(), str::to_owned).replace('_', " ");
        let own = version(cell);
        match versions.iter_mut().find(|(known, _)| *known == own) {
            Some((_, notes)) if notes.contains(&note) => {}
            Some((_, notes)) => notes.push(note),
            None => versions.push((own, vec![note])),
        }
    }
    let words: Vec<String> =
        versions.iter().map(|(version, notes)| format!("{version} ({})", notes.join(", "))).collect();
    words.join(", ")
}
