//! `tokenizer.json` and `tokenizer_config.json` from a GGUF file's vocabulary.
//!
//! The layout follows transformers 5.23 (`integrations/gguf/gguf_tokenizer_mapping.py`), with three exceptions that the
//! file specifies and transformers 5.23 drops: the digit splitting of `smollm`, the NFC normaliser of `qwen2`, and the
//! whole-word look-up (`ignore_merges`) of `llama-bpe`. These follow the model's own `tokenizer.json` and llama.cpp's
//! `llama-vocab.cpp`.

use std::collections::{HashMap, HashSet};

use bounds::limits::{GGUF_TOKEN_BYTES, LINE};
use bounds::shown;
use serde_json::{Value, json};

use super::metadata::Metadata;
use super::names::Architecture;
use super::{Problem, damaged};

/// A GGUF file's tokenizer as files of transformers.
pub(super) struct Built {
    /// `tokenizer.json`.
    pub(super) json: Vec<u8>,
    /// `tokenizer_config.json`.
    pub(super) config: Value,
}

const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Token types (llama.cpp `llama_token_type`).
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// The parts of a `tokenizer.json` that do not depend on the vocabulary.
struct Family {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    byte_fallback: bool,
    ignore_merges: bool,
    add_bos: bool,
}

/// Builds the tokenizer; `None` if the file has none.
pub(super) fn build(
    architecture: Architecture,
    metadata: &Metadata<'_>,
    notes: &mut Vec<String>,
) -> Result<Option<Built>, Problem> {
    let Some(model) = metadata.text("tokenizer.ggml.model") else {
        return Ok(None);
    };
    let tokens = metadata
        .texts("tokenizer.ggml.tokens")
        .ok_or_else(|| damaged("its metadata lack `tokenizer.ggml.tokens`"))?;
    if let Some(error) = tokens.iter().find_map(|token| GGUF_TOKEN_BYTES.check(token.len() as u64).err()) {
        return Err(damaged(format!("`tokenizer.ggml.tokens` holds {error}")));
    }
    let is_gemma = matches!(architecture, Architecture::Gemma2 | Architecture::Gemma3);
    let is_byte_level = model == "gpt2";
    let family = match model {
        "gpt2" => byte_level(metadata)?,
        "llama" if is_gemma => gemma(),
        "llama" => sentencepiece(metadata),
        other => {
            return Err((
                format!("its tokenizer (`{}`) is not known", shown(other, LINE.most)),
                "tfcheck imports `gpt2` and `llama` tokenizers; take the checkpoint's safetensors and tokenizer.json".to_owned(),
            ));
        }
    };
    let alphabet = byte_alphabet();
    let spelled: Vec<String> =
        tokens.iter().map(|token| spell(token, is_byte_level, is_gemma, &alphabet)).collect();
    let vocabulary: HashMap<&str, usize> =
        spelled.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    if vocabulary.len() != spelled.len() {
        notes.push(format!(
            "tokens of the vocabulary that are spelled like another one: {}; the last one is used",
            spelled.len() - vocabulary.len()
        ));
    }
    let merges = match metadata.texts("tokenizer.ggml.merges") {
        Some(merges) => merges
            .into_iter()
            .map(|merge| {
                let refused = |what: &str| damaged(format!("merge `{}` {what}", shown(merge, LINE.most)));
                let (left, right) = merge.split_once(' ').ok_or_else(|| refused("is not two tokens"))?;
                let joined = [left, right].concat();
                let is_known = [left, right, &joined].iter().all(|token| vocabulary.contains_key(token));
                if is_known {
                    Ok((left, right))
                } else {
                    Err(refused("joins tokens that its vocabulary lacks"))
                }
            })
            .collect::<Result<Vec<_>, _>>()?,
        None if is_byte_level => return Err(damaged("its metadata lack `tokenizer.ggml.merges`")),
        None => {
            let scores = if is_gemma { None } else { metadata.floats("tokenizer.ggml.scores") };
            if !is_gemma && scores.as_ref().is_none_or(|scores| scores.len() != spelled.len()) {
                return Err(damaged("its metadata lack `tokenizer.ggml.scores` for each token"));
            }
            derive_merges(&spelled, &vocabulary, scores.as_deref())
        }
    };

    let mut special = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let id = metadata.integer(&key)?;
        let token = spelled.get(id as usize);
        if token.is_none() {
            let size = spelled.len();
            notes.push(format!("`{key}` is {id}, which its vocabulary of {size} tokens lacks: the tokenizer has no such token"));
        }
        token
    };
    let (bos, eos, unknown, padding) =
        (special("bos"), special("eos"), special("unknown"), special("padding"));
    let types = metadata.integers("tokenizer.ggml.token_type").unwrap_or_default();
    let in_alphabet = |token: &str| !is_byte_level || token.chars().all(|c| alphabet.contains(&c));
    let mut added = Vec::new();
    for (id, token) in spelled.iter().enumerate() {
        let is_special = match types.get(id) {
            // A control token outside the byte alphabet is mislabelled by llama.cpp's converter; transformers skips it.
            Some(&CONTROL) if in_alphabet(tokens[id]) => true,
            // A token whose spelling changed never occurs in text in the file's spelling.
            Some(&USER_DEFINED) if *token == tokens[id] => false,
            // transformers' tokenizer classes make these tokens special, whatever their type.
            _ if [bos, eos, unknown, padding].contains(&Some(token)) => true,
            _ => continue,
        };
        added.push(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": is_special,
        }));
    }
    let add_bos = metadata.boolean("tokenizer.ggml.add_bos_token").unwrap_or(family.add_bos);
    let add_eos = metadata.boolean("tokenizer.ggml.add_eos_token").unwrap_or(false);
    let unknown_of_model = unknown.filter(|_| !is_byte_level);
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": family.normalizer,
        "pre_tokenizer": family.pre_tokenizer,
        "post_processor": template(bos.filter(|_| add_bos), eos.filter(|_| add_eos), &vocabulary),
        "decoder": family.decoder,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": unknown_of_model,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": family.byte_fallback,
            "byte_fallback": family.byte_fallback,
            "ignore_merges": family.ignore_merges,
            // Ordered by id, so that the file's digest does not depend on a hash map's order.
            "vocab": spelled.iter().map(|token| (token.clone(), json!(vocabulary[token.as_str()]))).collect::<serde_json::Map<_, _>>(),
            "merges": merges,
        },
    });
    let json = serde_json::to_vec(&tokenizer)
        .map_err(|error| damaged(format!("its tokenizer cannot be written: {error}")))?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": unknown,
        "pad_token": padding,
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": false,
        "chat_template": metadata.text("tokenizer.chat_template"),
    });
    Ok(Some(Built { json, config }))
}

