//! The `tfcheck` program: reads the command line, runs it, tells errors and the exit code.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use bounds::limits::THREADS;
use clap::{ColorChoice, CommandFactory, FromArgMatches};
use miette::MietteHandlerOpts;
use tfcheck::app;
use tfcheck::cli::{Cli, Color, Command, Format, asks_for_build};
use tfcheck::execute::answer;
use tfcheck::judge::exit_code::ExitCode as Code;

fn main() -> ExitCode {
    // A file that grows beyond the user's limit is then an error of the write, as on a full disk.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    let words = || std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    if asks_for_build(words()) {
        return app::print(app::build().as_bytes())
            .map_or_else(|report| shown(&report).into(), |()| ExitCode::SUCCESS);
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
    let (code, problem) = match threads().and_then(|()| app::execute(&cli)) {
        Ok(code) => (code, None),
        Err(report) => (shown(&report), Some(answer::Problem::of(&report))),
    };
    if let Some(text) = answer::take(code.number(), problem) {
        return app::print(text.as_bytes()).map_or_else(|report| shown(&report).into(), |()| code.into());
    }
    code.into()
}

/// Refuses more threads than a machine has use for: rayon would start as many as this variable asks for.
fn threads() -> miette::Result<()> {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    let asked = std::env::var(VARIABLE).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let checked = asked.map_or(Ok(()), |asked| THREADS.check(asked));
    checked.map_err(|exceeded| {
        miette::miette!(help = "unset it, or set it to the number of cores", "{VARIABLE} asks for {exceeded}")
    })
}

/// Shows an error and gives its exit code.
fn shown(report: &miette::Report) -> Code {
    // Its text may quote a checkpoint, a hub or a run. A standard error that is full or closed changes nothing.
    let _ = writeln!(std::io::stderr(), "{}", bounds::styled(&format!("{report:?}")));
    app::code_of(report).unwrap_or(Code::Usage)
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
