//! Mutated files and lines for each parser of untrusted bytes: whatever they hold, the parser returns.
//!
//! Every target mutates a valid seed with a fixed sequence of random numbers, so that a failure repeats. A target runs for
//! `TFCHECK_FUZZ_SECONDS` seconds if that is set, with another sequence each second; otherwise for some hundred inputs. An
//! input that fails is written to the temporary folder of the tests, and belongs to `tests/fixtures/hostile/<target>`,
//! whose files every run replays.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use tfcheck::commands::merge::{MergeRequest, Merged, merge};
use tfcheck::execute::progress::Progress;
use tfcheck::judge::history::History;
use tfcheck::results::{RunFolder, torch_zip};
use tfcheck::spec::checkpoint::{self, Checkpoint, Source};
use tfcheck::spec::config::Config;
use tfcheck::spec::inputs::{self, Message};

use crate::checkpoint_files::{config, safetensors, settings};
use crate::support::{Sandbox, fixture};

/// SplitMix64 (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % most.max(1) as u64) as usize
    }
}

/// Values that parsers of JSON, TOML and binary numbers tend to get wrong.
const WORDS: [&str; 14] = [
    "0",
    "-1",
    "1e308",
    "18446744073709551615",
    "9223372036854775807",
    "4294967296",
    "null",
    "[]",
    "{}",
    "\"\"",
    "true",
    "\"../../x\"",
    "nan",
    "[[[[[[[[",
];

/// A copy with one to four changes: of bytes, or of a number or a word in text.
fn mutated(seed: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = random.below(bytes.len());
        match random.below(9) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 0xff, 0x80, b'"', b'['][random.below(5)],
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..(at + 1 + random.below(16)).min(bytes.len()))),
            4 => {
                let part = bytes[at..(at + 1 + random.below(64)).min(bytes.len())].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            5 => {
                let number = [0, 1, u64::MAX, 1 << 63, 1 << 40, random.next()][random.below(6)].to_le_bytes();
                let end = (at + [4, 8][random.below(2)]).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
            // The next run of digits or of letters becomes another value.
            _ => {
                let begin =
                    bytes[at..].iter().position(u8::is_ascii_alphanumeric).map_or(at, |index| at + index);
                let length = bytes[begin..]
                    .iter()
                    .take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'.')
                    .count();
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(begin..begin + length, word.bytes());
            }
        }
    }
    bytes
}

/// Passes mutations of `seed` to `parse`, which must return whatever they are.
fn fuzz(target: &str, seed: &[u8], count: u64, mut parse: impl FnMut(&[u8])) {
    let mut run = |bytes: &[u8]| {
        if let Err(panic) = bounds::caught(|| parse(bytes)) {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{target}"));
            std::fs::write(&path, bytes).unwrap();
            panic!("{target} {panic}; the input is in {}", path.display());
        }
    };
    for entry in std::fs::read_dir(fixture("hostile").join(target)).into_iter().flatten() {
        run(&std::fs::read(entry.unwrap().path()).unwrap());
    }
    run(seed);
    let seconds = std::env::var("TFCHECK_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut done = 0;
    while end.map_or(done < count, |end| Instant::now() < end) {
        let mut random = Random(done);
        run(&mutated(seed, &mut random));
        done += 1;
    }
    if end.is_some() {
        eprintln!("{target}: {done} inputs");
    }
}

/// A checkpoint folder in which `name` is replaced by each mutation.
fn fuzz_checkpoint(target: &str, name: &str, seed: &[u8]) {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("model");
    std::fs::create_dir(&model).unwrap();
    std::fs::write(model.join("config.json"), config()).unwrap();
    std::fs::write(model.join("one.safetensors"), safetensors(&[("a", 3)])).unwrap();
    if name != "model.safetensors.index.json" {
        std::fs::write(model.join("model.safetensors"), safetensors(&[("a", 3), ("b", 5)])).unwrap();
    }
    let settings = settings(root.path());
    fuzz(target, seed, 400, |bytes| {
        std::fs::write(model.join(name), bytes).unwrap();
        let _ = checkpoint::resolve(model.to_str().unwrap(), &settings, &mut |_| ());
    });
}

#[test]
fn safetensors_headers_configs_and_indices() {
    fuzz_checkpoint("safetensors", "model.safetensors", &safetensors(&[("a", 3), ("b", 5)]));
    let full = json!({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}, "text_config": {"head_dim": 16}, "rms_norm_eps": 1e-5});
    fuzz_checkpoint("config", "config.json", full.to_string().as_bytes());
    let index = json!({"metadata": {"total_size": 1}, "weight_map": {"a": "one.safetensors"}});
    fuzz_checkpoint("index", "model.safetensors.index.json", index.to_string().as_bytes());
}

