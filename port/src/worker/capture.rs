//! A forward pass that writes the inputs and outputs of modules, or replays one module with a stored input.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use bounds::limits::STORED_TENSOR_BYTES;
use candle_core::{DType, Device, Tensor};
use protocol::{Capture, CapturedModule, CapturedTensor, Failed, Replay, Replayed};

use super::failure::{exception, failure};
use crate::probe::Probe;

/// Writes inputs and outputs of the modules that match a glob, until the byte limit is reached.
pub struct Writer {
    request: Capture,
    /// What the records say instead of a class.
    class: &'static str,
    /// The dtype in which tensors are stored.
    element: DType,
    records: Vec<CapturedModule>,
    calls: HashMap<String, usize>,
    /// Indices of the records that have no output yet.
    open: Vec<usize>,
    files: usize,
    bytes: u64,
    failed: Option<Failed>,
    saw_modules: bool,
}

impl Writer {
    /// Writes what `request` asks for; the model has no classes, so `class` names what it is.
    pub fn new(request: &Capture, class: &'static str, element: DType) -> Self {
        Self {
            request: request.clone(),
            class,
            element,
            records: Vec::new(),
            calls: HashMap::new(),
            open: Vec::new(),
            files: 0,
            bytes: 0,
            failed: None,
            saw_modules: false,
        }
    }

    /// Whether the pass showed any module, wanted or not.
    pub fn saw_modules(&self) -> bool {
        self.saw_modules
    }

    /// The captured modules and the bytes written.
    ///
    /// # Errors
    /// When a tensor could not be written.
    pub fn finish(self) -> Result<(Vec<CapturedModule>, u64), Failed> {
        self.failed.map_or(Ok((self.records, self.bytes)), Err)
    }

    fn is_wanted(&self, path: &str) -> bool {
        self.request.modules.iter().any(|pattern| protocol::glob(pattern.as_bytes(), path.as_bytes()))
    }

    fn record(&mut self, path: &str, input: Option<CapturedTensor>, output: Option<CapturedTensor>) {
        let calls = self.calls.entry(path.to_owned()).or_default();
        self.records.push(CapturedModule {
            path: path.to_owned(),
            call: *calls,
            class: self.class.to_owned(),
            input,
            output,
            ..CapturedModule::default()
        });
        *calls += 1;
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

impl Probe for Writer {
    fn enter(&mut self, path: &str, input: &Tensor) {
        self.saw_modules = true;
        if self.is_wanted(path) {
            let input = self.write(input);
            self.open.push(self.records.len());
            self.record(path, Some(input), None);
        }
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

    fn output(&mut self, path: &str, output: &Tensor) {
        self.saw_modules = true;
        if self.is_wanted(path) {
            let output = self.write(output);
            self.record(path, None, Some(output));
        }
    }
}

/// Replays one call of a module with a stored input and writes its output.
pub struct Feeder {
    request: Replay,
    stored: Vec<u8>,
    calls: usize,
    is_fed: bool,
    result: Option<Result<Replayed, Failed>>,
}

impl Feeder {
    /// # Errors
    /// When the stored tensor cannot be read.
    pub fn new(request: &Replay) -> Result<Self, Failed> {
        let stored = bounds::file::read(&request.input, STORED_TENSOR_BYTES)
            .map_err(|error| exception(format!("cannot read {}: {error}", request.input.display())))?;
        Ok(Self { request: request.clone(), stored, calls: 0, is_fed: false, result: None })
    }

    /// # Errors
    /// When the module was not called so often, or its output could not be written.
    pub fn finish(self) -> Result<Replayed, Failed> {
        let Replay { module, call, .. } = &self.request;
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

impl Probe for Feeder {
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
                self.result = Some(Err(failure(error)));
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
///
/// # Errors
/// When a value cannot be read from its device.
pub fn same(a: &Tensor, b: &Tensor) -> candle_core::Result<bool> {
    let values = |tensor: &Tensor| tensor.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>();
    let (a, b) = (values(a)?, values(b)?);
    let equal = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    Ok(a.len() == b.len() && a.iter().zip(&b).all(equal))
}

/// The dtype in which tensors of a model in `dtype` are stored.
pub fn element(dtype: DType) -> DType {
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
    let bytes = bytes.map_err(failure)?;
    fs::write(path, bytes).map_err(|error| exception(format!("cannot write {}: {error}", path.display())))
}
