//! Relations: one variant run against itself on varied inputs, and the first module that tells two runs apart.
//!
//! One worker drives all relations of a variant; a second process and a process with one thread serve the relations that
//! are about them. A relation that breaks in the variant's own dtype is measured again in float64.

mod measure;
mod modules;
mod process;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use compare::mapped::Mapped;
use compare::verdict::Tolerances;
use reference::protocol::{Dtype, Load};

use crate::execute::cell::FailureKind;
use crate::execute::runner::{NoResult, Runner};
use crate::judge::relations::{Known, bound, evidence, is_above, outcome};
use crate::results::relations::{Held, Measured, Outcome, WorstPosition};
use crate::spec::relations::{Condition, Drive, Material, Relation, Trial};
use measure::Bench;
pub use process::Processes;

/// The relations of one cell.
pub struct Request<'r, 'a> {
    /// What runs the variant.
    pub runner: &'a dyn Runner,
    /// The same with one thread; `None` where the run has one thread anyway.
    pub one_thread: Option<&'a dyn Runner>,
    /// What its workers are asked to load; the inputs are replaced.
    pub load: &'r Load,
    /// What the trials are made of.
    pub material: &'r Material,
    /// The relations that are measured.
    pub relations: &'r [&'static Relation],
    /// What rounding explains.
    pub tolerances: &'r Tolerances,
    /// Where workers log; inputs and logits lie in a folder of their own in it and are removed.
    pub folder: &'r Path,
    /// Longest wait for any one answer.
    pub timeout: Duration,
    /// Set when the user wants to stop.
    pub stop: &'a AtomicBool,
}

/// What one relation's trials showed in one dtype.
struct Shown {
    mapped: Mapped,
    /// What was varied in the trial that differs most.
    what: String,
    /// That trial, where it can be captured.
    trial: Option<Trial>,
    trials: usize,
}

/// Measures the relations of a cell, in the table's order, with workers that other cells of the same runner used before.
///
/// # Errors
/// When the user stops it, or the scratch folder cannot be written.
pub fn measure<'a>(request: &Request<'_, 'a>, processes: &mut Processes<'a>) -> Result<Vec<Held>, NoResult> {
    let scratch =
        tempfile::Builder::new().prefix("relations-").tempdir_in(request.folder).map_err(|error| {
            NoResult::failed(FailureKind::Environment, format!("{}: {error}", request.folder.display()))
        })?;
    let mut bench = Bench::new(request, processes, scratch.path());
    let own = request.load.dtype;
    let mut first = Vec::new();
    // What cannot be loaded or run at all is not tried relation by relation.
    let lost = bench.runs_at_all(own).err();
    for relation in request.relations {
        first.push(match (excluded(relation, request), &lost) {
            (_, Some(NoResult::Interrupted)) => return Err(NoResult::Interrupted),
            (Some(reason), _) => Err(held(relation, Outcome::Excluded, reason)),
            (None, Some(ended)) => Err(without_result(relation, ended.clone())),
            (None, None) => match bench.measure(relation, own) {
                Err(NoResult::Interrupted) => return Err(NoResult::Interrupted),
                Err(ended) => Err(without_result(relation, ended)),
                // Which arguments the model has is known only once it was given some.
                Ok(shown) => match bench.excluded(relation) {
                    Some(reason) => Err(held(relation, Outcome::Excluded, reason)),
                    None => Ok(shown),
                },
            },
        });
    }
    let mut all = Vec::new();
    // A variant that does not repeat itself differs from itself whatever is varied.
    let mut noise = None;
    for (relation, shown) in request.relations.iter().zip(first) {
        let mut held = match shown {
            Err(known) => known,
            Ok(shown) => judged(&mut bench, relation, &shown, own)?,
        };
        if let Some(noise) = noise.filter(|_| held.outcome == Outcome::Broken) {
            held.outcome = Outcome::Unproven;
            held.evidence = format!("{}; the variant does not repeat itself ({noise:.1e})", held.evidence);
        }
        if matches!(relation.drive, Drive::Again) && held.outcome == Outcome::Broken {
            noise = held.measured.as_ref().map(|measured| measured.relative_l2);
        }
        all.push(held);
    }
    Ok(all)
}

