//! `environment.json`: the machine and software of a run. It is written before the first cell; only this file knows its
//! keys.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::spec::machine::Machine;
use compare::units::count;

/// The machine, the environments and the checkpoints of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EnvironmentRecord {
    /// [`super::SCHEMA_VERSION`] of the tfcheck that wrote it.
    pub schema_version: u32,
    /// The machine and the tools.
    pub machine: Machine,
    /// [`Machine::fingerprint`]: times are comparable only if it is equal.
    pub fingerprint: String,
    /// Compute threads of every worker.
    pub threads: usize,
    /// The device chosen for `auto`; absent if the config lists its devices.
    #[serde(default)]
    pub auto_device: Option<AutoDevice>,
    /// One per environment of the plan.
    #[serde(default)]
    pub environments: Vec<PythonEnvironment>,
    /// One per case.
    #[serde(default)]
    pub checkpoints: Vec<CheckpointRecord>,
}

/// The device chosen for `auto`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AutoDevice {
    /// `cpu`, `cuda:0`.
    pub device: String,
    /// Why it was chosen.
    pub reason: String,
}

/// The environment of one or more transformers versions, or why there is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PythonEnvironment {
    /// Names of the versions that run in it.
    pub versions: Vec<String>,
    /// Digest of the plan that it is built from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The packages that results depend on, as imported: name to version.
    #[serde(default)]
    pub installed: BTreeMap<String, String>,
    /// CUDA version that its torch was built for.
    #[serde(default)]
    pub torch_cuda: Option<String>,
    /// Every package of its lock: name to version.
    #[serde(default)]
    pub packages: BTreeMap<String, String>,
    /// Notes about the environment.
    #[serde(default)]
    pub notes: Vec<String>,
    /// Why it could not be created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The checkpoint of a case.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointRecord {
    /// The checkpoint's source, as shown to the user.
    pub name: String,
    /// `model_type` of its config.
    pub model_type: String,
    /// The resolved revision; absent if the checkpoint has none.
    #[serde(default)]
    pub revision: Option<String>,
    /// Digest of its files.
    pub digest: String,
}

impl EnvironmentRecord {
    /// Packages of each version's environment, name to version, in the order of the plan.
    pub fn packages(&self) -> Vec<(String, BTreeMap<String, String>)> {
        let made = self.environments.iter().filter(|environment| environment.error.is_none());
        made.flat_map(|environment| {
            environment.versions.iter().map(|version| (version.clone(), environment.packages.clone()))
        })
        .collect()
    }

    /// Label and text of each row of a table of the machine and the environments.
    pub fn rows(&self) -> Vec<(String, String)> {
        let machine = &self.machine;
        let gib = machine.memory_bytes as f64 / f64::from(1 << 30);
        let mut rows = vec![
            ("CPU".to_owned(), format!("{}, {}, {gib:.0} GiB", machine.cpu, count(machine.cores, "core"))),
            ("Threads".to_owned(), self.threads.to_string()),
            ("System".to_owned(), machine.system.clone()),
            ("tfcheck".to_owned(), format!("{}, {}", machine.tfcheck, machine.rustc)),
        ];
        for (index, gpu) in machine.gpus.iter().enumerate() {
            let details = machine.gpu_details.get(index).map(|known| {
                format!(", {}, clock {}, memory clock {}", known.memory, known.clock, known.memory_clock)
            });
            rows.push(("GPU".to_owned(), format!("{gpu}{}", details.unwrap_or_default())));
        }
        if !machine.cuda.is_empty() {
            let versions: Vec<String> =
                machine.cuda.iter().map(|(library, version)| format!("{library} {version}")).collect();
            rows.push(("CUDA".to_owned(), versions.join(", ")));
        }
        if let Some(AutoDevice { device, reason }) = &self.auto_device {
            rows.push(("Device".to_owned(), format!("{device}, taken for `auto`: {reason}")));
        }
        for environment in self.environments.iter().filter(|environment| environment.error.is_none()) {
            let packages = environment
                .installed
                .iter()
                .map(|(package, version)| format!("{package} {version}"))
                .chain(environment.torch_cuda.iter().map(|cuda| format!("torch's CUDA {cuda}")));
            rows.push((environment.versions.join(", "), packages.collect::<Vec<_>>().join(", ")));
        }
        rows
    }
}
