//! What each number of a comparison is: one definition each.
//!
//! `a` and `b` are the compared logits of two variants (real positions × vocabulary), `d = a − b`, all
//! sums in f64 over f64 values. Unless said otherwise a metric is NaN when an operand makes it so (a NaN
//! anywhere, or ∞ − ∞); the counts of non-finite values stand beside it. Nothing is ever compared on an
//! empty set: that is [`super::matrix::Incomparable`].

use serde::Serialize;

use super::Dtype;

/// All metrics of one pair.
#[derive(Clone, Debug, PartialEq)]
pub struct PairMetrics {
    /// Rows compared: every real position that both files hold.
    pub positions: usize,
    /// True where a file holds last positions only, so that only those were compared.
    pub last_positions_only: bool,
    /// Elements compared, `positions × vocab_size`.
    pub elements: u64,
    /// Every compared element has the same value on both sides (NaN equal to NaN, −0 equal to 0).
    pub identical: bool,
    /// `sqrt(Σ d²)`, in units of logits, `[0, ∞]`; ∞ also where `d²` overflows (|d| > 1.3e154).
    pub l2: f64,
    /// `sqrt(Σ a²)` over the compared elements.
    pub norm_a: f64,
    /// `sqrt(Σ b²)` over the compared elements.
    pub norm_b: f64,
    /// `Σ a·b / (norm_a · norm_b)`, `[−1, 1]`; NaN where a norm is 0.
    pub cosine: f64,
    /// `max |d|`, in units of logits, `[0, ∞]`.
    pub max_abs: f64,
    /// Where `max |d|` is first reached; `None` where it is 0 or NaN.
    pub max_abs_at: Option<ElementIndex>,
    /// Largest distance in representable values between the two sides, both rounded to
    /// [`PairMetrics::lower_dtype`]; `None` where a NaN was compared. Large near zero by nature.
    pub max_ulp: Option<u64>,
    /// The less precise of the two variants' dtypes.
    pub lower_dtype: Dtype,
    /// For variants of two dtypes: the comparison after rounding both sides to the lower one.
    pub rounded: Option<Rounded>,
    /// What depends on the next-token distribution.
    pub distribution: Option<Distribution>,
    /// Largest over positions of `‖d‖ / max(‖a‖, ‖b‖)` of that position, and the position.
    pub worst_position: (f64, PositionIndex),
    /// The position whose largest `|d|` stands out most from that position's other differences.
    pub spike: Spike,
    /// One entry per compared position, in order of [`super::matrix::Matrix::positions`].
    pub per_position: Vec<PositionMetrics>,
}

/// A pair at one position.
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
    /// `KL(softmax a ‖ softmax b)` in nats; NaN where it was not asked for or a logit is not finite.
    pub kl: f64,
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
    /// Share of positions whose largest logit is the same token (lowest id on a tie), `[0, 1]`; NaN logits
    /// never are the largest, and a row of nothing else agrees with none.
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
    /// Mean over the defined positions; NaN where none is.
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
    /// Position in the row, padding counted.
    pub position: usize,
}

/// One logit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementIndex {
    /// Where in the inputs.
    pub at: PositionIndex,
    /// Token id.
    pub token: usize,
}

/// How far one element stands out of its position's differences.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spike {
    /// `max |d|` of the position, relative to the RMS of the larger side's logits there.
    pub relative: f64,
    /// `max |d|` over the RMS of `d` at the position, `[1, sqrt(vocab_size)]`; bf16 reached 11.3 where it was measured.
    pub prominence: f64,
    /// Where.
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
    /// `l2 / ‖reference‖`, `[0, ∞]`; 0 where both are 0, ∞ where only the reference is.
    pub fn relative_l2(&self, reference: Side) -> f64 {
        relative(self.l2, self.norm(reference))
    }

    /// `mean(d²) / mean(reference²)` = the square of [`PairMetrics::relative_l2`] (llama.cpp's
    /// test-backend-ops `nmse`; its other NMSE divides by the variance).
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

    /// Both sides of the pair exchanged.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let mut reversed = self.clone();
        std::mem::swap(&mut reversed.norm_a, &mut reversed.norm_b);
        if let Some(distribution) = &mut reversed.distribution {
            std::mem::swap(&mut distribution.kl, &mut distribution.kl_reversed);
            std::mem::swap(&mut distribution.non_finite_a, &mut distribution.non_finite_b);
        }
        reversed
    }
}

/// `difference / reference`, 0 for 0/0: equal zeros do not differ.
pub fn relative(difference: f64, reference: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference / reference }
}

/// Significand bits, hidden bit included: what orders dtypes by precision.
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
