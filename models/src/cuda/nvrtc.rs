//! NVIDIA's run-time compiler NVRTC, loaded from a library file. It needs neither a GPU nor a CUDA toolkit.

#![expect(unsafe_code, reason = "a C library that is loaded by path")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::Path;

use libloading::Library;

use super::dtype::Dtype;
use super::kernels::Source;
use crate::error::{Error, Result};

/// A loaded `libnvrtc.so`.
#[derive(Debug)]
pub struct Nvrtc(Library);

/// A source compiled for one architecture.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Machine code for the driver.
    pub cubin: Vec<u8>,
    /// The assembler's report of registers, stack and spills per function.
    pub log: String,
}

type Program = *mut c_void;

impl Nvrtc {
    /// Loads a library, for example from PyPI's `nvidia-cuda-nvrtc` or torch.
    ///
    /// # Errors
    /// If `path` cannot be loaded.
    pub fn open(path: &Path) -> Result<Self> {
        // SAFETY: NVRTC's initialisers have no preconditions.
        unsafe { Library::new(path) }
            .map(Self)
            .map_err(|error| Error::Gpu(format!("cannot load {}: {error}", path.display())))
    }

    /// Compiles a source's kernels of one element type for an architecture, such as `sm_90`.
    ///
    /// # Errors
    /// If the source does not compile; the message is the compiler's.
    pub fn compile(&self, source: Source, dtype: Dtype, architecture: &str) -> Result<Compiled> {
        let text = CString::new(source.text(&[dtype]))
            .map_err(|_| Error::Gpu(format!("{} has a zero byte", source.name())))?;
        let options = [
            CString::new(format!("--gpu-architecture={architecture}")).unwrap_or_default(),
            CString::from(c"--std=c++17"),
            CString::from(c"--ptxas-options=-v"),
        ];
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program: Program = std::ptr::null_mut();
        // SAFETY: the functions have these types in every NVRTC since 11.1; strings end with zero and outlive the
        // calls; buffers have the sizes that the library asked for.
        unsafe {
            type Create = unsafe extern "C" fn(
                *mut Program,
                *const c_char,
                *const c_char,
                c_int,
                *const *const c_char,
                *const *const c_char,
            ) -> c_int;
            type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
            type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
            let create = self.get::<Create>(b"nvrtcCreateProgram")?;
            let compile = self.get::<Compile>(b"nvrtcCompileProgram")?;
            let destroy = self.get::<Destroy>(b"nvrtcDestroyProgram")?;
            let none = std::ptr::null();
            let code = create(&raw mut program, text.as_ptr(), c"kernels.cu".as_ptr(), 0, none, none);
            if code != 0 {
                return Err(Error::Gpu(format!("NVRTC refuses {}: code {code}", source.name())));
            }
            let code = compile(program, options.len() as c_int, options.as_ptr());
            let log = self.output(program, b"nvrtcGetProgramLogSize", b"nvrtcGetProgramLog");
            let cubin = self.output(program, b"nvrtcGetCUBINSize", b"nvrtcGetCUBIN");
            destroy(&raw mut program);
            let log = String::from_utf8_lossy(&log?).trim_end_matches('\0').to_owned();
            if code != 0 {
                let what = format!("{} for {architecture}", source.name());
                return Err(Error::Gpu(format!("NVRTC cannot compile {what}: {log}")));
            }
            Ok(Compiled { cubin: cubin?, log })
        }
    }

    /// # Safety
    /// `program` was created by this library and not destroyed; both functions exist with the types below.
    unsafe fn output(&self, program: Program, size: &[u8], get: &[u8]) -> Result<Vec<u8>> {
        type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
        type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
        let mut len = 0;
        // SAFETY: see `compile`.
        unsafe {
            self.get::<Size>(size)?(program, &raw mut len);
            let mut bytes = vec![0; len];
            if len > 0 {
                self.get::<Get>(get)?(program, bytes.as_mut_ptr().cast());
            }
            Ok(bytes)
        }
    }

    /// # Safety
    /// The function called `name` has type `T`.
    unsafe fn get<T: Copy>(&self, name: &[u8]) -> Result<T> {
        // SAFETY: the caller's contract.
        let symbol = unsafe { self.0.get::<T>(name) };
        symbol.map(|symbol| *symbol).map_err(|error| Error::Gpu(format!("not an NVRTC library: {error}")))
    }
}
