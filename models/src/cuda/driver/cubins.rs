//! Kernels compiled by NVRTC for the present device, cached on disk.

#![expect(unsafe_code, reason = "NVRTC is a C library")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::sys;
use sha2::{Digest, Sha256};

use super::libraries::{self, Needed};
use crate::cuda::kernels::Source;
use crate::cuda::{Dtype, Nvrtc};
use crate::error::{Error, Result};

/// Part of every cache key. Increment it when the compiler options in [`Nvrtc::compile`] change.
const SCHEMA: u32 = 1;

/// Cache key: hash of the source text, the architecture and NVRTC's version.
fn key(text: &str, architecture: &str, version: [u32; 2]) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{SCHEMA} {version:?} {architecture} {}\n", text.len()));
    digest.update(text);
    let mut name = String::new();
    for byte in digest.finalize().iter().take(16) {
        // Writing to a `String` cannot fail.
        let _ = write!(name, "{byte:02x}");
    }
    name
}

/// The machine code of a source's kernels of one element type for a device of this compute capability; read from the
/// cache `folder` if it was compiled before.
///
/// # Errors
/// If the text does not compile; the message contains NVRTC's log.
pub(super) fn cubin(
    source: Source,
    dtype: Dtype,
    [major, minor]: [u32; 2],
    folder: Option<&Path>,
) -> Result<Vec<u8>> {
    let architecture = format!("sm_{major}{minor}");
    let key = key(&source.text(&[dtype]), &architecture, version()?);
    cached(folder, &key, || {
        let name = libraries::name(Needed::Nvrtc);
        let name = name.ok_or_else(|| Error::Gpu("NVRTC is no longer there".to_owned()))?;
        Ok(Nvrtc::open(Path::new(&name))?.compile(source, dtype, &architecture)?.cubin)
    })
}

/// The result of `make`, cached under `key`. If the folder cannot be read or written, `make` runs each time; that is
/// not an error.
fn cached(folder: Option<&Path>, key: &str, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let Some(folder) = folder else { return make() };
    let path: PathBuf = folder.join(format!("{key}.cubin"));
    if let Ok(kept) = std::fs::read(&path)
        && !kept.is_empty()
    {
        return Ok(kept);
    }
    let made = make()?;
    let _ = keep(folder, &path, &made);
    Ok(made)
}

/// Writes to a temporary name and renames, so that another process never reads a partial file.
fn keep(folder: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let partial = path.with_extension(format!("partial-{}", std::process::id()));
    let mut file = std::fs::File::create(&partial)?;
    file.write_all(bytes)?;
    drop(file);
    std::fs::rename(&partial, path)
}

/// NVRTC's version, `[13, 0]`.
pub(super) fn version() -> Result<[u32; 2]> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are valid for writes during the call.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|error| Error::Gpu(format!("NVRTC: {:?}", error.0)))?;
    Ok([major as u32, minor as u32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_compiler_input_changes_the_cache_key() {
        let base = key("text", "sm_90", [13, 0]);
        assert_eq!(base, key("text", "sm_90", [13, 0]));
        for other in
            [key("text ", "sm_90", [13, 0]), key("text", "sm_80", [13, 0]), key("text", "sm_90", [13, 1])]
        {
            assert_ne!(base, other);
        }
        // Each element type has its own source text.
        let texts = Dtype::ALL.map(|dtype| key(&Source::Norm.text(&[dtype]), "sm_90", [13, 0]));
        assert!(texts[0] != texts[1] && texts[1] != texts[2] && texts[0] != texts[2]);
    }

    #[test]
    fn cubins_are_cached_and_an_unwritable_folder_is_no_error() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("cubins");
        let mut made = 0;
        for _ in 0..2 {
            let code = cached(Some(&folder), "k", || {
                made += 1;
                Ok(vec![1, 2, 3])
            });
            assert_eq!(code.unwrap(), [1, 2, 3]);
        }
        assert_eq!(made, 1);
        let names: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["k.cubin"]);
        // The folder's path is a file.
        let code = cached(Some(&folder.join("k.cubin")), "k", || Ok(vec![4]));
        assert_eq!(code.unwrap(), [4]);
        // An empty file is ignored. (Partial files of killed processes have another name.)
        std::fs::write(folder.join("e.cubin"), "").unwrap();
        assert_eq!(cached(Some(&folder), "e", || Ok(vec![5])).unwrap(), [5]);
    }

    #[test]
    fn a_compile_error_is_not_cached() {
        let root = tempfile::tempdir().unwrap();
        let failed = cached(Some(root.path()), "k", || Err(Error::Gpu("no".to_owned())));
        assert!(failed.is_err());
        assert!(std::fs::read_dir(root.path()).unwrap().next().is_none());
    }
}
