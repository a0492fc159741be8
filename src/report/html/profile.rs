//! The depth profile of a localisation: the error of each module's output in call order, and the error of the modules that
//! were replayed with the other side's input.

use compare::metric::RELATIVE_L2;

use super::charts::{Look, Series, errors};
use super::{escape, put};
use crate::results::localized::{Localized, ModuleError};

/// Writes the profile's chart; writes nothing if the localisation has no profile.
pub(super) fn profile(page: &mut String, found: &Localized) {
    if found.profile.is_empty() {
        return;
    }
    let leaves = leaves(&found.profile);
    let marked = marked(&leaves, found);
    let series = |of: fn(&ModuleError) -> Option<f64>, look| Series {
        values: leaves.iter().map(|module| of(module)).collect(),
        look,
    };
    let shown = [
        (series(|module| module.output, Look::Main), "first", "output"),
        (series(|module| module.input, Look::Second), "second", "input"),
        (series(|module| module.replayed, Look::Points), "third", "replayed with the other side's input"),
    ]
    .into_iter()
    .filter(|(series, ..)| series.values.iter().any(Option::is_some));
    let (shown, keys): (Vec<Series>, Vec<String>) = shown
        .map(|(series, class, name)| (series, format!(" <span class=\"key {class}\">{name}</span>")))
        .unzip();
    let svg = errors(&shown, &[], marked, "module, in call order");
    let names = format!("{} / {}", escape(&found.a), escape(&found.b));
    let mark = marked.map_or_else(String::new, |at| {
        format!("; the band marks the first one that differs, <b>{}</b>", escape(&leaves[at].path))
    });
    put(
        page,
        &format!(
            "<figure class=\"depth\"><figcaption>Depth profile of {names}: relative L2 after each module{mark}.{}</figcaption>{svg}\n",
            keys.concat()
        ),
    );
    put(
        page,
        &format!(
            "<details><summary>{} module calls</summary><div class=\"scroll\"><table class=\"numbers\"><thead><tr><th>#</th><th>Module</th><th>Input</th><th>Output</th><th>Replayed</th></tr></thead><tbody>\n",
            found.profile.len()
        ),
    );
    let number =
        |value: Option<f64>| value.map_or_else(|| "—".to_owned(), |value| RELATIVE_L2.written(value));
    for module in &found.profile {
        let index = leaves.iter().position(|leaf| std::ptr::eq(*leaf, module));
        let class = if index.is_some() && index == marked { " class=\"marked\"" } else { "" };
        let index = index.map(|index| index.to_string()).unwrap_or_default();
        let call = if module.call > 0 { format!(" (call {})", module.call + 1) } else { String::new() };
        put(
            page,
            &format!(
                "<tr{class}><td>{index}</td><th scope=\"row\">{}{call}</th><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                escape(&module.path),
                number(module.input),
                number(module.output),
                number(module.replayed)
            ),
        );
    }
    put(page, "</tbody></table></div></details></figure>\n");
}

/// The modules that contain no other one: a container precedes its modules in the profile although its output follows them.
fn leaves(profile: &[ModuleError]) -> Vec<&ModuleError> {
    let is_inside =
        |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
    let is_leaf = |module: &&ModuleError| !profile.iter().any(|other| is_inside(&other.path, &module.path));
    profile.iter().filter(is_leaf).collect()
}

/// The module that the finding names or, if it names a container's own code or a step such as `scores`, the first module that
/// differs.
fn marked(leaves: &[&ModuleError], found: &Localized) -> Option<usize> {
    let is_named = |module: &&ModuleError| found.path() == Some(module.path.as_str());
    let differs = |module: &&ModuleError| module.output.is_some_and(|output| output > found.threshold);
    leaves.iter().position(is_named).or_else(|| leaves.iter().position(differs))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_band_is_at_the_named_module_or_at_the_first_one_that_differs() {
        let at = |named: &str| {
            let module = |path: &str, output: f64| json!({ "path": path, "call": 0, "input": 0.0, "output": output, "replayed": null });
            let found: Localized = serde_json::from_value(json!({
                "case": "m", "a": "x", "b": "y", "dtype": "f64", "threshold": 1e-10, "logits": 0.4, "sentence": "", "modules": 5,
                "captured_bytes": 0, "elapsed_ns": 1, "capture_changed_nothing": true, "notes": [],
                "finding": { "found": "module", "path": named, "path_b": named, "class_a": "A", "class_b": "A", "between": null,
                    "input": 0.0, "output": 0.3, "replayed": 0.3, "worst": null },
                "profile": [module("h.0", 0.3), module("h.0.attn", 0.3), module("h.0.attn.q", 1e-16), module("h.0.attn.softmax", 0.3),
                    module("h.0.mlp", 0.2)],
            }))
            .unwrap();
            let leaves = leaves(&found.profile);
            marked(&leaves, &found).map(|at| leaves[at].path.clone()).unwrap()
        };
        // `scores` is a step and not a module.
        for (named, expected) in [
            ("h.0.mlp", "h.0.mlp"),
            ("h.0.attn.scores", "h.0.attn.softmax"),
            ("h.0.attn", "h.0.attn.softmax"),
        ] {
            assert_eq!(at(named), expected);
        }
    }
}
