//! Targets that read a checkpoint: safetensors, their index, GGUF files, and the config of every architecture.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};
use tfcheck::spec::checkpoint::{self, Settings, hub};
use tfcheck::spec::relations::Traits;

use super::{Parse, edits, write};

/// Settings whose cache is in `folder` and whose hub is not asked.
pub(super) fn settings(folder: &Path) -> Settings {
    let hub = hub::Environment {
        cache: folder.join("hub"),
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        offline: true,
    };
    Settings { hub, ..Settings::new(folder.join("cache")) }
}

/// Resolves the checkpoint in `path`, a folder or a GGUF file, in a new cache.
fn resolve(path: &Path, settings: &Settings) {
    let source = path.to_str().expect("temporary folders have names of letters");
    if let Ok(found) = checkpoint::resolve(source, settings, &mut |_| ()) {
        let _ = (found.dtype(), found.pooling());
    }
    let _ = std::fs::remove_dir_all(&settings.cache);
}

pub(super) fn safetensors(folder: &Path) -> Parse {
    of_a_folder(folder, "model.safetensors")
}

pub(super) fn index(folder: &Path) -> Parse {
    of_a_folder(folder, "model.safetensors.index.json")
}

/// A checkpoint folder with two shards in which the bytes replace one file.
fn of_a_folder(folder: &Path, file: &str) -> Parse {
    let model = folder.join("model");
    std::fs::create_dir(&model).expect("the folder can be made");
    let config = json!({"model_type": "llama", "tie_word_embeddings": true, "vocab_size": 32});
    write(&model.join("config.json"), config.to_string().as_bytes());
    for (shard, name) in [("one", "model.embed_tokens.weight"), ("two", "lm_head.weight")] {
        let tensor = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).expect("four zeros");
        candle_core::safetensors::save(
            &[(name.to_owned(), tensor)].into(),
            model.join(format!("{shard}.safetensors")),
        )
        .expect("a file can be written");
    }
    let (path, settings) = (model.join(file), settings(folder));
    Box::new(move |bytes| {
        write(&path, bytes);
        resolve(&model, &settings);
    })
}

pub(super) fn gguf(folder: &Path) -> Parse {
    let (path, settings) = (folder.join("file.gguf"), settings(folder));
    Box::new(move |bytes| {
        write(&path, bytes);
        resolve(&path, &settings);
    })
}

/// As [`gguf`], with the file described in JSON (`gguf_bytes`), or by edits of such a description.
pub(super) fn gguf_made(folder: &Path) -> Parse {
    let mut parse = gguf(folder);
    let base = include_str!("../../seeds/gguf-made/llama.json");
    let base: Value = serde_json::from_str(base).expect("the seed is JSON");
    Box::new(move |bytes| {
        let Ok(described) = serde_json::from_slice(&edits::json(&base, bytes)) else { return };
        parse(&gguf_bytes(&described));
    })
}

