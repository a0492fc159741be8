//! Tests the overview of a run: groups of variants, each finding once, and no more lines than fit on one screen.

use std::path::Path;

use compare::logits::Logits;
use compare::mask::Mask;
use compare::matrix::{Entry, Options, matrix};
use compare::oracle::Oracles;
use compare::verdict::{Tolerances, verdicts};
use reference::protocol::{Attention, Dtype, LOGITS, Mode};
use safetensors::tensor::TensorView;
use tfcheck::execute::cell::{Cell, Completed, Failure, FailureKind, Outcome};
use tfcheck::judge::assess::origin;
use tfcheck::judge::details::Details;
use tfcheck::judge::findings::{Findings, What, findings};
use tfcheck::judge::gates::Judged;
use tfcheck::judge::view::{CaseView, RunView, Times};
use tfcheck::report::Source;
use tfcheck::report::overview::{self, MOST_LINES};
use tfcheck::results::localized::{Divergence, Finding, Localized};
use tfcheck::spec::variant::{Runner, Variant, measured_dtype};

/// A cell: version, attention, dtype, and the offset of every third logit; `Err` for a cell that failed.
type Spec<'a> = (&'a str, Attention, Dtype, Result<f64, &'a str>);

fn variant(version: &str, attention: Attention, dtype: Dtype) -> Variant {
    Variant {
        runner: Runner::Transformers,
        version: version.to_owned(),
        mode: Mode::Eager,
        attention: Some(attention),
        dtype,
        device: "cpu".to_owned(),
        auto_dtype: false,
        qualified: dtype != Dtype::F32,
    }
}

fn logits(folder: &Path, name: &str, off: f64) -> Result<Logits, String> {
    let values = (0..24_i32).map(|i| f64::from(i * 37 % 24) / 4.0 - 3.0 + if i % 3 == 0 { off } else { 0.0 });
    let bytes: Vec<u8> = values.flat_map(f64::to_le_bytes).collect();
    let view = TensorView::new(safetensors::Dtype::F64, vec![1, 4, 6], &bytes).unwrap();
    let path = folder.join(format!("{name}.safetensors"));
    safetensors::serialize_to_file([(LOGITS, view)], None, &path).unwrap();
    Logits::open(&path, compare::Positions::All).map_err(|error| error.to_string())
}

fn case(name: &str, specs: &[Spec]) -> CaseView {
    let folder = tempfile::tempdir().unwrap();
    let (mut cells, mut entries) = (Vec::new(), Vec::new());
    for (version, attention, dtype, outcome) in specs {
        let variant = variant(version, *attention, *dtype);
        let (outcome, logits) = match outcome {
            Ok(off) => {
                (Outcome::Completed(Completed::default()), logits(folder.path(), &variant.name(), *off))
            }
            Err(reason) => {
                let failure = Failure {
                    kind: FailureKind::Exception,
                    reason: (*reason).to_owned(),
                    detail: String::new(),
                    log_tail: String::new(),
                };
                (Outcome::Failed(failure), Err((*reason).to_owned()))
            }
        };
        entries.push(Entry { name: variant.name(), dtype: measured_dtype(*dtype), logits });
        cells.push(Cell::new(&variant, "key", outcome));
    }
    let matrix = matrix(&entries, Some(&Mask::all_real(1, 4)), &Options::default()).unwrap();
    let origins: Vec<_> = cells.iter().map(|cell| origin(&cell.variant)).collect();
    let oracles = Oracles::new(&matrix, &origins);
    CaseView {
        name: name.to_owned(),
        checkpoint: format!("synthetic:{name}"),
        inputs: "batch 1, 4 tokens".to_owned(),
        axes: None,
        baseline: cells.first().map(|cell| cell.name.clone()),
        verdicts: verdicts(&matrix, &oracles, &Tolerances::default()),
        caches: Vec::new(),
        accuracies: Vec::new(),
        outputs: Vec::new(),
        embeddings: None,
        choices: None,
        localized: Vec::new(),
        diagnosed: Vec::new(),
        times: Times::default(),
        cells,
        matrix,
    }
}

