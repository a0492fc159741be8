//! A GPU emulator: compiles the kernel sources with the machine's C++ compiler and runs them thread by thread on the
//! CPU.
//!
//! `kernels/emulated.h` replaces `kernels/device.cuh`: threads of a block are fibers, tensor-core products use the
//! fragment layouts of the PTX manual, and asynchronous copies take effect when they are waited for. Device and shared
//! memory start as NaN; allocations have guards that are checked after every launch. Matrix products run in F32 on the
//! CPU. The emulator is for tests; its speed means nothing. It is the only part of this crate that starts a process:
//! the compiler, once per source, when a kernel is first launched on an emulated device.

#![expect(unsafe_code, reason = "memory by address, and functions of a library that was compiled here")]

mod library;
mod product;

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::gpu::{Gpu, Graph, LaunchShape, MatMul};
use super::kernel_id::KernelId;
use crate::error::{Error, Result};

/// Bytes of the guard on either side of an allocation.
const GUARD: usize = 256;
/// Byte value of guards and new memory: NaN in every element type.
const POISON: u8 = 0xff;

/// Order in which ready threads run. A kernel whose result depends on it lacks a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// By ascending index.
    Forward,
    /// Last thread, warp and block first.
    Reversed,
}

/// The emulated device.
pub struct Emulator {
    shared: Arc<Shared>,
}

struct Shared {
    order: Order,
    /// Text to replace in the sources and its replacement: a planted bug.
    change: Option<(String, String)>,
    memory: Mutex<HashMap<u64, Memory>>,
    recorded: Mutex<Option<Vec<Operation>>>,
}

/// An allocation with a guard before and after it.
struct Memory {
    /// In units of 256 bytes, so that the data are aligned.
    bytes: Vec<Unit>,
    len: usize,
}

/// 256 bytes: the alignment that [`Gpu::alloc`] guarantees, and the size of a guard.
#[derive(Clone, Copy)]
#[repr(align(256))]
struct Unit([u8; GUARD]);

#[derive(Clone, Debug)]
enum Operation {
    Launch(KernelId, LaunchShape, Vec<u8>),
    MatMul(MatMul, [u64; 4]),
    Copy(u64, u64, usize),
    Zero(u64, usize),
}

impl Emulator {
    /// Creates a device whose threads run in this order.
    pub fn start(order: Order) -> Arc<dyn Gpu> {
        Self::build(order, None)
    }

    /// A device with a planted bug: every `from` in the sources becomes `to`. It verifies that the tests detect the
    /// bug.
    pub fn planted(from: &str, to: &str) -> Arc<dyn Gpu> {
        Self::build(Order::Forward, Some((from.to_owned(), to.to_owned())))
    }

    fn build(order: Order, change: Option<(String, String)>) -> Arc<dyn Gpu> {
        let (memory, recorded) = (Mutex::default(), Mutex::new(None));
        Arc::new(Self { shared: Arc::new(Shared { order, change, memory, recorded }) })
    }
}

impl Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Emulator({:?})", self.shared.order)
    }
}

/// Ignores poisoning by another test's panic: the data stay valid.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    fn new(len: usize) -> Self {
        let units = len.div_ceil(GUARD) + 2;
        Self { bytes: vec![Unit([POISON; GUARD]); units], len }
    }

    fn address(&self) -> u64 {
        self.bytes.as_ptr() as u64 + GUARD as u64
    }

    /// Whether the guards are unchanged.
    fn is_whole(&self) -> bool {
        let (before, after) = (self.bytes[0].0, self.bytes[self.bytes.len() - 1].0);
        let tail = self.len % GUARD;
        let rest = if tail == 0 { &[][..] } else { &self.bytes[self.bytes.len() - 2].0[tail..] };
        before.iter().chain(&after).chain(rest).all(|byte| *byte == POISON)
    }
}

impl Shared {
    fn check_guards(&self, what: &str) -> Result<()> {
        match lock(&self.memory).values().find(|memory| !memory.is_whole()) {
            Some(memory) => {
                Err(Error::Gpu(format!("{what} wrote outside of a buffer of {} bytes", memory.len)))
            }
            None => Ok(()),
        }
    }

