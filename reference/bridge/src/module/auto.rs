//! Which class of transformers loads a checkpoint, by the head that its config names.

use serde_json::{Map, Value};

/// The class that loads a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class<'a> {
    /// An auto class, which finds the model's class by `model_type`.
    Auto(&'static str),
    /// The class of this name.
    Named(&'a str),
}

/// How a model is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drive {
    /// It takes positions and a KV cache.
    Decoder,
    /// It counts positions itself and has no KV cache.
    Encoder,
    /// It counts positions itself, and has a KV cache if its `forward` takes one: encoder-decoders, models of images, sound
    /// and several modalities.
    Whole,
}

/// A head.
struct Head {
    /// How the architecture's name ends.
    ending: &'static str,
    /// The auto class; `None` for the architecture's own class.
    auto: Option<&'static str>,
    drive: Drive,
    /// What the reader should know, after the architecture's name.
    said: Option<&'static str>,
}

pub(super) const CAUSAL: &str = "AutoModelForCausalLM";

/// All heads; the first whose ending fits is taken, and a name that no row has is loaded by its own class.
const HEADS: &[Head] = &[
    row("ForCausalLM", Some(CAUSAL), Drive::Decoder),
    row("LMHeadModel", Some(CAUSAL), Drive::Decoder),
    row("ForMaskedLM", Some("AutoModelForMaskedLM"), Drive::Encoder),
    row("ForSequenceClassification", Some("AutoModelForSequenceClassification"), Drive::Decoder),
    // Their names end like those of models without a head.
    row("MTModel", None, Drive::Whole),
    row("DoubleHeadsModel", None, Drive::Whole),
    row("EncoderDecoderModel", None, Drive::Whole),
    row("DualEncoderModel", None, Drive::Whole),
    // The encoder of an encoder-decoder by itself (`T5EncoderModel`), which `AutoModel` would load as a whole.
    Head {
        ending: "EncoderModel",
        auto: Some("AutoModelForTextEncoding"),
        drive: Drive::Encoder,
        said: Some("is the encoder alone"),
    },
    Head { ending: "Model", auto: Some("AutoModel"), drive: Drive::Decoder, said: Some("has no head") },
];

const fn row(ending: &'static str, auto: Option<&'static str>, drive: Drive) -> Head {
    Head { ending, auto, drive, said: None }
}

/// The class of a config's architecture, how it is driven, and a note on it. `is_encoder`: whether the release has a masked
/// language model of this `model_type`, which only encoders have.
pub(super) fn class<'a>(
    config: &'a Map<String, Value>,
    is_encoder: bool,
    notes: &mut Vec<String>,
) -> (Class<'a>, Drive) {
    // 4.57 writes the architecture of Qwen2-VL into its text part.
    let parts = [Some(config), config.get("text_config").and_then(Value::as_object)];
    let named = |part: &'a Map<String, Value>| part.get("architectures")?.get(0)?.as_str();
    let Some(name) = parts.into_iter().flatten().find_map(named) else {
        let (class, drive, what) = if is_encoder {
            ("AutoModel", Drive::Encoder, "an encoder without a head")
        } else {
            (CAUSAL, Drive::Decoder, "a causal language model")
        };
        notes.push(format!("config.json names no architecture: loaded as {what}"));
        return (Class::Auto(class), drive);
    };
    let Some(head) = HEADS.iter().find(|head| name.ends_with(head.ending)) else {
        return (Class::Named(name), Drive::Whole);
    };
    notes.extend(head.said.map(|said| format!("{name} {said}")));
    let has_parts =
        ["vision_config", "audio_config", "text_config"].iter().any(|key| config.contains_key(*key));
    // A tower by itself (`clip_text_model`) is driven as in the model that it is part of.
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let is_tower = ["_text_model", "_vision_model"].iter().any(|ending| model_type.ends_with(ending));
    let is_whole = has_parts || is_tower || config.get("is_encoder_decoder") == Some(&Value::Bool(true));
    let drive = match (head.auto, head.drive) {
        // BERT with a causal head is run as a decoder.
        (Some(CAUSAL), drive) => drive,
        (_, Drive::Decoder) if is_encoder => Drive::Encoder,
        (_, Drive::Decoder) if is_whole => Drive::Whole,
        (_, drive) => drive,
    };
    (head.auto.map_or(Class::Named(name), Class::Auto), drive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_s_ending_selects_the_class() {
        let check = |name: &str, is_encoder: bool, class: Class, drive: Drive| {
            let config = serde_json::json!({"architectures": [name]});
            let config = config.as_object().unwrap();
            assert_eq!(super::class(config, is_encoder, &mut Vec::new()), (class, drive), "{name}");
        };
        check("LlamaForCausalLM", false, Class::Auto(CAUSAL), Drive::Decoder);
        check("BertLMHeadModel", true, Class::Auto(CAUSAL), Drive::Decoder);
        check("BertModel", true, Class::Auto("AutoModel"), Drive::Encoder);
        check("MarianMTModel", false, Class::Named("MarianMTModel"), Drive::Whole);
        check("T5EncoderModel", false, Class::Auto("AutoModelForTextEncoding"), Drive::Encoder);
        let tower = serde_json::json!({"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"});
        let of_tower = super::class(tower.as_object().unwrap(), false, &mut Vec::new());
        assert_eq!(of_tower, (Class::Auto("AutoModel"), Drive::Whole));
        let projected = "CLIPVisionModelWithProjection";
        check(projected, false, Class::Named(projected), Drive::Whole);
        let bart = "BartForConditionalGeneration";
        check(bart, true, Class::Named(bart), Drive::Whole);
        let trocr = "VisionEncoderDecoderModel";
        check(trocr, false, Class::Named(trocr), Drive::Whole);
    }
}
