//! From a checkpoint folder to a model that is ready to be called.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use pyo3::exceptions::PyKeyError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Map, Value};

use super::auto::{self, Class, Drive};
use super::failure::Stop;
use super::float64::{self, Float64};
use super::inputs::Recipient;
use super::paused::Paused;
use super::report::attention_name;
use super::{compile, ignored, inputs, report};
use crate::translation::{BY_TRANSFORMERS, Translated, rope_thetas, translate};
use crate::versions::{Versions, WrongShapes};
use protocol::{Attention, Dtype, Load, Mode, NewInputs, PROTOCOL_VERSION, Ready, TakenInputs};

/// A loaded model and everything that a forward pass needs.
pub(super) struct Loaded {
    pub(super) torch: Py<PyAny>,
    /// The `torch.nn.Module`.
    pub(super) model: Py<PyAny>,
    /// The callable: the module, or its `torch.compile` wrapper.
    pub(super) callable: Py<PyAny>,
    pub(super) arguments: Py<PyDict>,
    pub(super) drive: Drive,
    /// Whether the model gets no position ids.
    pub(super) counts_positions: bool,
    /// Outputs that the model computes only if asked to.
    pub(super) outputs: Vec<String>,
    pub(super) mode: Mode,
    pub(super) dtype: Dtype,
    pub(super) float64: Float64,
    pub(super) device: String,
}

/// Loads the checkpoint and the inputs of `request`.
pub(super) fn load(py: Python<'_>, request: &Load) -> Result<(Loaded, Ready), Stop> {
    let begun = Instant::now();
    if request.protocol != PROTOCOL_VERSION {
        return Err(Stop::exception(format!(
            "the bridge speaks protocol {PROTOCOL_VERSION}, not {}",
            request.protocol
        )));
    }
    if request.mode == Mode::Fused {
        return Err(Stop::unsupported("transformers has no fused mode".into()));
    }
    let config = read_config(&request.checkpoint)?;
    let paused = Paused::collector(py)?;
    let torch = py.import("torch")?.into_any();
    let said_of_device = settle(py, &torch, request)?;
    let transformers = py.import("transformers")?.into_any();
    let version: String = transformers.getattr("__version__")?.extract()?;
    let Translated { config: translated, mut notes, rope_thetas } = if request.as_is {
        Translated { config: config.clone(), notes: Vec::new(), rope_thetas: rope_thetas(&config) }
    } else {
        translate(&config, &version).map_err(Stop::unsupported)?
    };

    notes.extend(said_of_device.map(ToOwned::to_owned));
    let attention = request.attention.filter(|attention| *attention != Attention::Default);
    let (config_class, config_object) = config_object(py, &translated, attention, &version)?;
    let otherwise = if translated == config {
        Vec::new()
    } else {
        report::read_otherwise(&config_class, &config_object, &config)?
    };
    notes.extend(report::settle_padding(&config_object)?);
    let (class, drive) = auto::class(&config, is_encoder(py, &config)?, &mut notes);
    let keywords = keywords(py, &torch, request, attention, &config_object, &version)?;
    let float64 = Float64::new(py, request.dtype == Dtype::F64)?;
    if request.dtype == Dtype::F64 {
        notes.push(float64::NOTE.to_owned());
    }
    let (class, drive) = match class {
        Class::Auto(name) => {
            let auto = transformers.getattr(name)?;
            let named = config.get("architectures").and_then(|names| names.get(0)?.as_str());
            match named.filter(|_| !has_model(&auto, &config_class)) {
                // A part of a model (`Qwen2VLVisionConfig`) has a class that the auto class does not find.
                Some(name) => match own_class(&transformers, &config_class, name)? {
                    Some(own) => (own, Drive::Whole),
                    None => (auto, drive),
                },
                None => (auto, drive),
            }
        }
        Class::Named(name) => {
            let own = own_class(&transformers, &config_class, name)?;
            (
                own.ok_or_else(|| Stop::unsupported(format!("transformers {version} has no class {name}")))?,
                drive,
            )
        }
    };
    let (model, loading) = float64
        .within(py, || {
            import_model(&class, &config_class);
            drop(paused);
            class.call_method("from_pretrained", (request.checkpoint.as_os_str(),), Some(&keywords))
        })?
        .extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
    notes.extend(float64.settle(&model)?);
    let model = model.call_method1("to", (&request.device,))?;
    model.call_method0("eval")?;
    model.call_method1("requires_grad_", (false,))?;
    let ignored_keys = ignored::ignored_keys(&config_class, &model, &translated)?;
    if let Some(keys) = ignored_keys.as_ref().filter(|keys| !keys.is_empty()) {
        let name = config_class.getattr("__name__")?;
        notes.push(format!("{name} and its model ignore the config keys {}", keys.join(", ")));
    }
    let (unread_tensors, said) = report::loading(&model, &loading)?;
    notes.extend(said);
    let ropes = report::Ropes::of(&model, &rope_thetas, &version)?;
    if let Some(lost) = ropes.lost {
        if !request.as_is {
            return Err(Stop::exception(lost));
        }
        notes.push(lost);
    }
    if let Some(added) = ropes.added {
        notes.retain(|note| !note.ends_with(BY_TRANSFORMERS));
        notes.push(added);
    }
    notes.extend(report::attention(&model, attention)?);
    if request.auto_dtype {
        notes.extend(report::dtype(&model, torch_dtype(request.dtype))?);
    }
    let counts_positions = drive != Drive::Decoder || request.own_positions;
    let recipient = Recipient {
        torch: &torch,
        model: &model,
        device: &request.device,
        dtype: torch_dtype(request.dtype),
        counts_positions,
        outputs: &request.outputs,
    };
    let (arguments, said) = inputs::arguments(&recipient, &request.inputs)?;
    notes.extend(said);
    let callable = match request.mode {
        Mode::Compiled => compile::compile(&torch, &model)?,
        Mode::Frozen => compile::compile_frozen(&torch, &model)?,
        Mode::ReduceOverhead => compile::compile_as(&torch, &model, "reduce-overhead")?,
        Mode::MaxAutotune => compile::compile_as(&torch, &model, "max-autotune")?,
        Mode::Eager | Mode::Fused => model.clone(),
    };
    let libraries = libraries(py, &torch, version)?;
    let loaded = Loaded {
        torch: torch.unbind(),
        model: model.unbind(),
        callable: callable.unbind(),
        arguments: arguments.unbind(),
        drive,
        counts_positions,
        outputs: request.outputs.clone(),
        mode: request.mode,
        dtype: request.dtype,
        float64,
        device: request.device.clone(),
    };
    let ready = Ready {
        libraries,
        load_ns: begun.elapsed().as_nanos() as u64,
        notes,
        ignored_keys,
        translated: otherwise,
        unread_tensors: Some(unread_tensors),
    };
    Ok((loaded, ready))
}

