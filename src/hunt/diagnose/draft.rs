//! A checkpoint and its inputs, as edits have changed them: what the trusted side is given to make a mistake.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bounds::limits::{CHECKPOINT_JSON_BYTES, STORED_TENSOR_BYTES};
use models::Deviation;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value};
use tfcheck_port::surgery::Edit;

use super::DiagnoseError;
use super::tokens::Tokens;

/// Weights above this size are not edited: every edit reads and writes all of them.
const MOST_BYTES: u64 = 1 << 30;

/// A tensor in float64, with the dtype that it is stored in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Values {
    pub(super) shape: Vec<usize>,
    pub(super) dtype: Dtype,
    pub(super) data: Vec<f64>,
}

impl Values {
    /// Columns of a matrix, or the length of a vector.
    pub(super) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Multiplies every value; stored in float64 from then on, so that the factor is exact to f32's rounding.
    pub(super) fn scale(&mut self, factor: f64) {
        self.data.iter_mut().for_each(|value| *value *= factor);
        self.dtype = Dtype::F64;
    }

    pub(super) fn fill(&mut self, filler: f64) {
        self.data.iter_mut().for_each(|value| *value = filler);
    }

    /// The tensor whose row `i` is this one's row `order[i]`; elements of a vector are its rows.
    pub(super) fn rows_reordered(&mut self, order: impl Iterator<Item = usize>) {
        let width = if self.shape.len() > 1 { self.data.len() / self.shape[0] } else { 1 };
        self.data = order.flat_map(|row| self.data[row * width..(row + 1) * width].to_vec()).collect();
    }

    /// The matrix whose column `i` is this one's column `order[i]`.
    pub(super) fn columns_reordered(&mut self, order: &[usize]) {
        let width = self.columns();
        self.data = self.data.chunks(width).flat_map(|row| order.iter().map(|&column| row[column])).collect();
    }
}

/// The checkpoint that drafts start from.
#[derive(Debug)]
pub(super) struct Original {
    folder: PathBuf,
    config: Map<String, Value>,
    files: Vec<PathBuf>,
    shapes: BTreeMap<String, Vec<usize>>,
    tensors: OnceLock<Option<BTreeMap<String, Arc<Values>>>>,
    is_editable: bool,
    /// Bytes of all files.
    bytes: u64,
    /// Whether the trusted side can make [`Deviation`]s.
    deviates: bool,
}

impl Original {
    /// Reads `config.json` and the headers of the weights of a checkpoint folder.
    pub(super) fn open(folder: &Path, deviates: bool) -> Result<Self, DiagnoseError> {
        let path = folder.join("config.json");
        let text = bounds::file::read(&path, CHECKPOINT_JSON_BYTES)
            .map_err(|source| DiagnoseError::io(&path, source))?;
        let config =
            serde_json::from_slice(&text).map_err(|error| DiagnoseError::checkpoint(&path, &error))?;
        let entries = std::fs::read_dir(folder).map_err(|source| DiagnoseError::io(folder, source))?;
        let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| path.extension().is_some_and(|extension| extension == "safetensors"));
        files.sort();
        let bytes: u64 = files.iter().filter_map(|path| Some(path.metadata().ok()?.len())).sum();
        let mut original = Self {
            folder: folder.to_owned(),
            config,
            files,
            shapes: BTreeMap::new(),
            tensors: OnceLock::new(),
            is_editable: bytes <= MOST_BYTES,
            bytes,
            deviates,
        };
        let shapes = original.tensors().map(|tensors| {
            let shape = |(name, values): (&String, &Arc<Values>)| (name.clone(), values.shape.clone());
            tensors.iter().map(shape).collect::<BTreeMap<_, _>>()
        });
        original.shapes = shapes.unwrap_or_default();
        Ok(original)
    }

    /// All tensors; `None` if they are too large to be edited, or of a dtype that tfcheck does not read.
    fn tensors(&self) -> Option<&BTreeMap<String, Arc<Values>>> {
        let read = || {
            let mut all = BTreeMap::new();
            for path in &self.files {
                let bytes = bounds::file::read(path, STORED_TENSOR_BYTES).ok()?;
                let file = SafeTensors::deserialize(&bytes).ok()?;
                for (name, view) in file.iter() {
                    all.insert(name.to_owned(), Arc::new(decoded(&view)?));
                }
            }
            Some(all)
        };
        self.tensors.get_or_init(|| self.is_editable.then(read).flatten()).as_ref()
    }
}

