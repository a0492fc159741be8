//! Writes edited checkpoints: the tensors of safetensors files are changed in place, and what no edit changes is linked.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use bounds::limits::{CHECKPOINT_JSON_BYTES, STORED_TENSOR_BYTES};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{Edit, Fill, Stage, Surgery};
use crate::recording::Error;

const CONFIG: &str = "config.json";

impl Surgery {
    /// Writes the checkpoint in the folder `from`, edited for a stage, to the new folder `to`.
    ///
    /// # Errors
    /// When the checkpoint lacks what is edited, `to` exists, or a file cannot be read or written.
    pub fn write(&self, stage: &Stage, from: &Path, to: &Path) -> Result<(), Error> {
        self.edit(stage).write(from, to)
    }
}

impl Edit {
    fn write(&self, from: &Path, to: &Path) -> Result<(), Error> {
        // A file that is there already may be a link to the checkpoint itself.
        std::fs::create_dir(to).map_err(io("write", to))?;
        let mut missing: BTreeSet<&str> = self.fills.iter().map(|fill| fill.tensor.as_str()).collect();
        for entry in std::fs::read_dir(from).map_err(io("read", from))? {
            let path = entry.map_err(io("read", from))?.path();
            let target = to.join(path.file_name().unwrap_or_default());
            let is_weights = path.extension().is_some_and(|extension| extension == "safetensors");
            if target.ends_with(CONFIG) {
                self.write_config(&path, &target)?;
            } else if !(is_weights && self.write_weights(&path, &target, &mut missing)?) && path.is_file() {
                link(&path, &target)?;
            }
        }
        match missing.first() {
            Some(tensor) => {
                Err(unfit(from, format!("has no tensor {tensor}, which the recorded edits change")))
            }
            None => Ok(()),
        }
    }

    fn write_config(&self, path: &Path, target: &Path) -> Result<(), Error> {
        if self.config.is_empty() {
            return link(path, target);
        }
        let text = bounds::file::read(path, CHECKPOINT_JSON_BYTES).map_err(io("read", path))?;
        let mut config: Value =
            serde_json::from_slice(&text).map_err(|error| unfit(path, format!("is no JSON: {error}")))?;
        let keys = config.as_object_mut().ok_or_else(|| unfit(path, "is no object".into()))?;
        keys.extend(self.config.clone());
        std::fs::write(target, config.to_string()).map_err(io("write", target))
    }

    /// Writes the edited file; `false` if no edit is of one of its tensors.
    fn write_weights(&self, path: &Path, target: &Path, missing: &mut BTreeSet<&str>) -> Result<bool, Error> {
        let mut bytes = bounds::file::read(path, STORED_TENSOR_BYTES).map_err(io("read", path))?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| unfit(path, format!("is no safetensors file: {error}")))?;
        let begin = 8 + header;
        let mut is_edited = false;
        for fill in &self.fills {
            let Some(info) = metadata.info(&fill.tensor) else { continue };
            missing.remove(fill.tensor.as_str());
            is_edited = true;
            let (from, to) = info.data_offsets;
            let tensor = &mut bytes[begin + from..begin + to];
            fill_bytes(fill, info.dtype, &info.shape, tensor).map_err(|problem| unfit(path, problem))?;
        }
        if is_edited {
            std::fs::write(target, bytes).map_err(io("write", target))?;
        }
        Ok(is_edited)
    }
}

fn fill_bytes(fill: &Fill, dtype: Dtype, shape: &[usize], tensor: &mut [u8]) -> Result<(), String> {
    let value = match dtype {
        Dtype::F64 => fill.value.to_le_bytes().to_vec(),
        Dtype::F32 => (fill.value as f32).to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f64(fill.value).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f64(fill.value).to_le_bytes().to_vec(),
        other => {
            return Err(format!(
                "holds {} as {other:?}, which the recorded edits cannot change",
                fill.tensor
            ));
        }
    };
    let size = value.len();
    fill.elements(shape, |range| {
        for element in tensor[range.start * size..range.end * size].chunks_exact_mut(size) {
            element.copy_from_slice(&value);
        }
    })
}

fn link(path: &Path, target: &Path) -> Result<(), Error> {
    // A hard link to a symbolic link would be one to the same relative path.
    let path = std::fs::canonicalize(path).map_err(io("read", path))?;
    let linked = std::fs::hard_link(&path, target).or_else(|_| std::fs::copy(&path, target).map(drop));
    linked.map_err(io("write", target))
}

