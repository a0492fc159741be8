//! Linear layers.

use candle_core::{D, DType, Tensor};

use super::embedding::EmbeddingBackend;
use super::packed::Packed;
use super::split::each;
use super::{Embedding, accumulation, split};
use crate::error::Result;
use crate::fused::Room;
use crate::pass::Pass;
use crate::weights::Weights;
use crate::xs::Xs;

/// `xs @ weight^T + bias`.
#[derive(Clone)]
pub struct Linear {
    path: String,
    backend: LinearBackend,
}

#[derive(Clone)]
enum LinearBackend {
    /// Weight `[in, out]` and bias `[out]`.
    Eager(Tensor, Option<Tensor>),
    Fused(Packed, Room),
}

impl Linear {
    /// Loads `weight`, `[out, in]`, and, if `bias`, `bias`, `[out]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, output: usize, bias: bool) -> Result<Self> {
        Self::new(weights, input, output, bias, Room::Now)
    }

    /// Loads `weight`, stored transposed as `[in, out]`, and `bias`, `[out]` (transformers' `Conv1D`).
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load_transposed(weights: &Weights, input: usize, output: usize) -> Result<Self> {
        let weight = weights.get("weight", (input, output))?;
        let backend = match weights.workspace() {
            None => LinearBackend::Eager(weight, Some(weights.get("bias", output)?)),
            Some(workspace) => {
                let weight = weight.t()?.contiguous()?;
                let packed = Packed::of(workspace, &weight, Some(&weights.vector("bias", output)?))?;
                LinearBackend::Fused(packed, Room::Now)
            }
        };
        Ok(Self { path: weights.path().to_owned(), backend })
    }

    /// A layer with the weight `weight`, `[out, in]`, as the module `weights`; if `bias`, it loads `bias`, `[out]`.
    ///
    /// # Errors
    /// If the bias is missing or has another shape.
    pub(super) fn of(weights: &Weights, weight: &Tensor, bias: bool) -> Result<Self> {
        let output = weight.dim(0)?;
        let backend = match weights.workspace() {
            None => LinearBackend::Eager(
                weight.t()?.contiguous()?,
                bias.then(|| weights.get("bias", output)).transpose()?,
            ),
            Some(workspace) => {
                let bias = bias.then(|| weights.vector("bias", output)).transpose()?;
                LinearBackend::Fused(Packed::of(workspace, weight, bias.as_deref())?, Room::Now)
            }
        };
        Ok(Self { path: weights.path().to_owned(), backend })
    }

    fn new(weights: &Weights, input: usize, output: usize, bias: bool, room: Room) -> Result<Self> {
        let backend = match weights.workspace() {
            // candle packs a weight again for each product. If it must also transpose the weight, packing takes as
            // long as the arithmetic.
            None => LinearBackend::Eager(
                weights.get("weight", (output, input))?.t()?.contiguous()?,
                bias.then(|| weights.get("bias", output)).transpose()?,
            ),
            Some(workspace) => {
                let bias = bias.then(|| weights.vector("bias", output)).transpose()?;
                let packed = Packed::load(workspace, &[(weights.clone(), output)], input, bias.as_deref())?;
                LinearBackend::Fused(packed, room)
            }
        };
        Ok(Self { path: weights.path().to_owned(), backend })
    }

    /// A layer that shares the embedding's weight; if `bias`, it has its own `bias`, `[vocab_size]`.
    ///
    /// # Errors
    /// If the bias is missing or has another shape.
    pub fn tied(weights: &Weights, embedding: &Embedding, bias: bool) -> Result<Self> {
        let (vocab_size, _) = embedding.shape();
        let backend = match embedding.backend() {
            // The weight is shared, not copied, because the head's weight is the largest of all.
            EmbeddingBackend::Eager(weight) => {
                LinearBackend::Eager(weight.t()?, bias.then(|| weights.get("bias", vocab_size)).transpose()?)
            }
            EmbeddingBackend::Fused(packed) => {
                let packed = match bias.then(|| weights.vector("bias", vocab_size)).transpose()? {
                    Some(bias) => packed.with_bias(&bias)?,
                    None => packed.clone(),
                };
                LinearBackend::Fused(packed, Room::Later)
            }
        };
        Ok(Self { path: weights.path().to_owned(), backend })
    }

    /// The head of a causal LM at `weights`. If `tied`, it uses the embedding's weight; if `bias`, it always has its
    /// own bias.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn lm_head(weights: &Weights, embedding: &Embedding, tied: bool, bias: bool) -> Result<Self> {
        if tied {
            return Self::tied(weights, embedding, bias);
        }
        let (vocab_size, hidden_size) = embedding.shape();
        Self::new(weights, hidden_size, vocab_size, bias, Room::Later)
    }

    /// Sets a module path that differs from the checkpoint's name for the weight.
    #[must_use]
    pub fn named(mut self, path: &str) -> Self {
        path.clone_into(&mut self.path);
        self
    }

    /// `xs: [.., in]` to `[.., out]`; sums in F32 for 16-bit dtypes, in the dtype itself otherwise.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not `in`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<Xs> {
        pass.module(&self.path, xs.clone(), |_, xs| self.product(&xs))
    }

    /// As [`Linear::forward`], without a module.
    pub(super) fn product(&self, xs: &Xs) -> Result<Xs> {
        match &self.backend {
            LinearBackend::Eager(weight, bias) => Ok(linear(xs.tensor()?, weight, bias.as_ref())?.into()),
            LinearBackend::Fused(packed, room) => packed.forward(xs, *room),
        }
    }
}

