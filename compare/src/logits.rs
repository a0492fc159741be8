//! Logits of a variant, in a file or in memory, read one row (the `vocab_size` logits of one position) at a time.
//!
//! Rows are read with positioned reads, not through a memory mapping: mapped pages count as this process's memory, and
//! truncating a mapped file kills the process instead of failing the read.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::aligned::Aligned;
use super::{Dtype, Positions};
use bounds::limits::SAFETENSORS_HEADER_BYTES;
use half::slice::HalfFloatSliceExt;
use safetensors::Dtype as Stored;
use safetensors::tensor::Metadata;
use thiserror::Error;

/// Name of the logits tensor in the worker protocol.
const LOGITS: &str = "logits";

/// Error of opening or reading a logits or inputs file.
#[derive(Debug, Error)]
pub enum LogitsError {
    /// An I/O operation failed.
    #[error("{} cannot be read: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        cause: std::io::Error,
    },
    /// The file's content is invalid.
    #[error("{} {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The problem, as a predicate of the file: "is truncated: …".
        problem: String,
    },
}

impl LogitsError {
    /// An I/O operation failed.
    pub fn io(path: &Path, cause: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), cause }
    }

    /// The file's content is invalid; `problem` is a predicate of the file, such as "is truncated: …".
    pub fn invalid(path: &Path, problem: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), problem: problem.into() }
    }
}

/// Logits in memory.
#[derive(Clone, Debug)]
pub enum Values {
    /// float64 values.
    F64(Vec<f64>),
    /// float32 values, or values of a narrower dtype, which float32 holds exactly.
    F32(Vec<f32>),
}

/// Storage of the rows.
#[derive(Debug)]
enum Source {
    /// Contiguous in a file, starting at byte `offset`.
    File { file: File, offset: u64 },
    /// The values of all rows, or only of the rows `held`; `held` ascends and counts rows as `batch_row * seq + position`.
    Memory { values: Values, held: Option<Vec<usize>> },
}

/// An open logits file, or logits in memory: `[batch, seq, vocab_size]`, with `seq` = 1 for last positions only.
#[derive(Debug)]
pub struct Logits {
    path: PathBuf,
    source: Source,
    storage: Dtype,
    batch: usize,
    seq: usize,
    vocab_size: usize,
    positions: Positions,
    digest: Option<String>,
}

/// One row of logits: f64 values in `wide` for a float64 file, otherwise f32 values in `narrow`.
#[derive(Debug, Default)]
pub(super) struct LogitsRow {
    bytes: Aligned<u8>,
    pub(super) narrow: Aligned<f32>,
    pub(super) wide: Aligned<f64>,
    pub(super) is_wide: bool,
}

impl LogitsRow {
    /// The row's values, widened without rounding.
    pub(super) fn to_f64(&self) -> Vec<f64> {
        if self.is_wide { self.wide.to_vec() } else { self.narrow.iter().map(|&x| f64::from(x)).collect() }
    }
}

impl Logits {
    /// Opens the tensor `logits` of a safetensors file, a model's main output.
    ///
    /// # Errors
    /// The file cannot be read, is truncated, or holds no tensor `logits` of a floating dtype and a supported shape.
    pub fn open(path: &Path, positions: Positions) -> Result<Self, LogitsError> {
        Self::open_named(path, LOGITS, positions, <[usize]>::to_vec)
    }

    /// Opens the tensor `name` of a safetensors file as one position for each of its rows, all other axes joined.
    ///
    /// # Errors
    /// As [`Logits::open`].
    pub fn open_output(path: &Path, name: &str) -> Result<Self, LogitsError> {
        Self::open_named(path, name, Positions::All, |shape| match shape {
            [] => vec![1, 1, 1],
            [rows, rest @ ..] => vec![*rows, 1, rest.iter().product()],
        })
    }

    /// Opens the tensor `name` of a safetensors file, whose second axis is positions, all later axes joined.
    ///
    /// # Errors
    /// As [`Logits::open`].
    pub fn open_sequences(path: &Path, name: &str) -> Result<Self, LogitsError> {
        Self::open_named(path, name, Positions::All, |shape| match shape {
            [batch, seq, rest @ ..] => vec![*batch, *seq, rest.iter().product()],
            other => other.to_vec(),
        })
    }

