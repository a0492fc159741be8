//! The machine and the tools of a run, stored in `environment.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use bounds::limits::PROGRAM_SECONDS;
use models::cuda::driver::{Missing, Needed, device_count, installed};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// The machine of a run. Times are comparable only if [`Machine::fingerprint`] is equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Processor model.
    pub cpu: String,
    /// Physical cores.
    pub cores: usize,
    /// Hardware threads.
    pub hardware_threads: usize,
    /// Installed memory in bytes.
    pub memory_bytes: u64,
    /// Operating system with version, and kernel.
    pub system: String,
    /// Name and driver of each GPU; empty without a GPU.
    pub gpus: Vec<String>,
    /// What `nvidia-smi` reports for each GPU.
    #[serde(default)]
    pub gpu_details: Vec<Gpu>,
    /// Versions of the CUDA libraries, or why one is missing; empty without a GPU.
    #[serde(default)]
    pub cuda: BTreeMap<String, String>,
    /// tfcheck's version.
    pub tfcheck: String,
    /// The compiler that built tfcheck.
    pub rustc: String,
    /// Git commit of the working directory, with `-dirty` if it has changes; `None` outside a git repository.
    pub git: Option<String>,
}

/// One GPU, with values and units as `nvidia-smi` prints them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Model.
    pub name: String,
    /// Memory, `81559 MiB`.
    pub memory: String,
    /// The driver's version.
    pub driver: String,
    /// Compute capability, `9.0`.
    pub compute_capability: String,
    /// Current and maximum clock of the multiprocessors, `345 MHz of 1980 MHz`.
    pub clock: String,
    /// Current and maximum clock of the memory.
    pub memory_clock: String,
    /// Power limit, `700.00 W`.
    pub power_limit: String,
}

impl Gpu {
    const QUERY: &str = "name,memory.total,driver_version,compute_cap,clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem,power.limit";

    /// Parses one line of `nvidia-smi --query-gpu --format=csv,noheader`.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [name, memory, driver, capability, clock, most, memory_clock, most_memory, power] = fields[..]
        else {
            return None;
        };
        Some(Self {
            name: name.to_owned(),
            memory: memory.to_owned(),
            driver: driver.to_owned(),
            compute_capability: capability.to_owned(),
            clock: format!("{clock} of {most}"),
            memory_clock: format!("{memory_clock} of {most_memory}"),
            power_limit: power.to_owned(),
        })
    }
}

impl Machine {
    /// Reads the properties of this machine.
    pub fn detect() -> Self {
        let gpu_details = gpus();
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
            gpus: gpu_details.iter().map(|gpu| format!("{}, {}", gpu.name, gpu.driver)).collect(),
            cuda: if gpu_details.is_empty() { BTreeMap::new() } else { cuda_versions(&[]) },
            gpu_details,
            tfcheck: env!("CARGO_PKG_VERSION").to_owned(),
            rustc: env!("TFCHECK_RUSTC").to_owned(),
            git: git_state(Path::new(".")),
        }
    }

    /// Digest of the properties that affect times: processor, cores, memory and GPUs.
    pub fn fingerprint(&self) -> String {
        let parts = (&self.cpu, self.cores, self.hardware_threads, self.memory_bytes >> 30, &self.gpus);
        hex(&Sha256::digest(format!("{parts:?}")))[..16].to_owned()
    }
}

/// Number of physical cores; of hardware threads if the system does not distinguish them.
pub fn physical_cores() -> usize {
    System::physical_core_count()
        .or_else(|_| std::thread::available_parallelism().map(usize::from))
        .unwrap_or(1)
}

/// Installed memory in bytes; 0 if the system does not report it.
pub fn memory_bytes() -> u64 {
    look(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything()))
        .map_or(0, |system| system.total_memory())
}

/// The system's properties in `what`; `None` on systems that sysinfo does not support.
fn look(what: RefreshKind) -> Option<System> {
    System::new_with_specifics(what).ok()
}

