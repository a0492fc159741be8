//! The inputs of a forward pass: as the caller gives them, and after validation.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Device, IndexOp, Tensor};

use crate::error::{Error, Result};

/// The caller's inputs of a forward pass.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Token ids, `[batch, seq]`, u32. A model of speech or images reads none; any tensor, such as the decoder's
    /// ids, may stand here.
    pub input_ids: Tensor,
    /// 1 for a real token and 0 for padding, `[batch, past + seq]`, any integer dtype; `None` means no padding.
    pub attention_mask: Option<Tensor>,
    /// Positions, `[batch, seq]`, any integer dtype; `None` means `past..past + seq` for every sequence, regardless
    /// of the mask (transformers 5.23.0, `LlamaModel.forward`). A model of images in texts counts them itself
    /// ([`Kind::ImageTextDecoder`](crate::Kind::ImageTextDecoder)) and also takes `[3, batch, seq]`: time, height, width.
    pub position_ids: Option<Tensor>,
    /// Further inputs under the names of transformers' `forward`, such as `decoder_input_ids` or `pixel_values`;
    /// empty for a model of one text.
    pub tensors: BTreeMap<String, Tensor>,
}

impl Inputs {
    /// Inputs without padding.
    pub fn new(input_ids: Tensor) -> Self {
        Self { input_ids, attention_mask: None, position_ids: None, tensors: BTreeMap::new() }
    }

    /// These inputs and a further one.
    #[must_use]
    pub fn with(mut self, name: &str, tensor: Tensor) -> Self {
        self.tensors.insert(name.to_owned(), tensor);
        self
    }

    /// The further input `name`.
    pub(crate) fn named(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::Inputs(format!("the model needs {name}")))
    }

    /// The decoder's tokens of an encoder-decoder, as the inputs of a decoder.
    pub(crate) fn of_decoder(&self) -> Result<Self> {
        if self.position_ids.is_some() {
            return Err(Error::Inputs("an encoder-decoder takes no position_ids".to_owned()));
        }
        Ok(Self {
            attention_mask: self.tensors.get("decoder_attention_mask").cloned(),
            ..Self::new(self.named("decoder_input_ids")?.clone())
        })
    }

    /// One placeholder token for each image, for a model that reads no tokens.
    pub(crate) fn of_images(&self) -> Result<Self> {
        let images = self.named("pixel_values")?.dims().first().copied().unwrap_or_default();
        if images == 0 {
            return Err(Error::Inputs("pixel_values is empty".to_owned()));
        }
        Ok(Self::new(Tensor::zeros((images, 1), DType::U32, &Device::Cpu)?))
    }

    /// These inputs without positions, for a model that counts them itself.
    pub(crate) fn without_positions(&self) -> Self {
        Self { position_ids: None, ..self.clone() }
    }

    /// Batch size and sequence length.
    pub(crate) fn dims(&self) -> Result<(usize, usize)> {
        let (batch, seq) = self.input_ids.dims2()?;
        if batch == 0 || seq == 0 {
            return Err(Error::Inputs("input_ids is empty".to_owned()));
        }
        Ok((batch, seq))
    }
}

/// The inputs of one forward pass, validated against each other, and the values derived from them.
pub struct PassInputs {
    /// `None` for positions that are no tokens, such as the patches of an image.
    input_ids: Option<Tensor>,
    device: Device,
    batch: usize,
    seq: usize,
    past: usize,
    /// Number of slots that attention covers: the cache's slots, or without a cache the number of tokens.
    slots: usize,
    padding: Option<Vec<bool>>,
    has_holes: bool,
    vectors: Vectors,
    has_position_ids: bool,
    dtype: DType,
}

/// The small vectors of a forward pass; the next forward pass reuses their memory.
#[derive(Default)]
pub(crate) struct Vectors {
    positions: Vec<i64>,
    rows: Vec<u32>,
    keys: Vec<Range<usize>>,
}

/// The keys that are not padding, and the positions of the new tokens.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    /// For each sequence, the range from the first real key to the last.
    pub(crate) ranges: &'a [Range<usize>],
    /// `[batch, past + seq]`, false at padding; `None` if no padding lies inside a range.
    pub(crate) visible: Option<&'a [bool]>,
    /// Positions of the new tokens, `[batch, seq]`.
    pub(crate) positions: &'a [u32],
}

