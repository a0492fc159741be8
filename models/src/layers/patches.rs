//! The patches of images as a sequence: after a class token, merged to fewer, in the places of tokens.

use candle_core::Tensor;

use super::Linear;
use crate::error::{Error, Result};
use crate::fused::{Rows, Workspace};
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::{Value, Xs};

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

/// A convolution over patches that are cut out already: one vector for each.
pub struct FlatPatches {
    path: String,
    proj_path: String,
    /// Channels, frames, height and width of a patch.
    shape: [usize; 4],
    /// Over the values of a patch, in this order.
    projection: Linear,
}

impl FlatPatches {
    /// Loads `proj.weight`, `[hidden_size, channels, frames, patch_size, patch_size]`.
    ///
    /// # Errors
    /// If the tensor is missing or has another shape.
    pub fn load(
        weights: &Weights,
        (channels, frames, patch_size): (usize, usize, usize),
        hidden_size: usize,
    ) -> Result<Self> {
        let proj = weights.pp("proj");
        let weight = proj.get("weight", (hidden_size, channels, frames, patch_size, patch_size))?;
        Ok(Self {
            path: weights.path().to_owned(),
            proj_path: proj.path().to_owned(),
            shape: [channels, frames, patch_size, patch_size],
            projection: Linear::of(&proj, &weight.flatten_from(1)?, false)?,
        })
    }

    /// Values of a patch.
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// `patches: [1, patches, values]` to `[1, patches, hidden_size]`. A probe observes the convolution as torch's `Conv3d`
    /// takes and returns it.
    ///
    /// # Errors
    /// If the last dimension of `patches` is not [`FlatPatches::values`].
    pub fn forward(&self, pass: &mut Pass, patches: Xs) -> Result<Xs> {
        pass.module(&self.path, patches, |pass, patches| {
            let out = self.projection.product(&patches)?;
            if !pass.is_observed() {
                return Ok(out);
            }
            let [channels, frames, height, width] = self.shape;
            let values = patches.observed()?.reshape(((), channels, frames, height, width))?;
            let shown = |out: &Tensor| -> Result<Xs> {
                let (_, patches, features) = out.dims3()?;
                Ok(out.reshape((patches, features, 1, 1, 1))?.into())
            };
            let before = pass.replaced();
            let seen = pass.shared(&self.proj_path, &values.into(), shown(&out.observed()?)?, |values| {
                let values = values.tensor()?.flatten_from(1)?.unsqueeze(0)?;
                shown(self.projection.product(&values.into())?.tensor()?)
            })?;
            if pass.replaced() == before {
                return Ok(out);
            }
            Ok(seen.tensor()?.flatten_from(1)?.unsqueeze(0)?.into())
        })
    }
}

/// `xs: [1, seq, features]` with the features of every `count` neighbouring positions concatenated: `[1, seq / count, count *
/// features]`.
///
/// # Errors
/// If `count` does not divide the number of positions.
pub fn merge_neighbours(xs: &Xs, count: usize) -> Result<Xs> {
    let merged = |(batch, seq, features): (usize, usize, usize)| (batch, seq / count, count * features);
    match xs.value() {
        Value::Fused(Rows::F32(rows)) => Ok(rows.merged(count).into()),
        Value::Fused(Rows::Bf16(rows)) => Ok(rows.merged(count).into()),
        _ => {
            let xs = xs.tensor()?;
            Ok(xs.reshape(merged(xs.dims3()?))?.into())
        }
    }
}

/// `xs: [batch, seq, features]` with the positions for which `at` is true, row by row, replaced by `others: [1, count,
/// features]` in order; all other positions are kept.
///
/// # Errors
/// If `others` are not as many as the positions.
pub fn put_at(pass: &Pass, xs: &Xs, others: &Xs, at: &[bool]) -> Result<Xs> {
    let (xs, others) = (xs.tensor()?, others.tensor()?);
    let (batch, seq, features) = xs.dims3()?;
    let (_, count, _) = others.dims3()?;
    let kept = batch * seq;
    let mut next = kept..kept + count;
    let rows: Option<Vec<u32>> = (at.iter().enumerate())
        .map(|(row, at)| if *at { next.next() } else { Some(row) })
        .map(|row| row.map(|row| row as u32))
        .collect();
    let rows = rows.filter(|_| next.is_empty()).ok_or_else(|| {
        let places = at.iter().filter(|at| **at).count();
        Error::Inputs(format!("the images have {count} tokens, and the texts {places} places for them"))
    })?;
    let all = Tensor::cat(&[&xs.reshape((kept, features))?, &others.reshape((count, features))?], 0)?;
    let rows = Tensor::from_vec(rows, kept, xs.device())?;
    in_buffer(pass, &all.index_select(&rows, 0)?.reshape((batch, seq, features))?)
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
