//! `tfcheck record`: writes transformers' logits on one batch of inputs, so that a port can be tested against
//! them without Python. The crate `tfcheck-port` defines the file format and the verdict on a port.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bounds::limits::STORED_TENSOR_BYTES;
use miette::{IntoDiagnostic, Result, WrapErr, miette};
use reference::protocol::{CapturedModule, Dtype, LOGITS, Mode, Positions};
use safetensors::SafeTensors;
use tfcheck_port::{
    Limits, Module, Recorded, Recording, Reference, SCHEMA_VERSION, Tensors, by_position, file_sha256,
};

use crate::commands::run::{self, RunRequest};
use crate::commands::scoreboard;
use crate::execute::cell::{Cell, Completed, Outcome};
use crate::hunt::diagnose::PLACES;
use crate::judge::assess;
use crate::results::RunFolder;
use crate::spec::checkpoint::{self, Source};
use crate::spec::config::{Candle, Config, Run, Version};
use crate::spec::inputs;
use crate::spec::machine;
use crate::spec::plan::{Filters, Plan, release_order};
use crate::spec::variant::dtype_name;
use compare::units::bytes;
use compare::verdict::Tolerances;

/// The config of the run behind a recording: only the newest version of `base`, in eager mode, and its
/// float64 result.
///
/// # Errors
/// When `base` has no version.
pub fn config(base: &Config) -> Result<Config> {
    let newest = base.versions.iter().max_by_key(|version| release_order(version)).cloned();
    let newest = newest.ok_or_else(|| {
        miette!(help = "list one under [[versions]]", "the config has no transformers version to record")
    })?;
    Ok(Config {
        versions: vec![Version { modes: None, ..newest }],
        candle: Candle { modes: Vec::new(), upstream: false },
        commands: Vec::new(),
        run: Run {
            modes: vec![Mode::Eager],
            attention: base.run.attention.iter().take(1).copied().collect(),
            trace: false,
            noise: false,
            diagnose_s: 0,
            oracle: true,
            baseline: None,
            fail_on: Vec::new(),
            against: None,
            ..base.run.clone()
        },
        ..base.clone()
    })
}

/// The plan of `config`; nothing is timed.
///
/// # Errors
/// When a filter is invalid, or more than one case is left.
pub fn plan(config: &Config, filters: &Filters) -> Result<Plan> {
    let mut plan = Plan::new(config, machine::auto_device())?.filtered(filters, config)?;
    if plan.cases.len() > 1 {
        let names: Vec<&str> = plan.cases.iter().map(|case| case.name.as_str()).collect();
        return Err(miette!(
            help = format!("choose one with --only '{}/*'", names[0]),
            "a recording holds one case; the config makes {}: {}",
            names.len(),
            names.join(", ")
        ));
    }
    scoreboard::untimed(&mut plan);
    Ok(plan)
}

/// What goes into a recording, and where.
pub struct Out<'a> {
    /// The recording's folder.
    pub folder: &'a Path,
    /// Number of real positions to keep; all if `None`.
    pub positions: Option<usize>,
    /// Globs over the paths of the modules whose outputs are kept.
    pub modules: &'a [String],
    /// Whether logits of edited checkpoints are kept.
    pub surgery: bool,
}

