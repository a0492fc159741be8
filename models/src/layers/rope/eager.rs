//! The rotation in the eager backend.

use candle_core::{D, Tensor};

use super::{Rope, RopeTables};
use crate::error::{Error, Result};

impl Rope {
    /// `xs: [batch, heads, seq, head_dim]`, contiguous, same shape out. Rotates the first `rotary_dim` features of
    /// each head in the dtype of the tables; each product and sum is rounded as in torch.
    pub(in super::super) fn apply(&self, xs: &Tensor) -> Result<Tensor> {
        let RopeTables::Eager { cos, sin, interleaved, is_mislaid } = &self.0 else {
            return Err(Error::Unsupported("rope on a tensor in the fused backend".to_owned()));
        };
        let rotary_dim = 2 * cos.dim(D::Minus1)?;
        let head_dim = xs.dim(D::Minus1)?;
        let rotate = |xs: &Tensor| {
            let wide = xs.to_dtype(cos.dtype())?;
            let turned = if *is_mislaid {
                mislaid(&wide, [cos, sin], *interleaved)?
            } else if *interleaved {
                candle_nn::rotary_emb::rope_i(&wide, cos, sin)?
            } else {
                candle_nn::rotary_emb::rope(&wide, cos, sin)?
            };
            turned.to_dtype(xs.dtype())
        };
        if rotary_dim == head_dim {
            return Ok(rotate(xs)?);
        }
        let turned = rotate(&xs.narrow(D::Minus1, 0, rotary_dim)?.contiguous()?)?;
        // Both parts are contiguous, because candle otherwise returns a concatenation with transposed strides.
        let kept = xs.narrow(D::Minus1, rotary_dim, head_dim - rotary_dim)?.contiguous()?;
        Ok(Tensor::cat(&[&turned, &kept], D::Minus1)?)
    }
}

/// The rotation of `xs: [batch, heads, seq, features]` with cosines and sines laid out for the other pairing of features.
fn mislaid(xs: &Tensor, tables: [&Tensor; 2], interleaved: bool) -> candle_core::Result<Tensor> {
    let (batch, heads, seq, features) = xs.dims4()?;
    let half = features / 2;
    let laid_out = |table: &Tensor| {
        let both = if interleaved {
            Tensor::cat(&[table, table], 2)?
        } else {
            Tensor::stack(&[table, table], 3)?.flatten_from(2)?
        };
        both.unsqueeze(1)
    };
    let turned = if interleaved {
        let pairs = xs.reshape((batch, heads, seq, half, 2))?;
        Tensor::cat(&[pairs.narrow(4, 1, 1)?.neg()?, pairs.narrow(4, 0, 1)?], 4)?.reshape(xs.shape())?
    } else {
        Tensor::cat(&[xs.narrow(3, half, half)?.neg()?, xs.narrow(3, 0, half)?], 3)?
    };
    xs.broadcast_mul(&laid_out(tables[0])?)? + turned.broadcast_mul(&laid_out(tables[1])?)?
}
