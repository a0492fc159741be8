//! How a variant is executed (`torch.compile`, an attention implementation) as the cause of a divergence, and the first
//! module at which it differs from its own eager twin.

use super::drive::{Attempt, threshold, twin};
use super::live::{Found, Open};
use super::{Finding, LocalizeError, Request, Side};
use crate::spec::variant::{attention_name, dtype_name};

impl Open<'_> {
    /// Whether `torch.compile` or the attention implementation makes a variant differ from its eager twin, which
    /// agrees with the other side.
    pub(super) fn execution(
        &self,
        found: &Found,
        notes: &mut Vec<String>,
    ) -> Result<Option<Finding>, LocalizeError> {
        for (side, name) in self.request.sides.iter().zip(["a", "b"]) {
            let asked = side.load.in_dtype(found.dtype);
            if asked == twin(&side.load, found.dtype) {
                continue;
            }
            let what = match (side.load.mode, side.load.attention) {
                (mode, _) if mode.is_compiled() => "torch.compile".to_owned(),
                (_, Some(attention)) => format!("{} attention", attention_name(attention)),
                (_, None) => "its execution".to_owned(),
            };
            let mut live = match self.start(side, asked) {
                Ok(live) => live,
                Err(Attempt::Lacking(error)) => {
                    notes.push(format!("could not check whether {what} diverges: {error}"));
                    continue;
                }
                Err(Attempt::Failed(error)) => return Err(error),
            };
            let own = self.forward(&mut live, &format!("logits_{name}_asked"))?;
            live.end();
            let dtype = dtype_name(found.dtype);
            let eager = (self.scratch.join(format!("logits_{name}_{dtype}.safetensors")), own.1);
            let apart = self.apart(&eager, &own, found.dtype).map(|(whole, _)| whole);
            if let Some(relative_l2) = apart.filter(|apart| *apart > threshold(self.request, found.dtype)) {
                let at = self.first_module(side, found, notes);
                return Ok(Some(Finding::Execution { variant: side.name.clone(), what, relative_l2, at }));
            }
        }
        Ok(None)
    }

    /// The first module at which `side` differs from its own eager twin. A compiled model shows no modules.
    fn first_module(&self, side: &Side, found: &Found, notes: &mut Vec<String>) -> Option<String> {
        let asked = side.load.in_dtype(found.dtype);
        if asked.mode.is_compiled() {
            return None;
        }
        let eager = twin(&side.load, found.dtype);
        let of = |load: &reference::protocol::Load, name: &str| Side {
            name: name.to_owned(),
            runner: side.runner,
            load: load.clone(),
            prefill: side.prefill,
        };
        let sides = [of(&eager, &format!("{} in eager attention", side.name)), of(&asked, &side.name)];
        let request = Request { sides, ..*self.request };
        let open = Open { request: &request, ..*self };
        match open.attempt_as([eager, asked], found.dtype, false) {
            Ok(Found { finding: Finding::Module(divergence), .. }) => Some(divergence.path),
            Ok(_) => None,
            Err(attempt) => {
                notes.push(format!(
                    "no module of {} could be found: {}",
                    side.name,
                    LocalizeError::from(attempt)
                ));
                None
            }
        }
    }
}
