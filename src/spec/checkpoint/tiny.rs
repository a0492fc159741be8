//! Synthetic checkpoints that transformers makes: of model types that tfcheck has no native model of, of other heads, and with
//! configs as version 5 saves them. transformers constructs the model from a small config and saves it, and tfcheck draws the
//! weights.
//!
//! Each row of `tiny/*.json` is one `model_type`. 4.57.6 constructs the models that it knows, because every release reads
//! the form of its configs; a row or variant with `newest` is constructed by the newest release. A `model_type` without a row
//! is constructed by the newest release from its own defaults with small sizes, see [`unlisted`]; `tiny/small.json` has the
//! values that some of them need beside.

mod fill;
mod make;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Error, Progress, Settings};

/// Constructs the models that it knows.
const MAKER: &str = "4.57.6";

/// One `model_type` with its checkpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    model_type: String,
    /// Class in `transformers`.
    class: String,
    /// Features that the default checkpoint switches on.
    shows: String,
    /// For a model type that has a native model: the variant of its synthetic checkpoints from whose config this row starts.
    /// Such a row has variants only.
    like: Option<String>,
    /// Whether the row has variants only, because another row of the model type has the default.
    #[serde(default)]
    variants_only: bool,
    #[serde(default)]
    newest: bool,
    /// Values of the config that differ from the class's defaults.
    config: Map<String, Value>,
    /// Values set in the saved config.json: published ones that the release's config class would change.
    #[serde(default)]
    saved: Map<String, Value>,
    /// Distributions by glob of the tensor's name, see [`fill`], where the general rules do not suit.
    #[serde(default)]
    fill: BTreeMap<String, String>,
    #[serde(default)]
    variants: BTreeMap<String, Variant>,
}

impl Row {
    /// Whether a table has it.
    fn is_listed(&self) -> bool {
        !self.class.is_empty()
    }
}

/// A checkpoint that differs from its row's default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    /// The row's class if absent.
    class: Option<String>,
    shows: String,
    #[serde(default)]
    newest: bool,
    /// Merged into the row's config, nested configs as well.
    #[serde(default)]
    config: Map<String, Value>,
    /// As [`Row::saved`], in addition to the row's.
    #[serde(default)]
    saved: Map<String, Value>,
    /// As [`Row::fill`], before the row's.
    #[serde(default)]
    fill: BTreeMap<String, String>,
}

/// One checkpoint that [`folder`] makes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiny {
    /// `model_type` in its config.
    pub(crate) model_type: &'static str,
    /// Name within the model type; empty for the default.
    pub(crate) variant: &'static str,
    /// Class in `transformers`.
    pub(crate) class: &'static str,
    /// The features that it switches on.
    pub(crate) shows: &'static str,
    /// Whether the newest release constructs it.
    newest: bool,
    row: &'static Row,
}

static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let files = [
        include_str!("tiny/native.json"),
        include_str!("tiny/text.json"),
        include_str!("tiny/recurrent.json"),
        include_str!("tiny/decoders.json"),
        include_str!("tiny/encoders.json"),
        include_str!("tiny/seq2seq.json"),
        include_str!("tiny/vision.json"),
        include_str!("tiny/speech.json"),
    ];
    let rows = files.iter().flat_map(|file| {
        serde_json::from_str::<Vec<Row>>(file)
            .expect("the tables are data of this program, which a test reads")
    });
    rows.collect()
});

/// All checkpoints that [`folder`] makes, in the order of the tables; the default of a model type first.
pub(crate) fn catalogue() -> &'static [Tiny] {
    static CATALOGUE: LazyLock<Vec<Tiny>> = LazyLock::new(|| {
        let entries = |row: &'static Row| {
            let entry = move |variant, class, shows, newest| Tiny {
                model_type: &row.model_type,
                variant,
                class,
                shows,
                newest,
                row,
            };
            let variants = row.variants.iter().map(move |(name, variant)| {
                let class = variant.class.as_deref().unwrap_or(&row.class);
                entry(name.as_str(), class, variant.shows.as_str(), row.newest || variant.newest)
            });
            // The default of a native model is tfcheck's own.
            let is_first =
                row.like.is_none() && !row.variants_only && models::kind(&row.model_type).is_none();
            let default = is_first.then(|| entry("", row.class.as_str(), row.shows.as_str(), row.newest));
            default.into_iter().chain(variants)
        };
        ROWS.iter().flat_map(entries).collect()
    });
    &CATALOGUE
}

