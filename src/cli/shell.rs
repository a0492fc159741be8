//! Arguments of the commands that describe tfcheck itself: its files, its command line, its build.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::Shell;

/// Arguments of `tfcheck schema`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Args)]
pub struct Schema {
    /// The file whose schema is printed.
    #[arg(value_enum, default_value_t = SchemaOf::Config, value_name = "FILE")]
    pub of: SchemaOf,
}

/// A file with a schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SchemaOf {
    /// tfcheck.toml.
    #[default]
    Config,
    /// What `tfcheck plan --json` prints.
    Plan,
    /// What every command prints with `--format json`.
    Answer,
}

/// Arguments of `tfcheck completions`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Completions {
    /// The shell.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Arguments of `tfcheck man`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Man {
    /// Folder for one page per command, `tfcheck.1`, `tfcheck-run.1`, …
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

/// Whether the arguments of this process ask for the version with the details of the build: `--version --verbose`.
pub fn asks_for_build(arguments: impl Iterator<Item = String>) -> bool {
    let (mut version, mut verbose) = (false, false);
    for word in arguments.skip(1) {
        match word.as_str() {
            "--version" | "-V" => version = true,
            "--verbose" | "-v" => verbose = true,
            "-vV" | "-Vv" => (version, verbose) = (true, true),
            // A command has a version, but no build of its own.
            _ => return false,
        }
    }
    version && verbose
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_build_is_asked_for_by_both_options_alone() {
        let asks = |line: &str| asks_for_build(line.split(' ').map(str::to_owned));
        for line in
            ["tfcheck --version --verbose", "tfcheck -v -V", "tfcheck -vV", "tfcheck --verbose --version"]
        {
            assert!(asks(line), "{line}");
        }
        for line in ["tfcheck", "tfcheck --version", "tfcheck -v run", "tfcheck run --version --verbose"] {
            assert!(!asks(line), "{line}");
        }
    }
}
