//! One forward pass as a Chrome trace with one complete event per module, the format that torch's profiler exports.

use std::time::Instant;

use candle_core::{Device, Tensor};
use serde_json::json;

use crate::probe::Probe;

/// Records one span per module, named by its transformers module path, with input and output shapes.
#[derive(Debug)]
pub struct ChromeTrace {
    device: Device,
    start: Instant,
    open: Vec<(f64, Vec<usize>)>,
    events: Vec<serde_json::Value>,
}

impl ChromeTrace {
    /// A trace that starts now. Each span ends when `device` has finished its work.
    pub fn new(device: Device) -> Self {
        Self { device, start: Instant::now(), open: Vec::new(), events: Vec::new() }
    }

    /// Whether no module was seen.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The trace in the JSON object format.
    pub fn json(mut self) -> Vec<u8> {
        // A viewer nests spans by time; the order in the file only helps people who read it.
        self.events
            .sort_by(|a, b| a["ts"].as_f64().unwrap_or(0.0).total_cmp(&b["ts"].as_f64().unwrap_or(0.0)));
        let process = json!({"name": "process_name", "ph": "M", "pid": std::process::id(), "tid": 0, "args": {"name": "candle"}});
        self.events.insert(0, process);
        json!({"displayTimeUnit": "ms", "traceEvents": self.events}).to_string().into_bytes()
    }

    fn microseconds(&self) -> f64 {
        // If the device fails here, the forward pass reports it.
        let _ = self.device.synchronize();
        self.start.elapsed().as_nanos() as f64 / 1e3
    }
}

impl Probe for ChromeTrace {
    fn enter(&mut self, _path: &str, input: &Tensor) {
        let now = self.microseconds();
        self.open.push((now, input.dims().to_vec()));
    }

    fn leave(&mut self, path: &str, output: &Tensor) {
        let now = self.microseconds();
        let Some((began, input)) = self.open.pop() else { return };
        self.events.push(json!({
            "name": path, "cat": "module", "ph": "X", "ts": began, "dur": now - began,
            "pid": std::process::id(), "tid": 0,
            "args": {"input": input, "output": output.dims()},
        }));
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn spans_nest_as_modules_do() {
        let tensor = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
        let mut trace = ChromeTrace::new(Device::Cpu);
        trace.enter("model", &tensor);
        trace.enter("model.norm", &tensor);
        trace.leave("model.norm", &tensor);
        trace.leave("model", &tensor);
        let json: serde_json::Value = serde_json::from_slice(&trace.json()).unwrap();
        let span = |index: usize| {
            let event = &json["traceEvents"][index];
            (event["name"].as_str().unwrap(), event["ts"].as_f64().unwrap(), event["dur"].as_f64().unwrap())
        };
        let ((outer, t0, d0), (inner, t1, d1)) = (span(1), span(2));
        assert_eq!((outer, inner), ("model", "model.norm"));
        assert!(t0 <= t1 && t1 + d1 <= t0 + d0);
    }
}
