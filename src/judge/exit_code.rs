//! tfcheck's exit codes.

/// What the process tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCode {
    /// Everything ran and agrees.
    Agree,
    /// A gate failed: variants diverge, or one regressed.
    Diverged,
    /// The command line or the config is wrong.
    Usage,
    /// A cell failed.
    CellFailed,
    /// There is no GPU, or something that the GPU check needs is missing.
    NoGpu,
    /// The user stopped it.
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