fn run(cases: Vec<CaseView>) -> RunView {
    RunView {
        id: "run".to_owned(),
        environment: Vec::new(),
        packages: Vec::new(),
        cases,
        relations: Vec::new(),
        notes: Vec::new(),
    }
}

fn lines(run: &RunView, width: usize) -> Vec<String> {
    let found = findings(run);
    let (judged, details) = (Judged::default(), Details::default());
    let source = Source { run, found: &found, judged: &judged, details: &details };
    let text = overview::render(&source, width, false);
    text.lines().map(str::to_owned).collect()
}

/// The letter of each cell's group in one case.
fn letters(found: &Findings, case: usize) -> Vec<String> {
    use tfcheck::judge::findings::Mark;
    let letter = |mark: &Mark| match mark {
        Mark::Member { letter, .. } => letter.clone(),
        other => format!("{other:?}"),
    };
    found.cases[case].marks.iter().map(letter).collect()
}

const EAGER: Attention = Attention::Eager;
const SDPA: Attention = Attention::Sdpa;
const F32: Dtype = Dtype::F32;

/// A case in which all variants agree, two in which 4.40.2 is a group of its own, and one in which 4.40.2 failed.
fn releases() -> RunView {
    let alike = |name| {
        case(
            name,
            &[
                ("5.24.0", EAGER, F32, Ok(0.0)),
                ("5.24.0", SDPA, F32, Ok(1e-7)),
                ("4.40.2", EAGER, F32, Ok(2e-7)),
                ("4.40.2", SDPA, F32, Ok(0.0)),
                ("5.24.0", EAGER, Dtype::F64, Ok(0.0)),
                ("4.40.2", EAGER, Dtype::F64, Ok(0.0)),
            ],
        )
    };
    let apart = |name| {
        let mut found = case(
            name,
            &[
                ("5.24.0", EAGER, F32, Ok(0.0)),
                ("5.24.0", SDPA, F32, Ok(1e-7)),
                ("4.40.2", EAGER, F32, Ok(0.75)),
                ("4.40.2", SDPA, F32, Ok(0.75)),
                ("5.24.0", EAGER, Dtype::F64, Ok(0.0)),
                ("4.40.2", EAGER, Dtype::F64, Ok(0.75)),
            ],
        );
        found.localized.push(Localized {
            case: name.to_owned(),
            a: "5.24.0_eager_eager".to_owned(),
            b: "4.40.2_eager_eager".to_owned(),
            dtype: Dtype::F64,
            threshold: 1e-10,
            logits: Some(0.25),
            finding: Finding::Module(Divergence {
                path: "model.layers.0.self_attn.mask".to_owned(),
                ..Divergence::default()
            }),
            sentence: "model.layers.0.self_attn.mask diverges".to_owned(),
            modules: 10,
            captured_bytes: 0,
            overhead: None,
            elapsed_ns: 1,
            capture_changed_nothing: true,
            is_first_fed: false,
            notes: Vec::new(),
            profile: Vec::new(),
        });
        found
    };
    let failed = case(
        "gemma2",
        &[
            ("5.24.0", EAGER, F32, Ok(0.0)),
            ("5.24.0", SDPA, F32, Ok(0.0)),
            ("4.40.2", EAGER, F32, Err("KeyError: 'gemma2'")),
            ("4.40.2", SDPA, F32, Err("KeyError: 'gemma2'")),
            ("5.24.0", EAGER, Dtype::F64, Ok(0.0)),
            ("4.40.2", EAGER, Dtype::F64, Err("KeyError: 'gemma2'")),
        ],
    );
    run(vec![alike("llama"), apart("mistral"), apart("mixtral"), failed])
}

