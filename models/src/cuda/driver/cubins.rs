//! Kernels compiled by NVRTC for the device at hand, kept on disk.

#![expect(unsafe_code, reason = "NVRTC is a C library")]

use std::ffi::{CStr, CString, c_char};
use std::io::Write;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use crate::cuda::kernels::Source;
use crate::error::{Error, Result};

/// Part of every key: raise it when what is compiled is given other options in a way that the key does not show.
const SCHEMA: u32 = 1;

/// Options for a device of this compute capability. No fast mathematics: what the CPU rounds is rounded here, and
/// denormal numbers stay. A product and a sum may be one rounded operation, as in every compiler's default.
fn options([major, minor]: [u32; 2]) -> Vec<String> {
    vec![
        format!("--gpu-architecture=sm_{major}{minor}"),
        "--std=c++17".to_owned(),
        "--ftz=false".to_owned(),
        "--prec-div=true".to_owned(),
        "--prec-sqrt=true".to_owned(),
        "--fmad=true".to_owned(),
    ]
}

/// Names a compiled text: the same text for another device, by another NVRTC or with other options is another one.
fn key(text: &str, options: &[String], version: [u32; 2]) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{SCHEMA} {version:?} {options:?} {}\n", text.len()));
    digest.update(text);
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The machine code of `source` for a device of this compute capability; from `folder` where it was compiled before.
///
/// # Errors
/// With NVRTC's log, where the text does not compile.
pub(super) fn cubin(source: Source, capability: [u32; 2], folder: Option<&Path>) -> Result<Vec<u8>> {
    let (text, options) = (source.text(), options(capability));
    cached(folder, &key(&text, &options, version()?), || compile(source.name(), &text, &options))
}

/// What `make` makes, kept under `key`. A folder that cannot be read or written costs time and nothing else.
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

/// Under another name first: a second process must never read half of it.
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
    // SAFETY: both places are written to before it returns.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|error| Error::Gpu(format!("NVRTC: {:?}", error.0)))?;
    Ok([major as u32, minor as u32])
}

/// A program, destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by `create_program`, and destroyed here alone.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn compile(name: &str, text: &str, options: &[String]) -> Result<Vec<u8>> {
    let fail = |what: &str| Error::Gpu(format!("{name}: {what}"));
    let c_text = CString::new(text).map_err(|_| fail("a zero byte in the source"))?;
    let c_name = CString::new(name).map_err(|_| fail("a zero byte in the name"))?;
    let nvrtc = |error: result::NvrtcError| fail(&format!("NVRTC: {:?}", error.0));
    let program = Program(result::create_program(&c_text, Some(&c_name)).map_err(nvrtc)?);
    // SAFETY: the program lives until the end of this function.
    if let Err(error) = unsafe { result::compile_program(program.0, options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        return Err(fail(&format!("NVRTC: {:?}\n{}", error.0, log_text(&log))));
    }
    let mut size = 0;
    // SAFETY: as above; the place is written to before it returns.
    unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) }.result().map_err(nvrtc)?;
    if size == 0 {
        return Err(fail("NVRTC made no machine code"));
    }
    let mut code = vec![0_u8; size];
    // SAFETY: as above; the buffer has the size that was asked for.
    unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()) }.result().map_err(nvrtc)?;
    Ok(code)
}

/// Up to the zero that ends it.
fn log_text(log: &[c_char]) -> String {
    let bytes: Vec<u8> = log.iter().map(|&byte| byte.cast_unsigned()).collect();
    CStr::from_bytes_until_nul(&bytes).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_changes_the_code_changes_its_name() {
        let base = key("text", &options([9, 0]), [13, 0]);
        assert_eq!(base, key("text", &options([9, 0]), [13, 0]));
        let others = [
            key("text ", &options([9, 0]), [13, 0]),
            key("text", &options([8, 0]), [13, 0]),
            key("text", &options([9, 0]), [13, 1]),
            key("text", &options([9, 0])[1..], [13, 0]),
        ];
        for other in others {
            assert_ne!(base, other);
        }
        assert!(options([12, 1])[0].ends_with("sm_121"));
    }

    #[test]
    fn what_was_compiled_once_is_read_and_a_folder_that_cannot_be_written_does_not_matter() {
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
        // A file stands where the folder would be.
        let code = cached(Some(&folder.join("k.cubin")), "k", || Ok(vec![4]));
        assert_eq!(code.unwrap(), [4]);
        // Half a file of a process that was killed is never under that name; an empty one is none.
        std::fs::write(folder.join("e.cubin"), "").unwrap();
        assert_eq!(cached(Some(&folder), "e", || Ok(vec![5])).unwrap(), [5]);
    }

    #[test]
    fn a_failure_to_compile_is_not_kept() {
        let root = tempfile::tempdir().unwrap();
        let failed = cached(Some(root.path()), "k", || Err(Error::Gpu("no".to_owned())));
        assert!(failed.is_err());
        assert!(std::fs::read_dir(root.path()).unwrap().next().is_none());
    }
}
