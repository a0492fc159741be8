//! A loaded port with its inputs, which answers tfcheck's requests.

use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use protocol::{
    ATTENTION_MASK, DECODER_INPUT_IDS, Failed, Forward, Forwarded, NewInputs, POSITION_IDS, Positions,
    TakenInputs,
};

use crate::named::NamedTensors;
use crate::port::{Pass, Port, TensorsPass, TextPass};
use crate::recording::Inputs;
use crate::worker::{
    Checkpoint, exception, failure, guarded, inputs, peak_resident_bytes, steps, unsupported, write_logits,
};

/// A loaded port with its inputs.
pub struct Running {
    port: Port,
    inputs: Held,
    pub(crate) device: Device,
    dtype: DType,
    /// Whether one vector of logits belongs to a whole row.
    is_classifier: bool,
}

/// The inputs that a port takes.
enum Held {
    Text(Inputs),
    Tensors(NamedTensors),
}

impl Held {
    fn read(port: &Port, path: &Path, (dtype, device): (DType, &Device)) -> Result<Self, Failed> {
        match &port.pass {
            Pass::Text(_) => inputs(path, device)?.of_text()?.for_port().map(Self::Text),
            Pass::Tensors(takes, _) => NamedTensors::read(path, takes, (dtype, device)).map(Self::Tensors),
        }
    }

    /// The mask of the tokens.
    fn mask(&self) -> Result<Vec<Vec<u32>>, Failed> {
        let mask = match self {
            Self::Text(inputs) => Some(&inputs.attention_mask),
            Self::Tensors(tensors) => tensors.find(ATTENTION_MASK),
        };
        mask.map_or(Ok(Vec::new()), |mask| mask.to_vec2().map_err(failure))
    }

    /// Whether the last position of an output is that of a row's own last token.
    fn follows_tokens(&self) -> bool {
        match self {
            Self::Text(_) => true,
            Self::Tensors(tensors) => tensors.find(DECODER_INPUT_IDS).is_none(),
        }
    }
}

impl Running {
    /// A port that will compute the inputs in the file `inputs`.
    ///
    /// # Errors
    /// When the file cannot be read, or the port would give logits of padding only.
    pub fn new(port: Port, path: &Path, checkpoint: &Checkpoint) -> Result<Self, Failed> {
        let head = checkpoint.json()["architectures"][0].as_str().unwrap_or_default();
        let (device, dtype) = (checkpoint.device().clone(), checkpoint.dtype());
        let inputs = Held::read(&port, path, (dtype, &device))?;
        let is_classifier = head.ends_with("ForSequenceClassification");
        let running = Self { port, inputs, device, dtype, is_classifier };
        running.refuse_padding_alone()?;
        Ok(running)
    }

    /// Gives the port other inputs.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn take(&mut self, new: &NewInputs) -> Result<TakenInputs, Failed> {
        self.inputs = Held::read(&self.port, &new.inputs, (self.dtype, &self.device))?;
        self.refuse_padding_alone()?;
        let mut unused = match (&self.port.pass, &self.inputs) {
            (Pass::Tensors(takes, _), Held::Tensors(tensors)) => {
                tensors.names().filter(|name| !takes.contains(name)).map(str::to_owned).collect()
            }
            _ => vec![POSITION_IDS.to_owned()],
        };
        if !self.port.reads_mask && matches!(self.inputs, Held::Text(_)) {
            unused.push(ATTENTION_MASK.to_owned());
        }
        Ok(TakenInputs { unused })
    }

    fn refuse_padding_alone(&self) -> Result<(), Failed> {
        let is_padding = |row: &Vec<u32>| row.last() == Some(&0);
        if self.port.positions == Some(Positions::Last)
            && self.inputs.follows_tokens()
            && self.inputs.mask()?.iter().any(is_padding)
        {
            return Err(unsupported(
                "the port returns the last column only, which is padding in sequences padded on the right",
            ));
        }
        Ok(())
    }

    /// What a person must know of these inputs.
    ///
    /// # Errors
    /// When the mask cannot be read.
    pub fn note(&self) -> Result<Option<String>, Failed> {
        let is_padded = self.inputs.mask()?.iter().flatten().any(|&real| real == 0);
        Ok((is_padded && !self.port.reads_mask)
            .then(|| "the port takes no padding mask: padded sequences attend to their padding".to_owned()))
    }

    /// Answers [`protocol::Request::Forward`].
    ///
    /// # Errors
    /// When the pass fails, or the logits cannot be written.
    pub fn forward(&mut self, forward: &Forward) -> Result<Forwarded, Failed> {
        let start = Instant::now();
        let (logits, positions) = self.logits_of(forward.prefill, &forward.chunks)?;
        let elapsed_ns = start.elapsed().as_nanos() as u64;
        let shape = logits.dims().to_vec();
        write_logits(&logits, &forward.logits)?;
        Ok(Forwarded {
            elapsed_ns,
            shape,
            positions,
            prefill: forward.prefill,
            chunks: forward.chunks.clone(),
            peak_bytes: peak_resident_bytes(),
            outputs: Vec::new(),
            graphs: None,
            notes: Vec::new(),
        })
    }

    /// One forward pass whose logits are dropped, complete on the device.
    ///
    /// # Errors
    /// When the pass fails.
    pub fn pass(&mut self) -> Result<(), Failed> {
        self.logits_of(None, &[]).map(drop)
    }

    /// Nanoseconds of each of `tokens` tokens after the inputs: the first token of each row again and again.
    ///
    /// # Errors
    /// When a pass fails.
    pub fn decode(&mut self, tokens: usize) -> Result<Vec<u64>, Failed> {
        if !self.port.caches {
            return Ok(Vec::new());
        }
        self.pass()?;
        let (Pass::Text(pass), Held::Text(inputs)) = (&mut self.port.pass, &self.inputs) else {
            return Ok(Vec::new());
        };
        let (batch, seq) = inputs.input_ids.dims2().map_err(failure)?;
        let ids = inputs.input_ids.narrow(1, 0, 1).and_then(|ids| ids.contiguous()).map_err(failure)?;
        let mut mask = inputs.attention_mask.clone();
        let ones = ids.ones_like().map_err(failure)?;
        let last = inputs.position_ids.narrow(1, seq - 1, 1).map_err(failure)?;
        let mut samples_ns = Vec::with_capacity(tokens);
        for token in 0..tokens {
            mask = Tensor::cat(&[&mask, &ones], 1).map_err(failure)?;
            let next = Tensor::full(token as u32 + 1, (batch, 1), &self.device).map_err(failure)?;
            let position_ids = (&last + next).map_err(failure)?;
            let step = Inputs { input_ids: ids.clone(), attention_mask: mask.clone(), position_ids };
            let start = Instant::now();
            guarded(|| pass(&step, seq + token).map_err(failure))?;
            self.device.synchronize().map_err(failure)?;
            samples_ns.push(start.elapsed().as_nanos() as u64);
        }
        Ok(samples_ns)
    }

    /// Logits of all positions, or of the last one: in one full-sequence forward pass, or in one through the cache for each step.
    pub(crate) fn logits_of(
        &mut self,
        prefill: Option<usize>,
        chunks: &[usize],
    ) -> Result<(Tensor, Positions), Failed> {
        let placing = Placing { is_classifier: self.is_classifier, positions: self.port.positions };
        let found = match (&mut self.port.pass, &self.inputs) {
            (Pass::Text(pass), Held::Text(inputs)) => {
                let seq = inputs.input_ids.dim(1).map_err(failure)?;
                match steps(prefill, chunks, seq)? {
                    None => placing.of(guarded(|| pass(inputs, 0).map_err(failure))?, seq),
                    Some(_) if !self.port.caches => {
                        Err(unsupported("the port's KV cache cannot continue after a prefill"))
                    }
                    Some(steps) => placing.of_steps(pass, inputs, steps),
                }
            }
            (Pass::Tensors(_, pass), Held::Tensors(tensors)) if prefill.is_none() && chunks.is_empty() => {
                of_tensors(pass, tensors, placing.positions)
            }
            _ => Err(unsupported("the port is not decoded through a KV cache")),
        };
        self.device.synchronize().map_err(failure)?;
        found
    }
}

