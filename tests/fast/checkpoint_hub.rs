//! Tests checkpoints given by hub id, with a hub on loopback.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint_files::{config, safetensors, write};
use crate::hub_server::{COMMIT, Hub};
use miette::Diagnostic;
use tfcheck::spec::checkpoint::hub::Environment;
use tfcheck::spec::checkpoint::{self, Checkpoint, Error, Settings};

const INDEX: &str =
    r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;

fn sharded() -> Hub {
    Hub::new(&[
        ("README.md", b"# model".to_vec()),
        ("config.json", config().into_bytes()),
        ("model-00001-of-00002.safetensors", safetensors(&[("a", 5000)])),
        ("model-00002-of-00002.safetensors", safetensors(&[("b", 7000)])),
        ("model.safetensors.index.json", INDEX.as_bytes().to_vec()),
        ("pytorch_model.bin", b"PK".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
    ])
}

fn settings(root: &Path, endpoint: &str) -> Settings {
    let hub =
        Environment { cache: root.join("hub"), endpoint: endpoint.to_owned(), token: None, offline: false };
    Settings { hub, ..Settings::new(root.join("cache")) }
}

fn resolve(given: &str, settings: &Settings) -> Result<Checkpoint, Error> {
    checkpoint::resolve(given, settings, &mut |_| ())
}

#[test]
fn a_sharded_model_is_fetched_once_and_pinned_to_its_commit() {
    let (root, hub) = (tempfile::tempdir().unwrap(), sharded());
    let settings = settings(root.path(), &hub.endpoint);
    let checkpoint = resolve("owner/model", &settings).unwrap();
    assert_eq!(checkpoint.revision.as_deref(), Some(COMMIT));
    assert!(checkpoint.folder.ends_with(format!("models--owner--model/snapshots/{COMMIT}")));
    assert_eq!(checkpoint.weights.len(), 2);
    assert_eq!(std::fs::read(&checkpoint.weights[1]).unwrap(), safetensors(&[("b", 7000)]));
    assert!(checkpoint.tokenizer.is_some());
    assert_eq!(checkpoint.notes, [format!("owner/model at main, commit {COMMIT}")]);

    let log = hub.take_log().join("\n");
    assert!(!log.contains(".bin") && !log.contains("README"), "{log}");
    assert!(
        !log.contains("/resolve/main/"),
        "files are asked for by commit, so that a push in between mixes nothing: {log}"
    );

    let again = resolve("owner/model", &settings).unwrap();
    assert_eq!(again.digest, checkpoint.digest);
    assert_eq!(hub.take_log().len(), 1, "only the commit is looked up again");
}

#[test]
fn a_renamed_model_is_found_by_its_old_name() {
    let (root, hub) = (tempfile::tempdir().unwrap(), sharded());
    for name in ["owner/old-name", "gpt0"] {
        let checkpoint = resolve(name, &settings(root.path(), &hub.endpoint)).unwrap();
        assert_eq!(checkpoint.weights.len(), 2);
    }
}

#[test]
fn offline_only_complete_cached_models_are_used() {
    let (root, hub) = (tempfile::tempdir().unwrap(), sharded());
    let online = settings(root.path(), &hub.endpoint);
    let fetched = resolve("owner/model", &online).unwrap();
    hub.take_log();

    let mut offline = online.clone();
    offline.hub.offline = true;
    let cached = resolve("owner/model", &offline).unwrap();
    assert_eq!((cached.digest, cached.revision.as_deref()), (fetched.digest, Some(COMMIT)));
    offline.revision = Some(COMMIT.to_owned());
    resolve("owner/model", &offline).unwrap();
    assert_eq!(hub.take_log(), [""; 0]);

    offline.revision = Some("v2".to_owned());
    let error = resolve("owner/model", &offline).unwrap_err();
    let cache = offline.hub.cache.display();
    let message =
        format!("`owner/model` at `v2` is not (completely) in the cache {cache} and HF_HUB_OFFLINE is set");
    assert_eq!(error.to_string(), message);

    offline.revision = None;
    std::fs::remove_file(&fetched.weights[1]).unwrap();
    assert!(matches!(resolve("owner/model", &offline).unwrap_err(), Error::HubOffline { .. }));
}

#[test]
fn an_unreachable_hub_is_an_error_only_without_a_cached_copy() {
    let (root, hub) = (tempfile::tempdir().unwrap(), sharded());
    let mut settings = settings(root.path(), &hub.endpoint);
    resolve("owner/model", &settings).unwrap();
    // Port 9 (discard) is closed.
    settings.hub.endpoint = "http://127.0.0.1:9".to_owned();
    let checkpoint = resolve("owner/model", &settings).unwrap();
    assert!(checkpoint.notes[1].contains("the cached commit is used"), "{:?}", checkpoint.notes);
    let error = resolve("owner/another", &settings).unwrap_err();
    assert!(
        error.to_string().starts_with("http://127.0.0.1:9 cannot be reached for `owner/another`: "),
        "{error}"
    );
}

#[test]
fn a_broken_download_resumes_where_it_stopped() {
    let (root, hub) = (tempfile::tempdir().unwrap(), sharded());
    hub.state().cut_once = Some(3000);
    let checkpoint = resolve("owner/model", &settings(root.path(), &hub.endpoint)).unwrap();
    assert_eq!(std::fs::read(&checkpoint.weights[0]).unwrap(), safetensors(&[("a", 5000)]));
    let log = hub.take_log();
    assert!(log.iter().any(|line| line.contains("00001-of-00002.safetensors bytes=3000-")), "{log:#?}");
}

#[test]
fn a_download_that_ended_before_its_rename_is_recovered() {
    let (root, hub) = (tempfile::tempdir().unwrap(), sharded());
    let settings = settings(root.path(), &hub.endpoint);
    let checkpoint = resolve("owner/model", &settings).unwrap();
    let blob = checkpoint.weights[0].canonicalize().unwrap();
    std::fs::rename(&blob, blob.with_extension("part")).unwrap();
    std::fs::remove_file(&checkpoint.weights[0]).unwrap();
    let again = resolve("owner/model", &settings).unwrap();
    assert_eq!(again.digest, checkpoint.digest);
}

#[test]
fn content_that_is_not_what_the_hub_lists_is_refused() {
    let (root, hub) = (tempfile::tempdir().unwrap(), sharded());
    hub.state().corrupt = true;
    let error = resolve("owner/model", &settings(root.path(), &hub.endpoint)).unwrap_err();
    assert!(matches!(error, Error::WrongDigest { .. }), "{error}");
}

#[test]
fn refusals_of_the_hub_are_distinguished() {
    let (root, hub) = (tempfile::tempdir().unwrap(), sharded());
    let endpoint = hub.endpoint.clone();
    let check = |refuse, token: Option<&str>, message: &str, help: &str| {
        hub.state().refuse = refuse;
        let mut settings = settings(root.path(), &endpoint);
        settings.hub.token = token.map(str::to_owned);
        let error = resolve("owner/model", &settings).unwrap_err();
        assert_eq!(error.to_string().replace(&endpoint, "HUB"), message);
        let advice = error.help().unwrap().to_string();
        assert!(advice.contains(help), "{advice}");
    };
    check(Some((401, "")), None, "HUB refuses access to `owner/model`: as asked", "set HF_TOKEN");
    check(
        Some((403, "GatedRepo")),
        Some("secret"),
        "HUB refuses access to `owner/model`: as asked",
        "account of HF_TOKEN",
    );
    check(
        Some((401, "RepoNotFound")),
        None,
        "HUB has no model `owner/model`",
        "private model needs HF_TOKEN",
    );
    check(Some((404, "RepoNotFound")), None, "HUB has no model `owner/model`", "check the spelling");
    check(Some((503, "")), None, "HUB answered 503 for `owner/model`: as asked", "try again later");
    hub.state().refuse = None;
    let settings = Settings { revision: Some("v9".to_owned()), ..settings(root.path(), &endpoint) };
    let error = resolve("owner/model", &settings).unwrap_err();
    assert_eq!(error.to_string(), "`owner/model` has no revision `v9`");
}

#[test]
fn a_model_that_must_not_be_loaded_costs_no_download_of_weights() {
    let check = |files: &[(&str, Vec<u8>)], message: &str| {
        let (root, hub) = (tempfile::tempdir().unwrap(), Hub::new(files));
        let error = resolve("owner/model", &settings(root.path(), &hub.endpoint)).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert!(!hub.take_log().join("\n").contains("/cdn/"));
    };
    let config = |text: &str| ("config.json", text.as_bytes().to_vec());
    let weights = ("model.safetensors", safetensors(&[("a", 3)]));
    check(
        &[config(r#"{"model_type": "x", "auto_map": {}}"#), weights.clone()],
        "asks for remote code (`auto_map`)",
    );
    check(
        &[config(r#"{"model_type": "x"}"#), ("pytorch_model.bin", vec![0])],
        "owner/model holds its weights only as pickles: pytorch_model.bin",
    );
    check(&[config(r#"{"model_type": "x"}"#)], "owner/model has no model.safetensors");
    check(&[weights], "owner/model has no config.json");
    check(
        &[config(r#"{"model_type": "x"}"#), ("model.safetensors.index.json", INDEX.into())],
        "names files that are missing",
    );
}

#[test]
fn the_token_is_sent_to_the_hub_and_never_shown() {
    let (root, hub) = (tempfile::tempdir().unwrap(), sharded());
    let mut settings = settings(root.path(), &hub.endpoint);
    settings.hub.token = Some("hf_secret".to_owned());
    assert!(!format!("{settings:?}").contains("hf_secret"));
    resolve("owner/model", &settings).unwrap();
    assert!(hub.take_log()[0].ends_with("Bearer hf_secret"));
    hub.state().refuse = Some((403, ""));
    let error = resolve("owner/model", &settings).unwrap_err();
    assert!(!format!("{error:?} {error} {}", error.help().unwrap()).contains("hf_secret"));
}

#[test]
fn the_environment_is_read_as_huggingface_hub_reads_it() {
    let root = tempfile::tempdir().unwrap();
    let home = root.path().to_str().unwrap();
    let read = |variables: &[(&str, &str)]| {
        let variables: BTreeMap<_, _> = variables.iter().copied().collect();
        Environment::from_variables(|name| variables.get(name).map(|value| (*value).to_owned()))
    };
    let plain = read(&[("HOME", home)]);
    assert_eq!(plain.cache, root.path().join(".cache/huggingface/hub"));
    assert_eq!(
        (plain.endpoint.as_str(), plain.token, plain.offline),
        ("https://huggingface.co", None, false)
    );

    write(&root.path().join("token"), "from_file\n");
    let set = read(&[("HF_HOME", home), ("HF_ENDPOINT", "http://mirror/"), ("HF_HUB_OFFLINE", "yes")]);
    assert_eq!(set.cache, root.path().join("hub"));
    assert_eq!(
        (set.endpoint.as_str(), set.token.as_deref(), set.offline),
        ("http://mirror", Some("from_file"), true)
    );

    let more = read(&[
        ("HF_HOME", home),
        ("HF_HUB_CACHE", "/elsewhere"),
        ("HF_TOKEN", "mine"),
        ("HF_HUB_OFFLINE", "0"),
    ]);
    assert_eq!(
        (more.cache.to_str(), more.token.as_deref(), more.offline),
        (Some("/elsewhere"), Some("mine"), false)
    );
}
