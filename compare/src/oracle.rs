//! Each variant's error against the float64 result (the oracle) of the same computation.

use super::Dtype;
use super::envelope::Envelope;
use super::evidence::Routing;
use super::matrix::Matrix;
use super::metrics::{PairMetrics, Side};

/// A variant measured against its float64 result; side B of `pair` is the oracle.
#[derive(Clone, Debug, PartialEq)]
pub struct Accuracy {
    /// Index of the variant in the matrix.
    pub variant: usize,
    /// Index of its oracle in the matrix.
    pub oracle: usize,
    /// `sqrt(mean((oracle − variant)²))`, in units of logits: dynamo's RMSE(fp64, result).
    pub rmse: f64,
    /// `‖variant − oracle‖ / ‖oracle‖`.
    pub relative_l2: f64,
    /// `max |variant − oracle|`.
    pub max_abs: f64,
}

/// Identifies the code that computed a variant's logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Runner and version: variants of one family compute the same function.
    pub family: String,
    /// Family plus mode, attention and device: variants of one path run the same code, whatever their dtype.
    pub path: String,
}

impl Origin {
    /// Prefixes family and path with `way`, for results of the same code that were computed in another way.
    #[must_use]
    pub fn made(self, way: &str) -> Self {
        Self { family: format!("{way} {}", self.family), path: format!("{way} {}", self.path) }
    }
}

/// Assigns each variant the float64 result that it is compared with.
///
/// The oracle of a variant is the float64 variant of its own path, or else of its family, or else the first float64
/// variant that has logits. In the last case the agreement of the two families cannot be checked, and the verdict's
/// evidence states it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Oracles {
    origins: Vec<Origin>,
    own: Vec<Option<usize>>,
    any: Option<usize>,
    near_ties: Vec<(usize, Routing)>,
    opaque: Vec<usize>,
    envelopes: Vec<Envelope>,
}

impl Oracles {
    /// Finds the float64 variants that have logits.
    ///
    /// # Panics
    /// If `origins` does not have one entry per variant of the matrix.
    pub fn new(matrix: &Matrix, origins: &[Origin]) -> Self {
        assert_eq!(matrix.len(), origins.len(), "one origin per variant");
        let usable: Vec<usize> = (0..matrix.len())
            .filter(|&i| matrix.dtypes[i] == Dtype::F64 && matrix.compared(i, i).is_some())
            .collect();
        let find = |is_it: &dyn Fn(&Origin) -> bool| usable.iter().copied().find(|&i| is_it(&origins[i]));
        let own = origins
            .iter()
            .map(|Origin { family, path }| {
                find(&|other| other.path == *path).or_else(|| find(&|other| other.family == *family))
            })
            .collect();
        let any = usable.first().copied();
        Self {
            origins: origins.to_vec(),
            own,
            any,
            near_ties: Vec::new(),
            opaque: Vec::new(),
            envelopes: Vec::new(),
        }
    }

    /// Records variants that show no modules, so that only their logits can distinguish rounding from another function:
    /// their own float32 result is then evidence for their lower dtypes.
    #[must_use]
    pub fn with_opaque(mut self, variants: impl IntoIterator<Item = usize>) -> Self {
        self.opaque.extend(variants);
        self
    }

    /// Records what rounding was measured to do in a dtype, for pairs of which neither float64 nor float32 results decide.
    #[must_use]
    pub fn with_envelopes(mut self, envelopes: impl IntoIterator<Item = Envelope>) -> Self {
        self.envelopes.extend(envelopes);
        self
    }

    /// What rounding was measured to do in a dtype.
    pub(super) fn envelope(&self, dtype: Dtype) -> Option<&Envelope> {
        self.envelopes.iter().find(|known| known.dtype == dtype)
    }

