//! Relations: invariants that one variant must keep against itself, one row of [`RELATIONS`] each.
//!
//! A relation defines how the inputs of a forward pass are varied and which positions must then have the same logits. It
//! needs no second implementation. To add a relation, add a row here and its line in `docs/relations.md`.

mod batch;
mod config;
mod traits;
mod trials;

pub use batch::{Batch, Place};
pub use config::Relations;
pub use traits::{Condition, Scheme, Traits};
pub use trials::{Material, Passes, Step, Trial};

/// An invariant of one variant.
#[derive(Debug)]
pub struct Relation {
    /// The relation's name in configs, tables and files.
    pub name: &'static str,
    /// What must hold, in one sentence.
    pub definition: &'static str,
    /// Predicate of a variant that breaks the relation: `is not causal`.
    pub broken: &'static str,
    /// Largest allowed difference between the results.
    pub bound: Bound,
    /// Conditions under which the relation holds; tfcheck does not measure it for a model that fails one of them.
    pub holds_for: &'static [Condition],
    /// How the relation is measured.
    pub drive: Drive,
}

/// The quantity that a relation bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// Relative L2 over the mapped positions, with the limits of the verdict *same mathematics*.
    Logits,
    /// The gap between each generated token's logit and the largest logit of its position, in units of the logits' RMS.
    Tokens,
}

impl Bound {
    /// The bound in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Logits => {
                "relative L2 over the mapped positions ≤ `relative_l2` of the dtype (f32: 1.04e-5), and 4 times that at one position; in float64 1e-10"
            }
            Self::Tokens => {
                "each generated token's logit is below the largest by at most 4 × `relative_l2` of the dtype times the RMS of the position's logits"
            }
        }
    }

    /// The source of the bound.
    pub fn source(self) -> &'static str {
        match self {
            Self::Logits => {
                "the limits within which a verdict attributes a difference to rounding (`[tolerances]`; `compare/src/tolerances.rs`: 8 times the rtol of torch.testing.assert_close)"
            }
            Self::Tokens => {
                "the same limit at one position (`local_factor` of `[tolerances]`): two logits closer than that may change places by rounding"
            }
        }
    }
}

/// How a relation is measured.
#[derive(Clone, Copy, Debug)]
pub enum Drive {
    /// Pairs of runs of one loaded model, which this function builds from the material.
    Trials(fn(&Material) -> Vec<Trial>),
    /// The same forward pass, repeated.
    Again,
    /// The same forward pass in a second process.
    SecondProcess,
    /// The same forward pass in a process with one thread.
    OneThread,
    /// Two inputs in sequence in one process, and in reverse order in a second process.
    BothOrders,
    /// The same forward pass in eager mode.
    Eager,
    /// The runner's greedy generation, compared with the logits of the tokens it generated.
    Generate,
}

use Condition::{Cache, Causal, Compiled, LeftPadding, Mask, PerPosition, PositionIds, Rotary, SteadyRope};

