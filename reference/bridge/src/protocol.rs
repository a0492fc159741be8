//! The worker protocol: one JSON object a line, requests on one descriptor, replies on another.
//!
//! A worker serves one cell. It reads [`Request`]s from descriptor `TFCHECK_REQUEST_FD` (3) and answers
//! each with exactly one [`Reply`] on descriptor `TFCHECK_REPLY_FD` (4); standard output and standard
//! error are noise that tfcheck keeps in `worker.log`. End of file on the request descriptor means that
//! tfcheck is gone: the worker ends itself and everything that it started.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

mod again;

pub use again::{Generate, Generated, NewInputs, TakenInputs, forward_passes};

/// Version of this protocol; a worker refuses a [`Load`] that carries another.
pub const PROTOCOL_VERSION: u32 = 2;

/// Environment variable that names the descriptor requests arrive on.
pub const REQUEST_FD_VARIABLE: &str = "TFCHECK_REQUEST_FD";
/// Environment variable that names the descriptor replies leave by.
pub const REPLY_FD_VARIABLE: &str = "TFCHECK_REPLY_FD";

/// The tensor name under which logits are stored in a logits file, `[batch, seq, vocab_size]`.
pub const LOGITS: &str = "logits";
/// Tensor of an inputs file: token ids, i64 `[batch, seq]`.
pub const INPUT_IDS: &str = "input_ids";
/// Tensor of an inputs file: 1 where a token is real and 0 where it is padding, i64 `[batch, seq]`.
pub const ATTENTION_MASK: &str = "attention_mask";
/// Tensor of an inputs file: the position of each token among its row's real tokens, i64 `[batch, seq]`.
pub const POSITION_IDS: &str = "position_ids";

/// What tfcheck asks of a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Load the checkpoint and the inputs; answered by [`Reply::Ready`].
    Load(Load),
    /// Logits of the inputs, computed as asked and written; answered by [`Reply::Forwarded`].
    Forward(Forward),
    /// Timed forward passes whose results are dropped; answered by [`Reply::Timed`].
    Time(Time),
    /// One profiled forward pass; answered by [`Reply::Traced`].
    Trace(Trace),
    /// One forward pass that writes what goes into and comes out of modules; answered by [`Reply::Captured`].
    Capture(Capture),
    /// One forward pass in which one module is fed a stored tensor; answered by [`Reply::Replayed`].
    Replay(Replay),
    /// Texts through the checkpoint's tokenizer; answered by [`Reply::Tokenized`].
    Tokenize(Tokenize),
    /// Other inputs for the loaded model; answered by [`Reply::Taken`].
    Inputs(NewInputs),
    /// Greedy generation after the inputs; answered by [`Reply::Generated`].
    Generate(Generate),
    /// End in good order; not answered.
    Exit,
}

/// Everything a worker needs to become one variant of one checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// [`PROTOCOL_VERSION`] of the asking side.
    pub protocol: u32,
    /// Folder with `config.json` and one or more `*.safetensors` (with `model.safetensors.index.json` when sharded).
    pub checkpoint: PathBuf,
    /// Safetensors file with [`INPUT_IDS`], [`ATTENTION_MASK`] and [`POSITION_IDS`].
    pub inputs: PathBuf,
    /// How the model is executed.
    pub mode: Mode,
    /// Attention implementation, for runners that have several.
    pub attention: Option<Attention>,
    /// dtype of weights and activations.
    pub dtype: Dtype,
    /// `cpu`, `cuda:0`, …
    pub device: String,
    /// Compute threads of the worker.
    pub threads: usize,
    /// Seed of every random generator that the worker has.
    pub seed: u64,
}

/// How a model is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One operation after the other, as the model's source says.
    Eager,
    /// Through `torch.compile`.
    Compiled,
    /// Through `torch.compile` with its weights frozen, so that inductor may prepack them.
    Frozen,
    /// Through `torch.compile(mode="reduce-overhead")`: on a GPU its kernels are replayed as CUDA graphs.
    ReduceOverhead,
    /// Through `torch.compile(mode="max-autotune")`: the same, with kernels chosen by measurement.
    MaxAutotune,
    /// Native Rust with packed weights and fused kernels.
    Fused,
}

