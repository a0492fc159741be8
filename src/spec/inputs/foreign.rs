//! Foreign code on foreign data: the tokenizers library on a checkpoint's tokenizer, and minijinja on its chat template.
//!
//! Both can panic, overflow the stack, loop or eat memory. The program therefore asks a process of its own for them
//! ([`Apart`]), which has limits and may die; as a library, tfcheck calls them in its own process, where a panic becomes an
//! error and a template has a limit of steps.

mod apart;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bounds::limits::{LINE, TOKENIZER_BYTES};
use serde::{Deserialize, Serialize};
use tokenizers::Tokenizer;

use super::template::{self, Chat, Message, TemplateError};
use apart::Process;
pub use apart::{Apart, serve};

/// What is asked of the foreign code. [`Request::Open`] comes first.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Request {
    /// Reads a tokenizer.
    Open(PathBuf),
    /// Renders a conversation by the template of a checkpoint's folder.
    Render { folder: PathBuf, messages: Vec<Message> },
    /// Token ids of a text, and if wanted its tokens.
    Encode { text: String, add_special_tokens: bool, wants_tokens: bool },
    /// What each token id stands for.
    Texts(Vec<u32>),
    /// Number of tokens with the added ones.
    Size,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Opened,
    Rendered(Result<Chat, TemplateError>),
    Encoded(Encoded),
    Texts(Vec<String>),
    Size(usize),
    /// The tokenizer failed, for this reason.
    Failed(String),
}

/// A tokenised text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Encoded {
    pub(super) ids: Vec<u32>,
    /// As the vocabulary writes them; empty if they were not wanted.
    pub(super) tokens: Vec<String>,
}

/// Why the foreign code gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It failed, or its process died or exceeded a limit.
    Failed(String),
    /// The user asked to stop.
    Interrupted,
}

/// Where the foreign code runs.
#[expect(clippy::large_enum_variant, reason = "there is one of them at a time")]
pub(super) enum Foreign {
    /// In this process.
    Here(Mutex<Engine>),
    /// In a process of its own.
    Apart(Mutex<Process>),
}

impl Foreign {
    /// Starts the foreign code, and has it read the tokenizer if there is one.
    pub(super) fn open(tokenizer: Option<&Path>, apart: Option<&Apart>) -> Result<Self, Lost> {
        let foreign = match apart {
            None => Self::Here(Mutex::default()),
            Some(apart) => Self::Apart(Mutex::new(Process::start(apart)?)),
        };
        if let Some(path) = tokenizer {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            foreign.ask(Request::Open(path))?;
        }
        Ok(foreign)
    }

    pub(super) fn render(
        &self,
        folder: &Path,
        messages: &[Message],
    ) -> Result<Result<Chat, TemplateError>, Lost> {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        match self.ask(Request::Render { folder, messages: messages.to_vec() })? {
            Reply::Rendered(rendered) => Ok(rendered),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
        wants_tokens: bool,
    ) -> Result<Encoded, Lost> {
        match self.ask(Request::Encode { text: text.to_owned(), add_special_tokens, wants_tokens })? {
            Reply::Encoded(encoded) => Ok(encoded),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn texts(&self, ids: Vec<u32>) -> Result<Vec<String>, Lost> {
        match self.ask(Request::Texts(ids))? {
            Reply::Texts(texts) => Ok(texts),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) fn size(&self) -> Result<usize, Lost> {
        match self.ask(Request::Size)? {
            Reply::Size(size) => Ok(size),
            other => Err(unexpected(&other)),
        }
    }

    fn ask(&self, request: Request) -> Result<Reply, Lost> {
        let reply = match self {
            Self::Here(engine) => {
                let mut engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
                bounds::caught(|| engine.answer(request)).unwrap_or_else(Reply::Failed)
            }
            Self::Apart(process) => process.lock().unwrap_or_else(PoisonError::into_inner).ask(&request)?,
        };
        match reply {
            Reply::Failed(reason) => Err(Lost::Failed(bounds::shown(&reason, LINE.most).into_owned())),
            reply => Ok(reply),
        }
    }
}

fn unexpected(reply: &Reply) -> Lost {
    Lost::Failed(format!("an answer to another question: {}", bounds::shown(&format!("{reply:?}"), 200)))
}

/// The foreign code itself.
#[derive(Default)]
pub(super) struct Engine {
    tokenizer: Option<Tokenizer>,
}

impl Engine {
    fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Open(path) => match open(&path) {
                Ok(tokenizer) => {
                    self.tokenizer = Some(tokenizer);
                    Reply::Opened
                }
                Err(reason) => Reply::Failed(reason),
            },
            Request::Render { folder, messages } => Reply::Rendered(template::render(&folder, &messages)),
            Request::Encode { text, add_special_tokens, wants_tokens } => self.with(|tokenizer| {
                if wants_tokens {
                    let encoding = tokenizer.encode(text, add_special_tokens)?;
                    let tokens = encoding.get_tokens().to_vec();
                    return Ok(Reply::Encoded(Encoded { ids: encoding.get_ids().to_vec(), tokens }));
                }
                // Without offsets into the text, which take longer.
                let encoding = tokenizer.encode_fast(text, add_special_tokens)?;
                Ok(Reply::Encoded(Encoded { ids: encoding.get_ids().to_vec(), tokens: Vec::new() }))
            }),
            Request::Texts(ids) => self.with(|tokenizer| {
                let text = |id: &u32| {
                    tokenizer
                        .decode(&[*id], false)
                        .ok()
                        .filter(|text| !text.is_empty())
                        .or_else(|| tokenizer.id_to_token(*id))
                };
                Ok(Reply::Texts(ids.iter().map(|id| text(id).unwrap_or_default()).collect()))
            }),
            Request::Size => self.with(|tokenizer| Ok(Reply::Size(tokenizer.get_vocab_size(true)))),
        }
    }

    fn with(&self, work: impl FnOnce(&Tokenizer) -> tokenizers::Result<Reply>) -> Reply {
        match &self.tokenizer {
            None => Reply::Failed("no tokenizer was read".to_owned()),
            Some(tokenizer) => work(tokenizer).unwrap_or_else(|error| Reply::Failed(error.to_string())),
        }
    }
}

fn open(path: &Path) -> Result<Tokenizer, String> {
    let bytes = bounds::file::read(path, TOKENIZER_BYTES).map_err(|error| error.to_string())?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|error| error.to_string())?;
    // A `tokenizer.json` may contain the padding and truncation of its author; here the spec decides both.
    tokenizer.with_padding(None);
    let _ = tokenizer.with_truncation(None);
    Ok(tokenizer)
}
