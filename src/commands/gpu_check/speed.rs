//! The timing table of one shape: the fused backend, the eager backend (in a build with candle's CUDA), and
//! torch.

use std::path::Path;

use miette::Result;
use reference::protocol::{Attention, Mode};
use serde::Serialize;

use super::items::Shape;
use crate::commands::bench::{self, Table};
use crate::judge::assess;
use crate::judge::view::RunView;
use crate::results::RunFolder;
use crate::spec::config::{Candle, Checkpoint, CheckpointSource, Config, Device, InputsConfig, Run, Version};
use crate::spec::machine;
use crate::spec::plan::Plan;
use crate::spec::variant::Runner;
use compare::metrics::Side;

/// Interleaved rounds.
const ROUNDS: usize = 6;

/// The name of the interpreter's transformers version in the tables.
pub(super) const TORCH: &str = "torch";

/// The config of the run.
pub(super) fn config(shape: &Shape, python: &Path, device: Device) -> Config {
    // candle's own tensors run on a GPU only in a build with the feature `cuda`.
    let is_eager_there = cfg!(feature = "cuda") || device == Device::Cpu;
    let modes = if is_eager_there { vec![Mode::Eager, Mode::Fused] } else { vec![Mode::Fused] };
    Config {
        checkpoints: vec![Checkpoint::new(CheckpointSource::Synthetic {
            model_type: "llama".to_owned(),
            variant: Some(shape.checkpoint.to_owned()).filter(|variant| !variant.is_empty()),
        })],
        inputs: InputsConfig { lengths: Some(vec![shape.length]), ..InputsConfig::default() },
        versions: versions(python),
        run: Run {
            modes: shape.modes.to_vec(),
            attention: vec![Attention::Sdpa],
            dtypes: vec![shape.dtype.into()],
            devices: vec![device],
            warm_up: 3,
            iterations: 10,
            decode: shape.decode,
            rounds: ROUNDS,
            // A compiler mostly uses one core, so all variants compile at the same time.
            first_passes_at_once: shape.modes.len() + modes.len(),
            trace: false,
            noise: false,
            diagnose_s: 0,
            // Workers hold their memory on the GPU, and all of them are loaded at once.
            memory_budget_gb: Some(machine::memory_bytes() as f64 * 1e-9),
            ..Run::default()
        },
        candle: Candle { modes, upstream: false },
        ..Config::default()
    }
}

/// The interpreter as a transformers version.
pub(super) fn versions(python: &Path) -> Vec<Version> {
    vec![Version {
        name: TORCH.to_owned(),
        source: None,
        python: Some(python.to_owned()),
        modes: None,
        attention: None,
        dtypes: None,
    }]
}

/// The cells of the run.
///
/// # Errors
/// When no plan can be made from the config.
pub(super) fn plan(config: &Config) -> Result<Plan> {
    Ok(Plan::new(config, "cpu")?)
}

/// Results of one shape.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Speed {
    /// Tables of prefill and, if it was timed, decode.
    pub(super) tables: Vec<Table>,
    /// Target and measured ratio of the fused backend's time to the fastest torch mode's, for prefill and
    /// decode if there is a target.
    pub(super) targets: Vec<Target>,
    /// Verdicts on the fused backend and each of torch's modes: pair, verdict and evidence.
    pub(super) verdicts: Vec<(String, String, String)>,
    /// Library versions and notes of the workers.
    pub(super) notes: Vec<String>,
}

/// Target for a ratio of times.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Target {
    /// `prefill` or `decode`.
    pub(super) pass: String,
    /// The upper limit.
    pub(super) wanted: f64,
    /// The measured ratio; absent if one side was not measured.
    pub(super) found: Option<f64>,
}

impl Speed {
    /// Whether a pair diverged or is incomparable.
    pub(super) fn diverges(&self) -> bool {
        self.verdicts.iter().any(|(_, word, _)| ["diverged", "incomparable"].contains(&word.as_str()))
    }
}

/// Reads the results of a run.
///
/// # Errors
/// When the run cannot be read.
pub(super) fn read(run: &Path, shape: &Shape) -> Result<Speed> {
    Ok(fold(&assess::saved(&RunFolder::open(run)?)?, shape))
}

