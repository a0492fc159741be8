//! Edits that switch parts of a network off, as data: a diagnosis applies them to both sides, and a recording holds them for a
//! port's test.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use tfcheck_port::surgery::{Block, Edit, End, Fill, Given, Kept, Piece, Stage, Surgery};

use super::draft::Draft;
use super::hypotheses::set_rotary_base;
use super::parts::{
    Part as Projection, end_of, heads, is_bias, is_qk_norm, layer, layers, norms_add_one, slices,
};

/// A rotary base with which the last pair of features is next to not rotated.
const LARGE_BASE: f64 = 1e30;

/// Whether a block's output is zero where a piece of a layer is kept, or of every layer.
pub(super) fn is_off((layer, block): (usize, Block), piece: Piece, kept: Option<usize>) -> bool {
    piece.block() != Some(block) || kept.is_some_and(|kept| kept != layer)
}

/// The edit inside the block that is kept.
pub(super) fn edit(piece: Piece, draft: &Draft) -> Edit {
    match piece {
        Piece::Uniform => uniform(draft),
        Piece::Unrotated => unrotated(draft),
        Piece::NoKeyBias => {
            let keys = slices(draft, &[Projection::Key]);
            let biases = keys.iter().filter(|slice| is_bias(&slice.name));
            Edit { fills: biases.map(|slice| slice.zeros(None)).collect(), config: Map::new() }
        }
        Piece::Ends | Piece::Mlp | Piece::Attention => Edit::default(),
    }
}

/// Queries and keys of zero, whatever norms follow them. Keys too, because relative positions may be added to scores by them.
fn uniform(draft: &Draft) -> Edit {
    let projections = slices(draft, &[Projection::Query, Projection::Key]);
    let zero = if norms_add_one(draft) { -1.0 } else { 0.0 };
    let norms = draft.names().into_iter().filter(|name| is_qk_norm(name)).map(|tensor| {
        let value = if is_bias(&tensor) { 0.0 } else { zero };
        Fill { tensor, value, rows: None }
    });
    Edit {
        fills: projections.iter().map(|slice| slice.zeros(None)).chain(norms).collect(),
        config: Map::new(),
    }
}

/// Queries and keys in the last rotated pair of features alone, whose angle is next to nothing with a large base.
fn unrotated(draft: &Draft) -> Edit {
    let Some(sizes) = heads(draft) else { return Edit::default() };
    let head_dim = sizes.head_dim;
    let kept = Kept { head_dim, features: vec![head_dim / 2 - 1, head_dim - 1] };
    let projections = slices(draft, &[Projection::Query, Projection::Key]);
    let mut turned = draft.clone();
    set_rotary_base(&mut turned, LARGE_BASE);
    let is_changed = |(key, value): &(&String, &Value)| draft.config.get(key.as_str()) != Some(value);
    let config = turned.config.iter().filter(is_changed);
    Edit {
        fills: projections.iter().map(|slice| slice.zeros(Some(kept.clone()))).collect(),
        config: config.map(|(key, value)| (key.clone(), value.clone())).collect(),
    }
}

/// Whether the projections of queries and of keys of every attention are known, so that either can be switched off.
pub(super) fn divides_attention(draft: &Draft) -> bool {
    let names = draft.names();
    let ends = names.iter().filter_map(|name| end_of(name)).filter(|(_, block)| *block == Block::Attention);
    let attentions: BTreeSet<usize> = ends.map(|(layer, _)| layer).collect();
    [Projection::Query, Projection::Key].iter().all(|part| {
        let slices = slices(draft, &[*part]);
        let known: BTreeSet<usize> = slices.iter().filter_map(|slice| layer(&slice.name)).collect();
        !slices.is_empty() && known.is_superset(&attentions)
    })
}

/// Whether keys have a bias.
pub(super) fn has_key_bias(draft: &Draft) -> bool {
    slices(draft, &[Projection::Key]).iter().any(|slice| is_bias(&slice.name))
}

/// Whether a layer's MLP is a router with experts.
pub(super) fn has_experts(draft: &Draft, index: usize) -> bool {
    draft.names().iter().any(|name| layer(name) == Some(index) && name.contains(".experts."))
}

/// Whether the rotary scaling is of a type whose cosines and sines have a factor.
pub(super) fn scales_rotation(draft: &Draft) -> bool {
    let scaling = ["rope_scaling", "rope_parameters"].map(|key| draft.config.get(key).map(Value::to_string));
    (scaling.iter().flatten())
        .any(|text| ["\"yarn\"", "\"longrope\"", "\"su\""].iter().any(|scaling| text.contains(scaling)))
}

/// Every edit of a checkpoint that localises a fault, for logits at these places and tokens; `None` if fewer than two blocks are
/// known by their names.
pub(super) fn all_edits(plain: &Draft, places: Vec<[usize; 2]>, tokens: Vec<usize>) -> Option<Surgery> {
    let count = layers(plain);
    let mut ends: BTreeMap<(usize, Block), Vec<String>> = BTreeMap::new();
    for name in plain.names() {
        if let Some(end) = end_of(&name).filter(|(layer, _)| *layer < count) {
            ends.entry(end).or_default().push(name);
        }
    }
    if ends.len() < 2 {
        return None;
    }
    let mut pieces = vec![Piece::Mlp];
    let mut edits = BTreeMap::new();
    let mut rest = Vec::new();
    if divides_attention(plain) {
        pieces.push(Piece::Uniform);
        let [one, together] = [(Piece::Uniform, Given::One), (Piece::Attention, Given::Together)];
        rest.extend([one, (Piece::Unrotated, Given::Whole), together]);
        if has_key_bias(plain) {
            rest.push((Piece::NoKeyBias, Given::Whole));
        }
        for piece in [Piece::Uniform, Piece::Unrotated, Piece::NoKeyBias] {
            edits.insert(piece, edit(piece, plain));
        }
        edits.retain(|_, edit| !edit.fills.is_empty());
    }
    pieces.push(Piece::Attention);
    let mut stages = vec![Stage::of(Piece::Ends, None)];
    for piece in pieces {
        stages.push(Stage::of(piece, None));
        stages.extend((0..count).map(|layer| Stage::of(piece, Some(layer))));
    }
    for layer in 0..count {
        let of = |&(piece, inputs): &(Piece, Given)| Stage { piece, layer: Some(layer), inputs };
        stages.extend(rest.iter().map(of));
    }
    Some(Surgery {
        layers: count,
        expert_layers: (0..count).filter(|layer| has_experts(plain, *layer)).collect(),
        scales_rotation: scales_rotation(plain),
        places,
        tokens,
        ends: ends.into_iter().map(|((layer, block), tensors)| End { layer, block, tensors }).collect(),
        edits,
        stages,
    })
}
