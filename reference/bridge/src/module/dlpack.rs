//! Reads a tensor's memory in place through DLPack (`dlpack.h` 0.8, unversioned capsule).
#![expect(unsafe_code, reason = "DLPack is a C structure behind a pointer")]

use std::ffi::c_void;
use std::slice;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

#[repr(C)]
struct Device {
    kind: i32,
    index: i32,
}

#[repr(C)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// `DLTensor`, the first field of `DLManagedTensor`; the other fields are used by the capsule only.
#[repr(C)]
struct Tensor {
    data: *const c_void,
    device: Device,
    ndim: i32,
    dtype: DataType,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

const CPU: i32 = 1;
const FLOAT: u8 = 2;

/// Calls `use_it` with the shape and the bytes of `tensor`: contiguous f32 or f64 on the CPU, detached.
pub(super) fn with_bytes<T>(
    tensor: &Bound<'_, PyAny>,
    use_it: impl FnOnce(&[usize], &[u8]) -> T,
) -> PyResult<T> {
    let refuse = |reason: &str| PyValueError::new_err(format!("a tensor's memory: {reason}"));
    let capsule = tensor
        .call_method0("__dlpack__")?
        .cast_into::<PyCapsule>()
        .map_err(|_| refuse("__dlpack__ returned no capsule"))?;
    let pointer = capsule.pointer_checked(Some(c"dltensor"))?;
    // SAFETY: a capsule of this name holds a `DLManagedTensor`, which begins with a `DLTensor`, and owns
    // it until the capsule is dropped at the end of this function (its name stays "dltensor").
    let view = unsafe { pointer.cast::<Tensor>().as_ref() };
    if view.device.kind != CPU {
        return Err(refuse("it is not on the CPU"));
    }
    if view.dtype.code != FLOAT || !matches!(view.dtype.bits, 32 | 64) || view.dtype.lanes != 1 {
        return Err(refuse("it is neither f32 nor f64"));
    }
    let dimensions = usize::try_from(view.ndim).map_err(|_| refuse("negative rank"))?;
    let list = |pointer: *const i64| {
        if pointer.is_null() || dimensions == 0 {
            Vec::new()
        } else {
            // SAFETY: DLPack's `shape` and `strides` have `ndim` elements and live as long as the capsule.
            unsafe { slice::from_raw_parts(pointer, dimensions) }.to_vec()
        }
    };
    let shape = list(view.shape)
        .into_iter()
        .map(usize::try_from)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| refuse("a negative extent"))?;
    let strides = list(view.strides);
    let mut expected = 1;
    for (extent, stride) in shape.iter().zip(&strides).rev() {
        if *extent != 1 && *stride != expected {
            return Err(refuse("it is not contiguous"));
        }
        expected *= *extent as i64;
    }
    let length = shape.iter().product::<usize>() * usize::from(view.dtype.bits) / 8;
    if length == 0 {
        return Ok(use_it(&shape, &[]));
    }
    // SAFETY: the tensor is contiguous (checked above), on the CPU, and `length` bytes long from
    // `byte_offset`; nothing writes to it while the interpreter is held, which outlasts `bytes`.
    let bytes =
        unsafe { slice::from_raw_parts(view.data.cast::<u8>().add(view.byte_offset as usize), length) };
    Ok(use_it(&shape, bytes))
}
