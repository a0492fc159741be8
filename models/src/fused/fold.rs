//! Operations that are folded into the deferred operation of their input, or computed in a separate loop over memory
//! if there is none.

use super::{Deferred, Float, Operation, Room, Slot};
use crate::kernels::{self, Epilogue};

/// `xs` with an epilogue, if a deferred product without one computes it.
fn folded<T: Float>(xs: &Slot<T>, epilogue: Epilogue, room: Room) -> Option<Slot<T>> {
    let deferred = xs.pending()?;
    let Operation::Product(weight, Epilogue::Store) = deferred.operation else { return None };
    let deferred = Deferred { operation: Operation::Product(weight, epilogue), xs: deferred.xs };
    Some(Slot::deferred(xs.host(), deferred, room))
}

pub(super) fn sum<T: Float>(xs: Slot<T>, ys: &Slot<T>) -> Slot<T> {
    let out = xs.owned();
    let mut to = out.write();
    if !ys.pending().is_some_and(|deferred| deferred.add_to(&mut to)) {
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
    use std::sync::Arc;

    use super::super::Host;
    use super::*;
    use crate::kernels::PackedLinear;

    /// `[1, 2, 2]`: 1, 2, 3, 4.
    fn counted(host: &Arc<Host>) -> Slot<f32> {
        let slot = Slot::take(host, 1, 2, 2);
        slot.write().copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        slot
    }

    /// `(x, y)` to `(y, 10 x)`.
    fn deferred(host: &Arc<Host>, xs: &Slot<f32>, epilogue: Epilogue) -> Slot<f32> {
        let weight = PackedLinear::new(&host.pool, &[&[0.0, 1.0, 10.0, 0.0]], 2, None);
        let operation = Operation::Product(Arc::new(weight), epilogue);
        Slot::deferred(host, Deferred { operation, xs: xs.clone() }, Room::Later)
    }

    #[test]
    fn a_deferred_product_is_added_once_and_can_still_be_read() {
        let host = Arc::new(Host::new());
        for epilogue in [Epilogue::Store, Epilogue::Scale(2.0)] {
            let xs = counted(&host);
            let ys = deferred(&host, &xs, epilogue);
            let factor = if epilogue == Epilogue::Store { 1.0 } else { 2.0 };
            let expected = [2.0, 10.0, 4.0, 30.0].map(|y| y * factor);
            // The input of the operation is the other summand, so it must not be written to.
            let added = sum(xs.clone(), &ys);
            drop(xs);
            let both: Vec<f32> = expected.iter().zip([1.0, 2.0, 3.0, 4.0]).map(|(y, x)| x + y).collect();
            assert_eq!(*added.read(), both);
            assert_eq!(*ys.read(), expected);
            // Now it has run, and its result is added.
            assert_eq!(*sum(counted(&host), &ys).read(), both);
        }
    }

    #[test]
    fn a_factor_is_folded_into_a_product_that_others_may_read_unchanged() {
        let host = Arc::new(Host::new());
        let ys = deferred(&host, &counted(&host), Epilogue::Store);
        let halved = folded(&ys, Epilogue::Scale(0.5), Room::Now).expect("still deferred");
        assert_eq!(*halved.read(), [1.0, 5.0, 2.0, 15.0]);
        assert_eq!(*ys.read(), [2.0, 10.0, 4.0, 30.0]);
        assert!(folded(&ys, Epilogue::Scale(0.5), Room::Now).is_none(), "nothing is deferred any more");
    }

    #[test]
    fn a_buffer_in_use_is_never_acquired_again_and_a_returned_one_is() {
        let host = Arc::new(Host::new());
        let (one, two) = (counted(&host), counted(&host));
        one.write().fill(7.0);
        assert_eq!(*two.read(), [1.0, 2.0, 3.0, 4.0]);
        let bytes = host.bytes();
        drop(one);
        // Shorter rows fit into the same memory.
        let three = Slot::<f32>::take(&host, 1, 1, 3);
        assert_eq!(three.read().len(), 3);
        assert_eq!(host.bytes(), bytes);
    }
}