#[test]
fn configs_of_every_architecture_are_loaded_or_refused_by_both_backends() {
    let root = tempfile::tempdir().unwrap();
    let ids = Tensor::from_vec((0..8_u32).collect(), (1, 8), &Device::Cpu).unwrap();
    for model_type in models::model_types() {
        let folder = root.path().join(model_type);
        std::fs::create_dir(&folder).unwrap();
        models::synthetic::write(model_type, "", 0, &folder).unwrap();
        let path = folder.join("config.json");
        let seed = std::fs::read(&path).unwrap();
        fuzz(&format!("load-{model_type}"), &seed, 12, |bytes| {
            std::fs::write(&path, bytes).unwrap();
            for backend in [models::Backend::Eager, models::Backend::Fused] {
                let options = models::Options { dtype: DType::F32, device: Device::Cpu, backend };
                let Ok(mut loaded) = models::load(&folder, &options) else { continue };
                let mut inputs = models::Inputs::new(ids.clone());
                if models::kind(model_type) == Some(models::Kind::EncoderDecoder) {
                    inputs = inputs.with("decoder_input_ids", ids.clone());
                }
                let _ = loaded.forward(&inputs);
            }
        });
    }
}

#[test]
fn gguf_files() {
    let root = tempfile::tempdir().unwrap();
    let seed = crate::checkpoint_gguf::tiny(root.path());
    let path = root.path().join("mutated.gguf");
    let settings = settings(root.path());
    // The header is a small part of the file, and the part that is parsed.
    let header = seed.len().min(8 << 10);
    fuzz("gguf", &seed[..header], 300, |bytes| {
        std::fs::write(&path, [bytes, &seed[header..]].concat()).unwrap();
        let _ = checkpoint::resolve(path.to_str().unwrap(), &settings, &mut |_| ());
        let _ = std::fs::remove_dir_all(root.path().join("cache"));
    });
}

#[test]
fn tokenizers_and_templates() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let seed = json!({
        "version": "1.0", "truncation": null, "padding": null, "decoder": null, "post_processor": null,
        "added_tokens": [{"id": 2, "content": "x", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "aaa": 1}, "unk_token": "<unk>"},
    });
    let checkpoint = Checkpoint {
        name: "tiny".to_owned(),
        source: Source::Folder(folder.path().to_owned()),
        revision: None,
        folder: folder.path().to_owned(),
        config: json!({"model_type": "llama", "vocab_size": 9}),
        model_type: "llama".to_owned(),
        weights: Vec::new(),
        tokenizer: Some(path.clone()),
        digest: String::new(),
        notes: Vec::new(),
    };
    fuzz("tokenizer", seed.to_string().as_bytes(), 400, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let Ok(source) = inputs::Source::open(&checkpoint) else { return };
        let spec = inputs::Spec::Lengths {
            lengths: vec![4],
            batches: vec![1],
            paddings: vec![None],
            text: None,
            seed: 0,
        };
        let _ = source.make(&spec);
    });
    let template = b"{% for m in messages %}{{ m.role + ': ' + m.content | trim }}{% if loop.last %}{{ [1, 2] | tojson }}{% endif %}{% endfor %}";
    let messages = [Message { role: "user".to_owned(), content: "a".to_owned() }];
    fuzz("template", template, 400, |bytes| {
        std::fs::write(folder.path().join("chat_template.jinja"), bytes).unwrap();
        let _ = inputs::render(folder.path(), &messages);
    });
}

