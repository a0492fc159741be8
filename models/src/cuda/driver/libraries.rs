//! NVIDIA's libraries, found and opened while the program runs, so that it starts where there are none.
//!
//! The driver's own library lies where the system's loader finds it. NVRTC and cuBLASLt come with a CUDA toolkit or
//! with PyPI's torch, in `site-packages/nvidia/*/lib`, where no loader searches: what is found there is opened by its
//! path and kept, after which the loader knows it by its name too.

#![expect(unsafe_code, reason = "opening a library runs its initialisers")]

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use libloading::Library;

/// A library that the fused path needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// The driver, `libcuda`.
    Driver,
    /// The compiler of kernels, `libnvrtc`.
    Nvrtc,
    /// Products of matrices, `libcublasLt`.
    CublasLt,
}

/// Majors of CUDA whose libraries fit, the best first.
const MAJORS: [u32; 2] = [13, 12];

impl Needed {
    /// All of them, in the order in which they are opened.
    pub const ALL: [Self; 3] = [Self::Driver, Self::Nvrtc, Self::CublasLt];

    /// File names without the `lib` in front, in the order in which they are tried.
    fn names(self) -> Vec<String> {
        match self {
            Self::Driver => vec!["libcuda.so".to_owned(), "libcuda.so.1".to_owned()],
            Self::Nvrtc => versioned("libnvrtc.so"),
            Self::CublasLt => versioned("libcublasLt.so"),
        }
    }

    /// What to call it, and how it is had.
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

/// A library that is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.describe())]
pub struct Missing {
    /// Which one.
    pub library: Needed,
    /// Folders that were searched besides the loader's own.
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

/// Opens a library for good, or reports that it is missing.
///
/// `pythons` are interpreters whose environments may hold it; what the environment variables of a CUDA toolkit and
/// `python3` on the path name is searched as well.
///
/// # Errors
/// [`Missing`] where it is not found.
pub(super) fn open(library: Needed, pythons: &[PathBuf]) -> Result<(), Missing> {
    open_one(library, &folders(pythons, &|name| std::env::var_os(name)))
}

/// The file name by which a library that was opened is known to the loader.
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
                // NVRTC opens it by its name when it compiles.
                for file in builtins(folder) {
                    load(&file);
                }
            }
            // By its path, after which the loader knows its name, by which cudarc opens it.
            if load(&file) && by_name() {
                return Ok(());
            }
        }
    }
    let folders = if library == Needed::Driver { Vec::new() } else { folders.to_vec() };
    Err(Missing { library, folders })
}

/// Opens a library for good; false where it cannot be.
fn load(path: &Path) -> bool {
    // SAFETY: these are NVIDIA's libraries by their names; their initialisers have no conditions.
    let opened = unsafe { Library::new(path) };
    // What is in use is never closed.
    opened.map(std::mem::forget).is_ok()
}

fn builtins(folder: &Path) -> Vec<PathBuf> {
    let is_wanted = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc-builtins.so"))
    };
    entries(folder).into_iter().filter(is_wanted).collect()
}

/// Folders that may hold NVIDIA's libraries: of the Pythons' environments, then of CUDA toolkits.
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

/// `<environment>/lib/python3.*/site-packages/nvidia/*/lib` of an interpreter `<environment>/bin/python`; the folders
/// of newer majors of CUDA first.
fn packaged(python: &Path) -> Vec<PathBuf> {
    // A link leads out of a virtual environment, to an interpreter that has no packages.
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
    // cu13 before cu12 before the folders of single libraries, which hold CUDA 12.
    found.sort_by_key(|folder| {
        let package = folder.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let major = package.strip_prefix("cu").and_then(|major| major.parse::<u32>().ok());
        std::cmp::Reverse(major)
    });
    found
}

/// The entries of a folder by name; none where it cannot be read.
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

    /// An environment whose torch brings these packages, and its interpreter.
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
    fn a_pythons_own_libraries_come_first_and_the_newest_major_of_cuda_before_others() {
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
    fn a_missing_library_is_named_with_where_it_was_looked_for_and_how_it_is_had() {
        let folder = PathBuf::from("/somewhere/nvidia/cu13/lib");
        let text = Missing { library: Needed::Nvrtc, folders: vec![folder] }.to_string();
        for part in ["libnvrtc.so", "/somewhere/nvidia/cu13/lib", "pip install nvidia-cuda-nvrtc"] {
            assert!(text.contains(part), "{text}");
        }
        let text = Missing { library: Needed::Driver, folders: Vec::new() }.to_string();
        assert!(text.contains("libcuda.so.1") && text.contains("driver package"), "{text}");
    }

    #[test]
    fn a_file_that_is_no_library_is_passed_over() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("libnvrtc.so.13"), "no library").unwrap();
        // A machine whose loader finds a real one has nothing to look for.
        if let Err(missing) = open_one(Needed::Nvrtc, &[root.path().to_owned()]) {
            assert_eq!(missing.library, Needed::Nvrtc);
            assert_eq!(missing.folders, [root.path()]);
        }
    }
}
