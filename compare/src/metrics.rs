//! Definition of each number that a comparison measures.
//!
//! `a` and `b` are the compared logits of two variants, `[real positions, vocab_size]`; `d = a − b`. All sums are f64
//! sums of f64 values. Unless its definition states otherwise, a metric is NaN if an operand is NaN or `d` is ∞ − ∞;
//! [`NonFinite`] counts such values. An empty set is never compared: the pair is [`super::matrix::Incomparable`].

use serde::Serialize;

use super::Dtype;

/// The largest value; NaN is larger than any number. `None` if there is no value.
pub fn largest(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    values.into_iter().reduce(|a, b| if a.is_nan() || a > b { a } else { b })
}

/// All metrics of one pair.
#[derive(Clone, Debug, PartialEq)]
pub struct PairMetrics {
    /// Number of compared positions: every real position that both files hold.
    pub positions: usize,
    /// True if a file holds last positions only, so that only those were compared.
    pub last_positions_only: bool,
    /// Elements compared, `positions × vocab_size`.
    pub elements: u64,
    /// Every compared element has the same value on both sides (NaN equal to NaN, −0 equal to 0).
    pub identical: bool,
    /// `sqrt(Σ d²)`, in units of logits, `[0, ∞]`; also ∞ if `d²` overflows (|d| > 1.3e154).
    pub l2: f64,
    /// `sqrt(Σ a²)` over the compared elements.
    pub norm_a: f64,
    /// `sqrt(Σ b²)` over the compared elements.
    pub norm_b: f64,
    /// `Σ a·b / (norm_a · norm_b)`, `[−1, 1]`; NaN if a norm is 0.
    pub cosine: f64,
    /// `max |d|`, in units of logits, `[0, ∞]`.
    pub max_abs: f64,
    /// The first element that reaches `max |d|`; `None` if that is 0 or NaN.
    pub max_abs_at: Option<ElementIndex>,
    /// Largest distance in representable values between the two sides, both rounded to [`PairMetrics::lower_dtype`]; `None`
    /// if a NaN was compared. Values near zero give large distances, because representable values are dense there.
    pub max_ulp: Option<u64>,
    /// The less precise of the two variants' dtypes.
    pub lower_dtype: Dtype,
    /// For variants of two dtypes: the comparison after rounding both sides to the lower one.
    pub rounded: Option<Rounded>,
    /// Metrics of the next-token distributions; `None` for [`super::matrix::MetricSet::L2Family`].
    pub distribution: Option<Distribution>,
    /// Largest `‖d‖ / max(‖a‖, ‖b‖)` of a single position, and that position.
    pub worst_position: (f64, PositionIndex),
    /// The element with the largest [`Spike::relative`] among positions whose prominence exceeds 32.
    pub spike: Spike,
    /// One entry per compared position, in order of [`super::matrix::Matrix::positions`].
    pub per_position: Vec<PositionMetrics>,
}

/// Metrics of a pair at one position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionMetrics {
    /// Index into [`super::matrix::Matrix::positions`].
    pub position: u32,
    /// `sqrt(Σ d²)` over the vocabulary.
    pub l2: f64,
    /// The same over the larger norm of the two sides at this position.
    pub relative_l2: f64,
    /// `max |d|` over the vocabulary.
    pub max_abs: f64,
    /// `KL(softmax a ‖ softmax b)` in nats; NaN if it was not measured or a logit is not finite.
    pub kl: f64,
    /// The same with the sides exchanged.
    pub kl_reversed: f64,
}

/// The comparison after rounding both sides to the lower dtype (round to nearest, ties to even).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounded {
    /// As [`PairMetrics::l2`].
    pub l2: f64,
    /// As [`PairMetrics::max_abs`].
    pub max_abs: f64,
}

/// Metrics of the next-token distributions.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// `KL(p ‖ q)` with `p = softmax(a)`, `q = softmax(b)`.
    pub kl: KlSummary,
    /// `KL(q ‖ p)`.
    pub kl_reversed: KlSummary,
    /// Share of positions whose largest logit is the same token (lowest id on a tie), `[0, 1]`. A NaN logit is never the
    /// largest; a position whose logits are all NaN does not agree.
    pub top1_agreement: f64,
    /// Mean over positions of `|top_k(a) ∩ top_k(b)| / k`, `[0, 1]`; ties in favour of the lower id.
    pub top_k_agreement: f64,
    /// The `k` of [`Distribution::top_k_agreement`], at most the vocabulary's size.
    pub k: usize,
    /// First position, then first row, at which greedy decoding would choose another token.
    pub first_greedy_divergence: Option<PositionIndex>,
    /// Non-finite logits of `a` over the compared positions.
    pub non_finite_a: NonFinite,
    /// Non-finite logits of `b` over the compared positions.
    pub non_finite_b: NonFinite,
}