/// The checkpoint of this name, if a table has it.
pub(crate) fn find(model_type: &str, variant: Option<&str>) -> Option<&'static Tiny> {
    let variant = variant.unwrap_or_default();
    catalogue().iter().find(|entry| entry.model_type == model_type && entry.variant == variant)
}

/// What a `model_type` without a row needs beside the general rules.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    model_type: String,
    /// Why, in a few words.
    shows: String,
    /// Values that are set after the general rule has made all others small.
    #[serde(default)]
    config: Map<String, Value>,
    /// As [`Row::fill`].
    #[serde(default)]
    fill: BTreeMap<String, String>,
}

static CHANGES: LazyLock<Vec<Change>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("tiny/small.json"))
        .expect("the table is data of this program, which a test reads")
});

/// The checkpoint of a `model_type` that no table has: the newest release's defaults, with small sizes by the names of its
/// config's keys (`reference/bridge/src/module/small.py`).
pub(crate) fn unlisted(model_type: &str) -> Tiny {
    let change = CHANGES.iter().find(|change| change.model_type == model_type).cloned().unwrap_or_default();
    let separator = if change.shows.is_empty() { "" } else { "; " };
    let mut config = change.config;
    config.insert("model_type".to_owned(), Value::from(model_type));
    // Named by a config, of which a process reads few; the tables live as long.
    let row: &'static Row = Box::leak(Box::new(Row {
        model_type: model_type.to_owned(),
        class: String::new(),
        shows: format!("the release's defaults, with small sizes{separator}{}", change.shows),
        newest: true,
        config,
        fill: change.fill,
        ..Row::default()
    }));
    Tiny { model_type: &row.model_type, variant: "", class: &row.class, shows: &row.shows, newest: true, row }
}

/// The names after `synthetic:` of this model type's checkpoints; of all default ones if there are none.
pub(crate) fn names(model_type: &str) -> Vec<String> {
    let all = || catalogue().iter();
    let own: Vec<String> = all().filter(|entry| entry.model_type == model_type).map(Tiny::name).collect();
    if own.is_empty() {
        all().filter(|entry| entry.variant.is_empty()).map(Tiny::name).collect()
    } else {
        own
    }
}

impl Tiny {
    /// `deepseek_v2:yarn`.
    pub(crate) fn name(&self) -> String {
        match self.variant {
            "" => self.model_type.to_owned(),
            variant => format!("{}:{variant}", self.model_type),
        }
    }

    /// The release that constructs it.
    fn maker(&self) -> &'static str {
        if self.newest { &reference::Versions::known().makes } else { MAKER }
    }

    /// Its config's values.
    pub(crate) fn config(&self) -> Map<String, Value> {
        let native =
            self.row.like.as_deref().and_then(|like| models::synthetic::config(self.model_type, like).ok());
        let mut config = match native {
            Some(Value::Object(config)) => config,
            _ => Map::new(),
        };
        merge(&mut config, &self.row.config);
        if let Some(variant) = self.row.variants.get(self.variant) {
            merge(&mut config, &variant.config);
        }
        config
    }

    /// The values that are set in its saved config.json.
    fn saved(&self) -> Map<String, Value> {
        let mut saved = self.row.saved.clone();
        if let Some(variant) = self.row.variants.get(self.variant) {
            merge(&mut saved, &variant.saved);
        }
        saved
    }

    /// The rules of its variant, then those of its row.
    fn fill(&self) -> Vec<fill::Rule<'static>> {
        let own = self.row.variants.get(self.variant).map(|variant| &variant.fill);
        let rules = own.into_iter().chain([&self.row.fill]).flatten();
        rules.map(|(pattern, rule)| (pattern.as_str(), rule.as_str())).collect()
    }
}

