//! Where a checkpoint keeps the parts of its layers: the rows of queries, keys and values, and the last matrices of
//! attention and MLP, under the names of the architectures that tfcheck knows.

pub(super) use tfcheck_port::surgery::Block;
use tfcheck_port::surgery::{Axis, Fill, Kept, Rows};

use super::draft::Draft;

/// A projection of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Query,
    Key,
    Value,
}

/// The rows of one projection in one tensor (columns, where the tensor is stored as `[in, out]`), head by head.
#[derive(Clone, Debug)]
pub(super) struct Slice {
    pub(super) name: String,
    rows: Vec<usize>,
    is_transposed: bool,
}

impl Slice {
    /// Multiplies the projection by `factor`.
    pub(super) fn scale(&self, draft: &mut Draft, factor: f64) {
        self.change(draft, true, |_, value| value * factor);
    }

    /// Sets the projection to zero.
    pub(super) fn clear(&self, draft: &mut Draft) {
        self.change(draft, false, |_, _| 0.0);
    }

    /// Zeros in the projection as an edit, except in the features `kept` of each head.
    pub(super) fn zeros(&self, kept: Option<Kept>) -> Fill {
        let mut ranges: Vec<[usize; 2]> = Vec::new();
        for &row in &self.rows {
            match ranges.last_mut() {
                Some([_, end]) if *end == row => *end += 1,
                _ => ranges.push([row, row + 1]),
            }
        }
        let axis = if self.is_transposed { Axis::Columns } else { Axis::Rows };
        Fill { tensor: self.name.clone(), value: 0.0, rows: Some(Rows { axis, ranges, kept }) }
    }

    fn change(&self, draft: &mut Draft, widens: bool, change: impl Fn(usize, f64) -> f64) {
        draft.edit(&self.name, |values| {
            if widens {
                values.scale(1.0);
            }
            let (width, is_vector) = (values.columns(), values.shape.len() == 1);
            for (at, &row) in self.rows.iter().enumerate() {
                if is_vector {
                    values.data[row] = change(at, values.data[row]);
                } else if self.is_transposed {
                    values
                        .data
                        .iter_mut()
                        .skip(row)
                        .step_by(width)
                        .for_each(|value| *value = change(at, *value));
                } else {
                    let row = &mut values.data[row * width..(row + 1) * width];
                    for value in row {
                        *value = change(at, *value);
                    }
                }
            }
        });
    }

    /// Reorders the projection: feature `i` becomes what feature `order(i)` was.
    pub(super) fn reorder(&self, draft: &mut Draft, order: impl Fn(usize) -> usize) {
        draft.edit(&self.name, |values| {
            let total = if self.is_transposed { values.columns() } else { values.shape[0] };
            let mut all: Vec<usize> = (0..total).collect();
            for (at, &row) in self.rows.iter().enumerate() {
                all[row] = self.rows[order(at)];
            }
            if self.is_transposed && values.shape.len() > 1 {
                values.columns_reordered(&all);
            } else {
                values.rows_reordered(all.into_iter());
            }
        });
    }
}

/// Sizes of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// The sizes that a config gives; `None` if it lacks one.
pub(super) fn heads(draft: &Draft) -> Option<Sizes> {
    let heads = draft.count(&["num_attention_heads", "n_head", "n_heads"])?;
    let hidden = draft.count(&["hidden_size", "n_embd", "dim"])?;
    let is_multi_query = draft.config.get("multi_query").and_then(serde_json::Value::as_bool) == Some(true)
        && draft.config.get("new_decoder_architecture").and_then(serde_json::Value::as_bool) != Some(true);
    let kv_heads = if is_multi_query {
        1
    } else {
        draft.count(&["num_key_value_heads", "num_kv_heads"]).unwrap_or(heads)
    };
    let head_dim = draft.count(&["head_dim"]).unwrap_or(hidden / heads.max(1));
    (heads > 0 && kv_heads > 0 && heads.is_multiple_of(kv_heads)).then_some(Sizes {
        heads,
        kv_heads,
        head_dim,
    })
}

/// Names of separate projections, in the order of [`Part`].
const SEPARATE: [[&str; 3]; 3] =
    [["q_proj", "k_proj", "v_proj"], ["query", "key", "value"], ["q_lin", "k_lin", "v_lin"]];

