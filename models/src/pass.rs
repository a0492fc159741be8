//! One forward pass: its inputs, the value that flows between layers, and who looks on.

use std::ops::Range;

use crate::cache::Cache;
use crate::cuda::{DevicePass, Shape};
use crate::error::{Error, Result};
use crate::fused::{Rows, Vectors, Workspace};
use candle_core::{DType, Device, IndexOp, Tensor};

/// What a pass is fed.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Token ids, `[batch, seq]`, u32.
    pub input_ids: Tensor,
    /// 1 for a real token and 0 for padding, `[batch, past + seq]`, any integer dtype; absent means no padding.
    pub attention_mask: Option<Tensor>,
    /// Positions, `[batch, seq]`, any integer dtype; absent means `past..past + seq` in every row,
    /// whatever the mask says (transformers 5.23.0, `LlamaModel.forward`).
    pub position_ids: Option<Tensor>,
}

impl Inputs {
    /// Inputs without padding.
    pub fn new(input_ids: Tensor) -> Self {
        Self { input_ids, attention_mask: None, position_ids: None }
    }
}

/// Looks on at every module boundary of a pass. Paths are transformers' module paths; below an attention module the
/// eager form also shows its steps `rope_q`, `rope_k` and `softmax`, whose input is the masked scores, each
/// `[batch, heads, seq, ..]`. Being looked on changes no number.
pub trait Probe {
    /// A module is about to run on `input`.
    fn enter(&mut self, path: &str, input: &Tensor);

    /// A module has run.
    fn leave(&mut self, path: &str, output: &Tensor);

    /// Feeds the module this tensor instead of its input; asked after [`Probe::enter`].
    fn replace_input(&mut self, _path: &str, _input: &Tensor) -> Option<Tensor> {
        None
    }
}

/// The value that flows between layers, `[batch, seq, features]`.
///
/// Model files pass it on and never look inside; layers know what form it has.
#[derive(Clone)]
pub struct Xs(Value);

/// What is inside.
#[derive(Clone)]
pub(crate) enum Value {
    /// The eager form's.
    Tensor(Tensor),
    /// The fused form's.
    Fused(Rows),
}

impl Xs {
    /// The value as a tensor; in the fused form a copy is made, once, and from a GPU it is downloaded.
    ///
    /// # Errors
    /// If a GPU fails.
    pub fn tensor(&self) -> Result<&Tensor> {
        match &self.0 {
            Value::Tensor(tensor) => Ok(tensor),
            Value::Fused(rows) => rows.tensor(),
        }
    }

    /// The value as a tensor, by value.
    ///
    /// # Errors
    /// If a GPU fails.
    pub fn into_tensor(self) -> Result<Tensor> {
        match self.0 {
            Value::Tensor(tensor) => Ok(tensor),
            Value::Fused(rows) => rows.into_tensor(),
        }
    }

    /// The value as a tensor for somebody who looks on: what is owed stays owed, and so is computed as it would be.
    fn looked_at(&self) -> Result<Tensor> {
        match &self.0 {
            Value::Tensor(tensor) => Ok(tensor.clone()),
            Value::Fused(rows) => rows.looked_at(),
        }
    }

    pub(crate) fn value(&self) -> &Value {
        &self.0
    }

    pub(crate) fn into_value(self) -> Value {
        self.0
    }

    pub(crate) fn from_value(value: Value) -> Self {
        Self(value)
    }
}

impl From<Tensor> for Xs {
    fn from(tensor: Tensor) -> Self {
        Self(Value::Tensor(tensor))
    }
}

/// Which keys are real, and where the new ones stand.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    /// From the first real one to the last, per row.
    pub(crate) ranges: &'a [Range<usize>],
    /// `[batch, past + seq]`, where padding lies inside a range.
    pub(crate) visible: Option<&'a [bool]>,
    /// Positions of the new tokens, `[batch, seq]`.
    pub(crate) positions: &'a [u32],
}

/// One forward pass.
pub struct Pass<'a> {
    input_ids: Tensor,
    batch: usize,
    seq: usize,
    past: usize,
    padding: Option<Vec<bool>>,
    has_holes: bool,
    vectors: Vectors,
    has_position_ids: bool,
    dtype: DType,
    workspace: Option<Workspace>,
    device: Option<DevicePass>,
    cache: Option<&'a mut Cache>,
    probe: Option<&'a mut dyn Probe>,
    /// Paths of the modules that are running, where there is a probe.
    running: Vec<String>,
    /// Inputs that the probe has replaced so far.
    replaced: usize,
}

