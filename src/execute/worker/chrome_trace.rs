//! A pass as a Chrome trace, one complete event per module: the format that torch's profiler exports.

use std::time::Instant;

use candle_core::{Device, Tensor};
use models::Probe;
use serde_json::json;

/// Collects a span per module, under transformers' module path, with the shapes in and out.
#[derive(Debug)]
pub(super) struct ChromeTrace {
    device: Device,
    start: Instant,
    open: Vec<(f64, Vec<usize>)>,
    events: Vec<serde_json::Value>,
}

impl ChromeTrace {
    /// A trace that begins now. Each span ends when `device` has finished its work.
    pub(super) fn new(device: Device) -> Self {
        Self { device, start: Instant::now(), open: Vec::new(), events: Vec::new() }
    }

    /// The trace in the JSON object format.
    pub(super) fn json(mut self) -> Vec<u8> {
        // A viewer nests spans by time; the order of the file is for people.
        self.events
            .sort_by(|a, b| a["ts"].as_f64().unwrap_or(0.0).total_cmp(&b["ts"].as_f64().unwrap_or(0.0)));
        let process = json!({"name": "process_name", "ph": "M", "pid": std::process::id(), "tid": 0, "args": {"name": "candle"}});
        self.events.insert(0, process);
        json!({"displayTimeUnit": "ms", "traceEvents": self.events}).to_string().into_bytes()
    }

    fn microseconds(&self) -> f64 {
        // A device that cannot be waited for shows in the pass itself.
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
