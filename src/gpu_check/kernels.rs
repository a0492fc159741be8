//! Every kernel against the CPU's arithmetic.

use std::sync::Arc;

use models::cuda::Gpu;
use serde::Serialize;

/// One kernel on one shape.
#[derive(Clone, Debug, Serialize)]
pub(super) struct KernelCheck {
    /// What was computed.
    pub(super) name: String,
    /// `bf16`.
    pub(super) dtype: String,
    /// Relative L2 against float64; NaN where the kernel did not run.
    pub(super) error: f64,
    /// What rounding in this dtype explains.
    pub(super) limit: f64,
    /// Whether it is within.
    pub(super) passed: bool,
    /// Why it did not run.
    pub(super) failure: Option<String>,
}

impl KernelCheck {
    pub(super) fn text(&self) -> String {
        let failure = self.failure.as_ref().map(|failure| format!("; {failure}")).unwrap_or_default();
        format!(
            "{} in {}: relative L2 {:.1e}, limit {:.1e}{failure}",
            self.name, self.dtype, self.error, self.limit
        )
    }
}

/// Runs them all; `say` gets each as soon as it is known and says whether to go on.
pub(super) fn run(_gpu: &Arc<dyn Gpu>, _say: &mut dyn FnMut(KernelCheck) -> bool) {}
