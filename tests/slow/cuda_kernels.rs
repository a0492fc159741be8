//! Compiles every CUDA kernel of the fused backend for every supported architecture with NVRTC, which needs no GPU. The
//! NVRTC library comes with torch's wheel in transformers' environment.
//!
//! `TFCHECK_TEST_ENVS=/folder` names a folder of environments, `<folder>/<version>/bin/python`; without it the release
//! is prepared through uv. `models/src/cuda/tests` tests the kernels' results on an emulator.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use models::cuda::kernels::Source;
use models::cuda::{Compiled, Dtype, Nvrtc};
use reference::{Python, Source as Release, Specification, prepare};

const NEWEST: &str = "5.23.0";

/// The oldest architecture whose instructions the kernels can use, and the one that performance targets refer to.
const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90"];

/// Largest register spill per thread in bytes. The kernels for 256 features spill a few dozen bytes once per loop over the
/// keys; a larger spill means that an array is not kept in registers.
const SPILL: usize = 64;

/// Folder with an empty file for each unit that compiled and passed the check. Its name depends on the kernels, on what compiles
/// them, on this test and on the NVRTC library, so that a unit is compiled again when any of them changes.
fn passed(library: &Path) -> PathBuf {
    let mut files = BTreeMap::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("models/src/cuda")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.clone(), std::fs::read(path).unwrap());
            }
        }
    }
    let mut hasher = DefaultHasher::new();
    (files.into_values().collect::<Vec<_>>(), include_str!("cuda_kernels.rs")).hash(&mut hasher);
    (library.file_name(), library.metadata().unwrap().len()).hash(&mut hasher);
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nvrtc-{:016x}", hasher.finish()))
}

/// NVRTC of the newest release's environment, and the file that it was loaded from.
fn nvrtc() -> (Nvrtc, PathBuf) {
    let mut specification = Specification::new(Release::Release(NEWEST.to_owned()));
    if let Some(folder) = std::env::var_os("TFCHECK_TEST_ENVS") {
        specification.python = Python::Existing(Path::new(&folder).join(NEWEST));
    }
    let cache = tfcheck::app::cache_folder().unwrap();
    let environment = prepare(&specification, &cache, &|line| eprintln!("{line}")).unwrap();
    let script = "import sysconfig; print(sysconfig.get_path('purelib'))";
    let output = Command::new(&environment.python).args(["-c", script]).output().unwrap();
    let packages = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
    let library = library(&packages).unwrap_or_else(|| {
        panic!("{} has no libnvrtc: torch there is no CUDA build; PyPI's is", packages.display())
    });
    (Nvrtc::open(&library).unwrap(), library)
}

/// Path of `nvidia/<part>/lib/libnvrtc.so.<version>` below `packages`.
fn library(packages: &Path) -> Option<PathBuf> {
    let entries =
        |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_nvrtc = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc.so"))
    };
    entries(&packages.join("nvidia"))
        .flat_map(|part| entries(&part.join("lib")).collect::<Vec<_>>())
        .find(is_nvrtc)
}

/// The number before `what` in the log's lines about `function`.
fn number(log: &str, function: &str, what: &str) -> usize {
    let lines = log.split(&format!("Function properties for {function}\n")).nth(1).unwrap_or_default();
    let before = lines.split(what).next().unwrap_or_default().trim_end();
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("{function} has no {what:?} in\n{log}"))
}

fn check(source: Source, dtype: Dtype, architecture: &str, compiled: &Compiled) {
    assert_eq!(compiled.cubin.get(..4), Some(&b"\x7fELF"[..]), "{source:?} for {architecture}");
    for kernel in source.kernels().filter(|kernel| kernel.dtype == dtype) {
        let symbol = compiled.cubin.windows(kernel.name.len()).any(|bytes| bytes == kernel.name.as_bytes());
        assert!(symbol, "{} is not in the cubin for {architecture}", kernel.name);
        let spilled = number(&compiled.log, kernel.name, " bytes spill stores");
        assert!(spilled <= SPILL, "{} for {architecture} spills {spilled} bytes", kernel.name);
    }
}

#[test]
fn every_kernel_compiles_for_every_architecture_and_keeps_to_its_registers() {
    let (nvrtc, library) = nvrtc();
    let passed = passed(&library);
    std::fs::create_dir_all(&passed).unwrap();
    let mut work: Vec<_> = Source::ALL
        .into_iter()
        .flat_map(|source| Dtype::ALL.map(|dtype| (source, dtype)))
        .filter(|(source, dtype)| source.kernels().any(|kernel| kernel.dtype == *dtype))
        .flat_map(|(source, dtype)| ARCHITECTURES.map(|architecture| (source, dtype, architecture)))
        .collect();
    assert!(work.len() >= 50, "{} units", work.len());
    // `pop` takes the last elements first: the units that take longest to compile.
    work.sort_by_key(|(source, ..)| matches!(source, Source::Decode | Source::Gemv | Source::Prefill));
    let work = Mutex::new(work);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let next = work.lock().unwrap().pop();
                    let Some((source, dtype, architecture)) = next else { break };
                    let stamp = passed.join(format!("{source:?}-{dtype:?}-{architecture}"));
                    if stamp.exists() {
                        continue;
                    }
                    let compiled = nvrtc.compile(source, dtype, architecture).unwrap();
                    check(source, dtype, architecture, &compiled);
                    std::fs::write(stamp, "").unwrap();
                }
            });
        }
    });
}

#[test]
fn a_compile_error_names_the_source_and_the_architecture() {
    let error = nvrtc().0.compile(Source::Norm, Dtype::Bf16, "sm_9000").unwrap_err().to_string();
    assert!(error.contains("NVRTC cannot compile norm.cu for sm_9000"), "{error}");
}
