//! What a run needs before its first cell: checkpoints, inputs and environments.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use miette::{Result, WrapErr};
use reference::{Environment, Python, Source, Specification};
use serde_json::{Value, json};

use super::Order;
use crate::checkpoint::{self, Checkpoint, Step};
use crate::config::{self, InputsForm, Padding};
use crate::inputs::{self, Inputs, Prompt, Spec};
use crate::machine::Machine;
use crate::plan::{CasePlan, EnvironmentOrigin, EnvironmentPlan, InputsPlan};
use crate::results::{Case, Choice, Manifest, SCHEMA_VERSION};

/// An environment, or the message that its cells carry instead.
pub(super) type EnvironmentResult = Result<Environment, String>;

/// Everything that cells need.
pub(super) struct Preparation {
    /// In the plan's order.
    pub(super) cases: Vec<PreparedCase>,
    /// In the plan's order.
    pub(super) environments: Vec<EnvironmentResult>,
}

/// A case with its files.
pub(super) struct PreparedCase {
    pub(super) checkpoint: Checkpoint,
    pub(super) inputs: Inputs,
}

/// Resolves checkpoints and makes inputs while uv works on the environments.
pub(super) fn prepare(order: &Order) -> Result<Preparation> {
    std::thread::scope(|scope| {
        let environments = scope.spawn(|| environments(order));
        let cases = cases(order);
        let environments =
            environments.join().map_err(|_| miette::miette!("the thread of the environments panicked"));
        Ok(Preparation { cases: cases?, environments: environments?? })
    })
}

fn cases(order: &Order) -> Result<Vec<PreparedCase>> {
    let mut checkpoints: BTreeMap<usize, Checkpoint> = BTreeMap::new();
    let mut cases = Vec::new();
    for case in &order.plan.cases {
        let checkpoint = match checkpoints.entry(case.checkpoint) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(place) => {
                place.insert(resolve(order, &order.config.checkpoints[case.checkpoint])?).clone()
            }
        };
        let inputs = make_inputs(order.config, case, &checkpoint)
            .wrap_err_with(|| format!("inputs of {}", case.name))?;
        cases.push(PreparedCase { checkpoint, inputs });
    }
    Ok(cases)
}

fn resolve(order: &Order, wanted: &config::Checkpoint) -> Result<Checkpoint> {
    let source = wanted.source.to_string();
    let settings = checkpoint::Settings {
        revision: wanted.revision.clone(),
        allow_remote_code: wanted.allow_remote_code,
        seed: order.config.run.seed,
        ..checkpoint::Settings::new(order.cache)
    };
    let task = order.progress.task(&source, 100);
    let mut percent = 0;
    let mut show = |step: Step<'_>| {
        let (what, done, total) = match step {
            Step::Download { file, done, total } => (format!("downloading {file}"), done, total),
            Step::Import { tensor, done, total } => (format!("importing {tensor}"), done, total),
            Step::Hash { file, done, total } => (format!("hashing {file}"), done, total),
        };
        let now = done * 100 / total.max(1);
        if now != percent {
            percent = now;
            task.at(now, &what);
        }
    };
    Ok(checkpoint::resolve(&source, &settings, &mut show)?)
}

fn make_inputs(config: &config::Config, case: &CasePlan, checkpoint: &Checkpoint) -> Result<Inputs> {
    let side = |padding: Padding| match padding {
        Padding::Left => inputs::Padding::Left,
        Padding::Right => inputs::Padding::Right,
    };
    let spec = match (case.inputs, config.inputs.form()) {
        (InputsPlan::Prompts { padding }, InputsForm::Prompts { prompts, chat }) => Spec::Prompts {
            prompts: prompts
                .iter()
                .map(|text| {
                    if chat {
                        Prompt::Chat(vec![inputs::Message { role: "user".into(), content: text.clone() }])
                    } else {
                        Prompt::Text(text.clone())
                    }
                })
                .collect(),
            padding: side(padding),
            choices: config.inputs.choices.clone().unwrap_or_default(),
        },
        (InputsPlan::Sweep { length, batch, padding }, InputsForm::Sweep { text, .. }) => Spec::Lengths {
            lengths: vec![length],
            batches: vec![batch],
            paddings: vec![(batch > 1).then(|| side(padding))],
            text: text.map(ToOwned::to_owned),
            seed: config.inputs.seed,
        },
        _ => miette::bail!("the plan's inputs are not of the config's form"),
    };
    let made = inputs::make(&spec, checkpoint)?;
    made.into_iter().next().ok_or_else(|| miette::miette!("the spec made no batch"))
}

