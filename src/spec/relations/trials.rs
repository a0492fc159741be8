//! The pairs of forward passes by which relations are measured, as pure functions of the base input.

use super::batch::{Batch, Place};
use super::traits::Traits;

/// Largest ratio of an input's length to the base input's length.
const LONGEST: usize = 16;

/// The inputs from which trials are built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Material {
    /// The base input, one sequence without padding.
    pub ids: Vec<i64>,
    /// Two other sequences of the same length.
    pub others: [Vec<i64>; 2],
    /// Properties of the model.
    pub traits: Traits,
}

/// How an input is split into forward passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passes {
    /// One forward pass over all tokens.
    Whole,
    /// A prefill of this many tokens, then one token per forward pass.
    Prefill(usize),
    /// One forward pass per length; the lengths add up to the sequence length.
    Chunks(Vec<usize>),
}

/// An input and how it is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The input.
    pub batch: Batch,
    /// How the input is split into forward passes.
    pub passes: Passes,
}

impl Step {
    /// A full-sequence forward pass.
    pub fn whole(batch: Batch) -> Self {
        Self { batch, passes: Passes::Whole }
    }
}

/// Two runs and the positions that must have the same logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The variation, as the end of a sentence: `when token 7 changes`.
    pub what: String,
    /// The run without the variation, which is the reference.
    pub base: Step,
    /// The run with the variation.
    pub varied: Step,
    /// Corresponding places: one in the base run, one in the varied run.
    pub pairs: Vec<[Place; 2]>,
}

impl Material {
    /// Builds material from the base input and other sequences. A missing sequence, or one of another length, is replaced by
    /// a rotation of the base input.
    pub fn new(ids: Vec<i64>, others: &[Vec<i64>], traits: Traits) -> Self {
        let turned = |by: usize| {
            let mut turned = ids.clone();
            turned.rotate_left(by % ids.len().max(1));
            turned
        };
        let other = |at: usize, by: usize| {
            others.get(at).filter(|other| other.len() == ids.len()).cloned().unwrap_or_else(|| turned(by))
        };
        let others = [other(0, ids.len() / 2), other(1, ids.len() / 3 + 1)];
        Self { ids, others, traits }
    }

    /// A batch of the base input only.
    pub fn alone(&self) -> Batch {
        Batch::of_rows(&[&self.ids])
    }

    /// A batch of the base input and both other sequences.
    fn together(&self) -> Batch {
        Batch::of_rows(&[&self.ids, &self.others[0], &self.others[1]])
    }

    /// An input of another length: longer than `rope_changes_above` if the base input is not and that limit is at most
    /// `LONGEST` times its length; otherwise the first half of another sequence.
    pub fn of_another_length(&self) -> Batch {
        let seq = self.ids.len();
        let traits = &self.traits;
        let longer = |more: usize| {
            let more: Vec<i64> = self.others[0].iter().cycle().take(more).copied().collect();
            self.alone().followed_by(&more)
        };
        match traits.rope_changes_above {
            Some(limit) if seq <= limit && limit <= LONGEST * seq => longer(limit + seq / 2 - seq + 1),
            _ => Batch::of_rows(&[&self.others[0][..seq.div_ceil(2)]]),
        }
    }

    /// Numbers of padding tokens for trials: one and `len / 2 + 3`, without those that exceed [`Traits::room`].
    fn pads(&self) -> Vec<usize> {
        let mut pads = vec![1, self.ids.len() / 2 + 3];
        pads.retain(|&pads| pads <= self.traits.room());
        pads
    }
}

/// Pairs of places of the real tokens in row 0 of `base` and row `row` of `varied`, which hold the same real tokens.
fn same_row(base: &Batch, varied: &Batch, row: usize) -> Vec<[Place; 2]> {
    base.real(0).zip(varied.real(row)).map(|(a, b)| [a, b]).collect()
}

fn trial(what: impl Into<String>, base: Step, varied: Step, pairs: Vec<[Place; 2]>) -> Trial {
    Trial { what: what.into(), base, varied, pairs }
}

/// A trial of the base input, as a batch of one row, against one row of `varied`.
fn against_alone(what: impl Into<String>, material: &Material, varied: Batch, row: usize) -> Trial {
    let base = material.alone();
    let pairs = same_row(&base, &varied, row);
    trial(what, Step::whole(base), Step::whole(varied), pairs)
}

