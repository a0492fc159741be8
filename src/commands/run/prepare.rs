//! Prepares what a run needs before its first cell: checkpoints, inputs and environments.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, WrapErr};
use reference::protocol::{Dtype, Prepare};
use reference::{Environment, Python, Source, Specification};

use super::watch::Watch;
use super::{RunRequest, processed};
use crate::results::environment::{AutoDevice, CheckpointRecord, EnvironmentRecord, PythonEnvironment};
use crate::results::{AnswerToken, Axes, Case, Manifest, SCHEMA_VERSION};
use crate::spec::checkpoint::{self, Checkpoint, Step};
use crate::spec::config::{self, InputsForm, Padding};
use crate::spec::inputs::{self, Fill, Inputs, Prompt, Spec, Texts, retrieval};
use crate::spec::machine::{self, Machine};
use crate::spec::plan::{CasePlan, EnvironmentOrigin, EnvironmentPlan, InputsPlan, Plan};
use compare::units::count;

/// An environment, or the error message that its cells report.
pub(super) type EnvironmentResult = Result<Environment, String>;

/// Prepared cases and environments.
pub(super) struct Preparation {
    /// The request's plan with the dtypes of the checkpoints in place of `auto`.
    pub(super) plan: Plan,
    /// In the plan's order.
    pub(super) cases: Vec<PreparedCase>,
    /// In the plan's order.
    pub(super) environments: Vec<EnvironmentResult>,
}

/// A case with its files.
pub(super) struct PreparedCase {
    pub(super) checkpoint: Checkpoint,
    pub(super) inputs: Inputs,
    /// Texts to compare with each version's own tokenizer; present in the first case of a checkpoint that has
    /// a tokenizer.
    pub(super) texts: Option<Texts>,
    /// What each version's own processor is asked for, to compare it; present in the first case of a checkpoint.
    pub(super) processed: Option<Prepare>,
    /// The text of every token id; in the first case of a checkpoint that has a tokenizer.
    pub(super) vocabulary: Vec<String>,
}

impl Preparation {
    /// What `plan`, a part of this plan, needs of it.
    pub(super) fn narrowed(self, plan: Plan) -> Self {
        let Self { plan: whole, cases, environments } = self;
        let mut cases: Vec<Option<PreparedCase>> = cases.into_iter().map(Some).collect();
        let taken = plan.cases.iter().filter_map(|case| {
            let at = whole.cases.iter().position(|known| known.name == case.name)?;
            cases.get_mut(at)?.take()
        });
        let taken = taken.collect();
        let kept = plan.environments.iter().filter_map(|environment| {
            let at = whole.environments.iter().position(|known| known.origin == environment.origin)?;
            environments.get(at).cloned()
        });
        let environments = kept.collect();
        Self { plan, cases: taken, environments }
    }
}

/// Resolves checkpoints and makes inputs while uv works on the environments.
pub(super) fn prepare(request: &RunRequest) -> Result<Preparation> {
    // A run beside others is stopped by their time limit too, which must not end tfcheck.
    let what = "interrupted while checkpoints, inputs and environments were prepared";
    let _watch = request.turn.is_none().then(|| Watch::over(request.stop, PREPARING, what.to_owned()));
    std::thread::scope(|scope| {
        let environments = scope.spawn(|| environments(request));
        let joined = |thread: std::thread::ScopedJoinHandle<'_, Result<Vec<EnvironmentResult>>>| {
            thread.join().map_err(|_| miette::miette!("the thread of the environments panicked"))?
        };
        let (cases, environments) = if request.config.inputs.is_processed() {
            // A processor runs in an environment.
            let environments = joined(environments)?;
            (cases(request, &environments)?, environments)
        } else {
            let cases = cases(request, &[]);
            let environments = joined(environments);
            (cases?, environments?)
        };
        let dtypes: BTreeMap<usize, Dtype> = (request.plan.cases.iter().zip(&cases))
            .map(|(plan, prepared)| (plan.checkpoint, prepared.checkpoint.dtype()))
            .collect();
        let plan = request.plan.clone().with_dtypes(|checkpoint| dtypes[&checkpoint]);
        Ok(Preparation { plan, cases, environments })
    })
}

/// Nothing is computed yet that would have to be kept: a request to stop ends tfcheck within two seconds. Most waits heed it
/// themselves before that, and leave nothing behind.
const PREPARING: Duration = Duration::from_millis(1200);

