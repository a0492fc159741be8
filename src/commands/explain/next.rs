//! Next steps for a pair by its verdict, with commands to paste.

use std::cmp::Ordering;

use super::Pair;
use super::story::{decision, heading, line, sides};
use crate::execute::cell::Cell;
use crate::execute::runner::quoted;
use crate::spec::config::{Config, Version};
use crate::spec::plan::release_order;
use crate::spec::variant::{Runner, Variant};
use compare::verdict::Decision;

/// The next steps for a pair, the last section of its description.
pub(super) fn steps(pair: &Pair<'_>) -> String {
    let mut text = String::new();
    heading(&mut text, "What to do next");
    let [a, b] = sides(pair);
    let both_transformers =
        a.variant.runner == Runner::Transformers && b.variant.runner == Runner::Transformers;
    let has_oracle = pair.view.accuracies.iter().any(|accuracy| accuracy.variant < 2);
    let [run, case, name_a, name_b] = [&pair.run, &pair.case.name, &a.name, &b.name].map(|word| quoted(word));
    let localize = [a, b]
        .into_iter()
        .all(|cell| cell.variant.runner.may_show_modules())
        .then(|| format!("tfcheck localize --run {run} --case {case} {name_a} {name_b}"));
    let is_program = |cell: &Cell| cell.variant.runner == Runner::Command;
    let shown = match [a, b].map(is_program) {
        [true, true] => ", if both show their modules".to_owned(),
        [true, false] => format!(", if {name_a} shows its modules"),
        [false, true] => format!(", if {name_b} shows its modules"),
        [false, false] => String::new(),
    };
    let mut steps: Vec<String> = Vec::new();
    match decision(pair).map(|verdict| &verdict.decision) {
        Some(Decision::Identical) => steps.push("nothing to do: the logits are identical".into()),
        Some(Decision::SameMathematics) => {
            steps.push("nothing to fix: the difference is rounding".into());
        }
        Some(Decision::WorseRounding { worse }) => {
            let place = localize.map_or_else(String::new, |command| {
                format!("; `{command}` shows where its error grows, module by module{shown}")
            });
            steps.push(format!("check what {worse} accumulates or stores in a lower precision{place}"));
        }
        Some(Decision::Diverged) => {
            if !has_oracle {
                steps.push(
                    "run it with `oracle = true` under [run]: float64 tells which side is wrong".into(),
                );
            }
            // The run has tried to localise what diverges: a program that shows its modules has a result already.
            let may_find = pair.view.localized.is_empty() && ![a, b].into_iter().any(is_program);
            if let Some(command) = localize.filter(|_| may_find) {
                steps.push(format!(
                    "`{command}` finds the first module whose input agrees and whose output differs"
                ));
            }
            if pair.view.diagnosed.is_empty()
                && let Some([trusted, suspect]) = trusted_first([a, b])
            {
                let [trusted, suspect] = [trusted, suspect].map(|cell| quoted(&cell.name));
                steps.push(format!(
                    "`tfcheck diagnose --run {run} --case {case} {trusted} {suspect}` finds what {suspect} computes instead"
                ));
            }
            if let Some([good, bad]) = releases(pair.config, [&a.variant, &b.variant]) {
                steps.push(format!(
                    "`tfcheck bisect --run {run} --good {good} --bad {bad}` finds the release, or the commit, that changed it"
                ));
            }
            if !both_transformers {
                steps.push(
                    "check the config keys above: a key that one side ignores is the most likely cause"
                        .into(),
                );
            }
        }
        Some(Decision::Incomparable { .. }) => {
            steps.push(
                "give both sides the same inputs and head, so that their logits can be compared".into(),
            );
        }
        Some(Decision::NotRun { .. }) | None => {
            steps.push(format!("fix the cell that has no result (see its worker.log in the run folder), then complete the run with `tfcheck run --resume {run}`"));
        }
    }
    for step in steps {
        line(&mut text, &format!("  - {step}"));
    }
    text
}

/// The side that `tfcheck diagnose` can make commit mistakes, then the other one; `None` if neither can.
fn trusted_first([a, b]: [&Cell; 2]) -> Option<[&Cell; 2]> {
    match [a, b].map(|cell| cell.variant.runner.loads_any_folder()) {
        [true, _] => Some([a, b]),
        [false, true] => Some([b, a]),
        [false, false] => None,
    }
}

/// The releases of two transformers versions, older one first, as `tfcheck bisect` takes them; `None` if a
/// side is not a release or both are the same release.
fn releases<'a>(config: &'a Config, variants: [&Variant; 2]) -> Option<[&'a str; 2]> {
    let of = |variant: &Variant| {
        let is_it = |version: &&Version| version.name == variant.version;
        let version =
            config.versions.iter().filter(|_| variant.runner == Runner::Transformers).find(is_it)?;
        Some((release_order(version), version.source.as_ref()?.release()?))
    };
    let [a, b] = variants.map(of);
    let (a, b) = (a?, b?);
    match a.0.cmp(&b.0) {
        Ordering::Less => Some([a.1, b.1]),
        Ordering::Greater => Some([b.1, a.1]),
        Ordering::Equal => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use reference::protocol::{Attention, Dtype, Mode};

    use super::*;
    use crate::spec::config::VersionSource;

    fn variant(runner: Runner, version: &str) -> Variant {
        Variant {
            runner,
            version: version.to_owned(),
            mode: Mode::Eager,
            attention: Some(Attention::Eager),
            dtype: Dtype::F32,
            device: "cpu".to_owned(),
            auto_dtype: false,
            qualified: false,
        }
    }

    #[test]
    fn a_bisection_is_suggested_from_the_older_release_to_the_newer_one() {
        let version = |name: &str, source: VersionSource| Version {
            name: name.to_owned(),
            source: Some(source),
            python: None,
            modes: None,
            attention: None,
            dtypes: None,
        };
        let release = |number: &str| VersionSource::Release(number.to_owned());
        let config = Config {
            versions: vec![
                version("new", release("5.23.0")),
                version("4.9.0", release("4.9.0")),
                version("4.40.2", release("4.40.2")),
                version("fork", VersionSource::Editable("fork".into())),
            ],
            ..Config::default()
        };
        let of = |names: [&str; 2]| {
            let sides = names.map(|name| variant(Runner::Transformers, name));
            releases(&config, [&sides[0], &sides[1]])
        };
        for names in [["4.40.2", "new"], ["new", "4.40.2"]] {
            let [good, bad] = of(names).unwrap();
            assert_eq!([good, bad], ["4.40.2", "5.23.0"], "good is the older release");
            let words = ["tfcheck", "bisect", "--good", good, "--bad", bad];
            assert!(crate::cli::Cli::try_parse_from(words).is_ok());
        }
        assert_eq!(of(["4.40.2", "4.9.0"]), Some(["4.9.0", "4.40.2"]), "4.9 is older than 4.40");
        assert_eq!(of(["fork", "new"]), None, "a folder has no place among the releases");
        let candle = variant(Runner::Candle, "new");
        assert_eq!(releases(&config, [&candle, &variant(Runner::Transformers, "4.9.0")]), None);
    }
}