/// Which positions the outputs of a port of text have.
struct Placing {
    is_classifier: bool,
    positions: Option<Positions>,
}

impl Placing {
    fn of_steps(
        &self,
        pass: &mut TextPass,
        inputs: &Inputs,
        steps: Vec<Range<usize>>,
    ) -> Result<(Tensor, Positions), Failed> {
        let mut parts = Vec::new();
        let mut positions = Positions::All;
        for Range { start, end } in steps {
            let part = |tensor: &Tensor, from: usize| {
                tensor.narrow(1, from, end - from).and_then(|part| part.contiguous()).map_err(failure)
            };
            let inputs = Inputs {
                input_ids: part(&inputs.input_ids, start)?,
                attention_mask: part(&inputs.attention_mask, 0)?,
                position_ids: part(&inputs.position_ids, start)?,
            };
            let logits = guarded(|| pass(&inputs, start).map_err(failure))?;
            let (logits, of) = self.of(logits, end - start)?;
            if of == Positions::Last && end - start > 1 {
                positions = Positions::Last;
            }
            parts.push(logits);
        }
        if positions == Positions::Last || self.positions == Some(Positions::Last) {
            let last = parts.pop().ok_or_else(|| exception("no forward pass was asked for"))?;
            return Ok((last, Positions::Last));
        }
        Ok((Tensor::cat(&parts, 1).map_err(failure)?, Positions::All))
    }

    /// Logits of a pass over `seq` tokens with their sequence axis, which ports drop if they compute one position only, and
    /// their positions.
    fn of(&self, logits: Tensor, seq: usize) -> Result<(Tensor, Positions), Failed> {
        if self.is_classifier {
            return Ok((logits, Positions::All));
        }
        let logits = if logits.rank() == 2 { logits.unsqueeze(1).map_err(failure)? } else { logits };
        let [_, held, _] = logits.dims()[..] else {
            return Err(exception(format!("the port returned logits of shape {:?}", logits.dims())));
        };
        let by_shape = if held == seq { Positions::All } else { Positions::Last };
        Ok((logits, self.positions.unwrap_or(by_shape)))
    }
}

/// The output of a port of tensors as `[batch, positions, width]`.
fn of_tensors(
    pass: &mut TensorsPass,
    tensors: &NamedTensors,
    positions: Option<Positions>,
) -> Result<(Tensor, Positions), Failed> {
    let output = guarded(|| pass(tensors).map_err(failure))?;
    let shaped = match *output.dims() {
        [_, _, _] => Ok(output),
        [_, _] => output.unsqueeze(1),
        [batch, .., width] => output.reshape((batch, (), width)),
        _ => output.reshape((1, 1, ())),
    };
    Ok((shaped.map_err(failure)?, positions.unwrap_or(Positions::All)))
}
