//! The table of mistakes: each row is a mistake in words and the edit of config, weights, inputs or logits that makes the
//! trusted side commit it. A row applies where its edit changes something.

mod deviations;
mod embeddings;
mod heads;
mod mlp;
mod norms;
mod rotary;
mod scores;
mod windows;

use serde_json::Value;

use super::draft::Draft;
pub(super) use embeddings::{REPETITIONS, scale_embedding, with_nudged_embeddings};
pub(super) use rotary::set_base as set_rotary_base;
pub(super) use scores::scale_scores;

/// A mistake that a port or a release makes.
pub struct Hypothesis {
    /// Name of the row.
    pub name: &'static str,
    /// The mistake, to be read after "with"; `{key}` stands for the value of a config key after the edit, `{a|b}` for that
    /// of the first of several names that the config has.
    words: &'static str,
    /// Makes the trusted side commit it.
    edit: fn(&mut Draft),
}

const fn row(name: &'static str, words: &'static str, edit: fn(&mut Draft)) -> Hypothesis {
    Hypothesis { name, words, edit }
}

/// All rows, by family. Of two rows that predict the same, the earlier one is named first.
const FAMILIES: &[&[Hypothesis]] = &[
    windows::ROWS,
    rotary::ROWS,
    scores::ROWS,
    heads::ROWS,
    norms::ROWS,
    mlp::ROWS,
    embeddings::ROWS,
    deviations::ROWS,
];

/// Every row.
pub fn hypotheses() -> impl Iterator<Item = &'static Hypothesis> {
    FAMILIES.iter().copied().flatten()
}

/// The rows that round what is computed in a wider dtype.
pub(super) fn coarse() -> impl Iterator<Item = &'static Hypothesis> {
    hypotheses().filter(|row| row.name.ends_with("-bf16") || row.name.ends_with("-f16"))
}

/// Whether two rows are of one family.
pub(super) fn are_of_a_family(one: &str, other: &str) -> bool {
    let holds = |family: &&[Hypothesis], name: &str| family.iter().any(|row| row.name == name);
    FAMILIES.iter().any(|family| holds(family, one) && holds(family, other))
}

impl Hypothesis {
    /// `draft` with the mistake; `None` where it makes no difference to what the trusted side is given.
    pub(super) fn applied(&self, draft: &Draft) -> Option<Draft> {
        let mut edited = draft.clone();
        (self.edit)(&mut edited);
        (edited != *draft).then_some(edited)
    }

    /// The mistake, with the values that `edited` has.
    pub(super) fn words(&self, edited: &Draft) -> String {
        let mut words = String::new();
        let mut rest = self.words;
        while let Some((before, after)) = rest.split_once('{') {
            let (keys, after) = after.split_once('}').unwrap_or((after, ""));
            words.push_str(before);
            let known = keys.split('|').find_map(|key| Some((key, edited.config.get(key)?)));
            // `{=a|b}` stands for the key and its value.
            let (keys, names_key) = keys.strip_prefix('=').map_or((keys, false), |keys| (keys, true));
            let known = keys.split('|').find_map(|key| Some((key, edited.config.get(key)?))).or(known);
            match known {
                Some((key, value)) if names_key => words = words + "`" + key + "` " + &shown(value),
                Some((_, value)) => words.push_str(&shown(value)),
                None => words.push('?'),
            }
            rest = after;
        }
        words + rest
    }
}

/// A config value, without the quotes of JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if float.fract().abs() > 0.0 || float.abs() >= 1e15 => format!("{float}"),
            Some(float) => format!("{float:.0}"),
            None => number.to_string(),
        },
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::hypotheses;

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let names: Vec<&str> = hypotheses().map(|row| row.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(
            names
                .iter()
                .all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
        );
    }
}
