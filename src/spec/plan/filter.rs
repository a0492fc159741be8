//! `--only` and `--skip`: globs over `case/variant`.

use reference::protocol::glob;

use super::{Plan, PlanError};
use crate::spec::config::Config;
use crate::spec::nearest::nearest;

/// Selects cells of a plan. A pattern with a `/` is matched against `case/variant`, one without against the case and the
/// variant separately; `*` matches any text and `?` one character.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Only cells that match one of these are kept; if empty, all cells are kept.
    pub only: Vec<String>,
    /// Cells that match one of these are dropped, even if `only` keeps them.
    pub skip: Vec<String>,
}

/// Why a filter is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, miette::Diagnostic)]
pub enum FilterError {
    /// The pattern matches no cell.
    #[error("`{pattern}` matches no cell")]
    NoMatch {
        /// The pattern as given.
        pattern: String,
        /// The remedy.
        #[help]
        hint: String,
    },
    /// The filters drop every cell.
    #[error("the filters leave no cell")]
    #[diagnostic(help("--skip takes precedence over --only"))]
    NothingLeft,
}

pub(super) fn filtered(plan: &Plan, filters: &Filters, config: &Config) -> Result<Plan, PlanError> {
    let names: Vec<(&str, String)> =
        plan.cells.iter().map(|cell| (plan.cases[cell.case].name.as_str(), cell.variant.name())).collect();
    for pattern in filters.only.iter().chain(&filters.skip) {
        if !names.iter().any(|(case, variant)| matches(pattern, case, variant)) {
            return Err(no_match(pattern, &names).into());
        }
    }
    let any = |patterns: &[String], case: &str, variant: &str| {
        patterns.iter().any(|pattern| matches(pattern, case, variant))
    };
    let mut left = plan.clone();
    let mut wanted = names.iter().map(|(case, variant)| {
        (filters.only.is_empty() || any(&filters.only, case, variant)) && !any(&filters.skip, case, variant)
    });
    left.cells.retain(|_| wanted.next() == Some(true));
    settled(left, config)
}

/// Cleans up a plan after cells were dropped: unused parts are removed and the baseline is set again.
pub(super) fn settled(mut left: Plan, config: &Config) -> Result<Plan, PlanError> {
    if left.cells.is_empty() {
        return Err(FilterError::NothingLeft.into());
    }
    left.drop_unused();
    left.set_baseline(config);
    Ok(left)
}

impl Plan {
    /// Drops the cases and environments that no cell refers to, and renumbers the rest.
    pub(crate) fn drop_unused(&mut self) {
        drop_unused(self);
    }
}

fn drop_unused(plan: &mut Plan) {
    let mut cases = Vec::new();
    let mut environments = Vec::new();
    for cell in &mut plan.cells {
        cell.case = renumber(&mut cases, cell.case);
        cell.environment = cell.environment.map(|old| renumber(&mut environments, old));
    }
    plan.cases = cases.into_iter().map(|old| plan.cases[old].clone()).collect();
    plan.environments = environments.into_iter().map(|old| plan.environments[old].clone()).collect();
    for (index, environment) in plan.environments.iter_mut().enumerate() {
        environment.versions.retain(|version| {
            plan.cells.iter().any(|cell| cell.environment == Some(index) && cell.variant.version == *version)
        });
    }
}

/// Index of `old` in `seen`; appends it at its first use.
fn renumber(seen: &mut Vec<usize>, old: usize) -> usize {
    seen.iter().position(|one| *one == old).unwrap_or_else(|| {
        seen.push(old);
        seen.len() - 1
    })
}

fn matches(pattern: &str, case: &str, variant: &str) -> bool {
    match pattern.split_once('/') {
        Some(_) => glob(pattern.as_bytes(), format!("{case}/{variant}").as_bytes()),
        None => glob(pattern.as_bytes(), case.as_bytes()) || glob(pattern.as_bytes(), variant.as_bytes()),
    }
}

fn no_match(pattern: &str, names: &[(&str, String)]) -> FilterError {
    let mut known: Vec<String> = Vec::new();
    for (case, variant) in names {
        if pattern.contains('/') {
            known.push(format!("{case}/{variant}"));
        } else {
            known.extend([(*case).to_owned(), variant.clone()]);
        }
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    // `*` is ignored when looking for the name that was meant.
    let hint = match nearest(&pattern.replace(['*', '?'], ""), &known) {
        Some(name) => format!("did you mean `{name}`? `tfcheck plan` lists all names"),
        None => "`tfcheck plan` lists the cases and variants; `*` matches any text".to_owned(),
    };
    FilterError::NoMatch { pattern: pattern.to_owned(), hint }
}
