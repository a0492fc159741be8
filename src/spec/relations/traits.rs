//! Properties of a model, read from its config, that decide which relations hold for it.

use models::Task;
use serde_json::Value;

use crate::spec::inputs::pad_token_id;

/// How a model encodes token positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Rotary embeddings: rotated queries and keys, whose products depend only on differences of positions.
    Rotary,
    /// Other relative encodings: ALiBi, relative embeddings, recurrence.
    Relative,
    /// One embedding per position.
    Absolute,
}

/// Properties of a model and of how it is run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a property that a model has or lacks, whatever the others"
)]
pub struct Traits {
    /// `model_type` of the config.
    pub model_type: String,
    /// Whether each token attends only to itself and earlier tokens.
    pub is_causal: bool,
    /// Whether the head returns logits for every position.
    pub is_per_position: bool,
    /// The model's position encoding.
    pub scheme: Scheme,
    /// Largest sequence length by the config (`max_position_embeddings` or an alias); `None` if the config has no limit.
    pub max_positions: Option<usize>,
    /// Sequence length above which rotary frequencies depend on it (rope types `dynamic`, `longrope`, `su`).
    pub rope_changes_above: Option<usize>,
    /// Whether the model is a mixture of experts with routers.
    pub has_routers: bool,
    /// Whether the model derives positions from the token ids that are not padding (RoBERTa).
    pub counts_from_ids: bool,
    /// The id of the padding token.
    pub pad_token_id: i64,
    /// Sequence length of the base input.
    pub seq: usize,
    /// Whether the variant is compiled.
    pub is_compiled: bool,
    /// Names of input tensors that the model's forward does not accept.
    pub unused: Vec<String>,
}

/// A condition under which a relation holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Each token attends only to itself and earlier tokens.
    Causal,
    /// The head returns logits for every position.
    PerPosition,
    /// The model has a KV cache; only the worker can check this.
    Cache,
    /// The model accepts an `attention_mask`.
    Mask,
    /// The model accepts `position_ids`.
    PositionIds,
    /// The position encoding is [`Scheme::Rotary`].
    Rotary,
    /// Padding on the left does not change a token's position.
    LeftPadding,
    /// Rotary frequencies do not depend on the sequence length.
    SteadyRope,
    /// The variant is compiled.
    Compiled,
}

/// Config keys of rotary positions in transformers 4.40 to 5.23.
const ROTARY_KEYS: [&str; 9] = [
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "rotary_pct",
    "rotary_emb_base",
    "rotary_dim",
    "partial_rotary_factor",
    "global_rope_theta",
    "rotary_value",
];
/// Models with relative positions whose config has no key for them.
const RELATIVE: [&str; 8] = ["bloom", "mpt", "roformer", "mamba", "mamba2", "falcon_mamba", "rwkv", "xlnet"];
/// Models whose config defaults to rotary positions without a key for them.
const ROTARY: [&str; 2] = ["gptj", "codegen"];
/// Models with a masked-language-modelling head (`MODEL_FOR_MASKED_LM_MAPPING_NAMES` of transformers 4.40 to 5.23): they
/// are causal only if `is_decoder` is set.
const ENCODERS: [&str; 40] = [
    "albert",
    "bert",
    "big_bird",
    "camembert",
    "convbert",
    "data2vec-text",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "ernie",
    "ernie_m",
    "esm",
    "eurobert",
    "flaubert",
    "fnet",
    "funnel",
    "ibert",
    "layoutlm",
    "longformer",
    "luke",
    "megatron-bert",
    "mobilebert",
    "modernbert",
    "mpnet",
    "mra",
    "nezha",
    "nystromformer",
    "qdqbert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "squeezebert",
    "xlm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
    "yoso",
];
/// Models that derive positions from the token ids that are not padding (`create_position_ids_from_input_ids`).
const COUNTS_FROM_IDS: [&str; 12] = [
    "camembert",
    "data2vec-text",
    "esm",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
];
/// Decoders that derive positions from the `attention_mask` (`OPTLearnedPositionalEmbedding`).
const COUNTS_FROM_MASK: [&str; 3] = ["opt", "biogpt", "galactica"];

