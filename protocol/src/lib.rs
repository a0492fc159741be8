//! The worker protocol: one JSON object per line, requests on one descriptor, replies on another.
//!
//! A worker serves one cell. It reads [`Request`]s from descriptor `TFCHECK_REQUEST_FD` (3) and answers each
//! with exactly one [`Reply`] on descriptor `TFCHECK_REPLY_FD` (4); tfcheck stores its standard output and
//! standard error in `worker.log`. End of file on the request descriptor means that tfcheck is gone: the
//! worker must end itself and everything that it started.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

mod again;
mod capture;
mod glob;
mod make;
mod tensors;
pub mod yardstick;

pub use again::{Generate, Generated, NewInputs, TakenInputs, forward_passes};
pub use capture::{
    Argument, Capture, Captured, CapturedModule, CapturedTensor, Replay, Replayed, StoredArgument,
};
pub use glob::glob;
pub use make::Make;
pub use tensors::{MadeTensor, Output, Prepare, Prepared, Role, role};

/// Version of this protocol; a worker refuses a [`Load`] that carries another.
pub const PROTOCOL_VERSION: u32 = 3;

/// Environment variable with the number of the descriptor for requests.
pub const REQUEST_FD_VARIABLE: &str = "TFCHECK_REQUEST_FD";
/// Environment variable with the number of the descriptor for replies.
pub const REPLY_FD_VARIABLE: &str = "TFCHECK_REPLY_FD";

/// The tensor of a logits file with a model's main output: `[batch, seq, vocab_size]`, or `[batch, positions, width]` where
/// the main output is no logits.
pub const LOGITS: &str = "logits";
/// Tensor of an inputs file: token ids, i64 `[batch, seq]`.
pub const INPUT_IDS: &str = "input_ids";
/// Tensor of an inputs file: 1 for a real token and 0 for padding, i64 `[batch, seq]`.
pub const ATTENTION_MASK: &str = "attention_mask";
/// Tensor of an inputs file: the position of each token among the real tokens of its sequence, i64 `[batch,
/// seq]`.
pub const POSITION_IDS: &str = "position_ids";
/// Tensor of an inputs file: token ids of an encoder-decoder's decoder, i64 `[batch, seq]`.
pub const DECODER_INPUT_IDS: &str = "decoder_input_ids";
/// Tensor of an inputs file: [`ATTENTION_MASK`] of the decoder's tokens.
pub const DECODER_ATTENTION_MASK: &str = "decoder_attention_mask";
/// Tensor of an inputs file: the token that each position should predict, i64, -100 for none; with it, a model computes its
/// loss.
pub const LABELS: &str = "labels";

/// A request from tfcheck to a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Load the checkpoint and the inputs; answered by [`Reply::Ready`].
    Load(Load),
    /// Compute the logits of the inputs and write them to a file; answered by [`Reply::Forwarded`].
    Forward(Forward),
    /// Timed forward passes whose results are dropped; answered by [`Reply::Timed`].
    Time(Time),
    /// One profiled forward pass; answered by [`Reply::Traced`].
    Trace(Trace),
    /// One forward pass that writes the inputs and outputs of modules; answered by [`Reply::Captured`].
    Capture(Capture),
    /// One forward pass in which one module is replayed with a stored tensor; answered by
    /// [`Reply::Replayed`].
    Replay(Replay),
    /// Tokenise texts with the checkpoint's tokenizer; answered by [`Reply::Tokenized`].
    Tokenize(Tokenize),
    /// Make inputs with the checkpoint's processor; answered by [`Reply::Prepared`].
    Prepare(Prepare),
    /// Other inputs for the loaded model; answered by [`Reply::Taken`].
    Inputs(NewInputs),
    /// Greedy generation after the inputs; answered by [`Reply::Generated`].
    Generate(Generate),
    /// Construct a model from a config and write it as a checkpoint; answered by [`Reply::Made`].
    Make(Make),
    /// End in good order; not answered.
    Exit,
}

/// The variant and checkpoint that a worker loads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// [`PROTOCOL_VERSION`] of the sender.
    pub protocol: u32,
    /// Folder with `config.json` and one or more `*.safetensors` (with `model.safetensors.index.json` when sharded).
    pub checkpoint: PathBuf,
    /// Safetensors file with named tensors, one for each argument of the model: [`INPUT_IDS`], [`ATTENTION_MASK`] and
    /// [`POSITION_IDS`] for a model of text, others as [`role`] tells.
    pub inputs: PathBuf,
    /// Execution mode.
    pub mode: Mode,
    /// Attention implementation; `None` for runners that have only one.
    pub attention: Option<Attention>,
    /// dtype of weights and activations.
    pub dtype: Dtype,
    /// `cpu`, `cuda:0`, …
    pub device: String,
    /// Compute threads of the worker.
    pub threads: usize,
    /// Seed of every random generator that the worker has.
    pub seed: u64,
    /// Whether the model counts positions itself: a model that can is given no [`POSITION_IDS`]; for any other, the file
    /// has 0 to the last token, padding included.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_positions: bool,
    /// Whether config.json is read as it is, without translation into the form that the release reads.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub as_is: bool,
    /// Whether the runner selects the dtype by itself, from the checkpoint; [`Self::dtype`] is the expected one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_dtype: bool,
    /// Further outputs that the model computes only if asked to, such as `router_logits`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<String>,
}

