//! `plan.json`: a plan with the digests of everything that its numbers depend on, and the share of it that a run computes.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::folder::{RunFolder, check_names, read_json};
use super::{AnswerToken, Manifest, ResultsError, SCHEMA_VERSION};
use crate::spec::atomic;
use crate::spec::config::Run;
use crate::spec::machine::hex;
use crate::spec::plan::PlanError;
use crate::spec::relations::Relations;
use crate::spec::units::{Unit, UnitKind};
use crate::spec::variant::{Runner, Variant};
use compare::verdict::{Overrides, Tolerances};

/// The file's name in a run folder.
const FILE_NAME: &str = "plan.json";

/// A plan of which checkpoints, inputs and environments are known by their digests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Frozen {
    /// Version of the format of run folders and plans.
    pub schema_version: u32,
    /// SHA-256 in hex of everything that the numbers of the run depend on; parts of a run can be merged only if it is equal.
    pub digest: String,
    /// The tfcheck that made it.
    pub tfcheck: Built,
    /// The environments, in the order of the plan.
    pub environments: Vec<Locked>,
    /// The units, in the order of the plan.
    pub units: Vec<Unit>,
    /// The `run.json` of the whole run: config, cases with their digests, cells.
    #[schemars(with = "Value")]
    pub run: Manifest,
}

/// A build of tfcheck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Built {
    /// Its version.
    pub version: String,
    /// SHA-256 in hex of the sources that it was built from.
    pub source: String,
    /// Digest of the Python bridge.
    pub bridge: String,
}

impl Built {
    /// The build of this program.
    pub fn here() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: env!("TFCHECK_SOURCE").to_owned(),
            bridge: reference::bridge_digest().to_owned(),
        }
    }
}

/// A Python environment by its lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Locked {
    /// Names of the versions that run in it.
    pub versions: Vec<String>,
    /// Digest of what is installed in it; empty if it could not be made.
    pub key: String,
    /// SHA-256 in hex of its `uv.lock`; empty if it could not be made.
    pub lock: String,
}

/// The part of a frozen plan that a run computes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// `shard 2/4` or `unit llama-128.cpu.timing`.
    pub part: String,
    /// [`Frozen::digest`] of the plan.
    pub plan: String,
    /// Names of its units.
    pub units: Vec<String>,
    /// Cells (`case/variant`) whose own tokenizer is compared with the run's token ids: one per version in the whole plan.
    pub tokenized: Vec<String>,
}

impl Share {
    /// The variants that the run computes of each case of `plan`.
    pub fn cells<'a>(&self, frozen: &'a Frozen) -> HashMap<&'a str, HashSet<&'a str>> {
        let names: HashSet<&str> = self.units.iter().map(String::as_str).collect();
        let mut cells: HashMap<&str, HashSet<&str>> = HashMap::new();
        for unit in frozen.units.iter().filter(|unit| names.contains(unit.name.as_str())) {
            cells.entry(&unit.case).or_default().extend(unit.variants.iter().map(String::as_str));
        }
        cells
    }
}

/// What the digest of a plan is computed from.
#[derive(Serialize)]
struct Identity<'a> {
    tfcheck: &'a Built,
    cases: Vec<CaseIdentity<'a>>,
    /// Versions and lock of each.
    environments: Vec<(&'a [String], &'a str)>,
    /// Name, words and whether it computes in float64 of each.
    programs: Vec<(&'a str, Vec<String>, bool)>,
    run: &'a Run,
    translate: Vec<bool>,
    relations: &'a Relations,
    tolerances: &'a Tolerances,
    /// Name, kind, case and variants of each.
    units: Vec<(&'a str, UnitKind, &'a str, &'a [String])>,
}

#[derive(Serialize)]
struct CaseIdentity<'a> {
    name: &'a str,
    checkpoint: &'a str,
    inputs: &'a str,
    prefill: Option<usize>,
    choices: &'a [AnswerToken],
    tolerances: Option<&'a Overrides>,
    variants: Vec<String>,
}

impl Identity<'_> {
    /// SHA-256 in hex of its JSON text.
    fn digest(&self) -> String {
        hex(&Sha256::digest(serde_json::to_vec(self).expect("its keys are strings")))
    }

    fn value(&self) -> Value {
        serde_json::to_value(self).expect("its keys are strings")
    }
}

