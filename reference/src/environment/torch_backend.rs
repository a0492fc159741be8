//! The source of an environment's torch wheels.

use std::fmt;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::process::Command;
use std::str::FromStr;
use std::sync::mpsc;
use std::time::Duration;

use bounds::limits::PROGRAM_SECONDS;
use serde::{Deserialize, Serialize};

use crate::{Versions, helper};

/// Source of the torch wheels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TorchBackend {
    /// PyPI's wheels: on Linux a CUDA build that runs on the CPU too.
    Pypi,
    /// PyTorch's CPU wheels.
    Cpu,
    /// PyTorch's CUDA 13.0 wheels.
    Cu130,
    /// `cu130` if an NVIDIA GPU is found, else `cpu`; PyPI if PyTorch's index cannot be reached.
    #[default]
    Auto,
}

impl FromStr for TorchBackend {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pypi" => Ok(Self::Pypi),
            "cpu" => Ok(Self::Cpu),
            "cu130" => Ok(Self::Cu130),
            "auto" => Ok(Self::Auto),
            other => Err(format!("`{other}` is not a torch backend: pypi, cpu, cu130 or auto")),
        }
    }
}

impl fmt::Display for TorchBackend {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Pypi => "pypi",
            Self::Cpu => "cpu",
            Self::Cu130 => "cu130",
            Self::Auto => "auto",
        })
    }
}

/// Whether this machine has an NVIDIA GPU with a driver.
pub(super) fn gpu_found() -> bool {
    // Reading the driver's folder takes microseconds, nvidia-smi up to a second.
    Path::new("/proc/driver/nvidia/version").exists()
        || helper::output(Command::new("nvidia-smi").arg("-L"), Duration::from_secs(PROGRAM_SECONDS.most))
            .is_ok_and(|output| output.status.success() && output.stdout.starts_with(b"GPU"))
}

/// Whether the host of PyTorch's index accepts a connection within two seconds.
pub(super) fn pytorch_index_answers() -> bool {
    // Behind a proxy only uv can test the connection.
    if ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
    {
        return true;
    }
    let host = Versions::known()
        .pytorch_index
        .trim_start_matches("https://")
        .split('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let (sender, receiver) = mpsc::channel();
    // Name resolution has no time limit, so it runs on a thread that is abandoned if it hangs.
    std::thread::spawn(move || {
        let reached = (host.as_str(), 443)
            .to_socket_addrs()
            .ok()
            .into_iter()
            .flatten()
            .take(2)
            .any(|address| TcpStream::connect_timeout(&address, Duration::from_millis(900)).is_ok());
        let _ = sender.send(reached);
    });
    receiver.recv_timeout(Duration::from_secs(2)).unwrap_or(false)
}
