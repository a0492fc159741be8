//! The runners of a run's cells.

use std::ffi::OsString;
use std::path::PathBuf;

use miette::{IntoDiagnostic, Result};

use super::prepare::EnvironmentResult;
use super::{RunRequest, is_timed};
use crate::execute::cell::FailureKind;
use crate::execute::runner::{self, NoResult, ObservedRunner, ProcessRunner, Runner, SharedRunner};
use crate::spec::machine;
use crate::spec::plan::CellPlan;
use crate::spec::variant;

/// Memory of a process that has imported transformers 5.23.0, without what is mapped from files: 420 MB were measured.
const TEMPLATE_BYTES: u64 = 450_000_000;

/// One runner per environment, one per command, and the native runner.
pub(super) struct Runners<'a> {
    environments: Vec<Result<Box<dyn Runner + 'a>, NoResult>>,
    pub(super) environment_keys: Vec<String>,
    pub(super) environment_notes: Vec<Vec<String>>,
    commands: Vec<Box<dyn Runner + 'a>>,
    candle: Box<dyn Runner + 'a>,
    upstream: Box<dyn Runner + 'a>,
    pub(super) threads: usize,
    /// [`Machine::fingerprint`], part of every key.
    pub(super) fingerprint: String,
}

impl<'a> Runners<'a> {
    pub(super) fn new(
        request: &RunRequest<'a>,
        environments: &[EnvironmentResult],
        fingerprint: String,
    ) -> Result<Self> {
        // A plan of eager cells of which none is timed may share workers; a compiler's state would outlive its cell, and
        // a second process is asked for to hold the first one against it.
        let is_shared = !request.config.run.noise
            && request
                .plan
                .cells
                .iter()
                .all(|cell| !is_timed(request.config, cell) && !cell.variant.mode.is_compiled());
        let threads = request.config.run.threads.unwrap_or_else(machine::physical_cores);
        Self::with(request, environments, fingerprint, (threads, is_shared))
    }

    /// Runners of so many threads, whose workers go from cell to cell where they are shared.
    pub(super) fn with(
        request: &RunRequest<'a>,
        environments: &[EnvironmentResult],
        fingerprint: String,
        (threads, is_shared): (usize, bool),
    ) -> Result<Self> {
        let progress = request.progress;
        let observed = |runner: Box<dyn Runner + 'a>, command: &[OsString]| -> Box<dyn Runner + 'a> {
            if progress.is_verbose() {
                Box::new(ObservedRunner::new(runner, command, progress))
            } else {
                runner
            }
        };
        let boxed = |runner: ProcessRunner| {
            let command = runner.command.clone();
            if is_shared {
                observed(Box::new(SharedRunner::new(runner)), &command)
            } else {
                observed(Box::new(runner), &command)
            }
        };
        let held = 2 * TEMPLATE_BYTES * environments.len() as u64;
        // A unit of a plan has few workers, and a job no memory for more processes.
        let forks = request.sharing.is_none() && held <= machine::memory_bytes() / 4;
        let runner = |environment: &EnvironmentResult| match environment {
            Ok(environment) => runner::transformers::runner(environment, request.cache, threads, forks)
                .map(boxed)
                .map_err(|error| NoResult::failed(FailureKind::Environment, format!("the bridge: {error}"))),
            Err(error) => Err(NoResult::failed(FailureKind::Environment, error.clone())),
        };
        let commands = &request.config.commands;
        // Versions whose cells were all filtered out are included: the native models can use the CUDA
        // libraries installed there.
        let named = request.config.versions.iter().filter_map(|version| {
            version.python.as_ref().and_then(|python| reference::interpreter(python).ok())
        });
        let made = environments.iter().flatten().map(|environment| environment.python.clone());
        let mut pythons: Vec<PathBuf> = named.chain(made).collect();
        pythons.dedup();
        Ok(Self {
            environments: environments.iter().map(runner).collect(),
            environment_keys: environments
                .iter()
                .map(|environment| {
                    environment.as_ref().map_or_else(|_| String::new(), |known| known.key.clone())
                })
                .collect(),
            environment_notes: environments
                .iter()
                .map(|environment| {
                    environment.as_ref().map_or_else(|_| Vec::new(), |known| known.notes.clone())
                })
                .collect(),
            commands: commands
                .iter()
                .map(|command| runner::command::runner(&command.program, &request.config.folder, threads))
                .map(|runner| {
                    let command = runner.command.clone();
                    observed(Box::new(runner), &command)
                })
                .collect(),
            candle: boxed(runner::candle::runner(threads, &pythons, request.cache).into_diagnostic()?),
            upstream: boxed(runner::candle_transformers::runner(threads).into_diagnostic()?),
            threads,
            fingerprint,
        })
    }

    /// The runner of a cell.
    ///
    /// # Errors
    /// Its environment could not be made.
    pub(super) fn of(&self, cell: &CellPlan) -> Result<&dyn Runner, NoResult> {
        let missing =
            || NoResult::failed(FailureKind::Environment, "the plan names no environment or command");
        match cell.variant.runner {
            variant::Runner::Transformers => {
                let index = cell.environment.ok_or_else(missing)?;
                self.environments[index].as_ref().map(AsRef::as_ref).map_err(Clone::clone)
            }
            variant::Runner::Candle => Ok(self.candle.as_ref()),
            variant::Runner::CandleTransformers => Ok(self.upstream.as_ref()),
            variant::Runner::Command => {
                let index = cell.command.ok_or_else(missing)?;
                Ok(self.commands[index].as_ref())
            }
        }
    }
}
