//! Weights under the names that a port reads, made of those that transformers saves.

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

/// The port's name and transformers' names of the same tensor; a name that no row has is the same in both.
///
/// `{}` stands for one part of a name that has no dot, and `{-1}` on the right for the number of its `{}` less one. On the
/// right, `$` stands for the name that transformers gives the model inside of the one with a head, and `a + b` joins tensors along the first axis, in which `0` stands for zeros like the first one; `0` alone stands for zeros.
pub(crate) type Name = (&'static str, &'static str);

/// The weights of a checkpoint, whose model inside of the one with a head is `body`, under a port's names in several tables; a
/// tensor whose elements a port arranges in another shape gets that shape.
pub(crate) fn renamed(
    weights: VarBuilder<'static>,
    body: &'static str,
    tables: &[&'static [Name]],
) -> VarBuilder<'static> {
    let (dtype, device) = (weights.dtype(), weights.device().clone());
    VarBuilder::from_backend(Box::new(Renamed { weights, body, names: tables.concat() }), dtype, device)
}

struct Renamed {
    weights: VarBuilder<'static>,
    body: &'static str,
    names: Vec<Name>,
}

impl Renamed {
    /// transformers' names of the parts of a tensor.
    fn parts(&self, name: &str) -> Vec<String> {
        let mut named = self.names.iter().filter_map(|(port, own)| {
            let found = captured(port, name)?;
            Some(own.split(" + ").map(|own| filled(&own.replace('$', self.body), &found)).collect())
        });
        named.next().unwrap_or_else(|| vec![name.to_owned()])
    }
}

impl SimpleBackend for Renamed {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        if self.parts(name) == ["0"] {
            return Tensor::zeros(shape, dtype, device);
        }
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.elem_count() != shape.elem_count() {
            let msg = format!("shape mismatch for {name}");
            return Err(Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() });
        }
        tensor.reshape(shape)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let mut joined: Vec<Tensor> = Vec::new();
        for part in self.parts(name) {
            joined.push(match joined.first() {
                Some(first) if part == "0" => first.zeros_like()?,
                _ => self.weights.get_unchecked_dtype(&part, dtype)?.to_device(device)?,
            });
        }
        if joined.len() == 1 { Ok(joined.remove(0)) } else { Tensor::cat(&joined, 0) }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let is_there = |part: &String| part == "0" || self.weights.contains_tensor(part);
        self.parts(name).iter().all(is_there)
    }
}

/// What each `{}` of a pattern stands for in a name.
fn captured<'a>(pattern: &str, name: &'a str) -> Option<Vec<&'a str>> {
    let mut pieces = pattern.split("{}");
    let mut rest = name.strip_prefix(pieces.next()?)?;
    let mut found = Vec::new();
    for piece in pieces {
        let end = if piece.is_empty() { rest.len() } else { rest.find(piece)? };
        let (part, after) = rest.split_at(end);
        if part.contains('.') {
            return None;
        }
        found.push(part);
        rest = after.strip_prefix(piece)?;
    }
    rest.is_empty().then_some(found)
}

/// A name with what its `{}` stand for.
fn filled(own: &str, found: &[&str]) -> String {
    let mut name = own.to_owned();
    for part in found {
        let (plain, less) = (name.find("{}"), name.find("{-1}"));
        match (plain, less) {
            (plain, Some(at)) if plain.is_none_or(|plain| at < plain) => {
                let number = part.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
                let number = number.map_or_else(|| (*part).to_owned(), |number| number.to_string());
                name.replace_range(at..at + 4, &number);
            }
            (Some(at), _) => name.replace_range(at..at + 2, part),
            _ => {}
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const NAMES: &[Name] = &[
        ("blocks.{}.norm1.{}", "layer.{}.before.{}"),
        ("layer{}.{}.conv.weight", "stages.{-1}.layers.{}.conv.weight"),
        ("layer{}_rn.weight", "convs.{-1}.weight"),
        ("blocks.{}.qkv.bias", "layer.{}.q.bias + 0 + layer.{}.v.bias"),
        ("head.weight", "0"),
    ];

    #[test]
    fn tensors_are_found_joined_and_arranged_under_a_port_s_names() {
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu).unwrap();
        let tensors = HashMap::from([
            ("layer.3.before.weight".to_owned(), tensor(&[1.0, 2.0])),
            ("stages.0.layers.2.conv.weight".to_owned(), tensor(&[3.0, 4.0])),
            ("convs.1.weight".to_owned(), tensor(&[7.0])),
            ("layer.0.q.bias".to_owned(), tensor(&[5.0])),
            ("layer.0.v.bias".to_owned(), tensor(&[6.0])),
        ]);
        let weights = renamed(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), "", &[NAMES]);
        let values = |shape: &[usize], name: &str| -> Vec<f32> {
            weights.get(shape, name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        assert_eq!(values(&[2], "blocks.3.norm1.weight"), [1.0, 2.0]);
        assert_eq!(values(&[2, 1, 1], "layer1.2.conv.weight"), [3.0, 4.0]);
        assert_eq!(values(&[1], "layer2_rn.weight"), [7.0]);
        assert_eq!(values(&[3], "blocks.0.qkv.bias"), [5.0, 0.0, 6.0]);
        assert_eq!(values(&[2, 2], "head.weight"), [0.0; 4]);
        for (shape, name) in [(vec![3], "blocks.3.norm1.weight"), (vec![2], "blocks.3.norm2.weight")] {
            assert!(weights.get(shape, name).is_err(), "{name}");
        }
    }
}
