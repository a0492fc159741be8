//! Why inputs cannot be created.

use std::path::PathBuf;

use miette::Diagnostic;
use thiserror::Error;

use super::TemplateError;

/// Why inputs cannot be created.
#[derive(Debug, Error, Diagnostic)]
pub enum Error {
    /// There is nothing to tokenise.
    #[error("{what} is empty")]
    #[diagnostic(help("list at least one prompt, or one length and batch size; none may be empty"))]
    Empty {
        /// `prompt 2`, `the list of lengths`, …
        what: String,
    },
    /// A prompt becomes nothing.
    #[error("{what} has no token: {reason}")]
    #[diagnostic(help("change the prompt, or repair tokenizer.json or the chat template of the checkpoint"))]
    NoToken {
        /// `prompt 2`.
        what: String,
        /// Which step leaves nothing.
        reason: &'static str,
    },
    /// The checkpoint has no tokenizer to tokenise a text with.
    #[error("checkpoint `{checkpoint}` has no tokenizer.json, so {what} cannot be tokenised")]
    #[diagnostic(help(
        "sweep over `lengths` instead, which draws token ids, or add a tokenizer.json to the checkpoint"
    ))]
    NoTokenizer {
        /// The checkpoint.
        checkpoint: String,
        /// `prompt 1`, …
        what: String,
    },
    /// The tokenizer cannot be loaded or fails.
    #[error("tokenizer {}: {reason}", path.display())]
    #[diagnostic(help("the file may be damaged or newer than tfcheck's tokenizers library (0.23)"))]
    Tokenizer {
        /// `tokenizer.json`.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An answer has no tokens.
    #[error("choice `{choice}` {reason}")]
    #[diagnostic(help(
        "a choice is the text of an answer, with the space before it where the model would write one"
    ))]
    Choice {
        /// The answer.
        choice: String,
        /// What is wrong.
        reason: String,
    },
    /// The text has too few tokens, or the vocabulary too few ids.
    #[error("{what}")]
    #[diagnostic(help("{help}"))]
    TooShort {
        /// What is too short.
        what: String,
        /// The remedy.
        help: String,
    },
    /// Sequences of different lengths where padding is excluded.
    #[error("the sequences have {shortest} to {longest} tokens, and `padding = [\"none\"]` excludes padding")]
    #[diagnostic(help("choose `padding = [\"left\"]` or `[\"right\"]`, or give sequences of equal length"))]
    Lengths {
        /// Tokens of the shortest sequence.
        shortest: usize,
        /// Tokens of the longest sequence.
        longest: usize,
    },
    /// A token id that the model has no embedding for.
    #[error("{what} contains token id {id}, but the vocabulary has {vocab_size} tokens")]
    #[diagnostic(help("the tokenizer belongs to another model, or config.json has the wrong `vocab_size`"))]
    OutOfVocabulary {
        /// Which sequence.
        what: String,
        /// The id.
        id: i64,
        /// `vocab_size` of the config.
        vocab_size: u64,
    },
    /// A file of tensors cannot be used.
    #[error("{} {reason}", path.display())]
    #[diagnostic(help(
        "name its tensors as the model's `forward` names its arguments, and shape them as it expects"
    ))]
    Tensors {
        /// The file.
        path: PathBuf,
        /// What is wrong, as a predicate of the file.
        reason: String,
    },
    /// The config of the checkpoint does not say what its inputs are.
    #[error("inputs of {model_type}: {reason}")]
    #[diagnostic(help("make the inputs yourself and name their file in `[inputs] tensors`"))]
    Modal {
        /// The architecture.
        model_type: String,
        /// What is missing.
        reason: String,
    },
    /// The chat template cannot be found or rendered.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Template(#[from] TemplateError),
    /// A saved file does not follow the format.
    #[error("{}: {reason}", path.display())]
    #[diagnostic(help("the inputs belong to another run or are damaged; start a new run"))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The user asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// Reading or writing failed.
    #[error("cannot {action} {}", path.display())]
    #[diagnostic(help("{}", crate::spec::atomic::io_hint(source)))]
    Io {
        /// `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}
