//! Checks the relations of a run's variants, each by itself.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use miette::Result;
use sha2::{Digest, Sha256};

use super::prepare::{EnvironmentResult, Preparation, PreparedCase, prepare};
use super::{Destination, Finished, RunRequest, Runners, keys, load, open, write_records};
use crate::execute::runner::NoResult;
use crate::hunt::relations::{Processes, Request, measure};
use crate::judge::assess;
use crate::judge::exit_code::ExitCode;
use crate::report;
use crate::results::relations::{CellRelations, Held, Outcome};
use crate::results::{Manifest, RunFolder, SCHEMA_VERSION};
use crate::spec::inputs::Inputs;
use crate::spec::machine::{self, Machine, hex};
use crate::spec::plan::CellPlan;
use crate::spec::relations::{Material, Relation, Traits};

/// Checks the relations of every cell of the request and reports them; nothing is compared between variants.
///
/// # Errors
/// When a checkpoint or inputs cannot be prepared, or the run folder cannot be written.
pub fn relations(request: &RunRequest, destination: Destination) -> Result<Finished> {
    let prepared =
        request.progress.timed("preparing checkpoints, inputs and environments", || prepare(request));
    let Preparation { plan, cases, environments } = prepared?;
    let request = &RunRequest { plan: &plan, ..*request };
    let machine = Machine::detect();
    let (folder, mut manifest) = open(request, destination, &cases, None)?;
    // No cell is run for its own sake, so that none is missing.
    for case in &mut manifest.cases {
        case.variants.clear();
    }
    folder.write_manifest(&manifest)?;
    request.progress.log_to(&folder.path().join("run.log"));
    request.progress.line(&format!("results in {}", folder.path().display()));
    write_records(request, &folder, &manifest, &cases, &machine, &environments)?;
    let check = Check { request, folder: &folder, manifest: &manifest, cases: &cases };
    let interrupted = check.run(&environments, &machine)?;
    let tolerances = &request.config.tolerances;
    let view = assess::view(&folder, &manifest, &vec![Vec::new(); manifest.cases.len()], tolerances)?;
    let code = report::publish(&folder, &manifest, &view, tolerances, request.progress)?;
    let path = folder.path();
    if interrupted {
        let path = path.display();
        request.progress.line(&format!("interrupted; complete it with: tfcheck relations --resume {path}"));
    }
    let code = if interrupted { ExitCode::Interrupted } else { code };
    Ok(Finished { code, folder: path.to_owned() })
}

/// The relations of a run's cells.
pub(super) struct Check<'a> {
    pub(super) request: &'a RunRequest<'a>,
    pub(super) folder: &'a RunFolder,
    pub(super) manifest: &'a Manifest,
    pub(super) cases: &'a [PreparedCase],
}

