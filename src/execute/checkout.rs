//! A worker of candle-transformers' ports from another checkout of candle, so that a change there can be judged.
//!
//! The adapters are compiled against that checkout: a small generated package depends on the crate `tfcheck-ports` and
//! replaces the crates of candle by the checkout's. Its `Cargo.lock` starts as tfcheck's own, so that every other
//! dependency is the same, and its target folder is in the cache, so that a later build compiles what changed.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use bounds::limits::{CONFIG_BYTES, LINE, PROGRAM_SECONDS};
use miette::{Context, IntoDiagnostic, Result};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::progress::Progress;
use crate::spec::machine::hex;

/// The crate that is judged.
const JUDGED: &str = "candle-transformers";
/// The crates of candle that a checkout of the whole workspace replaces as well.
const BELOW: [&str; 2] = ["candle-core", "candle-nn"];
/// The generated package and its program.
const PACKAGE: &str = "tfcheck-checkout";
/// Lines of cargo's output that an error keeps.
const TAIL: usize = 40;

/// A checkout of candle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkout {
    /// The crate candle-transformers.
    folder: PathBuf,
    /// Folders that replace crates of candle, by the crate's name; the judged crate first.
    replaced: Vec<(&'static str, PathBuf)>,
    /// Its version, its folder, and its git commit if it has one.
    pub label: String,
}

impl Checkout {
    /// Finds candle-transformers at `path`: a checkout of candle's workspace, or the folder of the crate alone.
    ///
    /// # Errors
    /// There is no such crate, or its version is not one that the adapters were written for.
    pub fn at(path: &Path) -> Result<Self> {
        let path = fs::canonicalize(path).into_diagnostic().wrap_err_with(|| path.display().to_string())?;
        let nested = path.join(JUDGED);
        let folder = if nested.join("Cargo.toml").is_file() { nested } else { path.clone() };
        let manifest = manifest(&folder)?.filter(|manifest| name(manifest) == Some(JUDGED));
        let manifest = manifest.ok_or_else(|| {
            miette::miette!(
                help = "give a checkout of candle, or the folder of its crate candle-transformers",
                "{} is not the crate {JUDGED}",
                path.display()
            )
        })?;
        // A crate of a workspace takes candle-core from there, so the adapters must as well.
        let root = folder.parent().unwrap_or(&folder).to_owned();
        let is_member = manifest.get("dependencies").and_then(Value::as_table).is_some_and(|dependencies| {
            dependencies.values().any(|value| value.get("workspace").is_some() || value.get("path").is_some())
        });
        let version = match manifest.get("package").and_then(|package| package.get("version")) {
            Some(Value::String(version)) => version.clone(),
            _ => inherited_version(&root)?.unwrap_or_default(),
        };
        check_version(&version)?;
        let mut replaced = vec![(JUDGED, folder.clone())];
        if is_member {
            replaced.extend(BELOW.map(|name| (name, root.join(name))));
        }
        if let Some((name, missing)) = replaced.iter().find(|(_, at)| !at.join("Cargo.toml").is_file()) {
            miette::bail!("the checkout has no crate {name} at {}", missing.display());
        }
        let commit = commit(&folder).map(|commit| format!(", commit {commit}")).unwrap_or_default();
        let label = format!("{version} of {}{commit}", path.display());
        Ok(Self { folder, replaced, label })
    }

    /// Builds the worker and returns the program. It stays as it is when the checkout changes later, so that a run can be
    /// resumed.
    ///
    /// # Errors
    /// cargo or the sources of the adapters are missing, or the checkout does not compile with them.
    pub fn build(&self, cache: &Path, stop: &AtomicBool, progress: &Progress) -> Result<PathBuf> {
        let ports = adapters()?;
        let place = cache.join("checkouts");
        let key = hex(&Sha256::digest(format!("{:?}\0{}", self.replaced, ports.display())));
        let package = place.join(&key[..16]);
        self.write_package(&package, &ports)?;
        progress.line(&format!(
            "building the adapters with {JUDGED} {} (minutes at first, less when only the checkout changed)",
            self.label
        ));
        let target = place.join("target");
        compile(&package, &target, stop, progress)?;
        let lock = bounds::file::read_text(&package.join("Cargo.lock"), CONFIG_BYTES).into_diagnostic()?;
        miette::ensure!(
            !lock.contains("[[patch.unused]]"),
            "cargo does not take {} for the crate that the adapters need",
            self.folder.display()
        );
        let built = target.join("release").join(PACKAGE);
        let bytes = fs::read(&built).into_diagnostic().wrap_err_with(|| built.display().to_string())?;
        let kept = package.join(&hex(&Sha256::digest(&bytes))[..16]).join(JUDGED);
        if !kept.is_file() {
            fs::create_dir_all(kept.parent().unwrap_or(&package)).into_diagnostic()?;
            fs::copy(&built, &kept).into_diagnostic().wrap_err_with(|| kept.display().to_string())?;
        }
        Ok(kept)
    }

