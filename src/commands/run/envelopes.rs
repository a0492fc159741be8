//! Measures what rounding does in a 16-bit dtype, for pairs that nothing else decides: neither a float64 result nor float32 results
//! of both.

use std::time::Duration;

use compare::Dtype;
use compare::evidence::{ByTolerance, Evidence, Excess};
use miette::Result;

use super::load;
use super::localize::EndOfRun;
use crate::hunt::diagnose::{self, DiagnoseError, Side, Tokens};
use crate::judge::view::{CaseView, RunView};
use crate::results::CaseEnvelope;
use crate::spec::plan::CellPlan;
use crate::spec::variant::{Runner, measured_dtype};

impl EndOfRun<'_> {
    /// Measures and stores the envelopes that the verdicts of `view` lack; whether there are any. A failure becomes a note.
    pub(super) fn measure_envelopes(&self, view: &mut RunView) -> Result<bool> {
        let mut all = Vec::new();
        for index in 0..self.cases.len() {
            for dtype in [Dtype::Bf16, Dtype::F16] {
                let case = &view.cases[index];
                let own =
                    self.request.config.checkpoints[self.request.plan.cases[index].checkpoint].tolerances;
                let is_ours = self.request.config.tolerances.with(own.as_ref()).are_default_for(dtype);
                if !is_ours || !has_fixed_limit(case, dtype) || !self.is_measurable(index) {
                    continue;
                }
                let Some(cell) = self.repeated(index, case, dtype) else { continue };
                let name = case.name.clone();
                self.request.progress.line(&format!(
                    "{name}: measuring the rounding of {} in {}",
                    cell.variant.name(),
                    dtype.name()
                ));
                match self.measured(index, cell) {
                    Ok(found) => all.extend(found.map(|envelope| CaseEnvelope { case: name, envelope })),
                    Err(DiagnoseError::Interrupted) => return Ok(false),
                    Err(error) => {
                        view.notes
                            .push(format!("{name}: rounding in {} was not measured: {error}", dtype.name()));
                    }
                }
            }
        }
        if all.is_empty() {
            return Ok(false);
        }
        self.folder.write_envelopes(&all)?;
        Ok(true)
    }

    /// Whether the case is one full-sequence forward pass over tokens alone.
    fn is_measurable(&self, index: usize) -> bool {
        let is_one_pass = self.request.plan.cases[index].inputs.prefill().is_none();
        is_one_pass && self.cases[index].inputs.tensors.is_empty()
    }

    /// The variant that is repeated: a transformers version or a native model with logits in the dtype, the reference of the case if
    /// it is one.
    fn repeated(&self, index: usize, case: &CaseView, dtype: Dtype) -> Option<&CellPlan> {
        let has_logits =
            |name: &str| case.cells.iter().any(|cell| cell.name == name && cell.completed().is_some());
        let is_usable = |cell: &&CellPlan| {
            cell.case == index
                && measured_dtype(cell.variant.dtype) == dtype
                && matches!(cell.variant.runner, Runner::Transformers | Runner::Candle)
                && has_logits(&cell.variant.name())
        };
        let reference = case.reference().map(|reference| case.cells[reference].name.clone());
        let rank = |cell: &&CellPlan| {
            let is_reference = Some(cell.variant.name()) == reference;
            (!is_reference, cell.variant.runner != Runner::Transformers)
        };
        self.request.plan.cells.iter().filter(is_usable).min_by_key(rank)
    }

    fn measured(
        &self,
        index: usize,
        cell: &CellPlan,
    ) -> Result<Option<compare::envelope::Envelope>, DiagnoseError> {
        let (prepared, name) = (&self.cases[index], cell.variant.name());
        let folder = self.folder.case_folder(self.manifest, &self.request.plan.cases[index].name);
        let runner = self.runners.of(cell).map_err(|ended| DiagnoseError::ended(&name, &folder, ended))?;
        let load = load(self.request, prepared, &folder.join("inputs.safetensors"), self.runners, cell);
        let side = Side { name, runner, load, computes_f64: false, is_native: false };
        let timeout = Duration::from_secs(self.request.config.run.timeout_s);
        diagnose::envelope(&side, &Tokens::from(&prepared.inputs), (&folder, timeout, self.request.stop))
    }
}

/// Whether the fixed limit of a dtype decided on a pair of the case.
fn has_fixed_limit(case: &CaseView, dtype: Dtype) -> bool {
    case.verdicts.iter().any(|verdict| {
        let Evidence::Tolerance { found, distrusted: None, measured: None } = &verdict.basis.evidence else {
            return false;
        };
        match found {
            ByTolerance::Beyond(Excess::Overall { dtype: own, .. } | Excess::Position { dtype: own, .. })
            | ByTolerance::Within { dtype: own, .. } => *own == dtype,
            ByTolerance::Beyond(Excess::Token { .. })
            | ByTolerance::NotFinite { .. }
            | ByTolerance::AgreesWider { .. } => false,
        }
    })
}
