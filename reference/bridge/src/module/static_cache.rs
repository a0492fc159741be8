//! transformers' `StaticCache`: a KV cache of fixed size, which CUDA graphs require.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::failure::Stop;
use super::load::Loaded;
use protocol::{ATTENTION_MASK, INPUT_IDS, Mode};

/// The cache, and the arguments whose size depends on it.
pub(super) struct StaticCache<'py> {
    cache: Bound<'py, PyAny>,
    /// Attention mask over the inputs and all tokens to decode, `[batch, size]`, where `size` is `seq` plus
    /// their number. Future positions are hidden by the causal mask.
    mask: Option<Bound<'py, PyAny>>,
    /// `0..size`, if the model takes `cache_position`.
    positions: Option<Bound<'py, PyAny>>,
    /// Sequence length of the inputs.
    seq: usize,
}

impl<'py> StaticCache<'py> {
    /// Whether a mode requires a static cache: it launches CUDA graphs, and a growing cache would need a new
    /// graph per token.
    pub(super) fn is_needed(mode: Mode) -> bool {
        matches!(mode, Mode::ReduceOverhead | Mode::MaxAutotune)
    }

    /// A cache for the inputs and `tokens` more. `None` unless the mode requires it or is compiled on a GPU,
    /// and this version's `StaticCache` is constructed from config and size alone (4.57 and later).
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

    /// Sets the entries of `arguments` that depend on the cache's size, for the prefill or for the decoded
    /// token `index`.
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
