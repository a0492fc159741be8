//! A recording: `recording.json` has the metadata, `recording.safetensors` the inputs and logits.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use bounds::limits::STORED_TENSOR_BYTES;
use candle_core::{Device, Tensor};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::surgery::{Given, Stage, Surgery};

/// Version of the two files; a reader refuses a newer one.
pub const SCHEMA_VERSION: u32 = 1;

const JSON: &str = "recording.json";
const TENSORS: &str = "recording.safetensors";

/// SHA-256 in hex of each of a checkpoint's files, by name.
pub type FileDigests = BTreeMap<String, String>;

/// Why a port cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("cannot {action} {}: {source}; `tfcheck record --out FOLDER` makes a recording", path.display())]
    Io {
        /// `read`, `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// A file is invalid.
    #[error("{} {problem}; record it anew with `tfcheck record`", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        problem: String,
    },
    /// The recording was written by a newer tfcheck.
    #[error("{} has schema version {found}, this tfcheck-port reads up to {SCHEMA_VERSION}; update it", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The shape or dtype of the port's logits does not match the recording.
    #[error("the port's logits {problem}")]
    Logits {
        /// The problem.
        problem: String,
    },
    /// The port gives no logits of an edited checkpoint that can be compared.
    #[error("on an edited checkpoint ({stage}): {problem}")]
    Edited {
        /// What the edits leave of the network.
        stage: String,
        /// The problem.
        problem: String,
    },
    /// The checkpoint is not the recorded one.
    #[error("{}: {problem}", folder.display())]
    Checkpoint {
        /// Its folder.
        folder: PathBuf,
        /// What differs, and the remedy.
        problem: String,
    },
}

/// The content of `recording.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// The checkpoint as written in the config, such as `synthetic:llama:tiny`.
    pub checkpoint: String,
    /// Seed of a synthetic checkpoint.
    pub seed: Option<u64>,
    /// The checkpoint's files.
    pub files: FileDigests,
    /// Batch size of the inputs.
    pub batch: usize,
    /// Sequence length, padding included.
    pub seq: usize,
    /// Number of logits per position.
    pub vocab_size: usize,
    /// Real positions of the inputs; the recording may hold fewer.
    pub real_positions: usize,
    /// The variant whose logits are recorded.
    pub reference: Reference,
    /// transformers' own error against the recorded logits in other dtypes: RMSE, in units of logits.
    pub reference_rmse: BTreeMap<String, f64>,
    /// Limits for a port, by its dtype.
    pub limits: BTreeMap<String, Limits>,
    /// Where the limits come from.
    pub limits_from: String,
    /// Version of the tfcheck that wrote the recording.
    pub tfcheck: String,
    /// SHA-256 in hex of `recording.safetensors`.
    pub tensors_sha256: String,
    /// Paths of the modules whose outputs are recorded, in the order of their calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules: Vec<String>,
    /// The edited checkpoints whose logits are recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub surgery: Option<Surgery>,
}

/// The recorded variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The variant's name, `5.23.0_eager_sdpa_f64`.
    pub variant: String,
    /// Its dtype: `f64`, or the most precise one that ran.
    pub dtype: String,
    /// Versions of the libraries that computed.
    pub libraries: BTreeMap<String, String>,
}

/// Limits for a port in one dtype.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Largest relative L2 over all positions.
    pub relative_l2: f64,
    /// Factor on `relative_l2` that a single position or token may reach.
    pub local_factor: f64,
    /// `tol` of dynamo's rule, in units of logits.
    pub dynamo: f64,
}

/// The content of `recording.safetensors`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tensors {
    /// Token ids, `[batch, seq]`.
    pub input_ids: Vec<i64>,
    /// 1 where a token is real, `[batch, seq]`.
    pub attention_mask: Vec<i64>,
    /// Each real token's position in its sequence, `[batch, seq]`.
    pub position_ids: Vec<i64>,
    /// Sequence index and position of each recorded vector of logits.
    pub places: Vec<[i64; 2]>,
    /// The recorded logits, `[places, vocab_size]`.
    pub logits: Vec<f64>,
    /// Outputs of modules, in the order of [`Recorded::modules`].
    pub modules: Vec<Module>,
    /// Logits of the edited checkpoints, in the order of [`Surgery::stages`], each `[places, tokens]`.
    pub surgery: Vec<Vec<f32>>,
}

