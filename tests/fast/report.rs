//! Snapshots of all report formats for one run that contains every kind of cell.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::Path;

use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{Entry, Options, matrix};
use compare::oracle::{Oracles, Origin, accuracies};
use compare::repeat::{Noise, Repeat};
use compare::verdict::{Tolerances, annotate, verdicts};
use reference::protocol::{Attention, Dtype, LOGITS, Mode, Positions};
use safetensors::tensor::TensorView;
use tfcheck::execute::cell::{
    Cell, Completed, Failure, FailureKind, Outcome, TokenDifference, TokenizerParity,
};
use tfcheck::judge::details::Details;
use tfcheck::judge::findings::findings;
use tfcheck::judge::gates::Judged;
use tfcheck::judge::view::{CaseView, ChoiceRow, ChoicesView, RunView, Times};
use tfcheck::report::{
    Report, Source, csv::Csv, html::Html, json::Json, junit::Junit, markdown::Markdown, terminal::Terminal,
};
use tfcheck::results::SCHEMA_VERSION;
use tfcheck::spec::variant::{Runner, Variant};
use tfcheck::spec::variant::{measured_dtype, measured_positions};

const SHAPE: [usize; 3] = [2, 3, 6];

fn variant(runner: Runner, version: &str, mode: Mode, dtype: Dtype) -> Variant {
    let attention = (runner == Runner::Transformers).then_some(Attention::Sdpa);
    Variant {
        runner,
        version: version.to_owned(),
        mode,
        attention,
        dtype,
        device: "cpu".to_owned(),
        auto_dtype: false,
        qualified: true,
    }
}

fn cell(variant: Variant, outcome: Outcome) -> Cell {
    Cell { schema_version: SCHEMA_VERSION, name: variant.name(), variant, key: "key".to_owned(), outcome }
}

fn completed(first_ms: u64, rounds_ms: &[&[u64]], notes: &[&str]) -> Outcome {
    Outcome::Completed(Completed {
        written: None,
        logits: "logits.safetensors".into(),
        shape: SHAPE.to_vec(),
        positions: Positions::All,
        trace: None,
        libraries: [("torch".to_owned(), "2.15.0".to_owned())].into(),
        notes: notes.iter().map(|&note| note.to_owned()).collect(),
        load_ns: 812_000_000,
        first_call_ns: first_ms * 1_000_000,
        rounds_ns: rounds_ms.iter().map(|round| round.iter().map(|ms| ms * 1_000_000).collect()).collect(),
        decode_rounds_ns: Vec::new(),
        round_numbers: (0..rounds_ms.len() as u32).collect(),
        yardstick_ns: Vec::new(),
        unfinished: None,
        peak_bytes: Some(1_288_490_188),
        noise: None,
        ignored_keys: None,
        translated: Vec::new(),
        unread_tensors: None,
        ..Completed::default()
    })
}

fn logits(folder: &Path, name: &str, dtype: Dtype, values: &[f64]) -> Result<Logits, String> {
    let path = folder.join(format!("{name}.safetensors"));
    let (stored, bytes): (_, Vec<u8>) = match dtype {
        Dtype::F64 => (safetensors::Dtype::F64, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
        _ => (safetensors::Dtype::F32, values.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect()),
    };
    let seq = values.len() / SHAPE[0] / SHAPE[2];
    let view = TensorView::new(stored, vec![SHAPE[0], seq, SHAPE[2]], &bytes).unwrap();
    safetensors::serialize_to_file([(LOGITS, view)], None, &path).unwrap();
    let positions = if seq == 1 { Positions::Last } else { Positions::All };
    Logits::open(&path, measured_positions(positions)).map_err(|error| error.to_string())
}

fn packages(version: &str, list: &[(&str, &str)]) -> (String, BTreeMap<String, String>) {
    let list = list.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned()));
    (version.to_owned(), list.collect())
}

/// The second variant repeats bitwise, the third does not; both report the config keys that they ignore.
fn preflight(completed: &mut Completed, index: usize) {
    let noise = |differing, l2| {
        let second_process = Some(Repeat::new(differing, l2));
        Some(Noise { same_process: Some(Repeat::new(0, 0.0)), second_process, elapsed_ns: 1_500_000_000 })
    };
    let difference = |found| TokenDifference {
        text: 0,
        position: 7,
        expected: Some(42),
        token: Some("Ġ<the>".to_owned()),
        found,
    };
    let parity =
        |difference| TokenizerParity { class: "LlamaTokenizerFast".to_owned(), tokens: 120, difference };
    match index {
        1 => {
            completed.noise = noise(0, 0.0);
            completed.ignored_keys = Some(vec!["sliding_window".to_owned()]);
            completed.tokenizer = Some(parity(None));
        }
        2 => {
            completed.noise = noise(3, 2.5e-6);
            completed.ignored_keys = Some(Vec::new());
            completed.tokenizer = Some(parity(Some(difference(Some(43)))));
        }
        _ => {}
    }
}

