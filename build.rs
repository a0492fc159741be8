//! Records what `environment.json`, plans and the cells report: the compiler, the versions of candle pinned in Cargo.lock, and
//! a digest of the sources.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// Folders whose content determines what tfcheck computes. In the published crate the libraries are dependencies, which
/// Cargo.lock pins by their digests.
const SOURCES: [&str; 8] =
    ["src", "bounds/src", "compare/src", "models/src", "port/src", "ports/src", "protocol/src", "reference"];

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
    let root = lock.parent().unwrap_or(Path::new("."));
    println!("cargo::rustc-env=TFCHECK_SOURCE={}", source(root, &text));
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".to_owned());
    findings(root);
    println!("cargo::rustc-env=TFCHECK_TARGET={}", variable("TARGET"));
    println!(
        "cargo::rustc-env=TFCHECK_PROFILE={} (optimisation {})",
        variable("PROFILE"),
        variable("OPT_LEVEL")
    );
}

/// Writes `findings.rs`: name and text of each reproduction in `results/findings/`, to which the scoreboard links.
fn findings(root: &Path) {
    let folder = root.join("results/findings");
    if folder.is_dir() {
        println!("cargo::rerun-if-changed=results/findings");
    }
    let mut files: Vec<PathBuf> = Vec::new();
    add_files(&folder, &mut files);
    files.sort();
    let mut list = String::from("&[\n");
    for file in &files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let _ = writeln!(list, "    ({name:?}, {text:?}),");
    }
    list.push_str("]\n");
    let out = std::env::var("OUT_DIR").unwrap_or_default();
    std::fs::write(Path::new(&out).join("findings.rs"), list).expect("cargo gives a folder to write to");
}

/// SHA-256 in hex over the names and contents of the sources and over Cargo.lock.
fn source(root: &Path, lock: &str) -> String {
    let mut files = Vec::new();
    for folder in SOURCES {
        // Cargo would always rebuild for a path that does not exist.
        if root.join(folder).is_dir() {
            println!("cargo::rerun-if-changed={folder}");
        }
        add_files(&root.join(folder), &mut files);
    }
    files.sort();
    let mut hasher = Sha256::new();
    hasher.update(lock);
    for file in files {
        let name = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let content = std::fs::read(&file).unwrap_or_default();
        hasher.update(format!("\0{name}\0{}\0", content.len()));
        hasher.update(content);
    }
    let mut hex = String::new();
    for byte in hasher.finalize() {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// Adds the sources below a folder: Rust, Python, TOML and what reports embed, without tests.
fn add_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !["tests", "snapshots", "target", "__pycache__"].contains(&name.as_str()) {
                add_files(&path, files);
            }
        } else if name != "tests.rs" {
            files.push(path);
        }
    }
}

/// The version of a package in the text of a Cargo.lock.
fn locked<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let quoted = |line: &'a str, key: &str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"');
    let mut lines = lock.lines();
    lines.find(|line| quoted(line, "name") == Some(package))?;
    quoted(lines.next()?, "version")
}