/// The recorded output of one module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Module {
    /// Its path in transformers.
    pub path: String,
    /// `[places, width]`.
    pub values: Vec<f32>,
}

/// Values of a tensor with one vector for each position, `[batch, seq, width]`, and the width: those of `[batch * seq, …]`,
/// of `[batch, seq, …]`, or of `[batch, heads, seq, width]` with the heads side by side. `None` for other shapes.
pub fn by_position(values: Vec<f64>, shape: &[usize], batch: usize, seq: usize) -> Option<(Vec<f64>, usize)> {
    match *shape {
        [all, width] if all == batch * seq => Some((values, width)),
        [b, s, width] if (b, s) == (batch, seq) => Some((values, width)),
        [b, s, heads, width] if (b, s) == (batch, seq) && heads != seq => Some((values, heads * width)),
        [b, heads, s, width] if (b, s) == (batch, seq) && width != seq => {
            let mut turned = Vec::with_capacity(values.len());
            for row in 0..batch {
                for position in 0..seq {
                    for head in 0..heads {
                        let begin = ((row * heads + head) * seq + position) * width;
                        turned.extend_from_slice(values.get(begin..begin + width)?);
                    }
                }
            }
            Some((turned, heads * width))
        }
        _ => None,
    }
}

/// The inputs of a port, on the CPU.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Token ids, u32 `[batch, seq]`.
    pub input_ids: Tensor,
    /// 1 where a token is real and 0 where it is padding, u32 `[batch, seq]`.
    pub attention_mask: Tensor,
    /// The position of each token among the real tokens of its sequence, u32 `[batch, seq]`.
    pub position_ids: Tensor,
}

/// A recording, ready to compare ports with.
#[derive(Clone, Debug)]
pub struct Recording {
    pub(crate) folder: PathBuf,
    pub(crate) recorded: Recorded,
    pub(crate) tensors: Tensors,
    inputs: Inputs,
}

