//! Plans that are frozen, runs of a part of a plan, and runs that are merged.

use std::path::Path;

use miette::{IntoDiagnostic, Result, WrapErr};

use super::plans::{of_run, plan_text, planned};
use super::session::Session;
use super::{gated, made, progress, say};
use crate::cli::{self, Cli};
use crate::commands::merge::{self, MergeRequest};
use crate::commands::run::{self, Part, RunRequest, Sharing};
use crate::commands::scoreboard;
use crate::commands::slurm::{self, SlurmRequest};
use crate::execute::answer;
use crate::execute::progress::Progress;
use crate::judge::exit_code::ExitCode;
use crate::report;
use crate::results::{Frozen, Manifest};
use crate::spec::config::{Config, Loaded};
use crate::spec::plan::Plan;
use crate::spec::units::Shard;

/// The cells of a config as text, or its frozen plan as JSON.
pub(super) fn plan(cli: &Cli, arguments: &cli::Plan) -> Result<ExitCode> {
    if !arguments.json {
        return say(&plan_text(&arguments.selection)?);
    }
    let session = Session::open(progress(cli))?;
    let (loaded, plan) = planned(&arguments.selection)?;
    let request = session.request(&loaded.config, &loaded.text, &plan);
    let frozen = run::freeze(&request, &arguments.results)?;
    answer::set_data(&frozen);
    say(&frozen.text()?)
}

/// The part of a plan that the command line asks for; `None` for a whole run.
pub(super) fn sharing(arguments: &cli::Sharing) -> Result<Option<Sharing>> {
    let frozen = arguments.plan.as_deref().map(Frozen::read).transpose()?;
    let part = match (&arguments.unit, arguments.shard) {
        (Some(unit), _) => Part::Unit(unit.clone()),
        (None, Some(shard)) => Part::Shard(shard),
        (None, None) if frozen.is_some() => Part::Shard(Shard { index: 1, count: 1 }),
        (None, None) => return Ok(None),
    };
    Ok(Some(Sharing { part, frozen }))
}

/// Config and plan of a frozen plan.
pub(super) fn of_frozen(frozen: &Frozen, path: &Path) -> Result<(Loaded, Plan)> {
    let (config, text) = config(&frozen.run)?;
    let plan = whole(&frozen.run)?;
    Ok((Loaded { config, text, path: Some(path.to_owned()) }, plan))
}

/// Submits the units of a plan to a Slurm cluster, waits for them and reports the merged run.
pub(super) fn slurm(cli: &Cli, arguments: &cli::Run) -> Result<ExitCode> {
    let session = Session::open(progress(cli))?;
    let sharing = sharing(&arguments.sharing)?;
    let resumed = arguments.resume.as_ref().map(|folder| folder.join("plan.json"));
    let (mut loaded, plan) = match (&resumed, &sharing, &arguments.sharing.plan) {
        (Some(path), ..) => of_frozen(&Frozen::read(path)?, path)?,
        (None, Some(Sharing { frozen: Some(frozen), .. }), Some(path)) => of_frozen(frozen, path)?,
        _ => planned(&arguments.selection)?,
    };
    gated(&mut loaded.config, arguments);
    let request = RunRequest {
        clean: arguments.clean,
        sharing: sharing.as_ref(),
        ..session.request(&loaded.config, &loaded.text, &plan)
    };
    let ended = slurm::run(&SlurmRequest {
        command: Some("tfcheck run --engine slurm"),
        run: &request,
        results: arguments.resume.as_deref().map_or(&arguments.results, parent),
        resume: arguments.resume.as_deref(),
        dry_run: arguments.dry_run,
        is_reported: true,
    })?;
    Ok(ended.code)
}

/// Submits the units of a scoreboard to a Slurm cluster, waits for them and folds the merged run.
pub(super) fn slurm_scoreboard(
    cli: &Cli,
    arguments: &cli::Scoreboard,
    make: &dyn Fn(&Session) -> Result<(Config, Plan)>,
) -> Result<ExitCode> {
    let session = Session::open(progress(cli).without_results())?;
    let (loaded, plan) = if let Some(folder) = &arguments.resume {
        let path = folder.join("plan.json");
        of_frozen(&Frozen::read(&path)?, &path)?
    } else {
        let (mut config, plan) = make(&session)?;
        // A unit has one case, and a job the memory of its largest worker.
        config.run.first_passes_at_once = 1;
        (made(config)?, plan)
    };
    let ended = slurm::run(&SlurmRequest {
        command: Some("tfcheck scoreboard --engine slurm"),
        run: &session.request(&loaded.config, &loaded.text, &plan),
        results: arguments.resume.as_deref().map_or(&arguments.results, parent),
        resume: arguments.resume.as_deref(),
        dry_run: false,
        is_reported: true,
    })?;
    if let Some(merged) = &ended.merged {
        say(&scoreboard::write(merged)?)?;
        // Localising takes the machine that merges minutes, and a node may not have the environments.
        let merged = merged.display();
        session
            .progress
            .line(&format!("localise and diagnose what diverges with: tfcheck scoreboard --resume {merged}"));
    }
    Ok(ended.code)
}

/// The folder that has `folder`.
fn parent(folder: &Path) -> &Path {
    folder.parent().filter(|parent| *parent != Path::new("")).unwrap_or(Path::new("."))
}

fn config(manifest: &Manifest) -> Result<(Config, String)> {
    let config = of_run(manifest);
    let text = toml::to_string(&config).into_diagnostic().wrap_err("the plan's config as TOML")?;
    Ok((config, text))
}

fn whole(manifest: &Manifest) -> Result<Plan> {
    manifest.plan.clone().ok_or_else(|| miette::miette!("the plan lists no cells"))
}

/// Merges the parts of a plan and reports the run.
pub(super) fn merge(cli: &Cli, arguments: &cli::Merge) -> Result<ExitCode> {
    let show = || progress(cli).with_all_tables(arguments.full);
    // Merging starts no worker; localising does.
    let session = arguments.localize.then(|| Session::open(show())).transpose()?;
    let own: Progress;
    let progress = if let Some(session) = &session {
        &session.progress
    } else {
        own = show();
        &own
    };
    let mut merged = merge::merge(&MergeRequest {
        folders: &arguments.folders,
        plan: arguments.plan.as_deref(),
        reasons: arguments.reasons.as_deref(),
        results: &arguments.results,
        progress,
    })?;
    if !arguments.fail_on.is_empty() {
        merged.manifest.config.run.fail_on.clone_from(&arguments.fail_on);
    }
    let manifest = &merged.manifest;
    if let Some(session) = &session {
        let (config, text) = config(manifest)?;
        let plan = whole(manifest)?;
        return run::end_of_run(&session.request(&config, &text, &plan), &merged.folder, manifest);
    }
    report::write(&merged.folder, manifest, &merged.cells, &manifest.config.tolerances, progress)
}
