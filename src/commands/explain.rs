//! `tfcheck explain`: describes one pair of variants from the files of a run folder, without running
//! anything.

mod next;
mod story;

use std::path::Path;

use miette::{Result, miette};

use crate::execute::cell::{Cell, Outcome};
use crate::judge::assess::bears_on;
use crate::judge::assess::{self, Known};
use crate::judge::view::CaseView;
use crate::results::environment::EnvironmentRecord;
use crate::results::{Case, Manifest, RunFolder};
use crate::spec::config::Config;
use crate::spec::inputs::{self, Inputs};
use crate::spec::nearest::nearest;
use compare::mask::Mask;
use compare::matrix::Entry;

/// The pair of variants of one case that the description is about.
struct Pair<'a> {
    /// The run folder's path, as given on the command line.
    run: String,
    /// The two variants first, in the order given, then the cells that their verdict depends on.
    view: CaseView,
    /// The recorded inputs; absent if the file cannot be read.
    inputs: Option<Inputs>,
    /// `environment.json`.
    environment: Option<EnvironmentRecord>,
    case: &'a Case,
    config: &'a Config,
}

/// Describes a pair, given as `A..B` or as two names, in every case of the run that has both variants;
/// `CASE/A..B` restricts it to one case.
///
/// # Errors
/// When the folder holds no run, or a name matches none of its variants.
pub fn explain(run: &Path, pair: &[String]) -> Result<String> {
    let folder = RunFolder::open(run)?;
    let manifest = folder.manifest()?;
    let (case, a, b) = split(pair)?;
    let wanted: Vec<&Case> =
        manifest.cases.iter().filter(|known| case.as_ref().is_none_or(|case| known.name == *case)).collect();
    if manifest.cases.is_empty() {
        return Err(miette!(help = "`tfcheck run --resume RUN` computes them", "the run has no cases"));
    }
    if wanted.is_empty() {
        let known: Vec<&str> = manifest.cases.iter().map(|case| case.name.as_str()).collect();
        let given = case.unwrap_or_default();
        return Err(miette!(help = listed(&known), "the run has no case `{given}`"));
    }
    let mut stories = Vec::new();
    for case in wanted {
        let names: Vec<String> = case.variants.iter().map(crate::spec::variant::Variant::name).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (a, b) = (find(&a, &names)?, find(&b, &names)?);
        if a == b {
            return Err(miette!(help = listed(&names), "both sides of the pair are `{a}`"));
        }
        let pair = load(&folder, &manifest, case, [a, b])?;
        stories.push(story::tell(&pair) + &next::steps(&pair));
    }
    Ok(stories.join("\n"))
}

/// The names from which the user can choose.
fn listed(names: &[&str]) -> String {
    if names.is_empty() {
        "it has none: `tfcheck run --resume RUN` computes them".to_owned()
    } else {
        format!("there are {}", names.join(", "))
    }
}

/// Case, A and B as given on the command line.
fn split(pair: &[String]) -> Result<(Option<String>, String, String)> {
    let form =
        || miette!(help = "write `A..B`, `CASE/A..B` or two names", "`{}` is not a pair", pair.join(" "));
    let (a, b) = match pair {
        [one] => one.split_once("..").ok_or_else(form)?,
        [a, b] => (a.as_str(), b.as_str()),
        _ => return Err(form()),
    };
    let (case, a) = match a.split_once('/') {
        Some((case, a)) => (Some(case.to_owned()), a),
        None => (None, a),
    };
    if a.is_empty() || b.is_empty() {
        return Err(form());
    }
    Ok((case, a.to_owned(), b.to_owned()))
}

/// The variant named `given`, or the only one whose name contains it.
fn find<'name>(given: &str, names: &[&'name str]) -> Result<&'name str> {
    if let Some(name) = names.iter().find(|name| **name == given) {
        return Ok(name);
    }
    let holding: Vec<&str> = names.iter().copied().filter(|name| name.contains(given)).collect();
    match holding[..] {
        [name] => Ok(name),
        [] => {
            let hint = nearest(given, names)
                .map_or_else(|| listed(names), |meant| format!("did you mean `{meant}`? {}", listed(names)));
            Err(miette!(help = hint, "the run has no variant `{given}`"))
        }
        _ => Err(miette!(help = "write more of the name", "`{given}` is part of {}", holding.join(", "))),
    }
}

