//! The tensors of a checkpoint, memory-mapped from safetensors files and read by name under a module path.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bounds::limits::CHECKPOINT_JSON_BYTES;
use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device, Shape, Tensor};
use safetensors::Dtype as Stored;

use crate::error::{Error, Result};
use crate::fused::{Float, Workspace};
use crate::lock::lock;
use crate::matrices::Matrices;

struct Files {
    tensors: MmapedSafetensors,
    matrices: Matrices,
    names: BTreeSet<String>,
    read: Mutex<BTreeSet<String>>,
    dtype: DType,
    device: Device,
    workspace: Option<Workspace>,
}

/// The checkpoint's tensors under one module path. Cloning is cheap.
#[derive(Clone)]
pub struct Weights {
    files: Arc<Files>,
    /// Path of the module in the model.
    path: String,
    /// Path of the module in the files.
    saved: String,
}

impl Weights {
    /// Maps `model.safetensors`, or the shards listed in `model.safetensors.index.json`; tensors are read in `dtype`
    /// on `device`.
    pub(crate) fn open(
        folder: &Path,
        (dtype, device): (DType, Device),
        workspace: Option<Workspace>,
    ) -> Result<Self> {
        let paths = shards(folder)?;
        // SAFETY: the map is only read; like every user of safetensors' mapping we rely on nobody
        // truncating the checkpoint's files while a model is loaded from them.
        #[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
        let tensors = unsafe { MmapedSafetensors::multi(&paths) }
            .map_err(|error| Error::Parse { path: folder.to_owned(), reason: error.to_string() })?;
        let mut names = BTreeSet::new();
        for (name, _) in tensors.tensors() {
            if names.contains(&name) {
                let reason = format!("two of its files hold tensor {name}");
                return Err(Error::Parse { path: folder.to_owned(), reason });
            }
            names.insert(name);
        }
        Ok(Self {
            files: Arc::new(Files {
                tensors,
                matrices: Matrices::open(&paths)?,
                names,
                read: Mutex::default(),
                dtype,
                device,
                workspace,
            }),
            path: String::new(),
            saved: String::new(),
        })
    }

