//! Builds the view of a run from its cells: opens logits, measures pairs, decides verdicts.

mod beside_one_pass;
mod embeddings;
mod origin;
mod outputs;

use std::collections::BTreeMap;
use std::path::Path;

use bounds::limits::LINE;
use compare::evidence::Routing;
use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{self, Entry};
use compare::oracle::{Oracles, accuracies};
use compare::verdict::{Decision, Tolerances, Verdict, annotate, verdicts};
use miette::{Result, miette};
use reference::protocol::{Mode, Positions};

use super::view::{CacheVerdict, CaseView, ChoiceRow, ChoicesView, OutputRow, OutputView, RunView, Times};
use crate::execute::cell::{Cell, Completed, Failure, FailureKind, Outcome};
use crate::results::environment::EnvironmentRecord;
use crate::results::localized::Localized;
use crate::results::{Case, CaseEnvelope, Manifest, RunFolder};
use crate::spec::variant::{Runner, Variant, measured_dtype, measured_positions};
use beside_one_pass::Beside;
use embeddings::Embeddings;
pub use origin::{bears_on, origin};

/// The view of a saved run, with the tolerances of its config.
///
/// # Errors
/// When the run, or logits that exist, cannot be read.
pub fn saved(folder: &RunFolder) -> Result<RunView> {
    let manifest = folder.manifest()?;
    view(folder, &manifest, &folder.all_cells(&manifest)?, &manifest.config.tolerances)
}

/// The view of a run.
///
/// # Errors
/// When logits that exist cannot be read.
pub fn view(
    folder: &RunFolder,
    manifest: &Manifest,
    cells: &[Vec<Cell>],
    tolerances: &Tolerances,
) -> Result<RunView> {
    let (localized, diagnosed) = (folder.localized()?, folder.diagnosed()?);
    let envelopes = folder.envelopes()?;
    let mut views: BTreeMap<usize, CaseView> = BTreeMap::new();
    // Cases with a KV cache come last, because they use the results of full-sequence forward passes.
    let mut order: Vec<usize> = (0..manifest.cases.len()).collect();
    order.sort_by_key(|&index| beside_one_pass::goes_through_a_cache(&manifest.cases[index]));
    for index in order {
        let case = &manifest.cases[index];
        let files = |case: &Case| folder.case_folder(manifest, &case.name);
        let own = files(case);
        let cells: Vec<Cell> = case.variants.iter().map(|variant| cell_of(variant, &cells[index])).collect();
        let entries: Vec<Entry> = cells.iter().map(|cell| entry(cell, &own)).collect();
        let mask = mask(&own, &cells)?;
        let beside = match (beside_one_pass::one_pass(manifest, case), &mask) {
            (Some(whole), Some(mask)) => beside_one_pass::compared(
                (case, &cells),
                &views[&whole],
                [&own, &files(&manifest.cases[whole])],
                &localized,
                mask,
                tolerances,
            )?,
            _ => Vec::new(),
        };
        let near_ties: Vec<(String, Routing)> = beside.iter().filter_map(Beside::near_ties).collect();
        let known = Known { localized: &localized, near_ties: &near_ties, envelopes: &envelopes };
        let mut view = case_view(
            (case, known),
            manifest.baseline.as_deref(),
            cells,
            &entries,
            mask.as_ref(),
            tolerances,
        )?;
        view.outputs = further_outputs(&view, &own, tolerances.with(case.tolerances.as_ref()))?;
        add_embeddings(&mut view, case, &entries, mask.as_ref(), tolerances)?;
        let apart = diverging_outputs(&view);
        view.verdicts.extend(apart);
        for Beside { cell, verdict, .. } in beside {
            view.caches.push(CacheVerdict { cell, verdict: view.verdicts.len() });
            view.verdicts.push(verdict);
        }
        view.diagnosed = diagnosed.iter().filter(|found| found.case == case.name).cloned().collect();
        views.insert(index, view);
    }
    let record = folder.environment();
    let cases: Vec<CaseView> = views.into_values().collect();
    let unread = folder.environment_problem().map(|problem| bounds::shown(&problem, LINE.most).into_owned());
    let notes =
        manifest.notes.iter().cloned().chain(unread).chain(cases.iter().flat_map(not_finite)).collect();
    Ok(RunView {
        id: folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
        environment: record.as_ref().map(EnvironmentRecord::rows).unwrap_or_default(),
        packages: record.as_ref().map(EnvironmentRecord::packages).unwrap_or_default(),
        cases,
        relations: folder.relations(manifest)?,
        notes,
    })
}

