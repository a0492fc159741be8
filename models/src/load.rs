//! Loading a checkpoint folder and running it.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::cache::Cache;
use crate::config::ConfigReader;
use crate::cuda::{Dtype, Gpu, PassCounts, Space};
use crate::error::{Error, Result};
use crate::fused::{Host, Workspace};
use crate::pass::{Inputs, Pass, Probe, Xs};
use crate::registry;
use crate::weights::Weights;

/// How the layers compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Tensor operations one by one, with the semantics of transformers' eager attention.
    Eager,
    /// The same mathematics with packed weights and fused kernels: F32 and BF16 on the CPU, and with [`load_on_gpu`]
    /// also F16. An operation that has no fused form yet runs as in the eager form.
    Fused,
}

/// In what form, dtype and place a checkpoint is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// dtype of weights and activations: F64, F32, BF16 or F16.
    ///
    /// In F64 everything is in F64, also what transformers computes in F32 whatever the model's dtype
    /// (norms, softmax, rope tables): an oracle that rounds to F32 on the way would be none.
    pub dtype: DType,
    /// Where to compute.
    pub device: Device,
    /// How the layers compute.
    pub form: Form,
}

/// What the model ends in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Logits of the next token, `[batch, seq, vocab_size]`.
    CausalLm,
    /// Logits of the masked token, `[batch, seq, vocab_size]`.
    MaskedLm,
    /// Logits of a label, `[batch, num_labels]`.
    SequenceClassification,
    /// Hidden states, `[batch, seq, hidden_size]`.
    HiddenStates,
}

impl Task {
    /// The head that `architectures` names; `None` where the config names none.
    fn read(config: &ConfigReader) -> Result<Option<Self>> {
        let Some(architectures) = config.optional_strs("architectures")? else {
            return Ok(None);
        };
        let Some(name) = architectures.first() else {
            return Ok(None);
        };
        let task = match name {
            _ if name.ends_with("ForCausalLM") || name.ends_with("LMHeadModel") => Self::CausalLm,
            _ if name.ends_with("ForMaskedLM") => Self::MaskedLm,
            _ if name.ends_with("ForSequenceClassification") => Self::SequenceClassification,
            _ if name.ends_with("Model") => Self::HiddenStates,
            _ => {
                return Err(Error::UnknownValue {
                    key: "architectures".to_owned(),
                    value: (*name).to_owned(),
                });
            }
        };
        Ok(Some(task))
    }
}

/// One architecture with its weights.
pub trait Model: Send + Sync {
    /// One pass over [`Pass::input_ids`]; what comes out depends on the [`Task`].
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn forward(&self, pass: &mut Pass) -> Result<Xs>;
}

/// A checkpoint, ready to run.
pub struct Loaded {
    model: Box<dyn Model>,
    options: Options,
    workspace: Option<Workspace>,
    /// Config keys that may mean something and that the architecture did not read.
    pub unread_keys: Vec<String>,
    /// Tensors of the checkpoint that the architecture did not read.
    pub unread_tensors: Vec<String>,
}

/// Loads a checkpoint folder: `config.json` and `model.safetensors`, single or sharded.
///
/// # Errors
/// If a file cannot be read, the `model_type`, head or a config value is unknown, or a tensor is
/// missing or of another shape.
pub fn load(folder: &Path, options: &Options) -> Result<Loaded> {
    if !matches!(options.dtype, DType::F64 | DType::F32 | DType::BF16 | DType::F16) {
        return Err(Error::Unsupported(format!("models in dtype {}", options.dtype.as_str())));
    }
    if options.form == Form::Fused
        && !(matches!(options.dtype, DType::F32 | DType::BF16) && options.device.is_cpu())
    {
        return Err(Error::Unsupported(format!(
            "the fused form in dtype {} on {:?}",
            options.dtype.as_str(),
            options.device
        )));
    }
    let workspace = (options.form == Form::Fused).then(|| Workspace::Host(Arc::new(Host::new())));
    load_in(folder, options, workspace)
}

/// As [`load`], in the fused form on a GPU: F32, BF16 and F16.
///
/// # Errors
/// As [`load`], or if the GPU fails or has too little memory.
pub fn load_on_gpu(folder: &Path, dtype: DType, gpu: Arc<dyn Gpu>) -> Result<Loaded> {
    let Some(kernels) = Dtype::of(dtype) else {
        return Err(Error::Unsupported(format!("the fused form in dtype {} on a GPU", dtype.as_str())));
    };
    // Whatever is a tensor stays on the CPU.
    let options = Options { dtype, device: Device::Cpu, form: Form::Fused };
    load_in(folder, &options, Some(Workspace::Gpu(Arc::new(Space::new(gpu, kernels)))))
}

fn load_in(folder: &Path, options: &Options, workspace: Option<Workspace>) -> Result<Loaded> {
    let config = ConfigReader::open(&folder.join("config.json"))?;
    config.refuse_unless("quantization_config", &serde_json::Value::Null)?;
    let weights = Weights::open(folder, options, workspace)?;
    let task = Task::read(&config)?;
    let model = registry::build(&config, &weights, task)?;
    Ok(Loaded {
        model,
        options: options.clone(),
        workspace: weights.workspace().cloned(),
        unread_keys: config.unread_keys(),
        unread_tensors: weights.unread(),
    })
}

impl Loaded {
    /// Bytes of the packed weights and of the buffers kept between passes; the fused form's.
    pub fn fused_bytes(&self) -> Option<(usize, usize)> {
        self.workspace.as_ref().map(|workspace| match workspace {
            Workspace::Host(host) => host.bytes(),
            Workspace::Gpu(space) => space.bytes(),
        })
    }

    /// How many passes the GPU ran one launch at a time, recorded and replayed; absent elsewhere.
    pub fn pass_counts(&self) -> Option<PassCounts> {
        match &self.workspace {
            Some(Workspace::Gpu(space)) => Some(space.pass_counts()),
            _ => None,
        }
    }

    /// One pass without a cache: logits of every position, `[batch, seq, vocab_size]`, or what the head gives.
    ///
    /// # Errors
    /// If the inputs do not fit each other or the model.
    pub fn forward(&mut self, inputs: &Inputs) -> Result<Tensor> {
        self.forward_with(inputs, None, None)
    }

    /// One pass that goes on from a cache, is looked on by a probe, or both.
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

    /// As [`Loaded::forward_with`], but a GPU's output stays there, and the pass may still be running: what the device
    /// does between two synchronisations around this is the pass. The output holds until the next pass of its shape.
    ///
    /// # Errors
    /// As [`Loaded::forward_with`].
    pub fn run<'a>(
        &mut self,
        inputs: &Inputs,
        cache: Option<&'a mut Cache>,
        probe: Option<&'a mut dyn Probe>,
    ) -> Result<Xs> {
        let mut pass = Pass::new(
            inputs,
            self.options.dtype,
            &self.options.device,
            self.workspace.clone(),
            cache,
            probe,
        )?;
        let output = match &self.workspace {
            Some(Workspace::Gpu(space)) => space.run(&*self.model, &mut pass),
            _ => self.model.forward(&mut pass),
        };
        let output = match &self.workspace {
            // Rows that are owed must not outlive the pass.
            Some(Workspace::Host(host)) => {
                let output = output.and_then(Xs::into_tensor).map(Xs::from);
                host.forget_jobs();
                output
            }
            _ => output,
        };
        if output.is_ok() {
            pass.finish();
        }
        output
    }
}
