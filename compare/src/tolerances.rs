//! The limits that verdicts are made by.

use super::Dtype;
use serde::{Deserialize, Serialize};

/// One number per dtype.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PerDtype {
    /// For float64 variants.
    pub f64: f64,
    /// For float32 variants.
    pub f32: f64,
    /// For bfloat16 variants.
    pub bf16: f64,
    /// For float16 variants.
    pub f16: f64,
}

impl PerDtype {
    /// The number of one dtype.
    pub fn of(&self, dtype: Dtype) -> f64 {
        match dtype {
            Dtype::F64 => self.f64,
            Dtype::F32 => self.f32,
            Dtype::Bf16 => self.bf16,
            Dtype::F16 => self.f16,
        }
    }
}

/// Limits of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Tolerances {
    /// Largest relative L2 of two float64 results of one mathematics.
    pub f64_agreement: f64,
    /// Largest relative L2, over all positions, that rounding in a dtype explains.
    #[serde(deserialize_with = "relative_l2")]
    #[cfg_attr(feature = "schema", schemars(with = "PartialPerDtype"))]
    pub relative_l2: PerDtype,
    /// How many times `relative_l2` a single position, or a single token that stands out, may reach.
    pub local_factor: f64,
    /// `tol` of dynamo's rule, in units of logits.
    #[serde(deserialize_with = "dynamo")]
    #[cfg_attr(feature = "schema", schemars(with = "PartialPerDtype"))]
    pub dynamo: PerDtype,
}

/// What a config names of a [`PerDtype`]; the rest keeps its default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct PartialPerDtype {
    /// For float64 variants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f64: Option<f64>,
    /// For float32 variants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f32: Option<f64>,
    /// For bfloat16 variants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bf16: Option<f64>,
    /// For float16 variants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f16: Option<f64>,
}

impl PartialPerDtype {
    fn or(&self, default: PerDtype) -> PerDtype {
        PerDtype {
            f64: self.f64.unwrap_or(default.f64),
            f32: self.f32.unwrap_or(default.f32),
            bf16: self.bf16.unwrap_or(default.bf16),
            f16: self.f16.unwrap_or(default.f16),
        }
    }
}

fn relative_l2<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PerDtype, D::Error> {
    Ok(PartialPerDtype::deserialize(deserializer)?.or(Tolerances::default().relative_l2))
}

fn dynamo<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PerDtype, D::Error> {
    Ok(PartialPerDtype::deserialize(deserializer)?.or(Tolerances::default().dynamo))
}

/// What a checkpoint's own tolerances name; the rest is the run's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Overrides {
    /// Largest relative L2 of two float64 results of one mathematics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub f64_agreement: Option<f64>,
    /// Largest relative L2, over all positions, that rounding in a dtype explains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relative_l2: Option<PartialPerDtype>,
    /// How many times `relative_l2` a single position, or a single token that stands out, may reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_factor: Option<f64>,
    /// `tol` of dynamo's rule, in units of logits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamo: Option<PartialPerDtype>,
}

impl Tolerances {
    /// Whether the limits of rounding in a dtype are tfcheck's own.
    pub fn are_default_for(&self, dtype: Dtype) -> bool {
        let default = Self::default();
        let limits = |of: &Self| [of.relative_l2.of(dtype), of.local_factor].map(f64::to_bits);
        limits(self) == limits(&default)
    }

    /// The same with what `overrides` names.
    #[must_use]
    pub fn with(self, overrides: Option<&Overrides>) -> Self {
        let Some(overrides) = overrides else { return self };
        Self {
            f64_agreement: overrides.f64_agreement.unwrap_or(self.f64_agreement),
            relative_l2: overrides.relative_l2.map_or(self.relative_l2, |part| part.or(self.relative_l2)),
            local_factor: overrides.local_factor.unwrap_or(self.local_factor),
            dynamo: overrides.dynamo.map_or(self.dynamo, |part| part.or(self.dynamo)),
        }
    }
}

impl Default for Tolerances {
    /// `relative_l2`: the rtol of torch.testing.assert_close (float16 1e-3, bfloat16 1.6e-2, float32
    /// 1.3e-6), which is for one operation, times 8 for a whole model (4 for bfloat16, whose rtol is
    /// already four roundings); a window off by one key of
    /// eight moves logits by 0.3. `local_factor` 4:
    /// bf16's worst position reached 0.157 on gemma-3-270m and 0.094 on synthetic:llama, whose whole reached
    /// 0.031 and 0.051, the largest of all that were measured (docs/metrics.md). `dynamo`: `same`'s default 1e-4, and
    /// 1e-3 in half precision, whose epsilon at a logit of 1 is 8e-3 (bfloat16) and 1e-3 (float16).
    fn default() -> Self {
        Self {
            f64_agreement: 1e-10,
            relative_l2: PerDtype { f64: 1e-10, f32: 1.04e-5, bf16: 6.4e-2, f16: 8e-3 },
            local_factor: 4.0,
            dynamo: PerDtype { f64: 1e-9, f32: 1e-4, bf16: 1e-3, f16: 1e-3 },
        }
    }
}
