//! A tiny llama and its inputs, written by the tests, and the environments that run it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use reference::protocol::{
    ATTENTION_MASK, Attention, Dtype, Forward, Forwarded, INPUT_IDS, LOGITS, Load, Mode, POSITION_IDS, Ready,
};
use reference::{
    Environment, Launch, Source, Specification, Template, Versions, Worker, WorkerEnd, prepare, prepare_all,
    release,
};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as Element, TensorView};
use serde_json::{Value, json};

/// Four heads of 16, whose scale 1/4 is exact. Eager attention of 4.46.3 divides by sqrt(head_dim), that of
/// 4.51.3 multiplies by head_dim^-0.5 (`modeling_llama.py`); with head_dim 8 they differ by 4e-7 in f32.
pub(crate) const HIDDEN: usize = 64;
const INTERMEDIATE: usize = 64;
const LAYERS: usize = 2;
pub(crate) const VOCABULARY: usize = 97;
/// Compilation without a cache took 90 s on a loaded machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(580);

/// tfcheck's own cache, so that all tests and tfcheck itself share one set of environments.
pub(crate) fn cache() -> PathBuf {
    let named = std::env::var_os("TFCHECK_CACHE").map(PathBuf::from);
    named.unwrap_or_else(|| dirs::cache_dir().unwrap().join("tfcheck"))
}

/// Number of workers that may run at once: each uses 0.8 GB and one thread.
const WORKERS: usize = 2;

/// A slot for a running worker, released when dropped.
pub(crate) struct Turn(());

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// Waits until fewer than [`WORKERS`] workers run. A test must not take a second slot while it holds one.
pub(crate) fn turn() -> Turn {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    let free = ENDED.wait_while(running, |running| *running >= WORKERS);
    *free.unwrap_or_else(PoisonError::into_inner) += 1;
    Turn(())
}

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// The environments to compare, oldest first: those of `$TFCHECK_TEST_ENVS`, or the default pair, installed
/// if necessary.
pub(crate) fn environments() -> &'static [Environment] {
    static FOUND: LazyLock<Vec<Environment>> = LazyLock::new(|| {
        let Some(folder) = std::env::var_os("TFCHECK_TEST_ENVS") else {
            let specifications: Vec<_> = (Versions::known().default.iter())
                .map(|version| Specification::new(Source::Release(version.clone())))
                .collect();
            return prepare_all(&specifications, &cache(), &|index, line| eprintln!("{index}: {line}"))
                .into_iter()
                .map(Result::unwrap)
                .collect();
        };
        let mut found: Vec<Environment> =
            fs::read_dir(folder).unwrap().map(|entry| existing(&entry.unwrap().path()).unwrap()).collect();
        found.sort_by_key(|environment| release(version(environment)));
        found
    });
    &FOUND
}

pub(crate) fn existing(path: &Path) -> Result<Environment, reference::EnvironmentError> {
    let mut specification = Specification::new(Source::Newest);
    specification.python = reference::Python::Existing(path.to_owned());
    prepare(&specification, &cache(), &|line| eprintln!("{line}"))
}

pub(crate) fn version(environment: &Environment) -> &str {
    &environment.versions["transformers"]
}

/// The config in version 4's spelling, which every version reads.
pub(crate) fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
        "bos_token_id": 1,
        "eos_token_id": 2,
    })
}

/// Name and shape of every weight of the tiny llama.
pub(crate) fn shapes() -> BTreeMap<String, Vec<usize>> {
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
    ]);
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
        }
    }
    shapes
}

