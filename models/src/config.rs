//! Typed access to `config.json`. It records the keys that an architecture reads, so that the unread ones can be
//! listed.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bounds::config::Refused;
use bounds::limits::{CHECKPOINT_JSON_BYTES, LINE};
use bounds::shown;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::lock::lock;

/// Features of a head where heads share the features of a model evenly; both numbers come with their keys. A default of
/// transformers need not divide the checkpoint's number.
///
/// # Errors
/// If they do not.
pub(crate) fn head_dim((size_key, size): (&str, usize), (heads_key, heads): (&str, usize)) -> Result<usize> {
    if size.checked_rem(heads) == Some(0) {
        return Ok(size / heads);
    }
    Err(Refused::new(heads_key, &heads.into(), format!("a divisor of {size_key} ({size})")).into())
}

/// Keys that do not affect the result of a forward pass.
const NEUTRAL: &[&str] = &[
    "_attn_implementation_autoset",
    "_model_name_or_path",
    "_name_or_path",
    // transformers 5 saves the value from which it derived `layer_types`.
    "_sliding_window_pattern",
    "add_cross_attention",
    "apply_spec_augment",
    "architectures",
    "attn_pdrop",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_proj_size",
    "cls_token_id",
    "cross_attention_hidden_size",
    "decoder_layerdrop",
    "decoder_start_token_id",
    "deterministic_flash_attn",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dropout_rate",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "encoder_layerdrop",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_decoder_ids",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_cutoff_factor",
    "init_std",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "layerdrop",
    "length_penalty",
    "logit_scale_init_value",
    "mask_feature_length",
    "mask_feature_min_masks",
    "mask_feature_prob",
    "mask_time_length",
    "mask_time_min_masks",
    "mask_time_prob",
    "mask_token_id",
    "max_length",
    "max_position_embeddings",
    "median_filter_width",
    "min_length",
    "model_type",
    "n_ctx",
    "n_positions",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "output_scores",
    "pad_token_id",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "reference_compile",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_pdrop",
    "return_dict",
    "return_dict_in_generate",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "sep_token_id",
    "sinusoidal_pos_embds",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
    "use_weighted_layer_sum",
];

/// A typed view of a JSON object that remembers which keys were read.
///
/// A key whose value is `null` counts as absent, as in transformers' `getattr(config, key, None) or default`.
#[derive(Clone, Debug)]
pub struct ConfigReader {
    map: Map<String, Value>,
    prefix: String,
    read: Arc<Mutex<BTreeSet<String>>>,
}

