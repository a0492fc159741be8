//! Passes that were recorded once and run again on other inputs of the same shape.
//!
//! The first pass of a shape runs as it is called and lends its buffers; the second is recorded, without an allocation,
//! and every one from then on uploads its inputs and replays. What a recording was not made for (a rope table that has
//! grown since) runs as a first pass again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::pass::Feeds;
use super::rows::DeviceRows;
use super::{Graph, Region, Space};
use crate::error::{Error, Result};
use crate::fused::{Rows, lock};
use crate::model::Model;
use crate::pass::{Pass, Value, Xs};

/// Recordings kept at a time; each keeps its output's buffer.
const MOST: usize = 16;

/// What launches and their addresses depend on, besides what is fed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) batch: usize,
    pub(crate) seq: usize,
    pub(crate) has_padding: bool,
    pub(crate) has_holes: bool,
    pub(crate) has_position_ids: bool,
    /// Which cache, and its slots.
    pub(crate) cache: Option<(usize, usize)>,
}

/// How a shape ran last.
struct Run {
    /// Its inputs and its output, which a recording needs to itself; kept from the first pass on, so that recording
    /// finds as many buffers as that did.
    kept: Vec<Arc<Region>>,
    recording: Option<Recording>,
}

struct Recording {
    graph: Box<dyn Graph>,
    feeds: Feeds,
    output: Arc<Region>,
    /// Batch, seq and columns of the output, and whether it has no dimension of tokens.
    shape: ([usize; 3], bool),
}

impl Recording {
    /// What it reads first and writes last.
    fn regions(&self) -> Vec<Arc<Region>> {
        let mut regions = self.feeds.regions();
        regions.push(Arc::clone(&self.output));
        regions
    }
}

/// The shapes that have run, the latest last.
#[derive(Default)]
pub(super) struct Replays {
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

impl Space {
    pub(crate) fn pass_counts(&self) -> PassCounts {
        let count = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let Replays { called, recorded, replayed, .. } = &self.replays;
        PassCounts { called: count(called), recorded: count(recorded), replayed: count(replayed) }
    }

    /// One pass, recorded or replayed where its shape has run before; only called where a probe looks on.
    ///
    /// The output's buffer is written to again by the next pass of its shape.
    pub(crate) fn run(self: &Arc<Self>, model: &dyn Model, pass: &mut Pass) -> Result<Xs> {
        let shape = pass.shape();
        if pass.is_looked_on() {
            return Ok(self.call(model, pass)?.0);
        }
        let mut shapes = lock(&self.replays.shapes);
        let place = shapes.iter().position(|(known, _)| *known == shape);
        let known = place.map(|place| shapes.remove(place).1);
        if shapes.len() == MOST {
            self.release(&shapes.remove(0).1.kept);
        }
        let recording = match known {
            None => None,
            Some(Run { kept, recording: Some(recording) }) => {
                let output = match recording.feeds.admit(pass) {
                    Ok(true) => Some(self.replay(&recording, pass)),
                    Ok(false) => None,
                    Err(error) => Some(Err(error)),
                };
                if let Some(output) = output {
                    shapes.push((shape, Run { kept, recording: Some(recording) }));
                    return output;
                }
                self.release(&kept);
                None
            }
            Some(Run { kept, recording: None }) => {
                self.release(&kept);
                drop(kept);
                // Where it fails, something had to be made first, as for the first pass.
                self.record(model, pass).ok()
            }
        };
        let (output, kept) = match &recording {
            Some(recording) => (self.replay(recording, pass)?, recording.regions()),
            None => self.call(model, pass)?,
        };
        // A pass that makes a cache changes its shape, which will not come again.
        if pass.shape() == shape {
            self.keep_lent(&kept)?;
            shapes.push((shape, Run { kept, recording }));
        }
        Ok(output)
    }

    fn call(self: &Arc<Self>, model: &dyn Model, pass: &mut Pass) -> Result<(Xs, Vec<Arc<Region>>)> {
        pass.restart_device(false);
        self.replays.called.fetch_add(1, Ordering::Relaxed);
        let output = output(&model.forward(pass)?)?.whole()?;
        let mut kept = pass.device_pass()?.take_feeds().regions();
        kept.push(output.region()?);
        Ok((Rows::Gpu(output).into_xs(), kept))
    }

    fn record(self: &Arc<Self>, model: &dyn Model, pass: &mut Pass) -> Result<Recording> {
        pass.restart_device(true);
        let mut recorded = None;
        let graph = self.gpu.record(&mut || {
            let output = output(&model.forward(pass)?)?.whole()?;
            recorded = Some((output.region()?, output.batch, output.seq, output.columns(), output.shape()));
            Ok(())
        })?;
        let (region, batch, seq, columns, shape) =
            recorded.ok_or_else(|| Error::Gpu("a recording without an output".to_owned()))?;
        self.replays.recorded.fetch_add(1, Ordering::Relaxed);
        Ok(Recording {
            graph,
            feeds: pass.device_pass()?.take_feeds(),
            output: region,
            shape: ([batch, seq, columns], shape.len() == 2),
        })
    }

    fn replay(self: &Arc<Self>, recording: &Recording, pass: &Pass) -> Result<Xs> {
        recording.feeds.upload(pass)?;
        recording.graph.replay()?;
        self.replays.replayed.fetch_add(1, Ordering::Relaxed);
        let (shape, is_flat) = recording.shape;
        let output = DeviceRows::within(self, Arc::clone(&recording.output), shape, is_flat);
        Ok(Rows::Gpu(output).into_xs())
    }
}

/// A model's output where it lies.
fn output(xs: &Xs) -> Result<DeviceRows> {
    match xs.value() {
        Value::Fused(Rows::Gpu(rows)) => Ok(rows.clone()),
        _ => Err(Error::Gpu("a model whose output is not on the GPU".to_owned())),
    }
}
