//! Embedding lookup.

use super::launch::{Params, int, launch, params};
use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::Region;
use crate::cuda::kernel_id::{Kernels, kernels, of};
use crate::error::Result;

const EMBED: Kernels = kernels!(Embed, "embed");
pub(super) const KERNELS: &[Kernels] = &[EMBED];
pub(super) const LAYOUTS: &[fn() -> String] = &[EmbedParams::layout];
const THREADS: usize = 128;

params! {
    struct EmbedParams {
        table: u64,
        ids: u64,
        out: u64,
        vocab: i32,
        hidden: i32,
        scale: f32,
        add: i32,
    }
}

/// `out[i] = table[ids[i]] * scale`, or added to `out`; the product and the sum are each rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Embed<'a> {
    /// Element type of table and out.
    pub dtype: Dtype,
    /// `[vocab, hidden]`.
    pub table: &'a Region,
    /// Rows of `table`.
    pub vocab: usize,
    /// Features.
    pub hidden: usize,
    /// `[rows]`, u32. The host checks them; for an id outside the table the kernel writes NaN.
    pub ids: &'a Region,
    /// Number of ids.
    pub rows: usize,
    /// Factor, already rounded as the model rounds it; `None` is 1.
    pub scale: Option<f32>,
    /// Whether the result is added to `out` (position and type embeddings).
    pub add: bool,
    /// `[rows, hidden]`.
    pub out: &'a Region,
}

impl Embed<'_> {
    /// Launches the kernel.
    ///
    /// # Errors
    /// If a region is too small or the launch fails.
    pub fn launch(&self) -> Result<()> {
        let size = self.dtype.size();
        let params = EmbedParams {
            table: self.table.checked("table", self.vocab * self.hidden, size)?,
            ids: self.ids.checked("ids", self.rows, 4)?,
            out: self.out.checked("out of embed", self.rows * self.hidden, size)?,
            vocab: int("vocabulary", self.vocab)?,
            hidden: int("hidden size", self.hidden)?,
            scale: self.scale.unwrap_or(1.0),
            add: i32::from(self.add),
        };
        launch(&**self.out.gpu(), of(EMBED, self.dtype), [self.rows, 1, 1], THREADS, 0, &params)
    }
}
