//! Device interface of the fused backend: memory, launches, products and CUDA graphs, all ordered by one stream.

#![expect(
    unsafe_code,
    reason = "device addresses are plain numbers; the safe types below keep them in bounds"
)]

use std::fmt::{self, Debug};
use std::sync::Arc;

use super::dtype::Dtype;
use super::kernel_id::KernelId;
use crate::error::{Error, Result};

/// Blocks, threads in a block and dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchShape {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, along x only.
    pub block: u32,
    /// Bytes of dynamic shared memory; above 48 KiB the driver must opt in (`MAX_DYNAMIC_SHARED_SIZE_BYTES`).
    pub shared: u32,
}

/// `out = alpha * xs @ weight^T + bias + beta * out`, rounded once. Sums are F32, or wider.
///
/// `xs: [m, k]` in rows of `xs_row` elements, `weight: [n, k]` row-major without gaps, both in `dtype`;
/// `out: [m, n]` in rows of `out_row` elements and `bias: [n]`, both in `out_dtype`. F32 products are true F32:
/// TF32 stays off, as it is by default in torch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatMul {
    /// Rows of `xs` and `out`.
    pub m: usize,
    /// Rows of `weight`.
    pub n: usize,
    /// Elements summed over.
    pub k: usize,
    /// Elements from one row of `xs` to the next.
    pub xs_row: usize,
    /// Elements from one row of `out` to the next.
    pub out_row: usize,
    /// Element type of `xs` and `weight`.
    pub dtype: Dtype,
    /// Element type of `out` and `bias`: `dtype` or F32.
    pub out_dtype: Dtype,
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of the previous content of `out`; if 0, `out` is not read and may be uninitialised.
    pub beta: f32,
}

/// A captured sequence of operations that can be launched again.
pub trait Graph: Send + Debug {
    /// Runs every captured operation in order, with the addresses and values at capture time.
    ///
    /// # Errors
    /// If a launch fails.
    fn replay(&self) -> Result<()>;
}

/// A device with one stream: operations run in call order; a call may return before its operation has run.
///
/// Addresses are device addresses of live allocations; [`Region`] and [`kernels`](super::kernels) guarantee that.
pub trait Gpu: Send + Sync + Debug {
    /// Model name of the device.
    fn name(&self) -> String;

    /// Number of multiprocessors; kernels choose their grids by it.
    fn multiprocessors(&self) -> usize;

    /// Allocates memory of unspecified content, aligned to 256 bytes; `bytes` may be 0.
    ///
    /// # Errors
    /// If the device has not enough free memory.
    fn alloc(&self, bytes: usize) -> Result<u64>;

    /// Frees memory after all earlier operations have run.
    ///
    /// # Safety
    /// `address` came from [`Gpu::alloc`] of this device with `bytes`, and nothing uses it hereafter.
    unsafe fn free(&self, address: u64, bytes: usize);

    /// Copies to the device. Not allowed during capture.
    ///
    /// # Errors
    /// If the copy fails or a capture is in progress.
    ///
    /// # Safety
    /// The bytes at `to` are allocated.
    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()>;

    /// Copies from the device and waits for the copy. Not allowed during capture.
    ///
    /// # Errors
    /// If the copy or an earlier operation fails, or a capture is in progress.
    ///
    /// # Safety
    /// The bytes at `from` are allocated.
    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()>;

    /// Copies inside the device.
    ///
    /// # Errors
    /// If the copy fails.
    ///
    /// # Safety
    /// Both places are allocated and do not overlap.
    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// If that fails.
    ///
    /// # Safety
    /// The bytes are allocated.
    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<()>;

    /// Launches a kernel whose one argument is a struct with the bytes of `params`.
    ///
    /// # Errors
    /// If the kernel cannot be compiled, loaded or launched.
    ///
    /// # Safety
    /// `params` is the kernel's own struct, and what it points at is allocated as the kernel expects it.
    unsafe fn launch(&self, kernel: KernelId, shape: LaunchShape, params: &[u8]) -> Result<()>;

    /// Computes a product; see [`MatMul`]. `bias` is 0 for no bias.
    ///
    /// # Errors
    /// If no algorithm is found or the launch fails.
    ///
    /// # Safety
    /// What the addresses point at is allocated for the shape of `spec`.
    unsafe fn matmul(&self, spec: &MatMul, xs: u64, weight: u64, bias: u64, out: u64) -> Result<()>;

    /// Waits until all earlier operations have run.
    ///
    /// # Errors
    /// If one of them failed.
    fn synchronize(&self) -> Result<()>;

    /// Captures the operations that `body` calls as a graph, without running them. Kernels and workspaces must have
    /// been used once before, so that capture allocates nothing.
    ///
    /// # Errors
    /// The error of `body`; if it uploads, downloads or waits; if capture fails.
    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>>;
}