impl Recording {
    /// Reads the recording in `folder` and checks that the two files belong together.
    ///
    /// # Errors
    /// When a file is missing, damaged or newer than this crate.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let (json, file) = (folder.join(JSON), folder.join(TENSORS));
        let damaged = |path: &Path, problem: String| Error::Damaged { path: path.to_owned(), problem };
        let recorded: serde_json::Value = serde_json::from_slice(&read(&json)?)
            .map_err(|error| damaged(&json, format!("is no recording: {error}")))?;
        if let Some(found) =
            recorded["schema_version"].as_u64().filter(|found| *found > u64::from(SCHEMA_VERSION))
        {
            return Err(Error::Newer { path: json, found: found as u32 });
        }
        let recorded: Recorded = serde_json::from_value(recorded)
            .map_err(|error| damaged(&json, format!("is no recording: {error}")))?;
        if let Some(surgery) = &recorded.surgery {
            let shape = [recorded.batch, recorded.seq, recorded.vocab_size];
            surgery.check(shape).map_err(|problem| damaged(&json, problem))?;
        }
        let bytes = read(&file)?;
        if hex(&Sha256::digest(&bytes)) != recorded.tensors_sha256 {
            return Err(damaged(&file, "does not have the digest that recording.json states".into()));
        }
        let tensors = Tensors::read(&bytes, &recorded).map_err(|problem| damaged(&file, problem))?;
        let inputs = tensors
            .inputs(recorded.batch, recorded.seq)
            .map_err(|error| damaged(&file, format!("holds no inputs: {error}")))?;
        Ok(Self { folder: folder.to_owned(), recorded, tensors, inputs })
    }

    /// Writes a recording into `folder`, creating it if necessary; returns the number of bytes written.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(folder: &Path, recorded: &Recorded, tensors: &Tensors) -> Result<u64, Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { action: "write", path, source }
        };
        std::fs::create_dir_all(folder).map_err(io(folder))?;
        let (json, file) = (folder.join(JSON), folder.join(TENSORS));
        let bytes =
            tensors.bytes(recorded).map_err(|error| Error::Damaged { path: file.clone(), problem: error })?;
        let recorded = Recorded { tensors_sha256: hex(&Sha256::digest(&bytes)), ..recorded.clone() };
        let mut text = serde_json::to_vec_pretty(&recorded)
            .map_err(|error| Error::Damaged { path: json.clone(), problem: error.to_string() })?;
        text.push(b'\n');
        std::fs::write(&file, &bytes).map_err(io(&file))?;
        std::fs::write(&json, &text).map_err(io(&json))?;
        Ok((bytes.len() + text.len()) as u64)
    }

    /// The metadata.
    pub fn recorded(&self) -> &Recorded {
        &self.recorded
    }

    /// The recorded logits with their places, and the inputs as integers.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// The inputs for a port.
    pub fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// The inputs of a stage of surgery.
    pub(crate) fn inputs_of(&self, given: Given) -> candle_core::Result<Inputs> {
        let Inputs { input_ids, attention_mask, position_ids } = &self.inputs;
        Ok(match given {
            Given::Whole => self.inputs.clone(),
            Given::Together => Inputs { position_ids: position_ids.zeros_like()?, ..self.inputs.clone() },
            Given::One => {
                let one = |tensor: &Tensor| tensor.narrow(0, 0, 1)?.narrow(1, 0, 1)?.contiguous();
                Inputs {
                    input_ids: one(input_ids)?,
                    attention_mask: one(attention_mask)?.ones_like()?,
                    position_ids: one(position_ids)?.zeros_like()?,
                }
            }
        })
    }
}

