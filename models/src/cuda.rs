//! The fused backend on a GPU, testable on a machine without one.
//!
//! [`Gpu`] is the device interface. [`driver::Driver`] implements it for CUDA, and [`Emulator`] implements it on the
//! CPU by compiling the same kernel sources (`kernels/*.cu`) with the machine's C++ compiler. [`kernels`] launches the
//! kernels; each launch checks that every region is large enough for its shape, so that callers need no `unsafe`.

mod attention;
mod cache;
pub mod driver;
mod dtype;
mod emulator;
mod experts;
mod gpu;
mod kernel_id;
pub mod kernels;
mod linear;
mod nvrtc;
mod pass;
mod replay;
mod rows;
mod space;
mod weights;

pub(crate) use attention::{AttentionShape, DeviceBias, DeviceRope, DeviceTable, attend};
pub(crate) use cache::DeviceCache;
pub use dtype::Dtype;
pub use emulator::{Emulator, Order};
pub(crate) use experts::{DeviceExperts, ExpertsShape};
pub use gpu::{Buffer, Gpu, Graph, LaunchShape, MatMul, Number, Region, matmul};
pub(crate) use linear::DeviceGateUp;
pub use nvrtc::{Compiled, Nvrtc};
pub(crate) use pass::DevicePass;
pub use replay::PassCounts;
pub(crate) use replay::Replays;
pub(crate) use rows::DeviceRows;
pub(crate) use space::Space;
pub(crate) use weights::{DeviceLinear, DeviceNorm};
