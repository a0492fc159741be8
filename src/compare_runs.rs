//! `tfcheck compare`: the tables of saved runs, made anew; nothing is run.

use std::path::PathBuf;

use miette::Result;

use crate::outcome::ExitCode;
use crate::progress::Progress;
use crate::results::RunFolder;
use crate::summary;

/// Shows the tables of each run.
///
/// # Errors
/// When a folder holds no run, or what it holds cannot be read.
pub fn compare(runs: &[PathBuf], progress: &Progress) -> Result<ExitCode> {
    let mut worst = ExitCode::Agree;
    for path in runs {
        let folder = RunFolder::open(path)?;
        let manifest = folder.manifest()?;
        let cells: Vec<_> =
            manifest.cases.iter().map(|case| folder.cells(&manifest, case)).collect::<Result<_, _>>()?;
        let view = summary::view(&folder, &manifest, &cells, &manifest.config.tolerances)?;
        summary::show(&view, progress);
        worst = summary::exit_code(&view.tally());
    }
    Ok(worst)
}