impl Load {
    /// A model in eager mode and f32 on one thread of the CPU, everything else at its default.
    pub fn new(checkpoint: PathBuf, inputs: PathBuf) -> Self {
        Self {
            protocol: PROTOCOL_VERSION,
            checkpoint,
            inputs,
            mode: Mode::Eager,
            attention: None,
            dtype: Dtype::F32,
            device: "cpu".to_owned(),
            threads: 1,
            seed: 0,
            own_positions: false,
            as_is: false,
            auto_dtype: false,
            outputs: Vec::new(),
        }
    }

    /// The same in `dtype`, which the runner selects by itself only if it already did.
    #[must_use]
    pub fn in_dtype(&self, dtype: Dtype) -> Self {
        Self { dtype, auto_dtype: self.auto_dtype && dtype == self.dtype, ..self.clone() }
    }
}

/// How a model is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Operation by operation, as in the model's source.
    Eager,
    /// Through `torch.compile`.
    Compiled,
    /// Through `torch.compile` with frozen weights, which inductor may prepack.
    Frozen,
    /// Through `torch.compile(mode="reduce-overhead")`: on a GPU its kernels are launched as CUDA graphs.
    ReduceOverhead,
    /// Through `torch.compile(mode="max-autotune")`: like `ReduceOverhead`, with kernels chosen by
    /// measurement.
    MaxAutotune,
    /// Native Rust with packed weights and fused kernels.
    Fused,
}

impl Mode {
    /// Whether the mode uses `torch.compile`.
    pub fn is_compiled(self) -> bool {
        match self {
            Self::Compiled | Self::Frozen | Self::ReduceOverhead | Self::MaxAutotune => true,
            Self::Eager | Self::Fused => false,
        }
    }
}

/// transformers' `attn_implementation`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// Explicit matmul, mask, softmax, matmul.
    Eager,
    /// `torch.nn.functional.scaled_dot_product_attention`.
    Sdpa,
    /// What transformers selects if it is given none.
    Default,
}

/// Element types of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// IEEE binary64, the oracle's dtype.
    F64,
    /// IEEE binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
}

/// Requests logits that are written to a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// The file for the outputs: safetensors, the main one as [`LOGITS`], others under their own names, all f32 (f64 if the
    /// dtype is f64).
    pub logits: PathBuf,
    /// `None` for a full-sequence forward pass. Otherwise this many tokens of each sequence (padding
    /// included) go through a prefill that fills a KV cache, and each later token through a forward pass of
    /// its own. The logits of all forward passes are written as one tensor in the order of the positions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<usize>,
    /// Lengths of several forward passes through the KV cache, which together cover the sequence: `[5, 1, 6]` are three
    /// forward passes over 12 tokens. Empty, unless `prefill` is absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<usize>,
}

impl Forward {
    /// A full-sequence forward pass.
    pub fn new(logits: PathBuf) -> Self {
        Self { logits, prefill: None, chunks: Vec::new() }
    }

    /// A prefill of so many tokens and a pass for each further one, or one full-sequence forward pass.
    pub fn prefilled(logits: PathBuf, prefill: Option<usize>) -> Self {
        Self { prefill, ..Self::new(logits) }
    }
}

/// Requests the token ids of texts from the runner's own tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tokenize {
    /// Folder of the checkpoint, with its tokenizer's files.
    pub checkpoint: PathBuf,
    /// The texts.
    pub texts: Vec<String>,
    /// Whether begin and end tokens are added.
    pub add_special_tokens: bool,
}

/// Requests one round of timed forward passes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Time {
    /// Untimed forward passes before the timed ones.
    pub warm_up: usize,
    /// Timed forward passes, each synchronised with the device.
    pub iterations: usize,
    /// Tokens to decode and time after those passes, one per sequence and forward pass; the cache holds the
    /// inputs and the tokens decoded before. 0 for none.
    #[serde(default)]
    pub decode: usize,
    /// Number of threads that time the calibration loop ([`yardstick`]) before and after the timed forward passes; 0
    /// turns it off.
    #[serde(default)]
    pub yardstick: usize,
    /// If the first reading exceeds this many nanoseconds, no forward pass is run and the reply has no
    /// samples.
    #[serde(default)]
    pub quiet_ns: Option<u64>,
}

/// Requests one profiled forward pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// The file for the Chrome trace (JSON object format, `traceEvents`).
    pub path: PathBuf,
}

