//! Buffers of numbers that begin at a cache line.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line. A vector of 64 bytes that crosses one is read twice. On a Zen 3 the system copies a file to most other
/// addresses at a fifth of the speed.
const LINE: usize = 64;

/// Numbers of which the first one begins a cache line.
#[derive(Debug, Default)]
pub(super) struct Aligned<T> {
    numbers: Vec<T>,
    start: usize,
    length: usize,
}

impl<T: Copy + Default> Aligned<T> {
    /// Changes the length; the numbers are arbitrary afterwards.
    pub(super) fn resize(&mut self, length: usize) {
        let most = self.numbers.len().max(length + LINE / size_of::<T>());
        self.numbers.resize(most, T::default());
        self.start = self.numbers.as_ptr().align_offset(LINE);
        self.length = length;
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.numbers[self.start..][..self.length]
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.numbers[self.start..][..self.length]
    }
}
