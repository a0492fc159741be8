//! Creates the cases, variants, environments and cells of a config.

use std::collections::HashSet;

use bounds::limits::CELLS;
use reference::protocol::Mode;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::columns::{Column, columns, release_order};
use super::{CasePlan, CellPlan, EnvironmentOrigin, EnvironmentPlan, InputsPlan, Plan, PlanError};
use crate::spec::config::{CheckpointSource, Config, InputsForm, Padding, Version};
use crate::spec::machine::hex;
use crate::spec::nearest::nearest;
use crate::spec::variant::Runner;

pub(super) fn build(config: &Config, auto_device: &str) -> Result<Plan, PlanError> {
    let environments = environments(config);
    let columns = columns(config, &environments, auto_device);
    if columns.is_empty() {
        return Err(PlanError::Empty);
    }
    let cases = cases(config);
    CELLS.check((cases.len() as u64).saturating_mul(columns.len() as u64)).map_err(PlanError::TooMany)?;
    let cells = (0..cases.len())
        .flat_map(|case| columns.iter().map(move |column| (case, column)))
        .map(|(case, column)| CellPlan {
            case,
            variant: column.variant.clone(),
            environment: column.environment,
            command: column.command,
            // A prefill with decode steps is compared but not timed: the sum over all its passes is not a useful time.
            measured: column.measured && cases[case].inputs.prefill().is_none(),
            oracle: column.oracle,
            key: key(config, &cases[case], &environments, column),
        })
        .collect();
    let mut plan = Plan { cases, environments, cells, baseline: String::new() };
    if let Some(name) = &config.run.baseline {
        let names: Vec<String> = columns.iter().map(|column| column.variant.name()).collect();
        if !names.contains(name) {
            return Err(no_such_baseline(name, &names));
        }
    }
    plan.set_baseline(config);
    let mut names = HashSet::new();
    for cell in &plan.cells {
        let name = plan.cell_name(cell);
        if !names.insert(name.to_lowercase()) {
            return Err(PlanError::SameName(name));
        }
    }
    Ok(plan)
}

impl Plan {
    /// Chooses the baseline: the config's one if the plan still has it, otherwise eager mode of the newest transformers,
    /// otherwise the first variant.
    pub(super) fn set_baseline(&mut self, config: &Config) {
        let named = self.cells.iter().find(|cell| Some(cell.variant.name()) == config.run.baseline);
        let newest = || {
            let eager = |cell: &&CellPlan| {
                cell.measured
                    && cell.variant.runner == Runner::Transformers
                    && cell.variant.mode == Mode::Eager
            };
            let age = |cell: &&CellPlan| {
                let version = config.versions.iter().find(|version| version.name == cell.variant.version);
                version.map(release_order)
            };
            // `max_by_key` returns the last of equal elements, so the order is reversed to get the first listed variant.
            self.cells.iter().filter(eager).rev().max_by_key(age)
        };
        let measured = || self.cells.iter().find(|cell| cell.measured);
        let chosen = named.or_else(newest).or_else(measured).or(self.cells.first());
        self.baseline = chosen.map(|cell| cell.variant.name()).unwrap_or_default();
    }
}

fn no_such_baseline(name: &str, names: &[String]) -> PlanError {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let meant = nearest(name, &names).map(|meant| format!("did you mean `{meant}`? ")).unwrap_or_default();
    PlanError::Baseline {
        name: name.to_owned(),
        hint: format!("{meant}the variants are {}", names.join(", ")),
    }
}