/// Several linear layers that read the same input: q, k and v, or gate and up.
///
/// The fused backend multiplies by all of them at once.
#[derive(Clone)]
pub struct Joined<const N: usize> {
    backend: JoinedBackend<N>,
}

#[derive(Clone)]
enum JoinedBackend<const N: usize> {
    Eager([Linear; N]),
    /// Output features and module path of each part.
    Fused(Packed, [usize; N], [String; N]),
}

impl<const N: usize> Joined<N> {
    /// Loads the layers `(name, out)` under `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, parts: [(&str, usize); N], bias: bool) -> Result<Self> {
        Self::load_each(weights, input, parts.map(|(name, output)| (name, output, bias)))
    }

    /// Loads the layers `(name, out, bias)` under `weights`, with or without a bias each.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load_each(weights: &Weights, input: usize, parts: [(&str, usize, bool); N]) -> Result<Self> {
        let Some(workspace) = weights.workspace() else {
            let load = |(name, output, bias)| Linear::load(&weights.pp(name), input, output, bias);
            let parts = parts.into_iter().map(load).collect::<Result<Vec<_>>>()?;
            let parts = parts.try_into().unwrap_or_else(|_| unreachable!("there are N parts"));
            return Ok(Self { backend: JoinedBackend::Eager(parts) });
        };
        let has_bias = parts.iter().any(|(_, _, bias)| *bias);
        let mut biases = Vec::new();
        for (name, output, bias) in parts.into_iter().filter(|_| has_bias) {
            if bias {
                biases.extend(weights.pp(name).vector("bias", output)?);
            } else {
                biases.resize(biases.len() + output, 0.0);
            }
        }
        let outputs = parts.map(|(_, output, _)| output);
        let paths = parts.map(|(name, ..)| weights.pp(name).path().to_owned());
        let parts = parts.map(|(name, output, _)| (weights.pp(name), output));
        let packed = Packed::load(workspace, &parts, input, has_bias.then_some(&biases))?;
        Ok(Self { backend: JoinedBackend::Fused(packed, outputs, paths) })
    }

    /// `xs: [.., in]` to one `[.., out]` for each part.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not `in`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<[Xs; N]> {
        match &self.backend {
            JoinedBackend::Eager(parts) => each(parts, |part| part.forward(pass, xs)),
            JoinedBackend::Fused(packed, outputs, paths) => {
                let parts = |xs: &Xs| split(&packed.forward(xs, Room::Now)?, *outputs);
                let mut out = parts(xs)?;
                if pass.is_observed() {
                    for (index, path) in paths.iter().enumerate() {
                        let part = out[index].clone();
                        let again = |xs: &Xs| parts(xs).map(|parts| parts[index].clone());
                        out[index] = pass.shared(path, xs, part, again)?;
                    }
                }
                Ok(out)
            }
        }
    }
}