impl<'a> Pass<'a> {
    /// Checks the inputs against each other and the cache.
    pub(crate) fn new(
        inputs: &Inputs,
        dtype: DType,
        device: &Device,
        workspace: Option<Workspace>,
        mut cache: Option<&'a mut Cache>,
        probe: Option<&'a mut dyn Probe>,
    ) -> Result<Self> {
        let (batch, seq) = inputs.input_ids.dims2()?;
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        if batch == 0 || seq == 0 {
            return Err(Error::Inputs("input_ids is empty".to_owned()));
        }
        if let Some(cached) = cache.as_ref().and_then(|cache| cache.batch())
            && cached != batch
        {
            return Err(Error::Inputs(format!("the cache holds {cached} rows and input_ids {batch}")));
        }
        let padding = match &inputs.attention_mask {
            Some(mask) => {
                expect_dims("attention_mask", mask, batch, past + seq)?;
                Some(integers(mask)?.into_iter().map(|n| n != 0).collect::<Vec<_>>())
            }
            None => None,
        };
        let mut vectors = match &workspace {
            Some(Workspace::Host(host)) => host.take_vectors(),
            _ => Vectors::default(),
        };
        let device_pass = match &workspace {
            Some(Workspace::Gpu(space)) => {
                if let Some(cache) = cache.as_deref_mut() {
                    cache.make_room(space, past + seq)?;
                }
                Some(DevicePass::new(space))
            }
            _ => None,
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
            input_ids: inputs.input_ids.to_dtype(DType::U32)?.to_device(device)?.contiguous()?,
            batch,
            seq,
            past,
            padding,
            has_holes,
            vectors,
            has_position_ids: inputs.position_ids.is_some(),
            dtype,
            workspace,
            device: device_pass,
            cache,
            probe,
            running: Vec::new(),
            replaced: 0,
        })
    }

    /// Token ids, `[batch, seq]`, u32.
    pub fn input_ids(&self) -> &Tensor {
        &self.input_ids
    }

    /// Rows.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// New tokens per row.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Tokens that the cache already holds, per row.
    pub fn past(&self) -> usize {
        self.past
    }

    /// `[batch, past + seq]`, false at padding; absent when there is none.
    pub fn padding(&self) -> Option<&[bool]> {
        self.padding.as_deref()
    }

    /// Positions of the new tokens, `[batch, seq]`.
    pub fn positions(&self) -> &[i64] {
        &self.vectors.positions
    }

    /// Whether [`Pass::positions`] are the caller's rather than the default.
    pub fn has_position_ids(&self) -> bool {
        self.has_position_ids
    }

    /// Whether the pass goes on from a cache, be it empty.
    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the pass computes.
    pub fn device(&self) -> &Device {
        self.input_ids.device()
    }

    /// Runs one module; a probe, where there is one, sees what goes in and what comes out.
    ///
    /// # Errors
    /// Whatever the module returns.
    pub fn module(
        &mut self,
        path: &str,
        xs: Xs,
        body: impl FnOnce(&mut Self, Xs) -> Result<Xs>,
    ) -> Result<Xs> {
        if self.probe.is_none() {
            return body(self, xs);
        }
        let xs = self.enter(path, &xs)?.unwrap_or(xs);
        self.running.push(path.to_owned());
        let out = body(self, xs)?;
        self.running.pop();
        self.leave(path, &out)?;
        Ok(out)
    }

    /// Runs one step of the module that is running, which transformers has no module for; a probe sees it under the
    /// module's path with its name.
    pub(crate) fn step(
        &mut self,
        name: &str,
        tensor: Tensor,
        body: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (true, Some(module)) = (self.probe.is_some(), self.running.last()) else {
            return body(&tensor);
        };
        let path = format!("{module}.{name}");
        self.module(&path, tensor.into(), |_, xs| Ok(body(xs.tensor()?)?.into()))?.into_tensor()
    }

    /// Shows the probe, where there is one, a module whose output came out of a computation that it shares with others;
    /// `again` is that computation, for another input.
    pub(crate) fn shared(
        &mut self,
        path: &str,
        xs: &Xs,
        out: Xs,
        again: impl FnOnce(&Xs) -> Result<Xs>,
    ) -> Result<Xs> {
        if self.probe.is_none() {
            return Ok(out);
        }
        let out = match self.enter(path, xs)? {
            Some(replaced) => again(&replaced)?,
            None => out,
        };
        self.leave(path, &out)?;
        Ok(out)
    }

    /// Whether a probe looks on.
    pub(crate) fn is_looked_on(&self) -> bool {
        self.probe.is_some()
    }

    /// How many inputs the probe has replaced so far.
    pub(crate) fn replaced(&self) -> usize {
        self.replaced
    }

    fn enter(&mut self, path: &str, xs: &Xs) -> Result<Option<Xs>> {
        let Some(probe) = self.probe.as_deref_mut() else { return Ok(None) };
        let input = xs.looked_at()?;
        probe.enter(path, &input);
        let replaced = probe.replace_input(path, &input);
        self.replaced += usize::from(replaced.is_some());
        Ok(replaced.map(Xs::from))
    }

    fn leave(&mut self, path: &str, out: &Xs) -> Result<()> {
        if let Some(probe) = self.probe.as_deref_mut() {
            probe.leave(path, &out.looked_at()?);
        }
        Ok(())
    }

    /// The fused form's buffers; absent in the eager form.
    pub(crate) fn workspace(&self) -> Option<Workspace> {
        self.workspace.clone()
    }

    /// The GPU's side of the pass.
    pub(crate) fn device_pass(&self) -> Result<&DevicePass> {
        self.device.as_ref().ok_or_else(|| Error::Gpu("a pass that is not on a GPU".to_owned()))
    }

    /// Forgets what layers have fed the GPU, to run them again.
    pub(crate) fn restart_device(&mut self, recording: bool) {
        if let Some(device) = &mut self.device {
            device.restart(recording);
        }
    }

    /// What a recording of this pass on a GPU would depend on.
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            batch: self.batch,
            seq: self.seq,
            has_padding: self.padding.is_some(),
            has_holes: self.has_holes,
            has_position_ids: self.has_position_ids,
            cache: self.cache.as_ref().map(|cache| (cache.id(), cache.slots())),
        }
    }

    /// Slots that attention may see: those of the cache, or as many as there are tokens.
    pub(crate) fn slots(&self) -> usize {
        self.cache.as_ref().map_or(0, |cache| cache.slots()).max(self.past + self.seq)
    }

    /// From the first real token to the last, per row.
    pub(crate) fn ranges(&self) -> &[Range<usize>] {
        &self.vectors.keys
    }

    /// Positions of the new tokens as rows of a table, `[batch, seq]`.
    pub(crate) fn rows(&self) -> &[u32] {
        &self.vectors.rows
    }

    /// `[batch, past + seq]`, false at padding, where padding lies between real tokens.
    pub(crate) fn holes(&self) -> Option<&[bool]> {
        if self.has_holes { self.padding.as_deref() } else { None }
    }

    /// The cache, if there is one.
    pub(crate) fn cache(&mut self) -> Option<&mut Cache> {
        self.cache.as_deref_mut()
    }

    /// What the fused form's attention asks of the pass: which keys are real, and the cache, if there is one.
    pub(crate) fn keys_and_cache(&mut self) -> (Keys<'_>, Option<&mut Cache>) {
        let visible = if self.has_holes { self.padding.as_deref() } else { None };
        let Vectors { keys: ranges, rows: positions, .. } = &self.vectors;
        (Keys { ranges, visible, positions }, self.cache.as_deref_mut())
    }

    /// Appends a layer's keys and values to the cache, if there is one, and returns all that it may attend to.
    pub(crate) fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        match self.cache.as_deref_mut() {
            Some(cache) => cache.append(layer, keys, values),
            None => Ok((keys, values)),
        }
    }

    /// Ends the pass: the cache, if there is one, takes in the new tokens.
    pub(crate) fn finish(self) {
        if let Some(cache) = self.cache {
            cache.advance(self.batch, self.seq);
        }
        if let Some(Workspace::Host(host)) = self.workspace {
            host.keep_vectors(self.vectors);
        }
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

/// Finds the real tokens of each row of `len`; whether padding lies inside a range.
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