fn byte_level(metadata: &Metadata<'_>) -> Result<Family, Problem> {
    let pre = metadata.text("tokenizer.ggml.pre").unwrap_or("default");
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let split = |regex: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false},
            bytes(false),
        ]})
    };
    let pre_tokenizer = match pre {
        "default" | "gpt-2" => bytes(true),
        "smollm" => {
            json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, bytes(true)]})
        }
        "llama-bpe" | "llama3" | "llama-v3" => split(LLAMA3_SPLIT),
        "qwen2" => split(QWEN2_SPLIT),
        other => {
            return Err((
                format!("its pre-tokenizer (`{}`) is not known", shown(other, LINE.most)),
                "tfcheck imports `gpt-2`, `smollm`, `llama-bpe` and `qwen2`; take the checkpoint's safetensors and tokenizer.json"
                    .to_owned(),
            ));
        }
    };
    let is_llama3 = pre.starts_with("llama");
    Ok(Family {
        normalizer: if pre == "qwen2" { json!({"type": "NFC"}) } else { Value::Null },
        pre_tokenizer,
        decoder: json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        byte_fallback: false,
        ignore_merges: is_llama3,
        add_bos: is_llama3,
    })
}

fn gemma() -> Family {
    Family {
        normalizer: json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}),
        pre_tokenizer: json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false}),
        decoder: json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        ]}),
        byte_fallback: true,
        ignore_merges: false,
        add_bos: true,
    }
}