/// A GGUF file of version 3 from `{"metadata": {KEY: [TYPE, VALUE]}, "tensors": {NAME: {"shape", "dtype", "offset"}},
/// "alignment", "data"}`. An array is written `[9, ELEMENT_TYPE, [VALUE, …]]`; `data` is the number of bytes behind the header.
fn gguf_bytes(described: &Value) -> Vec<u8> {
    let empty = serde_json::Map::new();
    let map = |key: &str| described.get(key).and_then(Value::as_object).unwrap_or(&empty);
    let number = |value: Option<&Value>| value.and_then(Value::as_u64);
    let mut bytes = b"GGUF\x03\0\0\0".to_vec();
    bytes.extend((map("tensors").len() as u64).to_le_bytes());
    bytes.extend((map("metadata").len() as u64).to_le_bytes());
    for (key, value) in map("metadata") {
        put_text(&mut bytes, key);
        let kind = number(value.get(0)).unwrap_or(8) as u32;
        bytes.extend(kind.to_le_bytes());
        match value.get(2).and_then(Value::as_array) {
            Some(elements) if kind == 9 => {
                let kind = number(value.get(1)).unwrap_or(8) as u32;
                bytes.extend(kind.to_le_bytes());
                bytes.extend((elements.len() as u64).to_le_bytes());
                for element in elements {
                    put(&mut bytes, kind, element);
                }
            }
            _ => put(&mut bytes, kind, value.get(1).unwrap_or(&Value::Null)),
        }
    }
    let mut next = 0_u64;
    for (name, tensor) in map("tensors") {
        put_text(&mut bytes, name);
        let shape: Vec<u64> = tensor
            .get("shape")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|length| length.as_u64().unwrap_or(u64::MAX))
            .collect();
        bytes.extend((shape.len() as u32).to_le_bytes());
        // The fastest axis comes first.
        shape.iter().rev().for_each(|length| bytes.extend(length.to_le_bytes()));
        bytes.extend((number(tensor.get("dtype")).unwrap_or(0) as u32).to_le_bytes());
        bytes.extend(number(tensor.get("offset")).unwrap_or(next).to_le_bytes());
        let size = shape.iter().fold(4_u64, |product, length| product.wrapping_mul(*length));
        next = next.wrapping_add(size.wrapping_add(31) & !31);
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    let data = number(described.get("data")).unwrap_or(next).min(1 << 16);
    bytes.extend((0..data).map(|index| if index % 4 == 3 { 0x3d } else { index as u8 }));
    bytes
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A value in GGUF's type `kind`.
fn put(bytes: &mut Vec<u8>, kind: u32, value: &Value) {
    let whole = value.as_i64().unwrap_or_else(|| value.as_u64().unwrap_or_default() as i64);
    let float = value.as_f64().unwrap_or(f64::NAN);
    match kind {
        0 | 1 => bytes.push(whole as u8),
        2 | 3 => bytes.extend((whole as u16).to_le_bytes()),
        4 | 5 => bytes.extend((whole as u32).to_le_bytes()),
        6 => bytes.extend((float as f32).to_le_bytes()),
        7 => bytes.push(value.as_bool().map_or(whole as u8, u8::from)),
        10 | 11 => bytes.extend(whole.to_le_bytes()),
        12 => bytes.extend(float.to_le_bytes()),
        _ => put_text(bytes, value.as_str().unwrap_or_default()),
    }
}

/// A config with its `model_type`, or a byte that chooses an architecture and edits of its synthetic config. The checkpoint is
/// resolved, loaded by both backends, and computes one forward pass.
pub(super) fn config(folder: &Path) -> Parse {
    let settings = settings(folder);
    let folder = folder.to_owned();
    let types: Vec<&str> = models::model_types().collect();
    let mut known: BTreeMap<&str, (PathBuf, Value)> = BTreeMap::new();
    let ids = Tensor::from_vec((0..8_u32).collect(), (1, 8), &Device::Cpu).expect("eight ids");
    Box::new(move |bytes| {
        let raw: Option<Value> = serde_json::from_slice(bytes).ok();
        let named = raw.as_ref().and_then(|raw| raw.get("model_type")?.as_str());
        let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
        let chosen = types[usize::from(*first) % types.len()];
        let model_type =
            named.map_or(chosen, |named| types.iter().find(|known| **known == named).unwrap_or(&chosen));
        let (model, base) = known.entry(model_type).or_insert_with(|| {
            let model = folder.join(model_type);
            models::synthetic::write(model_type, "", 0, &model)
                .expect("every architecture has a synthetic checkpoint");
            (model, models::synthetic::config(model_type, "").expect("it has a config"))
        });
        let text = if raw.is_some() { bytes.to_vec() } else { edits::json(base, rest) };
        write(&model.join("config.json"), &text);
        resolve(model, &settings);
        if let Ok(config) = serde_json::from_slice::<Value>(&text) {
            let traits = Traits::of(&config, 8, false);
            let _ = traits.room();
        }
        for backend in [models::Backend::Eager, models::Backend::Fused] {
            let options = models::Options { dtype: DType::F32, device: Device::Cpu, backend };
            let Ok(mut loaded) = models::load(model, &options) else { continue };
            let mut inputs = models::Inputs::new(ids.clone());
            if models::kind(model_type) == Some(models::Kind::EncoderDecoder) {
                inputs = inputs.with("decoder_input_ids", ids.clone());
            }
            let _ = loaded.forward(&inputs);
        }
    })
}
