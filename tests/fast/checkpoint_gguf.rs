//! Tests GGUF import on tiny files that the tests write.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::checkpoint_files::settings;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use serde_json::json;
use tfcheck::spec::checkpoint::{self, Checkpoint, Error};
use tfcheck::spec::inputs::{self, Fill, Prompt, Spec};
use tokenizers::Tokenizer;

const HIDDEN: usize = 64;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;

/// A builder of GGUF files.
struct Gguf {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, Tensor, GgmlDType)>,
}

fn tensor(rows: usize, columns: usize) -> Tensor {
    // Neighbouring values differ, so that exchanged rows or columns are detected.
    let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

fn norm(length: usize) -> Tensor {
    tensor(1, length).flatten_all().unwrap()
}

impl Gguf {
    fn new(architecture: &str) -> Self {
        let mut gguf = Self { metadata: Vec::new(), tensors: Vec::new() };
        gguf.set("general.architecture", Value::String(architecture.to_owned()));
        for (key, value) in [
            ("block_count", 1),
            ("embedding_length", HIDDEN as u32),
            ("feed_forward_length", 96),
            ("attention.head_count", HEADS as u32),
            ("attention.head_count_kv", KV_HEADS as u32),
            ("context_length", 128),
        ] {
            gguf.set(&format!("{architecture}.{key}"), Value::U32(value));
        }
        gguf.set(&format!("{architecture}.attention.layer_norm_rms_epsilon"), Value::F32(1e-6));
        gguf.tokenizer();
        let vocab = gguf.tokens().len();
        gguf.add("token_embd.weight", tensor(vocab, HIDDEN));
        gguf.add("output_norm.weight", norm(HIDDEN));
        let key_value = KV_HEADS * HEAD_DIM;
        for (name, rows, columns) in [
            ("attn_q", HEADS * HEAD_DIM, HIDDEN),
            ("attn_k", key_value, HIDDEN),
            ("attn_v", key_value, HIDDEN),
            ("attn_output", HIDDEN, HEADS * HEAD_DIM),
            ("ffn_gate", 96, HIDDEN),
            ("ffn_up", 96, HIDDEN),
            ("ffn_down", HIDDEN, 96),
        ] {
            gguf.add(&format!("blk.0.{name}.weight"), tensor(rows, columns));
        }
        for name in ["attn_norm", "ffn_norm"] {
            gguf.add(&format!("blk.0.{name}.weight"), norm(HIDDEN));
        }
        gguf
    }

    fn set(&mut self, key: &str, value: Value) {
        self.metadata.retain(|(known, _)| known != key);
        self.metadata.push((key.to_owned(), value));
    }

    fn add(&mut self, name: &str, tensor: Tensor) {
        self.tensors.retain(|(known, ..)| known != name);
        self.tensors.push((name.to_owned(), tensor, GgmlDType::F32));
    }

    fn remove(mut self, name: &str) -> Self {
        self.tensors.retain(|(known, ..)| known != name);
        self
    }

    fn tokens(&self) -> Vec<Value> {
        let (_, tokens) = self.metadata.iter().find(|(key, _)| key == "tokenizer.ggml.tokens").unwrap();
        tokens.to_vec().unwrap().clone()
    }

    /// A byte-level vocabulary of the printable ASCII letters, two merges and an end token.
    fn tokenizer(&mut self) {
        let text = |text: &str| Value::String(text.to_owned());
        let mut tokens = vec![text("<|end|>")];
        tokens.extend(('!'..='~').map(|c| text(&c.to_string())));
        tokens.extend(["Ġ", "ĠĠ", "he", "Ġhe"].map(text));
        let types = (0..tokens.len()).map(|i| Value::I32(if i == 0 { 3 } else { 1 })).collect();
        self.set("tokenizer.ggml.model", text("gpt2"));
        self.set("tokenizer.ggml.pre", text("smollm"));
        self.set("tokenizer.ggml.tokens", Value::Array(tokens));
        self.set("tokenizer.ggml.token_type", Value::Array(types));
        self.set("tokenizer.ggml.merges", Value::Array(["h e", "Ġ he", "Ġ Ġ"].map(text).to_vec()));
        self.set("tokenizer.ggml.eos_token_id", Value::U32(0));
    }

    fn write(&self, root: &Path) -> PathBuf {
        let path = root.join("tiny.gguf");
        let quantized: Vec<_> = self
            .tensors
            .iter()
            .map(|(name, tensor, dtype)| (name.as_str(), QTensor::quantize(tensor, *dtype).unwrap()))
            .collect();
        let tensors: Vec<_> = quantized.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        gguf_file::write(&mut File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        path
    }

    fn import(&self) -> Result<Imported, Error> {
        let root = tempfile::tempdir().unwrap();
        let path = self.write(root.path());
        let checkpoint = checkpoint::resolve(path.to_str().unwrap(), &settings(root.path()), &mut |_| ())?;
        Ok(Imported { checkpoint, _root: root })
    }
}

struct Imported {
    checkpoint: Checkpoint,
    _root: tempfile::TempDir,
}

impl Imported {
    fn tensor(&self, name: &str) -> Tensor {
        candle_core::safetensors::load(&self.checkpoint.weights[0], &Device::Cpu).unwrap()[name].clone()
    }

    fn names(&self) -> Vec<String> {
        let tensors = candle_core::safetensors::load(&self.checkpoint.weights[0], &Device::Cpu).unwrap();
        let mut names: Vec<_> = tensors.into_keys().collect();
        names.sort();
        names
    }
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// llama.cpp's `LlamaModel.permute`, done with tensor operations.
fn permute(tensor: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = tensor.dims2().unwrap();
    let halves = tensor.reshape((heads, 2, rows / heads / 2, columns)).unwrap();
    halves.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

#[test]
fn llama_projections_come_back_in_the_order_that_rope_expects() {
    let mut gguf = Gguf::new("llama");
    let (query, key) = (tensor(HEADS * HEAD_DIM, HIDDEN), tensor(KV_HEADS * HEAD_DIM, HIDDEN));
    gguf.add("blk.0.attn_q.weight", permute(&query, HEADS));
    gguf.add("blk.0.attn_k.weight", permute(&key, KV_HEADS));
    let bias = tensor(HEADS * HEAD_DIM, 1);
    gguf.add("blk.0.attn_q.bias", permute(&bias, HEADS).flatten_all().unwrap());
    let imported = gguf.import().unwrap();
    assert_eq!(values(&imported.tensor("model.layers.0.self_attn.q_proj.weight")), values(&query));
    assert_eq!(values(&imported.tensor("model.layers.0.self_attn.k_proj.weight")), values(&key));
    assert_eq!(values(&imported.tensor("model.layers.0.self_attn.q_proj.bias")), values(&bias));
    // Known positive: the permutation changes the tensor, so an import that does not undo it would fail the test.
    assert_ne!(values(&permute(&query, HEADS)), values(&query));
    assert_eq!(imported.checkpoint.config["attention_bias"], json!(true));
}

#[test]
fn a_llama_file_becomes_a_folder_that_transformers_would_write() {
    let imported = Gguf::new("llama").import().unwrap();
    let checkpoint = &imported.checkpoint;
    insta::assert_snapshot!(serde_json::to_string_pretty(&checkpoint.config).unwrap());
    assert_eq!(
        imported.names(),
        [
            "model.embed_tokens.weight",
            "model.layers.0.input_layernorm.weight",
            "model.layers.0.mlp.down_proj.weight",
            "model.layers.0.mlp.gate_proj.weight",
            "model.layers.0.mlp.up_proj.weight",
            "model.layers.0.post_attention_layernorm.weight",
            "model.layers.0.self_attn.k_proj.weight",
            "model.layers.0.self_attn.o_proj.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.0.self_attn.v_proj.weight",
            "model.norm.weight",
        ]
    );
    assert_eq!(values(&imported.tensor("model.layers.0.mlp.down_proj.weight")), values(&tensor(HIDDEN, 96)));
    assert!(checkpoint.notes[0].starts_with("imported from tiny.gguf (sha-256 "), "{:?}", checkpoint.notes);
}

#[test]
fn quantised_rows_equal_the_whole_tensor_dequantised() {
    let mut gguf = Gguf::new("llama");
    // More rows than one chunk of 8 MiB holds, and projections whose rows are permuted.
    let vocab = gguf.tokens().len();
    gguf.add("token_embd.weight", tensor(vocab, HIDDEN));
    for (_, _, dtype) in
        gguf.tensors.iter_mut().filter(|(name, ..)| name.contains("attn_") && !name.contains("norm"))
    {
        *dtype = GgmlDType::Q5_0;
    }
    let imported = gguf.import().unwrap();
    let whole = |dtype| {
        QTensor::quantize(&tensor(HEADS * HEAD_DIM, HIDDEN), dtype).unwrap().dequantize(&Device::Cpu).unwrap()
    };
    let query = imported.tensor("model.layers.0.self_attn.q_proj.weight");
    assert_eq!(values(&permute(&query, HEADS)), values(&whole(GgmlDType::Q5_0)));
    assert_eq!(
        values(&imported.tensor("model.layers.0.self_attn.o_proj.weight")),
        values(&whole(GgmlDType::Q5_0))
    );
}

fn gemma3() -> Gguf {
    let mut gguf = Gguf::new("gemma3");
    gguf.set("gemma3.attention.key_length", Value::U32(HEAD_DIM as u32));
    gguf.set("gemma3.attention.sliding_window", Value::U32(8));
    gguf.set("gemma3.rope.freq_base", Value::F32(1e6));
    for name in ["post_attention_norm", "post_ffw_norm"] {
        gguf.add(&format!("blk.0.{name}.weight"), norm(HIDDEN));
    }
    for name in ["attn_q_norm", "attn_k_norm"] {
        gguf.add(&format!("blk.0.{name}.weight"), norm(HEAD_DIM));
    }
    // llama.cpp's sentencepiece vocabulary of a gemma: it has no merges, and runs of spaces are literal spaces.
    let tokens =
        ["<pad>", "<eos>", "<bos>", "<unk>", "▁", "  ", "   ", "h", "e", "he", "▁h", "▁he", "<0x41>", "e▁"];
    let types = [3, 3, 3, 2, 1, 4, 4, 1, 1, 1, 1, 1, 6, 1];
    gguf.set("tokenizer.ggml.model", Value::String("llama".to_owned()));
    gguf.set(
        "tokenizer.ggml.tokens",
        Value::Array(tokens.map(|token| Value::String(token.to_owned())).to_vec()),
    );
    gguf.set("tokenizer.ggml.token_type", Value::Array(types.map(Value::I32).to_vec()));
    gguf.metadata.retain(|(key, _)| key != "tokenizer.ggml.merges");
    for (name, id) in [("padding", 0), ("eos", 1), ("bos", 2), ("unknown", 3)] {
        gguf.set(&format!("tokenizer.ggml.{name}_token_id"), Value::U32(id));
    }
    gguf.add("token_embd.weight", tensor(tokens.len(), HIDDEN));
    gguf
}

#[test]
fn gemma_norms_lose_the_one_that_llama_cpp_adds() {
    let imported = gemma3().import().unwrap();
    for name in ["model.norm.weight", "model.layers.0.pre_feedforward_layernorm.weight"] {
        let expected: Vec<_> = values(&norm(HIDDEN)).into_iter().map(|value| value - 1.0).collect();
        assert_eq!(values(&imported.tensor(name)), expected, "{name}");
    }
    let query_norm: Vec<_> = values(&norm(HEAD_DIM)).into_iter().map(|value| value - 1.0).collect();
    assert_eq!(values(&imported.tensor("model.layers.0.self_attn.q_norm.weight")), query_norm);
    assert_eq!(
        values(&imported.tensor("model.layers.0.self_attn.q_proj.weight")),
        values(&tensor(64, HIDDEN))
    );
    insta::assert_snapshot!(serde_json::to_string_pretty(&imported.checkpoint.config).unwrap());
}

#[test]
fn a_gemma_vocabulary_without_merges_is_merged_in_its_own_order() {
    let imported = gemma3().import().unwrap();
    let tokenizer = Tokenizer::from_file(imported.checkpoint.tokenizer.as_ref().unwrap()).unwrap();
    let tokens = |text: &str| tokenizer.encode(text, true).unwrap().get_tokens().to_vec();
    assert_eq!(tokens("he"), ["<bos>", "he"]);
    assert_eq!(tokens(" he"), ["<bos>", "▁he"]);
    // A run of spaces is spelled with `▁` in the imported vocabulary, and `<eos>` in text is one token.
    assert_eq!(tokens("   <eos>"), ["<bos>", "▁▁▁", "<eos>"]);
    assert_eq!(tokens("A"), ["<bos>", "<0x41>"]);
    assert_eq!(tokens("Z"), ["<bos>", "<unk>"]);
}

#[test]
fn smollm_splits_digits_before_anything_else() {
    let imported = Gguf::new("llama").import().unwrap();
    let tokenizer = Tokenizer::from_file(imported.checkpoint.tokenizer.as_ref().unwrap()).unwrap();
    let tokens = |text: &str| tokenizer.encode(text, true).unwrap().get_tokens().to_vec();
    assert_eq!(tokens("he he<|end|>"), ["he", "Ġhe", "<|end|>"]);
    // transformers 5.23 reads the same file as Ġ Ġ 1 2, which differs from the model's own tokenizer.json.
    assert_eq!(tokens("  12"), ["ĠĠ", "1", "2"]);
}

#[test]
fn an_imported_file_can_be_tokenised_from_and_is_imported_once() {
    let root = tempfile::tempdir().unwrap();
    let path = Gguf::new("llama").write(root.path());
    let resolve = |steps: &mut usize| {
        checkpoint::resolve(path.to_str().unwrap(), &settings(root.path()), &mut |_| *steps += 1).unwrap()
    };
    let (mut first, mut second) = (0, 0);
    let checkpoint = resolve(&mut first);
    assert_eq!(resolve(&mut second).digest, checkpoint.digest);
    assert!(first > 0 && second == 0, "{first} steps, then {second}");
    let spec = Spec::Prompts {
        prompts: vec![Prompt::Text("he he".to_owned())],
        fill: Fill::AsNeeded,
        choices: vec![" he".to_owned()],
    };
    let inputs = inputs::make(&spec, &checkpoint).unwrap();
    assert_eq!(inputs[0].seq, 2);
    assert_eq!(i64::from(inputs[0].choices[0].id), inputs[0].input_ids[1]);
}

#[test]
fn two_imports_of_one_file_are_the_same_to_the_byte() {
    let (a, b) = (Gguf::new("llama").import().unwrap(), Gguf::new("llama").import().unwrap());
    assert_eq!(a.checkpoint.digest, b.checkpoint.digest);
}

#[test]
fn files_that_cannot_be_imported_give_the_reason() {
    let check = |gguf: Gguf, message: &str| {
        let Err(error) = gguf.import() else { panic!("imported, where `{message}` was due") };
        let told = error.to_string();
        let (_, told) = told.split_once("tiny.gguf cannot be imported: ").unwrap();
        assert_eq!(told, message);
    };
    let with = |architecture: &str, key: &str, value: Value| {
        let mut gguf = Gguf::new(architecture);
        gguf.set(key, value);
        gguf
    };
    let text = |text: &str| Value::String(text.to_owned());
    check(Gguf::new("mamba"), "architecture `mamba` is not known");
    check(Gguf::new("llama").remove("blk.0.ffn_up.weight"), "tensor `blk.0.ffn_up.weight` is missing");
    let mut stray = Gguf::new("llama");
    stray.add("blk.0.ffn_gate_inp.weight", norm(HIDDEN));
    check(stray, "tensor `blk.0.ffn_gate_inp.weight` has no place in a llama model of 1 layer");
    check(with("llama", "tokenizer.ggml.pre", text("tekken")), "its pre-tokenizer (`tekken`) is not known");
    check(with("llama", "tokenizer.ggml.model", text("bert")), "its tokenizer (`bert`) is not known");
    check(with("llama", "split.count", Value::U16(2)), "it is one part of a split model");
    check(with("llama", "llama.rope.scaling.type", text("yarn")), "its rope scaling (yarn) is not known");
    check(
        with("llama", "llama.attention.head_count", Value::Array(vec![Value::U32(4)])),
        "`llama.attention.head_count` differs from layer to layer",
    );
    check(
        with("llama", "llama.attention.head_count", Value::U32(5)),
        "tensor `blk.0.attn_q.weight` has 64 rows, which 5 heads do not divide evenly",
    );
    check(gemma3().remove("blk.0.attn_q_norm.weight"), "tensor `blk.0.attn_q_norm.weight` is missing");
}

#[test]
fn a_truncated_file_leaves_no_half_import() {
    let root = tempfile::tempdir().unwrap();
    let path = Gguf::new("llama").write(root.path());
    let file = File::options().write(true).open(&path).unwrap();
    for (length, part) in
        [(file.metadata().unwrap().len() - 4096, "reaches beyond the end"), (200, "its header asks for")]
    {
        file.set_len(length).unwrap();
        let error =
            checkpoint::resolve(path.to_str().unwrap(), &settings(root.path()), &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(std::fs::read_dir(root.path().join("cache/gguf")).unwrap().count(), 0);
    }
}

#[test]
fn headers_that_two_readers_may_read_differently_or_that_no_model_has_are_refused() {
    let check = |change: &dyn Fn(&mut Gguf), message: &str| {
        let mut gguf = Gguf::new("llama");
        change(&mut gguf);
        let Err(error) = gguf.import() else { panic!("imported, where `{message}` was due") };
        assert!(error.to_string().contains(message), "{error}");
    };
    let twice = Value::U32(2);
    check(&|g| g.metadata.push(("llama.block_count".to_owned(), twice.clone())), "`llama.block_count` twice");
    check(&|g| g.tensors.push(g.tensors[0].clone()), "tensor `token_embd.weight` twice");
    for alignment in [0, 1, 3, 1 << 31] {
        check(&|g| g.set("general.alignment", Value::U32(alignment)), "a power of two");
    }
    let eps = "llama.attention.layer_norm_rms_epsilon";
    check(&|g| g.set(eps, Value::F32(f32::NAN)), "_epsilon` is NaN");
    check(&|g| g.set("llama.rope.freq_base", Value::F32(f32::INFINITY)), "freq_base` is inf");
    check(&|g| g.set("x", Value::Array(vec![Value::Array(vec![]); 3])), "a list of lists");
    check(&|g| g.set("llama.block_count", Value::U32(u32::MAX)), "from 0 to 10000");
    check(&|g| g.set("llama.attention.head_count", Value::U64(1 << 63)), "from 1 to 65536");
    check(&|g| g.set("llama.embedding_length", Value::U32(0)), "from 1 to");
    check(&|g| g.set("llama.context_length", Value::U32(0)), "`max_position_embeddings` is 0");
    check(&|g| g.set("llama.attention.head_count", Value::I32(-4)), "head_count` is -4 where a whole number");
    check(
        &|g| g.set("llama.rope.freq_base", Value::String("x".to_owned())),
        "a text where a float is needed",
    );
    check(&|g| g.set("tokenizer.ggml.tokens", Value::U32(1)), "is 1 where a list of texts is needed");
    check(&|g| g.set("tokenizer.ggml.model", Value::U32(1)), "model` is 1 where a text is needed");
    let merges = || Value::Array(vec![Value::String("h zz".to_owned())]);
    check(&|g| g.set("tokenizer.ggml.merges", merges()), "`h zz` joins tokens that its vocabulary lacks");
    let mut tokens = Gguf::new("llama").tokens();
    tokens[7] = Value::String("a".repeat(3000));
    check(&|g| g.set("tokenizer.ggml.tokens", Value::Array(tokens.clone())), "holds 3000 bytes of a token");
}

#[test]
fn an_array_of_too_many_elements_is_refused_before_it_is_read() {
    let root = tempfile::tempdir().unwrap();
    let mut gguf = Gguf::new("llama");
    gguf.set("xxxxxxxx", Value::Array(vec![Value::U8(0)]));
    let path = gguf.write(root.path());
    let mut file = std::fs::read(&path).unwrap();
    // Behind the key: the type of the value, that of the elements, their number.
    let count = file.windows(8).position(|window| window == b"xxxxxxxx").unwrap() + 8 + 4 + 4;
    file[count..count + 8].copy_from_slice(&(9_u64 << 20).to_le_bytes());
    std::fs::write(&path, file).unwrap();
    let error = checkpoint::resolve(path.to_str().unwrap(), &settings(root.path()), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("array elements"), "{error}");
}

#[test]
fn places_of_tensors_that_wrap_overlap_or_are_not_aligned_are_refused() {
    let check = |at: usize, bytes: &[u8], message: &str| {
        let root = tempfile::tempdir().unwrap();
        let path = Gguf::new("llama").write(root.path());
        let mut file = std::fs::read(&path).unwrap();
        let name = b"blk.0.attn_q.weight";
        // Behind the name: the number of dimensions, two dimensions, the type, the offset.
        let entry = file.windows(name.len()).position(|window| window == name).unwrap() + name.len();
        file[entry + at..entry + at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, file).unwrap();
        let error =
            checkpoint::resolve(path.to_str().unwrap(), &settings(root.path()), &mut |_| ()).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    };
    let (dimensions, offset) = (4, 4 + 16 + 4);
    check(0, &u32::MAX.to_le_bytes(), "4294967295 dimensions");
    check(0, &0_u32.to_le_bytes(), "0 dimensions");
    check(dimensions, &0_u64.to_le_bytes(), "has the shape");
    check(dimensions, &[(1_u64 << 63).to_le_bytes(); 2].concat(), "has the shape");
    check(offset, &u64::MAX.to_le_bytes(), "reaches beyond the end");
    check(offset, &1_u64.to_le_bytes(), "which 32 does not divide");
    check(offset, &0_u64.to_le_bytes(), "overlap");
    // With half its rows the tensor ends before the next one begins.
    check(dimensions + 8, &32_u64.to_le_bytes(), "was due");
    check(dimensions + 16, &16_u32.to_le_bytes(), "ggml type 16");
    // Q6_K has blocks of 256 values, and a row has 64.
    check(dimensions + 16, &14_u32.to_le_bytes(), "a row of Q6K holds a multiple of 256 values");
}
