//! How a sentence-transformers checkpoint makes one vector of a text's hidden states.

use std::path::Path;

use bounds::limits::CHECKPOINT_JSON_BYTES;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::preflight;

/// The step from the hidden states of a text to its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pooling {
    /// Which hidden states count.
    pub mode: Mode,
    /// Whether the vector is scaled to length 1.
    pub normalize: bool,
}

/// Which hidden states of a text count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The mean of those of all tokens.
    Mean,
    /// That of the first token.
    Cls,
    /// The largest of each feature.
    Max,
    /// That of the last token.
    LastToken,
}

/// The keys of `1_Pooling/config.json`.
const MODES: [(&str, Mode); 4] = [
    ("pooling_mode_mean_tokens", Mode::Mean),
    ("pooling_mode_cls_token", Mode::Cls),
    ("pooling_mode_max_tokens", Mode::Max),
    ("pooling_mode_lasttoken", Mode::LastToken),
];

/// The pooling that `modules.json` of a checkpoint states; `None` for another checkpoint, and for a pooling that joins several
/// modes.
pub(super) fn read(folder: &Path) -> Option<Pooling> {
    let bytes = bounds::file::read(&folder.join("modules.json"), CHECKPOINT_JSON_BYTES).ok()?;
    let modules: Value = serde_json::from_slice(&bytes).ok()?;
    let ends = |module: &&Value, ending: &str| {
        module.get("type").and_then(Value::as_str).is_some_and(|name| name.ends_with(ending))
    };
    let modules = modules.as_array()?;
    modules.iter().find(|module| ends(module, ".Pooling"))?;
    let config = preflight::read_object(&folder.join(preflight::POOLING)).ok()?;
    let is_on = |key: &str| config.get(key) == Some(&Value::Bool(true));
    let mut modes = MODES.iter().filter(|(key, _)| is_on(key)).map(|(_, mode)| *mode);
    let mode = modes.next()?;
    let normalize = modules.iter().any(|module| ends(&module, ".Normalize"));
    modes.next().is_none().then_some(Pooling { mode, normalize })
}

impl Pooling {
    /// The vector of a text, from the hidden states of its real tokens in order.
    pub fn vector(self, states: &[Vec<f64>]) -> Vec<f64> {
        let width = states.first().map_or(0, Vec::len);
        let each = |of: &dyn Fn(&mut dyn Iterator<Item = f64>) -> f64| -> Vec<f64> {
            (0..width).map(|at| of(&mut states.iter().map(|state| state[at]))).collect()
        };
        let mut vector = match self.mode {
            Mode::Mean => each(&|column| column.sum::<f64>() / states.len() as f64),
            Mode::Max => each(&|column| column.fold(f64::NEG_INFINITY, f64::max)),
            Mode::Cls => states.first().cloned().unwrap_or_default(),
            Mode::LastToken => states.last().cloned().unwrap_or_default(),
        };
        if self.normalize {
            // torch.nn.functional.normalize divides by at least 1e-12.
            let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
            for x in &mut vector {
                *x /= length;
            }
        }
        vector
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_makes_its_own_vector() {
        let states = [vec![3.0, 0.0], vec![0.0, 4.0], vec![3.0, 8.0]];
        let of = |mode| Pooling { mode, normalize: false }.vector(&states);
        assert_eq!(of(Mode::Mean), [2.0, 4.0]);
        assert_eq!(of(Mode::Cls), [3.0, 0.0]);
        assert_eq!(of(Mode::Max), [3.0, 8.0]);
        assert_eq!(of(Mode::LastToken), [3.0, 8.0]);
        let unit = Pooling { mode: Mode::Cls, normalize: true }.vector(&states);
        assert_eq!(unit, [1.0, 0.0]);
    }
}
