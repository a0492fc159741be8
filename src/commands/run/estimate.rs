//! What a plan's units need of a machine: from earlier runs of the same cells if there are any, else from sizes.
//!
//! The estimates only balance shares and request resources; no result depends on them.

use reference::protocol::Dtype;

use super::prepare::{Preparation, PreparedCase};
use super::{RunRequest, is_timed};
use crate::judge::history::{Cost, History};
use crate::spec::machine;
use crate::spec::plan::CellPlan;
use crate::spec::units::{EstimatedFrom, Group, Needs, UnitKind};
use crate::spec::variant::Runner;

/// Bytes per second at which a worker reads weights.
const READ_RATE: f64 = 5e8;
/// Floating-point operations per second of one CPU core in float32, and of a GPU.
const CORE_RATE: f64 = 2e10;
const GPU_RATE: f64 = 1e13;
/// Seconds in which `torch.compile` compiles a model.
const COMPILE_SECONDS: f64 = 30.0;
/// Seconds until a worker of transformers, of a program and of tfcheck itself is ready, and the bytes that it holds then.
const TRANSFORMERS: (f64, u64) = (10.0, 700 << 20);
const PROGRAM: (f64, u64) = (1.0, 200 << 20);
const NATIVE: (f64, u64) = (0.2, 50 << 20);

/// Where estimates come from.
pub(super) struct Estimates<'a> {
    pub(super) request: &'a RunRequest<'a>,
    pub(super) prepared: &'a Preparation,
    /// Earlier runs, with the machine's fingerprint.
    pub(super) history: Option<(History, String)>,
}

impl Estimates<'_> {
    /// The needs of a unit.
    pub(super) fn of(&self, group: &Group) -> Needs {
        let plan = &self.prepared.plan;
        let threads = self.threads();
        let cells = || group.cells.iter().filter_map(|&index| plan.cells.get(index));
        let mut known = true;
        let (mut seconds, mut together, mut largest) = (0.0, 0_u64, 0_u64);
        for cell in cells() {
            let sizes = self.by_sizes(cell);
            let history = self.by_history(cell);
            known &= history.is_some();
            let start = start(cell).0;
            seconds += history.map_or(sizes.seconds, |cost| cost.seconds + start);
            let bytes = history.and_then(|cost| cost.peak_bytes).or(sizes.peak_bytes).unwrap_or(0);
            together = together.saturating_add(bytes);
            largest = largest.max(bytes);
        }
        let gpus =
            cells().filter_map(|cell| cell.variant.device.strip_prefix("cuda:")?.parse::<usize>().ok());
        let mut environments: Vec<String> = Vec::new();
        for key in cells().filter_map(|cell| self.environment(cell)) {
            if !environments.contains(&key) {
                environments.push(key);
            }
        }
        // Workers that are timed stay loaded between their rounds.
        let memory_bytes = if group.kind == UnitKind::Timing { together } else { largest };
        Needs {
            cpus: threads,
            memory_bytes,
            gpus: gpus.max().map_or(0, |last| last.saturating_add(1)),
            seconds: f64::ceil(seconds) as u64,
            estimated_from: if known { EstimatedFrom::History } else { EstimatedFrom::Sizes },
            environments,
        }
    }

    fn threads(&self) -> usize {
        self.request.config.run.threads.unwrap_or_else(machine::physical_cores)
    }

    fn environment(&self, cell: &CellPlan) -> Option<String> {
        let made = self.prepared.environments.get(cell.environment?)?;
        made.as_ref().ok().map(|environment| environment.key.clone())
    }

    fn by_history(&self, cell: &CellPlan) -> Option<Cost> {
        let (history, fingerprint) = self.history.as_ref()?;
        let prepared = self.prepared.cases.get(cell.case)?;
        let id = (prepared.checkpoint.digest.as_str(), prepared.inputs.digest.as_str(), &cell.variant);
        history.cost((fingerprint, self.threads()), id).ok().flatten()
    }

    fn by_sizes(&self, cell: &CellPlan) -> Cost {
        let Some(prepared) = self.prepared.cases.get(cell.case) else {
            return Cost { seconds: 0.0, peak_bytes: None };
        };
        let run = &self.request.config.run;
        let stored = weight_bytes(prepared) as f64;
        let parameters = stored / width(prepared.checkpoint.dtype());
        let (start, _) = start(cell);
        let is_gpu = cell.variant.device.starts_with("cuda");
        let rate = if is_gpu { GPU_RATE } else { CORE_RATE * self.threads() as f64 };
        // Two operations per parameter and token; float64 takes twice as long as float32.
        let tokens = (prepared.inputs.batch * prepared.inputs.seq) as f64;
        let pass = 2.0 * parameters * tokens / rate * width(cell.variant.dtype).max(4.0) / 4.0;
        let compile = if cell.variant.mode.is_compiled() { COMPILE_SECONDS } else { 0.0 };
        let load = start + stored / READ_RATE + compile;
        let timed = if is_timed(self.request.config, cell) {
            (run.rounds * (run.warm_up + run.iterations)) as f64 + f64::from(u8::from(run.trace))
        } else {
            0.0
        };
        let once = load + pass * (1.0 + timed);
        let repeated = if run.noise { load + 2.0 * pass } else { 0.0 };
        Cost { seconds: once + repeated, peak_bytes: Some(held_bytes(prepared, cell)) }
    }
}

/// Bytes that a cell's worker holds: its program, and the weights twice, as they are read and as they are used.
pub(super) fn held_bytes(prepared: &PreparedCase, cell: &CellPlan) -> u64 {
    let parameters = weight_bytes(prepared) as f64 / width(prepared.checkpoint.dtype());
    let weights = (parameters * width(cell.variant.dtype)) as u64;
    start(cell).1.saturating_add(weights.saturating_mul(2))
}

/// Seconds and bytes of a worker before it loads a model.
fn start(cell: &CellPlan) -> (f64, u64) {
    match cell.variant.runner {
        Runner::Transformers => TRANSFORMERS,
        Runner::Command => PROGRAM,
        Runner::Candle | Runner::CandleTransformers => NATIVE,
    }
}

/// Bytes of a case's weights on disk.
fn weight_bytes(prepared: &PreparedCase) -> u64 {
    let size = |path: &std::path::PathBuf| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    prepared.checkpoint.weights.iter().map(size).sum()
}

/// Bytes of a number.
fn width(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => 8.0,
        Dtype::F32 => 4.0,
        Dtype::Bf16 | Dtype::F16 => 2.0,
    }
}
