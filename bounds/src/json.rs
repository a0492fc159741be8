//! JSON of others, whose strings may be shown.

use serde::de::DeserializeOwned;
use serde_json::{Error, Value};

use crate::limits::LINES;
use crate::shown::{is_hostile, lines};

/// Parses JSON and makes every string in it, keys included, fit to be shown (as [`crate::lines`] does).
///
/// # Errors
/// If it is not JSON of this type, or nests deeper than serde_json's 128 levels.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    if is_plain(bytes) {
        return serde_json::from_slice(bytes);
    }
    serde_json::from_value(cleaned(serde_json::from_slice(bytes)?))
}

/// Whether no string of the JSON can hold a hostile character or be too long: the text has none, and no escape that could
/// make one.
fn is_plain(bytes: &[u8]) -> bool {
    if bytes.len() as u64 > LINES.most {
        return false;
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return true };
    let is_escape = |pair: &[u8]| pair[0] == b'\\' && b"ubfr".contains(&pair[1]);
    !bytes.windows(2).any(is_escape)
        && !text.chars().any(|c| is_hostile(c) && !matches!(c, '\n' | '\r' | '\t'))
}

fn cleaned(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(lines(&text, LINES.most).into_owned()),
        Value::Array(values) => Value::Array(values.into_iter().map(cleaned).collect()),
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| (lines(&key, LINES.most).into_owned(), cleaned(value)))
                .collect(),
        ),
        other => other,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn strings_and_keys_lose_their_control_characters_and_numbers_stay() {
        let json = br#"{"a\u001b[2J": ["x\u0007", 18446744073709551615, 0.1]}"#;
        let found: BTreeMap<String, (String, u64, f64)> = parse(json).unwrap();
        let expected = ("x\\u{7}".to_owned(), u64::MAX, 0.1);
        assert_eq!(found, BTreeMap::from([("a\\u{1b}[2J".to_owned(), expected)]));
        let long = format!("\"{}\"", "x".repeat(100_000));
        assert!(parse::<String>(long.as_bytes()).unwrap().ends_with("more characters)"));
        assert!(parse::<Value>("[".repeat(1_000_000).as_bytes()).is_err());
    }
}
