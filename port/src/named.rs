//! Inputs of a port that takes other tensors than text.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Error, Result, Tensor};
use protocol::{Failed, Role, role};

use crate::worker::{failure, unsupported};

/// Tensors by the names of transformers' arguments, as ports take them: integers as u32, floating point in the model's dtype.
pub struct NamedTensors {
    tensors: BTreeMap<String, Tensor>,
}

impl NamedTensors {
    /// The tensors of an inputs file that a port takes.
    ///
    /// # Errors
    /// When the file cannot be read. Unsupported if it has a tensor that a port which does not take it would compute without, except
    /// masks, positions and token types.
    pub(crate) fn read(
        path: &Path,
        takes: &[&str],
        (dtype, device): (DType, &Device),
    ) -> std::result::Result<Self, Failed> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in candle_core::safetensors::load(path, device).map_err(failure)? {
            let is_taken = takes.contains(&name.as_str());
            match role(&name) {
                // A port computes no loss.
                Role::Labels => continue,
                Role::Mask | Role::DecoderMask | Role::PixelMask | Role::Positions | Role::TokenTypes => {}
                _ if is_taken => {}
                _ => return Err(unsupported(format!("it takes no {name}, which the inputs have"))),
            }
            let held = if tensor.dtype().is_float() { dtype } else { DType::U32 };
            tensors.insert(name, tensor.to_dtype(held).map_err(failure)?);
        }
        Ok(Self { tensors })
    }

    /// The tensor of this name.
    ///
    /// # Errors
    /// When the inputs have none.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.find(name).ok_or_else(|| Error::Msg(format!("the inputs have no {name}")))
    }

    /// The tensor of this name, if the inputs have one.
    pub fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_that_the_port_does_not_take_is_refused_unless_it_may_be_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("inputs.st");
        let ids = Tensor::new(&[[3i64, 4]], &Device::Cpu).unwrap();
        let pixels = Tensor::new(&[0.5f32], &Device::Cpu).unwrap();
        let named =
            [("input_ids", &ids), ("attention_mask", &ids), ("labels", &ids), ("pixel_values", &pixels)];
        let tensors = named.map(|(name, tensor)| (name, tensor.clone())).into_iter().collect();
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let read = |takes: &[&str]| NamedTensors::read(&path, takes, (DType::F64, &Device::Cpu));
        let read_all = read(&["input_ids", "pixel_values"]).unwrap();
        assert_eq!(read_all.get("pixel_values").unwrap().dtype(), DType::F64);
        assert_eq!(read_all.get("input_ids").unwrap().dtype(), DType::U32);
        assert!(read_all.find("attention_mask").is_some() && read_all.find("labels").is_none());
        assert!(read_all.get("input_values").unwrap_err().to_string().contains("no input_values"));
        let refused = read(&["input_ids"]).err().unwrap();
        assert!(refused.message.contains("pixel_values"), "{}", refused.message);
    }
}
