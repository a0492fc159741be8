//! The `tfcheck` program: reads the command line, runs it, tells errors and the exit code.

use std::process::ExitCode;

use clap::{ColorChoice, CommandFactory, FromArgMatches};
use miette::MietteHandlerOpts;
use tfcheck::app;
use tfcheck::cli::{Cli, Color, Command, Format, asks_for_build};
use tfcheck::execute::answer;
use tfcheck::judge::exit_code::ExitCode as Code;

fn main() -> ExitCode {
    let words = || std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    if asks_for_build(words()) {
        print(app::build().as_bytes());
        return ExitCode::SUCCESS;
    }
    let color = Color::of_arguments(words());
    apply(color);
    let choice = match color {
        Color::Auto => ColorChoice::Auto,
        Color::Always => ColorChoice::Always,
        Color::Never => ColorChoice::Never,
    };
    let matches = Cli::command().color(choice).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    if cli.format == Format::Json && !matches!(cli.command, Command::Worker(_) | Command::Foreign) {
        answer::collect();
    }
    let (code, problem) = match app::execute(&cli) {
        Ok(code) => (code, None),
        Err(report) => {
            // Its text may quote a checkpoint, a hub or a run.
            eprintln!("{}", bounds::styled(&format!("{report:?}")));
            (app::code_of(&report).unwrap_or(Code::Usage), Some(answer::Problem::of(&report)))
        }
    };
    if let Some(text) = answer::take(code.number(), problem) {
        print(text.as_bytes());
    }
    code.into()
}

/// Prints bytes as they are. A closed standard output is not an error.
fn print(bytes: &[u8]) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(bytes);
}

/// Tells what prints in colour: the tables, the progress and the errors.
fn apply(color: Color) {
    let Some(is_coloured) = color.forced() else { return };
    console::set_colors_enabled(is_coloured);
    console::set_colors_enabled_stderr(is_coloured);
    let hook =
        miette::set_hook(Box::new(move |_| Box::new(MietteHandlerOpts::new().color(is_coloured).build())));
    hook.expect("nothing has set a hook before main");
}