/// All relations, in the order in which they are measured and listed.
pub const RELATIONS: &[Relation] = &[
    Relation {
        name: "repeat",
        definition: "A forward pass repeated in the same process gives the same logits.",
        broken: "does not repeat itself in one process",
        bound: Bound::Logits,
        holds_for: &[],
        drive: Drive::Again,
    },
    Relation {
        name: "second_process",
        definition: "A forward pass in a second process gives the same logits.",
        broken: "computes something else in a second process",
        bound: Bound::Logits,
        holds_for: &[],
        drive: Drive::SecondProcess,
    },
    Relation {
        name: "threads",
        definition: "One thread and the run's number of threads give the same logits.",
        broken: "depends on the number of threads",
        bound: Bound::Logits,
        holds_for: &[],
        drive: Drive::OneThread,
    },
    Relation {
        name: "two_inputs",
        definition: "The logits of an input do not depend on an input of another length that the process ran before it.",
        broken: "keeps state from one input to the next",
        bound: Bound::Logits,
        holds_for: &[],
        drive: Drive::BothOrders,
    },
    Relation {
        name: "batch_equal",
        definition: "A sequence alone and in a batch of three equal sequences has the same logits.",
        broken: "depends on the batch size",
        bound: Bound::Logits,
        holds_for: &[],
        drive: Drive::Trials(trials::batch_equal),
    },
    Relation {
        name: "batch_other",
        definition: "A sequence alone and in a batch with other sequences of its length has the same logits.",
        broken: "depends on the other sequences of the batch",
        bound: Bound::Logits,
        holds_for: &[],
        drive: Drive::Trials(trials::batch_other),
    },
    Relation {
        name: "row_order",
        definition: "Reordering the sequences of a batch reorders their logits.",
        broken: "depends on the order of the sequences in the batch",
        bound: Bound::Logits,
        holds_for: &[],
        drive: Drive::Trials(trials::row_order),
    },
    Relation {
        name: "mask_of_ones",
        definition: "Padding by 0: an attention_mask of ones gives the logits of no attention_mask.",
        broken: "computes something else without an attention_mask than with one of ones",
        bound: Bound::Logits,
        holds_for: &[Mask],
        drive: Drive::Trials(trials::mask_of_ones),
    },
    Relation {
        name: "padding_left",
        definition: "Padding on the left, by 1 and by many, alone and beside a longer sequence, does not change a sequence's logits.",
        broken: "depends on padding on the left",
        bound: Bound::Logits,
        holds_for: &[Mask, LeftPadding],
        drive: Drive::Trials(trials::padding_left),
    },
    Relation {
        name: "padding_right",
        definition: "Padding on the right, by 1 and by many, alone and beside a longer sequence, does not change a sequence's logits.",
        broken: "depends on padding on the right",
        bound: Bound::Logits,
        holds_for: &[Mask],
        drive: Drive::Trials(trials::padding_right),
    },
    Relation {
        name: "causality",
        definition: "The logits of the first k positions do not change when later tokens do.",
        broken: "is not causal",
        bound: Bound::Logits,
        holds_for: &[Causal, PerPosition],
        drive: Drive::Trials(trials::causality),
    },
    Relation {
        name: "chunked_prefill",
        definition: "A prefill in chunks, several tokens into a filled cache, gives the logits of one full-sequence forward pass.",
        broken: "computes something else when a prefill comes in chunks",
        bound: Bound::Logits,
        holds_for: &[Causal, Cache, SteadyRope],
        drive: Drive::Trials(trials::chunked_prefill),
    },
    Relation {
        name: "cached_decoding",
        definition: "A prefill and one token at a time through the cache give the logits of one full-sequence forward pass.",
        broken: "computes something else through its cache",
        bound: Bound::Logits,
        holds_for: &[Causal, Cache, SteadyRope],
        drive: Drive::Trials(trials::cached_decoding),
    },
    Relation {
        name: "cached_padding",
        definition: "A sequence padded on the left gives the same logits through its cache as in one full-sequence forward pass.",
        broken: "computes something else through its cache for a padded sequence",
        bound: Bound::Logits,
        holds_for: &[Causal, Cache, Mask, LeftPadding, SteadyRope],
        drive: Drive::Trials(trials::cached_padding),
    },
    Relation {
        name: "position_shift",
        definition: "Adding one number to all position_ids does not change the logits of a model with rotary positions only.",
        broken: "depends on absolute positions",
        bound: Bound::Logits,
        holds_for: &[Causal, Rotary, PositionIds],
        drive: Drive::Trials(trials::position_shift),
    },
    Relation {
        name: "compiled",
        definition: "A compiled mode gives the logits of the eager mode.",
        broken: "computes something else compiled than in eager mode",
        bound: Bound::Logits,
        holds_for: &[Compiled],
        drive: Drive::Eager,
    },
    Relation {
        name: "generate",
        definition: "Greedy generation chooses, step by step, the token with the largest of the model's own logits.",
        broken: "generates other tokens than its own logits ask for",
        bound: Bound::Tokens,
        holds_for: &[Causal, PerPosition, SteadyRope],
        drive: Drive::Generate,
    },
];

impl Relation {
    /// The relation called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        RELATIONS.iter().find(|relation| relation.name == name)
    }

    /// The reason why the relation does not hold for a model; `None` if the model's config does not exclude it.
    pub fn excluded(&self, traits: &Traits) -> Option<String> {
        self.holds_for.iter().find_map(|condition| condition.excludes(traits))
    }

    /// The conditions in words, as in `docs/relations.md`.
    pub fn holds_for_words(&self) -> String {
        match self.holds_for {
            [] => "every model".to_owned(),
            conditions => conditions.iter().map(|condition| condition.words()).collect::<Vec<_>>().join("; "),
        }
    }

    /// Whether all inputs have the base input's shape and a mask, so that a compiled model is not compiled again.
    pub fn keeps_the_shape(&self, material: &Material) -> bool {
        match self.drive {
            Drive::Trials(trials) => {
                let base = material.alone();
                let is_alike = |step: &Step| {
                    step.passes == Passes::Whole
                        && step.batch.has_the_shape_of(&base)
                        && step.batch.has_mask()
                };
                let trials = trials(material);
                trials.iter().all(|trial| is_alike(&trial.base) && is_alike(&trial.varied))
            }
            Drive::Again | Drive::SecondProcess | Drive::OneThread | Drive::Eager => true,
            Drive::BothOrders | Drive::Generate => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_consist_of_lowercase_letters_and_underscores() {
        for (at, relation) in RELATIONS.iter().enumerate() {
            assert!(RELATIONS[..at].iter().all(|other| other.name != relation.name), "{}", relation.name);
            assert!(relation.name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{}", relation.name);
            assert!(relation.definition.ends_with('.') && !relation.broken.is_empty());
        }
    }

    #[test]
    fn the_docs_list_every_relation_with_its_definition_and_conditions() {
        let docs = include_str!("../../docs/relations.md");
        for relation in RELATIONS {
            let line =
                format!("| `{}` | {} | {} |", relation.name, relation.definition, relation.holds_for_words());
            assert!(docs.contains(&line), "docs/relations.md lacks the line\n{line}");
        }
        for bound in [Bound::Logits, Bound::Tokens] {
            assert!(docs.contains(bound.words()) && docs.contains(bound.source()), "{bound:?}");
        }
    }
}
