//! The engine of tfcheck's own native models.

mod tokens;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use models::cuda::driver::Setting;
use models::{Backend, Cache, Loaded, Options};
use reference::protocol::{
    Capture, Captured, Failed, Forward, Forwarded, Generate, Generated, INPUT_IDS, Load, Mode, NewInputs,
    Output, POSITION_IDS, Positions, Ready, Replay, Replayed, TakenInputs, Trace,
};

use tfcheck_port::Probe;
use tfcheck_port::worker::{
    ChromeTrace, Engine, Feeder, Writer, dtype, element, exception, inputs, not_loaded, peak_resident_bytes,
    same, steps, unsupported, write_outputs,
};

use super::failure::{model_failure, tensor_failure};
use super::place::{Accelerator, Place, device};
use tokens::CachedTokens;

/// The engine that runs native models.
#[derive(Default)]
pub struct CandleEngine {
    /// Where to find the CUDA libraries.
    cuda: Setting,
    /// The GPU that was opened last; it stays open because opening one takes longer than most forward passes.
    accelerator: Option<Accelerator>,
    loaded: Option<(Loaded, models::Inputs, Place)>,
}

impl CandleEngine {
    /// An engine that opens GPUs with the setting `cuda`.
    pub fn new(cuda: Setting) -> Self {
        Self { cuda, ..Self::default() }
    }

    /// The GPU of this name; opened on first use.
    fn accelerator(&mut self, name: &str) -> Result<Accelerator, Failed> {
        if let Some(open) = self.accelerator.as_ref().filter(|open| open.is(name)) {
            return Ok(open.clone());
        }
        Ok(self.accelerator.insert(Accelerator::open(name, &self.cuda)?).clone())
    }
}

