//! `junit.xml`: a test case per cell and per pair, for CI servers.

use quick_junit::{NonSuccessKind, Report as Document, TestCase, TestCaseStatus, TestSuite};

use super::{Report, RunView, kind, reason};
use crate::compare::verdict::Decision;
use crate::results::Outcome;

/// Failed cells are errors, diverged and incomparable pairs failures; what did not run is skipped.
#[derive(Clone, Copy, Debug)]
pub struct Junit;

impl Report for Junit {
    fn file_name(&self) -> &'static str {
        "junit.xml"
    }

    fn render(&self, run: &RunView) -> String {
        let mut document = Document::new(format!("tfcheck {}", run.id));
        for case in &run.cases {
            let mut cells = TestSuite::new(format!("{} cells", case.name));
            for cell in &case.cells {
                let status = match &cell.outcome {
                    Outcome::Completed(_) => TestCaseStatus::success(),
                    outcome @ Outcome::Unsupported { .. } => skipped(&reason(outcome)),
                    Outcome::Failed(failure) => {
                        let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
                        status
                            .set_type(kind(failure.kind))
                            .set_message(failure.reason.clone())
                            .set_description(format!("{}\n{}", failure.detail, failure.log_tail).trim());
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
                        status.set_type(verdict.decision.word()).set_message(verdict.evidence.clone());
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

fn skipped(message: &str) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(message.to_owned());
    status
}