/// Other inputs for a loaded model.
pub(super) fn take_inputs(
    py: Python<'_>,
    loaded: &mut Loaded,
    request: &NewInputs,
) -> Result<TakenInputs, Stop> {
    let (torch, model) = (loaded.torch.bind(py), loaded.model.bind(py));
    let recipient = Recipient {
        torch,
        model,
        device: &loaded.device,
        dtype: torch_dtype(loaded.dtype),
        counts_positions: loaded.counts_positions,
        outputs: &loaded.outputs,
    };
    let (arguments, _) = inputs::arguments(&recipient, &request.inputs)?;
    let mut unused = Vec::new();
    for name in inputs::names(&request.inputs)? {
        if !arguments.contains(&name)? {
            unused.push(name);
        }
    }
    loaded.arguments = arguments.unbind();
    Ok(TakenInputs { unused })
}

/// Reads `config.json` and refuses what would run code of the checkpoint's.
fn read_config(checkpoint: &Path) -> Result<Map<String, Value>, Stop> {
    let path = checkpoint.join("config.json");
    let fail = |reason: String| Stop::exception(format!("{}: {reason}", path.display()));
    let text = fs::read(&path).map_err(|error| fail(error.to_string()))?;
    let config: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    // `auto_map` refers to Python files of the checkpoint, the other key to code (CVE-2026-4372).
    for key in ["auto_map", "_attn_implementation_internal"] {
        if config.contains_key(key) {
            return Err(Stop::unsupported(format!(
                "config.json has `{key}`, which runs code that comes with the checkpoint"
            )));
        }
    }
    if config.get("model_type").and_then(Value::as_str).is_none() {
        return Err(fail("it names no model_type".into()));
    }
    Ok(config)
}

