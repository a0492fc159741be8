//! How a variant differs from its float64 result: by rounding, and whose, or by something else.

use super::{Judge, at_most, share};
use crate::Dtype;
use crate::evidence::{ByOracles, Excess, Large, Routing};
use crate::metrics::PairMetrics;
use crate::oracle::FEW;

/// How a variant differs from its float64 result.
pub(super) enum Departure {
    /// Within the limits of its dtype.
    Within,
    /// Beyond the limits, but known to be rounding.
    Large(Large),
    /// Computes the same function, but rounds worse than a peer or leaves the dtype's range.
    Worse(ByOracles),
    /// Only because routers choose other experts at near-ties.
    Routed(ByOracles),
    /// By more than rounding, and its own code did not run in float64.
    Unexplained(ByOracles),
}

impl Judge<'_> {
    /// Classifies a variant's difference from its float64 result; `None` if the two cannot be compared.
    pub(super) fn departure(&self, variant: usize, other: usize, oracle: usize) -> Option<Departure> {
        let dtype = self.matrix.dtypes[variant];
        let own = self.matrix.compared(variant, oracle)?;
        let ran = self.oracles.ran(variant);
        let name = self.name(variant);
        if !own.l2.is_finite() {
            let sides = self.not_finite(variant.min(oracle), variant.max(oracle), own);
            return Some(if ran && self.is_finite(oracle) {
                Departure::Worse(ByOracles::LeavesRange { variant: name, sides })
            } else {
                Departure::Unexplained(ByOracles::SideNotFinite { sides })
            });
        }
        let Some(excess) = self.excess(own, dtype, None) else { return Some(Departure::Within) };
        // The variant with the smallest error among those whose error is known to be rounding.
        let reference = (self.oracles.references(self.matrix, variant, other).into_iter())
            .filter_map(|index| Some((index, self.matrix.compared(index, self.oracles.own(index)?)?)))
            .min_by(|(_, a), (_, b)| share(a).total_cmp(&share(b)));
        let is_own = self.oracles.own(variant).is_some();
        let (of, oracle) = (oracle, self.name(oracle));
        Some(match reference {
            Some((index, known)) if self.excess(own, dtype, Some(known)).is_none() => {
                let (peer, peer_relative_l2) = (self.name(index), share(known));
                Departure::Large(Large::Peer { excess, peer, peer_relative_l2 })
            }
            Some((index, known)) if ran => {
                let (peer, peer_relative_l2) = (self.name(index), share(known));
                Departure::Worse(ByOracles::RoundsWorse {
                    variant: name,
                    oracle,
                    excess,
                    peer,
                    peer_relative_l2,
                })
            }
            None if ran => Departure::Large(Large::OwnCode { excess, variant: name, oracle }),
            Some(_) | None => match self.oracles.near_ties(variant) {
                Some(routing) => {
                    Departure::Routed(ByOracles::Routed { excess, routing: Routing::clone(routing) })
                }
                None => match self.agrees_wider(variant, of) {
                    Some((wider, relative_l2)) => Departure::Worse(ByOracles::AgreesWider {
                        variant: name,
                        oracle,
                        excess,
                        wider,
                        relative_l2,
                    }),
                    None => self.no_worse(variant, of, own, &excess).unwrap_or(Departure::Unexplained(
                        ByOracles::Unexplained { variant: name, oracle, is_own, excess },
                    )),
                },
            },
        })
    }

    /// Whether another variant of the same dtype, whose code computed the same function in float64, rounds at least as much on
    /// these inputs, which have few values: then an error of this size is rounding. Of one value that is a sum which nearly
    /// cancels, as a cosine, one variant may lose nothing and the next a quarter.
    fn no_worse(
        &self,
        variant: usize,
        oracle: usize,
        own: &PairMetrics,
        excess: &Excess,
    ) -> Option<Departure> {
        if own.elements >= FEW {
            return None;
        }
        let dtype = self.matrix.dtypes[variant];
        let same_function = |other: usize| {
            other == oracle
                || self
                    .matrix
                    .compared(other, oracle)
                    .is_some_and(|pair| at_most(share(pair), self.tolerances.f64_agreement))
        };
        let (peer, known) = (0..self.matrix.len())
            .filter(|&index| {
                index != variant && self.matrix.dtypes[index] == dtype && self.oracles.ran(index)
            })
            .filter_map(|index| {
                let theirs = self.oracles.own(index).filter(|&theirs| same_function(theirs))?;
                Some((index, self.matrix.compared(index, theirs)?))
            })
            .max_by(|(_, a), (_, b)| share(a).total_cmp(&share(b)))?;
        self.excess_above(own, dtype, Some((known, 1.0))).is_none().then(|| {
            Departure::Worse(ByOracles::NoWorseThan {
                variant: self.name(variant),
                excess: excess.clone(),
                peer: self.name(peer),
                peer_relative_l2: share(known),
            })
        })
    }

    /// The float32 result of an opaque variant's own program that agrees with the result `with`, and their relative L2.
    fn agrees_wider(&self, variant: usize, with: usize) -> Option<(String, f64)> {
        let apart = |wider: usize| {
            let pair = self.matrix.compared(wider, with)?;
            self.excess(pair, Dtype::F32, None).is_none().then(|| (self.name(wider), share(pair)))
        };
        self.oracles.wider(self.matrix, variant).find_map(apart)
    }
}
