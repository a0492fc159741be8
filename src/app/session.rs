//! What every command that runs cells has at hand: the stop flag, the progress display and the cache.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use miette::{IntoDiagnostic, Result};

use crate::commands::run::RunRequest;
use crate::execute::progress::Progress;
use crate::spec::config::Config;
use crate::spec::plan::Plan;

/// The surroundings of a command.
pub(super) struct Session {
    pub(super) stop: Arc<AtomicBool>,
    pub(super) progress: Progress,
    pub(super) cache: PathBuf,
}

impl Session {
    /// From here on, signals raise the stop flag.
    pub(super) fn open(progress: Progress) -> Result<Self> {
        Ok(Self { stop: stop_on_signals()?, progress, cache: cache_folder()? })
    }

    /// A run of `plan` that keeps environments as they are and localises at its end.
    pub(super) fn request<'a>(&'a self, config: &'a Config, text: &'a str, plan: &'a Plan) -> RunRequest<'a> {
        RunRequest {
            config,
            text,
            plan,
            cache: &self.cache,
            clean: false,
            localize: true,
            stop: &self.stop,
            progress: &self.progress,
            turn: None,
            sharing: None,
        }
    }
}

/// Where tfcheck keeps environments, imports and the bridge: `TFCHECK_CACHE`, else the user's cache folder.
///
/// # Errors
/// When neither is known.
pub fn cache_folder() -> Result<PathBuf> {
    std::env::var_os("TFCHECK_CACHE")
        .map(PathBuf::from)
        .or_else(|| dirs::cache_dir().map(|folder| folder.join("tfcheck")))
        .ok_or_else(|| {
            miette::miette!(help = "set TFCHECK_CACHE to a folder", "the user's cache folder is unknown")
        })
}

/// The signals that this process was started to ignore, as `nohup` does with SIGHUP: bit n-1 for signal n. 0 where the system
/// does not tell.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// A flag that Ctrl-C, a request to terminate and a lost terminal raise; a second one ends tfcheck at once.
pub(super) fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    reference::heed(&stop);
    let ignored = ignored_signals();
    for signal in
        [SIGINT, SIGTERM, SIGHUP, SIGQUIT].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0)
    {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone()).into_diagnostic()?;
        signal_hook::flag::register(signal, stop.clone()).into_diagnostic()?;
    }
    Ok(stop)
}
