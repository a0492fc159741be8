//! The first module whose output differs between the two runs of a trial.

use std::path::Path;

use compare::mapped::Mapped;
use reference::protocol::{CapturedModule, Dtype};

use super::measure::Bench;
use super::process::parts;
use crate::execute::cell::FailureKind;
use crate::execute::runner::NoResult;
use crate::hunt::localize::cached;
use crate::hunt::localize::tensor::{Extent, Stored, mapped};
use crate::judge::relations::is_above;
use crate::results::relations::FirstModule;
use crate::spec::relations::{Passes, Step, Trial};

/// Bytes that the tensors of one run may take.
const MAX_BYTES: u64 = 1 << 30;

/// Captures both runs and compares their modules at the mapped positions. Of modules that differ, the first one in the
/// order of calls is taken, and inside it the first one again, down to a module without differing ones inside; `None` where
/// no module that can be compared differs.
pub(super) fn first(
    bench: &mut Bench<'_, '_>,
    trial: &Trial,
    dtype: Dtype,
) -> Result<Option<FirstModule>, NoResult> {
    let io = |error: std::io::Error| NoResult::failed(FailureKind::Environment, error.to_string());
    let folder = tempfile::tempdir_in(bench.scratch()).map_err(io)?;
    let mut sides = Vec::new();
    for (name, step) in [("base", &trial.base), ("varied", &trial.varied)] {
        let own = folder.path().join(name);
        std::fs::create_dir(&own).map_err(io)?;
        let captured = bench.captured(step, dtype, &own, MAX_BYTES)?;
        let modules = whole(captured.modules, step, &own).map_err(io)?;
        sides.push((own, modules));
    }
    let [(base_folder, base), (varied_folder, varied)] = &sides[..] else { return Ok(None) };
    let mut differing: Vec<(&CapturedModule, f64)> = Vec::new();
    for module in base {
        let is_same = |other: &&CapturedModule| (&other.path, other.call) == (&module.path, module.call);
        let Some(other) = varied.iter().find(is_same) else { continue };
        let a = Stored::open(base_folder, module.output.as_ref()).map_err(io)?;
        let b = Stored::open(varied_folder, other.output.as_ref()).map_err(io)?;
        let (Some(a), Some(b)) = (a, b) else { continue };
        let found: Option<Mapped> =
            mapped((&a, extent(&trial.base)), (&b, extent(&trial.varied)), &pairs(trial)).map_err(io)?;
        if let Some(found) = found.filter(|found| is_above(found, dtype, bench.request.tolerances)) {
            differing.push((module, found.relative_l2));
        }
    }
    Ok(innermost(&differing).map(|(module, relative_l2)| FirstModule {
        path: module.path.clone(),
        class: module.class.clone(),
        relative_l2,
    }))
}

/// The first of `differing`, and inside it the first one again.
fn innermost<'a>(differing: &[(&'a CapturedModule, f64)]) -> Option<(&'a CapturedModule, f64)> {
    let mut found = *differing.first()?;
    loop {
        let inside =
            |path: &str| path.strip_prefix(found.0.path.as_str()).is_some_and(|rest| rest.starts_with('.'));
        match differing.iter().find(|(module, _)| inside(&module.path)) {
            Some(next) => found = *next,
            None => return Some(found),
        }
    }
}

fn extent(step: &Step) -> Extent {
    Extent { batch: step.batch.rows(), seq: step.batch.seq() }
}

fn pairs(trial: &Trial) -> Vec<((usize, usize), (usize, usize))> {
    trial.pairs.iter().map(|[a, b]| ((a.row, a.position), (b.row, b.position))).collect()
}

/// The modules as those of one forward pass.
fn whole(modules: Vec<CapturedModule>, step: &Step, folder: &Path) -> std::io::Result<Vec<CapturedModule>> {
    if matches!(step.passes, Passes::Whole) {
        return Ok(modules);
    }
    let (prefill, chunks) = parts(&step.passes);
    let lengths = cached::lengths(prefill, &chunks, step.batch.seq())?;
    cached::joined(&modules, &lengths, step.batch.rows(), &|_| false, folder)
}
