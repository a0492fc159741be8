//! Finds and loads NVIDIA's libraries at run time, so that the program also starts on machines without them.
//!
//! The system's loader finds the driver library. NVRTC and cuBLASLt come with a CUDA toolkit or with PyPI's torch, in
//! `site-packages/nvidia/*/lib`, which the loader does not search. A library found there is loaded by its path and
//! never closed; after that the loader also finds it by its name.

#![expect(unsafe_code, reason = "opening a library runs its initialisers")]

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use libloading::Library;

/// A library that the fused backend needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// The driver, `libcuda`.
    Driver,
    /// The compiler of kernels, `libnvrtc`.
    Nvrtc,
    /// Matrix products, `libcublasLt`.
    CublasLt,
}

/// Supported major versions of CUDA, the preferred one first.
const MAJORS: [u32; 2] = [13, 12];

impl Needed {
    /// All libraries, in loading order.
    pub const ALL: [Self; 3] = [Self::Driver, Self::Nvrtc, Self::CublasLt];

    /// File names, in the order in which they are tried.
    fn names(self) -> Vec<String> {
        match self {
            Self::Driver => vec!["libcuda.so".to_owned(), "libcuda.so.1".to_owned()],
            Self::Nvrtc => versioned("libnvrtc.so"),
            Self::CublasLt => versioned("libcublasLt.so"),
        }
    }

    /// Display name, and how to install it.
    fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::Driver => (
                "NVIDIA's driver (libcuda.so.1)",
                "it comes with the driver package of the system, and a container must be given it",
            ),
            Self::Nvrtc => (
                "NVRTC (libnvrtc.so)",
                "PyPI's torch brings it, as do `pip install nvidia-cuda-nvrtc` and the CUDA toolkit",
            ),
            Self::CublasLt => (
                "cuBLASLt (libcublasLt.so)",
                "PyPI's torch brings it, as do `pip install nvidia-cublas` and the CUDA toolkit",
            ),
        }
    }
}

fn versioned(name: &str) -> Vec<String> {
    std::iter::once(name.to_owned()).chain(MAJORS.map(|major| format!("{name}.{major}"))).collect()
}

/// A library that was not found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub struct Missing {
    /// Which one.
    pub library: Needed,
    /// Folders that were searched in addition to the loader's.
    pub folders: Vec<PathBuf>,
}

impl Missing {
    fn describe(&self) -> String {
        let (name, remedy) = self.library.text();
        let mut text = format!("{name} is missing: the loader does not find it");
        for (index, folder) in self.folders.iter().enumerate() {
            let before = if index == 0 { ", nor is it in " } else { ", " };
            let _ = write!(text, "{before}{}", folder.display());
        }
        let _ = write!(text, "; {remedy}");
        text
    }
}

/// Loads a library for the lifetime of the process.
///
/// Searches the environments of the interpreters `pythons` and of `python3` on `PATH`, then the CUDA toolkits that
/// environment variables name or that are in default folders.
///
/// # Errors
/// [`Missing`] if it is not found.
pub(super) fn open(library: Needed, pythons: &[PathBuf]) -> Result<(), Missing> {
    open_one(library, &folders(pythons, &|name| std::env::var_os(name)))
}

/// The file name by which the loader finds the library; `None` if it does not.
pub(super) fn name(library: Needed) -> Option<String> {
    library.names().into_iter().find(|name| load(Path::new(name)))
}

fn open_one(library: Needed, folders: &[PathBuf]) -> Result<(), Missing> {
    let by_name = || name(library).is_some();
    if by_name() {
        return Ok(());
    }
    for folder in folders {
        for file in library.names().iter().rev().map(|name| folder.join(name)).filter(|file| file.is_file()) {
            if library == Needed::Nvrtc {
                // NVRTC loads its builtins library by name when it compiles.
                for file in builtins(folder) {
                    load(&file);
                }
            }
            // Once loaded by path, the library can be found by name, which is how cudarc loads it.
            if load(&file) && by_name() {
                return Ok(());
            }
        }
    }
    let folders = if library == Needed::Driver { Vec::new() } else { folders.to_vec() };
    Err(Missing { library, folders })
}

/// Loads a library for the lifetime of the process; returns false if that fails.
fn load(path: &Path) -> bool {
    // SAFETY: these are NVIDIA's libraries by their names; their initialisers have no preconditions.
    let opened = unsafe { Library::new(path) };
    // The library is never closed, because its functions stay in use.
    opened.map(std::mem::forget).is_ok()
}

fn builtins(folder: &Path) -> Vec<PathBuf> {
    let is_wanted = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc-builtins.so"))
    };
    entries(folder).into_iter().filter(is_wanted).collect()
}

