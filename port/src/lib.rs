//! For the author of a candle port of a transformers model.
//!
//! - [`assert_port!`] tests a port against transformers in one line, with logits that `tfcheck record` wrote.
//! - [`serve`] makes a port a variant of `tfcheck run`, in a `main` of a few lines.
//! - [`probe!`] shows the port's modules, so that tfcheck reports the first diverging one.
//!
//! ```no_run
//! # use candle_core::{Result, Tensor};
//! # fn my_llama(inputs: &tfcheck_port::Inputs) -> Result<Tensor> { Ok(inputs.input_ids.clone()) }
//! #[test]
//! fn agrees_with_upstream() {
//!     tfcheck_port::assert_port!("tests/llama", |inputs| my_llama(inputs));
//! }
//! ```
//!
//! The port is compared by the code with which `tfcheck run` compares a variant without a float64 result of
//! its own: at every position and token its difference from the recorded float64 logits must be explained by
//! its dtype, and its error must not exceed transformers' own by more than dynamo's rule allows.

mod checkpoint;
mod comparison;
mod modules;
mod named;
mod port;
mod probe;
mod recording;
mod running;
mod serve;
pub mod surgery;
pub mod worker;

use std::fmt::Display;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use compare::Dtype;
use compare::logits::Values;

use modules::Modules;

pub use compare::metrics::PairMetrics;
pub use compare::verdict::{Decision, Verdict};
pub use comparison::Comparison;
pub use named::NamedTensors;
pub use port::Port;
pub use probe::{Probe, module, output};
pub use protocol;
pub use recording::{
    Error, FileDigests, Inputs, Limits, Module, Recorded, Recording, Reference, SCHEMA_VERSION, Tensors,
    by_position, file_sha256,
};
pub use running::Running;
pub use serve::serve;

/// Panics unless a port agrees with a recording; the message has the verdict, the metrics and the worst
/// position.
///
/// The recording is a folder that `tfcheck record` wrote, relative to the crate's `Cargo.toml`. The port is
/// a closure from [`&Inputs`](Inputs) to a `Result` of logits, `[batch, seq, vocab_size]`, or of last
/// positions, `[batch, 1, vocab_size]` or `[batch, vocab_size]`. Its dtype is that of the logits.
///
/// With three arguments, the port is a closure from a checkpoint's folder and `&Inputs`, which loads the port and runs it. The second
/// argument is that of [`Recording::checkpoint`]. If the recording was made with `--surgery`, a failing test
/// then runs the port on edited checkpoints and names the part that differs:
///
/// ```no_run
/// # use std::path::Path;
/// # use candle_core::{Result, Tensor};
/// # struct Llama;
/// # impl Llama { fn forward(&self, ids: &Tensor) -> Result<Tensor> { Ok(ids.clone()) } }
/// # fn load(_: &Path) -> Result<Llama> { Ok(Llama) }
/// #[test]
/// fn agrees_with_upstream() {
///     tfcheck_port::assert_port!("tests/llama", "LLAMA_CHECKPOINT", |folder, inputs| {
///         load(folder)?.forward(&inputs.input_ids)
///     });
/// }
/// ```
#[macro_export]
macro_rules! assert_port {
    ($recording:expr, $variable:expr, $port:expr $(,)?) => {
        $crate::assert_loaded_port_at(
            &::std::path::Path::new(::core::env!("CARGO_MANIFEST_DIR")).join($recording),
            $variable,
            $port,
        )
    };
    ($recording:expr, $port:expr $(,)?) => {
        $crate::assert_port_at(
            &::std::path::Path::new(::core::env!("CARGO_MANIFEST_DIR")).join($recording),
            $port,
        )
    };
}