pub(super) fn fold(view: &RunView, shape: &Shape) -> Speed {
    let tables = bench::fold(view).tables;
    let variant = |name: &str| {
        let mut cells = view.cases.iter().flat_map(|case| &case.cells);
        cells.find(|cell| cell.name == name).map(|cell| &cell.variant)
    };
    let is_fused_over_torch = |ratio: &&bench::Ratio| {
        variant(&ratio.variant).is_some_and(|variant| variant.mode == Mode::Fused)
            && variant(&ratio.over).is_some_and(|variant| variant.version == TORCH)
    };
    let targets = ["prefill", "decode"].into_iter().zip(shape.targets).filter_map(|(pass, wanted)| {
        let table = tables.iter().find(|table| table.pass == pass);
        let fused = table.and_then(|table| table.ratios.iter().find(is_fused_over_torch));
        Some(Target { pass: pass.to_owned(), wanted: wanted?, found: fused.map(|ratio| ratio.ratio) })
    });
    let targets = targets.collect();
    let mut verdicts = Vec::new();
    let mut notes = Vec::new();
    for case in &view.cases {
        let of = |runner: Runner| case.cells.iter().filter(move |cell| cell.variant.runner == runner);
        let native: Vec<&String> = of(Runner::Candle).map(|cell| &cell.name).collect();
        let torch: Vec<&String> = of(Runner::Transformers).map(|cell| &cell.name).collect();
        let crosses = |a: &String, b: &String| native.contains(&a) && torch.contains(&b);
        let relative = |a: &str, b: &str| {
            let at = |name: &str| case.cells.iter().position(|cell| cell.name == name);
            case.matrix.compared(at(a)?, at(b)?).map(|pair| pair.relative_l2(Side::B))
        };
        let pairs = torch.iter().enumerate().flat_map(|(at, a)| torch[..at].iter().map(move |b| (a, b)));
        let spread = pairs
            .filter_map(|(a, b)| relative(a, b))
            .fold(None, |most: Option<f64>, next| Some(most.map_or(next, |most| most.max(next))));
        for verdict in &case.verdicts {
            if crosses(&verdict.a, &verdict.b) || crosses(&verdict.b, &verdict.a) {
                let (word, evidence) = settled(
                    (verdict.decision.word(), &verdict.evidence),
                    relative(&verdict.a, &verdict.b),
                    spread,
                );
                verdicts.push((format!("{} and {}", verdict.a, verdict.b), word, evidence));
            }
        }
        for cell in &case.cells {
            let crate::execute::cell::Outcome::Completed(completed) = &cell.outcome else { continue };
            let libraries = completed.libraries.iter().map(|(name, version)| format!("{name} {version}"));
            let first_s = completed.first_call_ns as f64 * 1e-9;
            let mut said = vec![
                format!("{}: {}", cell.name, libraries.collect::<Vec<_>>().join(", ")),
                format!("loaded in {:.1} s, first pass {first_s:.1} s", completed.load_ns as f64 * 1e-9),
            ];
            said.extend(completed.notes.iter().cloned());
            notes.push(said.join("; "));
        }
    }
    Speed { tables, targets, verdicts, notes }
}

/// Verdict on a pair whose difference is at most twice the one among torch's own modes.
const WITHIN: &str = "within twice torch's own spread";

/// A timed shape has no float64 reference, and 30 layers of random weights amplify rounding beyond the usual
/// tolerance. A difference of at most twice the largest one among torch's own modes is therefore no
/// divergence (the factor is that of dynamo's rule, `torch/_dynamo/utils.py`, `same`).
fn settled((word, evidence): (&str, &str), relative: Option<f64>, spread: Option<f64>) -> (String, String) {
    match (relative, spread) {
        (Some(relative), Some(spread)) if word == "diverged" && relative <= 2.0 * spread => (
            WITHIN.to_owned(),
            format!("relative L2 {relative:.2e}, where torch's own modes are {spread:.2e} apart"),
        ),
        _ => (word.to_owned(), evidence.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::items::{self, Work};
    use super::*;

    #[test]
    fn a_pair_is_compared_with_the_spread_of_torch_modes() {
        let word = |relative: f64, spread: Option<f64>| {
            settled(("diverged", "relative L2 exceeds"), Some(relative), spread).0
        };
        assert_eq!(word(0.13, Some(0.12)), WITHIN);
        assert_eq!(word(0.25, Some(0.12)), "diverged");
        assert_eq!(word(f64::NAN, Some(0.12)), "diverged");
        // One mode has no spread, and bitwise equal modes have a spread of 0.
        assert_eq!(word(0.13, None), "diverged");
        assert_eq!(word(0.13, Some(0.0)), "diverged");
        let other = settled(("incomparable", "shapes"), None, Some(0.12));
        assert_eq!(other, ("incomparable".to_owned(), "shapes".to_owned()));
    }

    #[test]
    fn the_fused_backend_is_interleaved_with_every_torch_mode() {
        let items = items::all();
        let Work::Speed(shape) = &items[2].work else { panic!("no shape") };
        let config = config(shape, Path::new("python3"), Device::Cuda(0));
        let plan = plan(&config).unwrap();
        let names: Vec<String> = plan.cells.iter().map(|cell| cell.variant.name()).collect();
        let mut expected = vec![
            "torch_eager_sdpa".to_owned(),
            "torch_compiled_sdpa".to_owned(),
            "torch_reduce_overhead_sdpa".to_owned(),
        ];
        if cfg!(feature = "cuda") {
            expected.push("candle_eager".to_owned());
        }
        expected.push("candle_fused".to_owned());
        assert_eq!(names, expected);
        assert!(plan.cells.iter().all(|cell| cell.variant.device == "cuda:0" && cell.measured));
        assert_eq!(plan.environments.len(), 1);
        // The rounds give a ratio its interval.
        assert_eq!(config.run.rounds, ROUNDS);
    }
}
