//! The GGUF files that the quantised ports get: what transformers reads from them is the checkpoint that it is judged with.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::process::Command;

use reference::{Source, Specification, Versions};
use tfcheck::spec::checkpoint::{self, Settings};

/// Checkpoints whose files transformers reads. Of the others it reads no rope scaling, no `head_dim` of qwen3, a padding token of
/// phi3 beyond a small vocabulary, and gemma3 and lfm2 only with a tokenizer.
const READ: [&str; 2] = ["llama:tiny", "qwen2"];

#[test]
fn transformers_reads_the_checkpoint_from_the_file_that_a_quantised_port_gets() {
    let cache = tfcheck::app::cache_folder().unwrap();
    let specification = Specification {
        extra: vec!["gguf>=0.10".into(), "accelerate".into()],
        ..Specification::new(Source::Release(Versions::known().newest.clone()))
    };
    let environment = reference::prepare(&specification, &cache, &|line| eprintln!("{line}")).unwrap();
    let folders: Vec<tempfile::TempDir> = READ.iter().map(|name| made(name)).collect();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf_ports.py");
    let mut command = Command::new(&environment.python);
    command.args(["-I", script]).args(folders.iter().map(tempfile::TempDir::path));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with('{')).collect();
    assert_eq!(lines.len(), READ.len(), "{said}");
    for (name, line) in READ.iter().zip(lines) {
        println!("{name}: {line}");
        let found: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(found["other"], serde_json::json!([]), "{name}");
        // In float64, of the same weights; the file's numbers are f32.
        assert!(found["relative_l2"].as_f64().unwrap() < 1e-6, "{name}: {line}");
    }
}

/// A synthetic checkpoint with its file.
fn made(name: &str) -> tempfile::TempDir {
    let settings = Settings::new(tfcheck::app::cache_folder().unwrap());
    let resolved = checkpoint::resolve(&format!("synthetic:{name}"), &settings, &mut |_| ()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(&resolved.folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let file = ports::gguf(folder.path()).unwrap_or_else(|failed| panic!("{name}: {}", failed.message));
    std::fs::write(folder.path().join("port.gguf"), file).unwrap();
    folder
}
