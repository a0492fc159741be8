//! Loading a checkpoint folder and running it.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::cache::Cache;
use crate::check::check_config;
use crate::config::ConfigReader;
use crate::cuda::{Dtype, Gpu, PassCounts, Replays, Space};
use crate::deviations::Deviation;
use crate::error::{Error, Result};
use crate::fused::{Host, Workspace};
use crate::inputs::Inputs;
use crate::model::{Backend, Model, Options, Task};
use crate::pass::{Pass, Probe};
use crate::registry::{self, Kind};
use crate::weights::Weights;
use crate::xs::Xs;

/// A checkpoint, ready to run.
pub struct Loaded {
    /// Captured CUDA graphs; the field is dropped before the buffers that they use.
    replays: Replays,
    model: Box<dyn Model>,
    model_type: &'static str,
    /// Which sequences the model takes.
    pub kind: Kind,
    options: Options,
    workspace: Option<Workspace>,
    /// Config keys that the architecture did not read and that may affect the result.
    pub unread_keys: Vec<String>,
    /// Tensors of the checkpoint that the architecture did not read.
    pub unread_tensors: Vec<String>,
    /// Mistakes that the eager backend makes on purpose; none after loading.
    pub deviations: Vec<Deviation>,
}

/// Loads a checkpoint folder: `config.json` and `model.safetensors`, single or sharded.
///
/// # Errors
/// If a file cannot be read; if the `model_type`, the head or a config value is unknown; or if a tensor is missing or
/// has another shape.
pub fn load(folder: &Path, options: &Options) -> Result<Loaded> {
    if !matches!(options.dtype, DType::F64 | DType::F32 | DType::BF16 | DType::F16) {
        return Err(Error::Unsupported(format!("models in dtype {}", options.dtype.as_str())));
    }
    if options.backend == Backend::Fused
        && !(matches!(options.dtype, DType::F32 | DType::BF16) && options.device.is_cpu())
    {
        return Err(Error::Unsupported(format!(
            "the fused backend in dtype {} on {:?}",
            options.dtype.as_str(),
            options.device
        )));
    }
    let workspace = (options.backend == Backend::Fused).then(|| Workspace::Host(Arc::new(Host::new())));
    load_in(folder, options, workspace)
}

/// As [`load`], in the fused backend on a GPU: F32, BF16 and F16.
///
/// # Errors
/// As [`load`], or if the GPU fails or has too little memory.
pub fn load_on_gpu(folder: &Path, dtype: DType, gpu: Arc<dyn Gpu>) -> Result<Loaded> {
    let Some(kernels) = Dtype::of(dtype) else {
        return Err(Error::Unsupported(format!("the fused backend in dtype {} on a GPU", dtype.as_str())));
    };
    // Candle tensors stay on the CPU.
    let options = Options { dtype, device: Device::Cpu, backend: Backend::Fused };
    load_in(folder, &options, Some(Workspace::Gpu(Arc::new(Space::new(gpu, kernels)))))
}

fn load_in(folder: &Path, options: &Options, workspace: Option<Workspace>) -> Result<Loaded> {
    let config = ConfigReader::open(&folder.join("config.json"))?;
    bounds::config::check(config.map())?;
    check_config(config.map())?;
    config.refuse_unless("quantization_config", &serde_json::Value::Null)?;
    let weights = Weights::open(folder, (options.dtype, options.device.clone()), workspace)?;
    let task = Task::read(&config)?;
    let architecture = registry::of(&config)?;
    let (model_type, kind) = (architecture.model_type, architecture.kind);
    if matches!(weights.workspace(), Some(Workspace::Gpu(_))) && !kind.is_one_text() {
        return Err(Error::Unsupported(format!("{model_type} in the fused backend on a GPU")));
    }
    let model = (architecture.build)(&config, &weights, task)?;
    Ok(Loaded {
        replays: Replays::default(),
        model,
        model_type,
        kind,
        options: options.clone(),
        workspace: weights.workspace().cloned(),
        unread_keys: config.unread_keys(),
        unread_tensors: weights.unread(),
        deviations: Vec::new(),
    })
}

