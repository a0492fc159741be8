//! The frozen plan of a run, and the share of it that one machine computes.

use std::path::Path;

use miette::Result;
use sha2::{Digest, Sha256};

use super::estimate::Estimates;
use super::localize::check_digests;
use super::prepare::{self, Preparation};
use super::{RunRequest, Runners, conclude, is_timed};
use crate::judge::exit_code::ExitCode;
use crate::judge::history::{self, History};
use crate::results::{Built, Frozen, Locked, Manifest, RunFolder, Share};
use crate::spec::config::Config;
use crate::spec::machine::{Machine, hex};
use crate::spec::nearest::nearest;
use crate::spec::plan::{CasePlan, CellPlan, EnvironmentPlan, Plan};
use crate::spec::units::{Group, Shard, Unit, UnitKind, groups};

/// The part of a plan that a run is asked to compute.
#[derive(Clone, Debug)]
pub struct Sharing {
    /// Which part.
    pub part: Part,
    /// The plan; `None` if the run makes it.
    pub frozen: Option<Frozen>,
}

/// Names a part of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// One of several shares of about equal estimated time.
    Shard(Shard),
    /// One unit, by its name or its number counted from 1.
    Unit(String),
}

impl Part {
    /// The units of this part, in the order of the plan.
    ///
    /// # Errors
    /// The plan has no such unit.
    fn units<'a>(&self, frozen: &'a Frozen) -> Result<Vec<&'a Unit>> {
        match self {
            Self::Shard(shard) => {
                Ok(shard.of(&frozen.units).into_iter().filter_map(|at| frozen.units.get(at)).collect())
            }
            Self::Unit(name) => {
                let unknown = || {
                    let names: Vec<&str> = frozen.units.iter().map(|unit| unit.name.as_str()).collect();
                    let meant = nearest(name, &names).map(|meant| format!("did you mean `{meant}`? "));
                    miette::miette!(
                        help = format!(
                            "{}`tfcheck plan --json` lists the units; they are also numbered from 1 to {}",
                            meant.unwrap_or_default(),
                            names.len()
                        ),
                        "the plan has no unit `{name}`"
                    )
                };
                let unit = frozen.unit(name).ok_or_else(unknown)?;
                Ok(vec![unit])
            }
        }
    }

    /// `shard 2/4`, `unit llama-128.cpu.timing`.
    fn words(&self, units: &[&Unit]) -> String {
        match (self, units) {
            (Self::Unit(_), [unit, ..]) => format!("unit {}", unit.name),
            (Self::Unit(name), []) => format!("unit {name}"),
            (Self::Shard(shard), _) => format!("shard {shard}"),
        }
    }
}

/// A run that is prepared: the whole plan, or a share of it.
pub(super) struct Prepared {
    pub(super) preparation: Preparation,
    pub(super) share: Option<Share>,
    /// The plan, if this run made it.
    pub(super) made: Option<Frozen>,
}

/// Prepares what the request asks for; `None` if its share has no unit.
///
/// # Errors
/// When something cannot be prepared, there is no such unit, or a checkpoint, the inputs or an environment are not those of
/// the given plan.
pub(super) fn prepared(request: &RunRequest) -> Result<Option<Prepared>> {
    let Some(sharing) = request.sharing else {
        let preparation = prepare::prepare(request)?;
        return Ok(Some(Prepared { preparation, share: None, made: None }));
    };
    if let Some(frozen) = &sharing.frozen {
        let Some(share) = share_of(request, frozen, &sharing.part)? else { return Ok(None) };
        let plan = only(request.plan.clone(), request.config, frozen, &share)?;
        let preparation = prepare::prepare(&RunRequest { plan: &plan, ..*request })?;
        verify(frozen, &preparation)?;
        return Ok(Some(Prepared { preparation, share: Some(share), made: None }));
    }
    let preparation = prepare::prepare(request)?;
    // Shards that make the plan themselves do not use a history, which differs from machine to machine.
    let frozen = frozen(request, &preparation, None);
    let Some(share) = share_of(request, &frozen, &sharing.part)? else { return Ok(None) };
    let plan = only(preparation.plan.clone(), request.config, &frozen, &share)?;
    let preparation = preparation.narrowed(plan);
    Ok(Some(Prepared { preparation, share: Some(share), made: Some(frozen) }))
}

/// Prepares a whole plan and freezes it, with estimates from the history of `results` if there is one.
///
/// # Errors
/// When a checkpoint, inputs or an environment cannot be prepared.
pub fn freeze(request: &RunRequest, results: &Path) -> Result<Frozen> {
    let prepared = request
        .progress
        .timed("preparing checkpoints, inputs and environments", || prepare::prepare(request))?;
    let history = results.join(history::FILE_NAME).is_file().then(|| History::open(results));
    let history = history.transpose()?.map(|history| (history, Machine::detect().fingerprint()));
    Ok(frozen(request, &prepared, history))
}

