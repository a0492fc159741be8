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
fn folded<T: Float>(xs: &Slot<T>, epilogue: Epilogue, room: Room) -> Option<Slot<T>> {
    let job = xs.job()?;
    let Work::Product(weight, Epilogue::Store) = job.work else { return None };
    let job = Job { work: Work::Product(weight, epilogue), xs: job.xs };
    Some(Slot::owed(xs.workspace(), job, room))
}

pub(super) fn sum<T: Float>(xs: Slot<T>, ys: &Slot<T>) -> Slot<T> {
    let out = xs.owned();
    let mut to = out.write();
    if !ys.job().is_some_and(|job| job.add_to(&mut to)) {
        kernels::add(out.pool(), &mut to, &ys.whole().read(), 1.0);
    }
    drop(to);
    out
}

pub(super) fn product<T: Float>(xs: Slot<T>, ys: &Slot<T>) -> Slot<T> {
    let out = xs.owned();
    kernels::multiply(out.pool(), &mut out.write(), &ys.whole().read());
    out
}

pub(super) fn finished<T: Float>(xs: Slot<T>, epilogue: Epilogue, room: Room) -> Slot<T> {
    if let Some(folded) = folded(&xs, epilogue, room) {
        return folded;
    }
    let out = xs.owned();
    let (pool, mut to) = (out.pool(), out.write());
    match epilogue {
        Epilogue::Scale(factor) => kernels::scale(pool, &mut to, factor),
        Epilogue::Activate(activation) => kernels::activate(pool, &mut to, activation),
        Epilogue::SoftCap(cap) => kernels::softcap(pool, &mut to, cap),
        Epilogue::Store | Epilogue::Add(_) => {}
    }
    drop(to);
    out
}

#[cfg(test)]
mod tests {
    use super::super::Host;
    use super::*;

    /// `[1, 2, 2]`: 1, 2, 3, 4.
    fn counted(workspace: &Arc<Host>) -> Slot<f32> {
        let slot = Slot::take(workspace, 1, 2, 2);
        slot.write().copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        slot
    }

    /// `(x, y)` to `(y, 10 x)`.
    fn owed(workspace: &Arc<Host>, xs: &Slot<f32>, epilogue: Epilogue) -> Slot<f32> {
        let weight = PackedLinear::new(&workspace.pool, &[&[0.0, 1.0, 10.0, 0.0]], 2, None);
        let work = Work::Product(Arc::new(weight), epilogue);
        Slot::owed(workspace, Job { work, xs: xs.clone() }, Room::Later)
    }

    #[test]
    fn what_is_owed_is_added_once_and_can_still_be_read() {
        let workspace = Arc::new(Host::new());
        for epilogue in [Epilogue::Store, Epilogue::Scale(2.0)] {
            let xs = counted(&workspace);
            let ys = owed(&workspace, &xs, epilogue);
            let factor = if epilogue == Epilogue::Store { 1.0 } else { 2.0 };
            let expected = [2.0, 10.0, 4.0, 30.0].map(|y| y * factor);
            // The input of the job is the other summand, so it must not be written to.
            let added = sum(xs.clone(), &ys);
            drop(xs);
            let both: Vec<f32> = expected.iter().zip([1.0, 2.0, 3.0, 4.0]).map(|(y, x)| x + y).collect();
            assert_eq!(*added.read(), both);
            assert_eq!(*ys.read(), expected);
            // Now it is there, and added as it is.
            assert_eq!(*sum(counted(&workspace), &ys).read(), both);
        }
    }

    #[test]
    fn a_factor_is_folded_into_a_product_that_others_may_read_unchanged() {
        let workspace = Arc::new(Host::new());
        let ys = owed(&workspace, &counted(&workspace), Epilogue::Store);
        let halved = folded(&ys, Epilogue::Scale(0.5), Room::Now).expect("still owed");
        assert_eq!(*halved.read(), [1.0, 5.0, 2.0, 15.0]);
        assert_eq!(*ys.read(), [2.0, 10.0, 4.0, 30.0]);
        assert!(folded(&ys, Epilogue::Scale(0.5), Room::Now).is_none(), "nothing is owed any more");
    }

    #[test]
    fn a_lent_buffer_is_never_lent_again_and_a_returned_one_is() {
        let workspace = Arc::new(Host::new());
        let (one, two) = (counted(&workspace), counted(&workspace));
        one.write().fill(7.0);
        assert_eq!(*two.read(), [1.0, 2.0, 3.0, 4.0]);
        let bytes = workspace.bytes();
        drop(one);
        // Shorter rows fit into the same memory.
        let three = Slot::<f32>::take(&workspace, 1, 1, 3);
        assert_eq!(three.read().len(), 3);
        assert_eq!(workspace.bytes(), bytes);
    }
}
