//! Errors of a config: the problem, its line, and what to write instead.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bounds::limits::LINE;
use bounds::shown;
use miette::{NamedSource, SourceSpan};
use toml::de::{DeTable, DeValue};

use super::schema;
use super::validate::{Part, Problem, Step};
use crate::spec::nearest::nearest;

/// Problems of one config that are shown, so that they fit a screen or two.
const MOST_PROBLEMS: usize = 20;

/// A config that cannot be used: the first problem, followed by the others.
#[derive(Clone, Debug, thiserror::Error, miette::Diagnostic)]
#[error("{message}")]
pub struct ConfigError {
    message: String,
    #[source_code]
    file: Arc<NamedSource<String>>,
    #[label]
    span: Option<SourceSpan>,
    #[help]
    hint: Option<String>,
    #[related]
    others: Vec<ConfigError>,
}

impl ConfigError {
    /// A config file that cannot be read.
    pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Self {
        let hint = if error.kind() == std::io::ErrorKind::NotFound {
            "`tfcheck init` writes a commented one"
        } else {
            "name a TOML file that can be read; `tfcheck init` writes a commented one"
        };
        Self {
            message: format!("cannot read the config {}: {error}", path.display()),
            file: Arc::new(NamedSource::new(path.display().to_string(), String::new())),
            span: None,
            hint: Some(hint.to_owned()),
            others: Vec::new(),
        }
    }

    /// A syntax error or an unknown field that the TOML parser or serde found in `text`.
    pub(super) fn from_toml(error: &toml::de::Error, text: &str, path: &Path) -> Self {
        let (message, hint) = explain(error.message());
        let message = shown(&message, LINE.most).into_owned();
        let excerpt = Excerpt::new(text, path, error.span());
        Self {
            message: excerpt.placed(message),
            file: excerpt.file,
            span: excerpt.span,
            hint,
            others: Vec::new(),
        }
    }

    /// All `problems` as one error; `None` if there are none. `text` is empty for a config without a file.
    pub(super) fn from_problems(problems: Vec<Problem>, text: &str, path: &Path) -> Option<Self> {
        if problems.is_empty() {
            return None;
        }
        let document = DeTable::parse(text).ok();
        let mut errors = problems.into_iter().map(|problem| {
            let document = document.as_ref().map(toml::Spanned::get_ref);
            let span = document.and_then(|document| locate(document, &problem.path, problem.part));
            let excerpt = Excerpt::new(text, path, span);
            Self {
                message: excerpt.placed(shown(&problem.message, LINE.most).into_owned()),
                span: excerpt.span,
                file: excerpt.file,
                hint: problem.hint,
                others: Vec::new(),
            }
        });
        let first = errors.next()?;
        Some(Self { others: errors.take(MOST_PROBLEMS - 1).collect(), ..first })
    }
}

/// The file as a message shows it. A line that is too long to be shown is told by its number alone.
struct Excerpt {
    file: Arc<NamedSource<String>>,
    span: Option<SourceSpan>,
    /// The line's number where the line is not shown.
    line: Option<usize>,
}

impl Excerpt {
    fn new(text: &str, path: &Path, span: Option<Range<usize>>) -> Self {
        let Some(span) = span.filter(|span| span.start <= text.len() && text.is_char_boundary(span.start))
        else {
            return Self { file: named(text, path), span: None, line: None };
        };
        // miette shows the lines around the span too.
        let number = text[..span.start].matches('\n').count();
        let around = text.lines().skip(number.saturating_sub(1)).take(3);
        let is_long = around.map(str::len).any(|length| length as u64 > LINE.most);
        if is_long || span.len() as u64 > LINE.most {
            return Self { file: named("", path), span: None, line: Some(number + 1) };
        }
        Self { file: named(text, path), span: Some(SourceSpan::from(span)), line: None }
    }

    fn placed(&self, message: String) -> String {
        match self.line {
            Some(line) => format!("{}, line {line}: {message}", self.file.name()),
            None => message,
        }
    }
}

fn named(text: &str, path: &Path) -> Arc<NamedSource<String>> {
    Arc::new(NamedSource::new(path.display().to_string(), text.to_owned()))
}

/// The span of the value at `path`, or of its key; of the nearest parent if the file does not contain it.
fn locate(document: &DeTable<'_>, path: &[Step], part: Part) -> Option<Range<usize>> {
    let mut found = None;
    let mut table = Some(document);
    let mut array = None;
    for (depth, step) in path.iter().enumerate() {
        let value = match *step {
            Step::Key(name) => {
                let Some((key, value)) = table.and_then(|table| table.get_key_value(name)) else {
                    break;
                };
                let is_last = depth + 1 == path.len();
                found = Some(if is_last && part == Part::Key { key.span() } else { value.span() });
                value
            }
            Step::Index(index) => {
                let Some(value) = array.and_then(|array: &toml::de::DeArray<'_>| array.get(index)) else {
                    break;
                };
                found = Some(value.span());
                value
            }
        };
        (table, array) = match value.get_ref() {
            DeValue::Table(inner) => (Some(inner), None),
            DeValue::Array(inner) => (None, Some(inner)),
            _ => (None, None),
        };
    }
    found
}

/// Finds the name that was probably meant in serde's list of expected names.
fn explain(message: &str) -> (String, Option<String>) {
    if message.contains("max recursion depth") {
        return (
            "lists or tables are nested too deep".to_owned(),
            Some("no key needs more than two levels".to_owned()),
        );
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(given) = quoted.next() else {
        return (plain(message), None);
    };
    let known: Vec<&str> = quoted.collect();
    if message.starts_with("unknown field") {
        let places = schema::sections_with(given);
        let hint = match nearest(given, &known) {
            // A field that another section has is misplaced rather than misspelt.
            _ if !places.is_empty() => format!("`{given}` belongs to {}", places.join(" or ")),
            Some(name) => format!("did you mean `{name}`? the fields here are {}", known.join(", ")),
            None => format!("the fields here are {}", known.join(", ")),
        };
        return (format!("unknown field `{given}`"), Some(hint));
    }
    if message.starts_with("unknown variant") {
        let hint = match nearest(given, &known) {
            Some(name) => format!("did you mean \"{name}\"? there are {}", known.join(", ")),
            None => format!("there are {}", known.join(", ")),
        };
        return (format!("\"{given}\" is not known here"), Some(hint));
    }
    (plain(message), None)
}

/// Replaces Rust's type names in serde's message with plain words.
fn plain(message: &str) -> String {
    let message = &message.replace("` as i128", "`").replace("` as u128", "`");
    let words = [("usize", "a whole number from 0"), ("u64", "a whole number from 0"), ("f64", "a number")];
    let replaced = words.iter().find_map(|(rust, plain)| {
        message.strip_suffix(rust).filter(|rest| rest.ends_with(' ')).map(|rest| format!("{rest}{plain}"))
    });
    replaced.unwrap_or_else(|| message.to_owned())
}