impl Frozen {
    /// Puts the parts together and computes the digest.
    pub fn new(run: Manifest, environments: Vec<Locked>, units: Vec<Unit>) -> Self {
        let mut frozen = Self {
            schema_version: SCHEMA_VERSION,
            digest: String::new(),
            tfcheck: Built::here(),
            environments,
            units,
            run,
        };
        frozen.digest = frozen.identity().digest();
        frozen
    }

    /// Reads a plan that `tfcheck plan --json` or a run wrote.
    ///
    /// # Errors
    /// When the file cannot be read, is newer than this tfcheck, does not have its own digest, or contradicts itself.
    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        let frozen: Self = read_json(path).map_err(|error| match error {
            ResultsError::Io { action: "read", path, cause } => {
                ResultsError::Plan { path, problem: format!("cannot be read as a plan: {cause}") }
            }
            ResultsError::Record { path, cause } => {
                ResultsError::Plan { path, problem: format!("is no plan: {cause}") }
            }
            error => error,
        })?;
        if frozen.schema_version > SCHEMA_VERSION {
            return Err(ResultsError::Newer { path: path.to_owned(), found: frozen.schema_version });
        }
        check_names(path, &frozen.run)?;
        let refused = |problem: String| ResultsError::Plan { path: path.to_owned(), problem };
        if frozen.identity().digest() != frozen.digest {
            return Err(refused("was changed: it does not have the digest that it states".to_owned()));
        }
        let names = frozen.units.iter().flat_map(|unit| [&unit.name, &unit.device]);
        if let Some(name) = names.into_iter().find(|name| !atomic::is_component(name)) {
            let name = bounds::shown(name, 200);
            return Err(refused(format!("is damaged: a unit is called `{name}`, which is not a file name")));
        }
        let plan = frozen.run.plan.as_ref().ok_or_else(|| refused("lists no cells".to_owned()))?;
        let checked = plan.check(&frozen.run.config);
        checked.map_err(|error: PlanError| refused(format!("is damaged: {error}")))?;
        let is_of_the_plan = plan.cases.len() == frozen.run.cases.len()
            && plan.cases.iter().zip(&frozen.run.cases).all(|(plan, case)| plan.name == case.name);
        if !is_of_the_plan {
            return Err(refused("is damaged: its cases and its cells differ".to_owned()));
        }
        Ok(frozen)
    }

    /// The plan that a run made and of which it is a part; `None` if the run folder has no plan.
    ///
    /// # Errors
    /// As [`Frozen::read`].
    pub fn of_run(folder: &RunFolder) -> Result<Option<Self>, ResultsError> {
        let path = folder.path().join(FILE_NAME);
        if path.is_file() { Self::read(&path).map(Some) } else { Ok(None) }
    }

    /// Keeps the plan in the folder of a run that is a part of it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(&self, folder: &RunFolder) -> Result<(), ResultsError> {
        folder.write(FILE_NAME, self.text()?.as_bytes())
    }

    /// The content of `plan.json`, which `tfcheck plan --json` prints: one line, because every unit in a process of its own
    /// reads it whole, and indentation was two fifths of it.
    ///
    /// # Errors
    /// When a number of it has no JSON form.
    pub fn text(&self) -> Result<String, ResultsError> {
        let text = serde_json::to_string(self);
        let text = text.map_err(|cause| ResultsError::Record { path: FILE_NAME.into(), cause })?;
        Ok(text + "\n")
    }

    /// The unit with this name, or with this number counted from 1.
    pub fn unit(&self, wanted: &str) -> Option<&Unit> {
        let numbered = || self.units.get(wanted.parse::<usize>().ok()?.checked_sub(1)?);
        self.units.iter().find(|unit| unit.name == wanted).or_else(numbered)
    }

    /// The share that consists of these units.
    pub fn share(&self, part: String, units: &[&Unit]) -> Share {
        let plan = self.run.plan.as_ref();
        let mut tokenized = Vec::new();
        let mut known: HashSet<(usize, &str)> = HashSet::new();
        let mut first: HashMap<usize, usize> = HashMap::new();
        for cell in plan.iter().flat_map(|plan| &plan.cells) {
            let Some((plan, case)) = plan.and_then(|plan| Some((plan, plan.cases.get(cell.case)?))) else {
                continue;
            };
            // Inputs have texts to tokenise in the first case of a checkpoint.
            let is_first = *first.entry(case.checkpoint).or_insert(cell.case) == cell.case;
            let is_version = cell.variant.runner == Runner::Transformers;
            if is_first && is_version && known.insert((case.checkpoint, cell.variant.version.as_str())) {
                tokenized.push(plan.cell_name(cell));
            }
        }
        let units = units.iter().map(|unit| unit.name.clone()).collect();
        Share { part, plan: self.digest.clone(), units, tokenized }
    }

    /// Everything that the numbers of the run depend on, without paths, estimates and properties of one machine.
    fn identity(&self) -> Identity<'_> {
        let Manifest { config, cases, plan, .. } = &self.run;
        let full = |variant: &Variant| Variant { qualified: true, ..variant.clone() }.name();
        let planned = plan.iter().flat_map(|plan| &plan.cases);
        let prefills: HashMap<&str, Option<usize>> =
            planned.map(|case| (case.name.as_str(), case.inputs.prefill())).collect();
        let cases = cases.iter().map(|case| CaseIdentity {
            name: &case.name,
            checkpoint: &case.checkpoint_digest,
            inputs: &case.inputs_digest,
            prefill: prefills.get(case.name.as_str()).copied().flatten(),
            choices: &case.choices,
            tolerances: case.tolerances.as_ref(),
            variants: case.variants.iter().map(full).collect(),
        });
        let folder = config_folder(&self.run);
        let programs = config.commands.iter().map(|command| {
            let relative = |word: &String| word.replace(&folder, ".");
            (command.name.as_str(), command.program.iter().map(relative).collect(), command.float64)
        });
        let units = self.units.iter().map(|unit| (&*unit.name, unit.kind, &*unit.case, &unit.variants[..]));
        Identity {
            tfcheck: &self.tfcheck,
            cases: cases.collect(),
            environments: self.environments.iter().map(|known| (&known.versions[..], &*known.lock)).collect(),
            programs: programs.collect(),
            run: &config.run,
            translate: config.checkpoints.iter().map(|known| known.translate).collect(),
            relations: &config.relations,
            tolerances: &config.tolerances,
            units: units.collect(),
        }
    }

    /// The first thing in which two plans differ, such as `cases[0].inputs: "ab…" and "cd…"`; `None` if they are equal.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let (path, words) = first_difference("", &self.identity().value(), &other.identity().value())?;
        let [own, others] = words.map(|word| bounds::shown(&word, 200).into_owned());
        Some(format!("{path}: {own} and {others}"))
    }
}