impl PassInputs {
    /// Checks the inputs against each other; `past` tokens and `slots` slots are in the cache.
    pub(crate) fn new(
        inputs: &Inputs,
        dtype: DType,
        device: &Device,
        (past, slots): (usize, usize),
        mut vectors: Vectors,
    ) -> Result<Self> {
        let (batch, seq) = inputs.dims()?;
        let padding = match &inputs.attention_mask {
            Some(mask) => {
                expect_dims("attention_mask", mask, batch, past + seq)?;
                Some(integers(mask)?.into_iter().map(|n| n != 0).collect::<Vec<_>>())
            }
            None => None,
        };
        vectors.positions.clear();
        if let Some(positions) = &inputs.position_ids {
            expect_dims("position_ids", positions, batch, seq)?;
            vectors.positions.extend(integers(positions)?);
        } else {
            let row = past..past + seq;
            vectors.positions.extend((0..batch).flat_map(|_| row.clone().map(|n| n as i64)));
        }
        vectors.rows.clear();
        vectors.rows.extend(vectors.positions.iter().map(|position| *position as u32));
        let has_holes = find_keys(padding.as_deref(), batch, past + seq, &mut vectors.keys);
        Ok(Self {
            input_ids: Some(inputs.input_ids.to_dtype(DType::U32)?.to_device(device)?.contiguous()?),
            device: device.clone(),
            batch,
            seq,
            past,
            slots: slots.max(past + seq),
            padding,
            has_holes,
            vectors,
            has_position_ids: inputs.position_ids.is_some(),
            dtype,
        })
    }

    /// Positions that are no tokens, without padding: `batch` sequences of `seq`.
    pub(crate) fn without_tokens(batch: usize, seq: usize, dtype: DType, device: &Device) -> Self {
        let mut vectors = Vectors::default();
        vectors.positions.extend((0..batch).flat_map(|_| 0..seq as i64));
        vectors.rows.extend((0..batch).flat_map(|_| 0..seq as u32));
        find_keys(None, batch, seq, &mut vectors.keys);
        Self {
            input_ids: None,
            device: device.clone(),
            batch,
            seq,
            past: 0,
            slots: seq,
            padding: None,
            has_holes: false,
            vectors,
            has_position_ids: false,
            dtype,
        }
    }

    /// Token ids, `[batch, seq]`, u32.
    ///
    /// # Panics
    /// If the positions are no tokens; only the model that made such positions runs over them.
    pub fn input_ids(&self) -> &Tensor {
        self.input_ids.as_ref().expect("a model reads ids of its tokens only")
    }

    /// Batch size.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Sequence length: new tokens per sequence.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Tokens that the cache already holds, per sequence.
    pub fn past(&self) -> usize {
        self.past
    }

    /// `[batch, past + seq]`, false at padding; `None` if the caller gave no mask.
    pub fn padding(&self) -> Option<&[bool]> {
        self.padding.as_deref()
    }

    /// Positions of the new tokens, `[batch, seq]`.
    pub fn positions(&self) -> &[i64] {
        &self.vectors.positions
    }

    /// Whether [`PassInputs::positions`] are the caller's rather than the default.
    pub fn has_position_ids(&self) -> bool {
        self.has_position_ids
    }

    /// dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The device of the forward pass.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether padding lies between real tokens.
    pub(crate) fn has_holes(&self) -> bool {
        self.has_holes
    }

    /// Number of slots that attention covers: the cache's slots, or without a cache the number of tokens.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    /// The keys that are not padding, and the positions of the new tokens.
    pub(crate) fn keys(&self) -> Keys<'_> {
        let Vectors { keys: ranges, rows: positions, .. } = &self.vectors;
        Keys { ranges, visible: self.holes(), positions }
    }

    /// `[batch, past + seq]`, false at padding; `None` if no padding lies between real tokens.
    pub(crate) fn holes(&self) -> Option<&[bool]> {
        if self.has_holes { self.padding.as_deref() } else { None }
    }

    pub(crate) fn into_vectors(self) -> Vectors {
        self.vectors
    }
}

fn expect_dims(name: &str, tensor: &Tensor, batch: usize, len: usize) -> Result<()> {
    if tensor.dims() == [batch, len] {
        return Ok(());
    }
    Err(Error::Inputs(format!("{name} has shape {:?} where [{batch}, {len}] is needed", tensor.dims())))
}

fn integers(tensor: &Tensor) -> Result<Vec<i64>> {
    let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
    Ok(flat.to_dtype(DType::I64)?.i(..)?.to_vec1()?)
}

/// Writes the range of real tokens of each sequence of length `len` to `ranges`; returns whether padding lies inside
/// a range.
fn find_keys(padding: Option<&[bool]>, batch: usize, len: usize, ranges: &mut Vec<Range<usize>>) -> bool {
    ranges.clear();
    let Some(padding) = padding else {
        ranges.extend((0..batch).map(|_| 0..len));
        return false;
    };
    ranges.extend(padding.chunks_exact(len).map(|real| {
        let first = real.iter().position(|real| *real).unwrap_or(0);
        first..real.iter().rposition(|real| *real).map_or(first, |last| last + 1)
    }));
    let mut rows = padding.chunks_exact(len).zip(ranges.iter());
    rows.any(|(real, range)| !real[range.clone()].iter().all(|real| *real))
}
