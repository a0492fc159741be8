//! Records what `environment.json` and the cells report: the compiler, and the versions of candle pinned in
//! Cargo.lock.

use std::path::Path;
use std::process::Command;

/// The packages whose versions are reported, and the environment variables that the sources read them from.
const LOCKED: [(&str, &str); 2] =
    [("candle-core", "TFCHECK_CANDLE_CORE"), ("candle-transformers", "TFCHECK_CANDLE_TRANSFORMERS")];

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let version = Command::new(rustc).arg("--version").output();
    let version = version.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    println!("cargo::rustc-env=TFCHECK_RUSTC={}", version.unwrap_or_else(|_| "unknown".to_owned()));
    println!("cargo::rerun-if-changed=build.rs");

    // `cargo package` adds Cargo.lock to the crate, so that it exists in the workspace and in the published
    // crate.
    let lock = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("Cargo.lock");
    let text = std::fs::read_to_string(&lock).unwrap_or_default();
    for (package, variable) in LOCKED {
        println!("cargo::rustc-env={variable}={}", locked(&text, package).unwrap_or("unknown"));
    }
    if lock.is_file() {
        println!("cargo::rerun-if-changed=Cargo.lock");
    }
}

/// The version of a package in the text of a Cargo.lock.
fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let quoted = |line: &'a str, key: &str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"');
    let mut lines = lock.lines();
    lines.find(|line| quoted(line, "name") == Some(package))?;
    quoted(lines.next()?, "version")
}
