//! Checks a plan from a run folder before its indices and names are used.

use bounds::limits::{BATCH, BATCH_TOKENS, CASES, CELLS, LENGTH};

use super::{InputsPlan, Plan};
use crate::spec::atomic::is_component;
use crate::spec::config::Config;
use crate::spec::variant::Runner;

/// The first problem of a plan of `config`, such as "refers to case 3 of 2"; `None` if it is valid.
pub(super) fn problem(plan: &Plan, config: &Config) -> Option<String> {
    if plan.cells.is_empty() {
        return Some("has no cells".to_owned());
    }
    let counts = [(CASES, plan.cases.len()), (CELLS, plan.cells.len())];
    if let Some(exceeded) = counts.iter().find_map(|(limit, count)| limit.check(*count as u64).err()) {
        return Some(format!("has {exceeded}"));
    }
    let beyond = |what: &str, index: usize, of: usize| {
        (index >= of).then(|| format!("refers to {what} {} of {of}", index.saturating_add(1)))
    };
    for case in &plan.cases {
        if !is_component(&case.name) {
            return Some(format!("has a case `{}`, which is not a file name", case.name.escape_default()));
        }
        if let Some(problem) = sizes(case.inputs) {
            return Some(format!("has a case `{}` that has {problem}", case.name));
        }
        if let Some(problem) = beyond("checkpoint", case.checkpoint, config.checkpoints.len()) {
            return Some(problem);
        }
    }
    plan.cells.iter().find_map(|cell| {
        let environment = cell.environment.map(|index| ("environment", index, plan.environments.len()));
        let command = cell.command.map(|index| ("command", index, config.commands.len()));
        let needs = match cell.variant.runner {
            Runner::Transformers if environment.is_none() => Some("an environment"),
            Runner::Command if command.is_none() => Some("a command"),
            _ => None,
        };
        if let Some(needs) = needs {
            return Some(format!("has a cell {} without {needs}", cell.variant.name().escape_default()));
        }
        if !is_component(&cell.variant.name()) || !is_component(&cell.variant.version) {
            let name = cell.variant.name();
            return Some(format!("has a variant `{}`, which is not a file name", name.escape_default()));
        }
        let case = Some(("case", cell.case, plan.cases.len()));
        [case, environment, command]
            .into_iter()
            .flatten()
            .find_map(|(what, index, of)| beyond(what, index, of))
    })
}

/// The size of a batch that is 0 or beyond its limit.
fn sizes(inputs: InputsPlan) -> Option<String> {
    let InputsPlan::Sweep { length, batch, prefill, .. } = inputs else { return None };
    if length == 0 || batch == 0 || prefill.is_some_and(|tokens| tokens == 0 || tokens >= length) {
        return Some("no tokens to compute".to_owned());
    }
    let tokens = length.saturating_mul(batch);
    let exceeded = [(LENGTH, length), (BATCH, batch), (BATCH_TOKENS, tokens)]
        .into_iter()
        .find_map(|(limit, found)| limit.check(found as u64).err())?;
    Some(exceeded.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::plan::PlanError;

    /// Checks a saved plan whose JSON `change` altered; an empty `expected` means that it is valid.
    fn check(change: impl FnOnce(&mut serde_json::Value), expected: &str) {
        let config = Config::default();
        let plan = Plan::new(&config, "cpu").unwrap();
        let mut saved = serde_json::to_value(&plan).unwrap();
        change(&mut saved);
        let read: Plan = serde_json::from_value(saved).unwrap();
        match read.check(&config) {
            Ok(()) => assert_eq!((read, expected), (plan, "")),
            Err(PlanError::Saved(problem)) => {
                assert!(!expected.is_empty() && problem.contains(expected), "{problem}");
            }
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_saved_plan_reads_back_unchanged_and_a_damaged_one_is_refused() {
        check(|_| (), "");
        check(|plan| plan["cells"][0]["case"] = 7.into(), "refers to case 8 of");
        check(|plan| plan["cells"][0]["environment"] = 9.into(), "refers to environment 10 of");
        check(|plan| plan["cells"][0]["environment"] = serde_json::Value::Null, "without an environment");
        check(|plan| plan["cases"][0]["checkpoint"] = 5.into(), "refers to checkpoint 6 of");
        check(|plan| plan["cases"][0]["name"] = "../elsewhere".into(), "which is not a file name");
        check(|plan| plan["cells"][0]["variant"]["version"] = "..".into(), "which is not a file name");
        check(|plan| plan["cells"] = serde_json::json!([]), "has no cells");
        let length = |length: u64| {
            move |plan: &mut serde_json::Value| plan["cases"][0]["inputs"]["length"] = length.into()
        };
        check(length(1 << 50), "tokens of a sequence, and tfcheck accepts at most");
        check(length(0), "no tokens to compute");
        check(|plan| plan["cases"][0]["inputs"]["batch"] = (1_u64 << 40).into(), "sequences of a batch");
        check(|plan| plan["cases"][0]["inputs"]["prefill"] = 500.into(), "no tokens to compute");
    }
}
