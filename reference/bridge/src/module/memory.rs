//! Peak memory of the worker.

use pyo3::prelude::*;

/// Largest resident set of this process on the CPU, or largest allocation on a CUDA device, in bytes.
pub(super) fn peak_bytes(torch: &Bound<'_, PyAny>, device: &str) -> PyResult<Option<u64>> {
    if device.starts_with("cuda") {
        let cuda = torch.getattr("cuda")?;
        return Ok(Some(cuda.call_method1("max_memory_allocated", (device,))?.extract()?));
    }
    Ok(std::fs::read_to_string("/proc/self/status").ok().and_then(|status| high_water_mark(&status)))
}

/// `VmHWM:     1234 kB`, see proc_pid_status(5).
fn high_water_mark(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