/// Writes the recording of `run`, a finished run of `request`; returns a summary of a few lines.
///
/// # Errors
/// When no cell has logits, its modules cannot be captured, or a file cannot be read or written.
pub fn write(run: &Path, request: &RunRequest, out: &Out) -> Result<String> {
    let folder = RunFolder::open(run)?;
    let manifest = folder.manifest()?;
    let case = manifest.cases.first().ok_or_else(|| miette!("{} holds no case", run.display()))?;
    let cells = folder.cells(&manifest, case)?;
    let files = folder.case_folder(&manifest, &case.name);
    let (cell, completed) = reference(&cells)?;
    let batch = inputs::load(&files)?;

    let mut real: Vec<[i64; 2]> = Vec::new();
    for row in 0..batch.batch {
        let is_real = |position: &usize| batch.attention_mask[row * batch.seq + position] != 0;
        real.extend((0..batch.seq).filter(is_real).map(|position| [row as i64, position as i64]));
    }
    let places = chosen(&real, out.positions);
    let [_, seq, vocab_size] = completed.shape[..] else {
        return Err(miette!("{} has logits of shape {:?}", cell.name, completed.shape));
    };
    let all = read_logits(&files.join(&completed.logits))?;
    let row = |place: &[i64; 2]| (place[0] as usize * seq + place[1] as usize) * vocab_size;
    let logits = places.iter().flat_map(|place| all[row(place)..][..vocab_size].iter().copied()).collect();

    let modules = if out.modules.is_empty() {
        Vec::new()
    } else {
        let scratch = crate::commands::scratch()?;
        let captured = run::modules(request, &cell.name, out.modules, scratch.path())?;
        module_outputs(&captured, &scratch.path().join("modules"), &places, (batch.batch, seq))?
    };
    let operated = if out.surgery {
        let scratch = crate::commands::scratch()?;
        let place = |&[row, position]: &[i64; 2]| [row as usize, position as usize];
        let some: Vec<[usize; 2]> = chosen(&places, Some(PLACES)).iter().map(place).collect();
        Some(run::surgery(request, &cell.name, &some, vocab_size, scratch.path())?)
    } else {
        None
    };
    let view = assess::view(&folder, &manifest, std::slice::from_ref(&cells), &manifest.config.tolerances)?;
    let accuracies = view.cases.iter().flat_map(|case| &case.accuracies);
    let reference_rmse = accuracies
        .filter_map(|accuracy| Some((view.cases[0].cells.get(accuracy.variant)?, accuracy.rmse)))
        .map(|(cell, rmse)| (dtype_name(cell.variant.dtype).to_owned(), rmse))
        .collect();
    let wanted = &manifest.config.checkpoints[0];
    let (source, file_digests) = digests(wanted, request.cache, manifest.config.run.seed)?;
    let recorded = Recorded {
        schema_version: SCHEMA_VERSION,
        checkpoint: source,
        seed: matches!(wanted.source, crate::spec::config::CheckpointSource::Synthetic { .. })
            .then_some(manifest.config.run.seed),
        files: file_digests,
        batch: batch.batch,
        seq: batch.seq,
        vocab_size,
        real_positions: real.len(),
        reference: Reference {
            variant: cell.name.clone(),
            dtype: dtype_name(cell.variant.dtype).to_owned(),
            libraries: completed.libraries.clone(),
        },
        reference_rmse,
        limits: limits(&manifest.config.tolerances),
        limits_from: limits_from(&manifest.config.tolerances),
        tfcheck: env!("CARGO_PKG_VERSION").to_owned(),
        tensors_sha256: String::new(),
        modules: modules.iter().map(|module| module.path.clone()).collect(),
        surgery: operated.as_ref().map(|operated| operated.surgery.clone()),
    };
    let tensors = Tensors {
        input_ids: batch.input_ids,
        attention_mask: batch.attention_mask,
        position_ids: batch.position_ids,
        places,
        logits,
        modules,
        surgery: operated.as_ref().map(|operated| operated.logits.clone()).unwrap_or_default(),
    };
    let size = Recording::write(out.folder, &recorded, &tensors).into_diagnostic()?;
    let edited = operated.as_ref().map(|operated| {
        let failed = match operated.failed {
            0 => String::new(),
            failed => format!(" ({failed} more gave none)"),
        };
        let values: usize = operated.logits.iter().map(Vec::len).sum();
        format!(
            "; logits of {} edited checkpoints{failed}: {:.1} kB",
            operated.logits.len(),
            4.0 * values as f64 / 1e3
        )
    });
    Ok(format!(
        "recorded {} of {} positions of {} and {} modules in {}: {}, {}{}\nits test: tfcheck_port::assert_port!(\"{}\", {})",
        tensors.places.len(),
        real.len(),
        case.checkpoint,
        recorded.modules.len(),
        recorded.reference.variant,
        out.folder.display(),
        bytes(size),
        edited.unwrap_or_default(),
        out.folder.display(),
        if out.surgery { "\"CHECKPOINT\", |folder, inputs| …" } else { "|inputs| …" }
    ))
}

