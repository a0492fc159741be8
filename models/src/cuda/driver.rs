//! [`Gpu`] for a CUDA device. The driver, NVRTC and cuBLASLt are loaded at run time.
//!
//! All operations run in one private stream. cudarc's event tracking is off: it would break graph capture, and there is
//! no second stream to wait for. Memory comes from the device's default pool, whose counters report the current and the
//! peak use.

#![expect(unsafe_code, reason = "the driver is a C library that works on addresses")]

mod cubins;
mod description;
mod libraries;
mod products;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cudarc::driver::sys::CUmemPool_attribute as PoolAttribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;
use rayon::prelude::*;

use description::describe;
pub use description::{Description, OpenError, device_count, installed};
pub use libraries::{Missing, Needed};

use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::{Gpu, Graph, LaunchShape, MatMul};
use crate::cuda::kernels::{KernelId, Source};
use crate::error::{Error, Result};
use products::{Places, Products, WORKSPACE_BYTES};

/// Dynamic shared memory in bytes that a block may use without a function attribute.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// Minimum compute capability: the oldest one with the instructions that the kernels use.
const OLDEST: [u32; 2] = [8, 0];

/// Minimum compute capability for programmatic dependent launch, in which a kernel itself waits for the previous one
/// (`wait_for_previous` in `device.cuh`).
const OVERLAPPING: [u32; 2] = [9, 0];

/// Options of [`Driver::open`].
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// Python interpreters whose environments are searched for NVRTC and cuBLASLt, in addition to the default folders.
    pub pythons: Vec<PathBuf>,
    /// Cache folder for compiled kernels; if `None`, each process compiles them.
    pub cubins: Option<PathBuf>,
    /// Disables programmatic dependent launch: a kernel begins after the previous one has ended, as on devices below
    /// compute capability 9.0.
    pub is_serial: bool,
}

/// Memory of a device in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Allocated by this process from the device's pool.
    pub used: u64,
    /// Peak of `used`.
    pub peak: u64,
    /// Free for any process.
    pub free: u64,
    /// Total memory of the device.
    pub total: u64,
}

/// One GPU with its stream, loaded kernels and cuBLASLt algorithms.
pub struct Driver {
    // Fields are dropped in this order: device objects before the stream.
    kernels: Mutex<Kernels>,
    products: Mutex<Products>,
    workspace: u64,
    pool: sys::CUmemoryPool,
    /// Addresses freed during capture; they are released when capture ends.
    to_free: Mutex<Vec<u64>>,
    is_recording: AtomicBool,
    /// Whether a kernel may begin while the previous one still runs (programmatic dependent launch).
    overlaps: bool,
    /// Whether the last operation was one of our kernels, which signals when the next one may begin. cuBLASLt's kernels
    /// do not, so the launch after one does not overlap.
    follows_kernel: AtomicBool,
    cubins: Option<PathBuf>,
    description: Description,
    stream: Arc<CudaStream>,
}

// SAFETY: the one raw handle, the device's pool, is the driver's own and belongs to no thread.
unsafe impl Send for Driver {}
// SAFETY: as above; mutable state is in mutexes and atomics.
unsafe impl Sync for Driver {}

#[derive(Default)]
struct Kernels {
    modules: HashMap<(Source, Dtype), Arc<CudaModule>>,
    functions: HashMap<KernelId, Function>,
}

#[derive(Clone)]
struct Function {
    function: CudaFunction,
    /// Limit of its dynamic shared memory in bytes.
    shared: u32,
}