/// A note on each variant of a case whose logits are not all finite: a variant that runs alone has none to differ from.
fn not_finite(case: &CaseView) -> Vec<String> {
    let note = |index: usize| {
        let own = case.matrix.compared(index, index)?;
        let found = own.distribution.as_ref()?.non_finite_a;
        let lost = found.nan + found.infinite;
        let name = &case.cells.get(index)?.name;
        (lost > 0)
            .then(|| format!("{}: {lost} of {} logits of {name} are not finite", case.name, own.elements))
    };
    (0..case.matrix.len()).filter_map(note).collect()
}

/// The outputs of a case beside the main one, from the case folder `files`.
fn further_outputs(view: &CaseView, files: &Path, tolerances: Tolerances) -> Result<Vec<OutputView>> {
    let origins: Vec<_> = view.cells.iter().map(|cell| origin(&cell.variant)).collect();
    let reference = view.reference();
    outputs::outputs(&view.cells, files, &origins, reference, &tolerances)
}

/// Adds the vectors that the checkpoint's pooling makes of hidden states, as a further output.
fn add_embeddings(
    view: &mut CaseView,
    case: &Case,
    entries: &[Entry],
    mask: Option<&Mask>,
    tolerances: &Tolerances,
) -> Result<()> {
    let (Some(pooling), Some(mask), Some(reference)) = (case.pooling, mask, view.reference()) else {
        return Ok(());
    };
    let Embeddings { entries, view: found } =
        embeddings::embeddings((pooling, case.questions), entries, mask, reference)?;
    let origins: Vec<_> = view.cells.iter().map(|cell| origin(&cell.variant)).collect();
    let tolerances = tolerances.with(case.tolerances.as_ref());
    view.outputs.push(outputs::beside(
        ("sentence_embedding", None),
        &entries,
        &origins,
        Some(reference),
        &tolerances,
    )?);
    view.embeddings = Some(found);
    Ok(())
}

/// The verdicts on further outputs that diverge where the main outputs do not, under the names of variant and output.
fn diverging_outputs(view: &CaseView) -> Vec<Verdict> {
    let diverges =
        |a: &str, b: &str| view.verdict(a, b).is_some_and(|found| found.decision == Decision::Diverged);
    let of = |output: &OutputView| {
        let apart = |row: &&OutputRow| {
            row.verdict.decision == Decision::Diverged && !diverges(&output.reference, &row.variant)
        };
        let named = |verdict: &Verdict| Verdict {
            a: format!("{} {}", verdict.a, output.name),
            b: format!("{} {}", verdict.b, output.name),
            ..verdict.clone()
        };
        output.rows.iter().filter(apart).map(|row| named(&row.verdict)).collect::<Vec<_>>()
    };
    view.outputs.iter().flat_map(of).collect()
}

/// Evidence that distinguishes a routing near-tie from a different function.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// Localisations of pairs, of any number of cases.
    pub localized: &'a [Localized],
    /// Variants whose differences are known to come only from routing near-ties, with the evidence.
    pub near_ties: &'a [(String, Routing)],
    /// What rounding was measured to do, of any number of cases.
    pub envelopes: &'a [CaseEnvelope],
}