/// Note on every model on a GPU. transformers does not set torch's TF32 switches, and torch disables TF32 for
/// matrix products by default.
const TF32_NOTE: &str = "TF32 is off: f32 matrix products are computed in f32 (torch's default, and the native models'); times are measured by GPU events from idle to idle";

/// Sets threads, seeds and switches that affect results; returns a note on them.
fn settle(py: Python<'_>, torch: &Bound<'_, PyAny>, request: &Load) -> Result<Option<&'static str>, Stop> {
    torch.call_method1("set_num_threads", (request.threads.max(1),))?;
    torch.call_method1("manual_seed", (request.seed,))?;
    py.import("random")?.call_method1("seed", (request.seed,))?;
    // numpy accepts a 32-bit seed.
    py.import("numpy")?.getattr("random")?.call_method1("seed", (request.seed as u32,))?;
    torch.call_method1("set_grad_enabled", (false,))?;
    if request.device.starts_with("cuda") {
        let cuda = torch.getattr("cuda")?;
        let available: bool = cuda.call_method0("is_available")?.extract()?;
        let found: usize = if available { cuda.call_method0("device_count")?.extract()? } else { 0 };
        // `cuda` without an index is the first GPU.
        let wanted: usize =
            request.device.strip_prefix("cuda:").and_then(|number| number.parse().ok()).unwrap_or(0);
        if wanted >= found {
            return Err(Stop::unsupported(no_gpu(torch, &request.device, found)?));
        }
        // Otherwise the process would use the first GPU, even for a model on another one.
        cuda.call_method1("set_device", (&request.device,))?;
        // TF32 has 10 bits of mantissa, and f32 cells must compare f32.
        torch.call_method1("set_float32_matmul_precision", ("highest",))?;
        torch.getattr("backends")?.getattr("cudnn")?.setattr("allow_tf32", false)?;
        return Ok(Some(TF32_NOTE));
    }
    Ok(None)
}

/// Why the device is not available: torch is a CPU build, or it finds too few GPUs.
fn no_gpu(torch: &Bound<'_, PyAny>, device: &str, found: usize) -> PyResult<String> {
    let built_for: Option<String> = torch.getattr("version")?.getattr("cuda")?.extract()?;
    Ok(match (built_for, found) {
        (None, _) => {
            let version = torch.getattr("__version__")?.str()?;
            format!("torch {version} has no CUDA, which {device} needs: take another torch_backend")
        }
        (Some(cuda), 0) => format!("torch (CUDA {cuda}) finds no CUDA device for {device}"),
        (Some(_), 1) => format!("torch finds 1 CUDA device, so there is no {device}"),
        (Some(_), found) => format!("torch finds {found} CUDA devices, so there is no {device}"),
    })
}

/// The config as an object of the version's config class for its `model_type`.
fn config_object<'py>(
    py: Python<'py>,
    config: &Map<String, Value>,
    attention: Option<Attention>,
    version: &str,
) -> Result<(Bound<'py, PyAny>, Bound<'py, PyAny>), Stop> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let known = py.import("transformers.models.auto.configuration_auto")?.getattr("CONFIG_MAPPING")?;
    let class = known.get_item(model_type).map_err(|error| {
        if error.is_instance_of::<PyKeyError>(py) {
            Stop::unsupported(format!("transformers {version} does not know model_type {model_type}"))
        } else {
            Stop::from(error)
        }
    })?;
    let text = Value::Object(config.clone()).to_string();
    let dict = py.import("json")?.call_method1("loads", (text,))?;
    // Set here and in `from_pretrained`: given only to the latter along with a config object, `eager` is
    // treated by transformers 4.40 as the default and replaced by sdpa (`_autoset_attn_implementation`).
    let keywords = PyDict::new(py);
    if let Some(attention) = attention {
        keywords.set_item("attn_implementation", attention_name(attention))?;
    }
    let object = class.call_method("from_dict", (dict,), Some(&keywords))?;
    Ok((class, object))
}

