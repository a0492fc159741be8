//! An operation on rows that has not run yet, so that later operations can be folded into it.

use std::sync::Arc;

use super::Slot;
use crate::fused::Float;
use crate::kernels::{Epilogue, Norm, PackedLinear};

/// An operation on whole rows, which are read when it runs. The operation holds the rows, so that they are not
/// written to before that.
pub(crate) struct Deferred<T: Float> {
    pub(crate) operation: Operation<T>,
    pub(crate) xs: Slot<T>,
}

pub(crate) enum Operation<T: Float> {
    Product(Arc<PackedLinear<T>>, Epilogue),
    Norm(Arc<Norm>),
}

impl<T: Float> Clone for Deferred<T> {
    fn clone(&self) -> Self {
        let operation = match &self.operation {
            Operation::Product(weight, epilogue) => Operation::Product(Arc::clone(weight), *epilogue),
            Operation::Norm(norm) => Operation::Norm(Arc::clone(norm)),
        };
        Self { operation, xs: self.xs.clone() }
    }
}

impl<T: Float> Deferred<T> {
    /// Columns of the result.
    pub(crate) fn width(&self) -> usize {
        match &self.operation {
            Operation::Product(weight, _) => weight.n(),
            Operation::Norm(_) => self.xs.width,
        }
    }

    pub(crate) fn run(&self, out: &mut [T]) {
        let (pool, xs) = (self.xs.pool(), self.xs.read());
        match &self.operation {
            Operation::Product(weight, epilogue) => {
                weight.forward(pool, &xs, self.xs.rows(), out, *epilogue);
            }
            Operation::Norm(norm) => norm.forward(pool, &xs, out),
        }
    }

    /// Writes the result to new memory; only a product supports this.
    pub(crate) fn run_new(&self) -> Option<Vec<T>> {
        match &self.operation {
            Operation::Product(weight, epilogue) => {
                Some(weight.forward_new(self.xs.pool(), &self.xs.read(), self.xs.rows(), *epilogue))
            }
            Operation::Norm(_) => None,
        }
    }

    /// Adds the result to `sum`; returns false without an effect if the operation cannot be folded into a sum.
    pub(crate) fn add_to(&self, sum: &mut [T]) -> bool {
        let (pool, xs) = (self.xs.pool(), self.xs.read());
        match &self.operation {
            Operation::Product(weight, Epilogue::Store) => {
                weight.forward(pool, &xs, self.xs.rows(), sum, Epilogue::Add(1.0));
            }
            Operation::Product(weight, Epilogue::Scale(factor)) => {
                weight.forward(pool, &xs, self.xs.rows(), sum, Epilogue::Add(*factor));
            }
            Operation::Product(..) => return false,
            Operation::Norm(norm) => norm.forward_add(pool, &xs, sum),
        }
        true
    }
}
