//! The pair of pipes that this process inherits from tfcheck.
#![expect(unsafe_code, reason = "descriptors arrive as bare numbers")]

use std::fs::File;
use std::os::fd::FromRawFd as _;

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use protocol::{REPLY_FD_VARIABLE, REQUEST_FD_VARIABLE};

/// Takes ownership of both pipes and makes them not inheritable by child processes.
pub(super) fn take(py: Python<'_>) -> PyResult<(File, File)> {
    let (requests, replies) = numbers()?;
    let os = py.import("os")?;
    for descriptor in [requests, replies] {
        // Fails if the descriptor is not open.
        os.call_method1("set_inheritable", (descriptor, false))?;
    }
    // SAFETY: both numbers are open descriptors (checked above) that tfcheck opened for this process, and
    // only `main` takes them, once; so each one gets exactly one owner.
    Ok(unsafe { (File::from_raw_fd(requests), File::from_raw_fd(replies)) })
}

/// The numbers of the descriptors for requests and replies.
pub(super) fn numbers() -> PyResult<(i32, i32)> {
    let (requests, replies) = (number(REQUEST_FD_VARIABLE)?, number(REPLY_FD_VARIABLE)?);
    if requests == replies {
        return Err(PyRuntimeError::new_err("requests and replies need a descriptor each"));
    }
    Ok((requests, replies))
}

fn number(variable: &str) -> PyResult<i32> {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|descriptor| *descriptor > 2)
        .ok_or_else(|| {
            PyRuntimeError::new_err(format!(
                "{variable} does not name a descriptor: this program is started by tfcheck"
            ))
        })
}