/// Of the results that cover all positions: the float64 one, or else the most precise one.
fn reference(cells: &[Cell]) -> Result<(&Cell, &Completed)> {
    let mut usable: Vec<(&Cell, &Completed)> = cells
        .iter()
        .filter_map(|cell| match &cell.outcome {
            Outcome::Completed(completed) if completed.positions == Positions::All => Some((cell, completed)),
            _ => None,
        })
        .collect();
    let order = [Dtype::F64, Dtype::F32, Dtype::Bf16, Dtype::F16];
    usable.sort_by_key(|(cell, _)| order.iter().position(|dtype| *dtype == cell.variant.dtype));
    usable.first().copied().ok_or_else(|| {
        let reasons: Vec<String> =
            cells.iter().map(|cell| format!("{}: {}", cell.name, cell.outcome.reason())).collect();
        miette!(help = "the run's worker.log says more", "nothing to record: {}", reasons.join("; "))
    })
}

/// All places, or `most` of them: the last one of each sequence, and the others evenly spaced.
fn chosen(real: &[[i64; 2]], most: Option<usize>) -> Vec<[i64; 2]> {
    let Some(most) = most.filter(|most| *most < real.len()) else { return real.to_vec() };
    let is_last = |index: &usize| real.get(index + 1).is_none_or(|next| next[0] != real[*index][0]);
    let mut picked: BTreeSet<usize> = (0..real.len()).filter(is_last).collect();
    for step in 0..most {
        if picked.len() >= most {
            break;
        }
        picked.insert(step * (real.len() - 1) / (most - 1).max(1));
    }
    picked.into_iter().map(|index| real[index]).collect()
}

/// Outputs of modules at the recorded places, in the order of the calls: of each module's first call, where the output has a
/// vector for each position.
fn module_outputs(
    captured: &[CapturedModule],
    folder: &Path,
    places: &[[i64; 2]],
    (batch, seq): (usize, usize),
) -> Result<Vec<Module>> {
    let mut modules = Vec::new();
    for module in captured.iter().filter(|module| module.call == 0) {
        let Some(output) = &module.output else { continue };
        let Some(file) = &output.file else { continue };
        let path = folder.join(file);
        let read = || format!("cannot read {}", path.display());
        let content =
            bounds::file::read_unlinked(&path, STORED_TENSOR_BYTES).into_diagnostic().wrap_err_with(read)?;
        let count: usize = output.shape.iter().product();
        if content.len() != 8 * count && content.len() != 4 * count {
            let problem =
                format!("{} bytes of shape {:?} are neither f64 nor f32", content.len(), output.shape);
            return Err(miette::miette!(problem)).wrap_err_with(read);
        }
        let values: Vec<f64> = if content.len() == 8 * count {
            content.as_chunks::<8>().0.iter().map(|&word| f64::from_le_bytes(word)).collect()
        } else {
            content.as_chunks::<4>().0.iter().map(|&word| f64::from(f32::from_le_bytes(word))).collect()
        };
        let Some((values, width)) = by_position(values, &output.shape, batch, seq) else { continue };
        let of = |place: &[i64; 2]| &values[(place[0] as usize * seq + place[1] as usize) * width..][..width];
        let values = places.iter().flat_map(|place| of(place).iter().map(|&value| value as f32)).collect();
        modules.push(Module { path: module.path.clone(), values });
    }
    Ok(modules)
}