impl Driver {
    /// Opens device `number`.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(number: usize, setting: &Setting) -> std::result::Result<Arc<Self>, OpenError> {
        let found = device_count()?;
        Needed::ALL.into_iter().try_for_each(|library| libraries::open(library, &setting.pythons))?;
        let failed = |what: &'static str| move |error| OpenError::Failed(message(what, error));
        if number >= found {
            return Err(OpenError::NoDevice { found, wanted: number });
        }
        let context = CudaContext::new(number).map_err(failed("the GPU's context"))?;
        // SAFETY: nothing is allocated yet, and there will be one stream.
        unsafe { context.disable_event_tracking() };
        let description = describe(&context)?;
        if description.capability < OLDEST {
            return Err(OpenError::TooOld { name: description.name, found: description.capability });
        }
        let stream = context.new_stream().map_err(failed("the GPU's stream"))?;
        // SAFETY: the device exists.
        let pool = unsafe { result::device::get_default_mem_pool(context.cu_device()) }
            .map_err(failed("the GPU's memory pool"))?;
        let keep = u64::MAX;
        // SAFETY: the attribute is a u64. The pool keeps freed memory, so that allocating it again needs no system
        // call.
        unsafe {
            result::mem_pool::set_attribute(
                pool,
                PoolAttribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                (&raw const keep).cast_mut().cast(),
            )
        }
        .map_err(failed("the GPU's memory pool"))?;
        // SAFETY: `stream` belongs to the current context.
        let workspace = unsafe { result::malloc_async(stream.cu_stream(), WORKSPACE_BYTES) }
            .map_err(failed("32 MiB of the GPU's memory"))?;
        Ok(Arc::new(Self {
            kernels: Mutex::default(),
            products: Mutex::new(Products::new().map_err(|error| OpenError::Failed(error.to_string()))?),
            workspace,
            pool,
            to_free: Mutex::default(),
            is_recording: AtomicBool::new(false),
            overlaps: description.capability >= OVERLAPPING && !setting.is_serial,
            follows_kernel: AtomicBool::new(false),
            cubins: setting.cubins.clone(),
            description,
            stream,
        }))
    }

    /// Description of the device.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Current memory use, from the driver's counters.
    ///
    /// # Errors
    /// If the driver does not report it.
    pub fn memory(&self) -> Result<Memory> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(gpu("its memory"))?;
        let counter = |attribute| {
            let mut value = 0_u64;
            // SAFETY: both counters are u64.
            unsafe { result::mem_pool::get_attribute(self.pool, attribute, (&raw mut value).cast()) }
                .map_err(gpu("its memory pool"))?;
            Ok::<_, Error>(value)
        };
        Ok(Memory {
            used: counter(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
            peak: counter(PoolAttribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
            free: free as u64,
            total: total as u64,
        })
    }

    /// Compiles every kernel that is not in the cache folder, on all cores, so that later forward passes need not wait.
    /// Does nothing without a cache folder.
    ///
    /// # Errors
    /// If a kernel does not compile.
    pub fn compile_all(&self) -> Result<()> {
        let Some(folder) = self.cubins.as_deref() else { return Ok(()) };
        let units: Vec<_> =
            Source::ALL.into_iter().flat_map(|source| Dtype::ALL.map(|dtype| (source, dtype))).collect();
        units
            .into_par_iter()
            .filter(|(source, dtype)| source.kernels().any(|kernel| kernel.dtype == *dtype))
            .try_for_each(|(source, dtype)| {
                cubins::cubin(source, dtype, self.description.capability, Some(folder)).map(drop)
            })
    }

    /// Device time of the operations that `body` calls, measured with CUDA events; waits until the device is idle
    /// before and after.
    ///
    /// # Errors
    /// The error of `body`, or if the device fails.
    pub fn time(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Duration> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = || self.stream.context().new_event(flags).map_err(gpu("an event"));
        let (begin, end) = (event()?, event()?);
        self.synchronize()?;
        begin.record(&self.stream).map_err(gpu("an event"))?;
        body()?;
        end.record(&self.stream).map_err(gpu("an event"))?;
        self.synchronize()?;
        let ms = begin.elapsed_ms(&end).map_err(gpu("the time between events"))?;
        Ok(Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
    }

    /// Makes the device's context current in the calling thread.
    fn bind(&self) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(gpu("its context"))
    }

    /// As [`Driver::bind`], before an operation that is not one of our kernels.
    fn bind_for_other(&self) -> Result<()> {
        self.follows_kernel.store(false, Ordering::Relaxed);
        self.bind()
    }

    fn refuse_while_recording(&self, what: &str) -> Result<()> {
        if self.is_recording.load(Ordering::Relaxed) {
            return Err(Error::Gpu(format!("{what} while a pass is recorded")));
        }
        Ok(())
    }

    fn module(&self, kernels: &mut Kernels, source: Source, dtype: Dtype) -> Result<Arc<CudaModule>> {
        if let Some(module) = kernels.modules.get(&(source, dtype)) {
            return Ok(Arc::clone(module));
        }
        self.refuse_while_recording("a kernel is loaded")?;
        let code = cubins::cubin(source, dtype, self.description.capability, self.cubins.as_deref())?;
        let loaded = self.stream.context().load_module(Ptx::from_binary(code));
        let module = loaded.map_err(|error| Error::Gpu(message(source.name(), error)))?;
        kernels.modules.insert((source, dtype), Arc::clone(&module));
        Ok(module)
    }

    /// Loads the kernel and raises its limit of dynamic shared memory to at least `shared` bytes.
    fn function(&self, kernel: KernelId, shared: u32) -> Result<sys::CUfunction> {
        let mut kernels = lock(&self.kernels);
        if !kernels.functions.contains_key(&kernel) {
            let module = self.module(&mut kernels, kernel.source, kernel.dtype)?;
            let function = module.load_function(kernel.name);
            let function = function.map_err(|error| Error::Gpu(message(kernel.name, error)))?;
            kernels.functions.insert(kernel, Function { function, shared: USUAL_SHARED_BYTES });
        }
        let known = kernels.functions.get_mut(&kernel);
        let Some(known) = known else { return Err(Error::Gpu(format!("{} is lost", kernel.name))) };
        if shared > known.shared {
            let limit = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let set = known.function.set_attribute(limit, shared as i32);
            let what = || format!("{} with {shared} bytes of shared memory", kernel.name);
            set.map_err(|error| Error::Gpu(message(&what(), error)))?;
            known.shared = shared;
        }
        Ok(known.function.cu_function())
    }

    /// Releases the memory that was freed during capture.
    fn settle(&self) {
        for address in lock(&self.to_free).drain(..) {
            // SAFETY: `free` was called on the address but has not released it yet.
            let _ = unsafe { result::free_async(address, self.stream.cu_stream()) };
        }
    }
}

