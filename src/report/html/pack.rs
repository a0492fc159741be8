//! What the page's script needs, as JSON that is compressed and written in base64, within what a page may weigh.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::case::CasePage;

/// A page weighs less than 2 MB.
const MOST_BYTES: usize = 1_900_000;

/// Bytes that are left for what is packed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget(usize);

impl Budget {
    /// After so many bytes of text and scripts.
    pub(super) fn after(bytes: usize) -> Self {
        Self(MOST_BYTES.saturating_sub(bytes))
    }
}

/// Puts the packed matrices and pairs of all cases, one script element each. Pairs that find no room are left out, the least
/// important of each case first; the script says so where one of them is asked for.
pub(super) fn put(page: &mut String, cases: &[CasePage<'_>], run: &str, budget: Budget) {
    let bases: Vec<String> = cases.par_iter().map(|case| packed(&case.base())).collect();
    let used: usize = bases.iter().map(String::len).sum();
    let share = budget.0.saturating_sub(used) / cases.len().max(1);
    let details: Vec<String> = cases.par_iter().map(|case| fitting(case.pairs(), share)).collect();
    let names: Vec<&str> = cases.iter().map(|case| case.case.name.as_str()).collect();
    element(page, "application/json", "index", &in_script(&json!({ "run": run, "cases": names })));
    for (index, (base, pairs)) in bases.iter().zip(&details).enumerate() {
        element(page, "application/gzip", &format!("case-{index}"), base);
        element(page, "application/gzip", &format!("pairs-{index}"), pairs);
    }
}

fn element(page: &mut String, kind: &str, id: &str, content: &str) {
    super::put(page, &format!("<script type=\"{kind}\" id=\"{id}\">{content}</script>\n"));
}

/// As many of the pairs as fit, packed.
fn fitting(mut pairs: Vec<Value>, most: usize) -> String {
    loop {
        let text = packed(&Value::Array(pairs.clone()));
        if text.len() <= most || pairs.is_empty() {
            return text;
        }
        // Pairs weigh about the same; some room is left for those that weigh more.
        let keep = pairs.len() * most / text.len();
        pairs.truncate(keep.min(pairs.len() - 1));
    }
}

/// JSON in gzip in base64.
fn packed(value: &Value) -> String {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let written = encoder.write_all(value.to_string().as_bytes());
    let bytes = written.and_then(|()| encoder.finish()).expect("a Vec takes every write");
    STANDARD.encode(&bytes)
}

/// JSON that ends no script element.
pub(super) fn in_script(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_find_no_room_are_left_out_from_the_end() {
        // Numbers that do not repeat, so that every pair weighs about the same.
        let pair = |number: u64| json!({ "text": format!("{:x}", u128::from(number + 1) * 0x9e37_79b9_7f4a_7c15_f39c) });
        let pairs: Vec<Value> = (0..200).map(pair).collect();
        let all = fitting(pairs.clone(), usize::MAX);
        let half = fitting(pairs.clone(), all.len() / 2);
        assert!(half.len() <= all.len() / 2 && half.len() > all.len() / 5, "{} of {}", half.len(), all.len());
        assert_eq!(fitting(pairs, 0), packed(&Value::Array(Vec::new())));
    }

    #[test]
    fn json_cannot_end_its_element() {
        assert!(!in_script(&json!("</script><script>")).contains('<'));
    }
}
