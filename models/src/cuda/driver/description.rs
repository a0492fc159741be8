//! Which GPUs and libraries there are, and why there may be none.

#![expect(unsafe_code, reason = "the driver is a C library")]

use std::path::PathBuf;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::libraries::{self, Missing, Needed};
use super::products::Products;
use super::{OLDEST, cubins, message};

/// Why there is no GPU to be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// A library is not there.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The driver finds fewer devices.
    #[error("the driver finds {found} GPUs, so there is no cuda:{wanted}")]
    NoDevice {
        /// Devices found.
        found: usize,
        /// The number asked for.
        wanted: usize,
    },
    /// The device is older than the kernels.
    #[error("{name} has compute capability {}.{}, and the fused backend needs {}.{}", found[0], found[1], OLDEST[0], OLDEST[1])]
    TooOld {
        /// The device.
        name: String,
        /// Its compute capability.
        found: [u32; 2],
    },
    /// The driver or a library does not work.
    #[error("{0}")]
    Failed(String),
}

/// GPUs that the driver finds; `CUDA_VISIBLE_DEVICES` hides some.
///
/// # Errors
/// [`OpenError::Missing`] where there is no driver, [`OpenError::Failed`] where it does not start.
pub fn device_count() -> std::result::Result<usize, OpenError> {
    libraries::open(Needed::Driver, &[])?;
    let failed = |error: DriverError| OpenError::Failed(message("CUDA does not start", error));
    match result::init() {
        Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NO_DEVICE => return Ok(0),
        started => started.map_err(failed)?,
    }
    Ok(CudaContext::device_count().map_err(failed)? as usize)
}

/// The versions of the libraries that the fused backend needs: of CUDA that the driver knows, of NVRTC, of cuBLASLt.
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

/// The newest CUDA that the driver knows, `13.0`.
fn driver_version() -> std::result::Result<String, DriverError> {
    let mut version = 0;
    // SAFETY: the place is written to before it returns.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its model.
    pub name: String,
    /// Its compute capability, `[9, 0]`.
    pub capability: [u32; 2],
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Its memory in bytes.
    pub memory_bytes: usize,
    /// The highest clock of the multiprocessors in MHz.
    pub clock_mhz: u32,
    /// The highest clock of the memory in MHz.
    pub memory_clock_mhz: u32,
    /// The newest CUDA that the driver knows, `13.0`.
    pub driver_cuda: String,
    /// NVRTC's version, `13.0`.
    pub nvrtc: String,
    /// cuBLASLt's version, `13.0.1`.
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

/// `13.0.1` of 130001; CUDA 12's are `12.9.1` of 120901.
fn cublaslt_version(number: usize) -> String {
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        assert_eq!(cublaslt_version(130_001), "13.0.1");
        assert_eq!(cublaslt_version(120_901), "12.9.1");
    }
}