/// A worker's reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Reply {
    /// The model is loaded.
    Ready(Ready),
    /// The forward pass is done and its logits are on disk.
    Forwarded(Forwarded),
    /// The timed forward passes are done.
    Timed(Timed),
    /// The trace is on disk.
    Traced,
    /// The captured tensors are on disk.
    Captured(Captured),
    /// The module's output is on disk.
    Replayed(Replayed),
    /// The texts have been tokenised.
    Tokenized(Tokenized),
    /// The processor's tensors are on disk, or compared.
    Prepared(Prepared),
    /// The loaded model has the new inputs.
    Taken(TakenInputs),
    /// Tokens were generated.
    Generated(Generated),
    /// The checkpoint is on disk.
    Made,
    /// The request could not be carried out; the worker may be asked to [`Request::Exit`] only.
    Failed(Failed),
}

/// A loaded model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Versions of the libraries that compute: `{"transformers": "4.54.0", "torch": "2.15.0", "python":
    /// "3.11.7"}`.
    pub libraries: BTreeMap<String, String>,
    /// Nanoseconds from the request to the loaded model.
    pub load_ns: u64,
    /// Notes that the user needs to interpret the numbers: translations of the config, ignored keys,
    /// fall-backs.
    pub notes: Vec<String>,
    /// Keys of config.json that the loaded model does not use; `None` if the runner cannot tell.
    #[serde(default)]
    pub ignored_keys: Option<Vec<String>>,
    /// Values that the release would have read otherwise from config.json without translation: `rope_theta 500000
    /// (untranslated: 10000)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub translated: Vec<String>,
    /// Tensors of the checkpoint that the loaded model does not read; `None` where the runner cannot tell.
    #[serde(default)]
    pub unread_tensors: Option<Vec<String>>,
}

/// Token ids of texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tokenized {
    /// The ids of each text.
    pub ids: Vec<Vec<i64>>,
    /// The tokenizer's class.
    pub class: String,
}

/// A finished forward pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forwarded {
    /// Nanoseconds of this forward pass; includes compilation if it is the first.
    pub elapsed_ns: u64,
    /// Shape of the written logits, `[batch, seq, vocab_size]`.
    pub shape: Vec<usize>,
    /// Which positions of the inputs the logits belong to.
    pub positions: Positions,
    /// The [`Forward::prefill`] that was carried out. It distinguishes a worker that ignores the field from
    /// one that supports it.
    #[serde(default)]
    pub prefill: Option<usize>,
    /// [`Forward::chunks`] as they were carried out, for the same reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<usize>,
    /// Largest resident set (CPU) or allocated device memory so far, in bytes; `None` where unknown.
    pub peak_bytes: Option<u64>,
    /// What was written: the main output, then the others. Empty for logits alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Output>,
    /// What `torch.compile` made of the model; `None` for a model that is not compiled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graphs: Option<Graphs>,
    /// What a person must know about this pass: graph breaks and fall-backs of a compiled model.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// The graphs of a compiled model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graphs {
    /// How many there are; 0 for a model that ran in eager mode throughout.
    pub count: u64,
    /// How often tracing broke off and began a new graph.
    pub breaks: u64,
}

/// Which positions a logits file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Every position of the inputs.
    #[default]
    All,
    /// The last position only, `[batch, 1, vocab_size]`.
    Last,
}

/// One finished round of timed forward passes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Nanoseconds of each timed forward pass, in order.
    pub samples_ns: Vec<u64>,
    /// Nanoseconds of each decoded token, in order; empty if none was requested or the model has no cache.
    #[serde(default)]
    pub decode_ns: Vec<u64>,
    /// As in [`Forwarded::peak_bytes`].
    pub peak_bytes: Option<u64>,
    /// The slower of the two readings of the calibration loop, nanoseconds; absent if none was requested or
    /// the worker has no calibration loop.
    #[serde(default)]
    pub yardstick_ns: Option<u64>,
    /// Remarks for the user, such as why no token could be decoded.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// Kind of the failure.
    pub kind: FailedKind,
    /// The error's type, such as `ValueError`; empty if the runner has none.
    #[serde(default)]
    pub error: String,
    /// One line that describes the error.
    pub message: String,
    /// The traceback or cause chain.
    #[serde(default)]
    pub traceback: String,
}

impl Failed {
    /// The remark on a round whose decoding failed.
    pub fn not_decoded(&self) -> String {
        let Self { error, message, .. } = self;
        let colon = if error.is_empty() { "" } else { ": " };
        format!("no token was decoded: {error}{colon}{message}")
    }
}

/// Kinds of [`Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedKind {
    /// The runner does not support the request: model_type, dtype, attention, device.
    Unsupported,
    /// An exception or error of the runner.
    Exception,
    /// An allocation failed.
    OutOfMemory,
}

#[cfg(test)]
mod tests {
    use super::{Dtype, Load};

    #[test]
    fn a_load_in_another_dtype_is_not_left_to_the_runner() {
        let auto = Load { dtype: Dtype::Bf16, auto_dtype: true, ..Load::new("m".into(), "i".into()) };
        assert_eq!(auto.in_dtype(Dtype::Bf16), auto);
        assert_eq!(auto.in_dtype(Dtype::F64), Load { dtype: Dtype::F64, auto_dtype: false, ..auto });
    }
}