/// Why a relation does not hold for the model or the variant, as far as config and mode tell.
fn excluded(relation: &Relation, request: &Request) -> Option<String> {
    let of_config = relation.excluded(&request.material.traits);
    of_config.or_else(|| {
        let changes_shape =
            request.material.traits.is_compiled && !relation.keeps_the_shape(request.material);
        changes_shape.then(|| "a compiled model would be compiled anew for each shape of inputs".to_owned())
    })
}

/// A relation that was measured, with its proof in float64 and its first module where it breaks.
fn judged(
    bench: &mut Bench<'_, '_>,
    relation: &'static Relation,
    own: &Shown,
    dtype: Dtype,
) -> Result<Held, NoResult> {
    let request = bench.request;
    let has_routers = request.material.traits.has_routers;
    let mut known = Known { own: &own.mapped, dtype, proof: None, has_routers, bound: relation.bound };
    let needs_proof = dtype != Dtype::F64 && is_above(&own.mapped, dtype, request.tolerances);
    let proof = match needs_proof.then(|| bench.measure(relation, Dtype::F64)) {
        Some(Err(NoResult::Interrupted)) => return Err(NoResult::Interrupted),
        Some(Ok(proof)) => Some(proof),
        Some(Err(_)) | None => None,
    };
    known.proof = proof.as_ref().map(|proof| &proof.mapped);
    let mut what = own.what.as_str();
    let is_proven =
        proof.as_ref().is_some_and(|proof| is_above(&proof.mapped, Dtype::F64, request.tolerances));
    if let Some(proof) = proof.as_ref().filter(|_| is_proven) {
        what = &proof.what;
    }
    let outcome = outcome(known, request.tolerances);
    let shown = proof.as_ref().filter(|_| is_proven).unwrap_or(own);
    let first_module = match &shown.trial {
        Some(trial) if outcome == Outcome::Broken => {
            let dtype = if is_proven { Dtype::F64 } else { dtype };
            match modules::first(bench, trial, dtype) {
                Err(NoResult::Interrupted) => return Err(NoResult::Interrupted),
                found => found.ok().flatten(),
            }
        }
        _ => None,
    };
    let measured = |shown: &Shown, dtype: Dtype| Measured {
        dtype,
        bound: bound(request.tolerances, dtype),
        relative_l2: shown.mapped.relative_l2,
        differing: shown.mapped.differing,
        what: shown.what.clone(),
        worst: shown.mapped.worst.map(|worst| WorstPosition {
            row: worst.a.0,
            position: worst.a.1,
            relative_l2: worst.relative_l2,
        }),
        trials: shown.trials,
    };
    Ok(Held {
        relation: relation.name.to_owned(),
        outcome,
        evidence: evidence(known, what, request.tolerances),
        measured: Some(measured(own, dtype)),
        proof: proof.as_ref().map(|proof| measured(proof, Dtype::F64)),
        first_module,
    })
}

fn held(relation: &Relation, outcome: Outcome, evidence: String) -> Held {
    Held {
        relation: relation.name.to_owned(),
        outcome,
        evidence,
        measured: None,
        proof: None,
        first_module: None,
    }
}

fn without_result(relation: &Relation, ended: NoResult) -> Held {
    match ended {
        NoResult::Unsupported(reason) => held(relation, Outcome::Unsupported, reason),
        NoResult::Failed(failure) => {
            held(relation, Outcome::Failed, format!("{}: {}", failure.kind.words(), failure.reason))
        }
        NoResult::Interrupted => held(relation, Outcome::Failed, "interrupted".to_owned()),
    }
}

/// Conditions that depend on the arguments that a model takes.
fn depends_on_arguments(condition: Condition) -> bool {
    matches!(condition, Condition::Mask | Condition::PositionIds | Condition::LeftPadding)
}
