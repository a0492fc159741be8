//! Matrix products with cuBLASLt, with one algorithm per shape.
//!
//! The algorithm is the first one that cuBLASLt's heuristic proposes. It is queried once per shape and kept, so that
//! equal calls run equal instructions, in a captured CUDA graph and outside. Sums are F32 (`CUBLAS_COMPUTE_32F`,
//! without TF32), including the partial sums of split-k: reduction schemes that round them to the element type are
//! excluded.

#![expect(unsafe_code, reason = "cuBLASLt is a C library")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::fmt;

use cudarc::cublaslt::{result, sys};

use crate::cuda::dtype::Dtype;
use crate::cuda::gpu::MatMul;
use crate::error::{Error, Result};

/// Workspace in bytes: NVIDIA's recommendation for Hopper. Smaller devices use less of it.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// `CUBLAS_OP_T` of `cublas_api.h`; cudarc has it only in its cuBLAS bindings.
const TRANSPOSED: i32 = 1;

/// Properties that determine the algorithm. Of the factors only `beta != 0` is included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    m: usize,
    n: usize,
    k: usize,
    xs_row: usize,
    out_row: usize,
    dtype: Dtype,
    out_dtype: Dtype,
    has_bias: bool,
    adds: bool,
    /// Alignment of `xs`, `weight` and `out` in bytes.
    alignment: [u32; 3],
}

impl Key {
    pub(super) fn new(spec: &MatMul, xs: u64, weight: u64, bias: u64, out: u64) -> Self {
        Self {
            m: spec.m,
            n: spec.n,
            k: spec.k,
            xs_row: spec.xs_row,
            out_row: spec.out_row,
            dtype: spec.dtype,
            out_dtype: spec.out_dtype,
            has_bias: bias != 0,
            adds: spec.beta != 0.0,
            alignment: [xs, weight, out].map(alignment),
        }
    }
}

/// The largest power of two that divides an address, at most the 256 bytes that cuBLASLt distinguishes.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

/// A cuBLASLt handle and the plans made so far.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    known: HashMap<Key, Plan>,
}

// SAFETY: a cuBLASLt handle and its descriptors are not bound to a thread; `Products` owns them exclusively.
unsafe impl Send for Products {}

impl fmt::Debug for Products {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Products({} shapes)", self.known.len())
    }
}

impl Drop for Products {
    fn drop(&mut self) {
        self.known.clear();
        // SAFETY: made by `create_handle`, and destroyed only here.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Addresses of the operands, the workspace, and the stream.
pub(super) struct Places {
    pub(super) xs: u64,
    pub(super) weight: u64,
    /// 0 for no bias.
    pub(super) bias: u64,
    pub(super) out: u64,
    /// [`WORKSPACE_BYTES`] bytes of memory.
    pub(super) workspace: u64,
    pub(super) stream: sys::cudaStream_t,
}

impl Products {
    pub(super) fn new() -> Result<Self> {
        Ok(Self { handle: result::create_handle().map_err(failed("a handle"))?, known: HashMap::new() })
    }

    /// cuBLASLt's version, for example `130001`.
    pub(super) fn version() -> usize {
        // SAFETY: the function has no preconditions.
        unsafe { sys::cublasLtGetVersion() }
    }

    /// # Safety
    /// As for [`crate::cuda::gpu::Gpu::matmul`]; the stream is the current context's.
    pub(super) unsafe fn run(&mut self, spec: &MatMul, places: &Places) -> Result<()> {
        let key = Key::new(spec, places.xs, places.weight, places.bias, places.out);
        let plan = match self.known.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::find(self.handle, &key)?),
        };
        if key.has_bias {
            plan.product
                .set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &places.bias)?;
        }
        let pointer = |address: u64| address as usize as *const c_void;
        // SAFETY: the descriptors live in `plan`; the caller guarantees the addresses. cuBLASLt copies the factors
        // before it returns. The weight is A and `xs` is B, because cuBLASLt's matrices are column-major: row-major
        // `out = xs weight^T` is column-major `out^T = weight xs^T`.
        unsafe {
            result::matmul(
                self.handle,
                plan.product.0,
                (&raw const spec.alpha).cast(),
                (&raw const spec.beta).cast(),
                pointer(places.weight),
                plan.weight.0,
                pointer(places.xs),
                plan.xs.0,
                pointer(places.out),
                plan.out.0,
                pointer(places.out).cast_mut(),
                plan.out.0,
                &raw const plan.algorithm,
                pointer(places.workspace).cast_mut(),
                WORKSPACE_BYTES,
                places.stream,
            )
        }
        .map_err(|error| Error::Gpu(format!("cuBLASLt: {spec:?}: {error}")))
    }
}

