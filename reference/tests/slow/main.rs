//! The bridge in real environments: every version loads the same tiny llama and computes the same logits.
//!
//! `TFCHECK_TEST_ENVS=/folder` sets a folder of environments, `<folder>/<version>/bin/python`; without it uv
//! installs the default pair of versions.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod cached;
mod capture;
mod environment;
mod float64;
mod heads;
mod template;
mod tiny;
mod truth;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{Attention, Dtype, Forward, Load, Mode, Positions, Time, Trace};
use reference::{Environment, Launch, WorkerEnd};
use serde_json::json;
use tiny::{Cell, LIMIT, distance, environments, version};

struct Case {
    folder: tempfile::TempDir,
    checkpoint: PathBuf,
    inputs: PathBuf,
}

/// The tiny llama with `change` applied to its config, and a batch of two sequences, the first one
/// left-padded.
fn case(change: impl FnOnce(&mut serde_json::Value)) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint");
    let mut config = tiny::config();
    change(&mut config);
    tiny::checkpoint(&checkpoint, &config, &tiny::shapes());
    let inputs = folder.path().join("inputs.safetensors");
    let (ids, mask, positions) = padded(true);
    tiny::inputs(&inputs, &ids, &mask, &positions);
    Case { folder, checkpoint, inputs }
}

type Rows = Vec<Vec<i64>>;
type Shapes = BTreeMap<String, Vec<usize>>;
const LONG: usize = 12;
const SHORT: usize = 7;

/// Ids, mask and positions of two sequences of 7 and 12 tokens, the first one padded on the left or right.
fn padded(left: bool) -> (Rows, Rows, Rows) {
    let row = |tokens: Vec<i64>, fill: i64| {
        let padding = vec![fill; LONG - tokens.len()];
        if left { [padding, tokens].concat() } else { [tokens, padding].concat() }
    };
    (
        vec![row(tiny::tokens(0, SHORT), 0), tiny::tokens(1, LONG)],
        vec![row(vec![1; SHORT], 0), vec![1; LONG]],
        vec![row((0..SHORT as i64).collect(), 0), (0..LONG as i64).collect()],
    )
}

impl Case {
    fn cell<'a>(&'a self, environment: &'a Environment, mode: Mode, attention: Attention) -> Cell<'a> {
        Cell {
            environment,
            checkpoint: &self.checkpoint,
            inputs: &self.inputs,
            mode,
            attention,
            dtype: Dtype::F32,
        }
    }
}

/// The logits of one sequence's real positions, from those of the batch of [`padded`].
fn real(logits: &[f64], row: usize, left: bool) -> Vec<f64> {
    let length = if row == 0 { SHORT } else { LONG };
    let first = row * LONG + if row == 0 && left { LONG - SHORT } else { 0 };
    logits[first * tiny::VOCABULARY..(first + length) * tiny::VOCABULARY].to_vec()
}

fn both_rows(logits: &[f64]) -> Vec<f64> {
    [real(logits, 0, true), real(logits, 1, true)].concat()
}

fn newest() -> &'static Environment {
    environments().last().unwrap()
}

#[test]
fn all_versions_agree_bit_for_bit_in_eager_mode() {
    let case = case(|_| ());
    let mut by_attention = Vec::new();
    for attention in [Attention::Eager, Attention::Sdpa] {
        let mut first: Option<Vec<f64>> = None;
        for environment in environments() {
            let outcome = case.cell(environment, Mode::Eager, attention).run().unwrap();
            let name = version(environment);
            assert_eq!(outcome.ready.libraries["transformers"], name);
            // The package metadata lacks the local part of the version, `+cu130`.
            assert!(outcome.ready.libraries["torch"].starts_with(&environment.versions["torch"]));
            assert_eq!(outcome.forwarded.positions, Positions::All);
            assert_eq!(outcome.forwarded.shape, [2, LONG, tiny::VOCABULARY]);
            assert!(outcome.forwarded.peak_bytes.unwrap() > 100 << 20, "torch alone is larger");
            // Padding positions are not compared: versions mask them differently.
            let logits = both_rows(&outcome.logits);
            let first = first.get_or_insert_with(|| logits.clone());
            assert!(logits == *first, "{name} {attention:?}: {}", distance(&logits, first));
        }
        by_attention.push(first.unwrap());
    }
    // The same computation with f32 additions in another order: dot products of at most 64 terms, each
    // rounded to 6e-8, through two layers.
    assert!(distance(&by_attention[0], &by_attention[1]) < 1e-5);
}

