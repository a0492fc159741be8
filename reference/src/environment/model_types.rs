//! Which model types the release of an installed environment has, read from its source without starting Python.

use std::fs;
use std::path::{Path, PathBuf};

use bounds::limits::CONFIG_BYTES;

use super::stamp::Stamp;
use super::{Specification, stamp_name, working_copy_state};

/// Files in `transformers/models/auto` that list every `model_type` of a release; later releases have both.
const LISTS: [&str; 2] = ["configuration_auto.py", "auto_mappings.py"];

/// Whether the release that `specification` names has no model of this `model_type`. `false` also while that is not known:
/// before the environment is installed, and for a working copy, whose source is elsewhere.
pub fn lacks_model_type(specification: &Specification, cache: &Path, model_type: &str) -> bool {
    let name = specification
        .digest()
        .map(|digest| stamp_name(&digest, working_copy_state(specification).as_deref()));
    let Some(environment) = name.ok().and_then(|name| Stamp::find(cache, &name)) else { return false };
    let Some(auto) = auto_folder(&environment.python) else { return false };
    let lists: Vec<String> = LISTS
        .iter()
        .filter_map(|file| bounds::file::read_text(&auto.join(file), CONFIG_BYTES).ok())
        .collect();
    !lists.is_empty() && !lists.iter().any(|list| list.contains(&format!("\"{model_type}\"")))
}

/// `transformers/models/auto` of the environment whose interpreter is `python`.
fn auto_folder(python: &Path) -> Option<PathBuf> {
    let libraries = fs::read_dir(python.parent()?.parent()?.join("lib")).ok()?;
    let auto = |library: PathBuf| library.join("site-packages/transformers/models/auto");
    libraries.filter_map(|entry| Some(auto(entry.ok()?.path()))).find(|folder| folder.is_dir())
}
