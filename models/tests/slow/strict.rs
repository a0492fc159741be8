//! A GPU that counts allocations, uploads and launches, and refuses during graph capture what a CUDA graph cannot contain.

#![expect(unsafe_code, reason = "everything is passed on to the emulator")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use models::cuda::kernels::KernelId;
use models::cuda::{Emulator, Gpu, Graph, LaunchShape, MatMul, Order};
use models::{Error, Result};

#[derive(Debug)]
pub(crate) struct Strict {
    inner: Arc<dyn Gpu>,
    recording: AtomicBool,
    pub(crate) allocations: AtomicUsize,
    pub(crate) uploads: AtomicUsize,
    pub(crate) launches: AtomicUsize,
}

impl Strict {
    pub(crate) fn start() -> Arc<Self> {
        Arc::new(Self {
            inner: Emulator::start(Order::Forward),
            recording: AtomicBool::new(false),
            allocations: AtomicUsize::new(0),
            uploads: AtomicUsize::new(0),
            launches: AtomicUsize::new(0),
        })
    }

    fn count(&self, count: &AtomicUsize, what: &str) -> Result<()> {
        count.fetch_add(1, Ordering::Relaxed);
        self.refuse(what)
    }

    fn refuse(&self, what: &str) -> Result<()> {
        if self.recording.load(Ordering::Relaxed) {
            return Err(Error::Gpu(format!("{what} within a recorded pass")));
        }
        Ok(())
    }
}

impl Gpu for Strict {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn multiprocessors(&self) -> usize {
        self.inner.multiprocessors()
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.count(&self.allocations, "an allocation")?;
        self.inner.alloc(bytes)
    }

    unsafe fn free(&self, address: u64, bytes: usize) {
        // SAFETY: the caller upholds the same contract, here and in all calls below.
        unsafe { self.inner.free(address, bytes) }
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.count(&self.uploads, "an upload")?;
        // SAFETY: as above.
        unsafe { self.inner.upload(to, bytes) }
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.refuse("a download")?;
        // SAFETY: as above.
        unsafe { self.inner.download(from, bytes) }
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.copy(from, to, bytes) }
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.zero(at, bytes) }
    }

    unsafe fn launch(&self, kernel: KernelId, shape: LaunchShape, params: &[u8]) -> Result<()> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { self.inner.launch(kernel, shape, params) }
    }

    unsafe fn matmul(&self, spec: &MatMul, xs: u64, weight: u64, bias: u64, out: u64) -> Result<()> {
        self.launches.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { self.inner.matmul(spec, xs, weight, bias, out) }
    }

    fn synchronize(&self) -> Result<()> {
        self.refuse("a wait")?;
        self.inner.synchronize()
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.recording.store(true, Ordering::Relaxed);
        let graph = self.inner.record(body);
        self.recording.store(false, Ordering::Relaxed);
        graph
    }
}