impl Traits {
    /// Reads the traits from `config`; `seq` is the sequence length of the base input.
    pub fn of(config: &Value, seq: usize, is_compiled: bool) -> Self {
        let text = config.get("text_config").unwrap_or(config);
        let get = |key: &str| text.get(key).or_else(|| config.get(key)).filter(|value| !value.is_null());
        let number = |key: &str| get(key).and_then(Value::as_u64).map(|number| number as usize);
        let flag = |key: &str| get(key).and_then(Value::as_bool);
        let model_type = config["model_type"].as_str().unwrap_or_default().to_owned();
        let head = config["architectures"][0].as_str();
        let is_encoder = ENCODERS.contains(&model_type.as_str()) && flag("is_decoder") != Some(true);
        let is_causal = !is_encoder
            && head.is_none_or(|head| {
                !["ForMaskedLM", "ForSequenceClassification", "EncoderModel"]
                    .iter()
                    .any(|end| head.ends_with(end))
            });
        let is_alibi = flag("alibi") == Some(true) || get("relative_attention_num_buckets").is_some();
        let is_listed = |list: &[&str]| list.contains(&model_type.as_str());
        let scheme = if is_alibi || is_listed(&RELATIVE) {
            Scheme::Relative
        } else if is_listed(&ROTARY) || ROTARY_KEYS.iter().any(|key| get(key).is_some()) {
            Scheme::Rotary
        } else {
            Scheme::Absolute
        };
        let max_positions =
            ["max_position_embeddings", "n_positions", "max_seq_len"].iter().find_map(|key| number(key));
        let rope = get("rope_parameters").or_else(|| get("rope_scaling"));
        let rope_type = rope.and_then(|rope| rope.get("rope_type").or_else(|| rope.get("type")));
        let changes = matches!(rope_type.and_then(Value::as_str), Some("dynamic" | "longrope" | "su"));
        let original = rope
            .and_then(|rope| rope.get("original_max_position_embeddings").and_then(Value::as_u64))
            .map(|number| number as usize)
            .or_else(|| number("original_max_position_embeddings"));
        let experts = ["num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok"];
        let is_per_position = head.and_then(Task::of_class) != Some(Task::SequenceClassification);
        Self {
            is_causal,
            is_per_position,
            scheme,
            max_positions,
            rope_changes_above: changes.then(|| original.or(max_positions)).flatten(),
            has_routers: experts.iter().any(|key| get(key).is_some()),
            counts_from_ids: is_listed(&COUNTS_FROM_IDS),
            pad_token_id: pad_token_id(config),
            seq,
            is_compiled,
            unused: Vec::new(),
            model_type,
        }
    }

    /// Number of tokens by which the base input may grow without exceeding the learned position embeddings and without a
    /// change of rotary frequencies; `usize::MAX` if neither limits it.
    pub fn room(&self) -> usize {
        // RoBERTa's positions start at the padding token's id + 1.
        let offset = if self.counts_from_ids { self.pad_token_id.max(0) as usize + 1 } else { 0 };
        let embeddings = self.max_positions.filter(|_| self.scheme == Scheme::Absolute);
        let embeddings = embeddings.map(|most| most.saturating_sub(self.seq + offset));
        let steady = self.rope_changes_above.filter(|most| self.seq <= *most).map(|most| most - self.seq);
        embeddings.into_iter().chain(steady).min().unwrap_or(usize::MAX)
    }

    fn is_unused(&self, name: &str) -> bool {
        self.unused.iter().any(|unused| unused == name)
    }
}

