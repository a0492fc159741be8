//! Schemas, completions, man pages, and what tfcheck was built with.

use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;
use miette::{IntoDiagnostic, Result, WrapErr};

use super::say;
use crate::cli::{Cli, Completions, SchemaOf};
use crate::execute::answer;
use crate::judge::exit_code::ExitCode;
use crate::results::{Built, SCHEMA_VERSION, plan_schema, write_file};
use crate::spec::config;

/// Prints the JSON schema of a file.
pub(super) fn schema(of: SchemaOf) -> Result<ExitCode> {
    say(&match of {
        SchemaOf::Config => config::schema_text(),
        SchemaOf::Plan => plan_schema(),
        SchemaOf::Answer => answer::schema(),
    })
}

/// Prints the completions of a shell.
pub(super) fn completions(arguments: &Completions) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "tfcheck", &mut script);
    raw(&script)
}

/// Prints the man page, or writes those of all commands into a folder.
pub(super) fn man(out: Option<&Path>) -> Result<ExitCode> {
    let mut command = Cli::command();
    command.build();
    let Some(folder) = out else { return raw(&page(command)?) };
    let mut count = 1;
    write_file(&folder.join("tfcheck.1"), &page(command.clone())?)?;
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        let name = format!("tfcheck-{}", inner.get_name());
        write_file(&folder.join(format!("{name}.1")), &page(inner.clone())?)?;
        count += 1;
    }
    say(&format!("wrote {count} pages into {}; `man -l FILE` shows one", folder.display()))
}

fn page(command: clap::Command) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    Man::new(command).render(&mut text).into_diagnostic().wrap_err("the man page")?;
    Ok(text)
}

/// Prints bytes as they are. A closed standard output is not an error.
fn raw(bytes: &[u8]) -> Result<ExitCode> {
    if answer::add_text(&String::from_utf8_lossy(bytes)) {
        return Ok(ExitCode::Agree);
    }
    super::print(bytes)?;
    Ok(ExitCode::Agree)
}

/// What `--version --verbose` prints.
pub fn build() -> String {
    let built = Built::here();
    let features: &[&str] = if cfg!(feature = "cuda") { &["cuda"] } else { &[] };
    let features = if features.is_empty() { "none".to_owned() } else { features.join(", ") };
    let rows = [
        ("sources", built.source.as_str()),
        ("bridge", &built.bridge),
        ("target", env!("TFCHECK_TARGET")),
        ("profile", env!("TFCHECK_PROFILE")),
        ("features", &features),
        ("compiler", env!("TFCHECK_RUSTC")),
        ("candle", env!("TFCHECK_CANDLE_CORE")),
        ("candle-transformers", env!("TFCHECK_CANDLE_TRANSFORMERS")),
        ("worker protocol", &reference::protocol::PROTOCOL_VERSION.to_string()),
        ("run folders", &format!("schema version {SCHEMA_VERSION}")),
    ];
    let lines: Vec<String> = rows.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!("tfcheck {}\n{}\n", built.version, lines.join("\n"))
}