pub(super) fn batch_equal(material: &Material) -> Vec<Trial> {
    let row = material.ids.as_slice();
    let varied = Batch::of_rows(&[row, row, row]);
    let at =
        |row: usize| against_alone(format!("as row {row} of 3 equal ones"), material, varied.clone(), row);
    vec![at(0), at(2)]
}

pub(super) fn batch_other(material: &Material) -> Vec<Trial> {
    let together = material.together();
    vec![
        against_alone("with two other sequences after it", material, together.clone(), 0),
        against_alone("with two other sequences before it", material, together.reordered(&[1, 2, 0]), 2),
    ]
}

pub(super) fn row_order(material: &Material) -> Vec<Trial> {
    let base = material.together();
    let order = [2, 0, 1];
    let varied = base.reordered(&order);
    let pairs = order
        .iter()
        .enumerate()
        .flat_map(|(row, &from)| {
            base.real(from).zip(varied.real(row)).map(|(a, b)| [a, b]).collect::<Vec<_>>()
        })
        .collect();
    vec![trial("when the rows are reordered", Step::whole(base), Step::whole(varied), pairs)]
}

pub(super) fn mask_of_ones(material: &Material) -> Vec<Trial> {
    let varied = material.alone().without_mask();
    vec![against_alone("without the attention_mask of ones", material, varied, 0)]
}

fn padding(material: &Material, is_left: bool) -> Vec<Trial> {
    let pad = material.traits.pad_token_id;
    let side = if is_left { "left" } else { "right" };
    let mut trials: Vec<Trial> = material
        .pads()
        .into_iter()
        .map(|pads| {
            let (left, right) = if is_left { (pads, 0) } else { (0, pads) };
            let what = format!("with {pads} padding tokens on the {side}");
            against_alone(what, material, material.alone().padded(left, right, pad), 0)
        })
        .collect();
    if let Some(&more) = material.pads().last() {
        let longer: Vec<i64> =
            material.others[0].iter().cycle().take(material.ids.len() + more).copied().collect();
        let varied = Batch::padded_to_the_longest(&[&longer, &material.ids], is_left, pad);
        let what = format!("padded on the {side} beside a sequence that is {more} tokens longer");
        trials.push(against_alone(what, material, varied, 1));
    }
    trials
}

pub(super) fn padding_left(material: &Material) -> Vec<Trial> {
    padding(material, true)
}

pub(super) fn padding_right(material: &Material) -> Vec<Trial> {
    padding(material, false)
}

pub(super) fn causality(material: &Material) -> Vec<Trial> {
    let base = material.alone();
    let seq = base.seq();
    let at = |from: usize, what: String| {
        let pairs = (0..from).map(|position| [Place { row: 0, position }; 2]).collect();
        trial(what, Step::whole(base.clone()), Step::whole(base.changed_from(from)), pairs)
    };
    if seq < 2 {
        return Vec::new();
    }
    let mut trials = vec![at(seq - 1, format!("when token {} changes", seq - 1))];
    if seq > 3 {
        trials.push(at(seq / 2, format!("when tokens {} to {} change", seq / 2, seq - 1)));
    }
    trials
}

/// Trials that compare a full-sequence forward pass of `batch` with runs of it through the KV cache.
fn through_the_cache(batch: &Batch, ways: Vec<Passes>) -> Vec<Trial> {
    let pairs = same_row(batch, batch, 0);
    let of_way = |passes: Passes| {
        let what = match &passes {
            Passes::Whole => "in one forward pass".to_owned(),
            Passes::Prefill(prefill) => {
                format!("with {prefill} tokens prefilled and the rest decoded one by one")
            }
            Passes::Chunks(chunks) => format!("in forward passes of {chunks:?} tokens"),
        };
        let varied = Step { batch: batch.clone(), passes };
        trial(what, Step::whole(batch.clone()), varied, pairs.clone())
    };
    ways.into_iter().map(of_way).collect()
}

/// Splits of `seq` tokens, of which the first `padding` are padding, into forward passes: a third of the real tokens, 1, 4
/// and the rest; and all but 3, then 3. A split is left out if there are too few tokens.
fn chunkings(padding: usize, seq: usize) -> Vec<Passes> {
    let real = seq - padding;
    let first = padding + (real / 3).max(1);
    let mut ways = Vec::new();
    if seq > first + 5 {
        ways.push(Passes::Chunks(vec![first, 1, 4, seq - first - 5]));
    }
    if real > 4 {
        ways.push(Passes::Chunks(vec![seq - 3, 3]));
    }
    ways
}

