//! A checkpoint folder as a port loads it, which remembers what was read: serde reads the port's config, a `VarBuilder` its
//! weights.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bounds::limits::CHECKPOINT_JSON_BYTES;
use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use serde::de::DeserializeOwned;
use serde_json::Value;

const INDEX: &str = "model.safetensors.index.json";

/// A checkpoint that a port loads from.
pub struct Checkpoint {
    folder: PathBuf,
    config: Value,
    tensors: Arc<Tensors>,
    dtype: DType,
    device: Device,
    /// Keys that no config read so far; `None` before the first config.
    unread_keys: Mutex<Option<BTreeSet<String>>>,
}

impl Checkpoint {
    /// Reads `config.json` and the weights of a folder, sharded or not; weights keep the dtype of the files until they are
    /// requested in `dtype`.
    ///
    /// # Errors
    /// When a file cannot be read or is not what its name says.
    pub fn open(folder: &Path, dtype: DType, device: &Device) -> Result<Self> {
        let config = json(&folder.join("config.json"))?;
        let mut tensors = HashMap::new();
        for file in weight_files(folder)? {
            tensors.extend(candle_core::safetensors::load(folder.join(file), device)?);
        }
        Ok(Self {
            folder: folder.to_owned(),
            config,
            tensors: Arc::new(Tensors { tensors, read: Mutex::default() }),
            dtype,
            device: device.clone(),
            unread_keys: Mutex::default(),
        })
    }

    /// The folder, for other files than the config and the weights.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The content of `config.json`. What is read from it directly does not count as read.
    pub fn json(&self) -> &Value {
        &self.config
    }

    /// The dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the port computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The port's own config, read from `config.json` by its `Deserialize`.
    ///
    /// # Errors
    /// When a key is missing or has a value of another type.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T> {
        self.config_from(&self.config)
    }

    /// [`Self::config`], read from `json`: the content of `config.json` after changes.
    ///
    /// # Errors
    /// As [`Self::config`].
    pub fn config_from<T: DeserializeOwned>(&self, json: &Value) -> Result<T> {
        let mut ignored = BTreeSet::new();
        let is_null =
            |path: &str| json.pointer(&format!("/{}", path.replace('.', "/"))).is_some_and(Value::is_null);
        let config = serde_ignored::deserialize(json, |path| {
            let path = path.to_string();
            if !is_null(&path) {
                ignored.insert(path);
            }
        });
        let mut unread = lock(&self.unread_keys);
        *unread = Some(match unread.take() {
            Some(before) => before.intersection(&ignored).cloned().collect(),
            None => ignored,
        });
        config.map_err(|error| Error::Msg(format!("config.json: {error}")))
    }

    /// The weights, in the model's dtype and on its device.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        let backend = Box::new(Reads(Arc::clone(&self.tensors)));
        VarBuilder::from_backend(backend, self.dtype, self.device.clone())
    }

    /// Names of the checkpoint's tensors that were not requested, sorted.
    pub fn unread_tensors(&self) -> Vec<String> {
        let read = lock(&self.tensors.read);
        let mut unread: Vec<String> =
            self.tensors.tensors.keys().filter(|name| !read.contains(*name)).cloned().collect();
        unread.sort();
        unread
    }

    /// Keys of `config.json` that have a value and no field in any config, sorted, nested keys joined by dots; `None` if none was read
    /// by [`Self::config`].
    pub fn unread_keys(&self) -> Option<Vec<String>> {
        lock(&self.unread_keys).as_ref().map(|keys| keys.iter().cloned().collect())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn json(path: &Path) -> Result<Value> {
    let wrong = |error: &dyn std::fmt::Display| Error::Msg(format!("{}: {error}", path.display()));
    let bytes = bounds::file::read(path, CHECKPOINT_JSON_BYTES).map_err(|error| wrong(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| wrong(&error))
}

/// The files that the index names, or else every safetensors file, by name.
fn weight_files(folder: &Path) -> Result<BTreeSet<String>> {
    let index = folder.join(INDEX);
    if index.exists() {
        let named = json(&index)?;
        let files = named["weight_map"].as_object().into_iter().flat_map(serde_json::Map::values);
        return Ok(files.filter_map(Value::as_str).map(str::to_owned).collect());
    }
    let mut files = BTreeSet::new();
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if Path::new(&name).extension().is_some_and(|extension| extension == "safetensors") {
            files.insert(name);
        }
    }
    if files.is_empty() {
        return Err(Error::Msg(format!("{} holds no safetensors file", folder.display())));
    }
    Ok(files)
}

struct Tensors {
    tensors: HashMap<String, Tensor>,
    read: Mutex<BTreeSet<String>>,
}

/// Returns tensors and records which ones were requested.
struct Reads(Arc<Tensors>);

impl SimpleBackend for Reads {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() == &shape {
            return Ok(tensor);
        }
        let msg = format!("shape mismatch for {name}");
        Err(Error::UnexpectedShape { msg, expected: shape, got: tensor.shape().clone() })
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let tensor =
            self.0.tensors.get(name).ok_or_else(|| Error::CannotFindTensor { path: name.to_owned() })?;
        lock(&self.0.read).insert(name.to_owned());
        tensor.to_device(device)?.to_dtype(dtype)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.tensors.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Config {
        hidden_size: usize,
        rope: Rope,
    }

    #[derive(Deserialize)]
    struct Rope {
        theta: f64,
    }

    /// A folder with two shards, of which an index names the first alone.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let config =
            r#"{"hidden_size": 2, "eps": 1e-5, "bias": null, "rope": {"theta": 1.0, "factor": 2.0}}"#;
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        for name in ["a", "b"] {
            let tensor = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
            let tensors = [(format!("{name}.weight"), tensor.clone()), (format!("{name}.bias"), tensor)];
            let path = folder.path().join(format!("{name}.safetensors"));
            candle_core::safetensors::save(&tensors.into(), path).unwrap();
        }
        folder
    }

    fn open(folder: &tempfile::TempDir) -> Result<Checkpoint> {
        Checkpoint::open(folder.path(), DType::BF16, &Device::Cpu)
    }

    #[test]
    fn what_was_not_read_is_known() {
        let folder = folder();
        let checkpoint = open(&folder).unwrap();
        assert_eq!(checkpoint.unread_keys(), None);
        let config: Config = checkpoint.config().unwrap();
        assert!(config.hidden_size == 2 && config.rope.theta > 0.0);
        assert_eq!(checkpoint.unread_keys().unwrap(), ["eps", "rope.factor"]);
        let weights = checkpoint.var_builder();
        assert_eq!(weights.get(2, "a.weight").unwrap().dtype(), DType::BF16);
        assert_eq!(checkpoint.unread_tensors(), ["a.bias", "b.bias", "b.weight"]);
        assert!(weights.get(3, "a.weight").is_err() && weights.get(2, "c.weight").is_err());
    }

    #[test]
    fn an_index_names_the_files_that_count() {
        let folder = folder();
        let index = r#"{"weight_map": {"a.weight": "a.safetensors", "a.bias": "a.safetensors"}}"#;
        std::fs::write(folder.path().join(INDEX), index).unwrap();
        assert_eq!(open(&folder).unwrap().unread_tensors(), ["a.bias", "a.weight"]);
        std::fs::write(folder.path().join(INDEX), "{").unwrap();
        let error = open(&folder).err().unwrap().to_string();
        assert!(error.contains(INDEX), "{error}");
    }
}