fn cases(request: &RunRequest, environments: &[EnvironmentResult]) -> Result<Vec<PreparedCase>> {
    let plans = &request.plan.cases;
    let mut checkpoints: BTreeMap<usize, Checkpoint> = BTreeMap::new();
    for case in plans {
        if let Entry::Vacant(place) = checkpoints.entry(case.checkpoint) {
            place.insert(resolve(request, &request.config.checkpoints[case.checkpoint])?);
        }
    }
    checkpoint::tiny::end();
    let program = std::env::current_exe().into_diagnostic().wrap_err("the path of this program")?;
    let apart = inputs::Apart { program, stop: Arc::clone(request.stop) };
    let mut sources: BTreeMap<usize, inputs::Source<'_>> = BTreeMap::new();
    let mut cases = Vec::new();
    for case in plans {
        let checkpoint = &checkpoints[&case.checkpoint];
        let of = || format!("inputs of {}", case.name);
        let is_first = !sources.contains_key(&case.checkpoint);
        let source = match sources.entry(case.checkpoint) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                place.insert(inputs::Source::open_apart(checkpoint, &apart).wrap_err_with(of)?)
            }
        };
        let folder = crate::commands::scratch()?;
        if request.config.inputs.retrieval && checkpoint.pooling().is_none() {
            let name = &checkpoint.name;
            return Err(miette::miette!(
                help = "list a sentence-transformers checkpoint, whose modules.json names a pooling, or use other inputs",
                "`retrieval` ranks vectors of texts, and {name} has no pooling of hidden states"
            ));
        }
        let processed = request
            .config
            .inputs
            .is_processed()
            .then(|| processed::request(&request.config.inputs, &request.config.folder, checkpoint));
        let spec = match &processed {
            Some(wanted) => {
                let path = folder.path().join("inputs.safetensors");
                processed::make(request, environments, wanted, &path).wrap_err_with(of)?
            }
            None => spec(request.config, case)?,
        };
        let made = source.make(&spec).wrap_err_with(of)?;
        let mut inputs = made
            .into_iter()
            .next()
            .ok_or_else(|| miette::miette!("the spec made no batch"))
            .wrap_err_with(of)?;
        if !request.config.inputs.position_ids {
            inputs.withhold_positions();
        }
        if request.config.inputs.labels {
            inputs.label(&checkpoint.config);
        }
        // A sweep's cases have one text.
        let texts = if is_first { source.texts(&spec, &inputs).wrap_err_with(of)? } else { None };
        let vocabulary = if is_first { source.vocabulary().wrap_err_with(of)? } else { Vec::new() };
        let processed = processed.filter(|_| is_first);
        cases.push(PreparedCase { checkpoint: checkpoint.clone(), inputs, texts, processed, vocabulary });
    }
    Ok(cases)
}

