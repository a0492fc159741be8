//! A probe observes the same modules on the GPU as on the CPU, does not change results, and may replace a module's input.

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use models::{Backend, Probe};

use super::checkpoints::Checkpoint;

/// Inputs of modules by path, and outputs in the order in which modules return.
#[derive(Default)]
struct Trace {
    inputs: HashMap<String, Tensor>,
    outputs: Vec<(String, Tensor)>,
    /// Inputs that replace those of the modules, by path.
    replacements: HashMap<String, Tensor>,
}

impl Probe for Trace {
    fn enter(&mut self, path: &str, input: &Tensor) {
        self.inputs.insert(path.to_owned(), input.clone());
    }

    fn leave(&mut self, path: &str, output: &Tensor) {
        self.outputs.push((path.to_owned(), output.clone()));
    }

    fn replace_input(&mut self, path: &str, input: &Tensor) -> Option<Tensor> {
        self.replacements.get(path).map(|input_there| input_there.to_dtype(input.dtype()).unwrap())
    }
}

fn relative(result: &Tensor, exact: &Tensor) -> f64 {
    let norm = |xs: &Tensor| xs.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap().sqrt();
    let difference = (result.to_dtype(DType::F64).unwrap() - exact).unwrap();
    norm(&difference) / norm(exact).max(f64::MIN_POSITIVE)
}

#[test]
fn a_probe_sees_every_module_as_it_is_and_changes_nothing() {
    for checkpoint in Checkpoint::all() {
        let inputs = checkpoint.case("without padding", 0, |_, _| true).inputs();
        for dtype in [DType::F32, DType::BF16] {
            let mut gpu = checkpoint.on_gpu(dtype);
            let plain = gpu.forward(&inputs).unwrap();
            let mut trace = Trace::default();
            let looked_at = gpu.forward_with(&inputs, None, Some(&mut trace)).unwrap();
            let values = |xs: &Tensor| {
                xs.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap()
            };
            assert_eq!(values(&plain), values(&looked_at), "{} {dtype:?}", checkpoint.name);
            if dtype != DType::F32 {
                continue;
            }
            let mut exact = Trace::default();
            checkpoint.exact().forward_with(&inputs, None, Some(&mut exact)).unwrap();
            let exact: HashMap<String, Tensor> = exact.outputs.into_iter().collect();
            let mut fused = Trace::default();
            checkpoint.on_cpu(dtype, Backend::Fused).forward_with(&inputs, None, Some(&mut fused)).unwrap();
            let paths = |trace: &Trace| -> Vec<String> {
                let paths = trace.outputs.iter().map(|(path, _)| path.clone());
                // The GPU runs all experts at once, so an expert's projections are not observed; neither is the softmax.
                paths.filter(|path| !path.contains(".experts.") && !path.ends_with(".softmax")).collect()
            };
            assert_eq!(paths(&trace), paths(&fused), "{}", checkpoint.name);
            for (path, output) in &trace.outputs {
                let exact = &exact[path];
                assert_eq!(output.dims(), exact.dims(), "{} {path}", checkpoint.name);
                // A module's output includes the rounding of all modules before it.
                let relative = relative(output, exact);
                assert!(relative <= 1e-4, "{} {path}: {relative:e}", checkpoint.name);
            }
        }
    }
}

#[test]
fn every_module_replayed_with_the_oracles_input_gives_the_oracles_output() {
    for checkpoint in Checkpoint::all() {
        let inputs = checkpoint.case("without padding", 0, |_, _| true).inputs();
        let mut exact = Trace::default();
        checkpoint.exact().forward_with(&inputs, None, Some(&mut exact)).unwrap();
        let mut trace = Trace { replacements: exact.inputs, ..Trace::default() };
        checkpoint.on_gpu(DType::F32).forward_with(&inputs, None, Some(&mut trace)).unwrap();
        let exact: HashMap<String, Tensor> = exact.outputs.into_iter().collect();
        for (path, output) in &trace.outputs {
            let relative = relative(output, &exact[path]);
            assert!(relative <= 1e-4, "{} {path}: {relative:e}", checkpoint.name);
        }
    }
}
