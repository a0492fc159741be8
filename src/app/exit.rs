//! Exit codes of errors.

use miette::Report;

use crate::hunt::diagnose::DiagnoseError;
use crate::hunt::localize::LocalizeError;
use crate::judge::exit_code::ExitCode;
use crate::results::ResultsError;
use crate::spec::checkpoint;
use crate::spec::inputs;

/// The exit code of an error: a run that could not be written and a worker that gave no answer are failed cells,
/// anything else is bad usage. After a request to stop, any error is an interruption.
pub fn code_of(report: &Report) -> Option<ExitCode> {
    let is_stopped = report.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(checkpoint::Error::Interrupted))
            || matches!(cause.downcast_ref(), Some(inputs::Error::Interrupted))
    });
    if is_stopped || reference::is_stopped() {
        return Some(ExitCode::Interrupted);
    }
    let localize = report.chain().find_map(|cause| cause.downcast_ref::<LocalizeError>());
    if let Some(error) = localize {
        return Some(match error {
            LocalizeError::Interrupted => ExitCode::Interrupted,
            LocalizeError::Worker { .. } | LocalizeError::Io { .. } => ExitCode::CellFailed,
            LocalizeError::NothingInCommon { .. } => ExitCode::Usage,
        });
    }
    let diagnose = report.chain().find_map(|cause| cause.downcast_ref::<DiagnoseError>());
    if let Some(error) = diagnose {
        return Some(match error {
            DiagnoseError::Interrupted => ExitCode::Interrupted,
            DiagnoseError::Worker { .. } | DiagnoseError::Io { .. } => ExitCode::CellFailed,
            DiagnoseError::Checkpoint { .. } => ExitCode::Usage,
        });
    }
    // What cannot be written is no mistake of the user's.
    let is_unwritten = report.chain().any(|cause| {
        let written = |action: &str| action != "read";
        matches!(cause.downcast_ref(), Some(checkpoint::Error::Io { action, .. }) if written(action))
            || matches!(cause.downcast_ref(), Some(inputs::Error::Io { action, .. }) if written(action))
    });
    if is_unwritten {
        return Some(ExitCode::CellFailed);
    }
    report.chain().find_map(|cause| cause.downcast_ref::<ResultsError>()).map(|error| match error {
        ResultsError::Io { action: "write" | "create", .. } => ExitCode::CellFailed,
        _ => ExitCode::Usage,
    })
}
