//! Elementwise and row kernels: activations, sums, factors, copies of columns, casts, softmax and means.

use super::launch::{Params, int, launch, optional, params};
use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::Region;
use crate::cuda::kernel_id::{Kernels, kernels, of};
use crate::error::{Error, Result};
use crate::kernels;

const MAP: Kernels = kernels!(Elementwise, "map");
const GATE: Kernels = kernels!(Elementwise, "gate");
const COPY: Kernels = kernels!(Elementwise, "copy");
const WIDEN: Kernels = kernels!(Elementwise, "widen");
const NARROW: Kernels = kernels!(Elementwise, "narrow");
const SOFTMAX: Kernels = kernels!(Elementwise, "softmax");
const MEAN: Kernels = kernels!(Elementwise, "mean");
pub(super) const KERNELS: &[Kernels] = &[MAP, GATE, COPY, WIDEN, NARROW, SOFTMAX, MEAN];
pub(super) const LAYOUTS: &[fn() -> String] = &[
    MapParams::layout,
    GateParams::layout,
    CopyParams::layout,
    CastParams::layout,
    SoftmaxParams::layout,
    MeanParams::layout,
];
const THREADS: usize = 256;
/// Elements per thread in kernels over flat memory.
const EACH: usize = 8;

params! {
    struct MapParams {
        xs: u64,
        other: u64,
        out: u64,
        len: u64,
        op: i32,
        factor: f32,
    }
}

params! {
    struct GateParams {
        xs: u64,
        out: u64,
        rows: i32,
        n: i32,
        xs_row: i32,
        up_first: i32,
        out_row: i32,
        activation: i32,
    }
}

params! {
    struct CopyParams {
        from: u64,
        to: u64,
        rows: i32,
        groups: i32,
        size: i32,
        from_row: i32,
        from_group: i32,
        to_row: i32,
        to_group: i32,
        vector: i32,
    }
}

params! {
    struct CastParams {
        from: u64,
        to: u64,
        len: u64,
    }
}

params! {
    struct SoftmaxParams {
        xs: u64,
        size: i32,
        row: i32,
    }
}

params! {
    struct MeanParams {
        xs: u64,
        real: u64,
        out: u64,
        tokens: i32,
        features: i32,
    }
}

/// An activation, computed in F32; the numbers are those of `activate` in `common.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu = 0,
    /// Gelu, tanh approximation.
    GeluTanh = 1,
    /// Gelu, exact (erf).
    GeluErf = 2,
    /// `x * sigmoid(1.702 x)`.
    QuickGelu = 3,
    /// `max(x, 0)`.
    Relu = 4,
    /// `max(x, 0)^2`.
    ReluSquared = 5,
    /// `tanh(x)`.
    Tanh = 6,
}

impl From<kernels::Activation> for Activation {
    fn from(activation: kernels::Activation) -> Self {
        match activation {
            kernels::Activation::Silu => Self::Silu,
            kernels::Activation::GeluTanh => Self::GeluTanh,
            kernels::Activation::GeluErf => Self::GeluErf,
            kernels::Activation::QuickGelu => Self::QuickGelu,
            kernels::Activation::Relu => Self::Relu,
            kernels::Activation::ReluSquared => Self::ReluSquared,
            kernels::Activation::Tanh => Self::Tanh,
        }
    }
}

/// An elementwise operation in F32, rounded once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MapOp {
    /// `xs * factor`.
    Scale(f32),
    /// `xs + factor * other`.
    Add(f32),
    /// `xs * other`.
    Multiply,
    /// `cap * tanh(xs / cap)`.
    SoftCap(f32),
    /// `activation(xs)`.
    Activate(Activation),
}

/// `out = op(xs, other)`; `out` may be `xs` or `other`.
#[derive(Clone, Copy, Debug)]
pub struct Map<'a> {
    /// Element type of `xs`, `other` and `out`.
    pub dtype: Dtype,
    /// The operation.
    pub op: MapOp,
    /// Number of elements.
    pub len: usize,
    /// `[len]`.
    pub xs: &'a Region,
    /// `[len]`, for operations with two operands.
    pub other: Option<&'a Region>,
    /// `[len]`.
    pub out: &'a Region,
}

