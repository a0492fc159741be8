//! A batch of token ids, as both sides are given it, and further batches made from it.

use std::path::Path;

use bounds::limits::INPUTS_BYTES;
use reference::protocol::{ATTENTION_MASK, INPUT_IDS, POSITION_IDS};
use safetensors::tensor::SafeTensors;

use super::DiagnoseError;
use crate::spec::inputs::{self, Inputs};

/// A batch: token ids, mask and positions, each `[batch, seq]`, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Batch size.
    pub batch: usize,
    /// Sequence length, padding included.
    pub seq: usize,
    /// Token ids.
    pub input_ids: Vec<i64>,
    /// 1 at real tokens and 0 at padding.
    pub attention_mask: Vec<i64>,
    /// Position of each token.
    pub position_ids: Vec<i64>,
}

impl From<&Inputs> for Tokens {
    fn from(inputs: &Inputs) -> Self {
        Self {
            batch: inputs.batch,
            seq: inputs.seq,
            input_ids: inputs.input_ids.clone(),
            attention_mask: inputs.attention_mask.clone(),
            position_ids: inputs.position_ids.clone(),
        }
    }
}

impl Tokens {
    /// Whether a sequence has padding.
    pub(super) fn is_padded(&self) -> bool {
        self.attention_mask.contains(&0)
    }

    /// Other tokens of another length, drawn from `vocabulary` with `seed`. The sides and shares of padding stay, in the other
    /// order of rows: a mistake about padding may be one about a row.
    pub(super) fn other(&self, seq: usize, vocabulary: usize, seed: u64) -> Self {
        let mut state = seed;
        // Small ids are special tokens in most vocabularies, and padding counts as none.
        let lowest = vocabulary.min(16) / 2;
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (lowest + (state >> 33) as usize % (vocabulary - lowest).max(1)) as i64
        };
        let mut made = Self { seq, input_ids: vec![], attention_mask: vec![], position_ids: vec![], ..*self };
        for row in 0..self.batch {
            let row = self.batch - 1 - row;
            let mask = &self.attention_mask[row * self.seq..(row + 1) * self.seq];
            let missing = mask.iter().filter(|&&real| real == 0).count() * seq / self.seq;
            let missing = missing.min(seq - 1);
            let is_left = mask.first() == Some(&0);
            let pad = mask.iter().position(|&real| real == 0).map(|at| self.input_ids[row * self.seq + at]);
            let counts_padding = self.position_ids[row * self.seq..(row + 1) * self.seq]
                .iter()
                .enumerate()
                .all(|(at, &position)| position == at as i64);
            let mut position = 0;
            for at in 0..seq {
                let is_real = if is_left { at >= missing } else { at < seq - missing };
                made.input_ids.push(if is_real { draw() } else { pad.unwrap_or_default() });
                made.attention_mask.push(i64::from(is_real));
                made.position_ids.push(match (counts_padding, is_real) {
                    (true, _) => at as i64,
                    (false, true) => position,
                    (false, false) => 0,
                });
                position += i64::from(is_real);
            }
        }
        made
    }

    /// The first `seq` positions of one row.
    pub(super) fn part(&self, row: usize, seq: usize) -> Self {
        let at = row * self.seq..row * self.seq + seq;
        Self {
            batch: 1,
            seq,
            input_ids: self.input_ids[at.clone()].to_vec(),
            attention_mask: self.attention_mask[at.clone()].to_vec(),
            position_ids: self.position_ids[at].to_vec(),
        }
    }

    /// `1 × 40 tokens`.
    pub(super) fn words(&self) -> String {
        let padded = if self.is_padded() { ", padded" } else { "" };
        format!("{} × {} tokens{padded}", self.batch, self.seq)
    }

    /// Writes the file that workers read.
    pub(super) fn write(&self, path: &Path) -> Result<(), DiagnoseError> {
        let tokens = inputs::Tokens {
            shape: (self.batch, self.seq),
            input_ids: &self.input_ids,
            attention_mask: Some(&self.attention_mask),
            position_ids: &self.position_ids,
        };
        tokens
            .write(path, &inputs::Tensors::new())
            .map_err(|error| DiagnoseError::io(path, std::io::Error::other(error)))
    }

    /// Reads such a file.
    pub(super) fn open(path: &Path) -> Result<Self, DiagnoseError> {
        let bytes =
            bounds::file::read(path, INPUTS_BYTES).map_err(|source| DiagnoseError::io(path, source))?;
        let file =
            SafeTensors::deserialize(&bytes).map_err(|error| DiagnoseError::checkpoint(path, &error))?;
        let read = |name: &str| {
            let view = file.tensor(name).map_err(|error| DiagnoseError::checkpoint(path, &error))?;
            let &[batch, seq] = view.shape() else {
                return Err(DiagnoseError::checkpoint(path, &"no batch of sequences"));
            };
            let values =
                view.data().as_chunks::<8>().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect();
            Ok((batch, seq, values))
        };
        let (batch, seq, input_ids) = read(INPUT_IDS)?;
        let (attention_mask, position_ids) = (read(ATTENTION_MASK)?.2, read(POSITION_IDS)?.2);
        Ok(Self { batch, seq, input_ids, attention_mask, position_ids })
    }

    /// Which positions are compared.
    pub(super) fn mask(&self) -> compare::mask::Mask {
        let real = self.attention_mask.iter().map(|&real| real != 0).collect();
        compare::mask::Mask::new(self.batch, self.seq, real)
            .unwrap_or_else(|| compare::mask::Mask::all_real(self.batch, self.seq))
    }
}
