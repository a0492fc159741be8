//! Matrix products of the emulated device, in F32.

#![expect(unsafe_code, reason = "operands by address")]

use half::{bf16, f16};

use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::MatMul;

/// `out = alpha * xs @ weight^T + bias + beta * out`.
///
/// # Safety
/// The addresses hold operands of the shapes and types in [`MatMul`]; `bias` is 0 for none.
pub(super) unsafe fn matmul(spec: &MatMul, xs: u64, weight: u64, bias: u64, out: u64) {
    let &MatMul { m, n, k, xs_row, out_row, dtype, out_dtype, alpha, beta } = spec;
    // SAFETY: all reads and writes stay inside the shapes.
    unsafe {
        let rows: Vec<f32> =
            (0..m).flat_map(|i| (0..k).map(move |j| read(dtype, xs, i * xs_row + j))).collect();
        let weights: Vec<f32> = (0..n * k).map(|i| read(dtype, weight, i)).collect();
        let mut sums = vec![0.0_f32; m * n];
        gemm::gemm(
            m,
            n,
            k,
            sums.as_mut_ptr(),
            1,
            n as isize,
            false,
            rows.as_ptr(),
            1,
            k as isize,
            weights.as_ptr(),
            k as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
        for i in 0..m {
            for j in 0..n {
                let at = i * out_row + j;
                let mut y = alpha * sums[i * n + j];
                if bias != 0 {
                    y += read(out_dtype, bias, j);
                }
                if beta.abs() > 0.0 {
                    y += beta * read(out_dtype, out, at);
                }
                write(out_dtype, out, at, y);
            }
        }
    }
}

/// # Safety
/// `address` points to more than `i` elements of type `dtype`.
unsafe fn read(dtype: Dtype, address: u64, i: usize) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        match dtype {
            Dtype::F32 => *(address as *const f32).add(i),
            Dtype::Bf16 => (*(address as *const bf16).add(i)).to_f32(),
            Dtype::F16 => (*(address as *const f16).add(i)).to_f32(),
        }
    }
}

/// # Safety
/// `address` points to more than `i` elements of type `dtype`.
unsafe fn write(dtype: Dtype, address: u64, i: usize, value: f32) {
    // SAFETY: the caller's contract.
    unsafe {
        match dtype {
            Dtype::F32 => *(address as *mut f32).add(i) = value,
            Dtype::Bf16 => *(address as *mut bf16).add(i) = bf16::from_f32(value),
            Dtype::F16 => *(address as *mut f16).add(i) = f16::from_f32(value),
        }
    }
}