    /// The weights of the submodule `name`: `weights.pp("self_attn").pp("q_proj")`.
    #[must_use]
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        let name = name.to_string();
        self.pp_as(&name, &name)
    }

    /// The weights of the module `name`, which older checkpoints call `old`.
    #[must_use]
    pub fn pp_or(&self, name: &str, old: &str) -> Self {
        self.pp_as(name, if self.has_module(old) { old } else { name })
    }

    /// The weights of a model's body: the module `name` if the model has a head, else the model itself. The
    /// checkpoint may have been saved with or without the head, as in transformers (5.23.0,
    /// `PreTrainedModel.base_model_prefix`).
    #[must_use]
    pub fn body(&self, name: &str, has_head: bool) -> Self {
        self.pp_as(if has_head { name } else { "" }, if self.has_module(name) { name } else { "" })
    }

    /// The weights of the module `name`, whose tensors are stored under `saved` in the files.
    #[must_use]
    pub fn pp_as(&self, name: &str, saved: &str) -> Self {
        Self { files: Arc::clone(&self.files), path: join(&self.path, name), saved: join(&self.saved, saved) }
    }

    /// Whether the files have tensors of the module `name`.
    pub(crate) fn has_module(&self, name: &str) -> bool {
        let prefix = format!("{}.", join(&self.saved, name));
        self.files.names.range(prefix.clone()..).next().is_some_and(|first| first.starts_with(&prefix))
    }

    /// The module path, for example `model.layers.3.self_attn`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The fused backend's buffers; `None` in the eager backend. A layer uses it to decide which backend to build.
    pub(crate) fn workspace(&self) -> Option<&Workspace> {
        self.files.workspace.as_ref()
    }

    /// The dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        self.files.dtype
    }

    /// The device of the weights.
    pub fn device(&self) -> &Device {
        &self.files.device
    }

    /// The tensor's name in the files; old checkpoints name a norm's parameters as `TensorFlow` does (transformers
    /// 5.23.0, `conversion_mapping.py`, "legacy").
    fn name(&self, name: &str) -> String {
        let name = join(&self.saved, name);
        let legacy = match name.strip_suffix("LayerNorm.weight") {
            Some(module) => Some(format!("{module}LayerNorm.gamma")),
            None => name.strip_suffix("LayerNorm.bias").map(|module| format!("{module}LayerNorm.beta")),
        };
        match legacy {
            Some(legacy) if self.files.names.contains(&legacy) => legacy,
            _ => name,
        }
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
        self.get_in(self.dtype(), name, shape)
    }

    /// A tensor of this module, in `dtype` and on the model's device.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub(crate) fn get_in(&self, dtype: DType, name: &str, shape: impl Into<Shape>) -> Result<Tensor> {
        let name = self.checked(name, shape)?;
        let tensor = self.files.tensors.load(&name, self.device())?.to_dtype(dtype)?;
        lock(&self.files.read).insert(name);
        Ok(tensor)
    }

    /// A vector of this module in F32, rounded to the model's dtype first.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        Ok(self.get(name, len)?.to_dtype(DType::F32)?.to_vec1()?)
    }

    /// Passes the rows of a matrix of this module, `[rows, columns]`, to `take` in blocks, each with the number of
    /// its first row, so that the whole matrix is never copied to memory.
    ///
    /// # Errors
    /// If it is missing, has another shape, or cannot be read.
    pub(crate) fn each_block<T: Float>(
        &self,
        name: &str,
        (rows, columns): (usize, usize),
        take: impl FnMut(usize, &[T]),
    ) -> Result<()> {
        let name = self.checked(name, (rows, columns))?;
        self.files.matrices.each_block(
            &name,
            self.files.tensors.get(&name)?.dtype(),
            (rows, columns),
            take,
        )?;
        lock(&self.files.read).insert(name);
        Ok(())
    }

    /// Checks that a tensor exists and has this shape, and returns its full name.
    fn checked(&self, name: &str, shape: impl Into<Shape>) -> Result<String> {
        let name = self.name(name);
        let shape: Shape = shape.into();
        if !self.files.names.contains(&name) {
            return Err(Error::MissingTensor { name });
        }
        let view = self.files.tensors.get(&name)?;
        let dtype = view.dtype();
        if matches!(dtype, Stored::BOOL | Stored::I8 | Stored::U8 | Stored::I16 | Stored::U16)
            || matches!(dtype, Stored::I32 | Stored::U32 | Stored::I64 | Stored::U64)
        {
            return Err(Error::IntegerTensor { name, dtype: format!("{dtype:?}") });
        }
        if view.shape() != shape.dims() {
            return Err(Error::ShapeMismatch {
                expected: shape.into_dims(),
                found: view.shape().to_vec(),
                name,
            });
        }
        Ok(name)
    }

    /// Whether the checkpoint has a tensor of this module in this shape: before memory of the shape is allocated, which the
    /// config alone determines.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub(crate) fn expect(&self, name: &str, shape: impl Into<Shape>) -> Result<()> {
        self.checked(name, shape).map(drop)
    }

    /// Tensors of the checkpoint that no module read.
    pub fn unread(&self) -> Vec<String> {
        let read = lock(&self.files.read);
        self.files.names.difference(&read).cloned().collect()
    }
}

fn join(path: &str, name: &str) -> String {
    match (path, name) {
        ("", name) => name.to_owned(),
        (path, "") => path.to_owned(),
        (path, name) => format!("{path}.{name}"),
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
    let bytes = bounds::file::read(&index, CHECKPOINT_JSON_BYTES)
        .map_err(|source| Error::Read { path: index.clone(), source })?;
    let json: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| parse_error(error.to_string()))?;
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
