//! Each variant's own error against the same computation in float64.

use reference::protocol::Dtype;

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

/// Which float64 result each variant is measured against.
///
/// `families[i]` names what shares one mathematics with variant `i`: its runner and version. The oracle
/// of a variant is the float64 variant of its family, or else the first that could be compared with it
/// (then the agreement of the two families cannot be checked, which the verdict's evidence says).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Oracles {
    own: Vec<Option<usize>>,
    any: Option<usize>,
}

impl Oracles {
    /// Finds the float64 variants that have logits.
    ///
    /// # Panics
    /// When `families` has not one name per variant of the matrix.
    pub fn new(matrix: &Matrix, families: &[String]) -> Self {
        assert_eq!(matrix.len(), families.len(), "one family per variant");
        let usable: Vec<usize> = (0..matrix.len())
            .filter(|&i| matrix.dtypes[i] == Dtype::F64 && matrix.compared(i, i).is_some())
            .collect();
        let own =
            families.iter().map(|family| usable.iter().copied().find(|&i| families[i] == *family)).collect();
        Self { own, any: usable.first().copied() }
    }

    /// The float64 result of a variant's own family.
    pub fn own(&self, variant: usize) -> Option<usize> {
        self.own[variant]
    }

    /// The float64 result that a variant is measured against: its own, or any.
    pub fn of(&self, variant: usize) -> Option<usize> {
        self.own[variant].or(self.any)
    }
}

/// Measures every variant that has an oracle; float64 variants against other families' oracles are
/// left to the matrix.
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

/// dynamo's multiplier: 2, and 3 for float16 and bfloat16 ("false alarms" of mixed precision) and for
/// fewer than 1000 elements, where noise dominates (torch 2.15, torch/_dynamo/utils.py, `get_multiplier`).
fn multiplier(dtype: Dtype, elements: u64) -> f64 {
    match dtype {
        Dtype::Bf16 | Dtype::F16 => 3.0,
        Dtype::F32 | Dtype::F64 if elements < 1000 => 3.0,
        Dtype::F32 | Dtype::F64 => 2.0,
    }
}
