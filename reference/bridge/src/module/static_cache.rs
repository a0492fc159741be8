//! A KV cache of fixed size, without which a graph cannot be replayed: transformers' `StaticCache`.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::failure::Stop;
use super::load::Loaded;
use crate::protocol::{ATTENTION_MASK, INPUT_IDS, Mode};

/// The cache, and the arguments that have its size.
pub(super) struct StaticCache<'py> {
    cache: Bound<'py, PyAny>,
    /// Of the inputs and every token to come, `[batch, size]`: what has not come yet is masked as the future.
    mask: Option<Bound<'py, PyAny>>,
    /// `0..size`, where the model asks for it.
    positions: Option<Bound<'py, PyAny>>,
    /// Tokens of a row of the inputs.
    seq: usize,
}

impl<'py> StaticCache<'py> {
    /// Whether a mode cannot do without: it replays graphs, to which a cache that grows is another one each time.
    pub(super) fn is_needed(mode: Mode) -> bool {
        matches!(mode, Mode::ReduceOverhead | Mode::MaxAutotune)
    }

    /// A cache with room for the inputs and `tokens` more, where the mode needs one or gains by it on a GPU, and where
    /// this version has one that is made from config and size alone (4.57 and later).
    pub(super) fn new(py: Python<'py>, loaded: &Loaded, tokens: usize) -> Result<Option<Self>, Stop> {
        let gains = loaded.mode.is_compiled() && loaded.device.starts_with("cuda");
        if !(gains || Self::is_needed(loaded.mode)) {
            return Ok(None);
        }
        let class = py.import("transformers.cache_utils")?.getattr("StaticCache")?;
        let takes = |callable: &Bound<'py, PyAny>, name: &str| -> PyResult<bool> {
            py.import("inspect")?
                .call_method1("signature", (callable,))?
                .getattr("parameters")?
                .contains(name)
        };
        let made_from_more = ["batch_size", "max_batch_size"];
        if !takes(&class, "max_cache_len")?
            || made_from_more.iter().any(|name| takes(&class, name).unwrap_or(true))
        {
            return Ok(None);
        }
        let model = loaded.model.bind(py);
        let arguments = loaded.arguments.bind(py);
        let Some(ids) = arguments.get_item(INPUT_IDS)? else { return Ok(None) };
        let (batch, seq): (usize, usize) = ids.getattr("shape")?.extract()?;
        let size = seq + tokens;
        let keywords = PyDict::new(py);
        keywords.set_item("config", model.getattr("config")?)?;
        keywords.set_item("max_cache_len", size)?;
        let cache = class.call((), Some(&keywords))?;
        let torch = loaded.torch.bind(py);
        let mask = arguments.get_item(ATTENTION_MASK)?.map(|mask| {
            let more = mask.call_method1("new_ones", ((batch, tokens),))?;
            torch.call_method1("cat", ((mask, more), 1))
        });
        let forward = model.getattr("forward")?;
        let positions = takes(&forward, "cache_position")?.then(|| {
            let keywords = PyDict::new(py);
            keywords.set_item("device", &loaded.device)?;
            torch.call_method("arange", (size,), Some(&keywords))
        });
        Ok(Some(Self { cache, mask: mask.transpose()?, positions: positions.transpose()?, seq }))
    }

    pub(super) fn cache(&self) -> &Bound<'py, PyAny> {
        &self.cache
    }

    /// Sets what of `arguments` must have the cache's size: of the pass over the inputs, or of the token at `index`
    /// after them.
    pub(super) fn place(&self, arguments: &Bound<'py, PyDict>, index: Option<usize>) -> PyResult<()> {
        let (from, count) = index.map_or((0, self.seq), |index| (self.seq + index, 1));
        if let Some(positions) = &self.positions {
            arguments.set_item("cache_position", positions.call_method1("narrow", (0, from, count))?)?;
        }
        if let (Some(mask), Some(_)) = (&self.mask, index) {
            arguments.set_item(ATTENTION_MASK, mask)?;
        }
        Ok(())
    }
}