fn resolve(request: &RunRequest, wanted: &config::Checkpoint) -> Result<Checkpoint> {
    let source = wanted.source.to_string();
    let settings = checkpoint::Settings {
        revision: wanted.revision.clone(),
        allow_remote_code: wanted.allow_remote_code,
        seed: request.config.run.seed,
        maker: maker(&request.plan.environments),
        stop: Arc::clone(request.stop),
        ..checkpoint::Settings::new(request.cache)
    };
    let task = request.progress.task(&source, 100);
    let mut percent = 0;
    let mut show = |step: Step<'_>| {
        let (what, done, total) = match step {
            Step::Line(line) => return task.line(line),
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

/// The environment of the releases that make synthetic checkpoints: torch and Python are those of the run.
fn maker(plans: &[EnvironmentPlan]) -> Specification {
    let made = plans.iter().find(|plan| matches!(plan.origin, EnvironmentOrigin::Made { .. }));
    made.map_or_else(
        || Specification::new(Source::Newest),
        |plan| Specification { extra: Vec::new(), ..specification(plan) },
    )
}

fn spec(config: &config::Config, case: &CasePlan) -> Result<Spec> {
    let side = |padding: Padding| match padding {
        Padding::None => None,
        Padding::Left => Some(inputs::Padding::Left),
        Padding::Right => Some(inputs::Padding::Right),
    };
    let fill = |padding: Option<Padding>| match padding {
        None => Fill::AsNeeded,
        Some(padding) => side(padding).map_or(Fill::Never, Fill::Always),
    };
    Ok(match (case.inputs, config.inputs.form()) {
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
            fill: fill(padding),
            choices: config.inputs.choices.clone().unwrap_or_default(),
        },
        (InputsPlan::TokenIds { padding }, InputsForm::TokenIds(sequences)) => Spec::TokenIds {
            sequences: sequences
                .iter()
                .map(|sequence| sequence.iter().map(|id| i64::from(*id)).collect())
                .collect(),
            fill: fill(padding),
        },
        (InputsPlan::Sweep { length, batch, padding, .. }, InputsForm::Sweep { text, .. }) => Spec::Lengths {
            lengths: vec![length],
            batches: vec![batch],
            paddings: vec![side(padding)],
            text: text.map(ToOwned::to_owned),
            seed: config.inputs.seed,
        },
        (InputsPlan::Tensors, InputsForm::Tensors(path)) => Spec::Tensors(path.to_owned()),
        _ => miette::bail!(
            help = "the plan was changed or made by another program: start a new run",
            "the plan's inputs are not of the config's form"
        ),
    })
}

fn environments(request: &RunRequest) -> Result<Vec<EnvironmentResult>> {
    let plans = &request.plan.environments;
    let specifications: Vec<Specification> = plans.iter().map(specification).collect();
    if request.clean {
        for specification in &specifications {
            reference::forget(specification, request.cache)
                .map_err(|error| miette::miette!("--clean: {error}"))?;
        }
    }
    let names: Vec<String> = plans.iter().map(|plan| plan.versions.join(", ")).collect();
    let task = request.progress.task("environments", specifications.len() as u64);
    // uv lists every package, which goes to the log only. A line `$ …` is a command.
    let show = |index: usize, line: &str| {
        if line.starts_with("$ ") {
            request.progress.detail(&format!("{}: {line}", names[index]));
        } else if line.trim_start().starts_with(['+', '-', '~']) {
            request.progress.log(&format!("{}: {line}", names[index]));
        } else {
            task.line(&format!("{}: {line}", names[index]));
        }
    };
    let made = reference::prepare_all(&specifications, request.cache, &show);
    Ok(made.into_iter().map(|environment| environment.map_err(|error| describe(&error))).collect())
}

/// An environment's failure and its hint in one line, as the tables show it.
fn describe(error: &reference::EnvironmentError) -> String {
    format!("{error} ({})", error.hint())
}

/// The specification that uv is asked to install.
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

/// The content of `run.json` for these cases.
pub(super) fn manifest(
    request: &RunRequest,
    cases: &[PreparedCase],
    stamp: String,
    notes: Vec<String>,
) -> Manifest {
    let plan = request.plan;
    let contradictions = distinct(cases).filter_map(|prepared| prepared.checkpoint.contradiction());
    let all = notes.into_iter().chain(exceeding(request, cases)).chain(contradictions);
    let notes = all.fold(Vec::new(), |mut known, note| {
        if !known.contains(&note) {
            known.push(note);
        }
        known
    });
    let case = |(index, (plan_case, prepared)): (usize, (&CasePlan, &PreparedCase))| Case {
        name: plan_case.name.clone(),
        checkpoint: prepared.checkpoint.name.clone(),
        checkpoint_digest: prepared.checkpoint.digest.clone(),
        inputs: describe_inputs(&prepared.inputs, plan_case.inputs.prefill()),
        inputs_digest: prepared.inputs.digest.clone(),
        choices: prepared
            .inputs
            .choices
            .iter()
            .map(|choice| AnswerToken { text: choice.text.clone(), id: choice.id })
            .collect(),
        pooling: prepared.checkpoint.pooling(),
        questions: request.config.inputs.retrieval.then_some(retrieval::QUESTIONS),
        axes: axes(plan_case.inputs, &prepared.inputs),
        tolerances: request.config.checkpoints[plan_case.checkpoint].tolerances,
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
        config: request.config.clone(),
        folder: request.config.folder.clone(),
        baseline: Some(plan.baseline.clone()),
        plan: Some(plan.clone()),
        share: None,
        cases: plan.cases.iter().zip(cases).enumerate().map(case).collect(),
        notes,
    }
}

/// The first case of each checkpoint.
fn distinct(cases: &[PreparedCase]) -> impl Iterator<Item = &PreparedCase> {
    let is_first =
        |at: usize| cases[..at].iter().all(|known| known.checkpoint.name != cases[at].checkpoint.name);
    cases.iter().enumerate().filter(move |(at, _)| is_first(*at)).map(|(_, prepared)| prepared)
}

/// The cases whose sequences have more tokens than the model has positions, in one note a checkpoint.
fn exceeding(request: &RunRequest, cases: &[PreparedCase]) -> Vec<String> {
    let mut by_limit: BTreeMap<(&str, u64), Vec<&str>> = BTreeMap::new();
    for (plan, prepared) in request.plan.cases.iter().zip(cases) {
        let limit = prepared.checkpoint.number("max_position_embeddings");
        if let Some(limit) = limit.filter(|limit| prepared.inputs.seq as u64 > *limit) {
            by_limit.entry((&prepared.checkpoint.name, limit)).or_default().push(&plan.name);
        }
    }
    let note = |((checkpoint, limit), names): ((&str, u64), Vec<&str>)| {
        let names = match names.as_slice() {
            [first, .., last] if names.len() > 3 => format!("{} cases from {first} to {last}", names.len()),
            names => names.join(", "),
        };
        format!(
            "{checkpoint} has {limit} positions (max_position_embeddings), fewer than the tokens of {names}"
        )
    };
    by_limit.into_iter().map(note).collect()
}

fn axes(plan: InputsPlan, inputs: &Inputs) -> Option<Axes> {
    let InputsPlan::Sweep { length, batch, padding, prefill } = plan else { return None };
    Some(Axes { length, batch, padding: inputs.padding.map(|_| padding), prefill })
}

fn describe_inputs(inputs: &Inputs, prefill: Option<usize>) -> String {
    let padding = match inputs.padding {
        Some(inputs::Padding::Left) => ", padded left",
        Some(inputs::Padding::Right) => ", padded right",
        None => "",
    };
    let cached =
        prefill.map(|n| format!(", {n} prefilled, the rest through the KV cache")).unwrap_or_default();
    let tokens = (inputs.seq > 0).then(|| format!("{}{padding}{cached}", count(inputs.seq, "token")));
    let tensors = inputs.tensors.iter().map(|(name, tensor)| format!("{name} {}", tensor.said()));
    let parts: Vec<String> = tokens.into_iter().chain(tensors).collect();
    format!("batch {}, {}", inputs.batch, parts.join(", "))
}

/// Package name to version from a lock: `uv.lock`, or the `name==version` lines of an existing environment.
fn packages(lock: &str) -> BTreeMap<String, String> {
    let listed = || lock.lines().filter_map(|line| line.split_once("=="));
    let parsed: Option<toml::Table> = toml::from_str(lock).ok();
    let Some(table) = parsed.filter(|table| table.contains_key("package")) else {
        return listed().map(|(name, version)| (name.to_owned(), version.to_owned())).collect();
    };
    let packages = table["package"].as_array().into_iter().flatten();
    packages
        // The generated project has a version too, which is meaningless.
        .filter(|package| package.get("source").is_none_or(|source| source.get("virtual").is_none()))
        .filter_map(|package| {
            Some((package.get("name")?.as_str()?.to_owned(), package.get("version")?.as_str()?.to_owned()))
        })
        .collect()
}

/// The content of `environment.json`.
pub(super) fn environment_record(
    request: &RunRequest,
    machine: &Machine,
    environments: &[EnvironmentResult],
    cases: &[PreparedCase],
) -> EnvironmentRecord {
    let environment = |(plan, result): (&EnvironmentPlan, &EnvironmentResult)| match result {
        Ok(known) => PythonEnvironment {
            versions: plan.versions.clone(),
            key: Some(known.key.clone()),
            installed: known.versions.clone().into_iter().collect(),
            torch_cuda: reference::torch_cuda(&known.python),
            packages: packages(&known.lock),
            notes: known.notes.clone(),
            error: None,
        },
        Err(error) => PythonEnvironment {
            versions: plan.versions.clone(),
            error: Some(error.clone()),
            ..PythonEnvironment::default()
        },
    };
    let checkpoint = |prepared: &PreparedCase| {
        let known = &prepared.checkpoint;
        CheckpointRecord {
            name: known.name.clone(),
            model_type: known.model_type.clone(),
            revision: known.revision.clone(),
            digest: known.digest.clone(),
        }
    };
    let is_auto = request.config.run.devices.contains(&config::Device::Auto);
    EnvironmentRecord {
        schema_version: SCHEMA_VERSION,
        machine: machine.clone(),
        fingerprint: machine.fingerprint(),
        threads: request.config.run.threads.unwrap_or_else(machine::physical_cores),
        auto_device: is_auto.then(|| {
            let (device, reason) = machine::auto();
            AutoDevice { device: (*device).to_owned(), reason: reason.clone() }
        }),
        environments: request.plan.environments.iter().zip(environments).map(environment).collect(),
        checkpoints: cases.iter().map(checkpoint).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::packages;

    #[test]
    fn packages_are_read_from_uv_lock_and_from_a_listing() {
        let lock = "version = 1\n[[package]]\nname = \"tfcheck-environment\"\nversion = \"0\"\n\
                    source = { virtual = \".\" }\n[[package]]\nname = \"numpy\"\nversion = \"2.4.1\"\n\
                    source = { registry = \"https://index.invalid/simple\" }\n";
        let expected = [("numpy".to_owned(), "2.4.1".to_owned())];
        assert!(packages(lock).into_iter().eq(expected.clone()));
        assert!(packages("numpy==2.4.1\n").into_iter().eq(expected));
        assert!(packages("").is_empty());
    }
}
