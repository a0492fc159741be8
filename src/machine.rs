//! The machine and the tools of a run, as `environment.json` keeps them.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// What a run ran on. Times are comparable only between equal [`Machine::fingerprint`]s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Physical cores.
    pub cores: usize,
    /// Hardware threads.
    pub hardware_threads: usize,
    /// Installed memory, bytes.
    pub memory_bytes: u64,
    /// Operating system with version, and kernel.
    pub system: String,
    /// GPU names and drivers, one an entry; empty without a GPU.
    pub gpus: Vec<String>,
    /// tfcheck's version.
    pub tfcheck: String,
    /// The compiler that built tfcheck.
    pub rustc: String,
    /// Commit of the folder that tfcheck was started in, `-dirty` when it has changes; absent outside git.
    pub git: Option<String>,
}

impl Machine {
    /// Looks at this machine.
    pub fn detect() -> Self {
        let system = look(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
        let cpus = system.as_ref().map(System::cpus).unwrap_or_default();
        Self {
            cpu: cpus.first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default(),
            cores: physical_cores(),
            hardware_threads: cpus.len(),
            memory_bytes: memory_bytes(),
            system: format!(
                "{}, kernel {}",
                System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned()),
                System::kernel_version().unwrap_or_else(|_| "unknown".to_owned())
            ),
            gpus: gpus(),
            tfcheck: env!("CARGO_PKG_VERSION").to_owned(),
            rustc: env!("TFCHECK_RUSTC").to_owned(),
            git: git_state(Path::new(".")),
        }
    }

    /// Digest of what times depend on: processor, cores, memory and GPU.
    pub fn fingerprint(&self) -> String {
        let parts = (&self.cpu, self.cores, self.hardware_threads, self.memory_bytes >> 30, &self.gpus);
        hex(&Sha256::digest(format!("{parts:?}")))[..16].to_owned()
    }
}

/// Physical cores, or hardware threads where the system does not tell them apart.
pub fn physical_cores() -> usize {
    System::physical_core_count()
        .or_else(|_| std::thread::available_parallelism().map(usize::from))
        .unwrap_or(1)
}

/// Installed memory in bytes; 0 where the system does not tell.
pub fn memory_bytes() -> u64 {
    look(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything()))
        .map_or(0, |system| system.total_memory())
}

/// What the system tells of `what`; nothing where sysinfo does not know the system.
fn look(what: RefreshKind) -> Option<System> {
    System::new_with_specifics(what).ok()
}

/// What `auto` means on this machine: the first GPU when there is one and this build can use it, else the CPU.
pub fn auto_device() -> &'static str {
    if cfg!(feature = "cuda") && !gpus().is_empty() { "cuda:0" } else { "cpu" }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// What the NVIDIA driver lists; its absence means no GPU that tfcheck can use.
fn gpus() -> Vec<String> {
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    lines("nvidia-smi", &query).unwrap_or_default()
}

fn git_state(folder: &Path) -> Option<String> {
    let folder = folder.to_str()?;
    let head = lines("git", &["-C", folder, "rev-parse", "HEAD"])?.into_iter().next()?;
    let changes = lines("git", &["-C", folder, "status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { head } else { format!("{head}-dirty") })
}

/// A program's output by lines, when it exists and succeeds.
fn lines(program: &str, arguments: &[&str]) -> Option<Vec<String>> {
    let output = Command::new(program).args(arguments).stdin(std::process::Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_follows_the_processor_and_not_the_commit() {
        let machine = Machine::detect();
        let moved = Machine { git: Some("0123".into()), tfcheck: "9.9.9".into(), ..machine.clone() };
        let other = Machine { cpu: "another processor".into(), ..machine.clone() };
        assert_eq!(machine.fingerprint(), moved.fingerprint());
        assert_ne!(machine.fingerprint(), other.fingerprint());
        assert!(machine.cores >= 1 && machine.memory_bytes > 0);
    }
}
