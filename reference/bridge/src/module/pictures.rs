//! Positions of the tokens behind pictures, in releases whose `generate` counts them for the model.

use pyo3::prelude::*;
use pyo3::types::PySlice;

use super::load::Loaded;

/// The positions of the tokens from `start` on, `[3, batch, new]`: the number of real tokens before each of them, moved by what
/// the pictures of the first forward pass take less room than their tokens. `mask`: `[batch, start + new]`.
///
/// `None` for a model that counts them itself. Qwen2-VL, Qwen2.5-VL and Qwen3-VL of 5.24 count those of all tokens of the mask
/// instead of the new ones (`compute_3d_position_ids`), unless they are given, as `generate` does
/// (`_prepare_position_ids_for_generation` of `modeling_qwen3_vl.py`).
pub(super) fn later_positions<'py>(
    py: Python<'py>,
    loaded: &Loaded,
    mask: Option<&Bound<'py, PyAny>>,
    start: usize,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    let model = loaded.model.bind(py);
    let inner = model.getattr_opt("model")?.unwrap_or_else(|| model.clone());
    let (Some(mask), true) = (mask, inner.hasattr("compute_3d_position_ids")?) else { return Ok(None) };
    let Some(moved) = inner.getattr_opt("rope_deltas")?.filter(|moved| !moved.is_none()) else {
        return Ok(None);
    };
    let counted = mask.call_method0("long")?.call_method1("cumsum", (-1,))?.call_method1("sub", (1,))?;
    let counted = counted.call_method1("masked_fill", (mask.call_method1("eq", (0,))?, 0))?;
    let new = counted.get_item((PySlice::full(py), PySlice::new(py, start as isize, isize::MAX, 1)))?;
    let positions = new.call_method1("add", (moved.call_method1("to", (new.getattr("device")?,))?,))?;
    positions.call_method1("unsqueeze", (0,))?.call_method1("expand", (3, -1, -1)).map(Some)
}
