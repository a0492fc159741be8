//! Tests that hand-written lists cover every architecture of the crate's table: the README, the golden tests, the table of
//! versions, and the features that `features.py` switches off.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use models::synthetic::{self, catalogue};
use models::{Kind, kind, model_types};

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

/// Number of checkpoints that are small enough to be compared.
fn small() -> usize {
    catalogue().iter().filter(|entry| !entry.bench).count()
}

#[test]
fn the_readme_lists_and_counts_decoders_and_encoders() {
    let readme = read("../README.md");
    let count = format!("{} architectures", model_types().count());
    let start = readme.find(&count).unwrap_or_else(|| panic!("README.md lacks `{count}`"));
    let paragraph = &readme[start..];
    let paragraph = &paragraph[..paragraph.find("`synthetic:").unwrap()];
    let (decoders, encoders) = paragraph.split_once("Encoders").unwrap();
    let (decoders, encoders) = (words(decoders), words(encoders));
    for model_type in model_types() {
        let listed = if kind(model_type) == Some(Kind::Decoder) { &decoders } else { &encoders };
        assert!(
            listed.contains(model_type),
            "README.md does not list {model_type} among its {:?}s",
            kind(model_type)
        );
    }
}

#[test]
fn texts_count_the_synthetic_checkpoints() {
    let (readme, scoreboard) = (read("../README.md"), read("../docs/scoreboard.md"));
    for (text, name, count) in [
        (readme, "README.md", format!("{} synthetic checkpoints", small())),
        (scoreboard, "docs/scoreboard.md", format!("{} checkpoints, {} cases", small(), 3 * small())),
    ] {
        assert!(text.contains(&count), "{name} lacks `{count}`");
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
        for key in config.as_object().unwrap().keys() {
            assert!(
                known.contains(key.as_str()),
                "features.py neither switches off {key} of {}:{} nor lists it in NO_FEATURE",
                entry.model_type,
                entry.variant
            );
        }
    }
}