impl Map<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let (op, factor) = match self.op {
            MapOp::Scale(factor) => (0, factor),
            MapOp::Add(factor) => (1, factor),
            MapOp::Multiply => (2, 1.0),
            MapOp::SoftCap(cap) => (3, cap),
            MapOp::Activate(activation) => (16 + activation as i32, 1.0),
        };
        if (op == 1 || op == 2) && self.other.is_none() {
            return Err(Error::Gpu(format!("{:?} has one operand", self.op)));
        }
        let size = self.dtype.size();
        let params = MapParams {
            xs: self.xs.checked("xs of map", self.len, size)?,
            other: optional(self.other, "other of map", self.len, size)?,
            out: self.out.checked("out of map", self.len, size)?,
            len: self.len as u64,
            op,
            factor,
        };
        let blocks = self.len.div_ceil(THREADS * EACH);
        launch(&**self.out.gpu(), of(MAP, self.dtype), [blocks, 1, 1], THREADS, 0, &params)
    }
}

/// `out = activation(gate) * up` where each row of `xs` holds gate and up.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// Element type of xs and out.
    pub dtype: Dtype,
    /// Activation of the gate.
    pub activation: Activation,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns of gate, up and out.
    pub n: usize,
    /// Gate in columns `0..n` of each row, up in columns `up_first..`.
    pub xs: &'a Region,
    /// Elements from one row of `xs` to the next.
    pub xs_row: usize,
    /// First column of up.
    pub up_first: usize,
    /// `[rows, n]`.
    pub out: &'a Region,
    /// Elements from one row of `out` to the next.
    pub out_row: usize,
}

impl Gate<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let (size, Self { rows, n, .. }) = (self.dtype.size(), *self);
        if rows == 0 || n == 0 {
            return Ok(());
        }
        if self.xs_row < self.up_first + n || self.out_row < n {
            return Err(Error::Gpu(format!("rows of a gate are shorter than {n}")));
        }
        let params = GateParams {
            xs: self.xs.checked("xs of gate", (rows - 1) * self.xs_row + self.up_first + n, size)?,
            out: self.out.checked("out of gate", (rows - 1) * self.out_row + n, size)?,
            rows: int("rows", rows)?,
            n: int("columns", n)?,
            xs_row: int("row", self.xs_row)?,
            up_first: int("column", self.up_first)?,
            out_row: int("row", self.out_row)?,
            activation: self.activation as i32,
        };
        let blocks = (rows * n.div_ceil(EACH)).div_ceil(THREADS);
        launch(&**self.out.gpu(), of(GATE, self.dtype), [blocks, 1, 1], THREADS, 0, &params)
    }
}

/// Copies `size` columns of each of `groups` groups of each row. Used to join parts, to cut them and to select
/// positions.
#[derive(Clone, Copy, Debug)]
pub struct CopyColumns<'a> {
    /// Element type of `from` and `to`.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Groups per row.
    pub groups: usize,
    /// Columns per group.
    pub size: usize,
    /// Source, read from its start.
    pub from: &'a Region,
    /// Row stride and group stride in elements.
    pub from_strides: (usize, usize),
    /// Destination, written from its start; must not overlap `from`.
    pub to: &'a Region,
    /// As `from_strides`.
    pub to_strides: (usize, usize),
}

impl CopyColumns<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let (bytes, Self { rows, groups, size, .. }) = (self.dtype.size(), *self);
        if rows * groups * size == 0 {
            return Ok(());
        }
        let len = |(row, group): (usize, usize)| (rows - 1) * row + (groups - 1) * group + size;
        let from = self.from.checked("from of copy", len(self.from_strides), bytes)?;
        let to = self.to.checked("to of copy", len(self.to_strides), bytes)?;
        let numbers = [from as usize, to as usize, size * bytes, self.from_strides.0 * bytes]
            .into_iter()
            .chain([self.from_strides.1, self.to_strides.0, self.to_strides.1].map(|stride| stride * bytes));
        let vector = numbers.into_iter().all(|number| number.is_multiple_of(16));
        let params = CopyParams {
            from,
            to,
            rows: int("rows", rows)?,
            groups: int("groups", groups)?,
            size: int("columns", size)?,
            from_row: int("row", self.from_strides.0)?,
            from_group: int("group", self.from_strides.1)?,
            to_row: int("row", self.to_strides.0)?,
            to_group: int("group", self.to_strides.1)?,
            vector: i32::from(vector),
        };
        let each = if vector { 16 / bytes } else { 1 };
        let blocks = (rows * groups * (size / each)).div_ceil(THREADS);
        launch(&**self.to.gpu(), of(COPY, self.dtype), [blocks, 1, 1], THREADS, 0, &params)
    }
}

