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
    // A container precedes its modules in the profile although its output follows them, so only leaf modules are drawn.
    let holds = |path: &str| {
        found
            .profile
            .iter()
            .any(|other| other.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    };
    let leaves: Vec<&ModuleError> = found.profile.iter().filter(|module| !holds(&module.path)).collect();
    let suspect = found.path().unwrap_or_default();
    // A step such as `mask` is not a module: the chart marks the module that contains the step.
    let is_suspect = |module: &ModuleError| {
        suspect == module.path || suspect.strip_prefix(&module.path).is_some_and(|rest| rest.starts_with('.'))
    };
    let marked = leaves.iter().position(|module| is_suspect(module));
    let series = |of: fn(&ModuleError) -> Option<f64>, look| Series {
        values: leaves.iter().map(|module| of(module)).collect(),
        look,
    };
    let shown = [
        series(|module| module.output, Look::Main),
        series(|module| module.input, Look::Second),
        series(|module| module.replayed, Look::Points),
    ];
    let svg = errors(&shown, &[], marked, "module, in call order");
    let names = format!("{} / {}", escape(&found.a), escape(&found.b));
    let mark = if marked.is_some() { "; the band marks the first diverging module" } else { "" };
    put(
        page,
        &format!(
            "<figure class=\"depth\"><figcaption>Depth profile of {names}: relative L2 after each module. <span class=\"key first\">output</span> <span class=\"key second\">input</span> <span class=\"key third\">replayed with the other side's input</span>{mark}</figcaption>{svg}\n"
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