/// A run with agreement, rounding, divergence, NaN, last positions only, and unsupported and failed cells.
fn run() -> RunView {
    let folder = tempfile::tempdir().unwrap();
    let exact: Vec<f64> = (0..36_i32).map(|i| f64::from(i * 37 % 36) / 4.0 - 4.0).collect();
    let off = |by: f64| -> Vec<f64> {
        exact.iter().enumerate().map(|(i, x)| x + by * f64::from(i as u32 % 3)).collect()
    };
    let mut nan = exact.clone();
    nan[8] = f64::NAN;
    let last: Vec<f64> = [&exact[12..18], &exact[30..36]].concat();

    let transformers = |version, mode, dtype| variant(Runner::Transformers, version, mode, dtype);
    let fast: &[&[u64]] = &[&[10, 11, 10], &[10, 12, 11]];
    let slow: &[&[u64]] = &[&[20, 21, 20], &[22, 20, 30]];
    let plan = [
        (transformers("4.54.0", Mode::Eager, Dtype::F64), completed(90, &[], &[]), Some(off(0.0))),
        (transformers("4.54.0", Mode::Eager, Dtype::F32), completed(31, slow, &[]), Some(off(2e-6))),
        (
            transformers("5.23.0", Mode::Compiled, Dtype::F32),
            completed(9500, fast, &["config translated: rope_theta from rope_parameters"]),
            Some(off(3e-6)),
        ),
        (variant(Runner::Candle, "candle", Mode::Fused, Dtype::F32), completed(8, fast, &[]), Some(off(0.5))),
        (variant(Runner::Candle, "candle", Mode::Eager, Dtype::Bf16), completed(9, slow, &[]), Some(nan)),
        (
            variant(Runner::CandleTransformers, "candle-transformers", Mode::Eager, Dtype::F32),
            completed(9, slow, &[]),
            Some(last),
        ),
        (
            transformers("4.40.2", Mode::Eager, Dtype::F32),
            Outcome::Failed(Failure {
                kind: FailureKind::Exception,
                reason: "KeyError: 'rope | type'".to_owned(),
                detail:
                    "Traceback (most recent call last):\n  File \"<string>\", line 1\nKeyError: 'rope | type'"
                        .to_owned(),
                log_tail: "loading weights\n<warning> & more".to_owned(),
            }),
            None,
        ),
        (
            variant(Runner::Command, "mine", Mode::Eager, Dtype::F32),
            Outcome::Unsupported { reason: "model_type qwen9".to_owned() },
            None,
        ),
    ];
    let mut cells = Vec::new();
    let mut entries = Vec::new();
    for (variant, outcome, values) in plan {
        let dtype = variant.dtype;
        let mut cell = cell(variant, outcome);
        if let Outcome::Completed(completed) = &mut cell.outcome {
            preflight(completed, cells.len());
        }
        let logits = match (&cell.outcome, values) {
            (_, Some(values)) => logits(folder.path(), &cell.name, dtype, &values),
            (Outcome::Failed(failure), _) => Err(failure.reason.clone()),
            (_, None) => Err("unsupported".to_owned()),
        };
        entries.push(Entry { name: cell.name.clone(), dtype: measured_dtype(dtype), logits });
        cells.push(cell);
    }
    let mask = Mask::new(2, 3, vec![false, true, true, true, true, true]).unwrap();
    let matrix = matrix(&entries, Some(&mask), &Options::default()).unwrap();
    let origins: Vec<Origin> =
        cells.iter().map(|cell| tfcheck::judge::assess::origin(&cell.variant)).collect();
    let oracles = Oracles::new(&matrix, &origins);
    let mut judged = verdicts(&matrix, &oracles, &Tolerances::default());
    let noises: Vec<Option<Noise>> = cells
        .iter()
        .map(|cell| match &cell.outcome {
            Outcome::Completed(completed) => completed.noise.clone(),
            _ => None,
        })
        .collect();
    annotate(&mut judged, &matrix, &noises);
    let case = CaseView {
        name: "llama-tiny".to_owned(),
        checkpoint: "synthetic:llama".to_owned(),
        inputs: "2 × 3 tokens, 1 padded".to_owned(),
        axes: None,
        baseline: Some(cells[1].name.clone()),
        verdicts: judged,
        caches: Vec::new(),
        accuracies: accuracies(&matrix, &oracles),
        outputs: Vec::new(),
        embeddings: None,
        choices: Some(ChoicesView {
            tokens: vec![" yes".to_owned(), "|no|".to_owned()],
            rows: vec![ChoiceRow {
                variant: cells[1].name.clone(),
                row: 0,
                probabilities: vec![Some(0.75), None],
            }],
        }),
        localized: Vec::new(),
        diagnosed: Vec::new(),
        times: Times::default(),
        cells,
        matrix,
    };
    RunView {
        id: "run_20260801_150000".to_owned(),
        environment: vec![("CPU".to_owned(), "2 cores of an AMD EPYC".to_owned())],
        packages: vec![
            packages("4.54.0", &[("transformers", "4.54.0"), ("numpy", "2.4.1"), ("requests", "2.32.0")]),
            packages("5.23.0", &[("transformers", "5.23.0"), ("numpy", "2.4.1"), ("regex", "2026.2.1")]),
        ],
        cases: vec![case],
        relations: Vec::new(),
        notes: vec!["PyTorch's index cannot be reached; PyPI's torch is used".to_owned()],
    }
}

