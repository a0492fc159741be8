//! Mutated files where the fuzzer's targets (`super::fuzzed`) do not reach: the config of every architecture in turn, foreign
//! tokenizers, and parts of a plan that a real run made. Whatever the files hold, the reader returns.
//!
//! Every target mutates a valid seed with a fixed sequence of random numbers, so that a failure repeats. A target takes mutations for
//! `TFCHECK_FUZZ_SECONDS` seconds if that is set, otherwise a fixed number of them.

use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use serde_json::json;
use tfcheck::commands::merge::{MergeRequest, Merged, merge};
use tfcheck::execute::progress::Progress;
use tfcheck::spec::checkpoint::{Checkpoint, Source};
use tfcheck::spec::inputs;

use crate::support::Sandbox;

/// SplitMix64 (Steele, Lea and Flood 2014).
pub(super) struct Random(pub(super) u64);

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
pub(super) fn mutated(seed: &[u8], random: &mut Random) -> Vec<u8> {
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
fn tokenizers() {
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
