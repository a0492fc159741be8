//! Ids for embedding tables other than the token embedding: positions and token types.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::inputs::PassInputs;
use crate::pass::Pass;
use crate::xs::Xs;

/// The forward pass's positions as ids, `[batch, seq]`.
///
/// # Errors
/// If a position is negative.
pub fn position_ids(pass: &Pass) -> Result<Xs> {
    ids(pass, |pass| pass.positions().iter().copied().map(id).collect())
}

/// `RoBERTa`'s positions, `[batch, seq]`: real tokens count from `padding_idx + 1`, padding has the position
/// `padding_idx`. The token ids, not the mask, decide which tokens are padding (transformers 5.23.0,
/// `RobertaEmbeddings.create_position_ids_from_input_ids`). Position ids from the caller are used unchanged.
///
/// # Errors
/// If a tensor operation fails.
pub fn position_ids_after(pass: &Pass, padding_idx: usize) -> Result<Xs> {
    if pass.has_position_ids() {
        return position_ids(pass);
    }
    let padding_idx = padding_idx as i64;
    ids(pass, move |pass| {
        let tokens: Vec<u32> = pass.input_ids().flatten_all()?.to_vec1()?;
        let mut positions = Vec::with_capacity(tokens.len());
        for row in tokens.chunks(pass.seq()) {
            let mut count = 0;
            for token in row {
                let is_real = i64::from(*token) != padding_idx;
                count += i64::from(is_real);
                positions.push(id(padding_idx + if is_real { count } else { 0 })?);
            }
        }
        Ok(positions)
    })
}

/// Token types, `[batch, seq]`: all 0, transformers' default.
///
/// # Errors
/// If the tensor cannot be made.
pub fn token_type_ids(pass: &Pass) -> Result<Xs> {
    ids(pass, |pass| Ok(vec![0; pass.batch() * pass.seq()]))
}

/// The ids that `compute` returns; on a GPU it is called again when a captured graph is launched on other inputs.
fn ids(pass: &Pass, compute: impl Fn(&PassInputs) -> Result<Vec<u32>> + Send + Sync + 'static) -> Result<Xs> {
    let ids = Tensor::from_vec(compute(pass)?, (pass.batch(), pass.seq()), pass.device())?;
    if let Ok(device) = pass.device_pass() {
        device.know_ids(&ids, compute);
    }
    Ok(ids.into())
}

fn id(id: i64) -> Result<u32> {
    u32::try_from(id).map_err(|_| Error::Inputs(format!("position {id} is negative")))
}
