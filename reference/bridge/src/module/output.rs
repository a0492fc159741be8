//! Reads the logits from a model's output.

use pyo3::prelude::*;

use super::failure::Stop;
use protocol::Positions;

/// `logits`, or the last hidden states of a model without a head, `[batch, seq, width]`.
pub(super) fn logits<'py>(output: &Bound<'py, PyAny>) -> Result<(Bound<'py, PyAny>, Positions), Stop> {
    for name in ["logits", "last_hidden_state"] {
        let Some(tensor) = output.getattr_opt(name)? else {
            continue;
        };
        let dimensions: usize = tensor.call_method0("dim")?.extract()?;
        return match dimensions {
            3 => Ok((tensor, Positions::All)),
            // `[batch, num_labels]`, one score vector per sequence: a sequence classifier.
            2 => Ok((tensor.call_method1("unsqueeze", (1,))?, Positions::Last)),
            other => Err(Stop::exception(format!("{name} has {other} dimensions"))),
        };
    }
    Err(Stop::unsupported(format!("{} has neither logits nor last_hidden_state", output.get_type().name()?)))
}