impl ConfigReader {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// If the file cannot be read or is not a JSON object.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = bounds::file::read(path, CHECKPOINT_JSON_BYTES)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let map = serde_json::from_slice(&bytes)
            .map_err(|error| Error::Parse { path: path.to_owned(), reason: error.to_string() })?;
        Ok(Self::new(map))
    }

    /// A reader of a config that is already parsed.
    pub fn new(map: Map<String, Value>) -> Self {
        Self { map, prefix: String::new(), read: Arc::default() }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The raw value; `null` is `None`.
    pub fn value(&self, key: &str) -> Option<&Value> {
        lock(&self.read).insert(self.key(key));
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is present, even as `null`: an explicit `null` can differ from transformers' default.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The whole object, without marking any of its keys as read.
    pub(crate) fn map(&self) -> &Map<String, Value> {
        &self.map
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        needed: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let wrong = |value| Error::BadValue(Refused::new(&self.key(key), value, needed));
        self.value(key).map(|value| convert(value).ok_or_else(|| wrong(value))).transpose()
    }

    fn require<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| Error::MissingKey { key: self.key(key) })
    }

    /// The error for a value that the architecture does not know.
    pub fn unknown(&self, key: &str, value: &Value) -> Error {
        let value = value.to_string();
        Error::UnknownValue { key: self.key(key), value: shown(&value, LINE.most).into_owned() }
    }

    /// A non-negative integer, if present.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn optional_usize(&self, key: &str) -> Result<Option<usize>> {
        let number = self.typed(key, "a whole number from 0", Value::as_u64)?;
        number.map_or(Ok(()), |number| bounds::config::whole(&self.key(key), number))?;
        Ok(number.map(|number| number as usize))
    }

    /// A non-negative integer.
    ///
    /// # Errors
    /// If it is absent or of another type.
    pub fn usize(&self, key: &str) -> Result<usize> {
        let value = self.optional_usize(key)?;
        self.require(key, value)
    }

    /// A non-negative integer, or `default`, which is transformers', if the key is absent.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn usize_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_usize(key)?.unwrap_or(default))
    }

    /// A number, if present.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn optional_f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A number.
    ///
    /// # Errors
    /// If it is absent or of another type.
    pub fn f64(&self, key: &str) -> Result<f64> {
        let value = self.optional_f64(key)?;
        self.require(key, value)
    }

    /// A number, or `default`, which is transformers', if the key is absent.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn f64_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.optional_f64(key)?.unwrap_or(default))
    }

    /// A non-negative integer; `default`, which is transformers', if the key is absent, and `None` if it is `null`.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn nullable_usize(&self, key: &str, default: usize) -> Result<Option<usize>> {
        let value = self.optional_usize(key)?;
        Ok(if self.has(key) { value } else { Some(default) })
    }

    /// A number; `default`, which is transformers', if the key is absent, and `None` if it is `null`.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn nullable_f64(&self, key: &str, default: f64) -> Result<Option<f64>> {
        let value = self.optional_f64(key)?;
        Ok(if self.has(key) { value } else { Some(default) })
    }

    /// A boolean, or `default`, which is transformers', if the key is absent.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A string, if present.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn optional_str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A string, or `default`, which is transformers', if the key is absent.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn str_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        Ok(self.optional_str(key)?.unwrap_or(default))
    }

    /// A list of strings, if present.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn optional_strs(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.typed(key, "a list of texts", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A list of numbers, if present.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn optional_f64s(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.typed(key, "a list of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
    }

    /// A list of non-negative integers, if present.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn optional_usizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.typed(key, "a list of whole numbers", |value| {
            value.as_array()?.iter().map(|value| usize::try_from(value.as_u64()?).ok()).collect()
        })
    }

    /// A nested object, if present; its keys are recorded as `key.nested`.
    ///
    /// # Errors
    /// If the value is of another type.
    pub fn optional_object(&self, key: &str) -> Result<Option<Self>> {
        let map = self.typed(key, "an object", |value| value.as_object().cloned())?;
        Ok(map.map(|map| Self {
            map,
            prefix: format!("{}{key}.", self.prefix),
            read: Arc::clone(&self.read),
        }))
    }

    /// Number of labels of a classifier: the length of `id2label`, else `num_labels`, else 2 (transformers 5.23.0,
    /// `PreTrainedConfig.__post_init__`).
    ///
    /// # Errors
    /// If a value is of another type or the two keys disagree.
    pub fn num_labels(&self) -> Result<usize> {
        let named = self.typed("id2label", "an object", |value| value.as_object().map(Map::len))?;
        let counted = self.optional_usize("num_labels")?;
        match (named, counted) {
            (Some(named), Some(counted)) if named != counted => {
                Err(self.unknown("num_labels", &Value::from(counted)))
            }
            (named, counted) => Ok(named.or(counted).unwrap_or(2)),
        }
    }

    /// Marks a nested object and its keys as read, because it repeats another key.
    pub(crate) fn skip_object(&self, key: &str) {
        self.value(key);
        self.value(&format!("{key}.*"));
    }

    /// A nested object, if present, without marking any of its keys as read.
    pub(crate) fn peek_object(&self, key: &str) -> Option<Self> {
        let map = self.map.get(key)?.as_object()?.clone();
        Some(Self { map, prefix: format!("{}{key}.", self.prefix), read: Arc::default() })
    }

    /// Rejects a key whose value would change the computation in a way that the architecture does not implement.
    ///
    /// # Errors
    /// If the key is present with any value but `harmless` (or `null`).
    pub fn refuse_unless(&self, key: &str, harmless: &Value) -> Result<()> {
        match self.value(key) {
            Some(value) if value != harmless => Err(self.unknown(key, value)),
            _ => Ok(()),
        }
    }

    /// Keys that the architecture did not read and that may affect the result, in the config's order; nested keys are
    /// joined with a dot.
    pub fn unread_keys(&self) -> Vec<String> {
        let read = lock(&self.read);
        let mut unread = Vec::new();
        collect_unread(&self.map, "", &read, &mut unread);
        unread
    }
}

