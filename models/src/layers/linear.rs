//! Linear layers.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};
use half::bf16;

use super::{Embedding, accumulation};
use crate::error::{Error, Result};
use crate::fused::{Float, Slot, Workspace};
use crate::kernels::{Epilogue, PackedLinear};
use crate::pass::{Pass, Xs};
use crate::weights::Weights;

/// `xs @ weight^T + bias`.
#[derive(Clone)]
pub struct Linear {
    path: String,
    form: LinearForm,
}

#[derive(Clone)]
enum LinearForm {
    /// `[out, in]` and `[out]`.
    Eager(Tensor, Option<Tensor>),
    Fused(Arc<dyn Packed>),
}

impl Linear {
    /// Loads `weight`, `[out, in]`, and, where `bias` says so, `bias`, `[out]`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, output: usize, bias: bool) -> Result<Self> {
        let weight = weights.get("weight", (output, input))?;
        let bias = bias.then(|| weights.get("bias", output)).transpose()?;
        Self::new(weights, weight, bias, false)
    }

    /// Loads `weight` the other way round, `[in, out]`, and `bias`, `[out]` (transformers' `Conv1D`).
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load_transposed(weights: &Weights, input: usize, output: usize) -> Result<Self> {
        let weight = weights.get("weight", (input, output))?.t()?.contiguous()?;
        Self::new(weights, weight, Some(weights.get("bias", output)?), false)
    }

    fn new(weights: &Weights, weight: Tensor, bias: Option<Tensor>, is_last: bool) -> Result<Self> {
        let form = match weights.workspace() {
            None => LinearForm::Eager(weight, bias),
            Some(workspace) => LinearForm::Fused(pack(workspace, &[weight], bias.as_ref(), is_last)?),
        };
        Ok(Self { path: weights.path().to_owned(), form })
    }

    /// A layer that shares the embedding's weight; where `bias` says so, with a `bias` of its own, `[vocab_size]`.
    ///
    /// # Errors
    /// If the bias is missing or has another shape.
    pub fn tied(weights: &Weights, embedding: &Embedding, bias: bool) -> Result<Self> {
        let weight = embedding.weight().clone();
        let bias = bias.then(|| weights.get("bias", weight.dim(0)?)).transpose()?;
        Self::new(weights, weight, bias, true)
    }

    /// The head of a causal LM: `lm_head.weight`, or the embedding's where the two are tied.
    ///
    /// # Errors
    /// If the head is not tied and its tensor is missing.
    pub fn lm_head(weights: &Weights, embedding: &Embedding, tied: bool) -> Result<Self> {
        let weights = weights.pp("lm_head");
        if tied {
            return Self::tied(&weights, embedding, false);
        }
        Self::new(&weights, weights.get("weight", embedding.weight().shape())?, None, true)
    }

    /// Goes by another module path than the checkpoint's name for its weight.
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
        pass.module(&self.path, xs.clone(), |_, xs| match &self.form {
            LinearForm::Eager(weight, bias) => Ok(linear(xs.tensor(), weight, bias.as_ref())?.into()),
            LinearForm::Fused(packed) => packed.forward(&xs),
        })
    }
}

/// Several linear layers that read the same input: q, k and v, or gate and up.
///
/// The fused form multiplies once by all of them and reports no part of its own.
#[derive(Clone)]
pub struct Joined<const N: usize> {
    form: JoinedForm<N>,
}

#[derive(Clone)]
enum JoinedForm<const N: usize> {
    Eager([Linear; N]),
    /// Outputs of each part.
    Fused(Arc<dyn Packed>, [usize; N]),
}

impl<const N: usize> Joined<N> {
    /// Loads the layers `(name, out)` under `weights`.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    pub fn load(weights: &Weights, input: usize, parts: [(&str, usize); N], bias: bool) -> Result<Self> {
        let Some(workspace) = weights.workspace() else {
            let load = |(name, output)| Linear::load(&weights.pp(name), input, output, bias);
            return Ok(Self { form: JoinedForm::Eager(array(parts.into_iter().map(load))?) });
        };
        let part = |(name, output)| weights.pp(name).get("weight", (output, input));
        let joined = parts.into_iter().map(part).collect::<Result<Vec<_>>>()?;
        let biases = parts.into_iter().map(|(name, output)| weights.pp(name).get("bias", output));
        let bias = bias.then(|| Ok::<_, Error>(Tensor::cat(&biases.collect::<Result<Vec<_>>>()?, 0)?));
        let packed = pack(workspace, &joined, bias.transpose()?.as_ref(), false)?;
        Ok(Self { form: JoinedForm::Fused(packed, parts.map(|(_, output)| output)) })
    }

    /// `xs: [.., in]` to one `[.., out]` a part.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not `in`.
    pub fn forward(&self, pass: &mut Pass, xs: &Xs) -> Result<[Xs; N]> {
        match &self.form {
            JoinedForm::Eager(parts) => array(parts.iter().map(|part| part.forward(pass, xs))),
            JoinedForm::Fused(packed, outputs) => {
                let joined = packed.forward(xs)?;
                let mut first = 0;
                array(outputs.iter().map(|columns| {
                    let part = joined.columns(first, *columns);
                    first += columns;
                    part
                }))
            }
        }
    }
}