impl Mode {
    /// Whether it is one of `torch.compile`'s.
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
}

/// Element types of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// IEEE binary64, the oracle's.
    F64,
    /// IEEE binary32.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE binary16.
    F16,
}

/// Asks for logits that are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// Where to write the logits: safetensors, one tensor [`LOGITS`], f32 (f64 when the dtype is f64).
    pub logits: PathBuf,
    /// Absent for one pass over all tokens. Otherwise this many tokens of each row, padding counted, go through one
    /// pass that fills a KV cache, and each further token through a pass of its own; the logits of all passes are
    /// written, position after position, as if there had been one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<usize>,
    /// Lengths of several forward passes through the KV cache, which together cover the sequence: `[5, 1, 6]` are three
    /// forward passes over 12 tokens. Empty, unless `prefill` is absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<usize>,
}

impl Forward {
    /// One pass over all tokens.
    pub fn new(logits: PathBuf) -> Self {
        Self { logits, prefill: None, chunks: Vec::new() }
    }

    /// A prefill of so many tokens and a pass for each further one, or one pass over all tokens.
    pub fn prefilled(logits: PathBuf, prefill: Option<usize>) -> Self {
        Self { prefill, ..Self::new(logits) }
    }
}

/// Asks for the token ids of texts by the runner's own tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tokenize {
    /// Folder of the checkpoint, with its tokenizer's files.
    pub checkpoint: PathBuf,
    /// The texts.
    pub texts: Vec<String>,
    /// Whether begin and end tokens are added.
    pub add_special_tokens: bool,
}

/// Asks for one round of timed forward passes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Time {
    /// Passes before the clock counts.
    pub warm_up: usize,
    /// Passes that are timed, each synchronised with the device.
    pub iterations: usize,
    /// Tokens that are timed one by one after those passes, each the only new one of every row; the cache holds the
    /// inputs and the tokens before it. 0 for none.
    #[serde(default)]
    pub decode: usize,
    /// Threads that read the [`crate::yardstick`] before and after all that; 0 for no reading.
    #[serde(default)]
    pub yardstick: usize,
    /// Where the first reading is above so many nanoseconds, no pass is made, and the answer has no samples.
    #[serde(default)]
    pub quiet_ns: Option<u64>,
}

/// Asks for one profiled forward pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Where to write the Chrome trace (JSON object format, `traceEvents`).
    pub path: PathBuf,
}

/// Asks for a forward pass that writes what goes into and comes out of modules, each as soon as it is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capture {
    /// An empty folder for the tensors.
    pub folder: PathBuf,
    /// Globs over module paths (`*` any text, `?` one character); a module is captured where one fits.
    pub modules: Vec<String>,
    /// Bytes that may be written; what would go beyond is listed without a file.
    pub max_bytes: u64,
    /// As in [`Forward::prefill`]: a module is then called once for the prefill and once for each further token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefill: Option<usize>,
    /// As in [`Forward::chunks`]: a module is then called once for each of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<usize>,
}

/// Asks for one forward pass in which one call of a module is fed a stored tensor in place of the first tensor among
/// its arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// The module's path, as captured.
    pub module: String,
    /// Which call of it, from 0.
    pub call: usize,
    /// The stored tensor's file, in the form of [`CapturedTensor::file`].
    pub input: PathBuf,
    /// The stored tensor's shape.
    pub shape: Vec<usize>,
    /// Where to write what comes out, in the same form.
    pub output: PathBuf,
}

/// What a worker answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Reply {
    /// The model is loaded.
    Ready(Ready),
    /// The forward pass is done and its logits are on disk.
    Forwarded(Forwarded),
    /// The timed passes are done.
    Timed(Timed),
    /// The trace is on disk.
    Traced,
    /// The captured tensors are on disk.
    Captured(Captured),
    /// The module's output is on disk.
    Replayed(Replayed),
    /// The texts have been tokenised.
    Tokenized(Tokenized),
    /// The loaded model has the new inputs.
    Taken(TakenInputs),
    /// Tokens were generated.
    Generated(Generated),
    /// The request could not be carried out; the worker may be asked to [`Request::Exit`] only.
    Failed(Failed),
}

