//! The table of all architectures. Every other list of model types is derived from this one, or a test compares it.

use crate::checkpoints::{self, Checkpoints};
use crate::config::ConfigReader;
use crate::error::{Error, Result};
use crate::model::{Model, Task};
use crate::weights::Weights;

/// Every architecture: decoders by family, encoders, then those of more than one sequence. [`catalogue`](crate::synthetic::catalogue) has the same
/// order.
pub(crate) const ARCHITECTURES: &[Architecture] = &[
    row("llama", Kind::Decoder, crate::llama::build, &checkpoints::llama::LLAMA),
    row("mistral", Kind::Decoder, crate::mistral::build, &checkpoints::mistral::MISTRAL),
    row("mixtral", Kind::Decoder, crate::mixtral::build, &checkpoints::mistral::MIXTRAL),
    row("qwen2", Kind::Decoder, crate::qwen2::build, &checkpoints::qwen::QWEN2),
    row("qwen3", Kind::Decoder, crate::qwen3::build, &checkpoints::qwen::QWEN3),
    row("qwen3_moe", Kind::Decoder, crate::qwen3_moe::build, &checkpoints::qwen::QWEN3_MOE),
    row("gemma", Kind::Decoder, crate::gemma::build, &checkpoints::gemma::GEMMA),
    row("gemma2", Kind::Decoder, crate::gemma2::build, &checkpoints::gemma::GEMMA2),
    row("gemma3_text", Kind::Decoder, crate::gemma3_text::build, &checkpoints::gemma::GEMMA3_TEXT),
    row("olmo2", Kind::Decoder, crate::olmo2::build, &checkpoints::llama::OLMO2),
    row("starcoder2", Kind::Decoder, crate::starcoder2::build, &checkpoints::mistral::STARCODER2),
    row("granite", Kind::Decoder, crate::granite::build, &checkpoints::llama::GRANITE),
    row("smollm3", Kind::Decoder, crate::smollm3::build, &checkpoints::llama::SMOLLM3),
    row("cohere", Kind::Decoder, crate::cohere::build, &checkpoints::llama::COHERE),
    row("phi", Kind::Decoder, crate::phi::build, &checkpoints::phi::PHI),
    row("phi3", Kind::Decoder, crate::phi3::build, &checkpoints::phi::PHI3),
    row("stablelm", Kind::Decoder, crate::stablelm::build, &checkpoints::phi::STABLELM),
    row("gpt2", Kind::Decoder, crate::gpt2::build, &checkpoints::gpt::GPT2),
    row("gpt_neox", Kind::Decoder, crate::gpt_neox::build, &checkpoints::gpt::GPT_NEOX),
    row("falcon", Kind::Decoder, crate::falcon::build, &checkpoints::gpt::FALCON),
    row("bert", Kind::Encoder, crate::bert::build, &checkpoints::encoders::BERT),
    row("distilbert", Kind::Encoder, crate::distilbert::build, &checkpoints::encoders::DISTILBERT),
    row("roberta", Kind::Encoder, crate::roberta::build, &checkpoints::encoders::ROBERTA),
    row("xlm-roberta", Kind::Encoder, crate::xlm_roberta::build, &checkpoints::encoders::XLM_ROBERTA),
    row("modernbert", Kind::Encoder, crate::modernbert::build, &checkpoints::encoders::MODERNBERT),
    row("t5", Kind::EncoderDecoder, crate::t5::build, &checkpoints::t5::T5),
    part("t5", "T5EncoderModel", Kind::TextEncoder, crate::t5::build_encoder, &checkpoints::t5::T5_ENCODER),
    row("whisper", Kind::SpeechEncoderDecoder, crate::whisper::build, &checkpoints::whisper::WHISPER),
    row("clip", Kind::DualEncoder, crate::clip::build, &checkpoints::clip::CLIP),
    row(
        "clip_text_model",
        Kind::TextEncoder,
        crate::clip::text_model::build,
        &checkpoints::clip::CLIP_TEXT_MODEL,
    ),
    row(
        "clip_vision_model",
        Kind::ImageEncoder,
        crate::clip::vision_model::build,
        &checkpoints::clip::CLIP_VISION_MODEL,
    ),
    row("qwen2_vl", Kind::ImageTextDecoder, crate::qwen2_vl::build, &checkpoints::qwen2_vl::QWEN2_VL),
];

