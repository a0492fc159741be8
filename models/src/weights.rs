//! The tensors of a checkpoint, mapped from safetensors, read by name under a module path.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Shape, Tensor};

use crate::error::{Error, Result};
use crate::fused::Workspace;
use crate::load::{Form, Options};

struct Files {
    tensors: MmapedSafetensors,
    names: BTreeSet<String>,
    read: Mutex<BTreeSet<String>>,
    options: Options,
    workspace: Option<Arc<Workspace>>,
}

/// The checkpoint's tensors under one module path. Cloning is cheap.
#[derive(Clone)]
pub struct Weights {
    files: Arc<Files>,
    path: String,
}

impl Weights {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// If a file cannot be read or is no safetensors file.
    pub fn open(folder: &Path, options: &Options) -> Result<Self> {
        let paths = shards(folder)?;
        // SAFETY: the map is only read; like every user of safetensors' mapping we rely on nobody
        // truncating the checkpoint's files while a model is loaded from them.
        #[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
        let tensors = unsafe { MmapedSafetensors::multi(&paths) }
            .map_err(|error| Error::Parse { path: folder.to_owned(), reason: error.to_string() })?;
        let names = tensors.tensors().into_iter().map(|(name, _)| name).collect();
        Ok(Self {
            files: Arc::new(Files {
                tensors,
                names,
                read: Mutex::default(),
                options: options.clone(),
                workspace: (options.form == Form::Fused).then(|| Arc::new(Workspace::new())),
            }),
            path: String::new(),
        })
    }

    /// The weights one module further down: `weights.pp("self_attn").pp("q_proj")`.
    #[must_use]
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}.{name}", self.path) };
        Self { files: Arc::clone(&self.files), path }
    }

    /// The module path, `model.layers.3.self_attn`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The fused form's buffers; absent in the eager form, which is how a layer knows what to build.
    pub(crate) fn workspace(&self) -> Option<&Arc<Workspace>> {
        self.files.workspace.as_ref()
    }

    /// The dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        self.files.options.dtype
    }

    /// Where the weights live.
    pub fn device(&self) -> &Device {
        &self.files.options.device
    }

    fn name(&self, name: &str) -> String {
        self.pp(name).path
    }

    /// Whether the checkpoint has this tensor.
    pub fn has(&self, name: &str) -> bool {
        self.files.names.contains(&self.name(name))
    }

    /// A tensor of this module, in the model's dtype and on its device.
    ///
    /// # Errors
    /// If it is missing or has another shape.
    pub fn get(&self, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        let name = self.name(name);
        let shape: Shape = shape.into();
        if !self.files.names.contains(&name) {
            return Err(Error::MissingTensor { name });
        }
        let view = self.files.tensors.get(&name)?;
        if view.shape() != shape.dims() {
            return Err(Error::ShapeMismatch {
                expected: shape.into_dims(),
                found: view.shape().to_vec(),
                name,
            });
        }
        let tensor = self.files.tensors.load(&name, self.device())?.to_dtype(self.dtype())?;
        self.files.read.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
        Ok(tensor)
    }

    /// Tensors of the checkpoint that no module read.
    pub fn unread(&self) -> Vec<String> {
        let read = self.files.read.lock().unwrap_or_else(PoisonError::into_inner);
        self.files.names.difference(&read).cloned().collect()
    }
}

fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join("model.safetensors.index.json");
    let single = folder.join("model.safetensors");
    if single.exists() || !index.exists() {
        return std::fs::metadata(&single)
            .map(|_| vec![single.clone()])
            .map_err(|source| Error::Read { path: single, source });
    }
    let parse_error = |reason: String| Error::Parse { path: index.clone(), reason };
    let text =
        std::fs::read_to_string(&index).map_err(|source| Error::Read { path: index.clone(), source })?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| parse_error(error.to_string()))?;
    let map = json["weight_map"].as_object().ok_or_else(|| parse_error("it has no weight_map".to_owned()))?;
    let mut names = BTreeSet::new();
    for value in map.values() {
        let name = value
            .as_str()
            .filter(|name| !name.contains(['/', '\\']))
            .ok_or_else(|| parse_error(format!("{value} is no file name")))?;
        names.insert(name);
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