/// `xs: [.., in]`, `weight: [in, out]`, `bias: [out]` to `[.., out]`.
pub(super) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (input, output) = weight.dims2()?;
    let mut dims = xs.dims().to_vec();
    let rows = xs.elem_count() / xs.dim(D::Minus1)?;
    if let Some(last) = dims.last_mut() {
        *last = output;
    }
    let dtype = xs.dtype();
    let xs = xs.reshape((rows, input))?;
    let ys = match bias {
        None => product(&xs, weight)?,
        // torch's addmm adds the bias to the F32 sum and rounds once.
        Some(bias) if matches!(dtype, DType::BF16 | DType::F16) => {
            let wide = accumulation(dtype);
            let sums = xs.to_dtype(wide)?.matmul(&weight.to_dtype(wide)?)?;
            sums.broadcast_add(&bias.to_dtype(wide)?)?.to_dtype(dtype)?
        }
        Some(bias) => product(&xs, weight)?.broadcast_add(bias)?,
    };
    Ok(ys.reshape(dims)?)
}

/// Products that an F32 sum on the CPU adds before it is added to the total. Blocks of 128 make a forward pass of many rows a
/// tenth slower. With 256 the errors of 64 rows were 1.4 times torch's on gemma-3-270m, with 128 1.1 times.
fn block_size(rows: usize) -> usize {
    if rows <= 64 { 128 } else { 256 }
}

/// `xs: [rows, in]`, `weight: [in, out]` to `[rows, out]`; sums in the dtype, in F32 on the CPU in blocks.
///
/// candle adds the products of a single row one after the other. If one product is a thousand times larger than the others, as at
/// the first position of many decoders, every addition after it rounds the sum by up to half of its last bit: the logits of
/// SmolLM2-135M for one token were 2.2 times as far from float64 as torch's, which also sums in blocks. The transposed weight of
/// a tied head is not contiguous; for a single row candle sums its products in the lanes of vectors.
fn product(xs: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, input) = xs.dims2()?;
    if xs.dtype() != DType::F32 || !xs.device().is_cpu() || !weight.is_contiguous() {
        return Ok(xs.matmul(weight)?);
    }
    let most = block_size(rows);
    let block = |start: usize| {
        let size = most.min(input - start);
        xs.narrow(1, start, size)?.matmul(&weight.narrow(0, start, size)?)
    };
    let mut sum = block(0)?;
    for start in (most..input).step_by(most) {
        sum = (sum + block(start)?)?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    /// Each addition to a sum of 1 rounds away 0.4 units in its last place, always in the same direction.
    #[test]
    fn a_large_product_loses_the_products_of_its_own_block_at_most() {
        let (input, output) = (1536, 40);
        let small = 0.4 * f32::EPSILON;
        let row = (0..input).map(|i| if i == 0 { 1.0 } else { small });
        for rows in [1, 2, 5, 40] {
            let xs = Tensor::from_iter((0..rows).flat_map(|_| row.clone()), &Device::Cpu).unwrap();
            let xs = xs.reshape((rows, input)).unwrap();
            let weight = Tensor::ones((input, output), DType::F32, &Device::Cpu).unwrap();
            let exact = 1.0 + (input - 1) as f64 * f64::from(small);
            // Half a unit in the last place for each addition to the large product: those of its block and of the totals.
            let block = block_size(rows);
            let bound = (block + input / block) as f64 * 0.5 * f64::from(f32::EPSILON);
            for y in linear(&xs, &weight, None).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap() {
                let error = (f64::from(y) - exact).abs();
                assert!(error <= bound, "{rows} rows: {error:e}, the bound is {bound:e}");
            }
        }
    }
}
