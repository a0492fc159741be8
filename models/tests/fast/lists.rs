//! Tests that texts and measured tables cover every architecture of the crate's table: the README, the golden tests, the table
//! of versions, and the features that `features.py` switches off.
//!
//! `UPDATE_LISTS=1 cargo test --release -p tfcheck-models --test fast lists` rewrites the lists and counts in the texts.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use models::synthetic::{self, catalogue};
use models::{Kind, model_types};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// The words of a text that may be a `model_type`: letters, digits, `_` and `-`.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).collect()
}

/// The number of architectures of one kind, `what`, and their `model_type`s in the order of the table: ` (2): bert, roberta`.
fn list(of: Kind, what: &str) -> String {
    let entries = catalogue().iter().filter(|entry| entry.kind == of);
    let mut listed: Vec<&str> = entries.map(|entry| entry.model_type).collect();
    listed.dedup();
    format!(" ({}){what}: {}", listed.len(), listed.join(", "))
}

/// Checks the part of a text between `start` and `end`, up to white space, or rewrites it if `UPDATE_LISTS` is set.
fn check(path: &str, start: &str, end: &str, expected: &str) {
    let text = read(path);
    let after = text.split_once(start).unwrap_or_else(|| panic!("{path} lacks `{start}`")).1;
    let found = after.split_once(end).unwrap_or_else(|| panic!("{path} lacks `{end}`")).0;
    if found.split_whitespace().eq(expected.split_whitespace()) {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_LISTS").is_some(),
        "{path} has `{found}` instead of `{expected}`: run this test with UPDATE_LISTS=1"
    );
    let updated = text.replacen(&[start, found, end].concat(), &[start, expected, end].concat(), 1);
    std::fs::write(root().join(path), updated).unwrap();
}

// One test, so that no two write the same file at the same time.
#[test]
fn texts_list_and_count_the_architectures_and_their_synthetic_checkpoints() {
    let small = catalogue().iter().filter(|entry| !entry.bench).count();
    for (path, start, end, expected) in [
        ("../README.md", "There are ", " architectures,", model_types().count().to_string()),
        ("../README.md", "- Decoders", "\n- Encoders", list(Kind::Decoder, "")),
        (
            "../README.md",
            "\n- Encoders",
            "\n- Encoder-decoders",
            list(Kind::Encoder, ", with masked LM, classification or hidden states"),
        ),
        (
            "../README.md",
            "\n- Encoder-decoders",
            "\n- Speech encoder-decoders",
            list(Kind::EncoderDecoder, ""),
        ),
        (
            "../README.md",
            "\n- Speech encoder-decoders",
            "\n- Dual encoders",
            list(Kind::SpeechEncoderDecoder, ""),
        ),
        (
            "../README.md",
            "\n- Dual encoders",
            "\n- Text encoders",
            list(Kind::DualEncoder, " of images and texts"),
        ),
        (
            "../README.md",
            "\n- Text encoders",
            "\n- Image encoders",
            list(Kind::TextEncoder, ", with hidden states or projected vectors"),
        ),
        (
            "../README.md",
            "\n- Image encoders",
            "\n- Image-text decoders",
            list(Kind::ImageEncoder, ", with hidden states or projected vectors"),
        ),
        (
            "../README.md",
            "\n- Image-text decoders",
            "\n\n",
            list(Kind::ImageTextDecoder, ", whose image patches take the positions of placeholder tokens"),
        ),
        ("../README.md", "float64, over ", " synthetic checkpoints", small.to_string()),
    ] {
        check(path, start, end, &expected);
    }
}

#[test]
fn every_architecture_has_a_golden() {
    let folders = std::fs::read_dir(root().join("tests/golden")).unwrap();
    let configs =
        folders.filter_map(|entry| std::fs::read_to_string(entry.unwrap().path().join("config.json")).ok());
    let config = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let found: BTreeSet<String> =
        configs.map(|text| config(text)["model_type"].as_str().unwrap().to_owned()).collect();
    for model_type in model_types() {
        assert!(found.contains(model_type), "tests/golden has no case of {model_type}: add one in make.py");
    }
}

#[test]
fn the_table_of_versions_has_a_row_for_every_small_checkpoint() {
    let versions = read("src/synthetic/versions.md");
    for entry in catalogue().iter().filter(|entry| !entry.bench) {
        let name = [entry.model_type, entry.variant].join("-");
        let row = format!("| {} |", name.trim_end_matches('-'));
        assert!(versions.contains(&row), "versions.md has no row `{row}`: run tests/versions.py");
    }
}

#[test]
fn every_config_key_of_a_synthetic_checkpoint_is_a_feature_or_listed_as_none() {
    let features = read("tests/features.py");
    let tables = features.split_once("KEYS = {").unwrap().1.split_once("ONLY = {").unwrap().0;
    let known = words(tables);
    for entry in catalogue() {
        let config = synthetic::config(entry.model_type, entry.variant).unwrap();
        let config = config.as_object().unwrap();
        let parts = ["text_config", "vision_config"].iter().filter_map(|part| config.get(*part)?.as_object());
        for key in config.keys().chain(parts.flat_map(serde_json::Map::keys)) {
            assert!(
                known.contains(key.as_str()),
                "features.py neither switches off {key} of {}:{} nor lists it in NO_FEATURE",
                entry.model_type,
                entry.variant
            );
        }
    }
}
