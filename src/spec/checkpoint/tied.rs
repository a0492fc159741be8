//! A config that ties the output head to the embedding, beside weights that store both with different values: which of the
//! two a release uses differs from release to release.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::safetensors_file::{self, TensorNames};

/// The names of heads and of token embeddings of causal and masked language models, without what stands before them.
const HEADS: [&str; 4] = ["lm_head.weight", "embed_out.weight", "output_projection.weight", "decoder.weight"];
const EMBEDDINGS: [&str; 7] = [
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "embeddings.weight",
    "embedding.weight",
    "shared.weight",
];

/// Bytes that are compared at a time.
const CHUNK: usize = 1 << 16;

/// A note if the checkpoint declares both to be tied and stores different values.
pub(crate) fn contradiction(config: &Value, weights: &[PathBuf]) -> Option<String> {
    if config.get("tie_word_embeddings") != Some(&Value::Bool(true)) {
        return None;
    }
    let files: Vec<(&Path, TensorNames)> = weights
        .iter()
        .filter_map(|path| Some((path.as_path(), safetensors_file::check(path, true).ok()?)))
        .collect();
    let find = |names: &[&str]| {
        let is_it =
            |name: &&String| names.iter().any(|end| *name == end || name.ends_with(&format!(".{end}")));
        files.iter().find_map(|(path, held)| Some((*path, held.iter().find(is_it)?.as_str())))
    };
    let (head, embedding) = (find(&HEADS)?, find(&EMBEDDINGS)?);
    (!is_equal([head, embedding])?).then(|| {
        format!(
            "config.json ties the head to the embedding (tie_word_embeddings), but {} and {} are stored with different values: a release that ties ignores the first",
            head.1, embedding.1
        )
    })
}

/// Whether two tensors have the same bytes; `None` where one cannot be read.
fn is_equal(tensors: [(&Path, &str); 2]) -> Option<bool> {
    let mut open = Vec::new();
    for (path, name) in tensors {
        let bytes = safetensors_file::bytes_of(path, name)?;
        let mut file = bounds::file::open(path).ok()?;
        file.seek(SeekFrom::Start(bytes.start)).ok()?;
        open.push((file.take(bytes.end - bytes.start), bytes.end - bytes.start));
    }
    let [(a, length_a), (b, length_b)] = open.as_mut_slice() else { return None };
    if length_a != length_b {
        return Some(false);
    }
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    let mut rest = *length_a as usize;
    while rest > 0 {
        let size = rest.min(CHUNK);
        a.read_exact(&mut left[..size]).ok()?;
        b.read_exact(&mut right[..size]).ok()?;
        if left[..size] != right[..size] {
            return Some(false);
        }
        rest -= size;
    }
    Some(true)
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_head_that_is_declared_tied_and_stored_otherwise_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let check = |declared: bool, head: &[u8], is_reported: bool| {
            let embedding: Vec<u8> = (0..48).collect();
            let views = [("lm_head.weight", head), ("model.embed_tokens.weight", &embedding[..])].map(
                |(name, bytes)| (name, TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).unwrap()),
            );
            safetensors::serialize_to_file(views, None, &path).unwrap();
            let config = json!({ "tie_word_embeddings": declared });
            let found = contradiction(&config, std::slice::from_ref(&path));
            assert_eq!(found.is_some(), is_reported, "{found:?}");
        };
        let same: Vec<u8> = (0..48).collect();
        let mut other = same.clone();
        other[47] = 0;
        check(true, &other, true);
        check(true, &same[..44], true);
        check(true, &same, false);
        check(false, &other, false);
        assert_eq!(contradiction(&json!({}), &[path]), None);
    }
}
