use serde_json::Value;

use super::correctness::{ArchitectureRow, Architectures};
use super::items::Shape;
use super::kernels::KernelCheck;
use super::report::{Done, Found, Report, State};
use super::speed::{Speed, Target};
use super::*;
use crate::commands::bench::{Measured, Ratio, Table, TimedVariant};

fn options() -> GpuCheckOptions {
    GpuCheckOptions {
        out: PathBuf::from("out"),
        python: PathBuf::from("python3"),
        limit: Duration::from_secs(570),
        only: Vec::new(),
        emulate: false,
    }
}

fn machine() -> Machine {
    Machine {
        cpu: "a processor".to_owned(),
        cores: 16,
        hardware_threads: 16,
        memory_bytes: 1 << 37,
        system: "Linux".to_owned(),
        gpus: vec!["NVIDIA H100 80GB HBM3, 580.159.04".to_owned()],
        gpu_details: vec![machine::Gpu {
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            driver: "580.159.04".to_owned(),
            clock: "1980 MHz of 1980 MHz".to_owned(),
            memory_clock: "2619 MHz of 2619 MHz".to_owned(),
            power_limit: "700.00 W".to_owned(),
            ..machine::Gpu::default()
        }],
        cuda: [("driver".to_owned(), "13.0".to_owned())].into(),
        tfcheck: "0.1.0".to_owned(),
        rustc: "rustc".to_owned(),
        git: None,
    }
}

fn row(dtype: &str, word: &str) -> ArchitectureRow {
    ArchitectureRow {
        checkpoint: "synthetic:llama".to_owned(),
        inputs: "batch 1, 40 tokens".to_owned(),
        dtype: dtype.to_owned(),
        word: word.to_owned(),
        evidence: "the evidence".to_owned(),
        relative_l2: Some(2e-3),
        cpu_relative_l2: Some(1e-3),
        module: (word == "diverged").then(|| "model.layers.0.self_attn".to_owned()),
    }
}

fn kernel(name: &str, passed: bool) -> KernelCheck {
    KernelCheck {
        name: name.to_owned(),
        dtype: "bf16".to_owned(),
        error: if passed { 1e-3 } else { 0.5 },
        limit: 4e-3,
        passed,
        failure: (!passed).then(|| "element 3 of 10 is 1, and 2 is right".to_owned()),
    }
}

fn speed(found: Option<f64>, word: &str) -> Speed {
    let measured = |p50_ms: f64| {
        Ok(Measured {
            p50_ms,
            interval_ms: [p50_ms * 0.99, p50_ms * 1.01],
            min_ms: p50_ms * 0.9,
            n: 60,
            peak_bytes: Some(1 << 30),
            is_last_only: false,
        })
    };
    let timing = |variant: &str, measured| TimedVariant {
        variant: variant.to_owned(),
        measured,
        relative_l2: None,
        verdict: None,
        fused_over: None,
        notes: Vec::new(),
    };
    Speed {
        tables: vec![Table {
            checkpoint: "llama-smollm2-135m".to_owned(),
            inputs: "batch 1, 128 tokens".to_owned(),
            dtype: "bf16".to_owned(),
            pass: "prefill",
            rows: vec![
                timing("torch_eager_sdpa", measured(8.0)),
                timing("torch_max_autotune_sdpa", Err("did not answer in time".to_owned())),
                timing("candle_fused", measured(2.0)),
            ],
            ratios: found
                .map(|ratio| Ratio {
                    variant: "candle_fused".to_owned(),
                    over: "torch_eager_sdpa".to_owned(),
                    ratio,
                    interval: [ratio - 0.01, ratio + 0.01],
                })
                .into_iter()
                .collect(),
        }],
        targets: vec![Target { pass: "prefill".to_owned(), wanted: 0.9, found }],
        verdicts: vec![(
            "torch_eager_sdpa and candle_fused".to_owned(),
            word.to_owned(),
            "evidence".to_owned(),
        )],
        notes: vec!["candle_fused: cublaslt 13.0.1".to_owned()],
    }
}

