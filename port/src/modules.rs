//! The modules of a port beside those of a recording.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::comparison::Comparison;
use crate::probe::Probe;
use crate::recording::{Recording, by_position};

/// Distances of the port's modules from the recorded ones, in the order in which the modules end.
pub(crate) struct Modules {
    /// What is not yet compared: the recorded values by path.
    open: BTreeMap<String, Vec<f32>>,
    /// Indices of the recorded positions among those of the inputs.
    places: Vec<usize>,
    batch: usize,
    seq: usize,
    found: Vec<(String, f64)>,
}

impl Modules {
    pub(crate) fn new(recording: &Recording) -> Self {
        let (recorded, tensors) = (&recording.recorded, &recording.tensors);
        let modules = tensors.modules.iter().map(|module| (module.path.clone(), module.values.clone()));
        let places = tensors.places.iter();
        Self {
            open: modules.collect(),
            places: places.map(|&[row, position]| row as usize * recorded.seq + position as usize).collect(),
            batch: recorded.batch,
            seq: recorded.seq,
            found: Vec::new(),
        }
    }

    /// Lines of the test's message on the first diverging module; empty if none was recorded.
    pub(crate) fn first_difference(&self, recording: &Recording, comparison: &Comparison) -> String {
        if recording.recorded.modules.is_empty() {
            return String::new();
        }
        if self.found.is_empty() {
            return "\n  modules  the port shows none of the recorded modules to `probe!`".to_owned();
        }
        let limit =
            recording.recorded.limits.get(comparison.dtype.name()).map_or(0.0, |limits| limits.relative_l2);
        // The recorded outputs are f32.
        let limit = limit.max(1e-6);
        match self.found.iter().position(|(_, apart)| apart.is_nan() || *apart > limit) {
            None => format!(
                "\n  modules  all {} that the port shows agree with the recorded ones; the first difference comes after {}",
                self.found.len(),
                self.found.last().map_or("", |(path, _)| path)
            ),
            Some(index) => {
                let (path, apart) = &self.found[index];
                let before = match index.checked_sub(1).map(|before| &self.found[before]) {
                    Some((path, apart)) => format!("{path} before it agrees to {apart:.1e}"),
                    None => "it is the first that the port shows".to_owned(),
                };
                format!("\n  first diverging module  {path}: relative L2 {apart:.3e}; {before}")
            }
        }
    }

    fn compare(&mut self, path: &str, output: &Tensor) {
        let Some(recorded) = self.open.remove(path) else { return };
        let values = output.to_dtype(DType::F64).and_then(|output| output.flatten_all()?.to_vec1::<f64>());
        let Ok(values) = values else { return };
        let Some((values, width)) = by_position(values, output.dims(), self.batch, self.seq) else { return };
        if width * self.places.len() != recorded.len() {
            self.found.push((path.to_owned(), f64::INFINITY));
            return;
        }
        let (mut apart, mut norm) = (0.0, 0.0);
        for (&place, recorded) in self.places.iter().zip(recorded.chunks_exact(width.max(1))) {
            for (own, &upstream) in values[place * width..][..width].iter().zip(recorded) {
                apart += (own - f64::from(upstream)).powi(2);
                norm += f64::from(upstream).powi(2);
            }
        }
        self.found.push((path.to_owned(), (apart / norm.max(f64::MIN_POSITIVE)).sqrt()));
    }
}

impl Probe for Modules {
    fn enter(&mut self, _: &str, _: &Tensor) {}

    fn leave(&mut self, path: &str, output: &Tensor) {
        self.compare(path, output);
    }

    fn output(&mut self, path: &str, output: &Tensor) {
        self.compare(path, output);
    }
}
