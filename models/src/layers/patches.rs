//! The patches of an image as a sequence, after a class token.

use candle_core::Tensor;

use super::Linear;
use crate::error::{Error, Result};
use crate::fused::Workspace;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// A convolution whose kernels do not overlap: one vector for each patch of an image.
pub struct PatchEmbedding {
    path: String,
    channels: usize,
    image_size: usize,
    patch_size: usize,
    /// Over the values of a patch, channel by channel and row by row.
    projection: Linear,
}

impl PatchEmbedding {
    /// Loads `weight`, `[hidden_size, channels, patch_size, patch_size]`, for square images.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        (channels, image_size, patch_size): (usize, usize, usize),
        hidden_size: usize,
    ) -> Result<Self> {
        let weight = weights.get("weight", (hidden_size, channels, patch_size, patch_size))?;
        Ok(Self {
            path: weights.path().to_owned(),
            channels,
            image_size,
            patch_size,
            projection: Linear::of(weights, &weight.flatten_from(1)?, false)?,
        })
    }

    /// Patches of an image.
    pub fn patches(&self) -> usize {
        (self.image_size / self.patch_size).saturating_pow(2)
    }

    /// `pixels: [images, channels, image_size, image_size]` to `[images, patches, hidden_size]`, patches row by row. A
    /// probe observes `[images, hidden_size, rows, columns]`, as torch's `Conv2d` returns it.
    ///
    /// # Errors
    /// If `pixels` has another shape.
    pub fn forward(&self, pass: &mut Pass, pixels: &Xs) -> Result<Xs> {
        let patches = self.project(pixels)?;
        if !pass.is_observed() {
            return Ok(patches);
        }
        let grid = self.image_size / self.patch_size;
        let as_images = |patches: &Tensor| -> Result<Xs> {
            let (images, _, features) = patches.dims3()?;
            Ok(patches.transpose(1, 2)?.contiguous()?.reshape((images, features, grid, grid))?.into())
        };
        let shown = as_images(&patches.observed()?)?;
        let before = pass.replaced();
        let shown =
            pass.shared(&self.path, pixels, shown, |pixels| as_images(self.project(pixels)?.tensor()?))?;
        if pass.replaced() == before {
            return Ok(patches);
        }
        Ok(shown.tensor()?.flatten_from(2)?.transpose(1, 2)?.contiguous()?.into())
    }

    fn project(&self, pixels: &Xs) -> Result<Xs> {
        let (size, channels, patch) = (self.image_size, self.channels, self.patch_size);
        let pixels = pixels.tensor()?;
        let images = match pixels.dims() {
            [images, found, height, width] if [*found, *height, *width] == [channels, size, size] => *images,
            found => {
                let needed = format!("[images, {channels}, {size}, {size}] is needed");
                return Err(Error::Inputs(format!("pixel_values has shape {found:?} where {needed}")));
            }
        };
        let grid = size / patch;
        // Pixels that do not fill a patch are not read.
        let pixels = pixels.narrow(2, 0, grid * patch)?.narrow(3, 0, grid * patch)?.contiguous()?;
        let patches = pixels
            .reshape(&[images, channels, grid, patch, grid, patch][..])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .contiguous()?
            .reshape((images, grid * grid, channels * patch * patch))?;
        self.projection.product(&patches.into())
    }
}

/// `xs: [batch, seq, features]` after `token: [features]` in each sequence: `[batch, 1 + seq, features]`.
///
/// # Errors
/// If a tensor operation fails.
pub fn after_token(pass: &Pass, token: &Tensor, xs: &Xs) -> Result<Xs> {
    let xs = xs.tensor()?;
    let (batch, _, features) = xs.dims3()?;
    let tokens = token.to_dtype(xs.dtype())?.reshape((1, 1, features))?.expand((batch, 1, features))?;
    in_buffer(pass, &Tensor::cat(&[&tokens.contiguous()?, xs], 1)?)
}

/// A tensor as a value of the backend: in the fused backend on the CPU in a buffer, so that later layers may work in it.
fn in_buffer(pass: &Pass, tensor: &Tensor) -> Result<Xs> {
    Ok(match pass.workspace() {
        Some(Workspace::Host(host)) if pass.dtype() == candle_core::DType::BF16 => {
            Xs::from(tensor.clone()).slot::<half::bf16>(&host)?.into()
        }
        Some(Workspace::Host(host)) => Xs::from(tensor.clone()).slot::<f32>(&host)?.into(),
        _ => tensor.clone().into(),
    })
}
