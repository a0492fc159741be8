//! The fused path on a GPU, provable without one.
//!
//! [`Gpu`] is all that the path asks of a device. The CUDA driver implements it, and so does [`Emulator`], which
//! compiles the same kernel sources (`kernels/*.cu`) with the machine's C++ compiler. [`kernels`] launches them;
//! its functions check every shape against the memory that they are given, so that nothing above is unsafe.

pub mod driver;
mod emulator;
mod gpu;
pub mod kernels;
mod nvrtc;

pub use emulator::{Emulator, Order};
pub use gpu::{Buffer, Dtype, Gpu, Graph, LaunchShape, MatMul, Number, Region, matmul};
pub use nvrtc::{Compiled, Nvrtc};
