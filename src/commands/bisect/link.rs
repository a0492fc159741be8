//! Links results that are known into the run of a step.

use std::path::Path;

use miette::{IntoDiagnostic, Result};

use crate::results::{Manifest, RunFolder};

/// Links the inputs of a run and the results of some of its revisions into another run of the same cases, whose manifest has the
/// same stamp: the names of records contain it.
///
/// # Errors
/// When a file can be neither linked nor copied.
pub(super) fn link_results(
    (known, known_manifest): (&RunFolder, &Manifest),
    (folder, manifest): (&RunFolder, &Manifest),
    revisions: &[&str],
) -> Result<()> {
    for case in &manifest.cases {
        let from = known.case_folder(known_manifest, &case.name);
        let to = folder.case_folder(manifest, &case.name);
        for part in [""].iter().chain(revisions) {
            copy_files(&from.join(part), &to.join(part)).into_diagnostic()?;
        }
    }
    Ok(())
}

/// Hard-links the inputs, results and locks in `from` into `to`, or copies them if linking fails. A run replaces
/// these files instead of modifying them, so the originals stay unchanged; `worker.log`, which a run appends
/// to, is left out.
fn copy_files(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let text = name.to_string_lossy();
        let is_wanted =
            ["inputs", "logits_", "timing_", "uv.lock"].iter().any(|prefix| text.starts_with(prefix));
        if is_wanted && path.is_file() {
            let target = to.join(&name);
            std::fs::hard_link(&path, &target).or_else(|_| std::fs::copy(&path, &target).map(drop))?;
        }
    }
    Ok(())
}
