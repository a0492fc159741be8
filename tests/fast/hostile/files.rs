//! Files that a config names: only regular ones, only up to their limits, and sizes only up to theirs.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use serde_json::json;

use super::unwrapped;
use crate::support::{Sandbox, stderr, stdout};

#[test]
fn the_table_of_limits_is_in_the_documentation() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/FAULTS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("## Limits").unwrap();
    let rows: Vec<String> =
        bounds::limits::LIMITS.iter().map(|limit| format!("| {} | {} |", limit.most, limit.of)).collect();
    let found: Vec<&str> =
        table.lines().filter(|line| line.starts_with("| ") && !line.contains("at most")).collect();
    assert_eq!(found, rows, "the rows should be:\n{}", rows.join("\n"));
}

/// Files in which the functions of a module are, for a name in the documentation's table.
fn sources(module: &[&str]) -> Vec<std::path::PathBuf> {
    let (package, rest) = module.split_first().unwrap();
    let roots: &[&str] = match *package {
        "bounds" => &["bounds/src"],
        "reference" => &["reference/src", "reference/tests/fast"],
        _ => &["src", "tests/fast"],
    };
    let inside = if matches!(*package, "bounds" | "reference") { rest } else { module };
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = |folder: &&str| root.join(folder).join(inside.join("/")).with_extension("rs");
    roots.iter().map(path).filter(|path| path.is_file()).collect()
}

#[test]
fn every_test_that_the_table_of_faults_names_exists() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/FAULTS.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (_, table) = text.split_once("## Table").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    // A row without an outcome is a heading.
    let rows = table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| **"));
    for row in rows.skip(1) {
        let tests = row.trim_end_matches(" |").rsplit_once(" | ").unwrap().1;
        assert!(tests.starts_with('`'), "no test: {row}");
        for test in tests.split(", ") {
            let names: Vec<&str> = test.trim_matches('`').split("::").collect();
            let (function, module) = names.split_last().unwrap();
            let claim = format!("#[test]\nfn {function}(");
            let holds = |path: &std::path::PathBuf| {
                let lines = std::fs::read_to_string(path).unwrap().replace("    ", "");
                lines.contains(&claim)
            };
            assert!(!module.is_empty() && sources(module).iter().any(holds), "{test} does not exist");
        }
    }
}

/// The exit code and the message of `tfcheck` within ten seconds.
fn told(sandbox: &Sandbox, arguments: &[&str]) -> (Option<i32>, String) {
    let begun = Instant::now();
    let output = sandbox.tfcheck(arguments);
    assert!(begun.elapsed() < Duration::from_secs(10), "{arguments:?}");
    (output.status.code(), unwrapped(&stderr(&output)))
}

#[test]
fn fifos_devices_and_other_encodings_are_refused_where_a_config_is_named() {
    let sandbox = Sandbox::new();
    let fifo = sandbox.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    symlink("/dev/zero", sandbox.path().join("zero")).unwrap();
    std::fs::write(sandbox.path().join("utf16"), b"\xff\xfea\0").unwrap();
    let large = std::fs::File::create(sandbox.path().join("large")).unwrap();
    large.set_len(1 << 40).unwrap();
    let check = |file: &str, expected: &str| {
        let (code, message) = told(&sandbox, &["plan", file]);
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains(expected), "{file}: {message}");
    };
    check("fifo", "a FIFO, not a regular file");
    check("zero", "a device, not a regular file");
    check("utf16", "UTF-16");
    check("large", "bytes of tfcheck.toml");
}

#[test]
fn files_of_a_checkpoint_and_texts_are_regular_files() {
    let check = |name: &str, file: &str, expected: &str| {
        let sandbox = Sandbox::new();
        let config = sandbox.workers(&[("one", "good")], "rounds = 0");
        let text = std::fs::read_to_string(&config).unwrap().replace("synthetic:llama:tiny", "./model");
        std::fs::write(&config, text).unwrap();
        sandbox.write("model/config.json", r#"{"model_type": "llama", "vocab_size": 8}"#);
        let path = sandbox.path().join("model").join(name);
        let _ = std::fs::remove_file(&path);
        symlink(file, &path).unwrap();
        let (code, message) = told(&sandbox, &["run", "tfcheck.toml"]);
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains(expected), "{name}: {message}");
    };
    for name in ["config.json", "model.safetensors", "model.safetensors.index.json"] {
        check(name, "/dev/zero", "a device, not a regular file");
        check(name, "nowhere", "No such file");
    }
}