#[test]
fn compiled_logits_match_eager_logits() {
    let case = case(|_| ());
    // Compilation takes half a minute per version.
    let default = &reference::Versions::known().default;
    for environment in environments().iter().filter(|found| default.iter().any(|name| name == version(found)))
    {
        let eager = case.cell(environment, Mode::Eager, Attention::Sdpa).run().unwrap();
        let compiled = case.cell(environment, Mode::Compiled, Attention::Sdpa).run().unwrap();
        let apart = distance(&both_rows(&compiled.logits), &both_rows(&eager.logits));
        // inductor fuses and reorders f32 arithmetic; the limit is that of the first test.
        assert!(apart < 1e-5, "{}: {apart}", version(environment));
        let notes = compiled.forwarded.notes.join("\n");
        assert!(notes.contains("torch.compile made"), "{notes}");
        assert!(!notes.contains("no graph"), "{notes}");
        assert!(compiled.forwarded.elapsed_ns > 10 * eager.forwarded.elapsed_ns.min(100_000_000));
    }
}

#[test]
fn a_version_5_config_gives_equal_logits_in_every_version() {
    let theta = 500_000.0;
    let old = case(|config| config["rope_theta"] = theta.into());
    let new = case(|config| {
        let config = config.as_object_mut().unwrap();
        config.remove("rope_theta");
        config.remove("torch_dtype");
        config.insert("dtype".into(), "float32".into());
        let rope = json!({ "rope_theta": theta, "rope_type": "default" });
        config.insert("rope_parameters".into(), rope);
    });
    let base = case(|_| ()).cell(newest(), Mode::Eager, Attention::Eager).run().unwrap();
    let mut first: Option<Vec<f64>> = None;
    for environment in environments() {
        for case in [&old, &new] {
            let outcome = case.cell(environment, Mode::Eager, Attention::Eager).run().unwrap();
            let logits = both_rows(&outcome.logits);
            let first = first.get_or_insert_with(|| logits.clone());
            assert!(logits == *first, "{}: {}", version(environment), distance(&logits, first));
            // The rope base must affect the logits, so that a version that uses 10000 instead fails this
            // test.
            assert!(distance(&logits, &both_rows(&base.logits)) > 1e-3);
            let is_5 = reference::release(version(environment))[0] >= 5;
            let notes = outcome.ready.notes.join("\n");
            let translated = std::ptr::eq(case, &raw const old) == is_5;
            assert_eq!(notes.contains("rope_theta"), translated, "{}: {notes}", version(environment));
        }
    }
}

#[test]
fn padded_sequences_match_unpadded_ones() {
    let case = case(|_| ());
    let alone: Vec<Vec<f64>> = [(0, SHORT), (1, LONG)]
        .into_iter()
        .map(|(row, length)| {
            let inputs = case.folder.path().join("alone.safetensors");
            tiny::plain(&inputs, &tiny::tokens(row, length));
            let cell = Cell { inputs: &inputs, ..case.cell(newest(), Mode::Eager, Attention::Eager) };
            cell.run().unwrap().logits
        })
        .collect();
    for left in [true, false] {
        let inputs = case.folder.path().join("padded.safetensors");
        let (ids, mask, positions) = padded(left);
        tiny::inputs(&inputs, &ids, &mask, &positions);
        for environment in environments() {
            for attention in [Attention::Eager, Attention::Sdpa] {
                let cell = Cell { inputs: &inputs, ..case.cell(environment, Mode::Eager, attention) };
                let logits = cell.run().unwrap().logits;
                for (row, alone) in alone.iter().enumerate() {
                    // Another batch shape uses another GEMM kernel; the limit is that of the first test.
                    let apart = distance(&real(&logits, row, left), alone);
                    assert!(apart < 1e-5, "{} {attention:?} left {left}: {apart}", version(environment));
                }
            }
        }
    }
}

