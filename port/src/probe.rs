//! Probes: the modules of a port, shown to tfcheck while it looks for the first diverging one.

use std::cell::RefCell;
use std::rc::Rc;

use candle_core::Tensor;

/// Sees the modules of a forward pass.
pub trait Probe {
    /// A module is about to run on `input`.
    fn enter(&mut self, path: &str, input: &Tensor);

    /// A module has run.
    fn leave(&mut self, path: &str, output: &Tensor);

    /// The tensor that replaces the module's input, or `None` to keep the input; called after [`Probe::enter`].
    fn replace_input(&mut self, _path: &str, _input: &Tensor) -> Option<Tensor> {
        None
    }

    /// The output of a module that is shown without its input, so that no input can replace it.
    fn output(&mut self, _path: &str, _output: &Tensor) {}
}

/// Shows a module of a port to tfcheck under its path in transformers.
///
/// ```
/// # use candle_core::{Device, Result, Tensor};
/// # fn main() -> Result<()> {
/// # let (i, x) = (0, Tensor::zeros((1, 2), candle_core::DType::F32, &Device::Cpu)?);
/// // With its input: `tfcheck localize` can also replay the module with another variant's input.
/// let y = tfcheck_port::probe!("model.layers.{i}.mlp", x, |x| x.silu())?;
/// // The output alone.
/// tfcheck_port::probe!("model.layers.{i}", y);
/// # Ok(())
/// # }
/// ```
///
/// Outside of tfcheck a probe costs one look at a variable of the thread; the path is not written.
#[macro_export]
macro_rules! probe {
    ($path:literal, $output:expr $(,)?) => {
        $crate::output(|| ::std::format!($path), &$output)
    };
    ($path:literal, $input:expr, $run:expr $(,)?) => {
        $crate::module(|| ::std::format!($path), &$input, $run)
    };
}

type Shared = Rc<RefCell<dyn Probe>>;

thread_local! {
    static CURRENT: RefCell<Option<Shared>> = const { RefCell::new(None) };
}

/// Runs a module; [`probe!`] is shorter.
///
/// # Errors
/// Those of `run`.
pub fn module<E>(
    path: impl FnOnce() -> String,
    input: &Tensor,
    run: impl FnOnce(&Tensor) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let Some(probe) = current() else { return run(input) };
    let path = path();
    probe.borrow_mut().enter(&path, input);
    let replaced = probe.borrow_mut().replace_input(&path, input);
    let output = run(replaced.as_ref().unwrap_or(input))?;
    probe.borrow_mut().leave(&path, &output);
    Ok(output)
}

/// Shows the output of a module; [`probe!`] is shorter.
pub fn output(path: impl FnOnce() -> String, output: &Tensor) {
    if let Some(probe) = current() {
        probe.borrow_mut().output(&path(), output);
    }
}

fn current() -> Option<Shared> {
    CURRENT.with_borrow(Clone::clone)
}

/// Runs `pass` on this thread with a probe, and returns both.
pub(crate) fn with<P: Probe + 'static, T>(probe: P, pass: impl FnOnce() -> T) -> (T, P) {
    /// Ends the probing even if the pass panics.
    struct Ended;
    impl Drop for Ended {
        fn drop(&mut self) {
            CURRENT.set(None);
        }
    }
    let probe = Rc::new(RefCell::new(probe));
    CURRENT.set(Some(Rc::clone(&probe) as Shared));
    let ended = Ended;
    let result = pass();
    drop(ended);
    let probe =
        Rc::into_inner(probe).unwrap_or_else(|| unreachable!("the pass is over, and nothing else holds it"));
    (result, probe.into_inner())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Result};

    use super::*;

    #[derive(Default)]
    struct Seen(Vec<String>);

    impl Probe for Seen {
        fn enter(&mut self, path: &str, _: &Tensor) {
            self.0.push(format!("enter {path}"));
        }

        fn leave(&mut self, path: &str, output: &Tensor) {
            self.0.push(format!("leave {path} {:?}", output.to_vec1::<f32>().unwrap()));
        }

        fn replace_input(&mut self, path: &str, input: &Tensor) -> Option<Tensor> {
            (path == "inner").then(|| input.affine(0.0, 7.0).unwrap())
        }

        fn output(&mut self, path: &str, output: &Tensor) {
            self.0.push(format!("output {path} {:?}", output.to_vec1::<f32>().unwrap()));
        }
    }

    fn pass(i: usize) -> Result<Tensor> {
        let x = Tensor::new(&[1f32], &Device::Cpu)?;
        let y = probe!("outer.{i}", x, |x| probe!("inner", x, |x| x + 1.0))?;
        probe!("end", y);
        Ok(y)
    }

    #[test]
    fn a_probe_sees_nested_modules_and_may_replace_their_inputs() {
        assert_eq!(pass(0).unwrap().to_vec1::<f32>().unwrap(), [2.0]);
        let (result, seen) = with(Seen::default(), || pass(3));
        assert_eq!(result.unwrap().to_vec1::<f32>().unwrap(), [8.0]);
        let seen: Vec<&str> = seen.0.iter().map(String::as_str).collect();
        assert_eq!(
            seen,
            ["enter outer.3", "enter inner", "leave inner [8.0]", "leave outer.3 [8.0]", "output end [8.0]"]
        );
        assert_eq!(pass(0).unwrap().to_vec1::<f32>().unwrap(), [2.0], "the probe is gone");
    }
}
