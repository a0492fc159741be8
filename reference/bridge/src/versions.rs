//! Differences between versions of transformers, and the default versions.
//!
//! The facts are rows of `versions.json`, not code; tests compare them with real environments.

use std::sync::LazyLock;

use serde::Deserialize;

/// The rows of `versions.json`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// The version used for the requirement `transformers` without a version.
    pub newest: String,
    /// The release that makes synthetic checkpoints of model types that 4.57.6 does not know. It may be newer than `newest`, with
    /// which the committed values were made and which is part of the key of every environment.
    pub makes: String,
    /// The versions compared if a config lists none.
    pub default: Vec<String>,
    /// The torch version of all environments.
    pub torch: String,
    /// The Python version of new environments, in uv's request syntax.
    pub python: String,
    /// The uv version that is installed if none is found.
    pub uv: String,
    /// Base URL of PyTorch's wheel indexes; `/cpu` or `/cu130` is appended.
    pub pytorch_index: String,
    dialects: Vec<Dialect>,
}

/// What a range of transformers versions accepts.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dialect {
    /// First version of the range.
    from: String,
    /// The argument of `from_pretrained` that sets the dtype.
    pub dtype_argument: String,
    /// The config key that records the dtype.
    pub config_dtype: String,
    /// How `config.json` spells rotary positions.
    pub rope: RopeForm,
    /// What `from_pretrained` does if a weight's shape differs from the model's.
    pub wrong_shapes: WrongShapes,
}

/// What `from_pretrained` does if a weight's shape differs from the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WrongShapes {
    /// It raises an error that contains the weight's name. With `ignore_mismatched_sizes` it would first
    /// initialise all weights at random (`_initialize_missing_keys` of 4.54 `modeling_utils.py`), which takes
    /// long and can fail.
    Raised,
    /// It logs the weight's name and raises an error without it.
    Logged,
}

/// How `config.json` spells rotary positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeForm {
    /// `rope_theta`, and `rope_scaling` with exactly `type` and `factor` (checked by
    /// `_rope_scaling_validation` of transformers 4.40 `configuration_llama.py`).
    TypeAndFactor,
    /// `rope_theta`, and `rope_scaling` with `rope_type` and its parameters (`modeling_rope_utils.py` since 4.43).
    RopeScaling,
    /// `rope_parameters`, which holds `rope_theta` too (since 5.0).
    RopeParameters,
}

impl Versions {
    /// The facts compiled into this build.
    ///
    /// # Panics
    /// Never in a build whose tests pass: the file is part of the build and a test parses it.
    pub fn known() -> &'static Self {
        static KNOWN: LazyLock<Versions> = LazyLock::new(|| {
            serde_json::from_str(include_str!("versions.json"))
                .expect("versions.json is part of the build and a test parses it")
        });
        &KNOWN
    }

    /// The dialect of `version`; a development version counts as its release.
    pub fn dialect(&self, version: &str) -> &Dialect {
        let asked = release(version);
        self.dialects
            .iter()
            .rev()
            .find(|dialect| release(&dialect.from) <= asked)
            .unwrap_or(&self.dialects[0])
    }
}

/// The leading numbers of a version, `5.0.0.dev0` as `[5, 0, 0]`.
pub fn release(version: &str) -> [u64; 3] {
    let mut numbers = [0; 3];
    for (slot, part) in numbers.iter_mut().zip(version.split('.')) {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        match digits.parse() {
            Ok(number) => *slot = number,
            Err(_) => break,
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dialect_of_a_version_is_the_last_row_that_starts_before_it() {
        let check = |version: &str, argument: &str, rope: RopeForm| {
            let dialect = Versions::known().dialect(version);
            assert_eq!(dialect.dtype_argument, argument, "{version}");
            assert_eq!(dialect.rope, rope, "{version}");
        };
        check("4.40.2", "torch_dtype", RopeForm::TypeAndFactor);
        check("4.43.0", "torch_dtype", RopeForm::RopeScaling);
        check("4.54.0", "torch_dtype", RopeForm::RopeScaling);
        check("4.57.6", "dtype", RopeForm::RopeScaling);
        check("5.0.0.dev0", "dtype", RopeForm::RopeParameters);
        check("5.23.0", "dtype", RopeForm::RopeParameters);
    }

    #[test]
    fn releases_compare_as_numbers() {
        assert!(release("4.9.0") < release("4.40.2"));
        assert_eq!(release("5.0.0rc1"), [5, 0, 0]);
        assert_eq!(release("4.57"), [4, 57, 0]);
    }
}
