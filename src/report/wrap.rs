//! Lines for a terminal.

use console::measure_text_width;

/// Wraps words into lines of at most `width` terminal columns. A no-break space keeps two words together and becomes a space.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_ascii_whitespace() {
        let word = &word.replace('\u{a0}', " ");
        match lines.last_mut() {
            Some(line) if measure_text_width(line) + 1 + measure_text_width(word) <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.clone()),
        }
    }
    lines
}