impl Loaded {
    /// Bytes of the packed weights and of the buffers kept between forward passes; `None` in the eager backend.
    pub fn fused_bytes(&self) -> Option<(usize, usize)> {
        self.workspace.as_ref().map(|workspace| match workspace {
            Workspace::Host(host) => host.bytes(),
            Workspace::Gpu(space) => space.bytes(),
        })
    }

    /// How many forward passes the GPU ran as single launches, as graph captures and as graph launches; `None` if the
    /// model does not run on a GPU.
    pub fn pass_counts(&self) -> Option<PassCounts> {
        matches!(self.workspace, Some(Workspace::Gpu(_))).then(|| self.replays.counts())
    }

    /// A full-sequence forward pass without a cache. Returns logits for every position, `[batch, seq, vocab_size]`,
    /// or the output of the model's [`Task`](crate::Task).
    ///
    /// An encoder-decoder needs the decoder's tokens as `decoder_input_ids`, which its logits follow.
    ///
    /// # Errors
    /// If the inputs do not fit each other or the model.
    pub fn forward(&mut self, inputs: &Inputs) -> Result<Tensor> {
        self.forward_with(inputs, None, None)
    }

    /// A forward pass that continues a cache, is observed by a probe, or both.
    ///
    /// # Errors
    /// If the inputs do not fit each other, the model or the cache.
    pub fn forward_with<'a>(
        &mut self,
        inputs: &Inputs,
        cache: Option<&'a mut Cache>,
        probe: Option<&'a mut dyn Probe>,
    ) -> Result<Tensor> {
        self.run(inputs, cache, probe)?.into_tensor()
    }

    /// As [`Loaded::forward_with`] for a forward pass without a cache or a probe, with all outputs under transformers'
    /// names: the main one first.
    ///
    /// # Errors
    /// As [`Loaded::forward`].
    pub fn outputs(&mut self, inputs: &Inputs) -> Result<Vec<(&'static str, Tensor)>> {
        let (main, further) = self.run_pass(inputs, None, None)?;
        let mut outputs = vec![(self.model.output(), main.into_tensor()?)];
        outputs.extend(further);
        Ok(outputs)
    }

    /// As [`Loaded::forward_with`], but on a GPU the output stays in device memory and the forward pass may still be
    /// running when this returns. To time it, synchronise the device before and after this call. The output is valid
    /// until the next forward pass of the same shape.
    ///
    /// # Errors
    /// As [`Loaded::forward_with`].
    pub fn run<'a>(
        &mut self,
        inputs: &Inputs,
        cache: Option<&'a mut Cache>,
        probe: Option<&'a mut dyn Probe>,
    ) -> Result<Xs> {
        Ok(self.run_pass(inputs, cache, probe)?.0)
    }

    /// The main output and those beside it.
    fn run_pass<'a>(
        &mut self,
        inputs: &Inputs,
        cache: Option<&'a mut Cache>,
        probe: Option<&'a mut dyn Probe>,
    ) -> Result<(Xs, Vec<(&'static str, Tensor)>)> {
        if let Some(name) = inputs.tensors.keys().find(|name| !self.model.inputs().contains(&name.as_str())) {
            return Err(Error::Inputs(format!("{} takes no {name}", self.model_type)));
        }
        let main = match self.kind {
            kind if kind.follows_decoder() => Some(inputs.of_decoder()?),
            Kind::ImageTextDecoder | Kind::TextEncoder => Some(inputs.without_positions()),
            Kind::ImageEncoder => Some(inputs.of_images()?),
            _ => None,
        };
        let mut pass = Pass::new(
            main.as_ref().unwrap_or(inputs),
            self.options.dtype,
            &self.options.device,
            self.workspace.clone(),
            cache,
            probe,
        )?;
        if !self.kind.is_one_text() {
            pass.give(inputs.clone());
        }
        pass.deviate(&self.deviations);
        let output = match &self.workspace {
            Some(Workspace::Gpu(space)) => self.replays.run(space, &*self.model, &mut pass),
            _ => self.model.forward(&mut pass),
        };
        let output = match &self.workspace {
            // Deferred operations must not outlive the forward pass.
            Some(Workspace::Host(host)) => {
                let output = output.and_then(Xs::into_tensor).map(Xs::from);
                host.drop_deferred();
                output
            }
            _ => output,
        };
        let further = pass.take_outputs();
        let output = output?;
        pass.finish();
        Ok((output, further))
    }
}
