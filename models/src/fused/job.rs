//! A computation that has not run yet, so that what follows may be folded into it.

use std::sync::Arc;

use super::{Float, Room, Slot};
use crate::kernels::{self, Epilogue, Norm, PackedLinear};

/// Work on whole rows, which are read when it runs. While a job waits, nobody writes to them: they are lent to it.
pub(crate) struct Job<T: Float> {
    pub(crate) work: Work<T>,
    pub(crate) xs: Slot<T>,
}

pub(crate) enum Work<T: Float> {
    Product(Arc<PackedLinear<T>>, Epilogue),
    Norm(Arc<Norm>),
}

impl<T: Float> Clone for Job<T> {
    fn clone(&self) -> Self {
        let work = match &self.work {
            Work::Product(weight, epilogue) => Work::Product(Arc::clone(weight), *epilogue),
            Work::Norm(norm) => Work::Norm(Arc::clone(norm)),
        };
        Self { work, xs: self.xs.clone() }
    }
}

impl<T: Float> Job<T> {
    /// Columns of the result.
    pub(crate) fn width(&self) -> usize {
        match &self.work {
            Work::Product(weight, _) => weight.n(),
            Work::Norm(_) => self.xs.width,
        }
    }

    pub(crate) fn run(&self, out: &mut [T]) {
        let (pool, xs) = (self.xs.pool(), self.xs.read());
        match &self.work {
            Work::Product(weight, epilogue) => weight.forward(pool, &xs, self.xs.rows(), out, *epilogue),
            Work::Norm(norm) => norm.forward(pool, &xs, out),
        }
    }

    /// Runs into memory of its own; only a product does.
    pub(crate) fn run_new(&self) -> Option<Vec<T>> {
        match &self.work {
            Work::Product(weight, epilogue) => {
                Some(weight.forward_new(self.xs.pool(), &self.xs.read(), self.xs.rows(), *epilogue))
            }
            Work::Norm(_) => None,
        }
    }

    /// Adds the result to `sum`; false, and nothing done, where that cannot be folded in.
    pub(crate) fn add_to(&self, sum: &mut [T]) -> bool {
        let (pool, xs) = (self.xs.pool(), self.xs.read());
        match &self.work {
            Work::Product(weight, Epilogue::Store) => {
                weight.forward(pool, &xs, self.xs.rows(), sum, Epilogue::Add(1.0));
            }
            Work::Product(weight, Epilogue::Scale(factor)) => {
                weight.forward(pool, &xs, self.xs.rows(), sum, Epilogue::Add(*factor));
            }
            Work::Product(..) => return false,
            Work::Norm(norm) => norm.forward_add(pool, &xs, sum),
        }
        true
    }
}

/// `xs` with an epilogue, if it is a product that is still owed and has none.
pub(crate) fn folded<T: Float>(xs: &Slot<T>, epilogue: Epilogue, room: Room) -> Option<Slot<T>> {
    let job = xs.job()?;
    let Work::Product(weight, Epilogue::Store) = job.work else { return None };
    let job = Job { work: Work::Product(weight, epilogue), xs: job.xs };
    Some(Slot::owed(xs.workspace(), job, room))
}

/// `xs + ys`, in place where nobody else holds `xs`; a product or norm still owed for `ys` adds itself.
pub(crate) fn sum<T: Float>(xs: Slot<T>, ys: &Slot<T>) -> Slot<T> {
    let out = xs.owned();
    let mut to = out.write();
    if !ys.job().is_some_and(|job| job.add_to(&mut to)) {
        kernels::add(out.pool(), &mut to, &ys.whole().read(), 1.0);
    }
    drop(to);
    out
}
