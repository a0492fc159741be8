//! Where a native model computes: on a candle device, or on a GPU that the fused backend drives itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Device;
use models::cuda::driver::{Driver, Setting};
use models::cuda::{Emulator, Gpu, Order};
use reference::protocol::Failed;

use tfcheck_port::worker::{peak_resident_bytes, unsupported};

use super::failure::{model_failure, tensor_failure};

/// The device name that selects an emulated GPU.
pub(crate) const EMULATOR: &str = "emulator";

/// The device of a loaded model.
#[derive(Clone)]
pub(super) enum Place {
    /// candle's tensors: the CPU, or a GPU in a build with that feature.
    Candle(Device),
    /// The fused backend's own GPU.
    Gpu(Accelerator),
}

/// A GPU, or the emulator of one.
#[derive(Clone)]
pub(super) struct Accelerator {
    name: String,
    pub(super) gpu: Arc<dyn Gpu>,
    driver: Option<Arc<Driver>>,
}

impl Accelerator {
    /// Opens the device of this name, such as `cuda:0`.
    ///
    /// # Errors
    /// Unsupported, with the missing part, if there is no such GPU.
    pub(super) fn open(name: &str, setting: &Setting) -> Result<Self, Failed> {
        if name == EMULATOR {
            return Ok(Self { name: name.to_owned(), gpu: Emulator::start(Order::Forward), driver: None });
        }
        let number = number(name)?;
        let driver =
            Driver::open(number, setting).map_err(|error| unsupported(format!("{name}: {error}")))?;
        Ok(Self { name: name.to_owned(), gpu: driver.clone(), driver: Some(driver) })
    }

    /// Whether this is the device of this name.
    pub(super) fn is(&self, name: &str) -> bool {
        self.name == name
    }

    /// Versions of the libraries that compute on this GPU; empty for the emulator.
    pub(super) fn libraries(&self) -> BTreeMap<String, String> {
        let Some(driver) = &self.driver else { return BTreeMap::new() };
        let known = driver.description();
        [("cuda_driver", &known.driver_cuda), ("nvrtc", &known.nvrtc), ("cublaslt", &known.cublaslt)]
            .map(|(name, version)| (name.to_owned(), version.clone()))
            .into()
    }

    /// A note that explains how its numbers were made.
    pub(super) fn note(&self) -> String {
        match &self.driver {
            Some(driver) => format!(
                "on {}; TF32 is off: f32 matrix products are computed in f32 (torch's default); times are measured by GPU events from idle to idle",
                driver.description().name
            ),
            None => "on an emulated GPU; its times are not meaningful".to_owned(),
        }
    }
}

impl Place {
    /// Waits until all submitted work is done.
    pub(super) fn synchronize(&self) -> Result<(), Failed> {
        match self {
            Self::Candle(device) => device.synchronize().map_err(tensor_failure),
            Self::Gpu(accelerator) => accelerator.gpu.synchronize().map_err(model_failure),
        }
    }

    /// Nanoseconds that the device takes for the work that `body` submits, from idle to idle.
    pub(super) fn time(&self, body: &mut dyn FnMut() -> models::Result<()>) -> Result<u64, Failed> {
        if let Self::Gpu(Accelerator { driver: Some(driver), .. }) = self {
            return driver.time(body).map(|took| took.as_nanos() as u64).map_err(model_failure);
        }
        self.synchronize()?;
        let start = Instant::now();
        body().map_err(model_failure)?;
        self.synchronize()?;
        Ok(start.elapsed().as_nanos() as u64)
    }

    /// Peak memory in bytes: of a GPU by the driver's counter, otherwise the resident set of this process.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        match self {
            Self::Gpu(Accelerator { driver: Some(driver), .. }) => {
                driver.memory().ok().map(|memory| memory.peak)
            }
            _ => peak_resident_bytes(),
        }
    }

    /// The candle device of the tensors that a probe receives.
    pub(super) fn tensors(&self) -> Device {
        match self {
            Self::Candle(device) => device.clone(),
            Self::Gpu(_) => Device::Cpu,
        }
    }
}

/// The candle device of this name.
///
/// # Errors
/// Unsupported, with the reason, if there is no such device.
pub(super) fn device(name: &str) -> Result<Device, Failed> {
    if name == "cpu" {
        return Ok(Device::Cpu);
    }
    let number = number(name)?;
    if !cfg!(feature = "cuda") {
        return Err(unsupported(format!(
            "candle's own tensors on {name} need a tfcheck built with `--features cuda`; the fused backend does not"
        )));
    }
    Device::new_cuda(number).map_err(|error| unsupported(format!("{name}: {error}")))
}

fn number(name: &str) -> Result<usize, Failed> {
    let number = name.strip_prefix("cuda:").and_then(|number| number.parse().ok());
    number.ok_or_else(|| unsupported(format!("no such device: {name}")))
}

#[cfg(test)]
mod tests {
    use reference::protocol::FailedKind;

    use super::*;

    #[test]
    fn a_missing_device_is_unsupported_with_the_reason() {
        // No machine has so many.
        let Err(failed) = Accelerator::open("cuda:99", &Setting::default()) else {
            panic!("there is no such GPU")
        };
        assert_eq!(failed.kind, FailedKind::Unsupported);
        assert!(failed.message.starts_with("cuda:99: "), "{}", failed.message);
        let failed = device("cuda:99").unwrap_err();
        assert_eq!(failed.kind, FailedKind::Unsupported);
        assert!(failed.message.contains("cuda"), "{}", failed.message);
        assert_eq!(device("tpu").unwrap_err().message, "no such device: tpu");
    }

    #[test]
    fn the_emulated_gpu_opens_and_runs_a_timed_body() {
        let accelerator = Accelerator::open(EMULATOR, &Setting::default()).unwrap();
        assert!(accelerator.is(EMULATOR) && !accelerator.is("cuda:0"));
        let place = Place::Gpu(accelerator);
        let mut calls = 0;
        place
            .time(&mut || {
                calls += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(calls, 1);
    }
}
