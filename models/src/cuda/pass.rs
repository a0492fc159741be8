//! What one pass uploads to a GPU: a recorded pass runs again on other inputs, so everything that depends on them lies in
//! device memory, together with the function that computes it for other inputs.

use std::cell::{Cell, OnceCell, RefCell};
use std::sync::Arc;

use candle_core::{Tensor, TensorId};

use super::kernels::{PassState, Visible};
use super::{Number, Region, Space};
use crate::error::{Error, Result};
use crate::inputs::PassInputs;

/// Computes and uploads one input.
type Upload = Box<dyn Fn(&PassInputs, &Region) -> Result<()> + Send>;
/// Whether a recorded pass may run on these inputs; an error is the inputs' fault.
type Requirement = Box<dyn Fn(&PassInputs) -> Result<bool> + Send>;
/// Ids that follow from the inputs.
type Ids = Arc<dyn Fn(&PassInputs) -> Result<Vec<u32>> + Send + Sync>;

/// What has to happen before a recorded pass runs again.
#[derive(Default)]
pub(super) struct DeviceInputs {
    uploads: Vec<(Arc<Region>, Upload)>,
    requirements: Vec<Requirement>,
}

impl DeviceInputs {
    /// Whether the recorded pass may run on the inputs of `pass`.
    pub(super) fn admit(&self, inputs: &PassInputs) -> Result<bool> {
        for requirement in &self.requirements {
            if !requirement(inputs)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The buffers that are uploaded to.
    pub(super) fn regions(&self) -> Vec<Arc<Region>> {
        self.uploads.iter().map(|(region, _)| Arc::clone(region)).collect()
    }

    pub(super) fn upload(&self, inputs: &PassInputs) -> Result<()> {
        self.uploads.iter().try_for_each(|(region, upload)| upload(inputs, region))
    }
}

/// The GPU's side of a inputs.
pub(crate) struct DevicePass {
    pub(super) space: Arc<Space>,
    /// Whether launches are recorded, so that nothing may be uploaded.
    recording: Cell<bool>,
    device_inputs: RefCell<DeviceInputs>,
    /// Ids that layers made of the inputs, by the tensor that holds them.
    ids: RefCell<Vec<(TensorId, Ids)>>,
    common: OnceCell<Common>,
}

/// What nearly every pass needs, in one buffer: `[1 + 2 * batch + 2 * batch * seq]` of 4 bytes.
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

    /// Drops what has been uploaded so far.
    pub(crate) fn restart(&mut self, recording: bool) {
        *self = Self::new(&Arc::clone(&self.space));
        self.recording.set(recording);
    }

    pub(super) fn take_inputs(&self) -> DeviceInputs {
        self.device_inputs.take()
    }

    /// Device memory that holds what `compute` gives for the inputs of the pass, in this pass and in each that runs a
    /// recording of it. There must always be equally many values.
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

    /// Something that inputs must fulfil for a recording of this pass to be theirs.
    pub(crate) fn require(&self, requirement: impl Fn(&PassInputs) -> Result<bool> + Send + 'static) {
        self.device_inputs.borrow_mut().requirements.push(Box::new(requirement));
    }

    /// Registers how the ids of a tensor follow from the inputs.
    pub(crate) fn know_ids(
        &self,
        tensor: &Tensor,
        compute: impl Fn(&PassInputs) -> Result<Vec<u32>> + Send + Sync + 'static,
    ) {
        self.ids.borrow_mut().push((tensor.id(), Arc::new(compute)));
    }

    /// The ids of a tensor, each below `vocab`.
    pub(crate) fn ids(&self, inputs: &PassInputs, ids: &Tensor, vocab: usize) -> Result<Region> {
        let known =
            self.ids.borrow().iter().find(|(id, _)| *id == ids.id()).map(|(_, known)| Arc::clone(known));
        let is_input = ids.id() == inputs.input_ids().id();
        let known: Ids = match known {
            _ if is_input => {
                Arc::new(|inputs: &PassInputs| Ok(inputs.input_ids().flatten_all()?.to_vec1()?))
            }
            Some(known) => known,
            // A probe's, or some other tensor, whose recording is good for it alone.
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

    /// u32, `[batch, seq]`: the pass's positions.
    pub(crate) fn positions(&self, inputs: &PassInputs) -> Result<Region> {
        Ok(self.common(inputs)?.positions.clone())
    }

    /// u8, `[batch, seq]`: 0 at padding; absent where the pass has no mask.
    pub(crate) fn real(&self, inputs: &PassInputs) -> Result<Option<Arc<Region>>> {
        let real = |inputs: &PassInputs| {
            Ok(inputs.padding().unwrap_or_default().iter().map(|real| u8::from(*real)).collect())
        };
        inputs.padding().map(|_| self.input(inputs, real)).transpose()
    }

    /// Where the pass stands.
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
