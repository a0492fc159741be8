//! The memory of one checkpoint on a GPU: weights, and a buffer pool for forward passes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};

use super::dtype::Dtype;
use super::gpu::{Buffer, Gpu, Region};
use crate::error::Result;
use crate::lock::lock;

/// Device memory of one loaded checkpoint.
pub(crate) struct Space {
    pub(super) gpu: Arc<dyn Gpu>,
    pub(super) dtype: Dtype,
    /// Buffers by length in bytes.
    pools: Mutex<BTreeMap<usize, Pool>>,
    weight_bytes: AtomicUsize,
}

/// Buffers of one length; a buffer is in use while a reference exists outside the pool.
#[derive(Default)]
struct Pool {
    regions: Vec<Arc<Region>>,
    /// Number of buffers reserved for one input shape each.
    kept: usize,
    /// Peak number of other buffers in use at the same time.
    most: usize,
}

impl Space {
    pub(crate) fn new(gpu: Arc<dyn Gpu>, dtype: Dtype) -> Self {
        Self { gpu, dtype, pools: Mutex::default(), weight_bytes: AtomicUsize::new(0) }
    }

    /// Bytes of the weights, and bytes of the pool's buffers.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let pools = lock(&self.pools);
        let buffers = pools.iter().map(|(bytes, pool)| bytes * pool.regions.len()).sum();
        (self.weight_bytes.load(Ordering::Relaxed), buffers)
    }

    /// Acquires a free buffer of at least `bytes` bytes, at most 25 % more (and at least 256 bytes).
    ///
    /// A buffer serves only its own length class and is never freed, so that a second forward pass of a shape finds the
    /// buffers of the first one, and the addresses in a captured graph stay valid.
    pub(super) fn acquire(&self, bytes: usize) -> Result<Arc<Region>> {
        let class = class_of(bytes);
        let mut pools = lock(&self.pools);
        let pool = pools.entry(class).or_default();
        let is_free = |region: &&Arc<Region>| Arc::strong_count(region) == 1;
        let acquired = match pool.regions.iter().find(is_free) {
            Some(free) => Arc::clone(free),
            None => self.new_buffer(pool, class)?,
        };
        let free = pool.regions.iter().filter(is_free).count();
        pool.most = pool.most.max((pool.regions.len() - free).saturating_sub(pool.kept));
        Ok(acquired)
    }

    fn new_buffer(&self, pool: &mut Pool, class: usize) -> Result<Arc<Region>> {
        let region = Arc::new(Buffer::new(&self.gpu, class)?.region());
        pool.regions.push(Arc::clone(&region));
        Ok(region)
    }

    /// Reserves buffers in use for one input shape and allocates replacements, so that other shapes find as many
    /// buffers as before.
    pub(super) fn reserve(&self, regions: &[Arc<Region>]) -> Result<()> {
        let mut pools = lock(&self.pools);
        for region in regions {
            pools.entry(region.bytes()).or_default().kept += 1;
        }
        for region in regions {
            let pool = pools.entry(region.bytes()).or_default();
            while pool.regions.len() < pool.kept + pool.most {
                self.new_buffer(pool, region.bytes())?;
            }
        }
        Ok(())
    }

    /// Returns buffers reserved by [`Space::reserve`] to the pool.
    pub(super) fn release(&self, regions: &[Arc<Region>]) {
        let mut pools = lock(&self.pools);
        for region in regions {
            let pool = pools.entry(region.bytes()).or_default();
            pool.kept = pool.kept.saturating_sub(1);
        }
    }

    /// As [`Space::acquire`], for elements of the checkpoint's dtype.
    pub(super) fn acquire_elements(&self, len: usize) -> Result<Arc<Region>> {
        self.acquire(len * self.dtype.size())
    }

    /// Uploads a weight in F32.
    pub(super) fn keep(&self, values: &[f32]) -> Result<Region> {
        let region = Region::of(&self.gpu, values)?;
        self.weight_bytes.fetch_add(region.bytes(), Ordering::Relaxed);
        Ok(region)
    }

    /// Uploads a weight, rounded to the checkpoint's dtype.
    pub(super) fn keep_rounded(&self, values: &[f32]) -> Result<Region> {
        let region = self.room(values.len())?;
        self.upload(&Tensor::new(values, &Device::Cpu)?, &region)?;
        Ok(region)
    }

    /// Allocates a weight of `len` elements in the checkpoint's dtype, of unspecified content.
    pub(super) fn room(&self, len: usize) -> Result<Region> {
        let region = Region::room(&self.gpu, self.dtype, len)?;
        self.weight_bytes.fetch_add(region.bytes(), Ordering::Relaxed);
        Ok(region)
    }

    /// Copies a tensor to the start of a region, in the checkpoint's dtype.
    pub(super) fn upload(&self, tensor: &Tensor, to: &Region) -> Result<()> {
        let flat = tensor.flatten_all()?;
        match self.dtype {
            Dtype::F32 => to.upload(&flat.to_dtype(DType::F32)?.to_vec1::<f32>()?),
            Dtype::Bf16 => to.upload(&flat.to_dtype(DType::BF16)?.to_vec1::<bf16>()?),
            Dtype::F16 => to.upload(&flat.to_dtype(DType::F16)?.to_vec1::<f16>()?),
        }
    }

    /// Copies the first elements of a region to a CPU tensor of this shape.
    pub(super) fn download(&self, from: &Region, shape: &[usize]) -> Result<Tensor> {
        let len = shape.iter().product();
        Ok(match self.dtype {
            Dtype::F32 => Tensor::from_vec(from.download::<f32>(len)?, shape, &Device::Cpu)?,
            Dtype::Bf16 => Tensor::from_vec(from.download::<bf16>(len)?, shape, &Device::Cpu)?,
            Dtype::F16 => Tensor::from_vec(from.download::<f16>(len)?, shape, &Device::Cpu)?,
        })
    }
}

/// The length class: `bytes` rounded up by at most 25 %, at least 256.
fn class_of(bytes: usize) -> usize {
    let bytes = bytes.max(256);
    bytes.next_multiple_of((1 << bytes.ilog2()) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_classes_are_aligned_few_and_at_most_25_percent_larger() {
        for bytes in 0..5000 {
            let class = class_of(bytes);
            assert!(class >= bytes && class.is_multiple_of(64) && 4 * class <= 5 * bytes.max(256), "{bytes}");
            assert_eq!(class_of(class), class);
        }
        let classes: std::collections::BTreeSet<_> = (0..1 << 16).map(class_of).collect();
        assert!(classes.len() <= 4 * 9, "{}", classes.len());
    }
}
