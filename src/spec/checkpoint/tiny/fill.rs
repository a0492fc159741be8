//! Draws the weights of a checkpoint that transformers constructed.
//!
//! An initialised model hides errors: with a standard deviation of 0.02 attention is nearly uniform, and biases and norms are
//! constants. Values are drawn by the name under which a tensor is saved, so they depend neither on torch's generator nor on
//! the order in which a release constructs its modules (but for vectors with different values and without a rule).
//!
//! | tensor | values |
//! |---|---|
//! | integers; `inv_freq` of rotary positions | as constructed |
//! | a glob of the variant or the row | `normal MEAN STD`, `linear GAIN`: standard deviation `GAIN / sqrt(inputs)`, or `kept`: as constructed |
//! | `*bias`; vectors and scalars with equal values (norms, scales) | these values (0 if they differ), plus `0.2 x` |
//! | embeddings, positions, class tokens | standard deviation 1 |
//! | queries and keys | `linear 1.5` |
//! | other matrices and kernels | `linear 1.2` |
//! | vectors with different values | mean and standard deviation of these values |

use std::collections::HashMap;
use std::path::Path;

use bounds::limits::STORED_TENSOR_BYTES;
use models::synthetic::draw;
use reference::protocol::glob;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

/// Standard deviation of biases, norms and scales around their initial values.
const SPREAD: f64 = 0.2;

/// A glob of tensors' names and how they are filled.
pub(super) type Rule<'a> = (&'a str, &'a str);

/// How a tensor is filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fill {
    Normal {
        mean: f64,
        std: f64,
    },
    Linear {
        gain: f64,
    },
    /// As constructed.
    Kept,
}

impl Fill {
    /// Reads `normal MEAN STD`, `linear GAIN` or `kept`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text.split_whitespace().collect::<Vec<_>>()[..] {
            ["normal", mean, std] => Some(Self::Normal { mean: mean.parse().ok()?, std: std.parse().ok()? }),
            ["linear", gain] => Some(Self::Linear { gain: gain.parse().ok()? }),
            ["kept"] => Some(Self::Kept),
            _ => None,
        }
    }

    /// Mean and standard deviation for a tensor of this shape; `None` if its values are kept.
    fn moments(self, name: &str, shape: &[usize]) -> Option<(f64, f64)> {
        match self {
            Self::Normal { mean, std } => Some((mean, std)),
            Self::Linear { gain } => Some((0.0, gain / (inputs(name, shape) as f64).sqrt())),
            Self::Kept => None,
        }
    }
}

/// Draws every weight of a safetensors file in f32.
///
/// # Errors
/// When the file cannot be read or written.
pub(super) fn fill(path: &Path, rules: &[Rule<'_>], seed: u64) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let bytes = bounds::file::read(path, STORED_TENSOR_BYTES).map_err(|error| told(&error))?;
    let saved = SafeTensors::deserialize(&bytes).map_err(|error| told(&error))?;
    let mut drawn: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in saved.tensors() {
        let shape = tensor.shape().to_vec();
        let is_drawn = tensor.dtype() == Dtype::F32 && module(&name) != "inv_freq";
        let Some((mean, std)) = is_drawn.then(|| moments(&name, &tensor, rules)).transpose()?.flatten()
        else {
            drawn.push((name, tensor.dtype(), shape, tensor.data().to_vec()));
            continue;
        };
        let mut values = vec![0f32; shape.iter().product()];
        draw(&name, mean, std, seed, &mut values);
        drawn.push((name, Dtype::F32, shape, bytemuck::cast_slice(&values).to_vec()));
    }
    let views = drawn.iter().map(|(name, dtype, shape, bytes)| {
        let view =
            TensorView::new(*dtype, shape.clone(), bytes).map_err(|error| format!("{name}: {error}"))?;
        Ok((name.as_str(), view))
    });
    let views = views.collect::<Result<Vec<_>, String>>()?;
    // transformers requires the format.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| told(&error))
}

/// Mean and standard deviation of a tensor by the first rule that applies; `None` if its values are kept.
fn moments(name: &str, tensor: &TensorView<'_>, rules: &[Rule<'_>]) -> Result<Option<(f64, f64)>, String> {
    let shape = tensor.shape();
    if let Some((_, rule)) = rules.iter().find(|(pattern, _)| glob(pattern.as_bytes(), name.as_bytes())) {
        let fill = Fill::parse(rule).ok_or_else(|| format!("{name}: `{rule}` is no distribution"))?;
        return Ok(fill.moments(name, shape));
    }
    let constant = constant(tensor.data());
    if name.ends_with("bias") {
        return Ok(Some((constant.unwrap_or(0.0), SPREAD)));
    }
    if let (0..=1, Some(constant)) = (shape.len(), constant) {
        return Ok(Some((constant, SPREAD)));
    }
    if is_embedding(name) && shape.len() < 4 {
        return Ok(Some((0.0, 1.0)));
    }
    if shape.len() < 2 {
        return Ok(Some(spread(tensor.data())));
    }
    let gain = if is_query_or_key(name) { 1.5 } else { 1.2 };
    Ok(Fill::Linear { gain }.moments(name, shape))
}

/// Mean and standard deviation of the values.
fn spread(bytes: &[u8]) -> (f64, f64) {
    let values = bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
    let count = values.len().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    (mean, (values.map(|value| (value - mean).powi(2)).sum::<f64>() / count).sqrt())
}

