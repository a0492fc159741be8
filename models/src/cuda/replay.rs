//! Passes that were recorded once and run again on other inputs of the same shape.
//!
//! The first pass of a shape runs as it is called and acquires its buffers; the second is recorded, without an allocation,
//! and every one from then on uploads its inputs and replays. What a recording was not made for (a rope table that has
//! grown since) runs as a first pass again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::gpu::{Graph, Region};
use super::pass::DeviceInputs;
use super::rows::DeviceRows;
use super::space::Space;
use crate::error::{Error, Result};
use crate::fused::Rows;
use crate::lock::lock;
use crate::model::Model;
use crate::pass::{Pass, Shape};
use crate::xs::{Value, Xs};

/// Recordings kept at a time; each keeps its output's buffer.
const MOST: usize = 16;

/// How a shape ran last.
struct Run {
    /// Its inputs and its output, which a recording needs to itself; kept from the first pass on, so that recording
    /// finds as many buffers as that did.
    kept: Vec<Arc<Region>>,
    recording: Option<Recording>,
}

struct Recording {
    graph: Box<dyn Graph>,
    device_inputs: DeviceInputs,
    output: Arc<Region>,
    /// Batch, seq and columns of the output, and whether it has no dimension of tokens.
    shape: ([usize; 3], bool),
}

impl Recording {
    /// The buffers that it reads first and writes last.
    fn regions(&self) -> Vec<Arc<Region>> {
        let mut regions = self.device_inputs.regions();
        regions.push(Arc::clone(&self.output));
        regions
    }
}

/// The shapes that have run, the latest last.
#[derive(Default)]
pub(crate) struct Replays {
    shapes: Mutex<Vec<(Shape, Run)>>,
    called: AtomicUsize,
    recorded: AtomicUsize,
    replayed: AtomicUsize,
}

/// How many passes ran how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassCounts {
    /// Launched one by one.
    pub called: usize,
    /// Recorded.
    pub recorded: usize,
    /// Replayed, those included that were recorded just before.
    pub replayed: usize,
}

impl Replays {
    pub(crate) fn counts(&self) -> PassCounts {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        PassCounts {
            called: count(&self.called),
            recorded: count(&self.recorded),
            replayed: count(&self.replayed),
        }
    }

    /// One pass, recorded or replayed where its shape has run before; never recorded where a probe observes it.
    ///
    /// The output's buffer is written to again by the next pass of its shape.
    pub(crate) fn run(&self, space: &Arc<Space>, model: &dyn Model, pass: &mut Pass) -> Result<Xs> {
        let shape = pass.shape();
        if pass.is_observed() {
            return Ok(self.call(model, pass)?.0);
        }
        let mut shapes = lock(&self.shapes);
        let place = shapes.iter().position(|(known, _)| *known == shape);
        let known = place.map(|place| shapes.remove(place).1);
        if shapes.len() == MOST {
            space.release(&shapes.remove(0).1.kept);
        }
        let recording = match known {
            None => None,
            Some(Run { kept, recording: Some(recording) }) => {
                let output = match recording.device_inputs.admit(pass) {
                    Ok(true) => Some(self.replay(space, &recording, pass)),
                    Ok(false) => None,
                    Err(error) => Some(Err(error)),
                };
                if let Some(output) = output {
                    shapes.push((shape, Run { kept, recording: Some(recording) }));
                    return output;
                }
                space.release(&kept);
                None
            }
            Some(Run { kept, recording: None }) => {
                space.release(&kept);
                drop(kept);
                // Where it fails, something had to be made first, as for the first pass.
                self.record(space, model, pass).ok()
            }
        };
        let (output, kept) = match &recording {
            Some(recording) => (self.replay(space, recording, pass)?, recording.regions()),
            None => self.call(model, pass)?,
        };
        // A pass that makes a cache changes its shape, which will not come again.
        if pass.shape() == shape {
            space.reserve(&kept)?;
            shapes.push((shape, Run { kept, recording }));
        }
        Ok(output)
    }

    fn call(&self, model: &dyn Model, pass: &mut Pass) -> Result<(Xs, Vec<Arc<Region>>)> {
        pass.restart_device(false);
        self.called.fetch_add(1, Ordering::Relaxed);
        let output = output(&model.forward(pass)?)?.whole()?;
        let mut kept = pass.device_pass()?.take_inputs().regions();
        kept.push(output.region()?);
        Ok((output.into(), kept))
    }

    fn record(&self, space: &Space, model: &dyn Model, pass: &mut Pass) -> Result<Recording> {
        pass.restart_device(true);
        let mut recorded = None;
        let graph = space.gpu.record(&mut || {
            let output = output(&model.forward(pass)?)?.whole()?;
            recorded = Some((output.region()?, output.batch, output.seq, output.columns(), output.shape()));
            Ok(())
        })?;
        let (region, batch, seq, columns, shape) =
            recorded.ok_or_else(|| Error::Gpu("a recording without an output".to_owned()))?;
        self.recorded.fetch_add(1, Ordering::Relaxed);
        Ok(Recording {
            graph,
            device_inputs: pass.device_pass()?.take_inputs(),
            output: region,
            shape: ([batch, seq, columns], shape.len() == 2),
        })
    }

    fn replay(&self, space: &Arc<Space>, recording: &Recording, pass: &Pass) -> Result<Xs> {
        recording.device_inputs.upload(pass)?;
        recording.graph.replay()?;
        self.replayed.fetch_add(1, Ordering::Relaxed);
        let (shape, is_flat) = recording.shape;
        let output = DeviceRows::within(space, Arc::clone(&recording.output), shape, is_flat);
        Ok(output.into())
    }
}

/// A model's output where it lies.
fn output(xs: &Xs) -> Result<DeviceRows> {
    match xs.value() {
        Value::Fused(Rows::Gpu(rows)) => Ok(rows.clone()),
        _ => Err(Error::Gpu("a model whose output is not on the GPU".to_owned())),
    }
}