#[test]
fn a_release_that_stands_alone_is_told_once_with_its_module() {
    let run = releases();
    let found = findings(&run);
    assert_eq!(letters(&found, 0), ["A", "A", "A", "A", "Reference", "Reference"]);
    assert_eq!(letters(&found, 1), ["A", "A", "B", "B", "Reference", "Reference"]);
    assert_eq!(letters(&found, 3)[..3], ["A", "A", "Failed"]);
    let diverging: Vec<_> =
        found.findings.iter().filter(|finding| matches!(finding.what, What::Diverges { .. })).collect();
    let [only] = diverging.as_slice() else { panic!("{diverging:#?}") };
    assert_eq!(only.cases, ["mistral", "mixtral"]);
    assert_eq!(only.subject, "4.40.2 (eager, sdpa)");
    insta::assert_snapshot!(lines(&run, 100).join("\n"));
}

#[test]
fn float64_references_are_neither_rows_nor_groups() {
    let text = lines(&releases(), 100).join("\n");
    assert!(!text.contains("f64"), "{text}");
    // In a run of float64 only they are ordinary variants.
    let alone = run(vec![case(
        "llama",
        &[("5.24.0", EAGER, Dtype::F64, Ok(0.0)), ("4.40.2", EAGER, Dtype::F64, Ok(0.5))],
    )]);
    assert_eq!(letters(&findings(&alone), 0), ["A", "B"]);
}

#[test]
fn the_newest_release_that_ran_replaces_a_failed_baseline() {
    let view = run(vec![case(
        "llama",
        &[
            ("5.24.0", EAGER, F32, Err("no such model")),
            ("4.40.2", EAGER, F32, Ok(0.0)),
            ("5.9.0", EAGER, F32, Ok(0.5)),
            ("5.10.4", EAGER, F32, Ok(0.5)),
        ],
    )]);
    let found = findings(&view);
    assert_eq!(found.cases[0].reference, Some(3));
    assert_eq!(letters(&found, 0), ["Failed", "B", "A", "A"]);
}

#[test]
fn without_float64_a_chain_of_small_steps_is_listed() {
    // Each step is below float32's limit of 1.04e-5, the sum of two is not.
    let view = run(vec![case(
        "llama",
        &[
            ("5.24.0", EAGER, F32, Ok(0.0)),
            ("5.23.0", EAGER, F32, Ok(2.6e-5)),
            ("5.22.0", EAGER, F32, Ok(5.2e-5)),
        ],
    )]);
    let found = findings(&view);
    assert_eq!(letters(&found, 0), ["A", "A", "B"]);
    let chains = found.findings.iter().filter(|finding| matches!(finding.what, What::Chain { .. }));
    assert_eq!(chains.count(), 1, "{:#?}", found.findings);
    let text = lines(&view, 100).join(" ");
    assert!(text.contains("not transitive") && text.contains("5.23.0_eager_eager"), "{text}");
}

#[test]
fn a_run_of_any_size_fits_one_screen() {
    for (cases, versions) in [(1, 2), (7, 4), (40, 12), (3, 60)] {
        let specs: Vec<(String, f64)> =
            (0..versions).map(|at| (format!("4.{at}.0"), f64::from(at % 5) * 0.5)).collect();
        let of = |index: usize| {
            let specs: Vec<Spec> = specs
                .iter()
                .enumerate()
                .map(|(at, (name, off))| {
                    let outcome = if at % 7 == 6 {
                        Err("OSError: a long reason that repeats")
                    } else {
                        Ok(*off * f64::from(u8::from(index % 3 != 2)))
                    };
                    (name.as_str(), EAGER, F32, outcome)
                })
                .collect();
            case(&format!("checkpoint-{index}"), &specs)
        };
        let view = run((0..cases).map(of).collect());
        for width in [60, 80, 120] {
            let lines = lines(&view, width);
            assert!(lines.len() <= MOST_LINES, "{cases} × {versions}: {} lines", lines.len());
            let widest = lines.iter().map(|line| console::measure_text_width(line)).max().unwrap();
            assert!(widest <= width, "{cases} × {versions} at {width}: {widest}\n{}", lines.join("\n"));
        }
    }
}