    /// # Safety
    /// As the operation's method of [`Gpu`].
    unsafe fn run(&self, operation: &Operation) -> Result<()> {
        // SAFETY: the caller's contract is that of each operation.
        unsafe {
            match operation {
                Operation::Launch(kernel, shape, params) => {
                    let reversed = self.order == Order::Reversed;
                    library::launch(*kernel, *shape, params, reversed, self.change.as_ref())?;
                    self.check_guards(kernel.name)
                }
                Operation::MatMul(spec, [xs, weight, bias, out]) => {
                    product::matmul(spec, *xs, *weight, *bias, *out);
                    self.check_guards("a product")
                }
                Operation::Copy(from, to, bytes) => {
                    std::ptr::copy_nonoverlapping(*from as *const u8, *to as *mut u8, *bytes);
                    Ok(())
                }
                Operation::Zero(at, bytes) => {
                    std::ptr::write_bytes(*at as *mut u8, 0, *bytes);
                    Ok(())
                }
            }
        }
    }

    fn is_recording(&self) -> bool {
        lock(&self.recorded).is_some()
    }
}

impl Emulator {
    /// # Safety
    /// As the operation's method of [`Gpu`].
    unsafe fn run_or_record(&self, operation: Operation) -> Result<()> {
        if let Some(recorded) = lock(&self.shared.recorded).as_mut() {
            recorded.push(operation);
            return Ok(());
        }
        // SAFETY: the caller's contract.
        unsafe { self.shared.run(&operation) }
    }

    fn refuse_while_recording(&self, what: &str) -> Result<()> {
        if self.shared.is_recording() {
            return Err(Error::Gpu(format!("{what} while a pass is recorded")));
        }
        Ok(())
    }
}

impl Gpu for Emulator {
    fn name(&self) -> String {
        "emulated GPU".to_owned()
    }

    fn multiprocessors(&self) -> usize {
        4
    }

    fn alloc(&self, bytes: usize) -> Result<u64> {
        let memory = Memory::new(bytes);
        let address = memory.address();
        lock(&self.shared.memory).insert(address, memory);
        Ok(address)
    }

    unsafe fn free(&self, address: u64, _: usize) {
        lock(&self.shared.memory).remove(&address);
    }

    unsafe fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.refuse_while_recording("an upload")?;
        // SAFETY: the caller's contract; device memory is accessed only in the order of the one stream.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    unsafe fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.refuse_while_recording("a download")?;
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { self.run_or_record(Operation::Copy(from, to, bytes)) }
    }

    unsafe fn zero(&self, at: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { self.run_or_record(Operation::Zero(at, bytes)) }
    }

    unsafe fn launch(&self, kernel: KernelId, shape: LaunchShape, params: &[u8]) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { self.run_or_record(Operation::Launch(kernel, shape, params.to_vec())) }
    }

    unsafe fn matmul(&self, spec: &MatMul, xs: u64, weight: u64, bias: u64, out: u64) -> Result<()> {
        // SAFETY: the caller's contract.
        unsafe { self.run_or_record(Operation::MatMul(*spec, [xs, weight, bias, out])) }
    }

    fn synchronize(&self) -> Result<()> {
        self.refuse_while_recording("a wait")
    }

    fn record(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Box<dyn Graph>> {
        self.refuse_while_recording("a recording")?;
        *lock(&self.shared.recorded) = Some(Vec::new());
        let done = body();
        let operations = lock(&self.shared.recorded).take().unwrap_or_default();
        done?;
        Ok(Box::new(Recording { shared: Arc::clone(&self.shared), operations }))
    }
}

struct Recording {
    shared: Arc<Shared>,
    operations: Vec<Operation>,
}

impl Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recording({} operations)", self.operations.len())
    }
}

impl Graph for Recording {
    fn replay(&self) -> Result<()> {
        for operation in &self.operations {
            // SAFETY: recorded by the methods of `Gpu`, whose callers guarantee that the memory stays allocated.
            unsafe { self.shared.run(operation)? };
        }
        Ok(())
    }
}