/// Compares the cells of a merged run, localises and diagnoses its diverging pairs on this machine, and reports: the end of a
/// run whose cells were all computed elsewhere.
///
/// # Errors
/// When something cannot be prepared or is not what the run was computed from, or a report cannot be written.
pub fn end_of_run(request: &RunRequest, folder: &RunFolder, manifest: &Manifest) -> Result<ExitCode> {
    let preparation = request
        .progress
        .timed("preparing checkpoints, inputs and environments", || prepare::prepare(request))?;
    for (case, prepared) in manifest.cases.iter().zip(&preparation.cases) {
        check_digests(folder, &case.name, prepared)?;
    }
    let Preparation { plan, cases, environments } = preparation;
    let request = &RunRequest { plan: &plan, ..*request };
    let runners = Runners::new(request, &environments, Machine::detect().fingerprint())?;
    let cells = folder.all_cells(manifest)?;
    conclude(request, folder, manifest, &cells, &cases, &runners, false)
}

fn frozen(request: &RunRequest, prepared: &Preparation, history: Option<(History, String)>) -> Frozen {
    let request = &RunRequest { plan: &prepared.plan, ..*request };
    let run = prepare::manifest(request, &prepared.cases, "plan".to_owned(), Vec::new());
    let locked = |(plan, made): (&EnvironmentPlan, &prepare::EnvironmentResult)| Locked {
        versions: plan.versions.clone(),
        key: made.as_ref().map(|known| known.key.clone()).unwrap_or_default(),
        lock: made.as_ref().map(|known| digest(&known.lock)).unwrap_or_default(),
    };
    let environments = prepared.plan.environments.iter().zip(&prepared.environments).map(locked).collect();
    let estimates = Estimates { request, prepared, history };
    let unit = |group: &Group| Unit {
        name: group.name.clone(),
        kind: group.kind,
        case: prepared.plan.cases[group.case].name.clone(),
        device: group.device.to_owned(),
        variants: group.cells.iter().map(|&at| prepared.plan.cells[at].variant.name()).collect(),
        exclusive: group.kind == UnitKind::Timing,
        needs: estimates.of(group),
    };
    let is_timed = |cell: &CellPlan| is_timed(request.config, cell) && request.config.run.rounds > 0;
    let unit_of = request.config.engine.unit;
    let units = groups(&prepared.plan, unit_of, is_timed).iter().map(unit).collect();
    Frozen::new(run, environments, units)
}

fn digest(text: &str) -> String {
    hex(&Sha256::digest(text))
}

/// The share that a part of the plan is; `None` if it has no unit, which the user is told.
fn share_of(request: &RunRequest, frozen: &Frozen, part: &Part) -> Result<Option<Share>> {
    let units = part.units(frozen)?;
    let words = part.words(&units);
    if units.is_empty() {
        let count = compare::units::count(frozen.units.len(), "unit");
        request.progress.line(&format!("{words} has nothing to compute: the plan has {count}"));
        return Ok(None);
    }
    let seconds: u64 = units.iter().map(|unit| unit.needs.seconds).sum();
    request.progress.line(&format!(
        "{words}: {} of {}, about {seconds} s",
        units.len(),
        compare::units::count(frozen.units.len(), "unit")
    ));
    Ok(Some(frozen.share(words, &units)))
}

/// The plan without the cells of other shares.
fn only(plan: Plan, config: &Config, frozen: &Frozen, share: &Share) -> Result<Plan> {
    let own = share.cells(frozen);
    let is_own = |case: &CasePlan, cell: &CellPlan| {
        own.get(case.name.as_str()).is_some_and(|variants| variants.contains(cell.variant.name().as_str()))
    };
    Ok(plan.selected(config, is_own)?)
}

/// Checks that what was prepared on this machine is what the plan froze.
fn verify(frozen: &Frozen, preparation: &Preparation) -> Result<()> {
    let here = Built::here();
    let refused = |what: String| {
        miette::miette!(
            help = "a share is computed by the tfcheck, checkpoint, inputs and environments of its plan: make a new plan",
            "{what} not that of the plan"
        )
    };
    if here != frozen.tfcheck {
        let versions = format!("{} and {}", here.version, frozen.tfcheck.version);
        return Err(refused(format!("this build of tfcheck ({versions}) is")));
    }
    for (plan, prepared) in preparation.plan.cases.iter().zip(&preparation.cases) {
        let known = frozen.run.cases.iter().find(|case| case.name == plan.name);
        let Some(known) = known else { return Err(refused(format!("the case {} is", plan.name))) };
        if known.checkpoint_digest != prepared.checkpoint.digest {
            return Err(refused(format!("the checkpoint of {} is", plan.name)));
        }
        if known.inputs_digest != prepared.inputs.digest {
            return Err(refused(format!("the batch of inputs of {} is", plan.name)));
        }
    }
    for (plan, made) in preparation.plan.environments.iter().zip(&preparation.environments) {
        let is_it = |known: &&Locked| plan.versions.iter().all(|version| known.versions.contains(version));
        let known = frozen.environments.iter().find(is_it);
        if let (Some(known), Ok(made)) = (known, made)
            && !known.lock.is_empty()
            && known.lock != digest(&made.lock)
        {
            return Err(refused(format!("the environment of {} is", plan.versions.join(", "))));
        }
    }
    Ok(())
}
