//! Foreign text made fit to be shown: without characters that control a terminal or reorder text, and no longer than a
//! limit.

use std::borrow::Cow;
use std::fmt::Write;

/// One line of foreign text of at most `most` characters. Control characters, line ends included, and characters that
/// reorder or hide text become escapes such as `\u{1b}`.
pub fn shown(text: &str, most: u64) -> Cow<'_, str> {
    limited(text, most, &|_| false)
}

/// As [`shown`], but line ends and tabs stay.
pub fn lines(text: &str, most: u64) -> Cow<'_, str> {
    limited(text, most, &|c| matches!(c, '\n' | '\t'))
}

/// Text that tfcheck composed and coloured itself, perhaps of foreign parts: line ends, tabs and colours stay, every other
/// control sequence becomes escapes.
pub fn styled(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| is_hostile(c) && !matches!(c, '\n' | '\t')) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(length) = colour(rest) {
            out.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        if is_hostile(c) && !matches!(c, '\n' | '\t') {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        rest = &rest[c.len_utf8()..];
    }
    Cow::Owned(out)
}

/// Bytes of the colour sequence (`ESC [ digits ; … m`) that `text` begins with.
fn colour(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\u{1b}[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    (end <= 20 && parameters[end..].starts_with('m')).then_some(2 + end + 1)
}

fn limited<'a>(text: &'a str, most: u64, stays: &dyn Fn(char) -> bool) -> Cow<'a, str> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let is_plain = |c: char| !is_hostile(c) || stays(c);
    // Bytes are at least characters, so most texts are not counted.
    let fits = text.len() <= most || text.chars().nth(most).is_none();
    if fits && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    for c in text.chars().take(most) {
        if is_plain(c) {
            out.push(c);
        } else if c == '\n' {
            out.push_str("\\n");
        } else {
            out.extend(c.escape_unicode());
        }
    }
    let left = text.chars().count().saturating_sub(most);
    if left > 0 {
        let _ = write!(out, "… ({left} more characters)");
    }
    Cow::Owned(out)
}

/// Whether a character controls a terminal, or reorders or hides the text around it.
pub(crate) fn is_hostile(c: char) -> bool {
    c.is_control()
        // No characters, which XML cannot hold.
        || (c as u32 & 0xfffe) == 0xfffe
        || matches!(
            c,
            '\u{61c}'
                | '\u{200b}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fdd0}'..='\u{fdef}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_sequences_become_escapes_and_long_text_is_cut() {
        let check = |text: &str, expected: &str| assert_eq!(shown(text, 12), expected);
        check("plain ü 日本", "plain ü 日本");
        check("\u{1b}[2J", "\\u{1b}[2J");
        check("a\nb", "a\\nb");
        check("a\u{202e}b", "a\\u{202e}b");
        check("\u{ffff}", "\\u{ffff}");
        check("exactly twelve", "exactly twel… (2 more characters)");
        assert_eq!(lines("a\n\tb\r", 9), "a\n\tb\\u{d}");
    }

    #[test]
    fn own_colours_stay_and_other_sequences_do_not() {
        let check = |text: &str, expected: &str| assert_eq!(styled(text), expected);
        check("\u{1b}[1;31mred\u{1b}[0m\n", "\u{1b}[1;31mred\u{1b}[0m\n");
        check("\u{1b}[2J\u{1b}]0;title\u{7}", "\\u{1b}[2J\\u{1b}]0;title\\u{7}");
        check("\u{9b}2J", "\\u{9b}2J");
    }

    proptest! {
        #[test]
        fn nothing_hostile_is_ever_shown(text in any::<String>(), most in 0_u64..40) {
            prop_assert!(shown(&text, most).chars().all(|c| !is_hostile(c)));
            prop_assert!(lines(&text, most).chars().all(|c| !is_hostile(c) || "\n\t".contains(c)));
            let sequences = styled(&text).replace("\u{1b}[", "");
            prop_assert!(sequences.chars().all(|c| !is_hostile(c) || "\n\t".contains(c)));
        }
    }
}
