//! A native forward pass that writes the inputs and outputs of modules, or replays one module with a stored input.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use models::Probe;
use reference::protocol::{Capture, CapturedModule, CapturedTensor, Failed, Replay, Replayed};

use super::failure::exception;
use crate::spec::plan::glob;

/// Writes inputs and outputs of the modules that match a glob, until the byte limit is reached.
pub(super) struct Writer<'a> {
    request: &'a Capture,
    /// The dtype in which tensors are stored.
    element: DType,
    records: Vec<CapturedModule>,
    calls: HashMap<String, usize>,
    /// Indices of the records that have no output yet.
    open: Vec<usize>,
    files: usize,
    bytes: u64,
    failed: Option<Failed>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(request: &'a Capture, element: DType) -> Self {
        Self {
            request,
            element,
            records: Vec::new(),
            calls: HashMap::new(),
            open: Vec::new(),
            files: 0,
            bytes: 0,
            failed: None,
        }
    }

    /// The captured modules and the bytes written.
    pub(super) fn finish(self) -> Result<(Vec<CapturedModule>, u64), Failed> {
        self.failed.map_or(Ok((self.records, self.bytes)), Err)
    }

    fn is_wanted(&self, path: &str) -> bool {
        self.request.modules.iter().any(|pattern| glob(pattern.as_bytes(), path.as_bytes()))
    }

    fn write(&mut self, tensor: &Tensor) -> CapturedTensor {
        let mut written = CapturedTensor {
            shape: tensor.dims().to_vec(),
            dtype: tensor.dtype().as_str().to_owned(),
            file: None,
        };
        let bytes = (tensor.elem_count() * self.element.size_in_bytes()) as u64;
        if self.bytes + bytes <= self.request.max_bytes && self.failed.is_none() {
            let name = format!("{:06}", self.files);
            match write(tensor, self.element, &self.request.folder.join(&name)) {
                Ok(()) => {
                    self.bytes += bytes;
                    self.files += 1;
                    written.file = Some(name);
                }
                Err(failed) => self.failed = Some(failed),
            }
        }
        written
    }
}

impl Probe for Writer<'_> {
    fn enter(&mut self, path: &str, input: &Tensor) {
        if !self.is_wanted(path) {
            return;
        }
        let input = self.write(input);
        let calls = self.calls.entry(path.to_owned()).or_default();
        self.open.push(self.records.len());
        self.records.push(CapturedModule {
            path: path.to_owned(),
            call: *calls,
            // The native models have no classes.
            class: "native".to_owned(),
            input: Some(input),
            ..CapturedModule::default()
        });
        *calls += 1;
    }

    fn leave(&mut self, path: &str, output: &Tensor) {
        if !self.is_wanted(path) {
            return;
        }
        let output = self.write(output);
        if let Some(index) = self.open.pop() {
            self.records[index].output = Some(output);
        }
    }
}

/// Replays one call of a module with a stored input and writes its output.
pub(super) struct Feeder<'a> {
    request: &'a Replay,
    stored: Vec<u8>,
    calls: usize,
    is_fed: bool,
    result: Option<Result<Replayed, Failed>>,
}

impl<'a> Feeder<'a> {
    pub(super) fn new(request: &'a Replay) -> Result<Self, Failed> {
        let stored = fs::read(&request.input)
            .map_err(|error| exception(format!("cannot read {}: {error}", request.input.display())))?;
        Ok(Self { request, stored, calls: 0, is_fed: false, result: None })
    }

    pub(super) fn finish(self) -> Result<Replayed, Failed> {
        let Replay { module, call, .. } = self.request;
        self.result.unwrap_or_else(|| Err(exception(format!("{module} has no call {call}"))))
    }

    fn tensor(&self, like: &Tensor) -> candle_core::Result<Tensor> {
        let shape = self.request.shape.as_slice();
        let is_wide = self.stored.len() == shape.iter().product::<usize>() * DType::F64.size_in_bytes();
        let element = if is_wide { DType::F64 } else { DType::F32 };
        let stored = Tensor::from_raw_buffer(&self.stored, element, shape, &Device::Cpu)?;
        stored.to_dtype(like.dtype())?.reshape(like.shape())?.to_device(like.device())
    }
}

impl Probe for Feeder<'_> {
    fn enter(&mut self, _path: &str, _input: &Tensor) {}

    fn replace_input(&mut self, path: &str, input: &Tensor) -> Option<Tensor> {
        if path != self.request.module {
            return None;
        }
        self.calls += 1;
        if self.calls != self.request.call + 1 {
            return None;
        }
        self.is_fed = true;
        match self.tensor(input) {
            Ok(tensor) => Some(tensor),
            Err(error) => {
                self.result = Some(Err(super::failure::tensor_failure(error)));
                None
            }
        }
    }

    fn leave(&mut self, path: &str, output: &Tensor) {
        if path == self.request.module && self.is_fed && self.result.is_none() {
            let written = write(output, element(output.dtype()), &self.request.output);
            self.result = Some(written.map(|()| Replayed { shape: output.dims().to_vec() }));
        }
    }
}

/// Whether two tensors have equal bits; any NaN equals any other NaN.
pub(super) fn same(a: &Tensor, b: &Tensor) -> candle_core::Result<bool> {
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
    let (a, b) = (values(a)?, values(b)?);
    let equal = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    Ok(a.len() == b.len() && a.iter().zip(&b).all(equal))
}

/// The dtype in which tensors of a model in `dtype` are stored.
pub(super) fn element(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Writes the elements in C order, little-endian.
fn write(tensor: &Tensor, element: DType, path: &Path) -> Result<(), Failed> {
    let flat = tensor.to_dtype(element).and_then(|tensor| tensor.flatten_all());
    let bytes = flat.and_then(|flat| {
        Ok(match flat.dtype() {
            DType::F64 => flat.to_vec1::<f64>()?.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>(),
            _ => flat.to_vec1::<f32>()?.iter().flat_map(|x| x.to_le_bytes()).collect(),
        })
    });
    let bytes = bytes.map_err(super::failure::tensor_failure)?;
    fs::write(path, bytes).map_err(|error| exception(format!("cannot write {}: {error}", path.display())))
}
