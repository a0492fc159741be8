//! `junit.xml`: a test case per gate, cell and pair, for CI servers.

use quick_junit::{NonSuccessKind, Report as Document, TestCase, TestCaseStatus, TestSuite};

use bounds::limits::LINES;

use super::{Report, Source};
use crate::execute::cell::Outcome;
use crate::judge::gates::GateResult;
use compare::verdict::Decision;

/// A failed gate and a diverged or incomparable pair are failures, a failed cell is an error, and whatever did not
/// run is skipped.
#[derive(Clone, Copy, Debug)]
pub struct Junit;

impl Report for Junit {
    fn file_name(&self) -> &'static str {
        "junit.xml"
    }

    fn render(&self, source: &Source<'_>) -> String {
        let Source { run, judged, .. } = *source;
        let mut document = Document::new(format!("tfcheck {}", run.id));
        if judged.is_named {
            document.add_test_suite(gates(&judged.gates));
        }
        for case in &run.cases {
            let mut cells = TestSuite::new(format!("{} cells", case.name));
            for cell in &case.cells {
                let status = match &cell.outcome {
                    Outcome::Completed(_) => TestCaseStatus::success(),
                    outcome @ Outcome::Unsupported { .. } => skipped(&outcome.reason()),
                    Outcome::Failed(failure) => {
                        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
                        status
                            .set_type(failure.kind.words())
                            .set_message(text(&failure.reason))
                            .set_description(text(
                                format!("{}\n{}", failure.detail, failure.log_tail).trim(),
                            ));
                        status
                    }
                };
                let mut test = TestCase::new(cell.name.clone(), status);
                test.set_classname(case.name.clone());
                if let Outcome::Completed(completed) = &cell.outcome {
                    test.set_time(std::time::Duration::from_nanos(completed.first_call_ns));
                }
                cells.add_test_case(test);
            }
            document.add_test_suite(cells);

            let mut pairs = TestSuite::new(format!("{} pairs", case.name));
            for verdict in &case.verdicts {
                let status = match &verdict.decision {
                    Decision::Identical | Decision::SameMathematics => TestCaseStatus::success(),
                    Decision::WorseRounding { .. } | Decision::Diverged | Decision::Incomparable { .. } => {
                        let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                        status.set_type(verdict.decision.word()).set_message(text(&verdict.evidence));
                        status
                    }
                    Decision::NotRun { reason } => skipped(reason),
                };
                let mut test = TestCase::new(format!("{} against {}", verdict.a, verdict.b), status);
                test.set_classname(case.name.clone());
                pairs.add_test_case(test);
            }
            document.add_test_suite(pairs);
        }
        document.to_string().expect("a report without a time stamp is always representable")
    }
}

/// One test per gate. An unknown gate is skipped, because it does not fail the run.
fn gates(gates: &[GateResult]) -> TestSuite {
    let mut suite = TestSuite::new("gates");
    for gate in gates {
        let status = match gate.word() {
            "failed" => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                let failed: Vec<String> =
                    gate.failed().map(|(subject, why)| format!("{subject}: {why}")).collect();
                status
                    .set_type("gate")
                    .set_message(text(&gate.text(1)))
                    .set_description(text(&failed.join("\n")));
                status
            }
            "unknown" => skipped(&gate.text(1)),
            _ => TestCaseStatus::success(),
        };
        let mut test = TestCase::new(gate.gate.clone(), status);
        test.set_classname("gates");
        suite.add_test_case(test);
    }
    suite
}

fn skipped(message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(text(message));
    status
}

/// Foreign text without characters that XML cannot hold.
fn text(foreign: &str) -> String {
    bounds::lines(foreign, LINES.most).into_owned()
}