/// A changed copy of a checkpoint, with the changes to the inputs and to the logits that belong to it.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    original: Arc<Original>,
    pub(super) config: Map<String, Value>,
    /// Tensors that were changed or added.
    changed: BTreeMap<String, Arc<Values>>,
    /// Tensors that were taken out.
    removed: BTreeSet<String>,
    inputs: Vec<fn(&mut Tokens)>,
    outputs: Vec<fn(&mut [f64])>,
    deviations: Vec<Deviation>,
}

impl PartialEq for Draft {
    fn eq(&self, other: &Self) -> bool {
        let addresses = |draft: &Self| {
            let inputs = draft.inputs.iter().map(|edit| *edit as usize);
            inputs.chain(draft.outputs.iter().map(|edit| *edit as usize)).collect::<Vec<_>>()
        };
        self.has_the_files_of(other)
            && self.deviations == other.deviations
            && addresses(self) == addresses(other)
    }
}

impl Draft {
    pub(super) fn new(original: &Arc<Original>) -> Self {
        Self {
            config: original.config.clone(),
            original: Arc::clone(original),
            changed: BTreeMap::new(),
            removed: BTreeSet::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            deviations: Vec::new(),
        }
    }

    /// Whether the checkpoint's tensors can be edited.
    pub(super) fn is_editable(&self) -> bool {
        self.original.tensors().is_some()
    }