/// A report of these results; the items after them are dropped.
fn report(found: Vec<Found>) -> Report {
    let mut found = found.into_iter();
    let done = |item: &Item| {
        if let Some(found) = found.next() {
            return Done::new(item, Duration::from_secs(7), State::Done, Some(found));
        }
        Done::new(item, Duration::ZERO, State::Dropped("75 s needed, 12 s left".to_owned()), None)
    };
    let items: Vec<Done> = items::all().iter().map(done).collect();
    Report::new(&options(), None, machine(), items)
}

#[test]
fn the_result_says_what_agrees_what_does_not_and_what_was_dropped() {
    let report = report(vec![
        Found::Kernels(vec![kernel("softmax", true), kernel("RMS norm", false)]),
        Found::Architectures(Architectures {
            rows: vec![row("f32", "same mathematics"), row("bf16", "diverged"), row("f16", "unsupported")],
        }),
        Found::Speed(speed(Some(0.25), "same mathematics")),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let text = report.write(folder.path()).unwrap();
    insta::assert_snapshot!(text);
    assert_eq!(std::fs::read_to_string(folder.path().join("gpu_check.md")).unwrap(), text);
    let json = std::fs::read(folder.path().join("gpu_check.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["items"][3]["state"]["state"], "dropped");
    assert_eq!(json["items"][2]["found"]["speed"]["targets"][0]["found"], 0.25);
    assert_eq!(json["machine"]["gpu_details"][0]["name"], "NVIDIA H100 80GB HBM3");
}

#[test]
fn the_exit_code_depends_on_the_results() {
    let good = || {
        vec![
            Found::Kernels(vec![kernel("softmax", true)]),
            Found::Architectures(Architectures { rows: vec![row("bf16", "same mathematics")] }),
        ]
    };
    let check = |found: Vec<Found>, is_interrupted: bool, expect: ExitCode| {
        assert_eq!(report(found).code(is_interrupted), expect);
    };
    // Items dropped for lack of time are listed and are not a failure.
    check(good(), false, ExitCode::Agree);
    check(good(), true, ExitCode::Interrupted);
    let mut wrong = good();
    wrong[1] = Found::Architectures(Architectures { rows: vec![row("f32", "worse rounding")] });
    check(wrong, false, ExitCode::Diverged);
    check(vec![Found::Kernels(vec![kernel("softmax", false)])], true, ExitCode::Diverged);
    check(vec![Found::Kernels(Vec::new())], false, ExitCode::CellFailed);
    let mut diverged = good();
    diverged.push(Found::Speed(speed(Some(0.5), "diverged")));
    check(diverged, false, ExitCode::Diverged);
    // One of torch's modes has no result.
    let mut lacking = good();
    lacking.push(Found::Speed(speed(None, "same mathematics")));
    check(lacking, false, ExitCode::CellFailed);
}

#[test]
fn the_listing_marks_parts_that_do_not_fit() {
    let items = items::all();
    let text = plan_text(&items, Duration::from_mins(2));
    assert!(text.contains("kernels: every kernel") && text.contains("(dropped)"), "{text}");
    let dropped: Vec<bool> = text.lines().skip(1).map(|line| line.ends_with("(dropped)")).collect();
    assert_eq!(dropped.len(), items.len());
    assert!(dropped.is_sorted(), "the last are dropped: {text}");
    let shape = |item: &Item| match &item.work {
        Work::Speed(Shape { checkpoint, .. }) => Some(*checkpoint),
        _ => None,
    };
    assert!(items.iter().filter_map(shape).any(|checkpoint| checkpoint == "3b"));
}

#[test]
fn parts_are_chosen_by_name_and_an_unknown_name_lists_them() {
    let chosen = |only: &[&str]| {
        let only = only.iter().map(|&pattern| pattern.to_owned()).collect();
        super::chosen(&GpuCheckOptions { only, ..options() })
    };
    let names =
        |only: &[&str]| -> Vec<String> { chosen(only).unwrap().into_iter().map(|item| item.name).collect() };
    assert_eq!(names(&["3b-*", "kernels"]), ["kernels", "3b-bf16-512"]);
    assert_eq!(names(&[]).len(), items::all().len());
    let error = chosen(&["kernels", "3c-*"]).unwrap_err();
    assert!(error.to_string().contains("3c-*"), "{error}");
    assert!(error.help().unwrap().to_string().contains("architectures"), "{error:?}");
}
