//! The synthetic checkpoints and their inputs.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{D, DType, Device, IndexOp, Tensor};
use models::cuda::{Emulator, Gpu, Order};
use models::synthetic::{Entry, catalogue, config, write};
use models::{Backend, Inputs, Kind, Loaded, Options, kind, load, load_on_gpu};

/// Sequence length: longer than the windows (8), and shorter than the contexts (32) past which rope frequencies depend on
/// the length of the forward pass, so that a chunked prefill equals a full-sequence forward pass.
pub(crate) const SEQ: usize = 14;
const LENGTHS: [usize; 2] = [14, 9];
/// Bound of the token ids; every synthetic checkpoint's vocabulary is larger.
const VOCAB: u32 = 280;

/// A checkpoint on disk.
pub(crate) struct Checkpoint {
    pub(crate) name: String,
    pub(crate) is_decoder: bool,
    pub(crate) is_classifier: bool,
    folder: tempfile::TempDir,
}

impl Checkpoint {
    fn new(entry: &Entry) -> Self {
        let folder = tempfile::tempdir().unwrap();
        write(entry.model_type, entry.variant, 0, folder.path()).unwrap();
        let config = config(entry.model_type, entry.variant).unwrap();
        let architecture = config["architectures"][0].as_str().unwrap();
        Self {
            name: format!("{}:{}", entry.model_type, entry.variant),
            is_decoder: kind(entry.model_type) == Some(Kind::Decoder),
            is_classifier: architecture.ends_with("ForSequenceClassification"),
            folder,
        }
    }

    /// All small checkpoints of models of one text (the fused backend has no others on a GPU), except the llama with a
    /// larger vocabulary, on which the emulator is slow.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let is_small = |entry: &&Entry| {
            !entry.bench && entry.is_one_text() && (entry.model_type, entry.variant) != ("llama", "")
        };
        catalogue().iter().filter(is_small).map(Self::new)
    }

    pub(crate) fn of(model_type: &str, variant: &str) -> Self {
        let entry =
            catalogue().iter().find(|entry| (entry.model_type, entry.variant) == (model_type, variant));
        Self::new(entry.unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn on_cpu(&self, dtype: DType, backend: Backend) -> Loaded {
        load(self.path(), &Options { dtype, device: Device::Cpu, backend }).unwrap()
    }

    /// The oracle: the eager backend in float64.
    pub(crate) fn exact(&self) -> Loaded {
        self.on_cpu(DType::F64, Backend::Eager)
    }

    pub(crate) fn on_gpu(&self, dtype: DType) -> Loaded {
        self.on(dtype, Emulator::start(Order::Forward))
    }

    pub(crate) fn on(&self, dtype: DType, gpu: Arc<dyn Gpu>) -> Loaded {
        load_on_gpu(self.path(), dtype, gpu).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The cases of a full-sequence forward pass, with a batch size of 2 or 1.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let all = |_: usize, _: usize| true;
        let mut cases = vec![
            self.padded(),
            self.case("padded on the right", 1, |row, column| column < LENGTHS[row]),
            self.case("with holes", 2, |row, column| column == 0 || (column * 7 + row) % 5 != 0),
            self.case("without padding", 3, all),
            self.case("without padding", 4, all).row(1),
        ];
        // The fused backends do not support this case.
        cases.retain(|case| !(self.name == "modernbert:classifier-cls" && case.name == "padded on the left"));
        cases
    }

    /// The batch padded on the left.
    pub(crate) fn padded(&self) -> Case {
        self.case("padded on the left", 0, |row, column| column >= SEQ - LENGTHS[row])
    }

    /// A batch whose real tokens are where `is_real(row, column)`; `seed` chooses the token ids.
    pub(crate) fn case(&self, name: &'static str, seed: u32, is_real: impl Fn(usize, usize) -> bool) -> Case {
        let real: Vec<Vec<bool>> =
            (0..LENGTHS.len()).map(|row| (0..SEQ).map(|column| is_real(row, column)).collect()).collect();
        let token = |row: usize, column: usize| {
            ((seed * 7 + row as u32 + 3) * 7919 + column as u32 * 104_729) % VOCAB
        };
        let ids = (0..LENGTHS.len()).flat_map(|row| (0..SEQ).map(move |column| token(row, column)));
        let ids = Tensor::from_iter(ids, &Device::Cpu).unwrap().reshape((LENGTHS.len(), SEQ)).unwrap();
        Case { name, ids, real, has_positions: self.is_decoder }
    }
}

/// A batch of inputs.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    ids: Tensor,
    real: Vec<Vec<bool>>,
    /// False for encoders, which get no `position_ids`.
    has_positions: bool,
}

impl Case {
    /// The case with only one of its rows.
    fn row(self, row: usize) -> Self {
        Self { ids: self.ids.i(row..=row).unwrap(), real: vec![self.real[row].clone()], ..self }
    }

    pub(crate) fn inputs(&self) -> Inputs {
        self.columns(0..SEQ)
    }

    /// The inputs of some columns, as a continuation of the columns before.
    pub(crate) fn columns(&self, columns: Range<usize>) -> Inputs {
        let rows = self.real.len();
        let tensor =
            |values: Vec<i64>, len: usize| Tensor::from_vec(values, (rows, len), &Device::Cpu).unwrap();
        let mask = self.real.iter().flat_map(|row| row[..columns.end].iter().map(|real| i64::from(*real)));
        let positions = self.real.iter().flat_map(|row| {
            let before = |column: usize| row[..column].iter().filter(|real| **real).count() as i64;
            columns.clone().map(before)
        });
        let is_padded = self.real.iter().flatten().any(|real| !real);
        Inputs {
            attention_mask: is_padded.then(|| tensor(mask.collect(), columns.end)),
            position_ids: self.has_positions.then(|| tensor(positions.collect(), columns.len())),
            ..Inputs::new(self.ids.i((.., columns.clone())).unwrap().contiguous().unwrap())
        }
    }

    /// Squared norms of the difference to `exact` and of `exact`, per real token, or per row for a classifier.
    pub(crate) fn squares(&self, result: &Tensor, exact: &Tensor) -> Vec<[f64; 2]> {
        assert_eq!(result.dims(), exact.dims(), "{}", self.name);
        let sums = |xs: &Tensor| {
            xs.sqr().unwrap().sum(D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap()
        };
        let difference = (result.to_dtype(DType::F64).unwrap() - exact).unwrap();
        let pairs = sums(&difference).into_iter().zip(sums(exact)).map(<[f64; 2]>::from);
        if exact.rank() == 2 {
            return pairs.collect();
        }
        // Padded positions may be NaN.
        pairs.zip(self.real.iter().flatten()).filter(|(_, real)| **real).map(|(pair, _)| pair).collect()
    }

    /// Relative L2 over real tokens.
    pub(crate) fn relative(&self, result: &Tensor, exact: &Tensor) -> f64 {
        relative(&self.squares(result, exact))
    }
}

/// Relative L2 over all given tokens.
pub(crate) fn relative(squares: &[[f64; 2]]) -> f64 {
    let [difference, exact] = [0, 1].map(|of| squares.iter().map(|pair| pair[of]).sum::<f64>());
    (difference / exact).sqrt()
}