/// The value of all elements, if they are equal.
fn constant(bytes: &[u8]) -> Option<f64> {
    let mut values = bytes.chunks_exact(4).map(|bytes| [bytes[0], bytes[1], bytes[2], bytes[3]]);
    let first = values.next()?;
    values.all(|value| value == first).then(|| f64::from(f32::from_le_bytes(first)))
}

/// Number of inputs of each output: of a kernel all but the first dimension, of matrices (stacked ones, too) the last one.
fn inputs(name: &str, shape: &[usize]) -> usize {
    let is_kernel = shape.len() >= 4 || shape.len() == 3 && name.contains("conv");
    match (is_kernel, shape) {
        (true, [_, inputs @ ..]) => inputs.iter().product(),
        (false, [.., inputs]) => *inputs,
        (_, []) => 1,
    }
}

/// The last part of a tensor's name that is not `weight`, in lower case.
fn module(name: &str) -> String {
    let mut parts = name.rsplit('.').filter(|part| *part != "weight");
    parts.next().unwrap_or_default().to_lowercase()
}

fn is_embedding(name: &str) -> bool {
    let module = module(name);
    ["embed", "cls_token", "mask_token"].iter().any(|part| module.contains(part))
        || ["wte", "wpe", "shared", "relative_attention_bias"].contains(&module.as_str())
}

fn is_query_or_key(name: &str) -> bool {
    let module = module(name);
    [
        "q_proj",
        "k_proj",
        "query",
        "key",
        "q_lin",
        "k_lin",
        "qkv",
        "q_b_proj",
        "kv_b_proj",
        "c_attn",
        "in_proj_weight",
    ]
    .iter()
    .any(|part| module.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moments that the rules give a tensor with these values.
    fn check(name: &str, shape: &[usize], values: &[f32], expected: Result<(f64, f64), &str>) {
        let rules = [("*.A_log", "normal 0.7 0.5")];
        let view = TensorView::new(Dtype::F32, shape.to_vec(), bytemuck::cast_slice(values)).unwrap();
        let found = moments(name, &view, &rules);
        match (&found, expected) {
            (Ok(Some(found)), Ok(expected)) => {
                assert!(
                    (found.0 - expected.0).abs() < 1e-12 && (found.1 - expected.1).abs() < 1e-12,
                    "{name}: {found:?}"
                );
            }
            (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
            _ => panic!("{name}: {found:?}"),
        }
    }

    #[test]
    fn each_kind_of_tensor_has_its_rule() {
        check("model.norm.weight", &[2], &[1.0, 1.0], Ok((1.0, 0.2)));
        check("model.embedding_norm.weight", &[2], &[0.0, 0.0], Ok((0.0, 0.2)));
        check("logit_scale", &[], &[2.5], Ok((2.5, 0.2)));
        check("x.conv1d.bias", &[2], &[0.3, -0.1], Ok((0.0, 0.2)));
        check("mixer.A_log", &[2], &[0.0, 0.7], Ok((0.7, 0.5)));
        check("mixer.other", &[2], &[0.0, 4.0], Ok((2.0, 2.0)));
        check("embed_tokens.weight", &[2, 2], &[0.0; 4], Ok((0.0, 1.0)));
        check("SelfAttention.relative_attention_bias.weight", &[2, 2], &[0.0; 4], Ok((0.0, 1.0)));
        check("patch_embedding.weight", &[1, 1, 2, 2], &[0.0; 4], Ok((0.0, 1.2 / 2.0)));
        check("conv1d.weight", &[1, 2, 2], &[0.0; 4], Ok((0.0, 1.2 / 2.0)));
        check("experts.input_linear.weight", &[1, 1, 4], &[0.0; 4], Ok((0.0, 1.2 / 2.0)));
        check("self_attn.q_proj.weight", &[1, 4], &[0.0; 4], Ok((0.0, 1.5 / 2.0)));
    }

    #[test]
    fn integers_and_kept_values_stay_and_the_same_seed_draws_the_same_weights() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let (zeros, index) = ([0f32; 6], [7i64]);
        let drawn = |seed| {
            let tensor =
                |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
            let views = [
                ("fc.weight", tensor(Dtype::F32, &[2, 3], bytemuck::cast_slice(&zeros))),
                ("kept.bias", tensor(Dtype::F32, &[6], bytemuck::cast_slice(&zeros))),
                ("index", tensor(Dtype::I64, &[1], bytemuck::cast_slice(&index))),
            ];
            safetensors::serialize_to_file(views, None, &path).unwrap();
            fill(&path, &[("kept.*", "kept")], seed).unwrap();
            std::fs::read(&path).unwrap()
        };
        let (first, again, other) = (drawn(1), drawn(1), drawn(2));
        assert_eq!(first, again);
        assert_ne!(first, other);
        let read = SafeTensors::deserialize(&first).unwrap();
        assert_eq!(read.tensor("index").unwrap().data(), bytemuck::cast_slice::<i64, u8>(&index));
        assert!(read.tensor("fc.weight").unwrap().data().iter().any(|byte| *byte != 0));
        assert!(read.tensor("kept.bias").unwrap().data().iter().all(|byte| *byte == 0));
    }
}
