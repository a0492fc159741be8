//! The command line, file descriptors and environment variables that a worker starts with.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt as _, FdMapping};

use crate::protocol::{REPLY_FD_VARIABLE, REQUEST_FD_VARIABLE};
use crate::{Environment, embedded};

/// File descriptor from which the worker reads requests.
const REQUEST_FD: i32 = 3;
/// File descriptor to which the worker writes replies.
const REPLY_FD: i32 = 4;

/// How to start a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The program and its arguments.
    pub command: Vec<OsString>,
    /// The working folder; this process's own if absent.
    pub folder: Option<PathBuf>,
    /// File to which stdout and stderr are appended.
    pub log: PathBuf,
    /// Compute threads.
    pub threads: usize,
    /// Variables that are set in addition to the filtered environment.
    pub variables: Vec<(OsString, OsString)>,
}

impl Launch {
    /// Launches any program that implements the protocol.
    ///
    /// When its request descriptor reaches end of file, tfcheck is gone, and the program must end itself and
    /// all processes that it started.
    pub fn program(command: Vec<OsString>, log: PathBuf, threads: usize) -> Self {
        Self { command, folder: None, log, threads, variables: Vec::new() }
    }

    /// Launches the bridge in `environment`; writes its module into `cache` if it is not there yet.
    ///
    /// # Errors
    /// When the cache cannot be written.
    pub fn transformers(
        environment: &Environment,
        cache: &Path,
        log: PathBuf,
        threads: usize,
    ) -> io::Result<Self> {
        Self::bridge(environment, cache, log, threads, "main")
    }

    /// Launches `function` of the bridge's module in `environment`.
    pub(super) fn bridge(
        environment: &Environment,
        cache: &Path,
        log: PathBuf,
        threads: usize,
        function: &str,
    ) -> io::Result<Self> {
        let folder = embedded::write_bridge(cache)?;
        let script = format!(
            "import sys; sys.path.insert(0, {}); import tfcheck_bridge; tfcheck_bridge.{function}()",
            python_string(&folder.to_string_lossy())
        );
        let command = vec![
            environment.python.clone().into_os_string(),
            // Isolated mode: PYTHON* variables and the user's site-packages are ignored.
            "-I".into(),
            // A crash in native code writes its Python stack to the log.
            "-X".into(),
            "faulthandler".into(),
            "-c".into(),
            script.into(),
        ];
        Ok(Self::program(command, log, threads))
    }

    pub(super) fn open_log(&self) -> io::Result<fs::File> {
        if let Some(folder) = self.log.parent() {
            fs::create_dir_all(folder)?;
        }
        bounds::file::append(&self.log)
    }

    /// The command with its descriptors and variables; compiler caches go below `scratch`.
    pub(super) fn command(&self, scratch: &Path, requests: OwnedFd, replies: OwnedFd) -> io::Result<Command> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a worker's command is empty"))?;
        let log = self.open_log()?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| passes(name)))
            .env(REQUEST_FD_VARIABLE, REQUEST_FD.to_string())
            .env(REPLY_FD_VARIABLE, REPLY_FD.to_string())
            .env("HF_HUB_OFFLINE", "1")
            .env("TRANSFORMERS_OFFLINE", "1")
            .env("TOKENIZERS_PARALLELISM", "false")
            .env("OMP_NUM_THREADS", self.threads.to_string())
            .env("MKL_NUM_THREADS", self.threads.to_string())
            // With the cache of an earlier run, compilation would appear faster than it is.
            .envs(compiler_caches(scratch))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let mapping = |parent_fd: OwnedFd, child_fd: i32| FdMapping { parent_fd, child_fd };
        command
            .fd_mappings(vec![mapping(requests, REQUEST_FD), mapping(replies, REPLY_FD)])
            .map_err(|error| io::Error::other(format!("the pipes collide: {error}")))?;
        Ok(command)
    }
}

/// The variables that let the compilers of a worker keep their caches below `folder`.
pub fn compiler_caches(folder: &Path) -> [(OsString, OsString); 2] {
    let cache = |variable: &str, name| (variable.into(), folder.join(name).into());
    [cache("TORCHINDUCTOR_CACHE_DIR", "inductor"), cache("TRITON_CACHE_DIR", "triton")]
}

/// Whether a worker inherits this variable. Old versions of transformers may be insecure, so workers get no
/// tokens or secrets, only what is needed to find programs, libraries and GPUs.
fn passes(name: &OsStr) -> bool {
    const NAMES: [&str; 14] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "TEMP",
        "TMP",
        "LD_LIBRARY_PATH",
        "CC",
        "CXX",
    ];
    const PREFIXES: [&str; 9] =
        ["LC_", "CUDA_", "NVIDIA_", "NCCL_", "CUBLAS_", "TORCH_", "TORCHINDUCTOR_", "TRITON_", "PYTORCH_"];
    let name = name.to_string_lossy();
    NAMES.contains(&name.as_ref())
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            && !["TOKEN", "SECRET", "PASSWORD", "KEY"].iter().any(|word| name.contains(word))
}

/// `text` as a Python string literal.
fn python_string(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_python_settings_do_not_reach_a_worker() {
        let check = |name: &str, expect: bool| assert_eq!(passes(name.as_ref()), expect, "{name}");
        check("PATH", true);
        check("CUDA_VISIBLE_DEVICES", true);
        check("LC_ALL", true);
        for name in [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "PYTHONPATH",
            "PYTHONHOME",
            "AWS_SECRET_ACCESS_KEY",
            "OMP_NUM_THREADS",
            "TORCH_HUB_TOKEN",
            "LD_PRELOAD",
        ] {
            check(name, false);
        }
    }

    #[test]
    fn a_folder_with_quotes_stays_one_python_string() {
        assert_eq!(python_string(r"/a'b\c"), r"'/a\'b\\c'");
    }
}