    /// Names of all tensors, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let added = self.changed.keys().filter(|name| !self.original.shapes.contains_key(*name));
        let all = self.original.shapes.keys().chain(added);
        all.filter(|name| !self.removed.contains(*name)).cloned().collect()
    }

    /// Takes out every tensor whose name `is_it`.
    pub(super) fn remove(&mut self, is_it: impl Fn(&str) -> bool) {
        let names = self.names();
        self.removed.extend(names.into_iter().filter(|name| is_it(name)));
    }

    /// Bytes of the checkpoint's weights.
    pub(super) fn bytes(&self) -> u64 {
        self.original.bytes
    }

    pub(super) fn has(&self, name: &str) -> bool {
        !self.removed.contains(name)
            && (self.changed.contains_key(name) || self.original.shapes.contains_key(name))
    }

    /// A tensor as it is now.
    pub(super) fn tensor(&self, name: &str) -> Option<&Values> {
        let own = || self.original.tensors()?.get(name);
        self.changed.get(name).or_else(own).map(AsRef::as_ref)
    }

    /// Changes a tensor, if the checkpoint has it; a change that leaves it as it was is none.
    pub(super) fn edit(&mut self, name: &str, edit: impl FnOnce(&mut Values)) {
        let Some(known) = self.tensor(name) else { return };
        let mut values = known.clone();
        edit(&mut values);
        if values.data != known.data || values.shape != known.shape {
            self.changed.insert(name.to_owned(), Arc::new(values));
        }
    }

    /// Changes every tensor whose name `is_it`.
    pub(super) fn edit_all(&mut self, is_it: impl Fn(&str) -> bool, edit: impl Fn(&mut Values)) {
        for name in self.names().into_iter().filter(|name| is_it(name)) {
            self.edit(&name, &edit);
        }
    }

    /// Applies an edit that a recording can hold.
    pub(super) fn apply(&mut self, edit: &Edit) {
        for fill in &edit.fills {
            self.edit(&fill.tensor, |values| {
                let shape = values.shape.clone();
                // Rows that a tensor lacks are left as they are, as is a tensor that the checkpoint lacks.
                let _ = fill.elements(&shape, |range| values.data[range].fill(fill.value));
            });
        }
        self.config.extend(edit.config.clone());
    }

    /// Adds or replaces a tensor.
    pub(super) fn put(&mut self, name: &str, values: Values) {
        if self.tensor(name) != Some(&values) {
            self.changed.insert(name.to_owned(), Arc::new(values));
        }
    }

    /// Gives two tensors of one shape each other's values.
    pub(super) fn swap(&mut self, one: &str, other: &str) {
        let (Some(a), Some(b)) = (self.tensor(one).cloned(), self.tensor(other).cloned()) else { return };
        if a.shape == b.shape {
            self.put(one, b);
            self.put(other, a);
        }
    }

    /// Has the inputs changed before the trusted side gets them.
    pub(super) fn change_inputs(&mut self, edit: fn(&mut Tokens)) {
        self.inputs.push(edit);
    }

    /// Has each position's logits changed after the trusted side computed them.
    pub(super) fn change_outputs(&mut self, edit: fn(&mut [f64])) {
        self.outputs.push(edit);
    }

    /// Has a native trusted side make this mistake.
    pub(super) fn deviate(&mut self, deviation: Deviation) {
        if self.original.deviates && !self.deviations.contains(&deviation) {
            self.deviations.push(deviation);
        }
    }

    /// Mistakes that the native trusted side makes.
    pub(super) fn deviations(&self) -> &[Deviation] {
        &self.deviations
    }

    /// A number of the config.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.config.get(key)?.as_f64()
    }

    /// A count of the config, under the first of its names that the config has.
    pub(super) fn count(&self, keys: &[&str]) -> Option<usize> {
        keys.iter().find_map(|key| Some(self.config.get(*key)?.as_u64()? as usize))
    }

    /// The text of a config key.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.config.get(key)?.as_str()
    }

    /// Replaces the value of a key that the config has.
    pub(super) fn replace(&mut self, key: &str, value: impl Into<Value>) {
        if let Some(known) = self.config.get_mut(key) {
            *known = value.into();
        }
    }

    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.config.insert(key.to_owned(), value.into());
    }

    /// The inputs as the trusted side gets them.
    pub(super) fn inputs(&self, tokens: &Tokens) -> Tokens {
        let mut tokens = tokens.clone();
        self.inputs.iter().for_each(|edit| edit(&mut tokens));
        tokens
    }

    /// Whether the logits are changed after the trusted side computed them.
    pub(super) fn changes_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// One position's logits as the mistake has them.
    pub(super) fn output(&self, row: &mut [f64]) {
        self.outputs.iter().for_each(|edit| edit(row));
    }

    /// Whether the folder of this draft would be that of `other`.
    pub(super) fn has_the_files_of(&self, other: &Self) -> bool {
        self.config == other.config && self.changed == other.changed && self.removed == other.removed
    }

    /// Writes the checkpoint as a folder. Weights that no edit changed are linked, not copied.
    pub(super) fn write(&self, folder: &Path) -> Result<(), DiagnoseError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| DiagnoseError::io(&path, source)
        };
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let config = folder.join("config.json");
        let text = Value::Object(self.config.clone()).to_string();
        std::fs::write(&config, text).map_err(io(&config))?;
        if self.changed.is_empty() && self.removed.is_empty() {
            let index = self.original.folder.join("model.safetensors.index.json");
            for file in self.original.files.iter().chain(index.is_file().then_some(&index)) {
                let target = folder.join(file.file_name().unwrap_or_default());
                let linked = std::fs::hard_link(file, &target).or_else(|_| symlink(file, &target));
                linked.map_err(io(&target))?;
            }
            return Ok(());
        }
        let path = folder.join("model.safetensors");
        let bytes: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = (self.names().into_iter())
            .filter_map(|name| {
                let values = self.tensor(&name)?;
                Some((name, values.dtype, values.shape.clone(), encoded(values)))
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let file = views
            .and_then(|views| safetensors::serialize(views, Some(metadata)))
            .map_err(|error| DiagnoseError::checkpoint(&path, &error))?;
        std::fs::write(&path, file).map_err(io(&path))
    }
}

/// The values of a tensor of floats; `None` for other dtypes.
pub(super) fn decoded(view: &TensorView) -> Option<Values> {
    let bytes = view.data();
    let data: Vec<f64> = match view.dtype() {
        Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b).into()).collect(),
        Dtype::BF16 => {
            bytes.as_chunks::<2>().0.iter().map(|&b| half::bf16::from_le_bytes(b).into()).collect()
        }
        _ => return None,
    };
    Some(Values { shape: view.shape().to_vec(), dtype: view.dtype(), data })
}

fn encoded(values: &Values) -> Vec<u8> {
    let data = values.data.iter();
    match values.dtype {
        Dtype::F16 => data.flat_map(|&value| half::f16::from_f64(value).to_le_bytes()).collect(),
        Dtype::BF16 => data.flat_map(|&value| half::bf16::from_f64(value).to_le_bytes()).collect(),
        Dtype::F32 => data.flat_map(|&value| (value as f32).to_le_bytes()).collect(),
        _ => data.flat_map(|value| value.to_le_bytes()).collect(),
    }
}
