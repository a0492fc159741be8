//! The data of the page's script, as base64 of gzip-compressed JSON, within the size limit of a page.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::case::CasePage;

/// Largest size of a page in bytes, with a margin below 2 MB.
const MOST_BYTES: usize = 1_900_000;

/// Bytes available for packed data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget(usize);

impl Budget {
    /// The bytes that remain after `bytes` of text and scripts.
    pub(super) fn after(bytes: usize) -> Self {
        Self(MOST_BYTES.saturating_sub(bytes))
    }
}

/// Writes the packed matrix and the packed pairs of each case, one script element each. Pairs that do not fit into `budget`
/// are left out, the least important of each case first; the page of such a pair shows the command that prints it.
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

/// Packs as many of the first pairs as fit into `most` bytes of base64.
fn fitting(mut pairs: Vec<Value>, most: usize) -> String {
    loop {
        let text = packed(&Value::Array(pairs.clone()));
        if text.len() <= most || pairs.is_empty() {
            return text;
        }
        // Assumes pairs of equal size; the loop drops more pairs if the kept ones are larger than average.
        let keep = pairs.len() * most / text.len();
        pairs.truncate(keep.min(pairs.len() - 1));
    }
}

/// Base64 of gzip-compressed JSON.
fn packed(value: &Value) -> String {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let written = encoder.write_all(value.to_string().as_bytes());
    let bytes = written.and_then(|()| encoder.finish()).expect("a Vec takes every write");
    STANDARD.encode(&bytes)
}

/// JSON with `<` escaped, so that it cannot close its script element.
pub(super) fn in_script(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_that_do_not_fit_are_left_out_from_the_end() {
        // The numbers do not repeat, so that all pairs compress to about the same size.
        let pair = |number: u64| json!({ "text": format!("{:x}", u128::from(number + 1) * 0x9e37_79b9_7f4a_7c15_f39c) });
        let pairs: Vec<Value> = (0..200).map(pair).collect();
        let all = fitting(pairs.clone(), usize::MAX);
        let half = fitting(pairs.clone(), all.len() / 2);
        assert!(half.len() <= all.len() / 2 && half.len() > all.len() / 5, "{} of {}", half.len(), all.len());
        assert_eq!(fitting(pairs, 0), packed(&Value::Array(Vec::new())));
    }

    #[test]
    fn json_cannot_close_its_script_element() {
        assert!(!in_script(&json!("</script><script>")).contains('<'));
    }
}
