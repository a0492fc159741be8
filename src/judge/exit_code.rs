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

impl ExitCode {
    /// The number of the exit status.
    pub fn number(self) -> u8 {
        match self {
            Self::Agree => 0,
            Self::Diverged => 1,
            Self::Usage => 2,
            Self::CellFailed => 3,
            Self::NoGpu => 4,
            Self::Interrupted => 130,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        code.number().into()
    }
}