fn read_logits(path: &Path) -> Result<Vec<f64>> {
    let read = || format!("cannot read {}", path.display());
    let content =
        bounds::file::read_unlinked(path, STORED_TENSOR_BYTES).into_diagnostic().wrap_err_with(read)?;
    let file = SafeTensors::deserialize(&content).into_diagnostic().wrap_err_with(read)?;
    let view = file.tensor(LOGITS).into_diagnostic().wrap_err_with(read)?;
    match view.dtype() {
        safetensors::Dtype::F64 => {
            Ok(view.data().as_chunks::<8>().0.iter().map(|&word| f64::from_le_bytes(word)).collect())
        }
        safetensors::Dtype::F32 => {
            let words = view.data().as_chunks::<4>().0.iter();
            Ok(words.map(|&word| f64::from(f32::from_le_bytes(word))).collect())
        }
        other => Err(miette!("{} holds logits of dtype {other:?}", path.display())),
    }
}

/// The checkpoint's name without machine-specific paths, and the digests of its files.
fn digests(
    wanted: &crate::spec::config::Checkpoint,
    cache: &Path,
    seed: u64,
) -> Result<(String, BTreeMap<String, String>)> {
    let settings = checkpoint::Settings {
        revision: wanted.revision.clone(),
        allow_remote_code: wanted.allow_remote_code,
        seed,
        ..checkpoint::Settings::new(cache)
    };
    let known = checkpoint::resolve(&wanted.source.to_string(), &settings, &mut |_| {})?;
    let name = match (&known.source, &known.revision) {
        (Source::Hub(_), Some(revision)) => format!("{}@{revision}", known.name),
        (Source::Folder(path) | Source::Gguf(path), _) => {
            path.file_name().unwrap_or_default().to_string_lossy().into_owned()
        }
        _ => known.name.clone(),
    };
    let mut digests = BTreeMap::new();
    for path in std::iter::once(&known.folder.join("config.json")).chain(&known.weights) {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        digests.insert(file, file_sha256(path).into_diagnostic()?);
    }
    Ok((name, digests))
}

fn limits(tolerances: &Tolerances) -> BTreeMap<String, Limits> {
    let (relative, dynamo) = (&tolerances.relative_l2, &tolerances.dynamo);
    [
        ("f64", tolerances.f64_agreement, dynamo.f64),
        ("f32", relative.f32, dynamo.f32),
        ("bf16", relative.bf16, dynamo.bf16),
        ("f16", relative.f16, dynamo.f16),
    ]
    .into_iter()
    .map(|(dtype, relative_l2, dynamo)| {
        (dtype.to_owned(), Limits { relative_l2, local_factor: tolerances.local_factor, dynamo })
    })
    .collect()
}

fn limits_from(tolerances: &Tolerances) -> String {
    if *tolerances == Tolerances::default() {
        "tfcheck's own: the rtol of torch.testing.assert_close (f32 1.3e-6, f16 1e-3, bf16 1.6e-2), which is for one operation, times 8 for a model (4 for bf16)".into()
    } else {
        "[tolerances] of the config that was recorded from".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_positions_include_the_last_of_each_sequence() {
        let real: Vec<[i64; 2]> =
            (0..2).flat_map(|row| (0..10).map(move |position| [row, position])).collect();
        let picked = chosen(&real, Some(6));
        assert_eq!(picked.len(), 6);
        assert!(
            picked.contains(&[0, 9]) && picked.contains(&[1, 9]) && picked.contains(&[0, 0]),
            "{picked:?}"
        );
        assert!(picked.is_sorted());
        assert_eq!(chosen(&real, Some(1)), [[0, 9], [1, 9]], "no row goes without its last");
        assert_eq!(chosen(&real, None), real);
        assert_eq!(chosen(&real, Some(99)), real);
    }
}
