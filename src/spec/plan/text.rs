//! The text that `tfcheck plan` prints.

use std::fmt::Write;

use super::{CellPlan, EnvironmentOrigin, InputsPlan, Plan};
use crate::spec::config::{Config, InputsForm, Padding, VersionSource};
use compare::units::count;

pub(super) fn text(plan: &Plan, config: &Config, unsupported: &[Option<String>]) -> String {
    let cells = || plan.cells.iter().zip(unsupported);
    let mut out = String::new();
    let mut variants: Vec<String> = Vec::new();
    for cell in &plan.cells {
        let name = cell.variant.name();
        if !variants.contains(&name) {
            variants.push(name);
        }
    }
    let digits = plan.cases.len().to_string().len();
    let labels: Vec<String> = plan
        .cases
        .iter()
        .enumerate()
        .map(|(index, case)| format!("{:>digits$}  {}", index + 1, case.name))
        .collect();
    let width = widest(&labels);
    line(&mut out, &count(plan.cases.len(), "case"));
    for (case, label) in plan.cases.iter().zip(&labels) {
        let checkpoint = &config.checkpoints[case.checkpoint];
        let revision =
            checkpoint.revision.as_ref().map(|revision| format!("@{revision}")).unwrap_or_default();
        line(
            &mut out,
            &format!("  {label:width$}  {}{revision}, {}", checkpoint.source, inputs(config, case.inputs)),
        );
    }

    line(&mut out, "");
    let width = widest(&variants);
    line(&mut out, &count(variants.len(), "variant"));
    let numbers = columns((1..=plan.cases.len()).map(|number| number.to_string()));
    line(&mut out, &format!("  {:width$}{numbers}", ""));
    for name in &variants {
        let marks = columns((0..plan.cases.len()).map(|case| {
            let here = |(cell, _): &(&CellPlan, _)| cell.case == case && cell.variant.name() == *name;
            cells().find(here).map_or("·", |(cell, reason)| mark(cell, reason.is_some())).to_owned()
        }));
        let note = if *name == plan.baseline { "  baseline" } else { "" };
        line(&mut out, &format!("  {name:width$}{marks}{note}"));
    }
    if plan.cells.iter().any(|cell| cell.oracle) {
        line(&mut out, "  x: run and timed; o: float64 reference (not timed); xo: both");
    }
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for reason in unsupported.iter().flatten() {
        match reasons.iter_mut().find(|(known, _)| known == reason) {
            Some((_, cells)) => *cells += 1,
            None => reasons.push((reason, 1)),
        }
    }
    for (reason, cells) in &reasons {
        line(&mut out, &format!("  -: unsupported: {reason} ({})", count(*cells, "cell")));
    }

    if !plan.environments.is_empty() {
        line(&mut out, "");
        let names: Vec<String> =
            plan.environments.iter().map(|environment| environment.versions.join(", ")).collect();
        let width = widest(&names);
        line(&mut out, &count(plan.environments.len(), "environment"));
        for (environment, name) in plan.environments.iter().zip(&names) {
            line(&mut out, &format!("  {name:width$}  {}", origin(&environment.origin)));
        }
    }
    line(&mut out, "");
    let supported = unsupported.iter().filter(|reason| reason.is_none()).count();
    line(&mut out, &format!("{} to compute", count(supported, "cell")));
    out
}

/// Right-aligned columns, one per case.
fn columns(entries: impl Iterator<Item = String>) -> String {
    let mut row = String::new();
    for entry in entries {
        // Writing to a String cannot fail.
        let _ = write!(row, "{entry:>4}");
    }
    row
}

fn mark(cell: &CellPlan, is_unsupported: bool) -> &'static str {
    match (cell.measured, cell.oracle) {
        _ if is_unsupported => "-",
        (true, true) => "xo",
        (_, true) => "o",
        _ => "x",
    }
}

fn inputs(config: &Config, inputs: InputsPlan) -> String {
    match inputs {
        InputsPlan::Prompts { padding } => {
            let (prompts, chat) = match config.inputs.form() {
                InputsForm::Prompts { prompts, chat } => (prompts.len(), chat),
                _ => (0, false),
            };
            let chat = if chat { " through the chat template" } else { "" };
            format!("{}{chat}{}", count(prompts, "prompt"), side(padding))
        }
        InputsPlan::TokenIds { padding } => {
            let sequences = config.inputs.token_ids.as_ref().map_or(0, Vec::len);
            format!("{} of given token ids{}", count(sequences, "sequence"), side(padding))
        }
        InputsPlan::Tensors => {
            let path = config.inputs.tensors.as_ref();
            format!("the tensors of {}", path.map(|path| path.display().to_string()).unwrap_or_default())
        }
        InputsPlan::Processed => {
            let of = |files: &Option<Vec<String>>| files.as_ref().map_or(0, Vec::len);
            let prompts = config.inputs.prompts.as_ref().map_or(0, Vec::len);
            let parts = [
                (of(&config.inputs.images), "picture"),
                (of(&config.inputs.audio), "sound"),
                (prompts, "prompt"),
            ];
            let parts = parts.into_iter().filter(|(number, _)| *number > 0);
            let parts: Vec<String> = parts.map(|(number, what)| count(number, what)).collect();
            format!("{} through the checkpoint's processor", parts.join(", "))
        }
        InputsPlan::Sweep { length, batch, padding, prefill } => {
            let cached = prefill.map(|n| format!(", {n} prefilled, the rest decoded")).unwrap_or_default();
            let padding = side(Some(padding));
            format!("{} of {}{padding}{cached}", count(batch, "sequence"), count(length, "token"))
        }
    }
}

fn side(padding: Option<Padding>) -> &'static str {
    match padding {
        Some(Padding::Left) => ", padded left",
        Some(Padding::Right) => ", padded right",
        Some(Padding::None) | None => "",
    }
}

fn origin(origin: &EnvironmentOrigin) -> String {
    match origin {
        EnvironmentOrigin::Existing { python, expected } => {
            let expected = expected
                .as_ref()
                .map(|source: &VersionSource| format!(", expected to have {source}"))
                .unwrap_or_default();
            format!("as it is: {}{expected}", python.display())
        }
        EnvironmentOrigin::Made { source, torch, torch_backend, requirements, python } => {
            let mut parts = vec![source.to_string(), format!("torch {torch} ({torch_backend})")];
            parts.extend(python.iter().map(|python| format!("Python {python}")));
            parts.extend(requirements.iter().cloned());
            parts.join(", ")
        }
    }
}

fn widest(names: &[String]) -> usize {
    names.iter().map(|name| name.chars().count()).max().unwrap_or(0)
}

fn line(out: &mut String, text: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{}", text.trim_end());
}
