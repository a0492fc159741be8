//! One forward pass: its inputs, its cache, and the probe that observes it.

use std::ops::Deref;

use candle_core::{DType, Device, Tensor};

use crate::cache::Cache;
use crate::cuda::DevicePass;
use crate::deviations::Deviation;
use crate::error::{Error, Result};
use crate::fused::Workspace;
use crate::inputs::{Inputs, Keys, PassInputs, Vectors};
use crate::xs::Xs;

/// Observes every module boundary of a forward pass. Paths are transformers' module paths. Below an attention module
/// the eager backend also has the steps `rope_q`, `rope_k` and `softmax` (whose input is the masked scores), each
/// `[batch, heads, seq, ..]`. Observing does not change any value.
pub trait Probe {
    /// A module is about to run on `input`.
    fn enter(&mut self, path: &str, input: &Tensor);

    /// A module has run.
    fn leave(&mut self, path: &str, output: &Tensor);

    /// The tensor that replaces the module's input, or `None` to keep the input; called after [`Probe::enter`].
    fn replace_input(&mut self, _path: &str, _input: &Tensor) -> Option<Tensor> {
        None
    }
}

/// Norms of queries and keys.
const QK_NORMS: &[&str] = &["q_norm", "k_norm", "q_layernorm", "k_layernorm"];
/// Norms before attention and MLP, where a layer has no others.
const BLOCK_NORMS: &[&str] = &["input_layernorm", "post_attention_layernorm", "ln_1", "ln_2"];

fn is_one_of(path: &str, names: &[&str]) -> bool {
    path.rsplit('.').next().is_some_and(|name| names.contains(&name))
}

/// A norm that a pass leaves out where the model has it, to apply it later.
pub(crate) trait LaterNorm {
    /// The normalised tensor, same shape.
    fn normed(&self, pass: &Pass, xs: &Tensor) -> Result<Tensor>;
}

/// The key of a captured CUDA graph: everything that determines the launches and their addresses, except the uploaded
/// inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    batch: usize,
    seq: usize,
    has_padding: bool,
    has_holes: bool,
    has_position_ids: bool,
    /// The cache's id, and its number of slots.
    cache: Option<(usize, usize)>,
}