/// Measures the pair and the cells that its verdict depends on; other cells of the case are not read.
fn load<'a>(folder: &RunFolder, manifest: &'a Manifest, case: &'a Case, pair: [&str; 2]) -> Result<Pair<'a>> {
    let files = folder.case_folder(manifest, &case.name);
    let cells = folder.cells(manifest, case)?;
    let named = |name: &str| -> Result<Cell> {
        cells.iter().find(|cell| cell.name == name).cloned().ok_or_else(|| {
            miette!(
                help = "`tfcheck run --resume RUN` completes the run",
                "this run has not started `{name}`"
            )
        })
    };
    let mut chosen = vec![named(pair[0])?, named(pair[1])?];
    let variants = [chosen[0].variant.clone(), chosen[1].variant.clone()];
    let is_needed = |cell: &&Cell| {
        bears_on(&cell.variant, variants.each_ref())
            && matches!(cell.outcome, Outcome::Completed(_))
            && !pair.contains(&cell.name.as_str())
    };
    chosen.extend(cells.iter().filter(is_needed).cloned());
    let entries: Vec<Entry> = chosen.iter().map(|cell| assess::entry(cell, &files)).collect();
    let mask = assess::mask(&files, &chosen)?.unwrap_or_else(|| Mask::all_real(0, 0));
    let tolerances = &manifest.config.tolerances;
    let localized = folder.localized()?;
    let near_ties = assess::near_ties_of_a_cache(folder, manifest, (case, &chosen), &localized, &mask)?;
    let envelopes = folder.envelopes()?;
    let known = Known { localized: &localized, near_ties: &near_ties, envelopes: &envelopes };
    let mut view = assess::case_view((case, known), None, chosen, &entries, Some(&mask), tolerances)?;
    let of_pair = |one: &str, other: &str| [pair, [pair[1], pair[0]]].contains(&[one, other]);
    view.diagnosed = folder.diagnosed()?;
    view.diagnosed.retain(|found| found.case == case.name && of_pair(&found.trusted, &found.suspect));
    view.localized.retain(|found| of_pair(&found.a, &found.b));
    Ok(Pair {
        run: folder.path().display().to_string(),
        view,
        inputs: inputs::load(&files).ok(),
        environment: folder.environment(),
        case,
        config: &manifest.config,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_two_names_or_one_range() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let check = |given: &[&str], case: Option<&str>, a: &str, b: &str| {
            let found = split(&words(given)).unwrap();
            assert_eq!(found, (case.map(str::to_owned), a.to_owned(), b.to_owned()), "{given:?}");
        };
        check(&["4.54.0_eager_sdpa..candle_fused"], None, "4.54.0_eager_sdpa", "candle_fused");
        check(&["a", "b"], None, "a", "b");
        check(&["llama-128/a..b"], Some("llama-128"), "a", "b");
        for wrong in [&["a"][..], &["a.."], &["..b"]] {
            assert!(split(&words(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_unique_substring_selects_a_variant() {
        let names = ["4.54.0_eager_sdpa", "5.23.0_eager_sdpa", "candle_eager", "candle_eager_f64"];
        assert_eq!(find("5.23", &names).unwrap(), "5.23.0_eager_sdpa");
        assert_eq!(
            find("candle_eager", &names).unwrap(),
            "candle_eager",
            "a whole name is no part of another"
        );
        let help = |given: &str| {
            let error = find(given, &names).unwrap_err();
            format!("{error} ({})", error.help().map(|help| help.to_string()).unwrap_or_default())
        };
        assert!(help("sdpa").contains("part of 4.54.0_eager_sdpa, 5.23.0_eager_sdpa"), "{}", help("sdpa"));
        assert!(help("candel_eager").contains("did you mean `candle_eager`"), "{}", help("candel_eager"));
    }
}