fn rendered(format: &dyn Report) -> String {
    let run = run();
    let found = findings(&run);
    let (judged, details) = (Judged::default(), Details::default());
    format.render(&Source { run: &run, found: &found, judged: &judged, details: &details })
}

#[test]
fn summary_md_keeps_both_tables_and_every_cell() {
    insta::assert_snapshot!(rendered(&Markdown));
}

#[test]
fn terminal_fits_80_columns_without_color() {
    let text = rendered(&Terminal { width: 80, color: false });
    assert!(!text.contains('\u{1b}'));
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    insta::assert_snapshot!(text);
}

#[test]
fn terminal_shows_the_matrix_where_it_fits() {
    insta::assert_snapshot!(rendered(&Terminal { width: 160, color: false }));
    assert!(rendered(&Terminal { width: 160, color: true }).contains('\u{1b}'));
}

#[test]
fn matrix_csv_has_every_ordered_pair() {
    insta::assert_snapshot!(rendered(&Csv));
}

#[test]
fn junit_has_a_test_per_cell_and_pair() {
    insta::assert_snapshot!(rendered(&Junit));
}

#[test]
fn summary_json_is_valid_and_names_what_is_not_a_number() {
    let summary: serde_json::Value = serde_json::from_str(&rendered(&Json)).unwrap();
    let tally = &summary["tally"];
    assert_eq!((&tally["failed"], &tally["unsupported"]), (&1.into(), &1.into()));
    let pairs = summary["cases"][0]["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), 8 * 9 / 2);
    let nan = pairs
        .iter()
        .find(|pair| pair["a"] == "4.54.0_eager_sdpa_f64" && pair["b"] == "candle_eager_bf16")
        .unwrap();
    assert_eq!(nan["l2"], "NaN");
    let not_run = pairs.iter().filter(|pair| pair["status"] == "not_run").count();
    assert_eq!(not_run, 8 + 7, "all pairs of the failed and the unsupported cell");
    insta::assert_json_snapshot!(summary["cases"][0]["cells"]);
}

#[test]
fn report_html_fetches_nothing_and_runs_no_script_but_its_own() {
    let page = rendered(&Html);
    for attribute in ["src=", "href=\"http", "url(", "@import", " onclick", "<link", "<iframe"] {
        assert!(!page.contains(attribute), "{attribute}");
    }
    assert!(page.contains("default-src 'none'") && page.contains("script-src 'sha256-"));
    assert!(page.contains("light-dark("), "both schemes");
    for name in &run().cases[0].matrix.names {
        assert!(page.contains(name.as_str()), "{name}");
    }
}

#[test]
fn report_html_escapes_what_comes_from_outside() {
    let page = rendered(&Html);
    assert!(page.contains("&lt;warning&gt; &amp; more") && !page.contains("<warning>"));
    assert!(!page.contains("<the>"), "a token's text");
    // Four elements of data (index, matrix, pairs) and the script; none is ended by its content.
    assert_eq!(page.matches("<script").count(), page.matches("</script>").count());
    assert_eq!(page.matches("<script").count(), 4);
}

#[test]
fn report_html_tells_findings_then_what_decides_then_the_cases_then_the_machine() {
    let page = rendered(&Html);
    let at = |text: &str| page.find(text).unwrap_or_else(|| panic!("{text}"));
    let order = [
        "class=\"tally\"",
        "id=\"grid\"",
        ">Findings<",
        ">Speed<",
        "id=\"cases\"",
        ">Environment<",
        ">Notes<",
    ];
    assert!(order.map(at).is_sorted(), "{:?}", order.map(at));
    // What a script shows is in the text too.
    for text in
        ["Performance Results", "Logit L2 Differences", "Verdicts", "Failed and unsupported cells", "NaN"]
    {
        at(text);
    }
}

#[test]
fn report_html_as_text_without_its_scripts() {
    let page = rendered(&Html);
    let style = page.find("<style>").unwrap()..page.find("</style>").unwrap();
    let text = format!("{}{}", &page[..style.start], &page[style.end..page.find("<script").unwrap()]);
    let policy = text.find("'sha256-").unwrap()..text.find("='; base-uri").unwrap();
    insta::assert_snapshot!(text.replace(&text[policy], "'sha256-[digest]"));
}