#[test]
fn position_ids_are_used_by_every_version() {
    let case = case(|_| ());
    let run = |environment, spread: i64| {
        let inputs = case.folder.path().join("spread.safetensors");
        let positions = (0..LONG as i64).map(|index| index * spread).collect();
        tiny::inputs(&inputs, &[tiny::tokens(0, LONG)], &[vec![1; LONG]], &[positions]);
        let cell = Cell { inputs: &inputs, ..case.cell(environment, Mode::Eager, Attention::Sdpa) };
        cell.run().unwrap().logits
    };
    let default = run(newest(), 1);
    let spread = run(newest(), 3);
    // Rotary positions are relative, so only a changed spacing shows that position ids are read.
    assert!(distance(&spread, &default) > 1e-3);
    for environment in environments() {
        let logits = run(environment, 3);
        assert!(logits == spread, "{}: {}", version(environment), distance(&logits, &spread));
    }
}

#[test]
fn dtypes_reach_the_weights() {
    let case = case(|_| ());
    for environment in [&environments()[0], newest()] {
        let run = |dtype| {
            let cell = Cell { dtype, ..case.cell(environment, Mode::Eager, Attention::Sdpa) };
            both_rows(&cell.run().unwrap().logits)
        };
        let oracle = run(Dtype::F64);
        // Unit round-off of the type (2^-24, 2^-11, 2^-8) times the amplification by two layers. The lower
        // limit is a hundredth of it: a smaller difference would mean another type.
        for (dtype, round_off) in [(Dtype::F32, 6e-8), (Dtype::F16, 4.9e-4), (Dtype::Bf16, 3.9e-3)] {
            let apart = distance(&run(dtype), &oracle);
            assert!(apart < 50.0 * round_off && apart > round_off / 100.0, "{dtype:?}: {apart}");
        }
    }
}

#[test]
fn an_option_that_a_version_lacks_is_unsupported() {
    let check = |change: fn(&mut serde_json::Value), word: &str| {
        let case = case(change);
        let ended = case.cell(newest(), Mode::Eager, Attention::Sdpa).run().err().unwrap();
        assert!(matches!(ended, WorkerEnd::Unsupported(_)), "{ended:?}");
        assert!(ended.to_string().contains(word), "{ended}");
    };
    check(|config| config["model_type"] = "llama99".into(), "llama99");
    check(|config| config["auto_map"] = json!({ "AutoModel": "code.Model" }), "auto_map");
    check(
        |config| config["architectures"] = json!(["LlamaForWatermarks"]),
        "has no class LlamaForWatermarks",
    );
    let case = case(|_| ());
    assert!(matches!(
        case.cell(newest(), Mode::Fused, Attention::Sdpa).run(),
        Err(WorkerEnd::Unsupported(_))
    ));
}

