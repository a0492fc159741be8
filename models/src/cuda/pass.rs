//! What one forward pass uploads to a GPU. A captured CUDA graph is launched again on other inputs, so every value that
//! depends on the inputs is stored in device memory, together with the function that recomputes it for new inputs.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;

use candle_core::{Tensor, TensorId};

use super::kernels::{PassState, Visible};
use super::{Number, Region, Space};
use crate::error::{Error, Result};
use crate::inputs::PassInputs;

/// Computes one value from the inputs and uploads it.
type Upload = Box<dyn Fn(&PassInputs, &Region) -> Result<()> + Send>;
/// Whether the captured graph may run on these inputs; an error means that the inputs are invalid.
type Requirement = Box<dyn Fn(&PassInputs) -> Result<bool> + Send>;
/// Computes token ids from the inputs.
type Ids = Arc<dyn Fn(&PassInputs) -> Result<Vec<u32>> + Send + Sync>;

/// Checks and uploads that precede each launch of a captured graph.
#[derive(Default)]
pub(super) struct DeviceInputs {
    uploads: Vec<(Arc<Region>, Upload)>,
    requirements: Vec<Requirement>,
}

impl DeviceInputs {
    /// Whether the captured graph may run on `inputs`.
    pub(super) fn admit(&self, inputs: &PassInputs) -> Result<bool> {
        for requirement in &self.requirements {
            if !requirement(inputs)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The destination buffers of the uploads.
    pub(super) fn regions(&self) -> Vec<Arc<Region>> {
        self.uploads.iter().map(|(region, _)| Arc::clone(region)).collect()
    }

    pub(super) fn upload(&self, inputs: &PassInputs) -> Result<()> {
        self.uploads.iter().try_for_each(|(region, upload)| upload(inputs, region))
    }
}

/// The device memory of one forward pass.
pub(crate) struct DevicePass {
    pub(super) space: Arc<Space>,
    /// True while a CUDA graph is captured; uploads are not allowed then.
    recording: Cell<bool>,
    device_inputs: RefCell<DeviceInputs>,
    /// How to recompute ids that layers derived from the inputs, by the tensor that holds them.
    ids: RefCell<Vec<(TensorId, Ids)>>,
    common: OnceCell<Common>,
}

/// Inputs that nearly every forward pass needs, in one buffer of `1 + 2 * batch + 2 * batch * seq` elements of 4 bytes.
struct Common {
    first_slot: Region,
    keys: Region,
    positions: Region,
    input_ids: Region,
    visible: Option<(Arc<Region>, usize)>,
}

impl DevicePass {
    pub(crate) fn new(space: &Arc<Space>) -> Self {
        Self {
            space: Arc::clone(space),
            recording: Cell::new(false),
            device_inputs: RefCell::default(),
            ids: RefCell::default(),
            common: OnceCell::new(),
        }
    }

    /// Drops the uploaded inputs; `recording` states whether the next forward pass is captured as a graph.
    pub(crate) fn restart(&mut self, recording: bool) {
        *self = Self::new(&Arc::clone(&self.space));
        self.recording.set(recording);
    }

    pub(super) fn take_inputs(&self) -> DeviceInputs {
        self.device_inputs.take()
    }

    /// Device memory that holds the result of `compute(inputs)`, in this forward pass and in each launch of a graph
    /// captured from it. `compute` must always return the same number of values.
    pub(crate) fn input<T: Number>(
        &self,
        inputs: &PassInputs,
        compute: impl Fn(&PassInputs) -> Result<Vec<T>> + Send + 'static,
    ) -> Result<Arc<Region>> {
        let values = compute(inputs)?;
        let region = self.space.acquire(size_of_val(values.as_slice()))?;
        if !self.recording.get() {
            region.upload(&values)?;
        }
        let upload = move |inputs: &PassInputs, region: &Region| region.upload(&compute(inputs)?);
        self.device_inputs.borrow_mut().uploads.push((Arc::clone(&region), Box::new(upload)));
        Ok(region)
    }

    /// Adds a condition that inputs must fulfil before a graph captured from this forward pass may run on them.
    pub(crate) fn require(&self, requirement: impl Fn(&PassInputs) -> Result<bool> + Send + 'static) {
        self.device_inputs.borrow_mut().requirements.push(Box::new(requirement));
    }

    /// Registers how to recompute the ids in `tensor` from the inputs.
    pub(crate) fn know_ids(
        &self,
        tensor: &Tensor,
        compute: impl Fn(&PassInputs) -> Result<Vec<u32>> + Send + Sync + 'static,
    ) {
        self.ids.borrow_mut().push((tensor.id(), Arc::new(compute)));
    }

    /// u32 ids of a tensor on the device; an id of `vocab` or above is an error.
    pub(crate) fn ids(&self, inputs: &PassInputs, ids: &Tensor, vocab: usize) -> Result<Region> {
        let known =
            self.ids.borrow().iter().find(|(id, _)| *id == ids.id()).map(|(_, known)| Arc::clone(known));
        let is_input = ids.id() == inputs.input_ids().id();
        let known: Ids = match known {
            _ if is_input => {
                Arc::new(|inputs: &PassInputs| Ok(inputs.input_ids().flatten_all()?.to_vec1()?))
            }
            Some(known) => known,
            // The ids do not follow from the inputs (for example a probe's tensor), so a graph with them must not run
            // again.
            None => {
                let values: Vec<u32> = ids.flatten_all()?.to_vec1()?;
                self.require(|_| Ok(false));
                Arc::new(move |_: &PassInputs| Ok(values.clone()))
            }
        };
        let check = {
            let known = Arc::clone(&known);
            move |inputs: &PassInputs| match known(inputs)?.into_iter().find(|id| *id as usize >= vocab) {
                None => Ok(true),
                Some(id) => Err(Error::Inputs(format!("token id {id} is outside the vocabulary of {vocab}"))),
            }
        };
        check(inputs)?;
        self.require(check);
        if is_input {
            return Ok(self.common(inputs)?.input_ids.clone());
        }
        Ok(Region::clone(&*self.input(inputs, move |inputs| known(inputs))?))
    }

    /// Positions, u32, `[batch, seq]`.
    pub(crate) fn positions(&self, inputs: &PassInputs) -> Result<Region> {
        Ok(self.common(inputs)?.positions.clone())
    }

    /// u8, `[batch, seq]`: 0 at padding; `None` if the inputs have no mask.
    pub(crate) fn real(&self, inputs: &PassInputs) -> Result<Option<Arc<Region>>> {
        let real = |inputs: &PassInputs| {
            Ok(inputs.padding().unwrap_or_default().iter().map(|real| u8::from(*real)).collect())
        };
        inputs.padding().map(|_| self.input(inputs, real)).transpose()
    }

    /// Cache slots and key ranges of this forward pass.
    pub(super) fn state(&self, inputs: &PassInputs) -> Result<PassState<'_>> {
        let common = self.common(inputs)?;
        Ok(PassState {
            first_slot: &common.first_slot,
            keys: &common.keys,
            visible: common.visible.as_ref().map(|(region, row)| Visible { region, row: *row }),
        })
    }

    fn common(&self, inputs: &PassInputs) -> Result<&Common> {
        if self.common.get().is_none() {
            let common = self.new_common(inputs)?;
            self.common.get_or_init(|| common);
        }
        self.common.get().ok_or_else(|| Error::Gpu("a pass without a state".to_owned()))
    }

    fn new_common(&self, inputs: &PassInputs) -> Result<Common> {
        let (batch, rows) = (inputs.batch(), inputs.batch() * inputs.seq());
        let all = self.input(inputs, |inputs| {
            let mut values = vec![inputs.past() as u32];
            values.extend(inputs.keys().ranges.iter().flat_map(|keys| [keys.start as u32, keys.end as u32]));
            values.extend_from_slice(inputs.keys().positions);
            values.extend(inputs.input_ids().flatten_all()?.to_vec1::<u32>()?);
            Ok(values)
        })?;
        let part = |first: usize, len: usize| all.part(4 * first, 4 * len);
        let row = inputs.slots();
        let flags = move |inputs: &PassInputs| {
            let (holes, len) = (inputs.holes().unwrap_or_default(), inputs.past() + inputs.seq());
            let mut flags = vec![1; inputs.batch() * row];
            for (flags, real) in flags.chunks_exact_mut(row).zip(holes.chunks_exact(len)) {
                for (flag, real) in flags.iter_mut().zip(real) {
                    *flag = u8::from(*real);
                }
            }
            Ok(flags)
        };
        let visible =
            inputs.holes().map(|_| self.input(inputs, flags).map(|flags| (flags, row))).transpose()?;
        Ok(Common {
            first_slot: part(0, 1),
            keys: part(1, 2 * batch),
            positions: part(1 + 2 * batch, rows),
            input_ids: part(1 + 2 * batch + rows, rows),
            visible,
        })
    }
}
