//! Measures how long the device works on a call.

use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;

/// Measures from an idle device to an idle device, by the CPU's clock or by CUDA events.
pub(super) enum Clock<'py> {
    Processor(Instant),
    Cuda { cuda: Bound<'py, PyAny>, device: String, begin: Bound<'py, PyAny>, end: Bound<'py, PyAny> },
}

impl<'py> Clock<'py> {
    /// Waits until `device` is idle and starts the clock.
    pub(super) fn start(torch: &Bound<'py, PyAny>, device: &str) -> PyResult<Self> {
        if !device.starts_with("cuda") {
            return Ok(Self::Processor(Instant::now()));
        }
        let cuda = torch.getattr("cuda")?;
        let keywords = PyDict::new(torch.py());
        keywords.set_item("enable_timing", true)?;
        let event = || cuda.call_method("Event", (), Some(&keywords));
        let (begin, end) = (event()?, event()?);
        cuda.call_method1("synchronize", (device,))?;
        record(&cuda, device, &begin)?;
        Ok(Self::Cuda { cuda, device: device.to_owned(), begin, end })
    }

    /// Waits until the device is idle and returns the time since the start.
    pub(super) fn stop(self) -> PyResult<Duration> {
        match self {
            Self::Processor(begun) => Ok(begun.elapsed()),
            Self::Cuda { cuda, device, begin, end } => {
                record(&cuda, &device, &end)?;
                cuda.call_method1("synchronize", (&device,))?;
                let ms: f64 = begin.call_method1("elapsed_time", (end,))?.extract()?;
                Ok(Duration::from_secs_f64(ms.max(0.0) / 1e3))
            }
        }
    }
}

/// Records the event on the current stream of `device`, which need not be the current device.
fn record(cuda: &Bound<'_, PyAny>, device: &str, event: &Bound<'_, PyAny>) -> PyResult<()> {
    event.call_method1("record", (cuda.call_method1("current_stream", (device,))?,))?;
    Ok(())
}