#[test]
fn configs_of_runs_logits_and_replies() {
    let text = "versions = []\n[[checkpoints]]\nsource = \"synthetic:llama:tiny\"\n[inputs]\nlengths = [8, 16]\nbatch = [1]\n\
                [run]\nrounds = 1\nfail_on = [\"l2>1e-3\"]\n[tolerances]\nrelative_l2 = { f32 = 1e-5 }\n";
    fuzz("toml", text.as_bytes(), 1000, |bytes| {
        let _ = Config::parse(&String::from_utf8_lossy(bytes), Path::new("tfcheck.toml"));
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let logits = [("logits", Tensor::ones((1, 2, 3), DType::F32, &Device::Cpu).unwrap())];
    candle_core::safetensors::save(&logits.into(), &path).unwrap();
    let seed = std::fs::read(&path).unwrap();
    fuzz("logits", &seed, 1000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        if let Ok(logits) = compare::logits::Logits::open(&path, compare::Positions::All) {
            let _ = logits.value(0, 0);
        }
        let _ = compare::mask::Mask::of_inputs(&path);
    });
    let seed = std::fs::read(fixture("logits_f32.pt")).unwrap();
    fuzz("torch-zip", &seed, 1000, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let _ = torch_zip::open(&path);
    });
    let reply = r#"{"is": "ready", "libraries": {"a": "1"}, "load_ns": 5, "notes": ["a\u001b[2J"], "ignored_keys": ["k"]}"#;
    fuzz("reply", reply.as_bytes(), 2000, |bytes| {
        let _ = bounds::parse::<reference::protocol::Reply>(bytes);
    });
}

#[test]
fn run_folders_and_histories() {
    let sandbox = Sandbox::new();
    let file = sandbox.workers(&[("one", "good")], "iterations = 1\nrounds = 0\nnoise = false");
    assert_eq!(sandbox.run(&file, &[]).status.code(), Some(0));
    let run = sandbox.only_run().path().to_owned();
    let record = std::fs::read_dir(run.join("one")).unwrap().map(|entry| entry.unwrap().path());
    let record = record.into_iter().find(|path| path.extension().is_some_and(|end| end == "json")).unwrap();
    let read = |_: &[u8]| {
        let folder = RunFolder::open(&run).unwrap();
        let _ = (folder.environment(), folder.localized());
        if let Ok(manifest) = folder.manifest() {
            let _ = (folder.all_cells(&manifest), folder.relations(&manifest));
            let _ = manifest.plan.map(|plan| plan.checked(&manifest.config));
        }
    };
    for (target, path) in [
        ("run", run.join("run.json")),
        ("cell", record),
        ("environment", run.join("environment.json")),
        ("inputs", run.join("inputs.json")),
    ] {
        let seed = std::fs::read(&path).unwrap();
        fuzz(target, &seed, 200, |bytes| {
            std::fs::write(&path, bytes).unwrap();
            read(bytes);
            let _ = inputs::load(&run);
        });
        std::fs::write(&path, seed).unwrap();
    }
    let history: PathBuf = sandbox.results().join("history.sqlite");
    let seed = std::fs::read(&history).unwrap();
    fuzz("history", &seed, 100, |bytes| {
        std::fs::write(&history, bytes).unwrap();
        if let Ok(history) = History::open(&sandbox.results()) {
            let _ = history.baselines();
        }
    });
}

#[test]
fn parts_of_a_plan_are_merged_or_refused() {
    let sandbox = Sandbox::new();
    let config = sandbox.workers(&[("one", "good")], "rounds = 0\nnoise = false\ntrace = false");
    let output = sandbox.run(&config, &["--shard", "1/1"]);
    assert!(output.status.success(), "{}", crate::support::stderr(&output));
    let run = sandbox.only_run().path().to_owned();
    let record = std::fs::read_dir(run.join("one")).unwrap().map(|entry| entry.unwrap().path());
    let record = record.into_iter().find(|path| path.extension().is_some_and(|end| end == "json")).unwrap();
    let progress = Progress::new(true).without_results();
    for (target, path) in [
        ("part-run", run.join("run.json")),
        ("part-plan", run.join("plan.json")),
        ("part-cell", record),
        ("part-environment", run.join("environment.json")),
    ] {
        let seed = std::fs::read(&path).unwrap();
        fuzz(target, &seed, 40, |bytes| {
            std::fs::write(&path, bytes).unwrap();
            let results = tempfile::tempdir().unwrap();
            let folders = [run.clone()];
            let request = MergeRequest {
                folders: &folders,
                plan: None,
                reasons: None,
                results: results.path(),
                progress: &progress,
            };
            if let Ok(Merged { folder, manifest, cells }) = merge(&request) {
                let _ = tfcheck::report::write(
                    &folder,
                    &manifest,
                    &cells,
                    &manifest.config.tolerances,
                    &progress,
                );
            }
        });
        std::fs::write(&path, seed).unwrap();
    }
}
