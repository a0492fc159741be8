//! Every limit on what is read from outside, as one table, which docs/FAULTS.md repeats.
//!
//! A limit lies far above what real checkpoints, runs and configs need, and far below what exhausts a machine.

use std::fmt;

/// The largest accepted number of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is counted: `bytes of tfcheck.toml`.
    pub of: &'static str,
    /// The largest accepted number.
    pub most: u64,
}

/// A number above its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The number; `None` if only known to be larger.
    pub found: Option<u64>,
    /// Its limit.
    pub limit: Limit,
}

impl Limit {
    /// Accepts a number up to the limit.
    ///
    /// # Errors
    /// If `found` is larger.
    pub const fn check(self, found: u64) -> Result<(), Exceeded> {
        if found > self.most { Err(Exceeded { found: Some(found), limit: self }) } else { Ok(()) }
    }

    /// As a length in memory.
    pub const fn most_usize(self) -> usize {
        self.most as usize
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Limit { of, most } = self.limit;
        match self.found {
            Some(found) => write!(f, "{found} {of}, and tfcheck accepts at most {most}"),
            None => write!(f, "more than {most} {of}, the most that tfcheck accepts"),
        }
    }
}

impl std::error::Error for Exceeded {}

macro_rules! limits {
    ($($name:ident = $most:expr, $of:literal;)*) => {
        $(
            #[doc = concat!("Limit of ", $of, ".")]
            pub const $name: Limit = Limit { of: $of, most: $most };
        )*
        /// All limits.
        pub const LIMITS: &[Limit] = &[$($name),*];
    };
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

limits! {
    CONFIG_BYTES = 16 * MIB, "bytes of tfcheck.toml";
    CONFIG_DEPTH = 32, "nested tables in one key of tfcheck.toml";
    LIST = 4096, "entries of one list of the config";
    CASES = 20_000, "cases of a run";
    VARIANTS = 20_000, "variants of a case";
    CELLS = 400_000, "cells of a run";
    LENGTH = 4 * MIB, "tokens of a sequence";
    BATCH = 64 * KIB, "sequences of a batch";
    BATCH_TOKENS = 16 * MIB, "tokens of a batch";
    PASSES = 1_000_000, "forward passes or tokens of one request";
    ROUNDS = 100_000, "timing rounds";
    THREADS = 4096, "threads of a worker";
    AT_ONCE = 1024, "workers at a time";
    SECONDS = 31 * 24 * 3600, "seconds of a wait";
    MEMORY_GB = 1_000_000, "GB of memory";
    CHECKPOINT_JSON_BYTES = 64 * MIB, "bytes of a JSON file of a checkpoint";
    TOKENIZER_BYTES = 256 * MIB, "bytes of tokenizer.json";
    TEMPLATE_BYTES = 4 * MIB, "bytes of a chat template";
    TEMPLATE_STEPS = 10_000_000, "steps of a chat template";
    TEMPLATE_DEPTH = 100, "nested calls of a chat template";
    TEMPLATE_INDENT = 100, "spaces of indent in a chat template";
    TEXT_BYTES = 64 * MIB, "bytes of a text to take tokens from";
    TOKENIZER_MEMORY_BYTES = 4 * GIB, "bytes of memory of the process that tokenises";
    TOKENIZER_SECONDS = 20, "seconds in which a text is tokenised";
    TEMPLATE_SECONDS = 8, "seconds of a chat template";
    SAFETENSORS_HEADER_BYTES = 100_000_000, "bytes of a safetensors header";
    TENSORS = 1_000_000, "tensors of a checkpoint";
    GGUF_TENSORS = 65_536, "tensors of a GGUF file";
    GGUF_KEYS = 65_536, "metadata keys of a GGUF file";
    GGUF_STRING_BYTES = 16 * MIB, "bytes of a string of a GGUF file";
    GGUF_ELEMENTS = 8 * MIB, "array elements of a GGUF file's metadata";
    GGUF_TOKEN_BYTES = KIB, "bytes of a token of a GGUF file";
    GGUF_ALIGNMENT = MIB, "bytes of a GGUF file's alignment";
    RUN_JSON_BYTES = 512 * MIB, "bytes of a record of a run";
    INPUTS_BYTES = 2 * GIB, "bytes of a batch's tensors";
    MADE_BYTES = GIB, "bytes of pictures or sounds that tfcheck makes";
    STORED_TENSOR_BYTES = 64 * GIB, "bytes of a captured tensor";
    PICKLE_BYTES = 4 * KIB, "bytes of a legacy run's data.pkl";
    REPLY_BYTES = 16 * MIB, "bytes of a worker's reply";
    NOTES = 1000, "notes of a worker's reply";
    NAMES = 1_000_000, "names of a worker's reply";
    MODULES = 1_000_000, "module calls of a capture";
    LINE = 2000, "characters of a foreign line of text";
    LINES = 64 * KIB, "characters of a foreign text";
    HUB_JSON_BYTES = 64 * MIB, "bytes of a hub's description of a model";
    HUB_FILE_BYTES = 4096 * GIB, "bytes of a file of a hub";
    HUB_REDIRECTS = 5, "redirects of a request to a hub";
    HUB_STALL_SECONDS = 15, "seconds in which a hub sends less than 1024 bytes";
    TOKEN_BYTES = 4 * KIB, "characters of HF_TOKEN";
    PROBE_SECONDS = 20, "seconds in which uv, or a Python interpreter, describes itself";
    IMPORT_SECONDS = 600, "seconds in which a Python interpreter imports transformers";
    PROBE_BYTES = 64 * MIB, "bytes of the output of a program that tfcheck waits for";
    PROGRAM_SECONDS = 30, "seconds in which nvidia-smi, git, sbatch or squeue answers";
    BASELINES = 10_000, "baselines of a history";
    HISTORY_VALUE_BYTES = 64 * MIB, "bytes of a value of a history";
    VOCAB_SIZE = 16 * MIB, "tokens of a vocabulary";
    FEATURES = 16 * MIB, "features of a layer";
    HEADS = 64 * KIB, "attention heads";
    HEAD_DIM = 64 * KIB, "features of an attention head";
    LAYERS = 10_000, "layers";
    EXPERTS = 64 * KIB, "experts";
    POSITIONS = 1 << 40, "positions";
    LABELS = MIB, "labels of a classifier";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_at_its_limit_is_accepted_and_one_above_is_refused_with_both_numbers() {
        assert_eq!(THREADS.check(4096), Ok(()));
        let error = THREADS.check(4097).unwrap_err();
        assert_eq!(error.to_string(), "4097 threads of a worker, and tfcheck accepts at most 4096");
    }
}