/// Folders that may hold NVIDIA's libraries: first those of the Python environments, then those of CUDA toolkits.
fn folders(pythons: &[PathBuf], variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let on_path = variable("PATH").and_then(|path| {
        std::env::split_paths(&path).map(|folder| folder.join("python3")).find(|python| python.is_file())
    });
    let mut found: Vec<PathBuf> =
        pythons.iter().chain(&on_path).flat_map(|python| packaged(python)).collect();
    let toolkits =
        ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"].into_iter().filter_map(variable).map(PathBuf::from);
    for toolkit in toolkits.chain([PathBuf::from("/usr/local/cuda")]) {
        found.extend(["lib64", "lib"].map(|name| toolkit.join(name)));
    }
    found.extend(["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib"].map(PathBuf::from));
    let mut known = Vec::new();
    found.retain(|folder| {
        let is_new = folder.is_dir() && !known.contains(folder);
        known.push(folder.clone());
        is_new
    });
    found
}

/// `<environment>/lib/python3.*/site-packages/nvidia/*/lib` of an interpreter `<environment>/bin/python`; newer major
/// versions of CUDA come first.
fn packaged(python: &Path) -> Vec<PathBuf> {
    // Symbolic links are not resolved: a virtual environment's `python` links to an interpreter without its packages.
    let Some(environment) = python.parent().and_then(Path::parent) else { return Vec::new() };
    let versions = ["lib", "lib64", "local/lib"].into_iter().flat_map(|lib| entries(&environment.join(lib)));
    let is_python =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"));
    let mut found: Vec<PathBuf> = versions
        .filter(is_python)
        .flat_map(|version| ["site-packages", "dist-packages"].map(|packages| version.join(packages)))
        .flat_map(|packages| entries(&packages.join("nvidia")))
        .map(|package| package.join("lib"))
        .filter(|folder| folder.is_dir())
        .collect();
    // `cu13`, then `cu12`, then the folders of single libraries, which hold CUDA 12.
    found.sort_by_key(|folder| {
        let package = folder.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let major = package.strip_prefix("cu").and_then(|major| major.parse::<u32>().ok());
        std::cmp::Reverse(major)
    });
    found
}

/// The entries of a folder, sorted by name; empty if it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(folder);
    let mut found: Vec<PathBuf> =
        read.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Creates a Python environment with these NVIDIA packages; returns its interpreter.
    fn environment(root: &Path, packages: &[&str]) -> PathBuf {
        for package in packages {
            fs::create_dir_all(root.join("lib/python3.12/site-packages/nvidia").join(package).join("lib"))
                .unwrap();
        }
        let python = root.join("bin/python3");
        fs::create_dir_all(python.parent().unwrap()).unwrap();
        fs::write(&python, "").unwrap();
        python
    }

    #[test]
    fn python_environments_come_first_and_cu13_before_cu12() {
        let root = tempfile::tempdir().unwrap();
        let (given, on_path) = (root.path().join("given"), root.path().join("on_path"));
        let python = environment(&given, &["cublas", "cu13", "cuda_nvrtc", "cu12"]);
        environment(&on_path, &["cu13"]);
        fs::create_dir_all(root.path().join("toolkit/lib64")).unwrap();
        let variable = |name: &str| match name {
            "PATH" => Some(on_path.join("bin").into()),
            "CUDA_HOME" => Some(root.path().join("toolkit").into()),
            _ => None,
        };
        let found = folders(&[python], &variable);
        let shown: Vec<String> = found
            .iter()
            .filter_map(|folder| Some(folder.strip_prefix(root.path()).ok()?.display().to_string()))
            .collect();
        let packages = "lib/python3.12/site-packages/nvidia";
        assert_eq!(
            shown,
            [
                format!("given/{packages}/cu13/lib"),
                format!("given/{packages}/cu12/lib"),
                format!("given/{packages}/cublas/lib"),
                format!("given/{packages}/cuda_nvrtc/lib"),
                format!("on_path/{packages}/cu13/lib"),
                "toolkit/lib64".to_owned(),
            ]
        );
    }

    #[test]
    fn a_missing_library_error_lists_file_folders_and_remedy() {
        let folder = PathBuf::from("/somewhere/nvidia/cu13/lib");
        let text = Missing { library: Needed::Nvrtc, folders: vec![folder] }.to_string();
        for part in ["libnvrtc.so", "/somewhere/nvidia/cu13/lib", "pip install nvidia-cuda-nvrtc"] {
            assert!(text.contains(part), "{text}");
        }
        let text = Missing { library: Needed::Driver, folders: Vec::new() }.to_string();
        assert!(text.contains("libcuda.so.1") && text.contains("driver package"), "{text}");
    }

    #[test]
    fn a_file_that_is_not_a_library_is_skipped() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("libnvrtc.so.13"), "no library").unwrap();
        // On a machine with NVRTC in the loader's path, it opens and the folder is not searched.
        if let Err(missing) = open_one(Needed::Nvrtc, &[root.path().to_owned()]) {
            assert_eq!(missing.library, Needed::Nvrtc);
            assert_eq!(missing.folders, [root.path()]);
        }
    }
}
