//! Finds the name that a person probably meant.

/// The name closest to `given`; `None` if none is close enough.
pub(crate) fn nearest<'name>(given: &str, names: &[&'name str]) -> Option<&'name str> {
    names
        .iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(given, name), *name))
        .filter(|(similarity, _)| *similarity >= 0.5)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