impl Tensors {
    fn bytes(&self, recorded: &Recorded) -> Result<Vec<u8>, String> {
        let integers =
            |values: &[i64]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let logits: Vec<u8> = self.logits.iter().flat_map(|value| value.to_le_bytes()).collect();
        let grid = vec![recorded.batch, recorded.seq];
        let places = self.places.len();
        let mut parts = vec![
            ("input_ids".to_owned(), Dtype::I64, grid.clone(), integers(&self.input_ids)),
            ("attention_mask".to_owned(), Dtype::I64, grid.clone(), integers(&self.attention_mask)),
            ("position_ids".to_owned(), Dtype::I64, grid, integers(&self.position_ids)),
            ("places".to_owned(), Dtype::I64, vec![places, 2], integers(self.places.as_flattened())),
            ("logits".to_owned(), Dtype::F64, vec![places, recorded.vocab_size], logits),
        ];
        for module in &self.modules {
            let width = module.values.len() / places.max(1);
            let bytes = module.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            parts.push((tensor_name(&module.path), Dtype::F32, vec![places, width], bytes));
        }
        for (stage, values) in recorded.surgery.iter().flat_map(|known| &known.stages).zip(&self.surgery) {
            let tokens = recorded.surgery.as_ref().map_or(1, |known| known.tokens.len());
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let shape = vec![values.len() / tokens.max(1), tokens];
            parts.push((stage_name(stage), Dtype::F32, shape, bytes));
        }
        let views = parts
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                Ok((name.as_str(), TensorView::new(*dtype, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
        views.and_then(|views| safetensors::serialize(views, None)).map_err(|error| error.to_string())
    }

    fn read(bytes: &[u8], recorded: &Recorded) -> Result<Self, String> {
        let file =
            SafeTensors::deserialize(bytes).map_err(|error| format!("is no safetensors file: {error}"))?;
        let words = |name: &str, dtype: Dtype, shape: &[usize]| -> Result<Vec<[u8; 8]>, String> {
            let view = file.tensor(name).map_err(|_| format!("has no tensor {name}"))?;
            if view.dtype() != dtype || view.shape() != shape {
                return Err(format!(
                    "holds a {name} of {:?} {:?}, not {dtype:?} {shape:?}",
                    view.dtype(),
                    view.shape()
                ));
            }
            Ok(view.data().as_chunks::<8>().0.to_vec())
        };
        let integers = |name: &str, shape: &[usize]| -> Result<Vec<i64>, String> {
            Ok(words(name, Dtype::I64, shape)?.into_iter().map(i64::from_le_bytes).collect())
        };
        let grid = [recorded.batch, recorded.seq];
        let count =
            file.tensor("places").map_err(|_| "has no tensor places")?.shape().first().copied().unwrap_or(0);
        let places = integers("places", &[count, 2])?;
        let places: Vec<[i64; 2]> = places.as_chunks::<2>().0.to_vec();
        let is_inside = |[row, position]: &[i64; 2]| {
            (0..recorded.batch as i64).contains(row) && (0..recorded.seq as i64).contains(position)
        };
        if places.is_empty() || !places.iter().all(is_inside) {
            return Err("holds places outside its inputs, or none".into());
        }
        let logits = words("logits", Dtype::F64, &[count, recorded.vocab_size])?;
        let mut modules = Vec::new();
        for path in &recorded.modules {
            let name = tensor_name(path);
            let view = file.tensor(&name).map_err(|_| format!("has no tensor {name}"))?;
            let is_right = view.dtype() == Dtype::F32 && view.shape().first() == Some(&count);
            if !is_right || view.shape().len() != 2 {
                return Err(format!("holds a {name} of {:?} {:?}", view.dtype(), view.shape()));
            }
            let values = view.data().as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word));
            modules.push(Module { path: path.clone(), values: values.collect() });
        }
        let mut surgery = Vec::new();
        if let Some(known) = &recorded.surgery {
            for stage in &known.stages {
                let name = stage_name(stage);
                let view = file.tensor(&name).map_err(|_| format!("has no tensor {name}"))?;
                let shape = [known.places(stage).len(), known.tokens.len()];
                if view.dtype() != Dtype::F32 || view.shape() != shape {
                    return Err(format!(
                        "holds a {name} of {:?} {:?}, not F32 {shape:?}",
                        view.dtype(),
                        view.shape()
                    ));
                }
                let words = view.data().as_chunks::<4>().0.iter();
                surgery.push(words.map(|&word| f32::from_le_bytes(word)).collect());
            }
        }
        Ok(Self {
            input_ids: integers("input_ids", &grid)?,
            attention_mask: integers("attention_mask", &grid)?,
            position_ids: integers("position_ids", &grid)?,
            places,
            logits: logits.into_iter().map(f64::from_le_bytes).collect(),
            modules,
            surgery,
        })
    }

    fn inputs(&self, batch: usize, seq: usize) -> candle_core::Result<Inputs> {
        let tensor = |values: &[i64]| {
            let values: Vec<u32> = values.iter().map(|&value| value as u32).collect();
            Tensor::from_vec(values, (batch, seq), &Device::Cpu)
        };
        Ok(Inputs {
            input_ids: tensor(&self.input_ids)?,
            attention_mask: tensor(&self.attention_mask)?,
            position_ids: tensor(&self.position_ids)?,
        })
    }
}

/// The tensor that holds a module's output.
fn tensor_name(path: &str) -> String {
    format!("module:{path}")
}

/// The tensor that holds the logits of an edited checkpoint.
fn stage_name(stage: &Stage) -> String {
    format!("surgery:{stage}")
}

/// SHA-256 of a file, in hex.
///
/// # Errors
/// When it cannot be read.
pub fn file_sha256(path: &Path) -> Result<String, Error> {
    let io = |source| Error::Io { action: "read", path: path.to_owned(), source };
    let mut file = bounds::file::open(path).map_err(io)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(io)?;
        if read == 0 {
            return Ok(hex(&hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    bounds::file::read(path, STORED_TENSOR_BYTES).map_err(|source| Error::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}
