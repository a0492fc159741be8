//! The bridge module that is embedded in this program.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use crate::cache::write_atomically;
use crate::digest::short;

/// `tfcheck_bridge`, built by `build.rs`.
static BRIDGE: &[u8] = include_bytes!(env!("TFCHECK_BRIDGE_MODULE"));
static DIGEST: LazyLock<String> = LazyLock::new(|| short([BRIDGE]));

/// Digest of the bridge module; part of every result's key.
pub fn bridge_digest() -> &'static str {
    &DIGEST
}

/// Writes the module into the cache unless it is there; returns the folder for `sys.path`.
pub(crate) fn write_bridge(cache: &Path) -> io::Result<PathBuf> {
    let folder = std::path::absolute(cache)?.join("bridge").join(bridge_digest());
    let path = folder.join("tfcheck_bridge.abi3.so");
    // The folder's name is the digest and the write is atomic, so an existing file is complete.
    if !path.exists() {
        write_atomically(&path, BRIDGE)?;
    }
    Ok(folder)
}
