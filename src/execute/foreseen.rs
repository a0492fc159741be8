//! Which cells of a plan their runner will not support, as far as that is known before anything runs.

use std::path::Path;

use bounds::limits::CHECKPOINT_JSON_BYTES;
use ports::port;
use reference::protocol::Positions;
use serde_json::Value;

use super::worker::candle::has_cache;
use crate::spec::config::{CheckpointSource, Config, Padding};
use crate::spec::plan::{CasePlan, CellPlan, InputsPlan, Plan};
use crate::spec::variant::{Runner, mode_name};

/// Why each cell of `plan` will be unsupported, in the plan's order; `None` for a cell of which that is not known.
///
/// `lacks` says whether the environment of this index in the plan has a release without a `model_type`. Only synthetic
/// checkpoints and local folders have a `model_type` that is known without the network.
pub fn unsupported(plan: &Plan, config: &Config, lacks: &dyn Fn(usize, &str) -> bool) -> Vec<Option<String>> {
    let model_types: Vec<Option<String>> =
        config.checkpoints.iter().map(|checkpoint| model_type(&checkpoint.source)).collect();
    plan.cells
        .iter()
        .map(|cell| {
            let case = &plan.cases[cell.case];
            reason(case, cell, model_types[case.checkpoint].as_deref(), lacks)
        })
        .collect()
}

fn reason(
    case: &CasePlan,
    cell: &CellPlan,
    model_type: Option<&str>,
    lacks: &dyn Fn(usize, &str) -> bool,
) -> Option<String> {
    let mode = cell.variant.mode;
    let prefill = case.inputs.prefill();
    match (cell.variant.runner, model_type) {
        (Runner::Transformers, _) if mode.is_compiled() && prefill.is_some() => {
            Some(format!("{} models are not decoded token by token", mode_name(mode)))
        }
        (Runner::Transformers, Some(model_type)) => {
            let is_lacking = cell.environment.is_some_and(|environment| lacks(environment, model_type));
            is_lacking.then(|| format!("transformers {} has no {model_type}", cell.variant.version))
        }
        (Runner::Candle, Some(model_type)) => match models::kind(model_type) {
            None => Some(format!("tfcheck has no native {model_type}")),
            Some(kind) if has_cache(kind) => None,
            Some(_) => prefill.map(|_| format!("tfcheck does not run {model_type} through a KV cache")),
        },
        (Runner::CandleTransformers, Some(model_type)) => {
            let Some(port) = port(model_type) else {
                return Some(format!("candle-transformers has no port of {model_type} that tfcheck runs"));
            };
            let is_padded_right = match case.inputs {
                InputsPlan::Sweep { padding, .. } => padding == Padding::Right,
                InputsPlan::Prompts { padding } | InputsPlan::TokenIds { padding } => {
                    padding == Some(Padding::Right)
                }
                InputsPlan::Tensors | InputsPlan::Processed => false,
            };
            if prefill.is_some() && !port.caches {
                Some(format!("the port of {model_type} has no KV cache"))
            } else if is_padded_right && port.positions == Positions::Last {
                Some(format!("the port of {model_type} returns the last column only, which is padding"))
            } else {
                None
            }
        }
        _ => None,
    }
}

fn model_type(source: &CheckpointSource) -> Option<String> {
    match source {
        CheckpointSource::Synthetic { model_type, .. } => Some(model_type.clone()),
        CheckpointSource::Folder(folder) => in_config(&folder.join("config.json")),
        CheckpointSource::Hub(_) | CheckpointSource::Gguf(_) => None,
    }
}

fn in_config(path: &Path) -> Option<String> {
    let config: Value =
        serde_json::from_slice(&bounds::file::read(path, CHECKPOINT_JSON_BYTES).ok()?).ok()?;
    config.get("model_type")?.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_that_will_be_unsupported_are_marked_with_the_reason() {
        let config = Config::parse(
            "checkpoints = [{ source = \"synthetic:llama\" }, { source = \"synthetic:gpt2\" }]\n\
             versions = [{ name = \"5.23.0\", source = \"transformers==5.23.0\" }]\n\
             [inputs]\nlengths = [16]\nprefill = [8]\n[candle]\nmodes = [\"eager\"]\nupstream = true",
            Path::new("tfcheck.toml"),
        )
        .unwrap();
        let plan = Plan::new(&config, "cpu").unwrap();
        let is_gpt2 = |_, model_type: &str| model_type == "gpt2";
        insta::assert_snapshot!(plan.text(&config, &unsupported(&plan, &config, &is_gpt2)));
    }

    #[test]
    fn encoder_decoders_run_through_a_cache_and_encoders_do_not() {
        let config = Config::parse(
            "checkpoints = [{ source = \"synthetic:t5\" }, { source = \"synthetic:clip\" }]\n\
             versions = [{ name = \"5.23.0\", source = \"transformers==5.23.0\" }]\n\
             [inputs]\nlengths = [16]\nprefill = [8]\n[candle]\nmodes = [\"eager\"]",
            Path::new("tfcheck.toml"),
        )
        .unwrap();
        let plan = Plan::new(&config, "cpu").unwrap();
        let reasons = unsupported(&plan, &config, &|_, _| false).into_iter().flatten();
        let native: Vec<String> = reasons.filter(|reason| reason.starts_with("tfcheck")).collect();
        assert_eq!(native, ["tfcheck does not run clip through a KV cache"]);
    }
}