/// A loaded model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// Versions of what computes: `{"transformers": "4.54.0", "torch": "2.15.0", "python": "3.11.7"}`.
    pub libraries: BTreeMap<String, String>,
    /// Nanoseconds from the request to the loaded model.
    pub load_ns: u64,
    /// What a person must know to read the numbers: translations of the config, ignored keys, fall-backs.
    pub notes: Vec<String>,
    /// Keys of config.json that the loaded model has no use for; `None` where the runner cannot tell.
    #[serde(default)]
    pub ignored_keys: Option<Vec<String>>,
}

/// Token ids of texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tokenized {
    /// The ids of each text.
    pub ids: Vec<Vec<i64>>,
    /// The tokenizer's class.
    pub class: String,
}

/// One finished forward pass.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forwarded {
    /// Nanoseconds of this pass; compilation included when it is the first.
    pub elapsed_ns: u64,
    /// `[batch, seq, vocab_size]` as written.
    pub shape: Vec<usize>,
    /// Which positions of the inputs the logits belong to.
    pub positions: Positions,
    /// [`Forward::prefill`] as it was carried out, so that a worker which does not know it is told from one that does.
    #[serde(default)]
    pub prefill: Option<usize>,
    /// [`Forward::chunks`] as they were carried out, for the same reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chunks: Vec<usize>,
    /// Largest resident set (CPU) or allocated device memory so far, in bytes; `None` where unknown.
    pub peak_bytes: Option<u64>,
    /// What a person must know about this pass: graph breaks and fall-backs of a compiled model.
    #[serde(default)]
    pub notes: Vec<String>,
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

/// One finished round of timed passes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// Nanoseconds of each timed pass, in order.
    pub samples_ns: Vec<u64>,
    /// Nanoseconds of each decoded token, in order; empty where none was asked or the model keeps no cache.
    #[serde(default)]
    pub decode_ns: Vec<u64>,
    /// As in [`Forwarded::peak_bytes`].
    pub peak_bytes: Option<u64>,
    /// The slower of both readings of the yardstick, nanoseconds; absent where none was asked for or the worker has none.
    #[serde(default)]
    pub yardstick_ns: Option<u64>,
}

/// One finished capture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Captured {
    /// Calls of the modules that were asked for, in the order in which they begin.
    pub modules: Vec<CapturedModule>,
    /// Whether the pass gave bit for bit the logits of a pass without capture.
    pub unchanged: bool,
    /// Bytes written.
    pub bytes: u64,
    /// Nanoseconds of the captured pass.
    pub elapsed_ns: u64,
    /// Nanoseconds of a pass without capture.
    pub plain_ns: u64,
}

/// One call of a module, or of a step inside an attention module: `rope_q` and `rope_k`, which rotate, and `softmax`,
/// whose input is the masked scores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedModule {
    /// Its path, `model.layers.0.self_attn.q_proj`; a step's is its module's with its name.
    pub path: String,
    /// Which call of it, from 0.
    pub call: usize,
    /// Its class.
    pub class: String,
    /// The first tensor among its arguments.
    pub input: Option<CapturedTensor>,
    /// The first tensor of what it returns.
    pub output: Option<CapturedTensor>,
    /// The other tensors of what it returns, where it returns several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<CapturedTensor>,
}

/// One captured tensor.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CapturedTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype in the runner's own words.
    pub dtype: String,
    /// Its file in [`Capture::folder`]: elements in C order, little-endian f64 for a model in f64 and f32 otherwise;
    /// `None` where it was left out for want of room.
    pub file: Option<String>,
}

/// One finished replay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// Shape of what came out.
    pub shape: Vec<usize>,
}

/// Why a request could not be carried out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// What sort of failure it is.
    pub kind: FailedKind,
    /// The error's type, `ValueError`; empty where the runner has none.
    #[serde(default)]
    pub error: String,
    /// One line that says what went wrong.
    pub message: String,
    /// The traceback or cause chain.
    #[serde(default)]
    pub traceback: String,
}

/// Sorts of [`Failed`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedKind {
    /// The runner does not have what was asked: model_type, dtype, attention, device.
    Unsupported,
    /// An exception or error of the runner.
    Exception,
    /// An allocation was refused.
    OutOfMemory,
}
