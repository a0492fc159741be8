//! `tfcheck list`: the native models, and the synthetic checkpoints that tfcheck can write for each; and the ones that
//! transformers makes.

use std::fmt::Write;

use models::Kind;
use models::synthetic::{Entry, catalogue, config};

use crate::spec::checkpoint::tiny::{self, Tiny};

/// Lists every `model_type` of the native models with its kind, its heads and its synthetic checkpoints.
pub fn models() -> String {
    let mut text = String::from(
        "Native models by model_type: their kind, the heads of their synthetic checkpoints, and these checkpoints\n\
         with what each one switches on. `--checkpoint synthetic:MODEL_TYPE[:VARIANT]` selects one.\n",
    );
    for model_type in models::model_types() {
        let entries: Vec<&Entry> =
            catalogue().iter().filter(|entry| entry.model_type == model_type).collect();
        let mut heads: Vec<String> = Vec::new();
        for head in entries.iter().filter_map(|entry| head(entry)) {
            if !heads.contains(&head) {
                heads.push(head);
            }
        }
        let kind = match models::kind(model_type) {
            Some(Kind::Decoder) => "decoder",
            Some(Kind::EncoderDecoder) => "encoder-decoder",
            Some(Kind::SpeechEncoderDecoder) => "speech encoder-decoder",
            Some(Kind::DualEncoder) => "dual encoder",
            Some(Kind::TextEncoder) => "tower of texts",
            Some(Kind::ImageEncoder) => "tower of images",
            Some(Kind::ImageTextDecoder) => "decoder with images",
            Some(Kind::Encoder) | None => "encoder",
        };
        let _ = writeln!(text, "\n{model_type}: {kind}; {}", heads.join(", "));
        let width = entries.iter().map(|entry| name(entry).len()).max().unwrap_or_default();
        for entry in entries {
            let size = if entry.bench { " (a shape to time; large)" } else { "" };
            let _ = writeln!(text, "  {:width$}  {}{size}", name(entry), entry.shows);
        }
    }
    text.push_str(
        "\nFurther model types, without a native model: transformers constructs the model from a small config, and tfcheck\n\
         draws its weights. The first use installs the release that constructs it. A model_type that is not listed here is\n\
         constructed by the newest release from its own defaults, with small sizes; results/synthetic.md names those that cannot be.\n",
    );
    let mut entries = tiny::catalogue().iter().peekable();
    while let Some(first) = entries.peek().copied() {
        let of_type: Vec<&Tiny> =
            std::iter::from_fn(|| entries.next_if(|entry| entry.model_type == first.model_type)).collect();
        let mut classes: Vec<&str> = of_type.iter().map(|entry| entry.class).collect();
        classes.sort_unstable();
        classes.dedup();
        let _ = writeln!(text, "\n{}: {}", first.model_type, classes.join(", "));
        let name = |entry: &Tiny| format!("synthetic:{}", entry.name());
        let width = of_type.iter().map(|entry| name(entry).len()).max().unwrap_or_default();
        for entry in of_type {
            let _ = writeln!(text, "  {:width$}  {}", name(entry), entry.shows);
        }
    }
    text
}

/// `synthetic:mistral:head-dim`.
fn name(entry: &Entry) -> String {
    match entry.variant {
        "" => format!("synthetic:{}", entry.model_type),
        variant => format!("synthetic:{}:{variant}", entry.model_type),
    }
}

/// The first entry of `architectures` in a checkpoint's config, such as `LlamaForCausalLM`.
fn head(entry: &Entry) -> Option<String> {
    let config = config(entry.model_type, entry.variant).ok()?;
    config["architectures"][0].as_str().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_native_model_is_listed_with_its_kind_heads_and_synthetic_checkpoints() {
        let text = models();
        for model_type in models::model_types() {
            assert!(text.contains(&format!("\n{model_type}: ")), "{model_type}:\n{text}");
        }
        for entry in catalogue() {
            let line = text.lines().find(|line| line.split_whitespace().next() == Some(&name(entry)));
            assert!(line.is_some_and(|line| line.contains(entry.shows)), "{}:\n{text}", name(entry));
        }
        for entry in tiny::catalogue() {
            assert!(text.contains(&format!("  synthetic:{} ", entry.name())), "{}:\n{text}", entry.name());
        }
        assert!(text.contains("\nllama: decoder; LlamaForCausalLM\n"), "{text}");
        assert!(text.contains("\nbert: encoder; BertForMaskedLM, BertForSequenceClassification\n"), "{text}");
    }
}