#[test]
fn missing_weights_are_an_error_and_superfluous_ones_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = folder.path().join("inputs.safetensors");
    tiny::plain(&inputs, &tiny::tokens(0, 5));
    let checkpoint = folder.path().join("checkpoint");
    let run = |environment, tied: bool, change: &dyn Fn(&mut Shapes)| {
        let mut shapes = tiny::shapes();
        change(&mut shapes);
        let mut config = tiny::config();
        config["tie_word_embeddings"] = tied.into();
        tiny::checkpoint(&checkpoint, &config, &shapes);
        Cell {
            environment,
            checkpoint: &checkpoint,
            inputs: &inputs,
            mode: Mode::Eager,
            attention: Attention::Sdpa,
            dtype: Dtype::F32,
        }
        .run()
    };
    for environment in [&environments()[0], newest()] {
        let name = "model.layers.1.mlp.up_proj.weight";
        let ended = run(environment, false, &|shapes| drop(shapes.remove(name))).err().unwrap();
        assert!(matches!(ended, WorkerEnd::Exception(_)), "{ended:?}");
        assert!(ended.to_string().contains(name), "{ended}");
        let untied = run(environment, false, &|shapes| drop(shapes.remove("lm_head.weight")));
        assert!(untied.err().unwrap().to_string().contains("lm_head.weight"));
        run(environment, true, &|shapes| drop(shapes.remove("lm_head.weight"))).unwrap();
        let more = run(environment, false, &|shapes| {
            shapes.insert("model.layers.0.mlp.extra.weight".into(), vec![2, 2]);
        })
        .unwrap();
        let notes = more.ready.notes.join("\n");
        assert!(notes.contains("model.layers.0.mlp.extra.weight"), "{notes}");
        let ended = run(environment, false, &|shapes| {
            shapes.insert(name.into(), vec![3, tiny::HIDDEN]);
        })
        .err()
        .unwrap();
        let said = ended.to_string();
        // Either the bridge's message for 5.x, or transformers' own for 4.x, which contains the layer's kind
        // and the shapes.
        let named = said.contains("another shape") && said.contains(name);
        let shapes = said.contains("size mismatch") && said.contains("[3, ");
        assert!(named || shapes, "{said}");
    }
}

#[test]
fn unread_config_keys_are_listed() {
    let case = case(|config| config["logit_scale_of_another_model"] = 2.into());
    for environment in [&environments()[0], newest()] {
        let outcome = case.cell(environment, Mode::Eager, Attention::Sdpa).run().unwrap();
        let notes = outcome.ready.notes.join("\n");
        let line = notes.lines().find(|line| line.contains("ignore the config keys")).unwrap_or_default();
        assert!(line.ends_with("ignore the config keys logit_scale_of_another_model"), "{notes}");
    }
}

#[test]
fn tokens_are_decoded_one_by_one_in_every_version_and_mode() {
    let case = case(|_| ());
    let stop = AtomicBool::new(false);
    for environment in environments() {
        let _turn = tiny::turn();
        // Compilation takes half a minute per version.
        let is_newest = version(environment) == version(newest());
        let modes: &[Mode] = if is_newest {
            // `ReduceOverhead` decodes through a static cache.
            &[Mode::Eager, Mode::Frozen, Mode::ReduceOverhead]
        } else {
            &[Mode::Eager]
        };
        let mut eager = None;
        for &mode in modes {
            let cell = case.cell(environment, mode, Attention::Sdpa);
            let mut worker = cell.start(case.folder.path());
            worker.load(cell.load(), LIMIT, &stop).unwrap();
            let path = case.folder.path().join("logits.safetensors");
            worker.forward(Forward::new(path.clone()), LIMIT, &stop).unwrap();
            let logits = both_rows(&tiny::read(&path).0);
            let eager = eager.get_or_insert_with(|| logits.clone());
            // inductor fuses and reorders f32 arithmetic; the limit is that of the first test.
            assert!(distance(&logits, eager) < 1e-5, "{} {mode:?}", version(environment));
            let timed =
                worker.time(Time { iterations: 1, decode: 4, ..Time::default() }, LIMIT, &stop).unwrap();
            assert_eq!(timed.decode_ns.len(), 4, "{} {mode:?}", version(environment));
            worker.exit(Duration::from_secs(10));
        }
    }
}