/// Each checkpoint with each batch of inputs.
fn cases(config: &Config) -> Vec<CasePlan> {
    let mut cases = Vec::new();
    for (checkpoint, base) in
        config.checkpoints.iter().map(crate::spec::config::Checkpoint::case_name).enumerate()
    {
        let mut add = |name: &str, inputs: &dyn Fn(Option<Padding>) -> InputsPlan| {
            let listed = config.inputs.padding.iter().flatten().copied().map(Some).collect::<Vec<_>>();
            for padding in if listed.is_empty() { vec![None] } else { listed } {
                let side = match padding {
                    Some(Padding::Left) => "-left",
                    Some(Padding::Right) => "-right",
                    Some(Padding::None) | None => "",
                };
                cases.push(CasePlan { name: format!("{name}{side}"), checkpoint, inputs: inputs(padding) });
            }
        };
        match config.inputs.form() {
            InputsForm::Prompts { .. } => add(&base, &|padding| InputsPlan::Prompts { padding }),
            InputsForm::TokenIds(_) => add(&base, &|padding| InputsPlan::TokenIds { padding }),
            InputsForm::Tensors(_) => {
                cases.push(CasePlan { name: base.clone(), checkpoint, inputs: InputsPlan::Tensors });
            }
            InputsForm::Processed => {
                cases.push(CasePlan { name: base.clone(), checkpoint, inputs: InputsPlan::Processed });
            }
            InputsForm::Sweep { lengths, batch, prefill, .. } => {
                for &length in &lengths {
                    for &batch in &batch {
                        let rows = if batch == 1 { String::new() } else { format!("-b{batch}") };
                        let fitting = prefill.iter().filter(|&&tokens| tokens < length);
                        for prefill in std::iter::once(None).chain(fitting.copied().map(Some)) {
                            let cached = prefill.map(|n| format!("-prefill{n}")).unwrap_or_default();
                            let name = format!("{base}{rows}-{length}{cached}");
                            add(&name, &|padding| InputsPlan::Sweep {
                                length,
                                batch,
                                padding: padding.unwrap_or(Padding::None),
                                prefill,
                            });
                        }
                    }
                }
            }
        }
    }
    cases
}

/// The environments that the versions need, without duplicates.
fn environments(config: &Config) -> Vec<EnvironmentPlan> {
    let mut environments: Vec<EnvironmentPlan> = Vec::new();
    for version in &config.versions {
        let Some(origin) = origin(config, version) else {
            continue;
        };
        match environments.iter_mut().find(|environment| environment.origin == origin) {
            Some(environment) => environment.versions.push(version.name.clone()),
            None => environments.push(EnvironmentPlan { versions: vec![version.name.clone()], origin }),
        }
    }
    environments
}

/// The config's requirements, and what processors of pictures need.
fn requirements(config: &Config) -> Vec<String> {
    let pictures = config.inputs.images.iter().flat_map(|_| ["pillow", "torchvision"]).map(ToOwned::to_owned);
    config.environment.requirements.iter().cloned().chain(pictures).collect()
}

/// The origin of the environment of `version`; `None` if it has neither source nor python, which `validate` refuses.
fn origin(config: &Config, version: &Version) -> Option<EnvironmentOrigin> {
    match (&version.python, &version.source) {
        (Some(python), expected) => {
            Some(EnvironmentOrigin::Existing { python: python.clone(), expected: expected.clone() })
        }
        (None, Some(source)) => Some(EnvironmentOrigin::Made {
            source: source.clone(),
            torch: config.environment.torch.clone(),
            torch_backend: config.environment.torch_backend,
            requirements: requirements(config),
            python: config.environment.python.clone(),
        }),
        (None, None) => None,
    }
}

/// Digest of everything in the config that determines a cell's results; names and limits are excluded.
fn key(config: &Config, case: &CasePlan, environments: &[EnvironmentPlan], column: &Column) -> String {
    let checkpoint = &config.checkpoints[case.checkpoint];
    let inputs = &config.inputs;
    let (prompts, chat, text) = match inputs.form() {
        InputsForm::Prompts { prompts, chat } => (prompts, chat, None),
        InputsForm::TokenIds(_) | InputsForm::Tensors(_) => (&[][..], false, None),
        InputsForm::Processed => (inputs.prompts.as_deref().unwrap_or_default(), inputs.chat, None),
        InputsForm::Sweep { text, .. } => (&[][..], false, text),
    };
    let revision = match &checkpoint.source {
        CheckpointSource::Hub(_) => checkpoint.revision.as_deref().or(Some("main")),
        _ => None,
    };
    let variant = &column.variant;
    let run = &config.run;
    let passes = column.measured.then_some((run.warm_up, run.iterations, run.rounds, run.trace));
    let further = (&inputs.images, &inputs.audio, &inputs.tensors, inputs.labels, &run.outputs);
    let further = (further != (&None, &None, &None, false, &Vec::new())).then_some(further);
    let parts = json!({
        "plan": 1,
        "further": further,
        "checkpoint": [checkpoint.source, revision, checkpoint.allow_remote_code, checkpoint.translate],
        "inputs": [case.inputs, prompts, chat, text, inputs.seed, inputs.token_ids, inputs.position_ids],
        "variant": [
            variant.runner, variant.mode, variant.attention, variant.dtype, variant.auto_dtype, variant.device
        ],
        "environment": column.environment.map(|index| &environments[index].origin),
        "program": column.command.map(|index| &config.commands[index].program),
        "run": [run.threads, run.seed, passes, run.noise],
    });
    hex(&Sha256::digest(parts.to_string()))
}