/// The rows of projections in every layer, weights and biases; nothing under names that tfcheck does not know.
pub(super) fn slices(draft: &Draft, parts: &[Part]) -> Vec<Slice> {
    let Some(sizes) = heads(draft) else { return Vec::new() };
    let of = |&part: &Part| draft.names().into_iter().filter_map(move |name| slice(draft, name, part, sizes));
    parts.iter().flat_map(of).collect()
}

fn slice(draft: &Draft, name: String, part: Part, sizes: Sizes) -> Option<Slice> {
    let Sizes { heads, kv_heads, head_dim } = sizes;
    let (module, _) = name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let last = module.rsplit('.').next()?;
    let own = if part == Part::Query { heads } else { kv_heads };
    let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
    let begin = [0, queries, queries + keys][part as usize];
    let shape = &draft.tensor(&name)?.shape;
    let (rows, is_transposed): (Vec<usize>, bool) = match last {
        _ if SEPARATE.iter().any(|names| names[part as usize] == last) => {
            ((0..own * head_dim).collect(), false)
        }
        "qkv_proj" | "Wqkv" => ((begin..begin + own * head_dim).collect(), false),
        "c_attn" => ((begin..begin + own * head_dim).collect(), true),
        "query_key_value" => {
            // One group per key head: its queries, its key, its value.
            let share = heads / kv_heads;
            let row = |at: usize| {
                let (head, feature) = (at / head_dim, at % head_dim);
                let (group, place) = match part {
                    Part::Query => (head / share, head % share),
                    Part::Key => (head, share),
                    Part::Value => (head, share + 1),
                };
                (group * (share + 2) + place) * head_dim + feature
            };
            ((0..own * head_dim).map(row).collect(), false)
        }
        _ => return None,
    };
    let length = if is_transposed { *shape.last()? } else { *shape.first()? };
    rows.iter().all(|&row| row < length).then_some(Slice { name, rows, is_transposed })
}

/// Last modules of attention, below a layer.
const ATTENTION_ENDS: &[&str] = &[
    "self_attn.o_proj",
    "self_attn.dense",
    "self_attn.out_proj",
    "attn.c_proj",
    "attn.Wo",
    "attention.dense",
    "self_attention.dense",
    "attention.output.dense",
    "attention.out_lin",
];
/// Last modules of an MLP, below a layer; of experts the module of each.
const MLP_ENDS: &[&str] = &[
    "mlp.down_proj",
    "mlp.c_proj",
    "mlp.Wo",
    "mlp.fc2",
    "mlp.dense_4h_to_h",
    "ffn.lin2",
    "output.dense",
    "fc2",
    "w2",
    "down_proj",
];

/// Whether a tensor is of a norm of queries or of keys.
pub(super) fn is_qk_norm(name: &str) -> bool {
    [".q_norm.", ".k_norm.", ".q_layernorm.", ".k_layernorm."].iter().any(|norm| name.contains(norm))
}

/// Whether the architecture's norms multiply by 1 + weight.
pub(super) fn norms_add_one(draft: &Draft) -> bool {
    let plain = ["gemma3n", "gemma4"];
    draft.text("model_type").is_some_and(|model_type| {
        model_type == "nemotron"
            || model_type.contains("gemma") && !plain.iter().any(|family| model_type.starts_with(family))
    })
}

/// Whether a tensor is a bias.
pub(super) fn is_bias(name: &str) -> bool {
    name.rsplit('.').next() == Some("bias")
}

/// The index of the layer that a tensor belongs to.
pub(super) fn layer(name: &str) -> Option<usize> {
    let mut words = name.split('.');
    words.by_ref().find(|word| ["layers", "h", "layer", "blocks"].contains(word))?;
    words.next()?.parse().ok()
}

/// Which block's output a tensor gives: its last matrix, or that matrix's bias.
pub(super) fn end_of(name: &str) -> Option<(usize, Block)> {
    let (module, kind) = name.rsplit_once('.')?;
    let layer = layer(name)?;
    if !["weight", "bias"].contains(&kind) {
        return None;
    }
    let ends =
        |names: &[&str]| names.iter().any(|end| module == *end || module.ends_with(&format!(".{end}")));
    if ends(ATTENTION_ENDS) {
        Some((layer, Block::Attention))
    } else {
        ends(MLP_ENDS).then_some((layer, Block::Mlp))
    }
}

/// Number of layers, as the config states it.
pub(super) fn layers(draft: &Draft) -> usize {
    draft.count(&["num_hidden_layers", "n_layer", "n_layers"]).unwrap_or(0)
}