/// Measures the pairs of a case's cells and decides their verdicts; `entries` are the cells' logits, in the same
/// order.
///
/// # Errors
/// When logits that exist cannot be read.
pub fn case_view(
    (case, known): (&Case, Known<'_>),
    baseline: Option<&str>,
    cells: Vec<Cell>,
    entries: &[Entry],
    mask: Option<&Mask>,
    tolerances: &Tolerances,
) -> Result<CaseView> {
    let matrix =
        matrix::matrix(entries, mask, &matrix::Options::default()).map_err(|error| miette!("{error}"))?;
    let origins: Vec<_> = cells.iter().map(|cell| origin(&cell.variant)).collect();
    let localized: Vec<Localized> =
        known.localized.iter().filter(|found| found.case == case.name).cloned().collect();
    let mut oracles = with_near_ties(Oracles::new(&matrix, &origins), &cells, &localized);
    for (name, routing) in known.near_ties {
        if let Some(index) = cells.iter().position(|cell| cell.name == *name) {
            oracles = oracles.with_near_ties(index, routing.clone());
        }
    }
    let is_opaque = |cell: &Cell| matches!(cell.variant.runner, Runner::CandleTransformers | Runner::Command);
    let opaque = cells.iter().enumerate().filter(|(_, cell)| is_opaque(cell)).map(|(index, _)| index);
    let of_case = known.envelopes.iter().filter(|known| known.case == case.name);
    let oracles = oracles.with_opaque(opaque).with_envelopes(of_case.map(|known| known.envelope.clone()));
    let tolerances = tolerances.with(case.tolerances.as_ref());
    let mut judged = verdicts(&matrix, &oracles, &tolerances);
    let noises: Vec<_> = cells
        .iter()
        .map(|cell| match &cell.outcome {
            Outcome::Completed(completed) => completed.noise.clone(),
            _ => None,
        })
        .collect();
    annotate(&mut judged, &matrix, &noises);
    Ok(CaseView {
        name: case.name.clone(),
        checkpoint: case.checkpoint.clone(),
        inputs: case.inputs.clone(),
        baseline: baseline.map(str::to_owned),
        axes: case.axes,
        verdicts: judged,
        caches: Vec::new(),
        accuracies: accuracies(&matrix, &oracles),
        outputs: Vec::new(),
        embeddings: None,
        choices: mask.map(|mask| choices(case, entries, mask)).transpose()?.flatten(),
        localized,
        diagnosed: Vec::new(),
        times: Times::default(),
        cells,
        matrix,
    })
}

/// Marks fused variants whose modules were replayed with the inputs of a variant of the same dtype whose code also
/// ran in float64, and that differ only by routing near-ties. A variant that was captured through an eager twin (a
/// compiled model) is not marked.
fn with_near_ties(oracles: Oracles, cells: &[Cell], localized: &[Localized]) -> Oracles {
    let mut found = oracles;
    for localized in localized {
        let Some(replayed) = localized.near_ties() else { continue };
        let index = |name: &String| cells.iter().position(|cell| cell.name == *name);
        let (Some(a), Some(b)) = (index(&localized.a), index(&localized.b)) else { continue };
        let is_in_it = |index: usize| cells[index].variant.dtype == localized.dtype;
        let is_fed = found.ran(a) && cells[b].variant.mode == Mode::Fused && is_in_it(a) && is_in_it(b);
        if is_fed {
            found = found.with_near_ties(b, Routing::Replayed(replayed));
        }
    }
    found
}

/// The variants among `cells` (of a case of prefill and decoding) that are known to differ only by routing near-ties,
/// from the results of their full-sequence forward pass, with the evidence.
///
/// # Errors
/// When logits that exist cannot be read.
pub fn near_ties_of_a_cache(
    folder: &RunFolder,
    manifest: &Manifest,
    (case, cells): (&Case, &[Cell]),
    localized: &[Localized],
    mask: &Mask,
) -> Result<Vec<(String, Routing)>> {
    let Some(whole) = beside_one_pass::one_pass(manifest, case).map(|index| &manifest.cases[index]) else {
        return Ok(Vec::new());
    };
    if localized.iter().all(Localized::is_divergence) {
        return Ok(Vec::new());
    }
    let files = [case, whole].map(|case| folder.case_folder(manifest, &case.name));
    let tolerances = &manifest.config.tolerances;
    let is_needed = |name: &str| {
        let is_beside = |found: &Localized| found.a == name && cells.iter().any(|cell| cell.name == found.b);
        cells.iter().any(|cell| cell.name == name) || localized.iter().any(is_beside)
    };
    let own: Vec<Cell> =
        folder.cells(manifest, whole)?.into_iter().filter(|cell| is_needed(&cell.name)).collect();
    let entries: Vec<Entry> = own.iter().map(|cell| entry(cell, &files[1])).collect();
    let known = Known { localized, ..Known::default() };
    let view = case_view((whole, known), None, own, &entries, Some(mask), tolerances)?;
    let files = [&*files[0], &*files[1]];
    let beside = beside_one_pass::compared((case, cells), &view, files, localized, mask, tolerances)?;
    Ok(beside.iter().filter_map(Beside::near_ties).collect())
}

/// The cell of a variant; a variant that was never started gets a failed cell.
fn cell_of(variant: &Variant, cells: &[Cell]) -> Cell {
    let never = || {
        let failure = Failure {
            kind: FailureKind::Interrupted,
            reason: "the run ended before this variant started".into(),
            detail: String::new(),
            log_tail: String::new(),
        };
        Cell::new(variant, "", Outcome::Failed(failure))
    };
    cells.iter().find(|cell| cell.variant == *variant).cloned().unwrap_or_else(never)
}

/// The positions at which a case's outputs are compared, from the inputs in the case folder `files` and the shape of the
/// cells' outputs; `None` if there are neither inputs nor logits, as in a merged run of which a part is missing.
///
/// # Errors
/// When the inputs cannot be read.
pub fn mask(files: &Path, cells: &[Cell]) -> Result<Option<Mask>> {
    let path = files.join("inputs.safetensors");
    let completed: Vec<&Completed> = cells.iter().filter_map(Cell::completed).collect();
    if completed.is_empty() && !path.exists() {
        return Ok(None);
    }
    let known = Mask::of_inputs(&path)
        .map_err(|error| miette!(help = "`tfcheck run --resume RUN` writes the inputs again", "{error}"))?;
    let shape = completed.iter().find_map(|completed| match *completed.shape.as_slice() {
        [batch, seq, _] if completed.positions == Positions::All => Some((batch, seq)),
        _ => None,
    });
    // Logits of the last position alone are compared where a row ends in a real token.
    Ok(match shape {
        Some(shape) => Some(Mask::fitting(known, shape)),
        None => known,
    })
}

/// The logits of a cell, from the case folder `files`, or the reason why there are none.
pub fn entry(cell: &Cell, files: &Path) -> Entry {
    let logits = match &cell.outcome {
        Outcome::Completed(Completed { logits, positions, written, .. }) => {
            let digest = written.as_ref().map(|written| written.sha256.clone());
            Logits::open(&files.join(logits), measured_positions(*positions))
                .map(|logits| logits.with_digest(digest))
                .map_err(|error| error.to_string())
        }
        outcome => Err(outcome.reason()),
    };
    Entry { name: cell.name.clone(), dtype: measured_dtype(cell.variant.dtype), logits }
}

fn choices(case: &Case, entries: &[Entry], mask: &Mask) -> Result<Option<ChoicesView>> {
    if case.choices.is_empty() {
        return Ok(None);
    }
    let tokens: Vec<u32> = case.choices.iter().map(|choice| choice.id).collect();
    let mut rows = Vec::new();
    for entry in entries {
        let Ok(logits) = &entry.logits else { continue };
        let found = compare::choices(logits, mask, &tokens).map_err(|error| miette!("{error}"))?;
        for (row, probabilities) in found.into_iter().enumerate() {
            let probabilities = probabilities.unwrap_or_else(|| vec![None; tokens.len()]);
            rows.push(ChoiceRow { variant: entry.name.clone(), row, probabilities });
        }
    }
    let tokens = case.choices.iter().map(|choice| choice.text.clone()).collect();
    Ok(Some(ChoicesView { tokens, rows }))
}
