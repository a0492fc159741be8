//! Builds the bridge as a Python extension module, for `src/embedded.rs` to embed.
//!
//! Runs a nested cargo with its own target folder: the outer build holds the lock of its folder, and the
//! module must not share pyo3's features with the rlib that the CLI links.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let bridge = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("bridge");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", bridge.join("src").display());
    println!("cargo::rerun-if-changed={}", bridge.join("../../protocol/src").display());
    println!("cargo::rerun-if-changed={}", bridge.join("Cargo.toml").display());
    let target_folder = Path::new(&variable("OUT_DIR")).join("bridge");
    let (host, target) = (variable("HOST"), variable("TARGET"));
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .args(["rustc", "--lib", "--release", "--locked", "--quiet"])
        .args(["--crate-type", "cdylib", "--features", "module"])
        .arg("--manifest-path")
        .arg(bridge.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target_folder)
        // Any Python from 3.10 on loads the module (abi3), so it is built without an interpreter.
        .env("PYO3_NO_PYTHON", "1")
        .env("PYO3_BUILD_EXTENSION_MODULE", "1")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET");
    // Clippy and similar tools wrap the compiler of workspace members; the nested build must not be checked
    // by them.
    for name in [
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTFLAGS",
        "CARGO_PRIMARY_PACKAGE",
    ] {
        cargo.env_remove(name);
    }
    // These variables describe the package of this script, not the bridge.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_FEATURE_") || name.starts_with("CARGO_CFG_") {
            cargo.env_remove(name.as_ref());
        }
    }
    let mut built = target_folder;
    if host != target {
        cargo.args(["--target", &target]);
        built.push(&target);
    }
    built.push("release");
    let apple = target.contains("apple");
    if apple {
        // Python's symbols are resolved when the module is loaded.
        cargo.args(["--", "-Clink-arg=-undefined", "-Clink-arg=dynamic_lookup"]);
    }
    let status =
        cargo.status().unwrap_or_else(|error| panic!("cargo could not be started for the bridge: {error}"));
    assert!(status.success(), "the bridge module did not build: {status}");
    built.push(if apple { "libbridge.dylib" } else { "libbridge.so" });
    println!("cargo::rustc-env=TFCHECK_BRIDGE_MODULE={}", built.display());
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