/// Whether an auto class has a model for a config's class; it counts as having one if the release does not tell.
fn has_model(auto: &Bound<'_, PyAny>, config_class: &Bound<'_, PyAny>) -> bool {
    auto.getattr("_model_mapping").and_then(|known| known.contains(config_class)).unwrap_or(true)
}

/// Imports the module that `from_pretrained` would import. If that fails, `from_pretrained` says why.
fn import_model(class: &Bound<'_, PyAny>, config_class: &Bound<'_, PyAny>) {
    let _ = class.getattr("_model_mapping").and_then(|known| known.get_item(config_class));
}

/// A class of this name: of the package itself, or of a module beside that of the config's class, because the package exports
/// not all parts of models.
fn own_class<'py>(
    transformers: &Bound<'py, PyAny>,
    config_class: &Bound<'py, PyAny>,
    name: &str,
) -> PyResult<Option<Bound<'py, PyAny>>> {
    if let Some(class) = transformers.getattr_opt(name)? {
        return Ok(Some(class));
    }
    let py = transformers.py();
    let module: String = config_class.getattr("__module__")?.extract()?;
    let (package, _) = module.rsplit_once('.').unwrap_or_default();
    if !package.starts_with("transformers.models.") {
        return Ok(None);
    }
    let folder = py.import(package)?.getattr("__path__")?;
    for found in py.import("pkgutil")?.call_method1("iter_modules", (folder,))?.try_iter()? {
        let file: String = found?.getattr("name")?.extract()?;
        if file.starts_with("modeling_")
            && let Some(class) = py.import(format!("{package}.{file}"))?.getattr_opt(name)?
        {
            return Ok(Some(class));
        }
    }
    Ok(None)
}

/// Whether the version has a masked language model of this `model_type`, which only encoders have.
fn is_encoder(py: Python<'_>, config: &Map<String, Value>) -> PyResult<bool> {
    let known = py.import("transformers.models.auto.modeling_auto")?;
    let model_type = config.get("model_type").and_then(Value::as_str);
    known.getattr("MODEL_FOR_MASKED_LM_MAPPING_NAMES")?.contains(model_type)
}

fn keywords<'py>(
    py: Python<'py>,
    torch: &Bound<'py, PyAny>,
    request: &Load,
    attention: Option<Attention>,
    config: &Bound<'py, PyAny>,
    version: &str,
) -> PyResult<Bound<'py, PyDict>> {
    let keywords = PyDict::new(py);
    keywords.set_item("config", config)?;
    let dialect = Versions::known().dialect(version);
    if request.auto_dtype {
        keywords.set_item(&dialect.dtype_argument, "auto")?;
    } else {
        keywords.set_item(&dialect.dtype_argument, torch.getattr(torch_dtype(request.dtype))?)?;
    }
    if let Some(attention) = attention {
        keywords.set_item("attn_implementation", attention_name(attention))?;
    }
    keywords.set_item("use_safetensors", true)?;
    keywords.set_item("trust_remote_code", false)?;
    keywords.set_item("local_files_only", true)?;
    keywords.set_item("output_loading_info", true)?;
    if dialect.wrong_shapes == WrongShapes::Logged {
        // With this option transformers returns mismatched weights by name; the bridge then refuses them.
        keywords.set_item("ignore_mismatched_sizes", true)?;
    }
    Ok(keywords)
}

/// As torch spells it.
pub(super) fn torch_dtype(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F64 => "float64",
        Dtype::F32 => "float32",
        Dtype::Bf16 => "bfloat16",
        Dtype::F16 => "float16",
    }
}

fn libraries(
    py: Python<'_>,
    torch: &Bound<'_, PyAny>,
    transformers: String,
) -> PyResult<BTreeMap<String, String>> {
    let python = py.import("platform")?.call_method0("python_version")?;
    let mut libraries = BTreeMap::from([
        ("transformers".to_owned(), transformers),
        ("torch".to_owned(), torch.getattr("__version__")?.str()?.to_string()),
        ("python".to_owned(), python.extract()?),
    ]);
    let cuda: Option<String> = torch.getattr("version")?.getattr("cuda")?.extract()?;
    libraries.extend(cuda.map(|cuda| ("torch_cuda".to_owned(), cuda)));
    Ok(libraries)
}