fn environments(order: &Order) -> Result<Vec<EnvironmentResult>> {
    let plans = &order.plan.environments;
    let specifications: Vec<Specification> = plans.iter().map(specification).collect();
    if order.clean {
        for specification in &specifications {
            reference::forget(specification, order.cache)
                .map_err(|error| miette::miette!("--clean: {error}"))?;
        }
    }
    let names: Vec<String> = plans.iter().map(|plan| plan.versions.join(", ")).collect();
    let task = order.progress.task("environments", specifications.len() as u64);
    // uv lists every package; that is for the log.
    let show = |index: usize, line: &str| {
        if line.trim_start().starts_with(['+', '-', '~']) {
            order.progress.log(&format!("{}: {line}", names[index]));
        } else {
            task.line(&format!("{}: {line}", names[index]));
        }
    };
    let made = reference::prepare_all(&specifications, order.cache, &show);
    Ok(made.into_iter().map(|environment| environment.map_err(|error| describe(&error))).collect())
}

/// An environment's failure in one text, its hint included, as the tables show it.
fn describe(error: &reference::EnvironmentError) -> String {
    format!("{error} ({})", error.hint())
}

/// What uv is asked for.
pub(crate) fn specification(plan: &EnvironmentPlan) -> Specification {
    match &plan.origin {
        EnvironmentOrigin::Existing { python, expected } => Specification {
            python: Python::Existing(python.clone()),
            ..Specification::new(expected.clone().unwrap_or(Source::Newest))
        },
        EnvironmentOrigin::Made { source, torch, torch_backend, requirements, python } => {
            let defaults = Specification::new(source.clone());
            Specification {
                torch: torch.clone(),
                torch_backend: *torch_backend,
                extra: requirements.clone(),
                python: python.clone().map_or(defaults.python.clone(), Python::Request),
                ..defaults
            }
        }
    }
}

/// `run.json` of a run over these cases.
pub(super) fn manifest(order: &Order, cases: &[PreparedCase], stamp: String, notes: Vec<String>) -> Manifest {
    let plan = order.plan;
    let case = |(index, (plan_case, prepared)): (usize, (&CasePlan, &PreparedCase))| Case {
        name: plan_case.name.clone(),
        checkpoint: prepared.checkpoint.name.clone(),
        checkpoint_digest: prepared.checkpoint.digest.clone(),
        inputs: describe_inputs(&prepared.inputs),
        inputs_digest: prepared.inputs.digest.clone(),
        choices: prepared
            .inputs
            .choices
            .iter()
            .map(|choice| Choice { text: choice.text.clone(), id: choice.id })
            .collect(),
        variants: plan
            .cells
            .iter()
            .filter(|cell| cell.case == index)
            .map(|cell| cell.variant.clone())
            .collect(),
        notes: prepared.checkpoint.notes.iter().chain(&prepared.inputs.notes).cloned().collect(),
    };
    Manifest {
        schema_version: SCHEMA_VERSION,
        stamp,
        config: order.config.clone(),
        folder: order.config.folder.clone(),
        baseline: Some(plan.baseline.clone()),
        cases: plan.cases.iter().zip(cases).enumerate().map(case).collect(),
        notes,
    }
}

fn describe_inputs(inputs: &Inputs) -> String {
    let padding = match inputs.padding {
        Some(inputs::Padding::Left) => ", padded left",
        Some(inputs::Padding::Right) => ", padded right",
        None => "",
    };
    format!("batch {}, {} tokens{padding}", inputs.batch, inputs.seq)
}

/// `environment.json`.
pub(super) fn environment_record(
    order: &Order,
    machine: &Machine,
    environments: &[EnvironmentResult],
    cases: &[PreparedCase],
) -> Value {
    let environment = |(plan, result): (&EnvironmentPlan, &EnvironmentResult)| match result {
        Ok(known) => {
            json!({"versions": plan.versions, "key": known.key, "installed": known.versions, "notes": known.notes})
        }
        Err(error) => json!({"versions": plan.versions, "error": error}),
    };
    let checkpoint = |prepared: &PreparedCase| {
        let known = &prepared.checkpoint;
        json!({"name": known.name, "model_type": known.model_type, "revision": known.revision, "digest": known.digest})
    };
    json!({
        "schema_version": SCHEMA_VERSION,
        "machine": machine,
        "fingerprint": machine.fingerprint(),
        "threads": order.config.run.threads.unwrap_or_else(crate::machine::physical_cores),
        "environments": order.plan.environments.iter().zip(environments).map(environment).collect::<Vec<_>>(),
        "checkpoints": cases.iter().map(checkpoint).collect::<Vec<_>>(),
    })
}
