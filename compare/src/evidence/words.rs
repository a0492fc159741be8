//! Writes each kind of evidence as one sentence.

use std::fmt::{Display, Formatter, Result};

use super::{
    Basis, Borrowed, ByOracles, ByTolerance, Comparison, Distrusted, Evidence, Excess, Large, NotFinite,
    RecordedRounding, Replayed, Routing, Unsteady,
};
use crate::Dtype;
use crate::envelope::Envelope;
use crate::repeat::times;

impl Display for Basis {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        write!(out, "{}", self.evidence)?;
        match &self.noise {
            Some(noise) => write!(out, "; {noise}"),
            None => Ok(()),
        }
    }
}

impl Display for Evidence {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        match self {
            Self::NotRun { reason } => write!(out, "no logits of {reason}"),
            Self::Incomparable { reason } => write!(out, "{reason}"),
            Self::Identical { elements } => write!(out, "all {elements} compared values are equal"),
            Self::Tolerance { found: found @ ByTolerance::NotFinite { .. }, distrusted: None, .. }
            | Self::Recorded { found, rounding: None } => write!(out, "{found}"),
            Self::Tolerance { found, distrusted: None, measured: Some(envelope) } => {
                write!(out, "{found}; {envelope}")
            }
            Self::Tolerance { found, distrusted: None, measured: None } => {
                write!(out, "{found}; no float64 oracle was run")?;
                if found.has_fixed_narrow_limit() {
                    write!(out, ", and the limit is a fixed one, because rounding was not measured")?;
                }
                Ok(())
            }
            Self::Tolerance { found, distrusted: Some(distrusted), .. } => {
                write!(out, "{found}; {distrusted}")
            }
            // Worse rounding decided the verdict, so the sentence omits that the pair is within the tolerance.
            Self::Recorded { rounding: Some(rounding), .. } if !rounding.is_within_dynamo => {
                write!(out, "{rounding}")
            }
            Self::Recorded { found, rounding: Some(rounding) } => write!(out, "{found}; {rounding}"),
            Self::Oracles { agreement, compared_with, large, found } => {
                if let Some(agreement) = agreement {
                    write!(out, "the float64 results agree to {agreement:.1e}; ")?;
                }
                for side in compared_with {
                    write!(out, "{side}; ")?;
                }
                for large in large {
                    write!(out, "{large}; ")?;
                }
                write!(out, "{found}")
            }
        }
    }
}

impl Display for ByTolerance {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        match self {
            Self::NotFinite { sides } => not_finite(out, sides),
            Self::Beyond(excess) => write!(out, "{excess}"),
            Self::AgreesWider { excess, wider: [a, b], relative_l2, worse } => write!(
                out,
                "{excess}; {a} and {b} agree to {relative_l2:.1e}, so it is rounding, and {worse} differs more from its own float32 result"
            ),
            Self::Within { relative_l2, dtype, limit } => write!(
                out,
                "relative L2 {relative_l2:.2e} is within {}'s {limit:.1e}, and so is every position",
                dtype.name()
            ),
        }
    }
}

impl ByTolerance {
    /// Whether the limit of a 16-bit dtype decided.
    fn has_fixed_narrow_limit(&self) -> bool {
        match self {
            Self::Beyond(Excess::Overall { dtype, .. } | Excess::Position { dtype, .. })
            | Self::Within { dtype, .. } => matches!(dtype, Dtype::Bf16 | Dtype::F16),
            Self::Beyond(Excess::Token { .. }) | Self::NotFinite { .. } | Self::AgreesWider { .. } => false,
        }
    }
}

impl Display for Envelope {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let Self { variant, dtype, results, relative_l2, .. } = self;
        write!(
            out,
            "no float64 oracle was run, and the limit was measured: {results} results of {variant}, whose embedding was moved by one unit in the last place of {}, differ by up to {relative_l2:.1e}",
            dtype.name()
        )
    }
}

impl Display for Distrusted {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let Self { oracles: [a, b], relative_l2, identical: [one, other] } = self;
        write!(
            out,
            "the float64 results are not used: {a} and {b} differ by {relative_l2:.2e}, as rounding in float32 does, but {one} and {other} are identical, so a part of one was computed in float32"
        )
    }
}

impl Display for RecordedRounding {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let Self { variant, dtype, rmse: [own, recorded], is_within_dynamo } = self;
        let dtype = dtype.name();
        write!(out, "RMSE is {own:.2e} for {variant} and {recorded:.2e} for the recorded code in {dtype}")?;
        if *is_within_dynamo {
            write!(out, ", within dynamo's rule")
        } else {
            write!(out, ": {variant} exceeds dynamo's rule")
        }
    }
}