/// The device that `auto` selects on this machine: the first GPU if there is one, otherwise the CPU.
pub fn auto_device() -> &'static str {
    auto().0
}

/// [`auto_device`] and the reason for it.
pub fn auto() -> &'static (&'static str, String) {
    static AUTO: OnceLock<(&str, String)> = OnceLock::new();
    AUTO.get_or_init(|| match device_count() {
        Ok(0) => ("cpu", "the driver finds no GPU".to_owned()),
        Ok(1) => ("cuda:0", "the driver finds a GPU".to_owned()),
        Ok(found) => ("cuda:0", format!("the driver finds {found} GPUs, of which this is the first")),
        Err(error) => ("cpu", error.to_string()),
    })
}

/// Versions of the CUDA libraries, or why one is missing, by name.
pub fn cuda_versions(pythons: &[PathBuf]) -> BTreeMap<String, String> {
    let name = |library| match library {
        Needed::Driver => "driver",
        Needed::Nvrtc => "nvrtc",
        Needed::CublasLt => "cublaslt",
    };
    let text = |version: Result<String, Missing>| version.unwrap_or_else(|missing| missing.to_string());
    installed(pythons)
        .into_iter()
        .map(|(library, version)| (name(library).to_owned(), text(version)))
        .collect()
}

/// Bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// The GPUs that `nvidia-smi` lists; empty if it is missing or fails.
pub fn gpus() -> Vec<Gpu> {
    let query = format!("--query-gpu={}", Gpu::QUERY);
    let listed = lines("nvidia-smi", &[&query, "--format=csv,noheader"]).unwrap_or_default();
    listed.iter().filter_map(|line| Gpu::parse(line)).collect()
}

fn git_state(folder: &Path) -> Option<String> {
    let folder = folder.to_str()?;
    let head = lines("git", &["-C", folder, "rev-parse", "HEAD"])?.into_iter().next()?;
    let changes = lines("git", &["-C", folder, "status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { head } else { format!("{head}-dirty") })
}

/// Lines of a program's output; `None` if it does not exist, fails or does not answer in time.
fn lines(program: &str, arguments: &[&str]) -> Option<Vec<String>> {
    let limit = Duration::from_secs(PROGRAM_SECONDS.most);
    let output = reference::output(Command::new(program).args(arguments), limit).ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_depends_on_the_processor_and_not_on_the_commit() {
        let machine = Machine::detect();
        let moved = Machine { git: Some("0123".into()), tfcheck: "9.9.9".into(), ..machine.clone() };
        let other = Machine { cpu: "another processor".into(), ..machine.clone() };
        assert_eq!(machine.fingerprint(), moved.fingerprint());
        assert_ne!(machine.fingerprint(), other.fingerprint());
        assert!(machine.cores >= 1 && machine.memory_bytes > 0);
    }

    #[test]
    fn a_gpu_is_parsed_from_a_line_of_nvidia_smi() {
        let line = "NVIDIA H100 80GB HBM3, 81559 MiB, 580.159.04, 9.0, 345 MHz, 1980 MHz, 2619 MHz, 2619 MHz, 700.00 W";
        let gpu = Gpu::parse(line).unwrap();
        assert_eq!(gpu.clock, "345 MHz of 1980 MHz");
        assert_eq!((gpu.memory.as_str(), gpu.compute_capability.as_str()), ("81559 MiB", "9.0"));
        assert_eq!(Gpu::parse("NVIDIA-SMI has failed because it couldn't communicate with the driver"), None);
    }

    #[test]
    fn auto_is_the_cpu_without_a_gpu_and_gives_the_reason() {
        let (device, reason) = auto();
        assert_eq!(*device, auto_device());
        assert!(!reason.is_empty());
        if gpus().is_empty() && !Path::new("/dev/nvidia0").exists() {
            assert_eq!(*device, "cpu", "{reason}");
            assert!(
                reason.contains("libcuda") || reason.contains("no GPU") || reason.contains("CUDA"),
                "{reason}"
            );
        }
    }
}