    /// `axes` gives the shape `[batch, seq, width]` to read a stored shape as.
    fn open_named(
        path: &Path,
        name: &str,
        positions: Positions,
        axes: impl Fn(&[usize]) -> Vec<usize>,
    ) -> Result<Self, LogitsError> {
        let file = bounds::file::open(path).map_err(|error| LogitsError::io(path, error))?;
        let (header, start) = read_header(path, &file)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| LogitsError::invalid(path, format!("is not a safetensors file: {error}")))?;
        let info = metadata
            .info(name)
            .ok_or_else(|| LogitsError::invalid(path, format!("has no tensor named {name}")))?;
        let storage = match info.dtype {
            Stored::F64 => Dtype::F64,
            Stored::F32 => Dtype::F32,
            Stored::BF16 => Dtype::Bf16,
            Stored::F16 => Dtype::F16,
            other => {
                return Err(LogitsError::invalid(
                    path,
                    format!("holds {name} of dtype {other:?}, not a float"),
                ));
            }
        };
        let start = start + info.data_offsets.0 as u64;
        Self::new(path, file, start, storage, &axes(&info.shape), positions)
    }

    /// The same logits, whose file has this digest: those with equal digests are measured once.
    #[must_use]
    pub fn with_digest(self, digest: Option<String>) -> Self {
        Self { digest, ..self }
    }

    /// Whether both are known to hold the same values at the same positions.
    pub(super) fn is_known_to_equal(&self, other: &Self) -> bool {
        self.digest.is_some()
            && self.digest == other.digest
            && (self.shape(), self.positions) == (other.shape(), other.positions)
    }

    /// Opens logits that lie contiguously from byte `offset` on in a file of another format.
    ///
    /// # Errors
    /// The file cannot be read or is truncated, or the shape is not one of logits.
    pub fn at(
        path: &Path,
        offset: u64,
        storage: Dtype,
        shape: &[usize],
        positions: Positions,
    ) -> Result<Self, LogitsError> {
        let file = bounds::file::open(path).map_err(|error| LogitsError::io(path, error))?;
        Self::new(path, file, offset, storage, shape, positions)
    }

    /// Logits in memory, row after row; error messages call them `name`.
    ///
    /// # Errors
    /// The shape is not one of logits, or the values do not fill it.
    pub fn from_values(
        name: &str,
        values: Values,
        shape: &[usize],
        positions: Positions,
    ) -> Result<Self, LogitsError> {
        Self::in_memory(name, values, None, shape, positions)
    }

    /// Logits in memory of the given rows only: `rows[i]` = `batch_row * seq + position` is the index of the values' `i`-th
    /// row, ascending. Other rows cannot be read, so the mask of a comparison must be false there.
    ///
    /// # Errors
    /// The shape is not one of logits, the rows do not ascend or exceed it, or the number of values does not match.
    pub fn from_rows(
        name: &str,
        rows: Vec<usize>,
        values: Values,
        shape: &[usize],
    ) -> Result<Self, LogitsError> {
        Self::in_memory(name, values, Some(rows), shape, Positions::All)
    }

    fn in_memory(
        name: &str,
        values: Values,
        held: Option<Vec<usize>>,
        shape: &[usize],
        positions: Positions,
    ) -> Result<Self, LogitsError> {
        let path = Path::new(name);
        let (length, storage) = match &values {
            Values::F64(values) => (values.len(), Dtype::F64),
            Values::F32(values) => (values.len(), Dtype::F32),
        };
        let (batch, seq, vocab_size, positions) = layout(path, shape, positions)?;
        let most = batch.checked_mul(seq).and_then(|rows| rows.checked_mul(vocab_size).map(|_| rows));
        let problem = match (&held, most) {
            (_, None) => Some(format!("claims a shape {shape:?} beyond all memory")),
            (Some(held), Some(most))
                if !held.is_sorted_by(|one, next| one < next)
                    || held.last().is_some_and(|last| *last >= most) =>
            {
                Some(format!("holds rows that do not ascend below {most}"))
            }
            (held, Some(most)) => {
                let rows = held.as_ref().map_or(most, Vec::len);
                (length != rows * vocab_size)
                    .then(|| format!("holds {length} values, not those of {rows} rows of {vocab_size}"))
            }
        };
        if let Some(problem) = problem {
            return Err(LogitsError::invalid(path, problem));
        }
        let source = Source::Memory { values, held };
        Ok(Self { path: path.to_owned(), source, storage, batch, seq, vocab_size, positions, digest: None })
    }

    fn new(
        path: &Path,
        file: File,
        offset: u64,
        storage: Dtype,
        shape: &[usize],
        positions: Positions,
    ) -> Result<Self, LogitsError> {
        let (batch, seq, vocab_size, positions) = layout(path, shape, positions)?;
        let bytes = [batch, seq, vocab_size, storage.size()]
            .iter()
            .try_fold(1_u64, |product, &factor| product.checked_mul(factor as u64))
            .and_then(|bytes| bytes.checked_add(offset))
            .ok_or_else(|| {
                LogitsError::invalid(path, format!("claims a shape {shape:?} beyond all memory"))
            })?;
        let length = file.metadata().map_err(|error| LogitsError::io(path, error))?.len();
        if length < bytes {
            let problem = format!("is truncated: {length} bytes where its header promises {bytes}");
            return Err(LogitsError::invalid(path, problem));
        }
        let source = Source::File { file, offset };
        Ok(Self { path: path.to_owned(), source, storage, batch, seq, vocab_size, positions, digest: None })
    }

    /// Path of the file, or the name of logits in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `[batch, seq, vocab_size]`, `seq` = 1 for [`Positions::Last`].
    pub fn shape(&self) -> [usize; 3] {
        [self.batch, self.seq, self.vocab_size]
    }

    /// Which positions the file holds.
    pub fn positions(&self) -> Positions {
        self.positions
    }

    /// Element type in the file (not the dtype that the variant computed in).
    pub fn storage(&self) -> Dtype {
        self.storage
    }

    /// One logit of row `index` = `batch_row * seq + position`.
    ///
    /// # Errors
    /// The row or the token is not held, or the file cannot be read.
    pub fn value(&self, index: usize, token: usize) -> Result<f64, LogitsError> {
        if index >= self.batch * self.seq || token >= self.vocab_size {
            return Err(LogitsError::invalid(&self.path, format!("has no token {token} in row {index}")));
        }
        let mut row = LogitsRow::default();
        self.read_part(index, token..token + 1, &mut row)?;
        Ok(row.to_f64()[0])
    }

    /// All values of row `index` = `batch_row * seq + position`, widened without rounding.
    ///
    /// # Errors
    /// The row is not held, or the file cannot be read.
    pub fn row(&self, index: usize) -> Result<Vec<f64>, LogitsError> {
        if index >= self.batch * self.seq {
            return Err(LogitsError::invalid(&self.path, format!("has no row {index}")));
        }
        let mut row = LogitsRow::default();
        self.read_row(index, &mut row)?;
        Ok(row.to_f64())
    }

    /// Reads row `index` = `batch_row * seq + position` into `row`.
    pub(super) fn read_row(&self, index: usize, row: &mut LogitsRow) -> Result<(), LogitsError> {
        self.read_part(index, 0..self.vocab_size, row)
    }

    /// Like [`Logits::read_row`], but reads only the logits of `tokens`.
    pub(super) fn read_part(
        &self,
        index: usize,
        tokens: Range<usize>,
        row: &mut LogitsRow,
    ) -> Result<(), LogitsError> {
        let length = tokens.len();
        let (file, offset) = match &self.source {
            Source::File { file, offset } => (file, offset),
            Source::Memory { values, held } => {
                return self.copy_part(values, held.as_deref(), index, tokens, row);
            }
        };
        let at = offset + ((index * self.vocab_size + tokens.start) * self.storage.size()) as u64;
        let read = |bytes: &mut [u8]| {
            file.read_exact_at(bytes, at).map_err(|error| LogitsError::io(&self.path, error))
        };
        row.is_wide = self.storage == Dtype::F64;
        match self.storage {
            Dtype::F64 => {
                row.wide.resize(length);
                read(bytemuck::cast_slice_mut(&mut row.wide[..]))
            }
            Dtype::F32 => {
                row.narrow.resize(length);
                read(bytemuck::cast_slice_mut(&mut row.narrow[..]))
            }
            Dtype::Bf16 => {
                row.bytes.resize(length * 2);
                read(&mut row.bytes)?;
                row.narrow.resize(length);
                for (to, &bytes) in row.narrow.iter_mut().zip(row.bytes.as_chunks::<2>().0) {
                    *to = half::bf16::from_le_bytes(bytes).to_f32();
                }
                Ok(())
            }
            Dtype::F16 => {
                row.bytes.resize(length * 2);
                read(&mut row.bytes)?;
                let halves: Vec<half::f16> =
                    row.bytes.as_chunks::<2>().0.iter().map(|&b| half::f16::from_le_bytes(b)).collect();
                row.narrow.resize(length);
                halves.convert_to_f32_slice(&mut row.narrow);
                Ok(())
            }
        }
    }

    /// [`Logits::read_part`] for values in memory.
    fn copy_part(
        &self,
        values: &Values,
        held: Option<&[usize]>,
        index: usize,
        tokens: Range<usize>,
        row: &mut LogitsRow,
    ) -> Result<(), LogitsError> {
        let number = held.map_or(Ok(index), |held| held.binary_search(&index));
        let number = number.map_err(|_| {
            let at = (index / self.seq, index % self.seq);
            LogitsError::invalid(&self.path, format!("holds no logits of row {}, position {}", at.0, at.1))
        })?;
        let part = number * self.vocab_size + tokens.start..number * self.vocab_size + tokens.end;
        row.is_wide = matches!(values, Values::F64(_));
        match values {
            Values::F64(values) => {
                row.wide.resize(part.len());
                row.wide.copy_from_slice(&values[part]);
            }
            Values::F32(values) => {
                row.narrow.resize(part.len());
                row.narrow.copy_from_slice(&values[part]);
            }
        }
        Ok(())
    }
}