impl Gpu for Driver {
    fn name(&self) -> String {
        self.description.name.clone()
    }

    fn multiprocessors(&self) -> usize {
        self.description.multiprocessors
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        self.refuse_while_recording("memory is taken")?;
        self.bind_for_other()?;
        // The driver refuses to allocate 0 bytes. Its pools allocate multiples of 512 bytes.
        let allocated = unsafe {
            // SAFETY: the stream belongs to the current context.
            result::malloc_async(self.stream.cu_stream(), bytes.max(1))
        };
        allocated.map_err(|error| Error::Gpu(message(&format!("{bytes} bytes of its memory"), error)))
    }

    unsafe fn free(&self, address: u64, _bytes: usize) {
        if self.is_recording.load(Ordering::Relaxed) {
            lock(&self.to_free).push(address);
            return;
        }
        if self.bind_for_other().is_ok() {
            // SAFETY: the caller's contract. An error here belongs to an earlier operation, which reports it itself.
            let _ = unsafe { result::free_async(address, self.stream.cu_stream()) };
        }
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.refuse_while_recording("an upload")?;
        if bytes.is_empty() {
            return Ok(());
        }
        self.bind_for_other()?;
        // SAFETY: the caller's contract. The driver copies from pageable memory before it returns.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }.map_err(gpu("an upload"))
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.refuse_while_recording("a download")?;
        self.bind_for_other()?;
        if !bytes.is_empty() {
            // SAFETY: the caller's contract; the stream is synchronised below, while `bytes` is alive.
            unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) }
                .map_err(gpu("a download"))?;
        }
        self.stream.synchronize().map_err(gpu("a download, or what ran before it"))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind_for_other()?;
        // SAFETY: the caller's contract.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }.map_err(gpu("a copy"))
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind_for_other()?;
        // SAFETY: the caller's contract.
        unsafe { result::memset_d8_async(at, 0, bytes, self.stream.cu_stream()) }.map_err(gpu("zeros"))
    }

    unsafe fn launch(&self, kernel: KernelId, shape: LaunchShape, params: &[u8]) -> Result<()> {
        self.bind()?;
        let function = self.function(kernel, shape.shared)?;
        let [x, y, z] = shape.grid;
        let mut arguments = [params.as_ptr().cast_mut().cast()];
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: shape.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut overlap,
            numAttrs: u32::from(self.follows_kernel.swap(true, Ordering::Relaxed) && self.overlaps),
        };
        // SAFETY: the kernel's one parameter has the size of `params`, from which the driver copies before it
        // returns; the caller answers for the rest.
        unsafe {
            sys::cuLaunchKernelEx(&raw const config, function, arguments.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()
        .map_err(|error| Error::Gpu(message(&format!("{} with {shape:?}", kernel.name), error)))
    }

    unsafe fn matmul(&self, spec: &MatMul, xs: u64, weight: u64, bias: u64, out: u64) -> Result<()> {
        self.bind_for_other()?;
        let stream = self.stream.cu_stream().cast();
        let places = Places { xs, weight, bias, out, workspace: self.workspace, stream };
        // SAFETY: the caller's contract; products run one after the other in the stream, so they share a workspace.
        unsafe { lock(&self.products).run(spec, &places) }
    }

    fn synchronize(&self) -> Result<()> {
        self.refuse_while_recording("a wait")?;
        self.bind_for_other()?;
        self.stream.synchronize().map_err(gpu("what was called before"))
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.bind_for_other()?;
        if self.is_recording.swap(true, Ordering::Relaxed) {
            return Err(Error::Gpu("a pass is recorded inside another".to_owned()));
        }
        let begun = self.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
        let ran = match begun {
            Ok(()) => body(),
            Err(error) => Err(Error::Gpu(message("recording", error))),
        };
        // Capture is ended even after an error: a capturing stream refuses other operations.
        let ended = begun.and_then(|()| self.stream.end_capture(sys::CUgraphInstantiate_flags(0)));
        self.is_recording.store(false, Ordering::Relaxed);
        self.follows_kernel.store(false, Ordering::Relaxed);
        self.settle();
        ran?;
        let graph = ended.map_err(gpu("the end of a recording"))?;
        let graph = graph.ok_or_else(|| Error::Gpu("nothing was recorded".to_owned()))?;
        graph.upload().map_err(gpu("a recorded pass"))?;
        Ok(Box::new(Recorded(graph)))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.settle();
        if self.bind_for_other().is_ok() {
            let _ = self.stream.synchronize();
            // SAFETY: allocated in `open`; no operation is running.
            let _ = unsafe { result::free_async(self.workspace, self.stream.cu_stream()) };
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({})", self.description.name)
    }
}

/// A captured CUDA graph.
struct Recorded(cudarc::driver::CudaGraph);

// SAFETY: a graph is not bound to a thread. Two threads must not use it at once; each graph has one owner.
unsafe impl Send for Recorded {}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorded")
    }
}

impl Graph for Recorded {
    fn replay(&self) -> Result<()> {
        self.0.launch().map_err(gpu("a recorded pass"))
    }
}

/// The failed operation and CUDA's error, for example `a copy: CUDA_ERROR_INVALID_VALUE (invalid argument)`.
fn message(what: &str, error: DriverError) -> String {
    let name = error.error_name().map(|name| name.to_string_lossy().into_owned());
    let text = error.error_string().map(|text| text.to_string_lossy().into_owned());
    match (name, text) {
        (Ok(name), Ok(text)) => format!("{what}: {name} ({text})"),
        _ => format!("{what}: {:?}", error.0),
    }
}

fn gpu(what: &'static str) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::Gpu(message(what, error))
}

/// Ignores poisoning by an earlier panic: the mutexes hold caches, which stay valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_a_gpu_succeeds_or_reports_why_not() {
        // Without a driver the error lists the missing library; with one, the device opens or the error has a message.
        match Driver::open(0, &Setting::default()) {
            Err(OpenError::Missing(missing)) => {
                assert!(missing.to_string().contains("is missing"), "{missing}");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
            Ok(driver) => assert!(driver.description().multiprocessors > 0),
        }
    }
}
