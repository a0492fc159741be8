//! tfcheck's exit codes.

/// The exit status of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// 0: everything ran and agrees.
    Agree,
    /// 1: a gate failed, because variants diverge or one regressed.
    Diverged,
    /// 2: the command line or the config is wrong.
    Usage,
    /// 3: a cell failed.
    CellFailed,
    /// 4: there is no GPU, or a prerequisite of the GPU check is missing.
    NoGpu,
    /// 130: the user interrupted it.
    Interrupted,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        match code {
            ExitCode::Agree => 0,
            ExitCode::Diverged => 1,
            ExitCode::Usage => 2,
            ExitCode::CellFailed => 3,
            ExitCode::NoGpu => 4,
            ExitCode::Interrupted => 130,
        }
        .into()
    }
}
