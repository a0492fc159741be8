//! Formats quantities for people.

/// Converts nanoseconds to milliseconds.
pub fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// `1 graph`, `2 graphs`.
pub fn count(number: impl TryInto<u64>, what: &str) -> String {
    // A number that does not fit into u64 is plural.
    let number = number.try_into().unwrap_or(u64::MAX);
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// `1.20 GiB`, `512.0 MiB`.
pub fn bytes(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib >= 1024.0 { format!("{:.2} GiB", mib / 1024.0) } else { format!("{mib:.1} MiB") }
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn one_is_singular() {
        for (number, expected) in [(0_usize, "0 graphs"), (1, "1 graph"), (2, "2 graphs")] {
            assert_eq!(count(number, "graph"), expected);
        }
    }
}
