//! Names by pattern.

/// Whether the glob `pattern` matches all of `name`. After a mismatch, the last `*` takes one more byte.
pub fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => {
                let Some((star_p, star_n)) = star else {
                    return false;
                };
                star = Some((star_p, star_n + 1));
                p = star_p + 1;
                n = star_n + 1;
            }
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn a_glob_matches_the_whole_name() {
        let cases = [
            ("*", "", true),
            ("*", "llama-128/candle_eager", true),
            ("llama*", "llama-128", true),
            ("llama", "llama-128", false),
            ("*128", "llama-128", true),
            ("*12", "llama-128", false),
            ("l?ama-*8", "llama-128", true),
            ("?", "", false),
            ("*a*a*", "llama", true),
            ("*a*a*a*", "llama", false),
            ("**e", "candle_eager/fuse", true),
        ];
        for (pattern, name, expect) in cases {
            assert_eq!(glob(pattern.as_bytes(), name.as_bytes()), expect, "{pattern} on {name}");
        }
    }
}