    /// The float32 results of an opaque variant's own code, if its dtype is a lower one.
    pub(super) fn wider<'a>(
        &'a self,
        matrix: &'a Matrix,
        variant: usize,
    ) -> impl Iterator<Item = usize> + 'a {
        let is_lower = matches!(matrix.dtypes[variant], Dtype::Bf16 | Dtype::F16);
        let is_opaque = self.opaque.contains(&variant) && is_lower;
        (0..matrix.len()).filter(move |&other| {
            is_opaque
                && matrix.dtypes[other] == Dtype::F32
                && self.origins[other].path == self.origins[variant].path
        })
    }

    /// Two float32 results that are bitwise equal although one is of the code that computed the float64 result `a` and the
    /// other of the code that computed `b`.
    pub(super) fn identical_in_f32(&self, matrix: &Matrix, a: usize, b: usize) -> Option<[usize; 2]> {
        let of = |oracle: usize| {
            (0..matrix.len()).filter(move |&index| {
                matrix.dtypes[index] == Dtype::F32 && self.own[index] == Some(oracle) && self.ran(index)
            })
        };
        let is_equal = |a: usize, b: usize| matrix.compared(a, b).is_some_and(|pair| pair.identical);
        of(a).find_map(|one| of(b).find(|&other| is_equal(one, other)).map(|other| [one, other]))
    }

    /// Records that `variant` is known to differ only because its routers choose other experts at near-ties (two router
    /// scores closer than rounding explains); `routing` is the evidence.
    #[must_use]
    pub fn with_near_ties(mut self, variant: usize, routing: Routing) -> Self {
        self.near_ties.push((variant, routing));
        self
    }

    /// The evidence that a variant differs only by near-ties of routers.
    pub fn near_ties(&self, variant: usize) -> Option<&Routing> {
        self.near_ties.iter().find(|(known, _)| *known == variant).map(|(_, routing)| routing)
    }

    /// The float64 result of a variant's own family.
    pub fn own(&self, variant: usize) -> Option<usize> {
        self.own[variant]
    }

    /// The float64 result that a variant is compared with: its own, or else the first of any family.
    pub fn of(&self, variant: usize) -> Option<usize> {
        self.own[variant].or(self.any)
    }

    /// Whether the variant's own code has run in float64, so that it differs from its oracle only by rounding.
    pub fn ran(&self, variant: usize) -> bool {
        self.own[variant].is_some_and(|oracle| self.origins[oracle].path == self.origins[variant].path)
    }

    /// Variants whose error is known to be rounding, for comparison with `variant`: other variants of its dtype, of its own
    /// family or of `other`'s, whose code has run in float64.
    pub(super) fn references(&self, matrix: &Matrix, variant: usize, other: usize) -> Vec<usize> {
        let families = [variant, other].map(|index| &self.origins[index].family);
        (0..matrix.len())
            .filter(|&index| {
                index != variant
                    && matrix.dtypes[index] == matrix.dtypes[variant]
                    && families.contains(&&self.origins[index].family)
                    && self.ran(index)
                    && self.own[index] != Some(index)
            })
            .collect()
    }
}

/// Measures every variant against its oracle; variants without one and the oracles themselves are omitted.
pub fn accuracies(matrix: &Matrix, oracles: &Oracles) -> Vec<Accuracy> {
    (0..matrix.len())
        .filter_map(|variant| {
            let oracle = oracles.of(variant)?;
            let (rmse, relative_l2, max_abs) = error(matrix, variant, oracle)?;
            (variant != oracle).then_some(Accuracy { variant, oracle, rmse, relative_l2, max_abs })
        })
        .collect()
}

fn error(matrix: &Matrix, variant: usize, oracle: usize) -> Option<(f64, f64, f64)> {
    let pair = matrix.compared(variant, oracle)?;
    Some((pair.rmse(), relative_to(pair, variant, oracle), pair.max_abs))
}

/// Relative L2 of a pair with `reference` as the reference.
pub(super) fn relative_to(pair: &PairMetrics, other: usize, reference: usize) -> f64 {
    pair.relative_l2(if reference < other { Side::A } else { Side::B })
}

/// dynamo's rule: `RMSE(fp64, result) ≤ multiplier · RMSE(fp64, reference) + tolerance / 10`
/// (torch 2.15, torch/_dynamo/utils.py, `same`). False where either is NaN.
pub fn within_dynamo(
    result_rmse: f64,
    reference_rmse: f64,
    dtype: Dtype,
    elements: u64,
    tolerance: f64,
) -> bool {
    result_rmse <= multiplier(dtype, elements) * reference_rmse + tolerance / 10.0
}

/// Below so many elements noise dominates their error (torch 2.15, torch/_dynamo/utils.py, `get_multiplier`).
pub(super) const FEW: u64 = 1000;

/// dynamo's multiplier: 2, and 3 for float16 and bfloat16 ("false alarms" of mixed precision) and for
/// fewer than [`FEW`] elements (torch 2.15, torch/_dynamo/utils.py, `get_multiplier`).
pub(super) fn multiplier(dtype: Dtype, elements: u64) -> f64 {
    match dtype {
        Dtype::Bf16 | Dtype::F16 => 3.0,
        Dtype::F32 | Dtype::F64 if elements < FEW => 3.0,
        Dtype::F32 | Dtype::F64 => 2.0,
    }
}
