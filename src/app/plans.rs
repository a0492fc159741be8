//! Config and plan of a command: those of a config file, of a run folder, or of a run that is resumed.

use std::path::Path;

use bounds::limits::CONFIG_BYTES;
use miette::{IntoDiagnostic, Result, WrapErr};

use super::session::cache_folder;
use crate::cli::Selection;
use crate::commands::run::{Destination, specification};
use crate::execute::{answer, foreseen};
use crate::results::{Manifest, RunFolder};
use crate::spec::config::{self, Config};
use crate::spec::machine;
use crate::spec::plan::{CasePlan, CellPlan, Filters, Plan};

pub(super) fn plan_text(selection: &Selection) -> Result<String> {
    let (loaded, plan) = planned(selection)?;
    answer::set_data(&plan);
    let cache = cache_folder()?;
    let specifications: Vec<_> = plan.environments.iter().map(specification).collect();
    let lacks = |environment: usize, model_type: &str| {
        reference::lacks_model_type(&specifications[environment], &cache, model_type)
    };
    Ok(plan.text(&loaded.config, &foreseen::unsupported(&plan, &loaded.config, &lacks)))
}

/// Config, plan and destination of a run that is resumed, or that goes into a new folder below `results`.
pub(super) fn begun(
    resume: Option<&Path>,
    selection: &Selection,
    results: &Path,
) -> Result<(config::Loaded, Plan, Destination)> {
    if let Some(path) = resume {
        let folder = RunFolder::resume(path)?;
        let (loaded, plan) = resumed(&folder, |_| ())?;
        return Ok((loaded, plan, Destination::Resume(folder)));
    }
    let (loaded, plan) = planned(selection)?;
    Ok((loaded, plan, Destination::New(results.to_owned())))
}

pub(super) fn planned(selection: &Selection) -> Result<(config::Loaded, Plan)> {
    let filters = Filters { only: selection.only.clone(), skip: selection.skip.clone() };
    // The commands of a report name the run itself, whose config may be gone.
    if let Some(run) = selection.config.as_deref().filter(|path| path.is_dir()) {
        let (loaded, plan) = resumed(&RunFolder::open(run)?, |_| ())?;
        if !selection.checkpoints.is_empty() {
            miette::bail!(
                help = "name a config file, or leave --checkpoint out",
                "the checkpoints of a run folder cannot be replaced"
            );
        }
        let plan = plan.filtered(&filters, &loaded.config)?;
        return Ok((loaded, plan));
    }
    let mut loaded = Config::load(selection.config.as_deref())?;
    if !selection.checkpoints.is_empty() {
        loaded.config = loaded.config.with_checkpoints(&selection.checkpoints)?;
    }
    loaded.config = loaded.config.absolute();
    let plan = Plan::new(&loaded.config, machine::auto_device())?;
    let plan = plan.filtered(&filters, &loaded.config)?;
    Ok((loaded, plan))
}

/// The config of a run, with the folder that its paths are relative to.
pub(super) fn of_run(manifest: &Manifest) -> Config {
    Config { folder: manifest.folder.clone(), ..manifest.config.clone() }
}

/// The config and the plan of a run that is resumed. A run of a tfcheck that did not keep its plan has the cells of the
/// config that `run.json` lists, after `adapt`.
pub(super) fn resumed(folder: &RunFolder, adapt: fn(&mut Plan)) -> Result<(config::Loaded, Plan)> {
    let manifest = folder.manifest()?;
    let path = folder.path().join("config.toml");
    let config = of_run(&manifest);
    // The manifest has the config; its text is kept for people, and a full disk may have kept it from being written.
    let text = match bounds::file::read_text(&path, CONFIG_BYTES) {
        Ok(text) => text,
        Err(_) => toml::to_string(&config).into_diagnostic().wrap_err("the run's config as TOML")?,
    };
    let plan = if let Some(plan) = manifest.plan {
        plan.check(&config)?;
        plan
    } else {
        let begun = |case: &CasePlan, cell: &CellPlan| {
            let known = manifest.cases.iter().find(|known| known.name == case.name);
            known.is_some_and(|known| known.variants.contains(&cell.variant))
        };
        let mut plan = Plan::new(&config, machine::auto_device())?.selected(&config, begun)?;
        adapt(&mut plan);
        plan
    };
    Ok((config::Loaded { config, text, path: Some(path) }, plan))
}