/// One architecture.
pub(crate) struct Architecture {
    /// `model_type` in its config, which is also the name of its source file; that of a tower by itself begins with the name
    /// of the folder.
    pub(crate) model_type: &'static str,
    /// The name in the config's `architectures` of a part that is a model by itself, which takes other inputs than the
    /// whole; `None` for the whole, with any head.
    pub(crate) part: Option<&'static str>,
    pub(crate) kind: Kind,
    pub(crate) build: Build,
    /// The checkpoints that [`write()`](crate::synthetic::write) makes.
    pub(crate) synthetic: &'static Checkpoints,
}

/// Builds a model, or returns [`Error::UnknownHead`] if the architecture lacks the head.
type Build = fn(&ConfigReader, &Weights, Option<Task>) -> Result<Box<dyn Model>>;

/// Which sequences a model takes, and which tokens attend to which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Each token attends to itself and the tokens before it; the caller may give position ids and a cache.
    Decoder,
    /// Each token attends to all tokens; the model counts positions itself and takes no cache.
    Encoder,
    /// An encoder, and a decoder whose tokens (`decoder_input_ids`) attend to themselves, to the tokens before them
    /// and to all tokens of the encoder; the output follows the decoder's tokens. The model counts positions itself.
    EncoderDecoder,
    /// The same, with an encoder of the features of speech (`input_features`) instead of tokens; `input_ids` is not
    /// read.
    SpeechEncoderDecoder,
    /// An encoder of texts and one of images (`pixel_values`), which need not be as many; the output is a number for each
    /// pair. The model counts positions itself.
    DualEncoder,
    /// A tower of texts of a model of several encoders, or the encoder of an encoder-decoder, by itself. The model counts
    /// positions itself and takes no cache.
    TextEncoder,
    /// A tower of images by itself: it takes `pixel_values`, and `input_ids` is not read.
    ImageEncoder,
    /// A decoder whose texts have images (`pixel_values`, `image_grid_thw`) in the places of tokens. The model counts
    /// positions itself, by the images; the caller may give a cache, whose first forward pass takes the images.
    ImageTextDecoder,
}

impl Kind {
    /// Whether the model is a whole model of one text: it takes token ids and nothing else but their mask and positions.
    pub fn is_one_text(self) -> bool {
        matches!(self, Self::Decoder | Self::Encoder)
    }

    /// Whether the output follows the tokens of a decoder that attends to an encoder, `decoder_input_ids`.
    pub fn follows_decoder(self) -> bool {
        matches!(self, Self::EncoderDecoder | Self::SpeechEncoderDecoder)
    }
}

const fn row(
    model_type: &'static str,
    kind: Kind,
    build: Build,
    synthetic: &'static Checkpoints,
) -> Architecture {
    Architecture { model_type, part: None, kind, build, synthetic }
}

const fn part(
    model_type: &'static str,
    name: &'static str,
    kind: Kind,
    build: Build,
    synthetic: &'static Checkpoints,
) -> Architecture {
    Architecture { model_type, part: Some(name), kind, build, synthetic }
}

/// The row of a `model_type` whose config names these `architectures`.
fn find(model_type: &str, architectures: Option<&str>) -> Option<&'static Architecture> {
    let rows = || ARCHITECTURES.iter().filter(|row| row.model_type == model_type);
    let part = rows().find(|row| row.part.is_some() && row.part == architectures);
    part.or_else(|| rows().find(|row| row.part.is_none()))
}

/// Every `model_type` that [`crate::load`] knows, sorted.
pub fn model_types() -> impl Iterator<Item = &'static str> {
    let mut model_types: Vec<_> = ARCHITECTURES.iter().map(|architecture| architecture.model_type).collect();
    model_types.sort_unstable();
    model_types.dedup();
    model_types.into_iter()
}

/// The kind of a `model_type`'s whole model; `None` if [`crate::load`] does not know it.
pub fn kind(model_type: &str) -> Option<Kind> {
    find(model_type, None).map(|architecture| architecture.kind)
}

/// The kind of the model that a `config.json` describes, whole or a part by itself; `None` if [`crate::load`] does not know it.
pub fn kind_of(config: &serde_json::Value) -> Option<Kind> {
    let architecture = config.pointer("/architectures/0").and_then(serde_json::Value::as_str);
    find(config.get("model_type")?.as_str()?, architecture).map(|architecture| architecture.kind)
}

/// The architecture of a config.
pub(crate) fn of(config: &ConfigReader) -> Result<&'static Architecture> {
    let model_type = config.str_or("model_type", "")?;
    let architectures = config.optional_strs("architectures")?.unwrap_or_default();
    find(model_type, architectures.first().copied()).ok_or_else(|| Error::UnknownModelType {
        model_type: model_type.to_owned(),
        known: model_types().collect::<Vec<_>>().join(", "),
    })
}
