//! Inputs from the tensors of a safetensors file.

use std::path::Path;

use bounds::limits::INPUTS_BYTES;
use reference::protocol::{ATTENTION_MASK, INPUT_IDS, POSITION_IDS};
use safetensors::SafeTensors;

use super::{Error, Inputs, Padding, Tensor, Tensors, batch};

/// The tensors of a safetensors file that a config names, as one batch.
///
/// # Errors
/// When the file cannot be read, is no safetensors file, or its tokens, mask or positions are not i64 `[batch, seq]`.
pub(super) fn of_file(path: &Path) -> Result<Inputs, Error> {
    let refused = |reason: String| Error::Tensors { path: path.to_owned(), reason };
    let bytes = bounds::file::read(path, INPUTS_BYTES).map_err(|source| Error::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| refused(format!("is not a safetensors file: {error}")))?;
    let mut tensors: Tensors = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let bytes = view.data().to_vec();
            (name, Tensor { dtype: view.dtype(), shape: view.shape().to_vec(), bytes })
        })
        .collect();
    if tensors.is_empty() {
        return Err(refused("holds no tensor".to_owned()));
    }
    of_tensors(&mut tensors).map_err(refused)
}

/// The batch of these tensors: tokens with a mask and positions, if there are tokens, and all others as they are.
///
/// # Errors
/// Which tensor has another dtype or shape than `[batch, seq]` in i64.
fn of_tensors(tensors: &mut Tensors) -> Result<Inputs, String> {
    // Codes of several codebooks for each position are no tokens of a text.
    let is_codes = |ids: &Tensor| ids.shape.len() == 3;
    let ids = if tensors.get(INPUT_IDS).is_some_and(is_codes) { None } else { tensors.remove(INPUT_IDS) };
    let Some(ids) = ids else {
        let batch = tensors.values().find_map(|tensor| tensor.shape.first().copied()).unwrap_or(1);
        let mut inputs = batch::lay_out("tensors".to_owned(), &[], 0, Padding::Right, 0);
        inputs.batch = batch;
        inputs.tensors = std::mem::take(tensors);
        inputs.digest = batch::digest(&inputs);
        return Ok(inputs);
    };
    let &[batch, seq] = ids.shape.as_slice() else {
        return Err(format!("holds `{INPUT_IDS}` of shape {:?}, not [batch, seq]", ids.shape));
    };
    let refused = |name: &str| format!("holds no i64 `{name}` of [{batch}, {seq}]");
    let input_ids = ids.to_integers().ok_or_else(|| refused(INPUT_IDS))?;
    let mut taken = |name: &str| match tensors.remove(name) {
        None => Ok(None),
        Some(tensor) if tensor.shape == ids.shape => {
            tensor.to_integers().map(Some).ok_or_else(|| refused(name))
        }
        Some(_) => Err(refused(name)),
    };
    let mask = taken(ATTENTION_MASK)?.unwrap_or_else(|| vec![1; input_ids.len()]);
    let positions = taken(POSITION_IDS)?;
    let counted = mask.chunks_exact(seq.max(1)).flat_map(|row| {
        let counted = row.iter().scan(0, |next, real| {
            let here = if *real == 0 { 0 } else { *next };
            *next += i64::from(*real != 0);
            Some(here)
        });
        counted.collect::<Vec<_>>()
    });
    let positions = positions.unwrap_or_else(|| counted.collect());
    let mut inputs = batch::lay_out("tensors".to_owned(), &[], 0, Padding::Right, 0);
    let first_padded = mask.chunks_exact(seq.max(1)).find(|row| row.contains(&0));
    inputs.padding =
        first_padded.map(|row| if row.first() == Some(&0) { Padding::Left } else { Padding::Right });
    (inputs.batch, inputs.seq) = (batch, seq);
    (inputs.input_ids, inputs.attention_mask, inputs.position_ids) = (input_ids, mask, positions);
    inputs.tensors = std::mem::take(tensors);
    inputs.digest = batch::digest(&inputs);
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_get_the_mask_and_the_positions_that_a_file_lacks() {
        let mut tensors = Tensors::from([
            (INPUT_IDS.to_owned(), Tensor::integers(vec![2, 3], [1, 2, 3, 0, 4, 5])),
            (ATTENTION_MASK.to_owned(), Tensor::integers(vec![2, 3], [1, 1, 1, 0, 1, 1])),
            ("pixel_values".to_owned(), Tensor::floats(vec![2, 1], [0.5, -0.5])),
        ]);
        let inputs = of_tensors(&mut tensors).unwrap();
        assert_eq!((inputs.batch, inputs.seq), (2, 3));
        assert_eq!(inputs.position_ids, [0, 1, 2, 0, 0, 1]);
        assert_eq!(inputs.padding, Some(Padding::Left));
        assert_eq!(inputs.tensors["pixel_values"].said(), "f32 2 × 1");
        let mut images = Tensors::from([("pixel_values".to_owned(), Tensor::floats(vec![4, 1], [0.0; 4]))]);
        let inputs = of_tensors(&mut images).unwrap();
        assert_eq!((inputs.batch, inputs.seq, inputs.input_ids.len()), (4, 0, 0));
        let mut codes =
            Tensors::from([(INPUT_IDS.to_owned(), Tensor::integers(vec![1, 2, 2], [1, 2, 3, 4]))]);
        let inputs = of_tensors(&mut codes).unwrap();
        assert_eq!((inputs.batch, inputs.seq, inputs.tensors[INPUT_IDS].shape.len()), (1, 0, 3));
        let mut wrong = Tensors::from([(INPUT_IDS.to_owned(), Tensor::floats(vec![1, 1], [0.0]))]);
        assert!(of_tensors(&mut wrong).is_err());
    }
}
