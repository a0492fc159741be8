//! First divergence: bugs planted in a fork of transformers are localised to the right module; rounding never diverges.

mod forks;
mod planted_rounding;
mod rounding;
mod routers;
mod twins;

use std::path::Path;

use reference::Environment;
use tfcheck::app::cache_folder;
use tfcheck::execute::runner::{self, ProcessRunner};

/// A runner for the transformers of an environment. tfcheck gives each worker an empty compiler cache, because it measures
/// compilation; these tests do not measure it and keep the cache between runs.
fn transformers(environment: &Environment) -> ProcessRunner {
    let mut runner = runner::transformers::runner(environment, &cache_folder().unwrap(), 2, false).unwrap();
    let compiled = Path::new(env!("CARGO_TARGET_TMPDIR")).join("inductor").join(&environment.key);
    let variable = format!("TORCHINDUCTOR_CACHE_DIR={}", compiled.display());
    runner.command.splice(0..0, ["/usr/bin/env".into(), variable.into()]);
    runner
}