/// [`assert_port!`] for a folder at any path.
///
/// # Panics
/// When the recording cannot be read, the port fails, or it does not agree.
#[track_caller]
pub fn assert_port_at<E: Display>(folder: &Path, port: impl FnOnce(&Inputs) -> Result<Tensor, E>) {
    let recording = match Recording::open(folder) {
        Ok(recording) => recording,
        Err(error) => panic!("{error}"),
    };
    if let Err(Failed { message, diverges }) = recording.tested(port) {
        let hint = match &recording.recorded.surgery {
            Some(_) if diverges => {
                "\n  surgery  the recording holds logits of edited checkpoints; a closure that loads the port names the part: \
                 assert_port!(recording, \"VARIABLE\", |folder, inputs| …)"
            }
            _ => "",
        };
        panic!("{message}{hint}");
    }
}

/// [`assert_port!`] for a port that is loaded from a checkpoint's folder, with a recording at any path. `variable` is that of
/// [`Recording::checkpoint`].
///
/// # Panics
/// When the recording or the checkpoint cannot be read, the port fails, or it does not agree.
#[track_caller]
pub fn assert_loaded_port_at<E: Display>(
    folder: &Path,
    variable: &str,
    mut port: impl FnMut(&Path, &Inputs) -> Result<Tensor, E>,
) {
    let opened =
        Recording::open(folder).and_then(|recording| Ok((recording.checkpoint(variable)?, recording)));
    let (checkpoint, recording) = match opened {
        Ok(opened) => opened,
        Err(error) => panic!("{error}"),
    };
    let Err(Failed { message, diverges }) = recording.tested(|inputs| port(&checkpoint, inputs)) else {
        return;
    };
    let part = if diverges {
        match recording.localised(&checkpoint, port) {
            Ok(found) => found.map(|found| format!("\n  surgery  {found}")).unwrap_or_default(),
            Err(error) => format!("\n  surgery  no part is known: {error}"),
        }
    } else {
        String::new()
    };
    panic!("{message}{part}");
}

/// A test that failed.
struct Failed {
    message: String,
    /// Whether the port computes something else, and not with a worse rounding alone.
    diverges: bool,
}

impl Recording {
    /// Runs a port on the inputs and compares it.
    fn tested<E: Display>(&self, port: impl FnOnce(&Inputs) -> Result<Tensor, E>) -> Result<(), Failed> {
        let failed = |message: String| Failed { message, diverges: false };
        let (logits, modules) = probe::with(Modules::new(self), || port(self.inputs()));
        let logits = logits.map_err(|error| {
            failed(format!("the port failed on the inputs of {}: {error}", self.folder.display()))
        })?;
        let comparison = self.compare(&logits).map_err(|error| failed(error.to_string()))?;
        if comparison.verdict.decision.agrees() {
            return Ok(());
        }
        let message = format!("{comparison}{}", modules.first_difference(self, &comparison));
        Err(Failed { message, diverges: comparison.verdict.decision == Decision::Diverged })
    }
}

impl Recording {
    /// Compares a port's logits with the recording.
    ///
    /// # Errors
    /// When the logits are not floating-point, or differ from the recording in batch size, positions or
    /// vocabulary.
    pub fn compare(&self, logits: &Tensor) -> Result<Comparison, Error> {
        let dtype = match logits.dtype() {
            DType::F64 => Dtype::F64,
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::Bf16,
            DType::F16 => Dtype::F16,
            other => {
                return Err(Error::Logits { problem: format!("are of dtype {other:?}, which is no float") });
            }
        };
        let values = |dtype: Dtype| {
            let logits = logits.to_device(&Device::Cpu)?.flatten_all()?;
            match dtype {
                Dtype::F64 => logits.to_vec1().map(Values::F64),
                Dtype::F32 | Dtype::Bf16 | Dtype::F16 => {
                    logits.to_dtype(DType::F32)?.to_vec1().map(Values::F32)
                }
            }
        };
        let values = values(dtype).map_err(|error: candle_core::Error| Error::Logits {
            problem: format!("cannot be read: {error}"),
        })?;
        self.compare_logits(logits.dims(), values, dtype)
    }
}