fn sentencepiece(metadata: &Metadata<'_>) -> Family {
    let prefix = metadata.boolean("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Family {
        normalizer: Value::Null,
        pre_tokenizer: json!({
            "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": if prefix { "first" } else { "never" }, "split": false,
        }),
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        byte_fallback: true,
        ignore_merges: false,
        add_bos: true,
    }
}

/// The token as `tokenizer.json` spells it.
fn spell(token: &str, is_byte_level: bool, is_gemma: bool, alphabet: &HashSet<char>) -> String {
    if is_byte_level && !token.chars().all(|c| alphabet.contains(&c)) {
        let letters = byte_letters();
        return token.bytes().map(|byte| letters[usize::from(byte)]).collect();
    }
    // Gemma's GGUF files contain runs of real spaces where the vocabulary has runs of the replacement character.
    if is_gemma && token.contains(' ') && token.trim().is_empty() {
        return "\u{2581}".repeat(token.chars().count());
    }
    token.to_owned()
}

/// GPT-2's printable letter for each byte (`bytes_to_unicode`).
fn byte_letters() -> [char; 256] {
    let mut letters = ['\0'; 256];
    let mut next = 256;
    for byte in 0..=255u8 {
        let is_printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        letters[usize::from(byte)] = if is_printable {
            char::from(byte)
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap_or('\0')
        };
    }
    letters
}

fn byte_alphabet() -> HashSet<char> {
    byte_letters().into_iter().collect()
}

/// Merges for a vocabulary without them: every way to split a token into two tokens, best token first (`generate_merges`
/// in transformers' `tokenization_utils_base.py`). Tokens rank by `scores`, or by their order if there are none.
fn derive_merges<'a>(
    tokens: &'a [String],
    vocabulary: &HashMap<&str, usize>,
    scores: Option<&[f32]>,
) -> Vec<(&'a str, &'a str)> {
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let length = token.chars().count();
        for (left_length, (cut, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(cut);
            if vocabulary.contains_key(left) && vocabulary.contains_key(right) {
                let score = scores.map_or(0.0, |scores| scores[id]);
                merges.push((score, left_length, length - left_length, id, left, right));
            }
        }
    }
    if scores.is_some() {
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))).then(a.3.cmp(&b.3)));
    } else {
        merges.sort_by(|a, b| a.3.cmp(&b.3).then((b.1, b.2).cmp(&(a.1, a.2))));
    }
    merges.into_iter().map(|(.., left, right)| (left, right)).collect()
}

/// The post-processor that adds begin and end tokens.
fn template(bos: Option<&String>, eos: Option<&String>, vocabulary: &HashMap<&str, usize>) -> Value {
    let special = |token: &String, side: u8| json!({"SpecialToken": {"id": token, "type_id": side}});
    let sequence = |name: &str, side: u8| {
        let middle = json!({"Sequence": {"id": name, "type_id": side}});
        let begin = bos.map(|token| special(token, side));
        let end = eos.map(|token| special(token, side));
        begin.into_iter().chain([middle]).chain(end).collect::<Vec<_>>()
    };
    let tokens: serde_json::Map<_, _> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|token| {
            (token.clone(), json!({"id": token, "ids": [vocabulary[token.as_str()]], "tokens": [token]}))
        })
        .collect();
    let pair = [sequence("A", 0), sequence("B", 1)].concat();
    json!({
        "type": "TemplateProcessing",
        "single": sequence("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    })
}