/// Converts between an element type and F32; conversion from F32 rounds once.
#[derive(Clone, Copy, Debug)]
pub struct Cast<'a> {
    /// The element type.
    pub dtype: Dtype,
    /// Conversion to F32 (true) or from F32.
    pub widen: bool,
    /// Number of elements.
    pub len: usize,
    /// `[len]`.
    pub from: &'a Region,
    /// `[len]`.
    pub to: &'a Region,
}

impl Cast<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let (from, to) = if self.widen { (self.dtype.size(), 4) } else { (4, self.dtype.size()) };
        let params = CastParams {
            from: self.from.checked("from of cast", self.len, from)?,
            to: self.to.checked("to of cast", self.len, to)?,
            len: self.len as u64,
        };
        let kernels = if self.widen { WIDEN } else { NARROW };
        let blocks = self.len.div_ceil(THREADS * EACH);
        launch(&**self.to.gpu(), of(kernels, self.dtype), [blocks, 1, 1], THREADS, 0, &params)
    }
}

/// Softmax over rows, in place, with F32 sums; a row in which all values are minus infinity becomes zeros.
#[derive(Clone, Copy, Debug)]
pub struct Softmax<'a> {
    /// Element type of the rows.
    pub dtype: Dtype,
    /// Number of rows.
    pub rows: usize,
    /// Elements per row.
    pub size: usize,
    /// `[rows, row]`, of which the first `size` columns are used.
    pub xs: &'a Region,
    /// Elements from one row to the next.
    pub row: usize,
}

impl Softmax<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let Self { rows, size, row, .. } = *self;
        if rows * size == 0 {
            return Ok(());
        }
        if row < size {
            return Err(Error::Gpu(format!("rows of {row} for a softmax over {size}")));
        }
        let params = SoftmaxParams {
            xs: self.xs.checked("xs of softmax", (rows - 1) * row + size, self.dtype.size())?,
            size: int("columns", size)?,
            row: int("row", row)?,
        };
        launch(&**self.xs.gpu(), of(SOFTMAX, self.dtype), [rows, 1, 1], THREADS, 0, &params)
    }
}

/// `out[b]` = mean of `xs[b, t]` over the real (not padding) tokens of sequence b; zeros if there are none.
#[derive(Clone, Copy, Debug)]
pub struct MeanOfRealTokens<'a> {
    /// Element type of xs and out.
    pub dtype: Dtype,
    /// Batch size.
    pub batch: usize,
    /// Tokens per sequence.
    pub tokens: usize,
    /// Features.
    pub features: usize,
    /// `[batch, tokens, features]`.
    pub xs: &'a Region,
    /// u8, `[batch, tokens]`: 0 at padding; `None` if all tokens are real.
    pub real: Option<&'a Region>,
    /// `[batch, features]`.
    pub out: &'a Region,
}

impl MeanOfRealTokens<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let (size, Self { batch, tokens, features, .. }) = (self.dtype.size(), *self);
        let params = MeanParams {
            xs: self.xs.checked("xs of mean", batch * tokens * features, size)?,
            real: optional(self.real, "real of mean", batch * tokens, 1)?,
            out: self.out.checked("out of mean", batch * features, size)?,
            tokens: int("tokens", tokens)?,
            features: int("features", features)?,
        };
        let grid = [features.div_ceil(THREADS), batch, 1];
        launch(&**self.out.gpu(), of(MEAN, self.dtype), grid, THREADS, 0, &params)
    }
}