#[test]
fn passes_are_timed_and_a_trace_contains_the_module_names() {
    let case = case(|_| ());
    let _turn = tiny::turn();
    let cell = case.cell(newest(), Mode::Eager, Attention::Sdpa);
    let stop = AtomicBool::new(false);
    let mut worker = cell.start(case.folder.path());
    worker.load(cell.load(), LIMIT, &stop).unwrap();
    let timed = worker
        .time(Time { warm_up: 2, iterations: 7, decode: 3, yardstick: 2, quiet_ns: None }, LIMIT, &stop)
        .unwrap();
    assert_eq!((timed.samples_ns.len(), timed.decode_ns.len()), (7, 3));
    assert!(timed.samples_ns.iter().all(|sample| *sample > 0));
    assert!(timed.peak_bytes.is_some());
    assert!(timed.yardstick_ns.is_some_and(|reading| reading > 0));
    let busy = Time { iterations: 1, yardstick: 1, quiet_ns: Some(0), ..Time::default() };
    let busy = worker.time(busy, LIMIT, &stop).unwrap();
    assert!(busy.samples_ns.is_empty() && busy.yardstick_ns.is_some(), "{busy:?}");
    let path = case.folder.path().join("trace.json");
    worker.trace(Trace { path: path.clone() }, LIMIT, &stop).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for name in ["model.layers.1.self_attn.q_proj", "lm_head", "aten::linear"] {
        assert!(events.iter().any(|event| event["name"] == name), "{name}");
    }
    assert!(events.iter().any(|event| !event["args"]["Input Dims"].is_null()), "shapes are recorded");
    // Profiling removes its hooks, which would slow down later forward passes.
    let logits = case.folder.path().join("logits.safetensors");
    worker.forward(Forward::new(logits), LIMIT, &stop).unwrap();
    worker.exit(Duration::from_secs(10));
}

#[test]
fn an_absent_gpu_is_unsupported_with_a_reason() {
    let case = case(|_| ());
    let _turn = tiny::turn();
    let cell = case.cell(newest(), Mode::Eager, Attention::Sdpa);
    let stop = AtomicBool::new(false);
    let mut worker = cell.start(case.folder.path());
    // No machine has 100 GPUs.
    let load = Load { device: "cuda:99".into(), ..cell.load() };
    let Err(WorkerEnd::Unsupported(failed)) = worker.load(load, LIMIT, &stop) else {
        panic!("there is no such GPU")
    };
    assert!(failed.message.contains("cuda:99"), "{}", failed.message);
    worker.exit(Duration::from_secs(10));
}

#[test]
fn a_worker_ends_itself_when_tfcheck_is_killed() {
    let case = case(|_| ());
    let _turn = tiny::turn();
    let log = case.folder.path().join("worker.log");
    let launch = Launch::transformers(newest(), &tiny::cache(), log, 1).unwrap();
    // Replaces tfcheck: starts the bridge with its pipes in its own group, and hangs.
    let parent = r#"
import os, subprocess, sys, time
requests, replies = os.pipe(), os.pipe()
os.set_inheritable(requests[0], True); os.set_inheritable(replies[1], True)
environment = dict(os.environ, TFCHECK_REQUEST_FD=str(requests[0]), TFCHECK_REPLY_FD=str(replies[1]))
child = subprocess.Popen(sys.argv[1:], close_fds=False, env=environment, process_group=0)
os.close(requests[0]); os.close(replies[1])
os.write(requests[1], b'"no request"\n')
os.read(replies[0], 1)
print(child.pid, flush=True)
time.sleep(600)
"#;
    let mut tfcheck = std::process::Command::new(&newest().python)
        .args(["-c", parent])
        .args(&launch.command)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let output = tfcheck.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).unwrap();
    let process = Path::new("/proc").join(line.trim()).join("stat");
    let lives = || std::fs::read_to_string(&process).is_ok_and(|stat| !stat.contains(") Z "));
    assert!(lives());
    tfcheck.kill().unwrap();
    tfcheck.wait().unwrap();
    let gone = (0..500).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        !lives()
    });
    assert!(gone, "the worker outlived the process that asked it");
}