impl Condition {
    /// The condition in words, as in `docs/relations.md`.
    pub fn words(self) -> &'static str {
        match self {
            Self::Causal => "causal models (encoders are not)",
            Self::PerPosition => "logits of every position",
            Self::Cache => "models with a cache",
            Self::Mask => "models that take an attention_mask",
            Self::PositionIds => "models that take position_ids",
            Self::Rotary => "rotary positions (not learned ones, and ALiBi ignores position_ids)",
            Self::LeftPadding => {
                "decoders, and encoders with rotary positions or positions counted from token ids (BERT counts from the start of the row), without a classifier, which pools the first token"
            }
            Self::SteadyRope => {
                "rotary frequencies that do not depend on the input's length (not dynamic and longrope above their original length)"
            }
            Self::Compiled => "compiled variants",
        }
    }

    /// The reason why a model does not meet the condition; `None` if it does or if only the worker can tell.
    pub fn excludes(self, traits: &Traits) -> Option<String> {
        let name = &traits.model_type;
        match self {
            Self::Causal => (!traits.is_causal).then(|| format!("{name} is not causal by its config")),
            Self::PerPosition => {
                (!traits.is_per_position).then(|| "the head gives one result per sequence".to_owned())
            }
            // The config does not tell whether the model has a cache; the worker checks it.
            Self::Cache => None,
            Self::Mask => traits.is_unused("attention_mask").then(|| "it takes no attention_mask".to_owned()),
            Self::PositionIds => {
                traits.is_unused("position_ids").then(|| "it takes no position_ids".to_owned())
            }
            Self::Rotary => {
                (traits.scheme != Scheme::Rotary).then(|| format!("{name} has no rotary positions"))
            }
            Self::LeftPadding if !traits.is_per_position && ENCODERS.contains(&name.as_str()) => {
                Some("its head pools the first token, which padding on the left replaces".to_owned())
            }
            Self::LeftPadding => {
                let counts_itself = traits.is_unused("position_ids")
                    && !traits.counts_from_ids
                    && !COUNTS_FROM_MASK.contains(&name.as_str());
                (traits.scheme == Scheme::Absolute && counts_itself)
                    .then(|| "it counts positions from the start of the row, padding included".to_owned())
            }
            Self::SteadyRope => {
                traits.rope_changes_above.filter(|most| traits.seq + SPARE > *most).map(|most| {
                    format!("its rotary frequencies change with the length of inputs above {most} tokens")
                })
            }
            Self::Compiled => (!traits.is_compiled).then(|| "the variant is not compiled".to_owned()),
        }
    }
}

/// Tokens that relations append to the base input by generation.
const SPARE: usize = 8;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn traits(config: &Value) -> Traits {
        Traits::of(config, 12, false)
    }

    #[test]
    fn encoders_are_causal_only_if_is_decoder_is_set() {
        let bert = json!({ "model_type": "bert", "architectures": ["BertForMaskedLM"], "max_position_embeddings": 64 });
        assert!(!traits(&bert).is_causal);
        let head = json!({ "model_type": "bert", "architectures": ["BertLMHeadModel"] });
        assert!(!traits(&head).is_causal, "its mask is causal only with is_decoder");
        let decoder =
            json!({ "model_type": "roformer", "architectures": ["RoFormerForCausalLM"], "is_decoder": true });
        assert!(traits(&decoder).is_causal);
        assert_eq!(traits(&decoder).scheme, Scheme::Relative);
        assert!(traits(&json!({ "model_type": "llama", "architectures": ["LlamaForCausalLM"] })).is_causal);
    }

    #[test]
    fn every_native_architecture_of_one_text_has_the_traits_of_its_kind() {
        // Relations vary one text; there are none for models of more than one sequence.
        let is_one_text = |name: &&str| models::kind(name).is_some_and(models::Kind::is_one_text);
        for model_type in models::model_types().filter(is_one_text) {
            let config = models::synthetic::config(model_type, "").unwrap();
            let found = traits(&config);
            let is_decoder = models::kind(model_type) == Some(models::Kind::Decoder);
            assert_eq!(found.is_causal, is_decoder, "{model_type}");
            let absolute = ["gpt2", "bert", "distilbert", "roberta", "xlm-roberta"].contains(&model_type);
            assert_eq!(found.scheme == Scheme::Absolute, absolute, "{model_type}");
            let routed = ["mixtral", "qwen3_moe"].contains(&model_type);
            assert_eq!(found.has_routers, routed, "{model_type}");
        }
        let alibi = models::synthetic::config("falcon", "alibi").unwrap();
        assert_eq!(traits(&alibi).scheme, Scheme::Relative);
    }

    #[test]
    fn room_ends_where_rotary_frequencies_change() {
        let dynamic = json!({
            "model_type": "llama", "max_position_embeddings": 32, "rope_theta": 1e4,
            "rope_scaling": { "type": "dynamic", "factor": 2.0 },
        });
        let at = |seq| Traits::of(&dynamic, seq, false);
        assert_eq!(at(20).room(), 12);
        assert!(Condition::SteadyRope.excludes(&at(20)).is_none());
        assert!(Condition::SteadyRope.excludes(&at(30)).is_some());
        assert_eq!(at(40).room(), usize::MAX, "all of it is rescaled already");
        let learned = json!({ "model_type": "gpt2", "n_positions": 16 });
        assert_eq!(Traits::of(&learned, 12, false).room(), 4);
    }
}
