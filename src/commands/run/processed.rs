//! Inputs that the checkpoint's own processor makes, in the environment of the baseline.

use std::path::Path;
use std::time::Duration;

use miette::{IntoDiagnostic, Result, miette};
use reference::Environment;
use reference::protocol::{Prepare, Prepared, Reply, Request};

use super::RunRequest;
use crate::execute::runner::{self, NoResult, Runner, Start};
use crate::spec::checkpoint::Checkpoint;
use crate::spec::config::InputsConfig;
use crate::spec::inputs::Spec;
use crate::spec::machine;
use crate::spec::variant;

/// The request for the processor of a checkpoint.
pub(super) fn request(inputs: &InputsConfig, folder: &Path, checkpoint: &Checkpoint) -> Prepare {
    let files = |names: &Option<Vec<String>>| {
        let path = |name: &String| {
            if name == BUILT_IN { name.clone() } else { absolute(&folder.join(name)) }
        };
        names.iter().flatten().map(path).collect()
    };
    Prepare {
        checkpoint: checkpoint.folder.clone(),
        texts: inputs.prompts.clone().unwrap_or_default(),
        images: files(&inputs.images),
        audio: files(&inputs.audio),
        chat: inputs.chat,
        path: None,
        frozen: None,
    }
}

/// The name of the picture and of the sound that tfcheck makes itself.
const BUILT_IN: &str = "built-in";

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}

/// Has the processor write the tensors to `path`; the inputs are then read from there.
///
/// # Errors
/// When no version of transformers runs, a picture or sound cannot be read, or the processor refuses them.
pub(super) fn make(
    run: &RunRequest,
    environments: &[Result<Environment, String>],
    wanted: &Prepare,
    path: &Path,
) -> Result<Spec> {
    for file in wanted.images.iter().chain(&wanted.audio).filter(|file| *file != BUILT_IN) {
        if let Err(error) = bounds::file::open(Path::new(file)) {
            let hint = "name a file, or `built-in` for the picture or sound that tfcheck makes";
            return Err(miette!(help = hint, "cannot read {file}: {error}"));
        }
    }
    let plan = run.plan;
    let named = plan.cells.iter().find(|cell| cell.variant.name() == plan.baseline);
    let any = plan.cells.iter().filter(|cell| cell.variant.runner == variant::Runner::Transformers);
    let index = named.into_iter().chain(any).find_map(|cell| cell.environment);
    let environment = index.and_then(|index| environments.get(index)).ok_or_else(|| {
        let hint = "list a version under [[versions]], or give tensors as a file";
        miette!(help = hint, "pictures and sounds need a processor, which transformers has")
    })?;
    let environment = environment.as_ref().map_err(|error| miette!("{error}"))?;
    let threads = run.config.run.threads.unwrap_or_else(machine::physical_cores);
    let runner = runner::transformers::runner(environment, run.cache, threads, false).into_diagnostic()?;
    let logs = crate::commands::scratch()?;
    let mut session = runner
        .start(logs.path().join("worker.log"), run.stop.as_ref(), Start::default())
        .map_err(|ended| lost(&ended))?;
    let request = Prepare { path: Some(path.to_owned()), ..wanted.clone() };
    let timeout = Duration::from_secs(run.config.run.timeout_s);
    let reply = session.ask(&Request::Prepare(request), timeout).map_err(|ended| lost(&ended))?;
    session.end();
    let Reply::Prepared(Prepared { class, texts, .. }) = reply else {
        return Err(miette!("the worker answered the request for inputs with another reply"));
    };
    let choices = run.config.inputs.choices.clone().unwrap_or_default();
    Ok(Spec::Processed { path: path.to_owned(), texts, choices, class })
}

fn lost(ended: &NoResult) -> miette::Report {
    match ended {
        NoResult::Unsupported(reason) => miette!("the checkpoint's processor: {reason}"),
        NoResult::Failed(failure) => miette!(
            help =
                "the processor's files (preprocessor_config.json, tokenizer) must belong to the checkpoint",
            "the checkpoint's processor: {}",
            failure.reason
        ),
        NoResult::Interrupted => miette!("interrupted"),
    }
}
