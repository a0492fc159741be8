//! CUDA graphs: a forward pass is captured once and launched again on other inputs of the same shape.
//!
//! The first forward pass of a shape launches its kernels one by one and acquires its buffers. The second is captured,
//! without an allocation. Each later one uploads its inputs and launches the graph. If the graph does not admit the
//! inputs (for example because a rope table has grown), the shape starts again with an uncaptured forward pass.

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

/// Most shapes kept at a time; each one keeps its input and output buffers.
const MOST: usize = 16;

/// State of one input shape.
struct Run {
    /// Input and output buffers, which a captured graph does not share. They are reserved from the first forward pass
    /// on, so that capture finds as many free buffers as that did.
    kept: Vec<Arc<Region>>,
    recording: Option<Recording>,
}

struct Recording {
    graph: Box<dyn Graph>,
    device_inputs: DeviceInputs,
    output: Arc<Region>,
    /// Batch size, sequence length and columns of the output, and whether its tensor shape is `[rows, columns]`.
    shape: ([usize; 3], bool),
}

impl Recording {
    /// The input buffers and the output buffer.
    fn regions(&self) -> Vec<Arc<Region>> {
        let mut regions = self.device_inputs.regions();
        regions.push(Arc::clone(&self.output));
        regions
    }
}

/// The shapes that have run, the most recent last.
#[derive(Default)]
pub(crate) struct Replays {
    shapes: Mutex<Vec<(Shape, Run)>>,
    called: AtomicUsize,
    recorded: AtomicUsize,
    replayed: AtomicUsize,
}

/// Number of forward passes by how they ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PassCounts {
    /// Forward passes whose kernels were launched one by one.
    pub called: usize,
    /// Forward passes captured as a CUDA graph.
    pub recorded: usize,
    /// Launches of a captured graph, including the launch right after its capture.
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

    /// Runs one forward pass: captured or launched as a graph if its shape has run before. A pass that a probe observes
    /// is never captured.
    ///
    /// The next forward pass of the same shape overwrites the output buffer.
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
                // Capture fails if something must be allocated first; this forward pass then runs uncaptured.
                self.record(space, model, pass).ok()
            }
        };
        let (output, kept) = match &recording {
            Some(recording) => (self.replay(space, recording, pass)?, recording.regions()),
            None => self.call(model, pass)?,
        };
        // A forward pass that creates a KV cache changes its shape; the old shape does not occur again.
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

/// A model's output on the device.
fn output(xs: &Xs) -> Result<DeviceRows> {
    match xs.value() {
        Value::Fused(Rows::Gpu(rows)) => Ok(rows.clone()),
        _ => Err(Error::Gpu("a model whose output is not on the GPU".to_owned())),
    }
}
