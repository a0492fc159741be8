//! Pairs the modules of the two sides.

use std::collections::{BTreeMap, HashMap, HashSet};

use reference::protocol::CapturedModule;

/// Maximum number of leading path segments that may differ, for example `model.language_model.` for `model.`.
const PREFIX: usize = 3;

/// Pairs of indices, in the order of `a`, of modules with the same path and call. If transformers moved the modules
/// of one side, the paths may differ in their prefix.
pub(super) fn pairs(a: &[CapturedModule], b: &[CapturedModule]) -> Vec<(usize, usize)> {
    let by_name: HashMap<(&str, usize), usize> =
        b.iter().enumerate().map(|(index, module)| ((module.path.as_str(), module.call), index)).collect();
    let paths_a: HashSet<&str> = a.iter().map(|module| module.path.as_str()).collect();
    let paths_b: HashSet<&str> = b.iter().map(|module| module.path.as_str()).collect();
    let moved = moved(&paths_a, &paths_b);
    let pair = |(index, module): (usize, &CapturedModule)| {
        let same = by_name.get(&(module.path.as_str(), module.call)).copied();
        let other = || {
            let (from, to) = moved.as_ref()?;
            let path = format!("{to}{}", module.path.strip_prefix(from.as_str())?);
            if paths_a.contains(path.as_str()) {
                return None;
            }
            by_name.get(&(path.as_str(), module.call)).copied()
        };
        Some((index, same.or_else(other)?))
    };
    a.iter().enumerate().filter_map(pair).collect()
}

/// The prefixes of `a` and of `b` whose exchange maps most of the paths that only one side has onto each other.
fn moved(a: &HashSet<&str>, b: &HashSet<&str>) -> Option<(String, String)> {
    let only_b: HashSet<&str> = b.difference(a).copied().collect();
    // Prefixes of b's paths by the rest of the path.
    let mut rests: HashMap<&str, Vec<&str>> = HashMap::new();
    for path in &only_b {
        for (beginning, rest) in beginnings(path) {
            rests.entry(rest).or_default().push(beginning);
        }
    }
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for path in a.difference(b) {
        for (from, rest) in beginnings(path) {
            for to in rests.get(rest).into_iter().flatten() {
                *counts.entry((from, to)).or_default() += 1;
            }
        }
    }
    // Among equal counts, the shortest prefixes win.
    let length = |(from, to): (&str, &str)| from.len() + to.len();
    let best = counts.into_iter().max_by_key(|(names, count)| (*count, std::cmp::Reverse(length(*names))));
    // A single match may be an unrelated module of the same name.
    let enough = (a.difference(b).count().min(only_b.len()) / 2).max(2);
    best.filter(|(_, count)| *count >= enough).map(|((from, to), _)| (from.to_owned(), to.to_owned()))
}

/// All splits of a path after 0 to [`PREFIX`] segments; the dot belongs to the prefix.
fn beginnings(path: &str) -> impl Iterator<Item = (&str, &str)> {
    let dots = path.match_indices('.').map(|(at, _)| at + 1);
    std::iter::once(0).chain(dots.take(PREFIX)).map(|at| path.split_at(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(paths: &[&str]) -> Vec<CapturedModule> {
        let module = |path: &&str| CapturedModule { path: (*path).to_owned(), ..CapturedModule::default() };
        paths.iter().map(module).collect()
    }

    fn check(a: &[&str], b: &[&str], expect: &[(&str, &str)]) {
        let (left, right) = (modules(a), modules(b));
        let found: Vec<(&str, &str)> = pairs(&left, &right).into_iter().map(|(i, j)| (a[i], b[j])).collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn common_paths_pair_in_the_first_sides_order() {
        check(
            &["model", "model.norm", "lm_head"],
            &["lm_head", "model", "model.norm", "model.rotary_emb"],
            &[("model", "model"), ("model.norm", "model.norm"), ("lm_head", "lm_head")],
        );
    }

    #[test]
    fn moved_modules_pair_across_different_prefixes() {
        check(
            &["model", "model.layers.0", "model.layers.0.mlp", "lm_head"],
            &[
                "model",
                "model.language_model",
                "model.language_model.layers.0",
                "model.language_model.layers.0.mlp",
                "lm_head",
            ],
            &[
                ("model", "model"),
                ("model.layers.0", "model.language_model.layers.0"),
                ("model.layers.0.mlp", "model.language_model.layers.0.mlp"),
                ("lm_head", "lm_head"),
            ],
        );
        check(
            &["layers.0", "norm"],
            &["model.layers.0", "model.norm"],
            &[("layers.0", "model.layers.0"), ("norm", "model.norm")],
        );
    }

    #[test]
    fn calls_pair_only_with_the_same_call_number() {
        let mut left = modules(&["rotary_emb", "rotary_emb"]);
        left[1].call = 1;
        assert_eq!(pairs(&left, &left), [(0, 0), (1, 1)]);
        assert_eq!(pairs(&left, &left[..1]), [(0, 0)]);
    }
}