/// Writes a checkpoint with `config` and pseudo-random weights of `shapes`.
pub(crate) fn checkpoint(folder: &Path, config: &Value, shapes: &BTreeMap<String, Vec<usize>>) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut uniform = || {
        // xorshift64* (Vigna 2016): the same weights on every machine.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        bits as f32 / (1_u32 << 24) as f32 - 0.5
    };
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .iter()
        .map(|(name, shape)| {
            let norm = shape.len() == 1;
            let bytes = (0..shape.iter().product())
                .flat_map(|_| (if norm { 1.0 + uniform() } else { uniform() }).to_le_bytes())
                .collect();
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    let views = data
        .iter()
        .map(|(name, shape, bytes)| (name, TensorView::new(Element::F32, shape.clone(), bytes).unwrap()));
    // transformers 4 refuses a file whose metadata has no `format`.
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    safetensors::serialize_to_file(views, metadata, &folder.join("model.safetensors")).unwrap();
}

/// Writes inputs of equal sequence length; 0 in `mask` is padding.
pub(crate) fn inputs(path: &Path, ids: &[Vec<i64>], mask: &[Vec<i64>], positions: &[Vec<i64>]) {
    let shape = vec![ids.len(), ids[0].len()];
    let bytes = |rows: &[Vec<i64>]| -> Vec<u8> {
        rows.iter().flatten().flat_map(|value| value.to_le_bytes()).collect()
    };
    let data = [(INPUT_IDS, bytes(ids)), (ATTENTION_MASK, bytes(mask)), (POSITION_IDS, bytes(positions))];
    let views = data
        .iter()
        .map(|(name, bytes)| (*name, TensorView::new(Element::I64, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// `length` token ids, which differ for each `row`.
pub(crate) fn tokens(row: usize, length: usize) -> Vec<i64> {
    (0..length).map(|index| 3 + ((index * 31 + row * 17) % (VOCABULARY - 3)) as i64).collect()
}

/// Writes inputs of one unpadded sequence.
pub(crate) fn plain(path: &Path, ids: &[i64]) {
    let length = ids.len();
    inputs(path, &[ids.to_vec()], &[vec![1; length]], &[(0..length as i64).collect()]);
}

/// Logits, `[batch, seq, vocab_size]` flattened, as f64.
pub(crate) fn read(path: &Path) -> (Vec<f64>, Vec<usize>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(LOGITS).unwrap();
    let values = match view.dtype() {
        Element::F64 => {
            view.data().chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap())).collect()
        }
        Element::F32 => view
            .data()
            .chunks_exact(4)
            .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
            .collect(),
        other => panic!("logits are {other:?}"),
    };
    (values, view.shape().to_vec())
}

/// One variant of the tiny llama in one environment.
pub(crate) struct Cell<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) checkpoint: &'a Path,
    pub(crate) inputs: &'a Path,
    pub(crate) mode: Mode,
    pub(crate) attention: Attention,
    pub(crate) dtype: Dtype,
}

pub(crate) struct Outcome {
    pub(crate) logits: Vec<f64>,
    pub(crate) ready: Ready,
    pub(crate) forwarded: Forwarded,
}

/// The process that forks the workers of an environment, as long as the tests run; `None` where workers cannot be forked.
fn template(environment: &Environment) -> Option<&'static Template> {
    static KNOWN: Mutex<BTreeMap<PathBuf, Option<&'static Template>>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    *known.entry(environment.python.clone()).or_insert_with(|| {
        let template = Template::of(environment, &cache(), 1).unwrap();
        template.map(|template| &*Box::leak(Box::new(template)))
    })
}

impl Cell<'_> {
    pub(crate) fn start(&self, folder: &Path) -> Worker {
        let mut launch =
            Launch::transformers(self.environment, &cache(), folder.join("worker.log"), 1).unwrap();
        // Compiled code is shared between test runs; inductor's cache keys contain everything that it depends
        // on.
        let compiled = Path::new(env!("CARGO_TARGET_TMPDIR")).join("inductor").join(&self.environment.key);
        launch.variables.push(("TORCHINDUCTOR_CACHE_DIR".into(), compiled.into_os_string()));
        match template(self.environment) {
            Some(template) => Worker::fork(template, &launch, &AtomicBool::new(false)).unwrap(),
            None => Worker::start(&launch).unwrap(),
        }
    }

    pub(crate) fn load(&self) -> Load {
        Load {
            mode: self.mode,
            attention: Some(self.attention),
            dtype: self.dtype,
            ..Load::new(self.checkpoint.to_owned(), self.inputs.to_owned())
        }
    }

    /// Loads the model and runs a full-sequence forward pass. Eager cells of one environment share a worker,
    /// which saves seconds of imports each; compiled cells get their own.
    pub(crate) fn run(&self) -> Result<Outcome, WorkerEnd> {
        self.run_with(None)
    }

    /// [`run`](Self::run) through the KV cache, if `prefill` is set.
    pub(crate) fn run_with(&self, prefill: Option<usize>) -> Result<Outcome, WorkerEnd> {
        static IDLE: Mutex<BTreeMap<PathBuf, Vec<Worker>>> = Mutex::new(BTreeMap::new());
        let _turn = turn();
        let folder = tempfile::tempdir().unwrap();
        let shared = self.mode != Mode::Compiled;
        let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let found = if shared { idle().get_mut(&self.environment.python).and_then(Vec::pop) } else { None };
        let mut worker =
            found.unwrap_or_else(|| self.start(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("logs")));
        let stop = std::sync::atomic::AtomicBool::new(false);
        let ready = worker.load(self.load(), LIMIT, &stop)?;
        let logits = folder.path().join("logits.safetensors");
        let forwarded = worker.forward(Forward::prefilled(logits.clone(), prefill), LIMIT, &stop)?;
        if shared {
            idle().entry(self.environment.python.clone()).or_default().push(worker);
        }
        let (logits, shape) = read(&logits);
        assert_eq!(shape, forwarded.shape);
        Ok(Outcome { logits, ready, forwarded })
    }
}

/// Relative L2 distance, `|a - b| / |b|`.
pub(crate) fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>();
    (square(&mut a.iter().zip(b).map(|(a, b)| a - b)) / square(&mut b.iter().copied())).sqrt()
}