pub(super) fn chunked_prefill(material: &Material) -> Vec<Trial> {
    through_the_cache(&material.alone(), chunkings(0, material.ids.len()))
}

pub(super) fn cached_decoding(material: &Material) -> Vec<Trial> {
    let seq = material.ids.len();
    let ways = if seq > 1 { vec![Passes::Prefill((seq / 2).max(1))] } else { Vec::new() };
    through_the_cache(&material.alone(), ways)
}

pub(super) fn cached_padding(material: &Material) -> Vec<Trial> {
    let Some(&padding) = material.pads().last() else { return Vec::new() };
    let batch = material.alone().padded(padding, 0, material.traits.pad_token_id);
    let seq = batch.seq();
    let mut ways = chunkings(padding, seq);
    ways.truncate(1);
    if material.ids.len() > 1 {
        ways.push(Passes::Prefill(padding + (material.ids.len() / 2).max(1)));
    }
    let mut trials = through_the_cache(&batch, ways);
    for trial in &mut trials {
        trial.what = format!("padded by {padding} on the left, {}", trial.what);
    }
    trials
}

pub(super) fn position_shift(material: &Material) -> Vec<Trial> {
    let room =
        material.traits.max_positions.map_or(usize::MAX, |most| most.saturating_sub(material.ids.len()));
    let base = material.alone();
    let by = |by: usize| {
        let what = format!("with {by} added to all position_ids");
        against_alone(what, material, base.shifted(by), 0)
    };
    [1, 7].into_iter().filter(|by| *by <= room.min(material.traits.room())).map(by).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::{Drive, RELATIONS};
    use super::*;

    fn material(seq: usize) -> Material {
        let config = json!({ "model_type": "llama", "rope_theta": 1e4, "max_position_embeddings": 512 });
        let ids: Vec<i64> = (0..seq as i64).map(|n| 3 + n * 7 % 101).collect();
        Material::new(ids, &[], Traits::of(&config, seq, false))
    }

    proptest! {
        /// Paired places hold the same token at the same position; `position_shift` varies the positions.
        #[test]
        fn mapped_places_hold_the_same_tokens(seq in 1..60usize) {
            let material = material(seq);
            for relation in RELATIONS {
                let Drive::Trials(trials) = relation.drive else { continue };
                for trial in trials(&material) {
                    prop_assert!(!trial.pairs.is_empty(), "{}", relation.name);
                    for [a, b] in &trial.pairs {
                        let at = |batch: &Batch, place: &Place| place.row * batch.seq() + place.position;
                        let (from, to) = (at(&trial.base.batch, a), at(&trial.varied.batch, b));
                        prop_assert_eq!(trial.base.batch.input_ids[from], trial.varied.batch.input_ids[to]);
                        if relation.name != "position_shift" {
                            prop_assert_eq!(trial.base.batch.position_ids[from], trial.varied.batch.position_ids[to]);
                        }
                    }
                    if let Passes::Chunks(chunks) = &trial.varied.passes {
                        prop_assert_eq!(chunks.iter().sum::<usize>(), trial.varied.batch.seq());
                        prop_assert!(chunks.iter().all(|&chunk| chunk > 0));
                    }
                    if let Passes::Prefill(prefill) = trial.varied.passes {
                        prop_assert!(0 < prefill && prefill < trial.varied.batch.seq());
                    }
                }
            }
        }
    }

    #[test]
    fn every_relation_measured_by_trials_has_a_trial_for_24_tokens() {
        for relation in RELATIONS {
            if let Drive::Trials(trials) = relation.drive {
                assert!(!trials(&material(24)).is_empty(), "{}", relation.name);
            }
        }
    }

    #[test]
    fn an_input_of_another_length_crosses_the_length_at_which_rope_changes() {
        let config = json!({
            "model_type": "llama", "rope_theta": 1e4, "max_position_embeddings": 32,
            "rope_scaling": { "type": "dynamic", "factor": 2.0 },
        });
        let of = |seq: usize| {
            let ids = (0..seq as i64).collect();
            Material::new(ids, &[], Traits::of(&config, seq, false)).of_another_length().seq()
        };
        assert!(of(20) > 32 && of(48) < 32, "{} {}", of(20), of(48));
    }
}