fn array<T, const N: usize>(items: impl Iterator<Item = Result<T>>) -> Result<[T; N]> {
    let items = items.collect::<Result<Vec<_>>>()?;
    Ok(items.try_into().unwrap_or_else(|_| unreachable!("there are N items")))
}

/// A packed weight of either element type.
trait Packed: Send + Sync {
    fn forward(&self, xs: &Xs) -> Result<Xs>;
}

struct PackedWeight<T: Float> {
    workspace: Arc<Workspace>,
    weight: PackedLinear<T>,
    /// Whether the result leaves the pass, and with it the buffers.
    is_last: bool,
}

fn pack(
    workspace: &Arc<Workspace>,
    parts: &[Tensor],
    bias: Option<&Tensor>,
    is_last: bool,
) -> Result<Arc<dyn Packed>> {
    Ok(match parts[0].dtype() {
        DType::BF16 => Arc::new(PackedWeight::<bf16>::new(workspace, parts, bias, is_last)?),
        _ => Arc::new(PackedWeight::<f32>::new(workspace, parts, bias, is_last)?),
    })
}

impl<T: Float> PackedWeight<T> {
    fn new(
        workspace: &Arc<Workspace>,
        parts: &[Tensor],
        bias: Option<&Tensor>,
        is_last: bool,
    ) -> Result<Self> {
        let input = parts[0].dim(1)?;
        let values =
            parts.iter().map(|part| Ok(part.flatten_all()?.to_vec1()?)).collect::<Result<Vec<Vec<T>>>>()?;
        let slices: Vec<&[T]> = values.iter().map(Vec::as_slice).collect();
        let bias =
            bias.map(|bias| Ok::<_, Error>(bias.to_dtype(DType::F32)?.to_vec1::<f32>()?)).transpose()?;
        let weight = PackedLinear::new(&workspace.pool, &slices, input, bias.as_deref());
        Ok(Self { workspace: Arc::clone(workspace), weight, is_last })
    }
}

impl<T: Float> Packed for PackedWeight<T> {
    fn forward(&self, xs: &Xs) -> Result<Xs> {
        let (pool, output) = (&self.workspace.pool, self.weight.n());
        let xs = Slot::<T>::of(&self.workspace, xs)?.whole();
        let rows = xs.rows();
        if self.is_last {
            let mut out = vec![T::zero(); rows * output];
            self.weight.forward(pool, &xs.read(), rows, &mut out, Epilogue::Store);
            return Ok(Tensor::from_vec(out, (xs.batch, xs.seq, output), &Device::Cpu)?.into());
        }
        let out = Slot::<T>::take(&self.workspace, xs.batch, xs.seq, output);
        self.weight.forward(pool, &xs.read(), rows, &mut out.write(), Epilogue::Store);
        Ok(out.into_xs())
    }
}

pub(super) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    let mut dims = xs.dims().to_vec();
    let rows = xs.elem_count() / xs.dim(D::Minus1)?;
    if let Some(last) = dims.last_mut() {
        *last = output;
    }
    let dtype = xs.dtype();
    let xs = xs.reshape((rows, input))?;
    let ys = match bias {
        None => xs.matmul(&weight.t()?)?,
        // torch's addmm adds the bias to the F32 sum and rounds once.
        Some(bias) if matches!(dtype, DType::BF16 | DType::F16) => {
            let wide = accumulation(dtype);
            let sums = xs.to_dtype(wide)?.matmul(&weight.to_dtype(wide)?.t()?)?;
            sums.broadcast_add(&bias.to_dtype(wide)?)?.to_dtype(dtype)?
        }
        Some(bias) => xs.matmul(&weight.t()?)?.broadcast_add(bias)?,
    };
    Ok(ys.reshape(dims)?)
}