/// Device memory, freed when dropped.
pub struct Buffer {
    gpu: Arc<dyn Gpu>,
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// Allocates memory of unspecified content.
    ///
    /// # Errors
    /// If the device has not enough free memory.
    pub fn new(gpu: &Arc<dyn Gpu>, bytes: usize) -> Result<Arc<Self>> {
        let address = gpu.alloc(bytes)?;
        Ok(Arc::new(Self { gpu: Arc::clone(gpu), address, bytes }))
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<dyn Gpu> {
        &self.gpu
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The whole buffer as a region.
    pub fn region(self: &Arc<Self>) -> Region {
        Region { buffer: Arc::clone(self), offset: 0, bytes: self.bytes }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated by this device in `new`; no other reference to it exists.
        unsafe { self.gpu.free(self.address, self.bytes) };
    }
}

impl Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({:#x}, {} bytes)", self.address, self.bytes)
    }
}

/// Plain numbers that a region may hold.
pub trait Number: bytes::Bytes {}
impl<T: bytes::Bytes> Number for T {}

mod bytes {
    /// Types without padding for which every bit pattern is a value. Sealed: only this module implements it.
    pub trait Bytes: Copy + Default + Send + Sync + 'static {}
    impl Bytes for f32 {}
    impl Bytes for i32 {}
    impl Bytes for u32 {}
    impl Bytes for u8 {}
    impl Bytes for half::bf16 {}
    impl Bytes for half::f16 {}
}

/// A part of a buffer; keeps the buffer alive.
#[derive(Clone, Debug)]
pub struct Region {
    buffer: Arc<Buffer>,
    offset: usize,
    bytes: usize,
}

impl Region {
    /// Allocates memory and uploads `values`.
    ///
    /// # Errors
    /// If the device has not enough free memory.
    pub fn of<T: Number>(gpu: &Arc<dyn Gpu>, values: &[T]) -> Result<Self> {
        let region = Buffer::new(gpu, size_of_val(values))?.region();
        region.upload(values)?;
        Ok(region)
    }

    /// Allocates memory for `len` elements, of unspecified content.
    ///
    /// # Errors
    /// If the device has not enough free memory.
    pub fn room(gpu: &Arc<dyn Gpu>, dtype: Dtype, len: usize) -> Result<Self> {
        Ok(Buffer::new(gpu, len * dtype.size())?.region())
    }

    /// The `bytes` bytes from `offset` (bytes) on.
    ///
    /// # Panics
    /// If they exceed the region.
    #[must_use]
    pub fn part(&self, offset: usize, bytes: usize) -> Self {
        assert!(offset + bytes <= self.bytes, "{bytes} bytes from {offset} on of {}", self.bytes);
        Self { buffer: Arc::clone(&self.buffer), offset: self.offset + offset, bytes }
    }

    /// Length in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<dyn Gpu> {
        &self.buffer.gpu
    }

    /// Device address.
    pub fn address(&self) -> u64 {
        self.buffer.address + self.offset as u64
    }

    /// Device address, if the region has room for `len` elements of `size` bytes and is aligned to them; `what` names
    /// it in the error.
    pub(super) fn checked(&self, what: &str, len: usize, size: usize) -> Result<u64> {
        if len * size > self.bytes {
            return Err(Error::Gpu(format!(
                "{what} needs {len} elements of {size} bytes where the region has {} bytes",
                self.bytes
            )));
        }
        if !self.address().is_multiple_of(size as u64) {
            return Err(Error::Gpu(format!("{what} is not aligned to its elements of {size} bytes")));
        }
        Ok(self.address())
    }

    /// Copies `values` to the start of the region.
    ///
    /// # Errors
    /// If they do not fit or the copy fails.
    pub fn upload<T: Number>(&self, values: &[T]) -> Result<()> {
        let to = self.checked("upload", values.len(), size_of::<T>())?;
        // SAFETY: numbers have no padding; the place was checked.
        unsafe {
            let bytes = std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values));
            self.gpu().upload(to, bytes)
        }
    }

    /// Waits for earlier operations and returns the first `len` values.
    ///
    /// # Errors
    /// If the region is shorter, or the copy or an earlier operation fails.
    pub fn download<T: Number>(&self, len: usize) -> Result<Vec<T>> {
        let from = self.checked("download", len, size_of::<T>())?;
        let mut values = vec![T::default(); len];
        // SAFETY: every bit pattern is a number; the place was checked.
        unsafe {
            let bytes = std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), len * size_of::<T>());
            self.gpu().download(from, bytes)?;
        }
        Ok(values)
    }

    /// Copies the whole region to the start of `to`.
    ///
    /// # Errors
    /// If `to` is too short, overlaps, or the copy fails.
    pub fn copy_to(&self, to: &Self) -> Result<()> {
        let (from, start) = (self.address(), to.checked("copy", self.bytes, 1)?);
        if from < start + self.bytes as u64 && start < from + self.bytes as u64 {
            return Err(Error::Gpu("a copy onto itself".to_owned()));
        }
        // SAFETY: both places were checked.
        unsafe { self.gpu().copy(from, start, self.bytes) }
    }

    /// Sets the whole region to zero.
    ///
    /// # Errors
    /// If that fails.
    pub fn zero(&self) -> Result<()> {
        // SAFETY: a region lies inside its buffer.
        unsafe { self.gpu().zero(self.address(), self.bytes) }
    }
}

/// Computes a product of regions; see [`MatMul`].
///
/// # Errors
/// If a region is too small for its shape, or the product fails.
pub fn matmul(
    spec: &MatMul,
    xs: &Region,
    weight: &Region,
    bias: Option<&Region>,
    out: &Region,
) -> Result<()> {
    let &MatMul { m, n, k, xs_row, out_row, dtype, out_dtype, .. } = spec;
    if m == 0 || n == 0 {
        return Ok(());
    }
    if xs_row < k || out_row < n || (out_dtype != dtype && out_dtype != Dtype::F32) {
        return Err(Error::Gpu(format!("a product of unfit shape: {spec:?}")));
    }
    let xs = xs.checked("xs of a product", (m - 1) * xs_row + k, dtype.size())?;
    let weight = weight.checked("weight of a product", n * k, dtype.size())?;
    let bias =
        bias.map(|bias| bias.checked("bias of a product", n, out_dtype.size())).transpose()?.unwrap_or(0);
    let to = out.checked("out of a product", (m - 1) * out_row + n, out_dtype.size())?;
    // SAFETY: every region has room for its shape.
    unsafe { out.gpu().matmul(spec, xs, weight, bias, to) }
}
