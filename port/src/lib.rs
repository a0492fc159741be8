//! For the author of a candle port of a transformers model.
//!
//! - [`assert_port!`] tests a port against transformers in one line, with logits that `tfcheck record` wrote.
//! - [`serve`] makes a port a variant of `tfcheck run`, in a `main` of a few lines.
//! - [`probe!`] shows the port's modules, so that tfcheck names the first one that departs.
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
mod judge;
mod modules;
mod named;
mod probe;
mod recording;
mod running;
mod serve;
pub mod worker;

use std::fmt::Display;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use compare::Dtype;
use compare::logits::Values;

use modules::Modules;

pub use compare::metrics::PairMetrics;
pub use compare::verdict::{Decision, Verdict};
pub use judge::Judgement;
pub use named::NamedTensors;
pub use probe::{Probe, module, output};
pub use protocol;
pub use recording::{
    Error, FileDigests, Inputs, Limits, Module, Recorded, Recording, Reference, SCHEMA_VERSION, Tensors,
    by_position, file_sha256,
};
pub use running::Running;
pub use serve::{Port, serve};

/// Panics unless a port agrees with a recording; the message has the verdict, the metrics and the worst
/// position.
///
/// The recording is a folder that `tfcheck record` wrote, relative to the crate's `Cargo.toml`. The port is
/// a closure from [`&Inputs`](Inputs) to a `Result` of logits, `[batch, seq, vocab_size]`, or of last
/// positions, `[batch, 1, vocab_size]` or `[batch, vocab_size]`. Its dtype is that of the logits.
#[macro_export]
macro_rules! assert_port {
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
    let (logits, modules) = probe::with(Modules::new(&recording), || port(recording.inputs()));
    let logits = match logits {
        Ok(logits) => logits,
        Err(error) => panic!("the port failed on the inputs of {}: {error}", folder.display()),
    };
    match recording.judge(&logits) {
        Ok(judgement) if judgement.verdict.decision.agrees() => {}
        Ok(judgement) => panic!("{judgement}{}", modules.first_departure(&recording, &judgement)),
        Err(error) => panic!("{error}"),
    }
}

impl Recording {
    /// Compares a port's logits with the recording.
    ///
    /// # Errors
    /// When the logits are not floating-point, or differ from the recording in batch size, positions or
    /// vocabulary.
    pub fn judge(&self, logits: &Tensor) -> Result<Judgement, Error> {
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
        self.judge_logits(logits.dims(), values, dtype)
    }
}
