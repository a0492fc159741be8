//! Parameter structs of kernels, and launches with them.

#![expect(unsafe_code, reason = "the one place where parameters become bytes")]

use crate::cuda::gpu::{Gpu, LaunchShape, Region};
use crate::cuda::kernel_id::KernelId;
use crate::error::{Error, Result};

/// The argument of a kernel.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and [`Params::layout`] states its actual layout. The macro `params!` ensures
/// this.
pub(super) unsafe trait Params: Copy {
    /// Static assertions, in C++, that the struct of the same name has the same memory layout.
    fn layout() -> String;
}

/// Defines a `repr(C)` struct without padding that is a kernel's argument or a part of one; addresses are `u64`.
macro_rules! params {
    ($(#[$doc:meta])* struct $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default)]
        #[repr(C)]
        pub(super) struct $name {
            $($field: $type,)*
        }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "padding");

        #[expect(unsafe_code, reason = "the layout is stated from the struct itself")]
        // SAFETY: `repr(C)`; the assertion above excludes padding.
        unsafe impl $crate::cuda::kernels::launch::Params for $name {
            fn layout() -> String {
                let mut text = format!(
                    "static_assert(sizeof({0}) == {1}, \"size of {0}\");\n", stringify!($name), size_of::<$name>()
                );
                $(text.push_str(&format!(
                    "static_assert(OFFSET_OF({0}, {1}) == {2}, \"{0}::{1}\");\n",
                    stringify!($name), stringify!($field), std::mem::offset_of!($name, $field)
                ));)*
                text
            }
        }
    };
}
pub(super) use params;

/// Launches a kernel; does nothing if the grid is empty.
///
/// Callers must have checked that every address in `params` has enough memory for the kernel's accesses.
pub(super) fn launch<P: Params>(
    gpu: &dyn Gpu,
    kernel: KernelId,
    grid: [usize; 3],
    block: usize,
    shared: usize,
    params: &P,
) -> Result<()> {
    if grid.contains(&0) {
        return Ok(());
    }
    if grid[0] > i32::MAX as usize || grid[1].max(grid[2]) > 65_535 {
        return Err(Error::Gpu(format!("{}: a grid of {grid:?} blocks", kernel.name)));
    }
    let shape =
        LaunchShape { grid: grid.map(|blocks| blocks as u32), block: block as u32, shared: shared as u32 };
    // SAFETY: `Params` has no padding; the kernel's struct has the same layout, which every compilation asserts;
    // the callers checked the regions.
    unsafe {
        let bytes = std::slice::from_raw_parts(std::ptr::from_ref(params).cast(), size_of::<P>());
        gpu.launch(kernel, shape, bytes)
    }
}

/// The checked address of a region, or 0 for `None`.
pub(super) fn optional(region: Option<&Region>, what: &str, len: usize, size: usize) -> Result<u64> {
    region.map_or(Ok(0), |region| region.checked(what, len, size))
}

/// A count or stride as a kernel's `int`.
pub(super) fn int(what: &str, value: usize) -> Result<i32> {
    i32::try_from(value).map_err(|_| Error::Gpu(format!("{what} of {value} is too large for a kernel")))
}