#[test]
fn values_of_a_config_that_no_checkpoint_can_have_end_with_code_2_and_name_key_and_file() {
    let check = |value: &str, key: &str| {
        let sandbox = Sandbox::new();
        let config = sandbox.workers(&[("one", "good")], "rounds = 0");
        let text = std::fs::read_to_string(&config).unwrap().replace("synthetic:llama:tiny", "./model");
        std::fs::write(&config, text).unwrap();
        sandbox.write("model/config.json", &format!(r#"{{"model_type": "llama", {value}}}"#));
        let (code, message) = told(&sandbox, &["run", "tfcheck.toml"]);
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains(&format!("`{key}`")) && message.contains("config.json"), "{message}");
    };
    check(r#""vocab_size": 4611686018427387904"#, "vocab_size");
    check(r#""hidden_size": 64, "num_attention_heads": 0"#, "num_attention_heads");
    check(r#""hidden_size": 64, "num_attention_heads": 5"#, "num_attention_heads");
    check(r#""rope_scaling": {"rope_type": "linear", "factor": 0.0}"#, "rope_scaling.factor");
}

#[test]
fn sizes_and_tolerances_beyond_their_limits_are_refused_at_their_line() {
    let sandbox = Sandbox::new();
    let check = |text: &str, expected: &str| {
        sandbox.write("tfcheck.toml", text);
        let (code, message) = told(&sandbox, &["plan"]);
        assert_eq!(code, Some(2), "{text}: {message}");
        assert!(message.contains(expected), "{text}: {message}");
    };
    check("[inputs]\nlengths = [1000000000000]\n", "1000000000000 tokens of a sequence");
    check("[inputs]\nlengths = [8]\nbatch = [1000000000000]\n", "sequences of a batch");
    check("[inputs]\nlengths = [1000000]\nbatch = [60000]\n", "tokens of a batch");
    check(
        "[run]\nrounds = 99999999999999999999\n",
        "integer `99999999999999999999`, expected a whole number",
    );
    check("[run]\niterations = 9223372036854775807\n", "forward passes or tokens");
    check("[run]\nthreads = 10000000\n", "threads of a worker");
    check("[run]\ntimeout_s = 9223372036854775807\n", "seconds of a wait");
    check("[run]\nmemory_budget_gb = 1e300\n", "GB of memory");
    check("[tolerances]\nf64_agreement = nan\n", "NaN where a finite number");
    check("[tolerances]\nrelative_l2 = { f32 = -1.0 }\n", "-1 where a finite number");
    check("[tolerances]\nlocal_factor = inf\n", "inf where a finite number");
    let many: Vec<String> = (1..200_000).map(|number| number.to_string()).collect();
    check(&format!("[inputs]\nlengths = [{}]\n", many.join(",")), "entries of one list");
    check(&format!("[a.{}]\n", "b.".repeat(100_000) + "c"), "nests tables deeper than 32");
    check(&format!("x = {}{}\n", "[".repeat(200_000), "]".repeat(200_000)), "nested too deep");
    check("[run]\nseed = 1\0\n", "it holds zero bytes");
}

/// What `tfcheck run` prints of tfcheck's own model on a checkpoint whose config has these keys instead.
fn native(changes: &serde_json::Value) -> (Option<i32>, String) {
    let sandbox = Sandbox::new();
    let model = sandbox.path().join("model");
    models::synthetic::write("llama", "tiny", 0, &model).unwrap();
    let path = model.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    sandbox.write(
        "tfcheck.toml",
        "versions = []\n[[checkpoints]]\nsource = \"./model\"\n[inputs]\nlengths = [8]\n[candle]\nmodes = [\"eager\"]\n\
         [run]\nrounds = 0\ntrace = false\nnoise = false\nmodes = [\"eager\"]\n",
    );
    let output = sandbox.tfcheck(&["run", "tfcheck.toml"]);
    (output.status.code(), unwrapped(&(stdout(&output) + &stderr(&output))))
}

#[test]
fn a_config_that_does_not_fit_its_weights_is_reported_with_the_remedy() {
    let check = |changes: serde_json::Value, code: i32, expected: &[&str]| {
        let (found, shown) = native(&changes);
        assert_eq!(found, Some(code), "{shown}");
        assert!(expected.iter().all(|expected| shown.contains(expected)), "{shown}");
    };
    let remedy = "fetch both from one revision";
    check(json!({"vocab_size": 5}), 3, &["model.embed_tokens.weight has shape", remedy]);
    check(
        json!({"attention_bias": true}),
        3,
        &["has no tensor model.layers.0.self_attn.q_proj.bias", remedy],
    );
    check(json!({"num_hidden_layers": 0}), 0, &["no variant reads", "such as model.layers.0."]);
    check(json!({"rope_theta": 7.0}), 0, &["has rope_theta 7 and rope_parameters.rope_theta"]);
}

/// The only sources that open files without `bounds::file`, and what these files are.
const OWN_FILES: [(&str, &str); 8] = [
    ("models/src/cuda/driver/cubins.rs", "kernels in tfcheck's own cache"),
    ("port/src/worker.rs", "/proc, and the descriptor of the requests"),
    ("port/src/worker/tensors.rs", "a file that was just written"),
    ("reference/src/environment.rs", "uv.lock, which uv just wrote"),
    ("reference/src/worker/memory.rs", "/proc and cgroups"),
    ("src/app/session.rs", "/proc"),
    ("src/execute/checkout.rs", "the package that tfcheck generates, and the program that cargo built of it"),
    ("src/spec/atomic.rs", "a folder, to sync it"),
];

#[test]
fn every_file_that_others_may_have_made_is_opened_within_the_limits() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<_> =
        ["src", "compare/src", "models/src", "port/src", "reference/src"].map(|name| root.join(name)).into();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
            if path.extension().is_none_or(|extension| extension != "rs") || name.contains("/tests") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let opens = ["fs::read(", "fs::read_to_string(", "File::open("];
            if opens.iter().any(|open| code.contains(open)) {
                found.push(name);
            }
        }
    }
    found.sort();
    let own: Vec<&str> = OWN_FILES.iter().map(|(name, _)| *name).collect();
    assert_eq!(found, own, "open a file of others with bounds::file, which refuses FIFOs and devices");
}

#[test]
fn a_missing_temporary_folder_is_named_with_the_remedy() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("one", "good")], "rounds = 0");
    let mut command = sandbox.command(&["run", "tfcheck.toml"]);
    let output = command.env("TMPDIR", sandbox.path().join("gone")).output().unwrap();
    let message = unwrapped(&stderr(&output));
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(
        message.contains("cannot create a temporary folder in") && message.contains("set TMPDIR"),
        "{message}"
    );
}

