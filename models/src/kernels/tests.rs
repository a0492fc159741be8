//! Kernels against scalar f64 references over random shapes, at every instruction level of the machine.
