//! Chat templates, rendered once in the same way as `apply_chat_template`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bounds::limits::{
    CHECKPOINT_JSON_BYTES, LINE, TEMPLATE_BYTES, TEMPLATE_DEPTH, TEMPLATE_INDENT, TEMPLATE_STEPS,
};
use miette::Diagnostic;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Enumerator, Kwargs, Object, Value as Jinja, ValueKind};
use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};
use thiserror::Error;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`.
    pub role: String,
    /// The message's text.
    pub content: String,
}

/// A rendered conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chat {
    /// The text, to be tokenised without adding special tokens.
    pub text: String,
    /// Notes for the reader.
    pub notes: Vec<String>,
}

/// Why a conversation cannot be rendered.
#[derive(Debug, Error, Diagnostic, Serialize, Deserialize)]
pub enum TemplateError {
    /// The checkpoint has no template.
    #[error("{} has no chat template", folder.display())]
    #[diagnostic(help("write the prompt as plain text, or add chat_template.jinja to the checkpoint"))]
    Absent {
        /// The checkpoint's folder.
        folder: PathBuf,
    },
    /// The file with the template cannot be read.
    #[error("{}: {reason}", path.display())]
    #[diagnostic(help("fetch the file again"))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The template fails.
    #[error("the chat template of {} fails: {reason}", path.display())]
    #[diagnostic(help(
        "the message is the template's own or names the line; change the conversation, or write the prompt as plain text"
    ))]
    Fails {
        /// The template's file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// Renders a conversation with the checkpoint's template and the generation prompt.
///
/// # Errors
/// When there is no template, or it fails on this conversation.
pub fn render(folder: &Path, messages: &[Message]) -> Result<Chat, TemplateError> {
    let config_path = folder.join("tokenizer_config.json");
    let config = if config_path.is_file() { read(&config_path)? } else { Value::Null };
    let (path, template) = find(folder, &config_path, &config)?;
    // minijinja has no `generation` block; transformers uses it to mark tokens, not to change text.
    let template = rename_block(&rename_block(&template, "generation", "if true"), "endgeneration", "endif");

    let uses_date = Arc::new(AtomicBool::new(false));
    let mut environment = Environment::new();
    environment.set_fuel(Some(TEMPLATE_STEPS.most));
    environment.set_recursion_limit(TEMPLATE_DEPTH.most_usize());
    // As transformers sets up jinja2 (utils/chat_template_utils.py, `_compile_jinja_template`).
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    let used = uses_date.clone();
    environment.add_function("strftime_now", move |format: String| -> Result<String, minijinja::Error> {
        used.store(true, Ordering::Relaxed);
        jiff::fmt::strtime::format(&format, &jiff::ZonedDateTime::now())
            .map_err(|error| minijinja::Error::new(ErrorKind::InvalidOperation, error.to_string()))
    });
    environment.add_filter("tojson", to_json);
    let token = |name: &str| special_token(&config, name);
    let text = environment
        .render_str(
            &template,
            context! {
                messages => messages.iter().cloned().map(Jinja::from_object).collect::<Vec<_>>(),
                tools => Jinja::from(()),
                documents => Jinja::from(()),
                add_generation_prompt => true,
                bos_token => token("bos_token"),
                eos_token => token("eos_token"),
                unk_token => token("unk_token"),
                pad_token => token("pad_token"),
            },
        )
        .map_err(|error| {
            let reason = if error.kind() == ErrorKind::OutOfFuel {
                format!("it takes more than {} steps", TEMPLATE_STEPS.most)
            } else {
                bounds::shown(&error.to_string(), LINE.most).into_owned()
            };
            TemplateError::Fails { path, reason }
        })?;
    let mut notes = Vec::new();
    if uses_date.load(Ordering::Relaxed) {
        notes
            .push("the chat template inserts the current date: the inputs differ from day to day".to_owned());
    }
    Ok(Chat { text, notes })
}

/// The template and its file; a separate template file takes precedence, as in transformers.
fn find(folder: &Path, config_path: &Path, config: &Value) -> Result<(PathBuf, String), TemplateError> {
    let jinja = folder.join("chat_template.jinja");
    if jinja.is_file() {
        let text = bounds::file::read_text(&jinja, TEMPLATE_BYTES)
            .map_err(|error| TemplateError::Unreadable { path: jinja.clone(), reason: error.to_string() })?;
        return Ok((jinja, text));
    }
    let json = folder.join("chat_template.json");
    let (path, value) =
        if json.is_file() { (json.clone(), read(&json)?) } else { (config_path.to_owned(), config.clone()) };
    let template = match value.get("chat_template") {
        Some(Value::String(template)) => Some(template.clone()),
        // Several named templates, of which `default` is the one without tools.
        Some(Value::Array(named)) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| Some(entry.get("template")?.as_str()?.to_owned())),
        None | Some(Value::Null) => None,
        Some(_) => {
            let reason = "its `chat_template` is no text and no list of named texts".to_owned();
            return Err(TemplateError::Unreadable { path, reason });
        }
    };
    if let Some(exceeded) = template.as_ref().and_then(|text| TEMPLATE_BYTES.check(text.len() as u64).err()) {
        return Err(TemplateError::Unreadable { path, reason: format!("its template has {exceeded}") });
    }
    template
        .map(|template| (path, template))
        .ok_or_else(|| TemplateError::Absent { folder: folder.to_owned() })
}

fn read(path: &Path) -> Result<Value, TemplateError> {
    let unreadable = |reason: String| TemplateError::Unreadable { path: path.to_owned(), reason };
    let bytes =
        bounds::file::read(path, CHECKPOINT_JSON_BYTES).map_err(|error| unreadable(error.to_string()))?;
    serde_json::from_slice(&bytes).map_err(|error| unreadable(format!("is not JSON: {error}")))
}

/// A special token's text; a missing one is undefined in the template, as in transformers.
fn special_token(config: &Value, name: &str) -> Jinja {
    let text = config.get(name).and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
    text.map_or(Jinja::UNDEFINED, Jinja::from)
}

/// Replaces a block tag's word and keeps its whitespace control: `{%- old -%}` becomes `{%- new -%}`.
fn rename_block(template: &str, old: &str, new: &str) -> String {
    let mut renamed = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        renamed.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (inside, after) = tag.split_at(end);
        if inside.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') == old {
            renamed.push_str(&inside.replacen(old, new, 1));
        } else {
            renamed.push_str(inside);
        }
        rest = after;
    }
    renamed.push_str(rest);
    renamed
}

impl Object for Message {
    fn get_value(self: &Arc<Self>, key: &Jinja) -> Option<Jinja> {
        match key.as_str()? {
            "role" => Some(Jinja::from(self.role.as_str())),
            "content" => Some(Jinja::from(self.content.as_str())),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
    }
}

/// `tojson` of transformers: `json.dumps(value, ensure_ascii=False, indent=…)`, with Python's separators.
#[expect(clippy::needless_pass_by_value, reason = "minijinja hands keyword arguments over by value")]
fn to_json(value: &Jinja, options: Kwargs) -> Result<Jinja, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let value = plain(value)?;
    let mut bytes = Vec::new();
    let written = if let Some(indent) = indent {
        TEMPLATE_INDENT.check(indent as u64).map_err(|exceeded| {
            minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson indents by {exceeded}"))
        })?;
        let indent = " ".repeat(indent);
        let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
        value.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
    } else {
        value.serialize(&mut Serializer::with_formatter(&mut bytes, PythonSeparators))
    };
    written.map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    Ok(Jinja::from_safe_string(String::from_utf8_lossy(&bytes).into_owned()))
}

/// Converts a template's value to JSON.
fn plain(value: &Jinja) -> Result<Value, minijinja::Error> {
    Ok(match value.kind() {
        ValueKind::None => Value::Null,
        ValueKind::Bool => Value::Bool(value.is_true()),
        ValueKind::String => Value::from(value.as_str().unwrap_or_default()),
        ValueKind::Number => match value.as_i64().filter(|_| value.is_integer()) {
            Some(integer) => Value::from(integer),
            None => Value::from(f64::try_from(value.clone())?),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter()?.map(|item| plain(&item)).collect::<Result<_, _>>()?
        }
        ValueKind::Map => {
            let entry = |key: Jinja| Ok((key.to_string(), plain(&value.get_item(&key)?)?));
            Value::Object(value.try_iter()?.map(entry).collect::<Result<_, minijinja::Error>>()?)
        }
        kind => {
            return Err(minijinja::Error::new(ErrorKind::BadSerialization, format!("{kind} is not JSON")));
        }
    })
}

/// Formats JSON with `", "` and `": "`, as `json.dumps` does.
struct PythonSeparators;

impl Formatter for PythonSeparators {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use super::rename_block;

    #[test]
    fn a_renamed_block_keeps_its_whitespace_control() {
        let template = "a {%- generation -%} generation {% endgeneration %}{% if generation %}";
        let renamed =
            rename_block(&rename_block(template, "generation", "if true"), "endgeneration", "endif");
        assert_eq!(renamed, "a {%- if true -%} generation {% endif %}{% if generation %}");
    }
}