impl Check<'_> {
    /// Checks version by version, each with workers that go from case to case; whether the user stopped it.
    pub(super) fn run(&self, environments: &[EnvironmentResult], machine: &Machine) -> Result<bool> {
        let request = self.request;
        let threads = request.config.run.threads.unwrap_or_else(machine::physical_cores);
        let runners = |threads| Runners::with(request, environments, machine.fingerprint(), (threads, false));
        let (many, one) = (runners(threads)?, runners(1)?);
        let selected = request.config.relations.selected();
        let cells = self.cells();
        let known = self.folder.relations(self.manifest)?;
        let is_done = |cell: &CellPlan, key: &str| {
            let case = &self.manifest.cases[cell.case].name;
            let is_it = |found: &&CellRelations| found.case == *case && found.variant == cell.variant;
            known.iter().find(is_it).is_some_and(|found| {
                found.key == key && found.relations.iter().all(|held| held.outcome != Outcome::Failed)
            })
        };
        let mut versions: Vec<&str> = cells.iter().map(|cell| cell.variant.version.as_str()).collect();
        let mut seen = HashSet::new();
        versions.retain(|version| seen.insert(*version));
        let task = request.progress.task("relations", cells.len() as u64);
        for version in versions {
            let mut processes = Processes::default();
            for &cell in cells.iter().filter(|cell| cell.variant.version == version) {
                let key = self.key(cell, &selected, &many);
                let name = request.plan.cell_name(cell);
                task.doing(&name);
                if !is_done(cell, &key) {
                    let begun = Instant::now();
                    let found = match many.of(cell) {
                        Ok(runner) => {
                            let one_thread = one.of(cell).ok().filter(|_| threads > 1);
                            self.measure(cell, (runner, one_thread), &selected, &many, &mut processes)
                        }
                        Err(ended) => Err(ended),
                    };
                    let relations = match found {
                        Ok(relations) => relations,
                        Err(NoResult::Interrupted) => return Ok(true),
                        Err(ended) => without_results(&selected, &ended),
                    };
                    let record = CellRelations {
                        schema_version: SCHEMA_VERSION,
                        case: self.manifest.cases[cell.case].name.clone(),
                        variant: cell.variant.clone(),
                        key,
                        seq: row(&self.cases[cell.case].inputs, 0).len(),
                        relations,
                        elapsed_ns: begun.elapsed().as_nanos() as u64,
                    };
                    task.line(&format!("{name}: {}", told(&record)));
                    self.folder.write_relations(self.manifest, &record)?;
                }
                task.done_one();
            }
            processes.end();
        }
        Ok(false)
    }

    /// One cell per variant, checkpoint and length: batch size, padding and prefill of a case are the relations' own matter.
    fn cells(&self) -> Vec<&CellPlan> {
        let plan = self.request.plan;
        let mut seen = HashSet::new();
        let is_wanted = |cell: &&CellPlan| {
            let case = &plan.cases[cell.case];
            let length = row(&self.cases[cell.case].inputs, 0).len();
            cell.measured
                && case.inputs.prefill().is_none()
                && seen.insert((case.checkpoint, length, cell.variant.clone()))
        };
        plan.cells.iter().filter(is_wanted).collect()
    }

    fn key(&self, cell: &CellPlan, selected: &[&Relation], runners: &Runners) -> String {
        let names: Vec<&str> = selected.iter().map(|relation| relation.name).collect();
        let own = keys::cell(cell, &self.cases[cell.case], runners);
        hex(&Sha256::digest(format!("{own} {names:?} {:?}", self.request.config.tolerances)))
    }

    fn measure<'a>(
        &'a self,
        cell: &CellPlan,
        (runner, one_thread): (
            &'a dyn crate::execute::runner::Runner,
            Option<&'a dyn crate::execute::runner::Runner>,
        ),
        selected: &[&'static Relation],
        runners: &Runners,
        processes: &mut Processes<'a>,
    ) -> Result<Vec<Held>, NoResult> {
        let (request, prepared) = (self.request, &self.cases[cell.case]);
        let config = request.config;
        if let Some(name) = prepared.inputs.tensors.keys().next() {
            let reason = format!("relations vary tokens alone, and these inputs have {name} too");
            return Err(NoResult::Unsupported(reason));
        }
        let case = &self.manifest.cases[cell.case];
        let files = self.folder.case_folder(self.manifest, &case.name).join(&cell.variant.version);
        let files = std::path::absolute(&files).unwrap_or(files);
        std::fs::create_dir_all(&files).map_err(|error| {
            NoResult::failed(crate::execute::cell::FailureKind::Environment, error.to_string())
        })?;
        let load = load(request, prepared, Path::new("inputs.safetensors"), runners, cell);
        let inputs = &prepared.inputs;
        let ids = row(inputs, 0);
        let traits = Traits::of(&prepared.checkpoint.config, ids.len(), cell.variant.mode.is_compiled());
        let others: Vec<Vec<i64>> = (1..inputs.batch).map(|at| row(inputs, at)).collect();
        let own = &config.checkpoints[request.plan.cases[cell.case].checkpoint].tolerances;
        measure(
            &Request {
                runner,
                one_thread,
                load: &load,
                material: &Material::new(ids, &others, traits),
                relations: selected,
                tolerances: &config.tolerances.with(own.as_ref()),
                folder: &files,
                timeout: Duration::from_secs(config.run.timeout_s),
                stop: request.stop,
            },
            processes,
        )
    }
}

/// The real tokens of a row.
fn row(inputs: &Inputs, row: usize) -> Vec<i64> {
    let at = row * inputs.seq..(row + 1) * inputs.seq;
    let real = inputs.input_ids[at.clone()].iter().zip(&inputs.attention_mask[at]);
    real.filter(|(_, mask)| **mask != 0).map(|(id, _)| *id).collect()
}

/// Every relation of a cell that could not be run at all.
fn without_results(selected: &[&Relation], ended: &NoResult) -> Vec<Held> {
    let (outcome, evidence) = match ended {
        NoResult::Unsupported(reason) => (Outcome::Unsupported, reason.clone()),
        NoResult::Failed(failure) => {
            (Outcome::Failed, format!("{}: {}", failure.kind.words(), failure.reason))
        }
        NoResult::Interrupted => (Outcome::Failed, "interrupted".to_owned()),
    };
    let held = |relation: &&Relation| Held {
        relation: relation.name.to_owned(),
        outcome,
        evidence: evidence.clone(),
        measured: None,
        proof: None,
        first_module: None,
    };
    selected.iter().map(held).collect()
}

/// `9 bitwise, 4 rounding; broken: causality`.
fn told(record: &CellRelations) -> String {
    let of = |outcome: Outcome| record.relations.iter().filter(move |held| held.outcome == outcome);
    let counts = Outcome::ALL.iter().filter(|outcome| **outcome != Outcome::Broken).filter_map(|&outcome| {
        let count = of(outcome).count();
        (count > 0).then(|| format!("{count} {}", outcome.word()))
    });
    let counts: Vec<String> = counts.collect();
    let broken: Vec<&str> = of(Outcome::Broken).map(|held| held.relation.as_str()).collect();
    let broken = if broken.is_empty() { String::new() } else { format!("; broken: {}", broken.join(", ")) };
    format!("{}{broken} ({:.1} s)", counts.join(", "), record.elapsed_ns as f64 / 1e9)
}
