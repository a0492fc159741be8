//! What a model returns: its main output, and the others beside it.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::failure::Stop;
use protocol::{DECODER_INPUT_IDS, INPUT_IDS, Output};

/// The names of main outputs; the first that a model returns is its main output, else its first tensor is.
const MAIN: [&str; 11] = [
    "logits",
    "prediction_logits",
    "logits_per_image",
    "start_logits",
    "class_logits",
    "predicted_depth",
    "pred_masks",
    "image_embeds",
    "text_embeds",
    "last_hidden_state",
    "audio_values",
];

/// Outputs that are lists of tensors, which are compared one by one. Others, such as caches and hidden states, are left out.
const LISTS: [&str; 1] = ["router_logits"];

/// A tensor that a model returned.
pub(super) struct Returned<'py> {
    pub(super) output: Output,
    pub(super) tensor: Bound<'py, PyAny>,
}

/// The floating-point tensors that a model returned, the main one first.
pub(super) fn returned<'py>(
    output: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyDict>,
) -> Result<Vec<Returned<'py>>, Stop> {
    let mut found: Vec<(String, Bound<'py, PyAny>)> = Vec::new();
    if is_tensor(output)? {
        found.push(("output".to_owned(), output.clone()));
    } else if is_list(output) {
        found = listed("output", output)?;
    } else if output.hasattr("items")? {
        let items = output.call_method0("items")?.try_iter()?.map(|item| item?.extract());
        let items: Vec<(String, Bound<'_, PyAny>)> = items.collect::<PyResult<_>>()?;
        for (name, value) in &items {
            if is_tensor(value)? {
                found.push((name.clone(), value.clone()));
            } else if LISTS.contains(&name.as_str()) && !value.is_none() {
                found.extend(listed(name, value)?);
            }
        }
        // A backbone returns lists of maps and nothing else.
        if found.is_empty() {
            for (name, value) in items.iter().filter(|(_, value)| is_list(value)) {
                found.extend(listed(name, value)?);
            }
        }
    }
    let mut kept = Vec::new();
    for (name, tensor) in found {
        if is_tensor(&tensor)? && tensor.call_method0("is_floating_point")?.extract()? {
            kept.push((name, tensor));
        }
    }
    if kept.is_empty() {
        let class = output.get_type().name()?.to_string();
        return Err(Stop::unsupported(format!("{class} has no floating-point output")));
    }
    let main = MAIN.iter().find_map(|main| kept.iter().position(|(name, _)| name == main)).unwrap_or(0);
    let first = kept.remove(main);
    kept.insert(0, first);
    kept.into_iter()
        .map(|(name, tensor)| {
            let shape: Vec<usize> = tensor.getattr("shape")?.extract()?;
            let follows = follows(&name, &shape, arguments)?.map(str::to_owned);
            Ok(Returned { output: Output { name, shape, follows }, tensor })
        })
        .collect()
}

/// The tensor of the inputs whose positions an output of this name and shape has: the decoder's tokens, if there are any,
/// before the others, unless the output is an encoder's.
fn follows(name: &str, shape: &[usize], arguments: &Bound<'_, PyDict>) -> PyResult<Option<&'static str>> {
    let tokens: &[&'static str] =
        if name.starts_with("encoder_") { &[INPUT_IDS] } else { &[DECODER_INPUT_IDS, INPUT_IDS] };
    for name in tokens.iter().copied() {
        if let Some(tokens) = arguments.get_item(name)? {
            let tokens: Vec<usize> = tokens.getattr("shape")?.extract()?;
            if shape.len() == 3 && shape[..2] == tokens[..] {
                return Ok(Some(name));
            }
        }
    }
    Ok(None)
}

/// The tensors of a list, by its name and their numbers.
fn listed<'py>(name: &str, values: &Bound<'py, PyAny>) -> PyResult<Vec<(String, Bound<'py, PyAny>)>> {
    let mut found = Vec::new();
    for (index, value) in values.try_iter()?.enumerate() {
        let value = value?;
        if is_tensor(&value)? {
            found.push((format!("{name}.{index}"), value));
        }
    }
    Ok(found)
}

fn is_list(value: &Bound<'_, PyAny>) -> bool {
    value.is_instance_of::<PyTuple>() || value.is_instance_of::<PyList>()
}

fn is_tensor(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    value.is_instance(&value.py().import("torch")?.getattr("Tensor")?)
}

/// A tensor with the three axes of a logits file: `[batch, positions, width]`.
pub(super) fn with_three_axes<'py>(tensor: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let shape: Vec<isize> = tensor.getattr("shape")?.extract()?;
    let shape = match *shape.as_slice() {
        [] => vec![1, 1, 1],
        [width] => vec![1, 1, width],
        [batch, width] => vec![batch, 1, width],
        [_, _, _] => return Ok(tensor.clone()),
        [batch, .., width] => vec![batch, -1, width],
    };
    tensor.call_method1("reshape", (shape,))
}

/// The main output of one pass as `[batch, positions, width]`; one score vector for each sequence has one position.
pub(super) fn main<'py>(
    output: &Bound<'py, PyAny>,
    arguments: &Bound<'py, PyDict>,
) -> Result<Bound<'py, PyAny>, Stop> {
    with_three_axes(&returned(output, arguments)?[0].tensor).map_err(Stop::from)
}
