//! Finds uv and runs it.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use bounds::limits::{IMPORT_SECONDS, LINES, PROBE_SECONDS};

use crate::Versions;
use crate::cache::Lock;
use crate::failure::{EnvironmentError, tail};
use crate::helper::{self, Running};

/// A uv program that ran `--version` successfully.
#[derive(Clone, Debug)]
pub(crate) struct Uv {
    program: PathBuf,
}

/// A uv command that failed.
#[derive(Debug)]
pub(crate) struct UvFailure {
    /// The end of what uv wrote to standard error.
    pub(crate) message: String,
}

impl Uv {
    /// Uses `$UV`, else uv on PATH, else the one in the cache, else installs one into the cache.
    pub(crate) fn find(cache: &Path, progress: &dyn Fn(&str)) -> Result<Self, EnvironmentError> {
        if let Some(named) = std::env::var_os("UV").filter(|value| !value.is_empty()) {
            let program = PathBuf::from(named);
            return if answers(&program) {
                Ok(Self { program })
            } else {
                Err(EnvironmentError::NoUv {
                    reason: format!("$UV names {}, which does not run", program.display()),
                })
            };
        }
        let own = own_folder(cache).join("bin/uv");
        for program in [PathBuf::from("uv"), own] {
            if answers(&program) {
                return Ok(Self { program });
            }
        }
        Self::bootstrap(cache, progress)
    }

    /// Installs uv's PyPI wheel into the cache; needs only `python3` and its pip.
    fn bootstrap(cache: &Path, progress: &dyn Fn(&str)) -> Result<Self, EnvironmentError> {
        let version = &Versions::known().uv;
        let folder = own_folder(cache);
        let program = folder.join("bin/uv");
        let _lock = Lock::take(cache, "uv", || {
            progress("waiting for another tfcheck that installs uv");
        })?;
        if answers(&program) {
            return Ok(Self { program });
        }
        progress(&format!("installing uv {version} into the cache"));
        // A killed bootstrap left a folder without a working uv; start over.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let make: [&OsStr; 3] = ["-m".as_ref(), "venv".as_ref(), folder.as_os_str()];
        bootstrap_step(Path::new("python3"), &make)?;
        let requirement = format!("uv=={version}");
        let install: [&OsStr; 6] = [
            "-m".as_ref(),
            "pip".as_ref(),
            "install".as_ref(),
            "--quiet".as_ref(),
            "--no-input".as_ref(),
            requirement.as_ref(),
        ];
        bootstrap_step(&folder.join("bin/python"), &install)?;
        if answers(&program) {
            Ok(Self { program })
        } else {
            Err(EnvironmentError::NoUv {
                reason: format!("the uv installed at {} does not run on this machine", program.display()),
            })
        }
    }

    /// Runs `uv <arguments>` in `folder`, passing the command as `$ uv …` and each line of its standard error to
    /// `progress`; returns standard output.
    pub(crate) fn run(
        &self,
        folder: &Path,
        arguments: &[&str],
        variables: &[(&str, &OsStr)],
        progress: &dyn Fn(&str),
    ) -> Result<String, UvFailure> {
        let failed = |message: String| UvFailure { message };
        progress(&format!("$ {} {}", self.program.display(), arguments.join(" ")));
        let mut child = Command::new(&self.program)
            .args(arguments)
            .args(["--color", "never", "--no-progress"])
            .current_dir(folder)
            .env_remove("VIRTUAL_ENV")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("{}: {error}", self.program.display())))?;
        let _running = Running::new(child.id(), false);
        let mut message = String::new();
        let mut output = String::new();
        // These commands print at most one path to stdout, so reading stdout after stderr cannot block on a
        // full pipe.
        if let Some(stderr) = child.stderr.take() {
            let mut stderr = BufReader::new(stderr);
            while let Some(line) = line_of(&mut stderr) {
                progress(line.trim());
                message.push_str(&line);
                message.push('\n');
                // The end tells why uv failed; packages that it builds may write any amount.
                if message.len() > 2 * LINES.most_usize() {
                    let from = message.ceil_char_boundary(message.len() - LINES.most_usize());
                    message.drain(..from);
                }
            }
        }
        if let Some(mut stdout) = child.stdout.take() {
            let _ = stdout.by_ref().take(LINES.most).read_to_string(&mut output);
            let _ = io::copy(&mut stdout, &mut io::sink());
        }
        let status = child.wait().map_err(|error| failed(error.to_string()))?;
        if status.success() { Ok(output) } else { Err(failed(with_status(message, status))) }
    }
}

/// The next line, of which the part beyond the limit of a line is dropped; `None` at the end.
fn line_of(pipe: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let read = pipe.by_ref().take(LINES.most).read_until(b'\n', &mut line).ok()?;
    if read == 0 {
        return None;
    }
    if line.last() != Some(&b'\n') {
        pipe.skip_until(b'\n').ok()?;
    }
    Some(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
}

fn own_folder(cache: &Path) -> PathBuf {
    cache.join("uv").join(&Versions::known().uv)
}

fn answers(program: &Path) -> bool {
    helper::output(Command::new(program).arg("--version"), Duration::from_secs(PROBE_SECONDS.most))
        .is_ok_and(|output| output.status.success() && output.stdout.starts_with(b"uv "))
}

/// uv's message, or its exit status if it was killed and wrote none.
fn with_status(message: String, status: ExitStatus) -> String {
    if message.trim().is_empty() { format!("uv ended with {status}") } else { message }
}

fn bootstrap_step(program: &Path, arguments: &[&OsStr]) -> Result<(), EnvironmentError> {
    let limit = Duration::from_secs(IMPORT_SECONDS.most);
    let output = helper::output(Command::new(program).args(arguments), limit).map_err(|error| {
        EnvironmentError::NoUv { reason: format!("{} did not install it: {error}", program.display()) }
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(EnvironmentError::NoUv {
        reason: format!(
            "installing it from PyPI failed: {}",
            tail(&String::from_utf8_lossy(&output.stderr), 6)
        ),
    })
}