/// The JSON schema of `plan.json`, which `tfcheck schema plan` prints.
pub fn plan_schema() -> String {
    format!("{:#}\n", schema_for!(Frozen).as_value())
}

/// The folder of the config as text that no word of a program contains by accident.
fn config_folder(run: &Manifest) -> String {
    let folder = run.folder.display().to_string();
    if folder.len() > 1 { folder } else { "\0".to_owned() }
}

/// Where two JSON values differ first, and the two values there.
fn first_difference(path: &str, a: &Value, b: &Value) -> Option<(String, [String; 2])> {
    let joined = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (a, b) {
        (Value::Object(one), Value::Object(other)) => {
            let keys = one.keys().chain(other.keys().filter(|key| !one.contains_key(*key)));
            let value =
                |of: &serde_json::Map<String, Value>, key: &str| of.get(key).cloned().unwrap_or_default();
            keys.into_iter()
                .find_map(|key| first_difference(&joined(key), &value(one, key), &value(other, key)))
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            let pairs = one.iter().zip(other).enumerate();
            pairs.into_iter().find_map(|(at, (a, b))| first_difference(&format!("{path}[{at}]"), a, b))
        }
        (a, b) if a == b => None,
        (a, b) => Some((path.to_owned(), [a.to_string(), b.to_string()])),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_difference_is_reported_with_its_place() {
        let check = |a: Value, b: Value, expected: Option<&str>| {
            let found = first_difference("", &a, &b).map(|(path, [a, b])| format!("{path}: {a} and {b}"));
            assert_eq!(found.as_deref(), expected);
        };
        check(json!({"a": [1, 2]}), json!({"a": [1, 2]}), None);
        check(json!({"a": [1, {"b": 2}]}), json!({"a": [1, {"b": 3}]}), Some("a[1].b: 2 and 3"));
        check(json!({"a": 1}), json!({"a": 1, "c": 2}), Some("c: null and 2"));
        check(json!({"a": [1]}), json!({"a": [1, 2]}), Some("a: [1] and [1,2]"));
    }
}
