//! The installed GPUs and libraries, and the errors when one is missing.

#![expect(unsafe_code, reason = "the driver is a C library")]

use std::path::PathBuf;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::libraries::{self, Missing, Needed};
use super::products::Products;
use super::{OLDEST, cubins, message};

/// Why a GPU cannot be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// A library is missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The device number is not below the number of devices.
    #[error("the driver finds {found} GPUs, so there is no cuda:{wanted}")]
    NoDevice {
        /// Devices found.
        found: usize,
        /// The requested device number.
        wanted: usize,
    },
    /// The device's compute capability is too old for the kernels.
    #[error("{name} has compute capability {}.{}, and the fused backend needs {}.{}", found[0], found[1], OLDEST[0], OLDEST[1])]
    TooOld {
        /// Model name of the device.
        name: String,
        /// Its compute capability.
        found: [u32; 2],
    },
    /// The driver or a library does not work.
    #[error("{0}")]
    Failed(String),
}

/// Number of GPUs that the driver finds, restricted by `CUDA_VISIBLE_DEVICES`.
///
/// # Errors
/// [`OpenError::Missing`] if there is no driver, [`OpenError::Failed`] if it does not start.
pub fn device_count() -> std::result::Result<usize, OpenError> {
    libraries::open(Needed::Driver, &[])?;
    let failed = |error: DriverError| OpenError::Failed(message("CUDA does not start", error));
    match result::init() {
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        started => started.map_err(failed)?,
    }
    Ok(CudaContext::device_count().map_err(failed)? as usize)
}

/// Versions of the libraries that the fused backend needs: the newest CUDA version that the driver supports, NVRTC's,
/// cuBLASLt's.
pub fn installed(pythons: &[PathBuf]) -> Vec<(Needed, std::result::Result<String, Missing>)> {
    let version = |library| {
        libraries::open(library, pythons)?;
        Ok(match library {
            Needed::Driver => driver_version().unwrap_or_else(|error| message("unknown", error)),
            Needed::Nvrtc => {
                cubins::version().map_or_else(|error| error.to_string(), |[a, b]| format!("{a}.{b}"))
            }
            Needed::CublasLt => cublaslt_version(Products::version()),
        })
    };
    Needed::ALL.into_iter().map(|library| (library, version(library))).collect()
}

/// The newest CUDA version that the driver supports, for example `13.0`.
fn driver_version() -> std::result::Result<String, DriverError> {
    let mut version = 0;
    // SAFETY: the pointer is valid for writes during the call.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// Properties of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Model name.
    pub name: String,
    /// Compute capability, for example `[9, 0]`.
    pub capability: [u32; 2],
    /// Number of multiprocessors.
    pub multiprocessors: usize,
    /// Memory in bytes.
    pub memory_bytes: usize,
    /// The highest clock of the multiprocessors in MHz.
    pub clock_mhz: u32,
    /// The highest clock of the memory in MHz.
    pub memory_clock_mhz: u32,
    /// The newest CUDA version that the driver supports, for example `13.0`.
    pub driver_cuda: String,
    /// NVRTC's version, for example `13.0`.
    pub nvrtc: String,
    /// cuBLASLt's version, for example `13.0.1`.
    pub cublaslt: String,
}

pub(super) fn describe(context: &CudaContext) -> std::result::Result<Description, OpenError> {
    let failed = |error| OpenError::Failed(message("what the GPU is", error));
    let attribute = |attribute| context.attribute(attribute).map(i32::cast_unsigned).map_err(failed);
    let [major, minor] = cubins::version().map_err(|error| OpenError::Failed(error.to_string()))?;
    let khz = |khz: u32| khz / 1000;
    Ok(Description {
        name: context.name().map_err(failed)?,
        capability: [
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ],
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
        memory_bytes: context.total_mem().map_err(failed)?,
        clock_mhz: khz(attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?),
        memory_clock_mhz: khz(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?),
        driver_cuda: driver_version().map_err(failed)?,
        nvrtc: format!("{major}.{minor}"),
        cublaslt: cublaslt_version(Products::version()),
    })
}

/// Formats 130001 as `13.0.1` and 120901 (CUDA 12) as `12.9.1`.
fn cublaslt_version(number: usize) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cublaslt_versions_are_formatted_with_dots() {
        assert_eq!(cublaslt_version(130_001), "13.0.1");
        assert_eq!(cublaslt_version(120_901), "12.9.1");
    }
}