impl Display for ByOracles {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        match self {
            Self::OraclesNotFinite { sides } => {
                write!(out, "in float64, ")?;
                not_finite(out, sides)
            }
            Self::OraclesDiffer { oracles: [a, b], relative_l2, limit, worst, at } => write!(
                out,
                "the float64 results {a} and {b} differ by relative L2 {relative_l2:.2e} (limit {limit:.0e}), at most {worst:.2e} in row {}, position {}, so they compute different functions",
                at.row, at.position
            ),
            Self::SideNotFinite { sides } => not_finite(out, sides),
            Self::Unexplained { variant, oracle, is_own, excess } => {
                let whose = if *is_own { "its float64 result" } else { "the float64 result" };
                write!(
                    out,
                    "{variant} differs from {whose} {oracle} by more than rounding, and has not run in float64 itself: {excess}"
                )
            }
            Self::LeavesRange { variant, sides } => {
                write!(out, "{variant} leaves the range of its dtype: ")?;
                not_finite(out, sides)
            }
            Self::RoundsWorse { variant, oracle, excess, peer, peer_relative_l2 } => write!(
                out,
                "{variant} rounds worse: {excess}, while {peer} differs by {peer_relative_l2:.2e}; the mathematics is right, because its own code computed {oracle}"
            ),
            Self::NoWorseThan { variant, excess, peer, peer_relative_l2 } => write!(
                out,
                "{variant} rounds worse: {excess}, but no more than the rounding of {peer}, {peer_relative_l2:.2e}, on the same inputs"
            ),
            Self::AgreesWider { variant, oracle, excess, wider, relative_l2 } => write!(
                out,
                "{variant} rounds worse: {excess}; the same program in float32, {wider}, agrees with {oracle} to {relative_l2:.1e}"
            ),
            Self::Routed { excess, routing } => {
                write!(out, "{excess}, caused by the choice of experts: {routing}")
            }
            Self::Rounding { sides: [a, b], rmse: [rmse_a, rmse_b], comparison } => {
                write!(out, "RMSE against float64 is {rmse_a:.2e} for {a} and {rmse_b:.2e} for {b}")?;
                match comparison {
                    Comparison::EachWithinItsDtype => write!(out, ", each within its dtype"),
                    Comparison::WithinDynamo => write!(out, ", within dynamo's rule"),
                    Comparison::BeyondDynamo { worse } => write!(out, ": {worse} exceeds dynamo's rule"),
                }
            }
        }
    }
}

impl Display for Excess {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        match self {
            Self::Overall { relative_l2, dtype, limit } => {
                write!(out, "relative L2 {relative_l2:.2e} exceeds {}'s {limit:.1e}", dtype.name())
            }
            Self::Position { relative_l2, at, dtype, limit } => write!(
                out,
                "relative L2 {relative_l2:.2e} in row {}, position {} exceeds {}'s {limit:.1e} for one position",
                at.row,
                at.position,
                dtype.name()
            ),
            Self::Token { relative, prominence, at } => write!(
                out,
                "one logit in row {}, position {} differs by {relative:.2e} of the row's RMS, {prominence:.0} times the RMS of its neighbours' differences",
                at.row, at.position
            ),
        }
    }
}

impl Display for Borrowed {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let Self { variant, oracle, is_own } = self;
        let lacking = if *is_own { "has not run in float64 itself" } else { "has no own float64 result" };
        write!(out, "{variant} {lacking} and is compared with {oracle}")
    }
}

impl Display for Large {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        match self {
            Self::Peer { excess, peer, peer_relative_l2 } => write!(
                out,
                "rounding is large here: {excess}; {peer} differs from its own float64 result by {peer_relative_l2:.2e}"
            ),
            Self::OwnCode { excess, variant, oracle } => {
                write!(
                    out,
                    "rounding is large here, as the code of {variant} itself computed {oracle}: {excess}"
                )
            }
        }
    }
}

impl Display for Replayed {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        let (source, found) = (&self.source, &self.near_ties);
        write!(
            out,
            "replayed with {source}'s input, every module agrees at every position (to {:.1e}); {} of {} tokens go to other experts at near-ties of routers: {} is the first to choose differently, where its scores differ by at most {:.1e}",
            found.worst, found.tokens, found.of, found.router, found.scores
        )
    }
}

impl Display for Routing {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        match self {
            Self::Replayed(replayed) => write!(out, "{replayed}"),
            Self::InBoth { cached, full } => {
                write!(out, "{cached}; and in the full-sequence forward pass, {full}")
            }
            Self::LikeFull { relative_l2, full } => {
                write!(out, "its cached result equals its full-sequence pass, ")?;
                if *relative_l2 > 0.0 {
                    write!(out, "to {relative_l2:.1e}")?;
                } else {
                    write!(out, "bit for bit")?;
                }
                write!(out, "; in that pass, {full}")
            }
        }
    }
}

impl Display for Unsteady {
    fn fmt(&self, out: &mut Formatter<'_>) -> Result {
        for (index, (variant, noise)) in self.variants.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(out, "{separator}{variant} is {}", noise.said().unwrap_or_default())?;
        }
        match self.multiple {
            Some(multiple) => write!(out, "; the pair's L2 is {} times that noise", times(multiple)),
            None => Ok(()),
        }
    }
}

fn not_finite(out: &mut Formatter<'_>, [a, b]: &[NotFinite; 2]) -> Result {
    write!(
        out,
        "logits are not finite: {} has {} NaN and {} infinite, {} has {} and {}",
        a.variant, a.nan, a.infinite, b.variant, b.nan, b.infinite
    )
}