/// Whether a key at the top level of `config.json` never affects the result of a forward pass.
pub fn is_neutral(key: &str) -> bool {
    let is_dropout = ["_dropout", "_dropout_prob", "_pdrop"].iter().any(|ending| key.ends_with(ending));
    is_dropout || NEUTRAL.contains(&key)
}

fn collect_unread(map: &Map<String, Value>, prefix: &str, read: &BTreeSet<String>, unread: &mut Vec<String>) {
    for (key, value) in map {
        let path = format!("{prefix}{key}");
        // The config of a part of the model, such as `text_config`, has the keys of a whole one.
        let neutral = (prefix.is_empty() || prefix.ends_with("_config.")) && is_neutral(key);
        match value {
            _ if value.is_null() || neutral => {}
            Value::Object(_) if read.contains(&format!("{path}.*")) => {}
            Value::Object(nested) if read.contains(&path) => {
                collect_unread(nested, &format!("{path}."), read, unread);
            }
            _ if read.contains(&path) => {}
            _ => unread.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(json: &str) -> ConfigReader {
        ConfigReader::new(serde_json::from_str(json).unwrap())
    }

    #[test]
    fn unread_keys_are_listed_except_neutral_ones() {
        let config = reader(
            r#"{"hidden_size": 8, "torch_dtype": "f", "resid_dropout": 0.1, "odd": 1,
                "rope_scaling": {"factor": 2.0, "odder": 3}, "none": null}"#,
        );
        assert_eq!(config.usize("hidden_size").unwrap(), 8);
        let scaling = config.optional_object("rope_scaling").unwrap().unwrap();
        assert!((scaling.f64("factor").unwrap() - 2.0).abs() < f64::EPSILON);
        assert_eq!(config.unread_keys(), ["odd", "rope_scaling.odder"]);
    }

    #[test]
    fn num_labels_is_the_length_of_id2label_and_must_agree() {
        let named = r#""id2label": {"0": "a", "1": "b", "2": "c"}"#;
        assert_eq!(reader("{}").num_labels().unwrap(), 2);
        assert_eq!(reader(r#"{"num_labels": 5}"#).num_labels().unwrap(), 5);
        let config = reader(&format!("{{{named}}}"));
        assert_eq!(config.num_labels().unwrap(), 3);
        assert_eq!(config.unread_keys(), [""; 0]);
        assert!(reader(&format!(r#"{{{named}, "num_labels": 5}}"#)).num_labels().is_err());
    }

    #[test]
    fn a_value_of_the_wrong_type_is_an_error_that_names_the_key() {
        let error = reader(r#"{"hidden_size": "many"}"#).usize("hidden_size").unwrap_err();
        assert_eq!(
            error.to_string(),
            "config.json: `hidden_size` is \"many\" where a whole number from 0 is needed"
        );
    }

    #[test]
    fn nullable_key_is_default_if_absent_and_none_if_null() {
        let config = reader(r#"{"null": null, "given": 8}"#);
        assert_eq!(config.nullable_usize("absent", 4).unwrap(), Some(4));
        assert_eq!(config.nullable_usize("null", 4).unwrap(), None);
        assert_eq!(config.nullable_usize("given", 4).unwrap(), Some(8));
    }
}