/// cuBLASLt's descriptors of one shape, and the chosen algorithm.
struct Plan {
    product: Product,
    weight: Layout,
    xs: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Plan {
    fn find(handle: sys::cublasLtHandle_t, key: &Key) -> Result<Self> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cublasLtMatmulPreferenceAttributes_t as Wish;
        let product = Product::new()?;
        product.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if key.has_bias {
            product.set(
                Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                &sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            )?;
            product.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &data_type(key.out_dtype))?;
        }
        let weight = Layout::new(key.dtype, key.k, key.n, key.k)?;
        let xs = Layout::new(key.dtype, key.k, key.m, key.xs_row)?;
        let out = Layout::new(key.out_dtype, key.n, key.m, key.out_row)?;
        let wishes = Wishes::new()?;
        wishes.set(Wish::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES)?;
        wishes.set(
            Wish::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            &(sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32),
        )?;
        let [xs_alignment, weight_alignment, out_alignment] = key.alignment;
        for (wish, bytes) in [
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, weight_alignment),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, xs_alignment),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out_alignment),
            (Wish::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out_alignment),
        ] {
            wishes.set(wish, &bytes)?;
        }
        // SAFETY: all of these live until the end of this function.
        let found = unsafe {
            result::get_matmul_algo_heuristic(handle, product.0, weight.0, xs.0, out.0, out.0, wishes.0)
        };
        let found =
            found.map_err(|error| Error::Gpu(format!("cuBLASLt has no algorithm for {key:?}: {error}")))?;
        Ok(Self { product, weight, xs, out, algorithm: found.algo })
    }
}

fn data_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
    }
}

fn failed(what: &'static str) -> impl FnOnce(result::CublasError) -> Error {
    move |error| Error::Gpu(format!("cuBLASLt: {what}: {error}"))
}

/// A descriptor of a product, destroyed when dropped.
struct Product(sys::cublasLtMatmulDesc_t);

impl Product {
    fn new() -> Result<Self> {
        let sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let made = result::create_matmul_desc(sums, sys::cudaDataType::CUDA_R_32F);
        made.map(Self).map_err(failed("a description of a product"))
    }

    fn set<T>(&self, attribute: sys::cublasLtMatmulDescAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the descriptor lives; every attribute set here has a value of this size.
        unsafe {
            result::set_matmul_desc_attribute(
                self.0,
                attribute,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        }
        .map_err(failed("an attribute of a product"))
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        // SAFETY: made by `create_matmul_desc`, and destroyed only here.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A descriptor of a matrix, destroyed when dropped.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// A column-major matrix: `columns` columns of `rows` adjacent elements, `stride` elements apart.
    fn new(dtype: Dtype, rows: usize, columns: usize, stride: usize) -> Result<Self> {
        let made = result::create_matrix_layout(data_type(dtype), rows as u64, columns as u64, stride as i64);
        made.map(Self).map_err(failed("a description of a matrix"))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made by `create_matrix_layout`, and destroyed only here.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// Constraints on the algorithm, destroyed when dropped.
struct Wishes(sys::cublasLtMatmulPreference_t);

impl Wishes {
    fn new() -> Result<Self> {
        result::create_matmul_pref().map(Self).map_err(failed("a preference"))
    }

    fn set<T>(&self, wish: sys::cublasLtMatmulPreferenceAttributes_t, value: &T) -> Result<()> {
        // SAFETY: the preference lives; every attribute set here has a value of this size.
        unsafe {
            result::set_matmul_pref_attribute(self.0, wish, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
        .map_err(failed("an attribute of a preference"))
    }
}

impl Drop for Wishes {
    fn drop(&mut self) {
        // SAFETY: made by `create_matmul_pref`, and destroyed only here.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> MatMul {
        MatMul {
            m: 4,
            n: 8,
            k: 16,
            xs_row: 16,
            out_row: 8,
            dtype: Dtype::Bf16,
            out_dtype: Dtype::Bf16,
            alpha: 1.0,
            beta: 0.0,
        }
    }

    #[test]
    fn calls_share_an_algorithm_only_if_it_fits_both() {
        let key = |spec: &MatMul| Key::new(spec, 256, 512, 0, 1024);
        let base = key(&spec());
        // `alpha` is an argument of the call and not part of the key.
        assert_eq!(base, key(&MatMul { alpha: 0.5, ..spec() }));
        // Other addresses of at least that alignment, and another bias address, give the same key.
        assert_eq!(base, Key::new(&spec(), 4096, 768, 0, 2048));
        assert_eq!(Key::new(&spec(), 256, 512, 32, 1024), Key::new(&spec(), 256, 512, 64, 1024));
        let others = [
            key(&MatMul { m: 5, ..spec() }),
            key(&MatMul { xs_row: 24, ..spec() }),
            key(&MatMul { out_row: 16, ..spec() }),
            key(&MatMul { out_dtype: Dtype::F32, ..spec() }),
            key(&MatMul { dtype: Dtype::F16, out_dtype: Dtype::F16, ..spec() }),
            key(&MatMul { beta: 1.0, ..spec() }),
            Key::new(&spec(), 256, 512, 32, 1024),
            Key::new(&spec(), 256 + 16, 512, 0, 1024),
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn alignment_is_the_largest_power_of_two_up_to_256() {
        for (address, expected) in [(0x1000, 256), (0x1080, 128), (0x1002, 2), (0x1001, 1), (1 << 40, 256)] {
            assert_eq!(alignment(address), expected, "{address:#x}");
        }
    }
}
