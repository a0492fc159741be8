//! Aligned zeroed memory, and an arena that divides one allocation into disjoint slots by offset, so that a forward
//! pass allocates nothing.

#![expect(unsafe_code, reason = "aligned allocation and disjoint slots of one buffer")]

use half::bf16;
use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Alignment in bytes: one cache line, which is also the width of the widest vector.
const LINE: usize = 64;
/// Buffers of at least this many bytes are memory-mapped, with large pages if the system supports them. Otherwise,
/// reading all weights for a single token waits for address translation.
const MAPPED_BYTES: usize = 4 << 20;
/// Size and alignment of a large page, in bytes.
#[cfg(all(target_os = "linux", not(miri)))]
const LARGE_PAGE: usize = 2 << 20;

/// A type for which all bits zero is a value and every bit pattern is allowed.
pub trait Plain: Copy + Send + Sync + 'static + sealed::Sealed {}

impl Plain for f32 {}
impl Plain for bf16 {}

mod sealed {
    /// Only this module implements the trait: the buffers rely on it.
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::bf16 {}
}

/// A zeroed buffer of fixed length, aligned to 64 bytes.
pub struct AlignedBuf<T: Plain> {
    start: NonNull<T>,
    len: usize,
    /// The mapping that holds the memory; `None` if the memory comes from the allocator.
    map: Option<MmapMut>,
}

// SAFETY: the buffer owns its memory and T is Send and Sync.
unsafe impl<T: Plain> Send for AlignedBuf<T> {}
// SAFETY: as above; shared access only reads.
unsafe impl<T: Plain> Sync for AlignedBuf<T> {}

impl<T: Plain> AlignedBuf<T> {
    /// `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        if len == 0 {
            return Self { start: NonNull::dangling(), len, map: None };
        }
        if let Some(map) = mapped(len * size_of::<T>()) {
            return Self::within(len, map);
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size above zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(memory.cast::<T>()) else { handle_alloc_error(layout) };
        Self { start, len, map: None }
    }

    fn within(len: usize, mut map: MmapMut) -> Self {
        // A mapping is aligned to pages and has the requested length.
        let start = NonNull::new(map.as_mut_ptr().cast()).expect("a map has an address");
        Self { start, len, map: Some(map) }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len * size_of::<T>(), LINE)
            .expect("a buffer is smaller than the address space")
    }
}

impl<T: Plain> Drop for AlignedBuf<T> {
    fn drop(&mut self) {
        if self.len > 0 && self.map.is_none() {
            // SAFETY: allocated in `zeroed` with the same layout.
            unsafe { dealloc(self.start.as_ptr().cast(), Self::layout(self.len)) };
        }
    }
}

impl<T: Plain> Deref for AlignedBuf<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: `len` initialised values are owned.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for AlignedBuf<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: `len` initialised values are owned, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// Mapped zeroed pages; `None` if `bytes` is below `MAPPED_BYTES` or the system refuses the mapping.
fn mapped(bytes: usize) -> Option<MmapMut> {
    if bytes < MAPPED_BYTES {
        return None;
    }
    let map = MmapMut::map_anon(bytes).ok()?;
    // If the system has no large pages, or they are switched off, the mapping uses small pages.
    #[cfg(all(target_os = "linux", not(miri)))]
    let _ = map.advise(memmap2::Advice::HugePage);
    Some(map)
}

/// Asks the system for large pages under memory that has not been written yet, from `MAPPED_BYTES` on. With small
/// pages the page faults take a considerable part of a forward pass: the logits of a vocabulary of 262144 take 134 MB
/// for 128 tokens.
pub(super) fn ask_for_large_pages<T>(memory: &mut [MaybeUninit<T>]) {
    #[cfg(all(target_os = "linux", not(miri)))]
    if size_of_val(memory) >= MAPPED_BYTES {
        let bytes = memory.as_mut_ptr_range();
        let start = bytes.start.addr().next_multiple_of(LARGE_PAGE);
        let len = (bytes.end.addr() / LARGE_PAGE * LARGE_PAGE).saturating_sub(start);
        let start = bytes.start.with_addr(start).cast();
        // SAFETY: whole pages inside the borrowed memory; the advice changes no contents. Without large pages it fails,
        // and nothing is lost.
        let _ = unsafe { rustix::mm::madvise(start, len, rustix::mm::Advice::LinuxHugepage) };
    }
    // Miri has no large pages.
    #[cfg(any(not(target_os = "linux"), miri))]
    let _ = memory;
}

/// A place in an arena: `len` values of `T` from byte `offset` on.
#[derive(Debug)]
pub struct Slot<T> {
    offset: usize,
    len: usize,
    kind: PhantomData<fn() -> T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T> Slot<T> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the slot holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `len` values of the slot, for a forward pass smaller than the planned shape.
    ///
    /// # Panics
    /// If the slot is shorter.
    #[must_use]
    pub fn first(&self, len: usize) -> Self {
        assert!(len <= self.len, "a slot of {} values has no first {len}", self.len);
        Self { len, ..*self }
    }
}

/// Collects the slots of one shape; [`ArenaPlan::build`] then allocates once.
#[derive(Debug, Default)]
pub struct ArenaPlan {
    bytes: usize,
}

impl ArenaPlan {
    /// Reserves `len` values that share no cache line with another slot.
    pub fn slot<T: Plain>(&mut self, len: usize) -> Slot<T> {
        let offset = self.bytes;
        self.bytes += (len * size_of::<T>()).next_multiple_of(LINE);
        Slot { offset, len, kind: PhantomData }
    }

    /// Bytes that the arena will take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Allocates the arena, zeroed.
    pub fn build(self) -> Arena {
        Arena { memory: AlignedBuf::zeroed(self.bytes / size_of::<f32>()) }
    }
}

/// The buffers of one forward pass.
pub struct Arena {
    memory: AlignedBuf<f32>,
}

impl Arena {
    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.memory.len() * size_of::<f32>()
    }

    /// One slot, to read.
    ///
    /// # Panics
    /// If the slot belongs to a larger arena.
    pub fn get<T: Plain>(&self, slot: Slot<T>) -> &[T] {
        self.check(slot);
        // SAFETY: the range was checked; offsets are multiples of 64; every bit pattern is a T.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().byte_add(slot.offset).cast(), slot.len) }
    }

    /// Several slots at once, to read and write.
    ///
    /// # Panics
    /// If two slots overlap or one belongs to a larger arena.
    pub fn get_mut<T: Plain, const N: usize>(&mut self, slots: [Slot<T>; N]) -> [&mut [T]; N] {
        for (i, a) in slots.iter().enumerate() {
            self.check(*a);
            for b in &slots[..i] {
                let size = size_of::<T>();
                let apart = a.offset + a.len * size <= b.offset || b.offset + b.len * size <= a.offset;
                assert!(apart, "arena slots overlap");
            }
        }
        let start = self.memory.as_mut_ptr();
        // SAFETY: ranges are inside the buffer and pairwise disjoint, aligned, and every bit pattern is a T.
        slots.map(|s| unsafe { std::slice::from_raw_parts_mut(start.byte_add(s.offset).cast(), s.len) })
    }

    fn check<T>(&self, slot: Slot<T>) {
        assert!(slot.offset + slot.len * size_of::<T>() <= self.bytes(), "slot outside the arena");
    }
}