fn io(action: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::Io { action, path: path.clone(), source }
}

fn unfit(path: &Path, problem: String) -> Error {
    Error::Checkpoint { folder: PathBuf::from(path), problem }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use safetensors::tensor::TensorView;
    use serde_json::json;

    use super::super::{Block, End, Piece};
    use super::*;

    fn checkpoint(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join(CONFIG), r#"{"rope_theta": 10000.0, "model_type": "llama"}"#).unwrap();
        std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
        for (file, name) in [("a.safetensors", "o_proj"), ("b.safetensors", "down_proj")] {
            let bytes: Vec<u8> = [1_f32; 6].iter().flat_map(|value| value.to_le_bytes()).collect();
            let views = ["weight", "bias"].map(|kind| {
                let shape = if kind == "bias" { vec![6] } else { vec![2, 3] };
                (format!("{name}.{kind}"), TensorView::new(Dtype::F32, shape, &bytes).unwrap())
            });
            std::fs::write(folder.join(file), safetensors::serialize(views, None).unwrap()).unwrap();
        }
    }

    fn surgery(fill: Fill) -> Surgery {
        let end = |block, tensor: &str| End { layer: 0, block, tensors: vec![tensor.to_owned()] };
        let config = json!({"rope_theta": 1e30});
        let edit = Edit { fills: vec![fill], config: config.as_object().unwrap().clone() };
        Surgery {
            layers: 1,
            expert_layers: Vec::new(),
            scales_rotation: false,
            places: vec![[0, 0]],
            tokens: vec![0],
            ends: vec![end(Block::Attention, "o_proj.weight"), end(Block::Mlp, "down_proj.weight")],
            edits: BTreeMap::from([(Piece::Unrotated, edit)]),
            stages: vec![Stage::of(Piece::Unrotated, Some(0))],
        }
    }

    fn values(folder: &Path, file: &str, tensor: &str) -> Vec<f32> {
        let bytes = std::fs::read(folder.join(file)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let view = file.tensor(tensor).unwrap();
        view.data().as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect()
    }

    #[test]
    fn an_edited_checkpoint_has_the_edits_and_nothing_else_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        checkpoint(&from);
        let rows = super::super::Rows { axis: super::super::Axis::Rows, ranges: vec![[1, 2]], kept: None };
        let surgery = surgery(Fill { tensor: "o_proj.weight".into(), value: -1.0, rows: Some(rows) });
        surgery.write(&surgery.stages[0], &from, &to).unwrap();
        assert_eq!(values(&to, "a.safetensors", "o_proj.weight"), [1.0, 1.0, 1.0, -1.0, -1.0, -1.0]);
        assert_eq!(values(&to, "a.safetensors", "o_proj.bias"), [1.0; 6]);
        assert_eq!(values(&to, "b.safetensors", "down_proj.weight"), [0.0; 6]);
        assert_eq!(values(&from, "b.safetensors", "down_proj.weight"), [1.0; 6], "the checkpoint stays");
        let config: Value = serde_json::from_slice(&std::fs::read(to.join(CONFIG)).unwrap()).unwrap();
        assert_eq!(config, json!({"rope_theta": 1e30, "model_type": "llama"}));
        assert!(to.join("tokenizer.json").is_file());
        // With the MLP kept, the attention alone is off.
        let stage = Stage::of(Piece::Mlp, None);
        let to = folder.path().join("mlp");
        surgery.write(&stage, &from, &to).unwrap();
        assert_eq!(values(&to, "a.safetensors", "o_proj.weight"), [0.0; 6]);
        assert_eq!(values(&to, "b.safetensors", "down_proj.weight"), [1.0; 6]);
    }

    #[test]
    fn edits_that_do_not_fit_the_checkpoint_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        checkpoint(&from);
        let rows = |ranges| Some(super::super::Rows { axis: super::super::Axis::Rows, ranges, kept: None });
        for (tensor, rows, words) in [
            ("q_proj.weight", None, "has no tensor q_proj.weight"),
            ("o_proj.weight", rows(vec![[1, 3]]), "has not the rows that are edited"),
        ] {
            let surgery = surgery(Fill { tensor: tensor.into(), value: 0.0, rows });
            let error = surgery.write(&surgery.stages[0], &from, &folder.path().join(tensor)).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