#[test]
fn a_checkpoint_of_another_kind_of_file_is_refused_by_its_kind() {
    let sandbox = Sandbox::new();
    let fifo = sandbox.path().join("fifo.gguf");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
    symlink("/dev/zero", sandbox.path().join("zero.gguf")).unwrap();
    let check = |source: &str, expected: &str| {
        let (code, message) = told(&sandbox, &["run", "--checkpoint", source]);
        assert_eq!(code, Some(2), "{message}");
        assert!(message.contains(expected), "{source}: {message}");
    };
    sandbox.write("tfcheck.toml", "versions = []\n");
    check("./fifo.gguf", "a FIFO, not a regular file");
    check("./zero.gguf", "a device, not a regular file");
    check("./none.gguf", "does not exist");
    check("./tfcheck.toml", "is not a folder");
}

#[test]
fn seconds_and_threads_beyond_their_limits_are_refused() {
    let sandbox = Sandbox::new();
    sandbox.write("tfcheck.toml", "versions = []\n");
    let most = u64::MAX.to_string();
    for arguments in [
        &["gpu-check", "--emulate", "--seconds", &most][..],
        &["gpu-check", "--seconds", "0"],
        &["diagnose", "a", "b", "--seconds", &most],
        &["check-worker", "--timeout", "0", "true"],
    ] {
        let (code, message) = told(&sandbox, arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {message}");
        assert!(message.contains("is not in 1..=2678400"), "{message}");
    }
    let output = sandbox.command(&["plan"]).env("RAYON_NUM_THREADS", "99999999999").output().unwrap();
    let message = unwrapped(&stderr(&output));
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("RAYON_NUM_THREADS asks for 99999999999 threads"), "{message}");
}

/// What `tfcheck` prints as a child of a shell that runs `before`.
fn in_a_shell(sandbox: &Sandbox, before: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("{before}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_tfcheck")]);
    let output = command.args(arguments).current_dir(sandbox.path()).output().unwrap();
    (output.status.code(), unwrapped(&(stdout(&output) + &stderr(&output))))
}

#[test]
fn a_limit_on_the_size_of_files_is_reported_and_the_run_resumes() {
    let sandbox = Sandbox::new();
    sandbox.workers(&[("one", "good")], "rounds = 0");
    // The checkpoint is then in the cache.
    let (code, message) = told(&sandbox, &["run", "tfcheck.toml", "--results", "before"]);
    assert_eq!(code, Some(0), "{message}");
    // In units of 512 bytes, or of 1024 in some shells: the page is larger.
    let (code, message) = in_a_shell(&sandbox, "ulimit -f 16", &["run", "tfcheck.toml"]);
    assert_eq!(code, Some(3), "{message}");
    assert!(message.contains("File too large") && message.contains("ulimit -f"), "{message}");
    let run = sandbox.only_run();
    let (code, message) = told(&sandbox, &["run", "--resume", run.path().to_str().unwrap()]);
    assert_eq!(code, Some(0), "{message}");
}

#[test]
fn a_result_that_standard_output_does_not_take_is_an_error() {
    let sandbox = Sandbox::new();
    sandbox.write("tfcheck.toml", "versions = []\n");
    for arguments in [&["plan"][..], &["plan", "--format", "json"], &["schema"], &["--version", "--verbose"]]
    {
        let (code, message) = in_a_shell(&sandbox, "exec >/dev/full", arguments);
        assert_eq!(code, Some(3), "{arguments:?}: {message}");
        assert!(message.contains("cannot write standard output"), "{message}");
    }
}

#[test]
fn a_full_standard_error_changes_no_exit_code() {
    let sandbox = Sandbox::new();
    let (code, _) = in_a_shell(&sandbox, "exec 2>/dev/full", &["plan", "none.toml"]);
    assert_eq!(code, Some(2));
    sandbox.workers(&[("one", "good")], "rounds = 0\nnoise = false");
    let (code, shown) = in_a_shell(&sandbox, "exec 2>/dev/full", &["run", "tfcheck.toml"]);
    assert_eq!(code, Some(0), "{shown}");
}
