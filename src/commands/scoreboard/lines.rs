//! Lines of a Markdown table.

use std::fmt::Write;

/// The heads of the columns, the `fixed` ones first, and the line below them.
pub(super) fn header(text: &mut String, fixed: &[&str], variants: &[String]) {
    let names: Vec<String> =
        fixed.iter().map(|&name| name.to_owned()).chain(variants.iter().cloned()).collect();
    put(text, &names);
    put(text, &vec!["---".to_owned(); names.len()]);
}

/// One row.
pub(super) fn put(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}