/// `(batch, seq, vocab_size, positions)` of a shape of logits; the sizes are not 0.
fn layout(
    path: &Path,
    shape: &[usize],
    positions: Positions,
) -> Result<(usize, usize, usize, Positions), LogitsError> {
    let (batch, seq, vocab_size, positions) = match *shape {
        [batch, seq, vocab_size] if positions == Positions::All || seq == 1 => {
            (batch, seq, vocab_size, positions)
        }
        [batch, vocab_size] => (batch, 1, vocab_size, Positions::Last),
        [vocab_size] => (1, 1, vocab_size, Positions::Last),
        _ => {
            let problem = format!("holds logits of shape {shape:?}, not [batch, seq, vocab_size]");
            return Err(LogitsError::invalid(path, problem));
        }
    };
    if batch == 0 || seq == 0 || vocab_size == 0 {
        return Err(LogitsError::invalid(path, format!("holds empty logits, shape {shape:?}")));
    }
    Ok((batch, seq, vocab_size, positions))
}

/// The JSON header of a safetensors file and the byte offset of its data.
fn read_header(path: &Path, mut file: &File) -> Result<(Vec<u8>, u64), LogitsError> {
    let mut length = [0; 8];
    let truncated = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => LogitsError::invalid(path, "is truncated within its header"),
        _ => LogitsError::io(path, error),
    };
    file.read_exact(&mut length).map_err(truncated)?;
    let json = u64::from_le_bytes(length);
    if SAFETENSORS_HEADER_BYTES.check(json).is_err() {
        return Err(LogitsError::invalid(
            path,
            format!("is not a safetensors file: a header of {json} bytes"),
        ));
    }
    let held = file.metadata().map_err(|error| LogitsError::io(path, error))?.len();
    if json > held.saturating_sub(8) {
        return Err(LogitsError::invalid(path, "is truncated within its header"));
    }
    let mut header = vec![0; json as usize];
    file.read_exact(&mut header).map_err(truncated)?;
    Ok((header, 8 + json))
}
