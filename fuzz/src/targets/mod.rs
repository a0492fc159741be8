//! Every parser of untrusted bytes, as a table: the fuzzer (`../main.rs`) and the suite's replay of the seeds
//! (`tests/fast/hostile/fuzzed.rs`) run the same rows.
//!
//! A target must return whatever it is given: it may not panic, abort, hang or ask for much memory, and what it asserts must
//! hold.

mod checkpoints;
mod edits;
mod runs;
mod texts;

use std::path::Path;

/// A parser, ready to be called with any bytes.
pub(crate) type Parse = Box<dyn FnMut(&[u8])>;

/// One row of the table.
pub(crate) struct Target {
    /// Its name, and that of its folder in `fuzz/seeds`.
    pub(crate) name: &'static str,
    /// Prepares the parser, which may write to the empty folder that it is given.
    pub(crate) open: fn(&Path) -> Parse,
}

/// All targets.
pub(crate) const TARGETS: [Target; 22] = [
    Target { name: "safetensors", open: checkpoints::safetensors },
    Target { name: "index", open: checkpoints::index },
    Target { name: "gguf", open: checkpoints::gguf },
    Target { name: "gguf-made", open: checkpoints::gguf_made },
    Target { name: "config", open: checkpoints::config },
    Target { name: "template", open: texts::template },
    Target { name: "toml", open: texts::toml },
    Target { name: "reply", open: texts::reply },
    Target { name: "releases", open: texts::releases },
    Target { name: "headers", open: texts::headers },
    Target { name: "shown", open: texts::shown },
    Target { name: "inputs", open: runs::inputs },
    Target { name: "tensors", open: runs::tensors },
    Target { name: "logits", open: runs::logits },
    Target { name: "torch-zip", open: runs::torch_zip },
    Target { name: "run", open: |folder| runs::record(folder, "run.json") },
    Target { name: "environment", open: |folder| runs::record(folder, "environment.json") },
    Target { name: "cell", open: |folder| runs::record(folder, runs::CELL) },
    Target { name: "localized", open: |folder| runs::record(folder, "localized.json") },
    Target { name: "diagnosed", open: |folder| runs::record(folder, "diagnosed.json") },
    Target { name: "relations", open: |folder| runs::record(folder, runs::RELATIONS) },
    Target { name: "history", open: runs::history },
];

/// The fuzzer's folder in the repository.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    // The tests of the main package include this module too.
    FOLDER.get_or_init(|| if package.ends_with("fuzz") { package.to_owned() } else { package.join("fuzz") })
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