/// One forward pass; it dereferences to its inputs.
pub struct Pass<'a> {
    /// The sequence that layers run over now; the output follows that with which the pass begins.
    inputs: PassInputs,
    /// The caller's inputs of a model that takes more than one text.
    given: Option<Inputs>,
    workspace: Option<Workspace>,
    device: Option<DevicePass>,
    cache: Option<&'a mut Cache>,
    probe: Option<&'a mut dyn Probe>,
    /// Paths of the modules that are running; only filled if there is a probe.
    running: Vec<String>,
    /// Inputs that the probe has replaced so far.
    replaced: usize,
    deviations: Vec<Deviation>,
    /// Norms that are applied later than the model has them, the last one first.
    later: Vec<Box<dyn LaterNorm>>,
    /// The output of the last norm before an attention or MLP, if residual additions are to begin there.
    normed: Option<Tensor>,
    /// The output of an attention that is added together with that of the MLP.
    waiting: Option<Xs>,
    /// Outputs beside the main one.
    outputs: Vec<(&'static str, Tensor)>,
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
        let (batch, seq) = inputs.dims()?;
        let past = cache.as_ref().map_or(0, |cache| cache.len());
        if let Some(cached) = cache.as_ref().and_then(|cache| cache.batch())
            && cached != batch
        {
            return Err(Error::Inputs(format!("the cache holds {cached} rows and input_ids {batch}")));
        }
        let (device_pass, vectors) = match &workspace {
            Some(Workspace::Gpu(space)) => {
                if let Some(cache) = cache.as_deref_mut() {
                    cache.make_room(space, past + seq)?;
                }
                (Some(DevicePass::new(space)), Vectors::default())
            }
            Some(Workspace::Host(host)) => (None, host.take_vectors()),
            None => (None, Vectors::default()),
        };
        let slots = cache.as_ref().map_or(0, |cache| cache.slots());
        Ok(Self {
            inputs: PassInputs::new(inputs, dtype, device, (past, slots), vectors)?,
            given: None,
            workspace,
            device: device_pass,
            cache,
            probe,
            running: Vec::new(),
            replaced: 0,
            deviations: Vec::new(),
            later: Vec::new(),
            normed: None,
            waiting: None,
            outputs: Vec::new(),
        })
    }

    /// Keeps the caller's inputs for [`Pass::named`], [`Pass::given_positions`] and [`Pass::encoder_tokens`].
    pub(crate) fn give(&mut self, inputs: Inputs) {
        self.given = Some(inputs);
    }

    fn given(&self) -> &Inputs {
        self.given.as_ref().expect("only a model that takes more than one text reads further inputs")
    }

    /// The caller's further input `name`, on the device of the forward pass.
    pub(crate) fn named(&self, name: &str) -> Result<Tensor> {
        Ok(self.given().named(name)?.to_device(self.device())?)
    }

    /// As [`Pass::named`], for an input that may be absent.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<Tensor>> {
        let given = self.given().tensors.get(name);
        Ok(given.map(|tensor| tensor.to_device(self.device())).transpose()?)
    }

    /// The caller's `position_ids`, for a model whose tokens have several positions each.
    pub(crate) fn given_positions(&self) -> Option<&Tensor> {
        self.given().position_ids.as_ref()
    }

    /// The tokens of an encoder-decoder's encoder, one sequence for each of the decoder's.
    pub(crate) fn encoder_tokens(&self) -> Result<PassInputs> {
        let given = self.given.as_ref().expect("only an encoder-decoder has tokens for its encoder");
        let tokens = PassInputs::new(given, self.dtype(), self.device(), (0, 0), Vectors::default())?;
        if tokens.batch() != self.batch() {
            let (encoder, decoder) = (tokens.batch(), self.batch());
            return Err(Error::Inputs(format!(
                "input_ids has {encoder} rows and decoder_input_ids {decoder}"
            )));
        }
        Ok(tokens)
    }

    /// Runs `body` over another sequence, without a cache, and returns its result and that sequence.
    pub(crate) fn over<T>(
        &mut self,
        other: PassInputs,
        body: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<(T, PassInputs)> {
        let main = std::mem::replace(&mut self.inputs, other);
        let cache = self.cache.take();
        let result = body(self);
        self.cache = cache;
        let other = std::mem::replace(&mut self.inputs, main);
        Ok((result?, other))
    }

    /// Returns `xs` beside the main output, under transformers' name of it.
    ///
    /// # Errors
    /// If a GPU fails.
    pub fn output(&mut self, name: &'static str, xs: &Xs) -> Result<()> {
        self.outputs.push((name, xs.observed()?));
        Ok(())
    }

    /// The outputs beside the main one, in the order in which the model gave them.
    pub(crate) fn take_outputs(&mut self) -> Vec<(&'static str, Tensor)> {
        std::mem::take(&mut self.outputs)
    }

    /// Makes these mistakes on purpose.
    pub(crate) fn deviate(&mut self, deviations: &[Deviation]) {
        self.deviations.extend_from_slice(deviations);
    }

    /// Whether the forward pass makes this mistake on purpose.
    pub(crate) fn deviates(&self, deviation: Deviation) -> bool {
        self.deviations.contains(&deviation)
    }

    /// `xs`, rounded to bf16 and back if the forward pass makes this mistake on purpose.
    ///
    /// # Errors
    /// If the tensor cannot be converted.
    pub(crate) fn coarse(&self, deviation: Deviation, xs: Tensor) -> Result<Tensor> {
        if self.deviates(deviation) {
            return Ok(xs.to_dtype(DType::BF16)?.to_dtype(xs.dtype())?);
        }
        Ok(xs)
    }

    /// Whether the forward pass leaves out the norm at this path on purpose.
    pub(crate) fn lacks_norm(&self, path: &str) -> bool {
        let is_it =
            |known: &Deviation| matches!(known, Deviation::NormAbsent(name) if is_one_of(path, &[*name]));
        self.deviations.iter().any(is_it)
    }

    /// Whether the forward pass applies the norm at this path later, on purpose.
    pub(crate) fn postpones_norm(&self, path: &str) -> bool {
        self.deviates(Deviation::QkNormsAfterRope) && is_one_of(path, QK_NORMS)
            || self.deviates(Deviation::NormsAfterResidual) && is_one_of(path, BLOCK_NORMS)
    }

    /// The epsilon of the norm at this path: its own, unless the forward pass has another on purpose.
    pub(crate) fn eps_of(&self, path: &str, own: f64) -> f64 {
        let other = |known: &Deviation| match known {
            Deviation::QkNormEps(power) if is_one_of(path, QK_NORMS) => Some(10_f64.powi(*power)),
            _ => None,
        };
        self.deviations.iter().find_map(other).unwrap_or(own)
    }

    /// Keeps the output of the norm at this path if the next residual addition is to begin there, on purpose.
    pub(crate) fn keep_norm(&mut self, path: &str, normed: &Tensor) {
        if self.deviates(Deviation::ResidualFromNorm) && is_one_of(path, BLOCK_NORMS) {
            self.normed = Some(normed.clone());
        }
    }

    /// The norm's output at which a residual addition begins; none in an ordinary pass.
    pub(crate) fn kept_norm(&mut self) -> Option<Tensor> {
        self.normed.take()
    }

    /// What a residual addition adds: `h`; if attention and MLP are to be parallel on purpose, nothing after the attention and
    /// both after the MLP.
    ///
    /// # Errors
    /// If the two cannot be added.
    pub(crate) fn parallel(&mut self, h: Xs) -> Result<Option<Xs>> {
        if !self.deviates(Deviation::ResidualParallel) {
            return Ok(Some(h));
        }
        let Some(first) = self.waiting.take() else {
            self.waiting = Some(h);
            return Ok(None);
        };
        Ok(Some((first.into_tensor()? + h.into_tensor()?)?.into()))
    }

    pub(crate) fn postpone_norm(&mut self, norm: Box<dyn LaterNorm>) {
        self.later.push(norm);
    }

    /// The norm that was postponed last; none in an ordinary pass.
    pub(crate) fn postponed_norm(&mut self) -> Option<Box<dyn LaterNorm>> {
        self.later.pop()
    }

    /// Whether the forward pass has a cache, even an empty one.
    pub fn has_cache(&self) -> bool {
        self.cache.is_some()
    }

    /// Runs one module; a probe, if there is one, observes its input and output.
    ///
    /// # Errors
    /// The error of the module.
    pub fn module(
        &mut self,
        path: &str,
        xs: Xs,
        body: impl FnOnce(&mut Self, Xs) -> Result<Xs>,
    ) -> Result<Xs> {
        // A part that is the whole model is no module of it.
        if self.probe.is_none() || path.is_empty() {
            return body(self, xs);
        }
        let xs = self.enter(path, &xs)?.unwrap_or(xs);
        self.running.push(path.to_owned());
        let out = body(self, xs)?;
        self.running.pop();
        self.leave(path, &out)?;
        Ok(out)
    }

    /// Runs one step of the module that is running, for which transformers has no module; a probe observes it under the
    /// module's path followed by `name`.
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

    /// Lets the probe, if there is one, observe a module whose output came from a computation that it shares with others;
    /// `again` repeats that computation for another input.
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

    /// Whether there is a probe.
    pub(crate) fn is_observed(&self) -> bool {
        self.probe.is_some()
    }

    /// How many inputs the probe has replaced so far.
    pub(crate) fn replaced(&self) -> usize {
        self.replaced
    }

    fn enter(&mut self, path: &str, xs: &Xs) -> Result<Option<Xs>> {
        let Some(probe) = self.probe.as_deref_mut() else { return Ok(None) };
        let input = xs.observed()?;
        probe.enter(path, &input);
        let replaced = probe.replace_input(path, &input);
        self.replaced += usize::from(replaced.is_some());
        Ok(replaced.map(Xs::from))
    }

    fn leave(&mut self, path: &str, out: &Xs) -> Result<()> {
        if let Some(probe) = self.probe.as_deref_mut() {
            probe.leave(path, &out.observed()?);
        }
        Ok(())
    }

    /// The fused backend's buffers; absent in the eager backend.
    pub(crate) fn workspace(&self) -> Option<Workspace> {
        self.workspace.clone()
    }

    /// The state of the forward pass on the GPU.
    pub(crate) fn device_pass(&self) -> Result<&DevicePass> {
        self.device.as_ref().ok_or_else(|| Error::Gpu("a pass that is not on a GPU".to_owned()))
    }

    /// Drops the inputs that layers have uploaded for this forward pass, so that the layers can run again.
    pub(crate) fn restart_device(&mut self, recording: bool) {
        if let Some(device) = &mut self.device {
            device.restart(recording);
        }
    }

    /// The key of a captured CUDA graph of this forward pass.
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            batch: self.batch(),
            seq: self.seq(),
            has_padding: self.padding().is_some(),
            has_holes: self.inputs.has_holes(),
            has_position_ids: self.has_position_ids(),
            cache: self.cache.as_ref().map(|cache| (cache.id(), cache.slots())),
        }
    }

    /// The cache, if there is one.
    pub(crate) fn cache(&mut self) -> Option<&mut Cache> {
        self.cache.as_deref_mut()
    }

    /// The keys that are not padding, and the cache, if there is one.
    pub(crate) fn keys_and_cache(&mut self) -> (Keys<'_>, Option<&mut Cache>) {
        (self.inputs.keys(), self.cache.as_deref_mut())
    }

    /// Appends a layer's keys and values to the cache, if there is one, and returns all keys and values that the
    /// layer may attend to.
    pub(crate) fn append(&mut self, layer: usize, keys: Tensor, values: Tensor) -> Result<(Tensor, Tensor)> {
        match self.cache.as_deref_mut() {
            Some(cache) => cache.append(layer, keys, values),
            None => Ok((keys, values)),
        }
    }

    /// Ends the forward pass: the cache, if there is one, counts the new tokens.
    pub(crate) fn finish(self) {
        if let Some(cache) = self.cache {
            cache.advance(self.inputs.batch(), self.inputs.seq());
        }
        if let Some(Workspace::Host(host)) = self.workspace {
            host.keep_vectors(self.inputs.into_vectors());
        }
    }
}

impl Deref for Pass<'_> {
    type Target = PassInputs;

    fn deref(&self) -> &PassInputs {
        &self.inputs
    }
}