/// Kullback–Leibler divergences over positions: `Σ p·(ln p − ln q)` in nats, `[0, ∞]`. Values below
/// about 1e-14 are f64 rounding; a negative one by rounding is 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlSummary {
    /// Mean over the defined positions; NaN if there is none.
    pub mean: f64,
    /// Median, Hyndman–Fan type 7.
    pub median: f64,
    /// 99.9th percentile, type 7.
    pub p999: f64,
    /// Largest.
    pub max: f64,
    /// Positions left out, because a logit of either side was not finite.
    pub undefined: usize,
}

/// Counts of non-finite values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NonFinite {
    /// Not a number.
    pub nan: u64,
    /// +∞ or −∞.
    pub infinite: u64,
}

/// A position of the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PositionIndex {
    /// Row of the batch.
    pub row: usize,
    /// Position in the row, padding included.
    pub position: usize,
}

/// One logit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementIndex {
    /// Position in the inputs.
    pub at: PositionIndex,
    /// Token id.
    pub token: usize,
}

/// How far the largest difference of a position exceeds that position's other differences.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spike {
    /// `max |d|` of the position, relative to the RMS of the larger side's logits there.
    pub relative: f64,
    /// `max |d|` over the RMS of `d` at the position, `[1, sqrt(vocab_size)]`; measured bf16 variants reached 11.3.
    pub prominence: f64,
    /// The position.
    pub at: PositionIndex,
}

/// Which side of a pair a relative metric is relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The pair's first variant.
    A,
    /// The pair's second variant.
    B,
}

impl PairMetrics {
    /// `l2 / ‖reference‖`, `[0, ∞]`; 0 if both are 0, ∞ if only the norm is.
    pub fn relative_l2(&self, reference: Side) -> f64 {
        relative(self.l2, self.norm(reference))
    }

    /// `mean(d²) / mean(reference²)`, the square of [`PairMetrics::relative_l2`]; equals `nmse` of llama.cpp's
    /// test-backend-ops (llama.cpp's other NMSE divides by the variance).
    pub fn nmse(&self, reference: Side) -> f64 {
        self.relative_l2(reference).powi(2)
    }

    /// `sqrt(mean(d²))`, in units of logits.
    pub fn rmse(&self) -> f64 {
        self.l2 / (self.elements as f64).sqrt()
    }

    /// Norm of one side over the compared elements.
    pub fn norm(&self, side: Side) -> f64 {
        match side {
            Side::A => self.norm_a,
            Side::B => self.norm_b,
        }
    }

    /// The metrics with sides A and B exchanged.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let mut reversed = self.clone();
        std::mem::swap(&mut reversed.norm_a, &mut reversed.norm_b);
        if let Some(distribution) = &mut reversed.distribution {
            std::mem::swap(&mut distribution.kl, &mut distribution.kl_reversed);
            std::mem::swap(&mut distribution.non_finite_a, &mut distribution.non_finite_b);
        }
        for position in &mut reversed.per_position {
            std::mem::swap(&mut position.kl, &mut position.kl_reversed);
        }
        reversed
    }
}

/// `difference / reference`; 0 if `difference` is 0, whatever `reference` is.
pub fn relative(difference: f64, reference: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference / reference }
}

/// Significand bits, hidden bit included; dtypes are ordered by it.
pub(super) fn precision(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F64 => f64::MANTISSA_DIGITS,
        Dtype::F32 => f32::MANTISSA_DIGITS,
        Dtype::F16 => 11,
        Dtype::Bf16 => 8,
    }
}

/// The less precise of two dtypes.
pub fn lower_dtype(a: Dtype, b: Dtype) -> Dtype {
    if precision(a) <= precision(b) { a } else { b }
}

/// Summarises per-position divergences; NaN counts as undefined.
pub(super) fn summarize_kl(values: &[f64]) -> KlSummary {
    let mut defined: Vec<f64> = values.iter().copied().filter(|value| !value.is_nan()).collect();
    defined.sort_by(f64::total_cmp);
    let undefined = values.len() - defined.len();
    let Some(&max) = defined.last() else {
        return KlSummary { mean: f64::NAN, median: f64::NAN, p999: f64::NAN, max: f64::NAN, undefined };
    };
    KlSummary {
        mean: defined.iter().sum::<f64>() / defined.len() as f64,
        median: super::timing::quantile(&defined, 0.5),
        p999: super::timing::quantile(&defined, 0.999),
        max,
        undefined,
    }
}
