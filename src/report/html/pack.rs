//! What the page's script needs, as JSON that is compressed and written in base64, within what a page may weigh.

use std::io::Write;

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
    base64(&bytes)
}

/// JSON that ends no script element.
pub(super) fn in_script(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

/// Base64 with padding (RFC 4648, section 4).
pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let is_padding = digit > chunk.len();
            let index = (word >> (18 - 6 * digit)) & 63;
            text.push(if is_padding { '=' } else { char::from(DIGITS[index as usize]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        // RFC 4648, section 10.
        let vectors = [
            ("", ""),
            ("f", "Zg=="),
            ("fooba", "Zm9vYmE="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (plain, expected) in vectors {
            assert_eq!(base64(plain.as_bytes()), expected);
        }
    }

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