/// Sets the values of `changes`; nested objects are merged.
fn merge(config: &mut Map<String, Value>, changes: &Map<String, Value>) {
    for (key, change) in changes {
        match (config.get_mut(key), change) {
            (Some(Value::Object(known)), Value::Object(change)) => merge(known, change),
            _ => {
                config.insert(key.clone(), change.clone());
            }
        }
    }
}

/// The folder of a checkpoint in the cache, which is made if the cache does not have it, and notes on how it was made.
///
/// # Errors
/// When the release that makes it cannot be installed or refuses the config, and when the cache cannot be written.
pub(super) fn folder(
    tiny: &Tiny,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<(PathBuf, String), Error> {
    let defaults = if tiny.row.is_listed() { "" } else { " from its defaults, with small sizes" };
    let note = format!("constructed by transformers {}{defaults}", tiny.maker());
    make::folder(tiny, settings, progress).map(|folder| (folder, note))
}

/// Ends the processes that made checkpoints.
pub(crate) fn end() {
    make::end();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_row_is_read_and_every_name_is_unique_and_no_native_checkpoints() {
        let names: Vec<String> = catalogue().iter().map(Tiny::name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        for name in &names {
            assert!(format!("synthetic:{name}").parse::<super::super::Source>().is_ok(), "{name}");
        }
        let native = models::synthetic::catalogue();
        for tiny in catalogue() {
            let is_same = |entry: &models::synthetic::Entry| {
                (entry.model_type, entry.variant) == (tiny.model_type, tiny.variant)
            };
            assert!(!native.iter().any(is_same), "{}", tiny.name());
        }
    }

    #[test]
    fn a_variant_changes_its_keys_in_nested_configs_only() {
        let decoder = |variant| find("vision-encoder-decoder", variant).unwrap().config()["decoder"].clone();
        let (plain, changed) = (decoder(None), decoder(Some("sinusoidal")));
        let learned = |config: &Value| config["use_learned_position_embeddings"].as_bool();
        assert_eq!((learned(&plain), learned(&changed)), (Some(true), Some(false)));
        assert_eq!(plain["d_model"], changed["d_model"]);
        assert_eq!(
            find("deepseek_v2", Some("yarn")).unwrap().fill(),
            find("deepseek_v2", None).unwrap().fill()
        );
        assert!(find("olmo", Some("absent")).is_none());
    }

    #[test]
    fn a_row_of_a_native_model_starts_from_its_config() {
        for tiny in catalogue().iter().filter(|tiny| tiny.row.like.is_some()) {
            let config = tiny.config();
            assert_eq!(config["model_type"], tiny.model_type);
            assert!(config.contains_key("vocab_size"), "{}", tiny.name());
            assert!(!tiny.variant.is_empty());
        }
        assert!(find("llama", None).is_none() && find("llama", Some("v5")).is_some());
    }

    #[test]
    fn a_model_type_without_a_row_is_left_to_the_newest_release() {
        let tiny = unlisted("no_such_model");
        assert!(tiny.newest && !tiny.row.is_listed());
        assert_eq!(tiny.config()["model_type"], "no_such_model");
        assert!(catalogue().iter().all(|tiny| tiny.row.is_listed()));
    }

    #[test]
    fn what_a_model_type_without_a_row_needs_is_read_and_no_row_has_it() {
        let names: BTreeSet<&str> = CHANGES.iter().map(|change| change.model_type.as_str()).collect();
        assert_eq!(names.len(), CHANGES.len());
        for change in CHANGES.iter() {
            let tiny = unlisted(&change.model_type);
            assert!(find(tiny.model_type, None).is_none(), "{}", tiny.model_type);
            assert!(!change.shows.is_empty(), "{}", tiny.model_type);
            assert_eq!(tiny.config().len(), change.config.len() + 1, "{}", tiny.model_type);
            for (_, rule) in tiny.fill() {
                assert!(fill::Fill::parse(rule).is_some(), "{}: {rule}", tiny.name());
            }
        }
    }

    #[test]
    fn the_distributions_of_every_row_are_understood() {
        for tiny in catalogue() {
            for (_, rule) in tiny.fill() {
                assert!(fill::Fill::parse(rule).is_some(), "{}: {rule}", tiny.name());
            }
        }
    }
}
