//! Compiles kernel sources for the host: one shared library per source, cached next to the running executable.

#![expect(unsafe_code, reason = "functions of a library that was compiled here, from our own sources")]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};

use libloading::Library;

use super::lock;
use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::LaunchShape;
use crate::cuda::kernels::{KernelId, Source};
use crate::error::{Error, Result};

/// `-O1` halves the compile time. Contraction to fused multiply-adds is off, so that the compiler does not change the
/// rounding. Hidden visibility and `-fno-gnu-unique` keep the variables of libraries of one source separate.
const FLAGS: [&str; 9] = [
    "-std=c++17",
    "-O1",
    "-w",
    "-fPIC",
    "-shared",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
];

type Kernel = unsafe extern "C" fn(*const c_void);
type Run = unsafe extern "C" fn(Kernel, *const c_void, *const u32, u32, u32, i32) -> *const c_char;

/// The compiled file of each source, with the change made to it, if any.
type Compiled = HashMap<(Source, Option<(String, String)>), PathBuf>;

static COMPILED: LazyLock<Mutex<Compiled>> = LazyLock::new(Mutex::default);

/// Loaded copies of a file that run no grid at the moment. A copy runs one grid at a time, because its threads live in its
/// static variables; threads that launch at the same time each use a copy of their own.
static IDLE: LazyLock<Mutex<HashMap<PathBuf, Vec<Library>>>> = LazyLock::new(Mutex::default);

/// Runs all blocks of a launch.
///
/// # Safety
/// As [`crate::cuda::Gpu::launch`].
pub(super) unsafe fn launch(
    kernel: KernelId,
    shape: LaunchShape,
    params: &[u8],
    reversed: bool,
    change: Option<&(String, String)>,
) -> Result<()> {
    let path = compiled(kernel.source, change)?;
    let idle = lock(&IDLE).get_mut(&path).and_then(Vec::pop);
    let library = idle.map_or_else(|| load(&path), Ok)?;
    // The struct's alignment is at most that of an address.
    let mut aligned = vec![0_u64; params.len().div_ceil(8)];
    for (to, from) in aligned.iter_mut().zip(params.chunks(8)) {
        let mut bytes = [0; 8];
        bytes[..from.len()].copy_from_slice(from);
        *to = u64::from_ne_bytes(bytes);
    }
    let missing = |error: libloading::Error| Error::Gpu(format!("{}: {error}", kernel.name));
    // SAFETY: the library was compiled from our sources, where both functions have these types; the caller guarantees
    // the parameters; the lock guards the library's static variables.
    let failure = unsafe {
        let run = library.get::<Run>(b"emulator_launch").map_err(missing)?;
        let entry = library.get::<Kernel>(kernel.name.as_bytes()).map_err(missing)?;
        let grid = shape.grid.as_ptr();
        run(*entry, aligned.as_ptr().cast(), grid, shape.block, shape.shared, i32::from(reversed))
    };
    let ran = if failure.is_null() {
        Ok(())
    } else {
        // SAFETY: a literal of the library, which is still loaded.
        let reason = unsafe { CStr::from_ptr(failure) }.to_string_lossy();
        Err(Error::Gpu(format!("{}: {reason}", kernel.name)))
    };
    lock(&IDLE).entry(path).or_default().push(library);
    ran
}

fn compiled(source: Source, change: Option<&(String, String)>) -> Result<PathBuf> {
    // Held while a source is compiled, so that two tests do not compile the same one.
    let mut compiled = lock(&COMPILED);
    let key = (source, change.cloned());
    if let Some(path) = compiled.get(&key) {
        return Ok(path.clone());
    }
    let mut text = source.text_after(include_str!("../kernels/emulated.h"), &Dtype::ALL);
    if let Some((from, to)) = change {
        text = text.replace(from, to);
    }
    let path = compile(source, &text)?;
    compiled.insert(key, path.clone());
    Ok(path)
}

/// Loads a copy of the library at `path` with static variables of its own.
fn load(path: &Path) -> Result<Library> {
    static COPIES: AtomicUsize = AtomicUsize::new(0);
    let cannot = |error: &dyn Display| Error::Gpu(format!("cannot load {}: {error}", path.display()));
    // The loader returns the library that it has for a file that it knows, so each copy is another file.
    let number = COPIES.fetch_add(1, Ordering::Relaxed);
    let copy = path.with_extension(format!("{}-{number}.so", std::process::id()));
    std::fs::copy(path, &copy).map_err(|error| cannot(&error))?;
    // SAFETY: the library has no initialisers but those of plain variables.
    let library = unsafe { Library::new(&copy) };
    std::fs::remove_file(&copy).map_err(|error| cannot(&error))?;
    library.map_err(|error| cannot(&error))
}

/// Path of the library compiled from `text`; reuses the file of an earlier run.
fn compile(source: Source, text: &str) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (text, FLAGS).hash(&mut hasher);
    let io = |error: std::io::Error| Error::Gpu(format!("cannot compile {}: {error}", source.name()));
    // Next to the executable: whoever can write there can already replace the program.
    let folder = std::env::current_exe().map_err(io)?.with_file_name("emulated-kernels");
    std::fs::create_dir_all(&folder).map_err(io)?;
    let name = format!("{}-{:016x}", source.name(), hasher.finish());
    let (path, own) = (folder.join(format!("{name}.so")), format!("{name}-{}", std::process::id()));
    if path.exists() {
        return Ok(path);
    }
    let (input, output) = (folder.join(format!("{own}.cpp")), folder.join(format!("{own}.so")));
    std::fs::write(&input, text).map_err(io)?;
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let ran = Command::new(&compiler).args(FLAGS).arg("-o").arg(&output).arg(&input).output();
    let ran = ran.map_err(|error| {
        Error::Gpu(format!(
            "cannot start the C++ compiler {compiler}: {error}; install g++ or clang, or name one in CXX"
        ))
    })?;
    if !ran.status.success() {
        let errors = String::from_utf8_lossy(&ran.stderr);
        return Err(Error::Gpu(format!("{compiler} cannot compile {}:\n{errors}", source.name())));
    }
    std::fs::rename(&output, &path).map_err(io)?;
    std::fs::remove_file(&input).map_err(io)?;
    Ok(path)
}