impl Engine for CandleEngine {
    fn load(&mut self, load: &Load) -> Result<Ready, Failed> {
        let start = Instant::now();
        let backend = match load.mode {
            Mode::Eager => Backend::Eager,
            Mode::Fused => Backend::Fused,
            Mode::Compiled | Mode::Frozen | Mode::ReduceOverhead | Mode::MaxAutotune => {
                return Err(unsupported("candle has no compiled mode; its modes are eager and fused"));
            }
        };
        // Free the GPU memory of the previous cell before loading.
        self.loaded = None;
        let dtype = dtype(load.dtype);
        let place = if backend == Backend::Fused && load.device != "cpu" {
            Place::Gpu(self.accelerator(&load.device)?)
        } else {
            Place::Candle(device(&load.device)?)
        };
        let loaded = match &place {
            Place::Gpu(accelerator) => {
                models::load_on_gpu(&load.checkpoint, dtype, Arc::clone(&accelerator.gpu))
            }
            Place::Candle(device) => {
                models::load(&load.checkpoint, &Options { dtype, device: device.clone(), backend })
            }
        };
        let loaded = loaded.map_err(model_failure)?;
        let inputs = read(&loaded, &load.inputs, &place)?;
        let mut notes = Vec::new();
        if !loaded.unread_keys.is_empty() {
            notes.push(format!(
                "config keys that the native model does not read: {}",
                loaded.unread_keys.join(", ")
            ));
        }
        if !loaded.unread_tensors.is_empty() {
            notes.push(format!(
                "tensors that the native model does not read: {}",
                loaded.unread_tensors.join(", ")
            ));
        }
        let mut libraries = BTreeMap::from([
            ("candle".to_owned(), super::CANDLE.to_owned()),
            ("tfcheck".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        if let Place::Gpu(accelerator) = &place {
            libraries.extend(accelerator.libraries());
            notes.push(accelerator.note());
        }
        place.synchronize()?;
        let ignored_keys = loaded.unread_keys.clone();
        let unread_tensors = loaded.unread_tensors.clone();
        self.loaded = Some((loaded, inputs, place));
        Ok(Ready {
            libraries,
            load_ns: start.elapsed().as_nanos() as u64,
            notes,
            ignored_keys: Some(ignored_keys),
            translated: Vec::new(),
            unread_tensors: Some(unread_tensors),
        })
    }

    fn forward(&mut self, forward: &Forward) -> Result<Forwarded, Failed> {
        let start = Instant::now();
        let (logits, further, outputs) = match self.steps(forward.prefill, &forward.chunks)? {
            None => self.outputs()?,
            Some(steps) => (self.through_the_cache(steps, None)?, Vec::new(), Vec::new()),
        };
        let elapsed_ns = start.elapsed().as_nanos() as u64;
        let shape = logits.dims().to_vec();
        write_outputs(&logits, &further, &forward.logits)?;
        let peak_bytes = self.peak_bytes();
        Ok(Forwarded {
            elapsed_ns,
            shape,
            positions: Positions::All,
            prefill: forward.prefill,
            chunks: forward.chunks.clone(),
            peak_bytes,
            outputs,
            graphs: None,
            notes: Vec::new(),
        })
    }

    fn pass(&mut self) -> Result<(), Failed> {
        self.timed_pass().map(drop)
    }

    /// The logits stay on the GPU, as with torch.
    fn timed_pass(&mut self) -> Result<u64, Failed> {
        let (loaded, inputs, place) = self.loaded.as_mut().ok_or_else(not_loaded)?;
        place.time(&mut || loaded.run(inputs, None, None).map(drop))
    }

    fn peak_bytes(&self) -> Option<u64> {
        self.loaded.as_ref().map_or_else(peak_resident_bytes, |(_, _, place)| place.peak_bytes())
    }

    fn decode(&mut self, tokens: usize) -> Result<Vec<u64>, Failed> {
        let Some(tokens_of) = self.cached_tokens() else { return Ok(Vec::new()) };
        let (loaded, inputs, place) = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let mut cache = models::Cache::new();
        loaded.run(inputs, Some(&mut cache), None).map_err(model_failure)?;
        // The first step grows the cache; on a GPU a second one captures the CUDA graph. These steps are not timed.
        let settling = if matches!(place, Place::Gpu(_)) { 3 } else { 1 };
        let mut step = inputs.clone();
        let mut samples_ns = Vec::with_capacity(tokens);
        for index in 0..settling + tokens {
            step = tokens_of.next(&step).map_err(tensor_failure)?;
            let took = place.time(&mut || loaded.run(&step, Some(&mut cache), None).map(drop))?;
            if index >= settling {
                samples_ns.push(took);
            }
        }
        Ok(samples_ns)
    }

    fn trace(&mut self, trace: &Trace) -> Result<(), Failed> {
        let (loaded, inputs, place) = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let mut probe = ChromeTrace::new(place.tensors());
        loaded.forward_with(inputs, None, Some(&mut Modules(&mut probe))).map_err(model_failure)?;
        crate::spec::atomic::write(&trace.path, &probe.json()).map_err(|error| exception(error.to_string()))
    }

    fn capture(&mut self, capture: &Capture) -> Result<Captured, Failed> {
        let start = Instant::now();
        let steps = self.steps(capture.prefill, &capture.chunks)?;
        let plain = match &steps {
            None => self.logits()?,
            Some(steps) => self.through_the_cache(steps.clone(), None)?,
        };
        let plain_ns = start.elapsed().as_nanos() as u64;
        let mut writer = Writer::new(capture, "native", element(plain.dtype()));
        let start = Instant::now();
        let logits = if let Some(steps) = steps {
            self.through_the_cache(steps, Some(&mut writer))?
        } else {
            let (loaded, inputs, place) = self.loaded.as_mut().ok_or_else(not_loaded)?;
            let logits =
                loaded.forward_with(inputs, None, Some(&mut Modules(&mut writer))).map_err(model_failure)?;
            place.synchronize()?;
            logits
        };
        let elapsed_ns = start.elapsed().as_nanos() as u64;
        let (modules, bytes) = writer.finish()?;
        let unchanged = same(&plain, &logits).map_err(tensor_failure)?;
        Ok(Captured { modules, unchanged, bytes, elapsed_ns, plain_ns })
    }

    fn replay(&mut self, replay: &Replay) -> Result<Replayed, Failed> {
        let (loaded, inputs, _) = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let mut feeder = Feeder::new(replay)?;
        loaded.forward_with(inputs, None, Some(&mut Modules(&mut feeder))).map_err(model_failure)?;
        feeder.finish()
    }

    fn inputs(&mut self, new: &NewInputs) -> Result<TakenInputs, Failed> {
        let (loaded, _, place) = self.loaded.take().ok_or_else(not_loaded)?;
        let inputs = read(&loaded, &new.inputs, &place)?;
        let unused = if takes_positions(loaded.kind) { Vec::new() } else { vec![POSITION_IDS.to_owned()] };
        self.loaded = Some((loaded, inputs, place));
        Ok(TakenInputs { unused })
    }

    fn generate(&mut self, generate: &Generate) -> Result<Generated, Failed> {
        let Some(tokens) = self.cached_tokens() else {
            return Err(unsupported("only a native decoder or encoder-decoder generates tokens"));
        };
        let (loaded, inputs, _) = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let mut step = inputs.clone();
        let mut cache = Cache::new();
        let prompt = tokens.ids(inputs).ok_or_else(no_tokens)?;
        let (batch, device) = (prompt.dim(0).map_err(tensor_failure)?, prompt.device().clone());
        let mut ids = vec![Vec::with_capacity(generate.tokens); batch];
        for _ in 0..generate.tokens {
            let logits = loaded.forward_with(&step, Some(&mut cache), None).map_err(model_failure)?;
            let chosen = best_tokens(&logits).map_err(tensor_failure)?;
            ids.iter_mut().zip(&chosen).for_each(|(ids, &id)| ids.push(id));
            let chosen = Tensor::from_vec(chosen, (batch, 1), &device).map_err(tensor_failure)?;
            step = tokens.with_ids(tokens.next(&step).map_err(tensor_failure)?, chosen);
        }
        Ok(Generated { ids })
    }
}

/// The modules of a native model, shown to a probe of the worker's kit.
struct Modules<'a>(&'a mut dyn Probe);

impl models::Probe for Modules<'_> {
    fn enter(&mut self, path: &str, input: &Tensor) {
        self.0.enter(path, input);
    }

    fn leave(&mut self, path: &str, output: &Tensor) {
        self.0.leave(path, output);
    }

    fn replace_input(&mut self, path: &str, input: &Tensor) -> Option<Tensor> {
        self.0.replace_input(path, input)
    }
}

/// Whether native models of this kind run through a KV cache.
pub(crate) fn has_cache(kind: models::Kind) -> bool {
    CachedTokens::of(kind).is_some()
}

/// The token with the largest logit at the last position of each row.
fn best_tokens(logits: &Tensor) -> candle_core::Result<Vec<i64>> {
    let last = logits.narrow(1, logits.dim(1)? - 1, 1)?.squeeze(1)?;
    last.contiguous()?.argmax(1)?.to_dtype(candle_core::DType::I64)?.to_vec1()
}

/// The main output, those beside it by name, and what they are: empty for the main one alone.
type Outputs = (Tensor, Vec<(&'static str, Tensor)>, Vec<Output>);

impl CandleEngine {
    /// The tokens that go through the loaded model's KV cache; `None` for a model without one.
    fn cached_tokens(&self) -> Option<CachedTokens> {
        self.loaded.as_ref().and_then(|(loaded, ..)| CachedTokens::of(loaded.kind))
    }

    /// Where the forward passes over the inputs begin and end; `None` for one over all tokens.
    fn steps(&self, prefill: Option<usize>, chunks: &[usize]) -> Result<Option<Vec<Range<usize>>>, Failed> {
        let (_, inputs, _) = self.loaded.as_ref().ok_or_else(not_loaded)?;
        // Encoder-decoders count their decoder's tokens.
        let tokens = self.cached_tokens().unwrap_or(CachedTokens::Own);
        let ids = tokens.ids(inputs).unwrap_or(&inputs.input_ids);
        steps(prefill, chunks, ids.dim(1).map_err(tensor_failure)?)
    }

    /// All outputs of one forward pass, finished on the device.
    fn outputs(&mut self) -> Result<Outputs, Failed> {
        let (loaded, inputs, place) = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let mut outputs = loaded.outputs(inputs).map_err(model_failure)?;
        place.synchronize()?;
        let described = if outputs.len() > 1 {
            outputs.iter().map(|(name, tensor)| described(name, tensor, inputs)).collect()
        } else {
            Vec::new()
        };
        let (_, main) = outputs.remove(0);
        Ok((main, outputs, described))
    }

    /// One forward pass, finished on the device.
    fn logits(&mut self) -> Result<Tensor, Failed> {
        let (loaded, inputs, place) = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let logits = loaded.forward(inputs).map_err(model_failure)?;
        place.synchronize()?;
        Ok(logits)
    }

    /// Logits of all positions, from a forward pass through the cache for each of `steps`.
    fn through_the_cache(
        &mut self,
        steps: Vec<Range<usize>>,
        mut probe: Option<&mut Writer>,
    ) -> Result<Tensor, Failed> {
        let Some(tokens) = self.cached_tokens() else {
            return Err(unsupported("only a native decoder or encoder-decoder is run through a KV cache"));
        };
        let (loaded, inputs, place) = self.loaded.as_mut().ok_or_else(not_loaded)?;
        let mut cache = Cache::new();
        let mut parts = Vec::with_capacity(steps.len());
        for step in steps {
            let inputs = tokens.part(inputs, &step).map_err(tensor_failure)?;
            let mut modules = probe.as_mut().map(|probe| Modules(&mut **probe));
            let probe = modules.as_mut().map(|modules| modules as &mut dyn models::Probe);
            parts.push(loaded.forward_with(&inputs, Some(&mut cache), probe).map_err(model_failure)?);
        }
        let logits = Tensor::cat(&parts, 1).map_err(tensor_failure)?;
        place.synchronize()?;
        Ok(logits)
    }
}

fn no_tokens() -> Failed {
    unsupported("the inputs have no decoder_input_ids, which the model needs")
}

/// The inputs as the model takes them.
fn read(loaded: &Loaded, path: &Path, place: &Place) -> Result<models::Inputs, Failed> {
    let inputs = inputs(path, &place.tensors())?;
    Ok(models::Inputs {
        input_ids: inputs.input_ids,
        attention_mask: inputs.attention_mask,
        position_ids: takes_positions(loaded.kind).then_some(inputs.position_ids),
        tensors: inputs.others,
    })
}

/// Whether a model takes `position_ids`: only decoders do, as in the Python bridge; the others count positions themselves
/// (BERT from the start of the sequence, RoBERTa from the first token that is not padding).
fn takes_positions(kind: models::Kind) -> bool {
    kind == models::Kind::Decoder
}

/// An output of this name, which follows the tokens if it has their positions.
fn described(name: &str, tensor: &Tensor, inputs: &models::Inputs) -> Output {
    let shape = tensor.dims().to_vec();
    let follows = matches!(shape[..], [_, _, _]) && shape[..2] == *inputs.input_ids.dims();
    Output { name: name.to_owned(), shape, follows: follows.then(|| INPUT_IDS.to_owned()) }
}