    /// Writes the generated package. Files that are already right keep their time, so that cargo has nothing to do.
    fn write_package(&self, package: &Path, ports: &Path) -> Result<()> {
        fs::create_dir_all(package.join("src")).into_diagnostic().wrap_err("the cache")?;
        let lock = bounds::file::read_text(&ports.join("../Cargo.lock"), CONFIG_BYTES);
        let first = package.join("Cargo.lock");
        if let (false, Ok(lock)) = (first.exists(), lock) {
            fs::write(&first, lock).into_diagnostic()?;
        }
        let files = [("Cargo.toml", self.manifest(ports)), ("src/main.rs", self.program())];
        for (name, text) in files {
            let path = package.join(name);
            if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
                fs::write(&path, text).into_diagnostic().wrap_err_with(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    /// The generated package's manifest.
    fn manifest(&self, ports: &Path) -> String {
        let quoted = |path: &Path| Value::from(path.to_string_lossy().into_owned()).to_string();
        let mut text = format!(
            "# Generated by `tfcheck scoreboard --crate PATH`.\n[package]\nname = \"{PACKAGE}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
             publish = false\n\n[dependencies]\ntfcheck-ports = {{ path = {} }}\n\n[patch.crates-io]\n",
            quoted(ports)
        );
        for (name, folder) in &self.replaced {
            let _ = writeln!(text, "{name} = {{ path = {} }}", quoted(folder));
        }
        text.push_str("\n[profile.release]\ndebug = false\nstrip = true\n\n[workspace]\n");
        text
    }

    /// The generated package's program.
    fn program(&self) -> String {
        format!(
            "//! Generated by `tfcheck scoreboard --crate PATH`.\n\nfn main() -> std::process::ExitCode {{\n    ports::serve({:?})\n}}\n",
            self.label
        )
    }
}

/// The sources of the adapters: those that this program was compiled from.
fn adapters() -> Result<PathBuf> {
    let ports = Path::new(env!("CARGO_MANIFEST_DIR")).join("ports");
    if ports.join("Cargo.toml").is_file() {
        return Ok(ports);
    }
    Err(miette::miette!(
        help = "use a tfcheck that was built in a clone of its repository, and keep the clone",
        "the adapters are compiled against the checkout, and their sources are not at {}",
        ports.display()
    ))
}

fn manifest(folder: &Path) -> Result<Option<Table>> {
    let path = folder.join("Cargo.toml");
    if !path.is_file() {
        return Ok(None);
    }
    let text = bounds::file::read_text(&path, CONFIG_BYTES).into_diagnostic();
    let parsed = text.and_then(|text| toml::from_str(&text).into_diagnostic());
    parsed.map(Some).wrap_err_with(|| path.display().to_string())
}

fn name(manifest: &Table) -> Option<&str> {
    manifest.get("package")?.get("name")?.as_str()
}

fn inherited_version(root: &Path) -> Result<Option<String>> {
    let of = |root: Table| Some(root.get("workspace")?.get("package")?.get("version")?.as_str()?.to_owned());
    Ok(manifest(root)?.and_then(of))
}

/// Refuses a version that cargo would not take for the one that the adapters require.
fn check_version(version: &str) -> Result<()> {
    let needed = super::worker::CANDLE_TRANSFORMERS;
    let numbers = |text: &str| -> Option<Vec<u64>> {
        text.split('+').next()?.split('.').map(|part| part.parse().ok()).collect()
    };
    let (found, least) = (numbers(version).unwrap_or_default(), numbers(needed).unwrap_or_default());
    // Before 1.0, the second number changes when something that works may stop working.
    let is_compatible = found.len() == 3 && found[..2] == least[..2] && found[2] >= least[2];
    if is_compatible {
        return Ok(());
    }
    Err(miette::miette!(
        help =
            format!("in a scratch copy, set the version to {needed} if the ports' functions did not change"),
        "the adapters are written for candle-transformers {needed}, and this is `{version}`"
    ))
}

/// The commit of a folder that git tracks, and whether its files differ from it.
fn commit(folder: &Path) -> Option<String> {
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        let limit = Duration::from_secs(PROGRAM_SECONDS.most);
        let output = reference::output(git.arg("-C").arg(folder).args(arguments), limit).ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    git(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
    let head = git(&["rev-parse", "--short=12", "HEAD"])?;
    let is_changed = git(&["status", "--porcelain"]).is_some_and(|changes| !changes.is_empty());
    Some(if is_changed { format!("{head} with changes") } else { head })
}

/// Runs cargo, and shows what it compiles.
fn compile(package: &Path, target: &Path, stop: &AtomicBool, progress: &Progress) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--release", "--color", "never", "--target-dir"]).arg(target);
    cargo.current_dir(package).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = cargo.spawn().map_err(|error| {
        miette::miette!(help = "install Rust, which brings cargo", "cargo does not start: {error}")
    })?;
    let (sender, lines) = channel();
    if let Some(stderr) = child.stderr.take() {
        std::thread::spawn(move || {
            let lines = BufReader::new(stderr).split(b'\n').map_while(Result::ok);
            lines.for_each(|line| drop(sender.send(String::from_utf8_lossy(&line).into_owned())));
        });
    }
    let task = progress.task("cargo build", 0);
    let mut tail: Vec<String> = Vec::new();
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(line) => {
                let line = bounds::shown(line.trim_end(), LINE.most).into_owned();
                task.doing(line.trim());
                tail.push(line);
                tail.drain(..tail.len().saturating_sub(TAIL));
            }
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                let _ = child.kill();
                let _ = child.wait();
                miette::bail!("interrupted while cargo compiled the adapters");
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().into_diagnostic()?;
    miette::ensure!(
        status.success(),
        help = "the adapters call the ports as the examples of candle-transformers do; a port whose functions changed needs its adapter changed",
        "the adapters do not compile with this checkout:\n{}",
        tail.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests;
