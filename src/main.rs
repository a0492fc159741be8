//! The `tfcheck` program: reads the command line, runs it, tells errors and the exit code.

use std::process::ExitCode;

use clap::Parser;
use tfcheck::app;
use tfcheck::cli::Cli;
use tfcheck::judge::exit_code::ExitCode as Code;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match app::execute(&cli) {
        Ok(code) => code.into(),
        Err(report) => {
            eprintln!("{report:?}");
            app::code_of(&report).unwrap_or(Code::Usage).into()
        }
    }
}
