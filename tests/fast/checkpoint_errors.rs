//! Tests the error message for every way in which a checkpoint folder can be unusable.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::path::Path;

use crate::checkpoint_files::{config, safetensors, settings, write};
use miette::Diagnostic;
use serde_json::json;
use tfcheck::spec::checkpoint::{self, Checkpoint, Error};

fn resolve(root: &Path, given: &str) -> Result<Checkpoint, Error> {
    checkpoint::resolve(given, &settings(root), &mut |_| ())
}

/// Fills a folder and asserts the message (without the temporary path) and the help of the resulting error.
fn check(fill: impl FnOnce(&Path), message: &str, help: &str) {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().canonicalize().unwrap().join("model");
    std::fs::create_dir(&folder).unwrap();
    fill(&folder);
    let error = resolve(root.path(), folder.to_str().unwrap()).unwrap_err();
    let prefix = format!("{}/", folder.parent().unwrap().display());
    let told = error.to_string().replace(&prefix, "");
    assert_eq!(told, message);
    let advice = error.help().unwrap().to_string().replace(&prefix, "");
    assert!(advice.contains(help), "{advice}");
}

fn whole(folder: &Path) {
    write(&folder.join("config.json"), config());
    write(&folder.join("model.safetensors"), safetensors(&[("w", 4)]));
}

#[test]
fn a_whole_folder_passes_and_its_digest_covers_config_weights_and_tokenizer() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("model");
    std::fs::create_dir(&folder).unwrap();
    whole(&folder);
    let digest = || resolve(root.path(), folder.to_str().unwrap()).unwrap().digest;
    let first = digest();
    assert_eq!(first.len(), 64);
    assert_eq!(digest(), first, "the same files have the same digest");
    write(&folder.join("README.md"), "not part of it");
    assert_eq!(digest(), first);

    write(&folder.join("tokenizer.json"), "{}");
    let with_tokenizer = digest();
    assert_ne!(with_tokenizer, first);
    let mut weights = safetensors(&[("w", 4)]);
    *weights.last_mut().unwrap() ^= 1;
    write(&folder.join("model.safetensors"), weights);
    let with_weights = digest();
    assert_ne!(with_weights, with_tokenizer);
    write(&folder.join("config.json"), config().replace("llama", "qwen2"));
    assert_ne!(digest(), with_weights);
}

#[test]
fn a_second_run_reads_no_weights() {
    let root = tempfile::tempdir().unwrap();
    whole(root.path());
    let given = root.path().to_str().unwrap();
    let run = || {
        let mut steps = 0;
        checkpoint::resolve(given, &settings(root.path()), &mut |_| steps += 1).unwrap();
        steps
    };
    assert!(run() > 0);
    assert_eq!(run(), 0);
}

#[test]
fn folders_that_cannot_be_loaded_give_the_reason() {
    check(|_| (), "model has no config.json", "as `save_pretrained` writes them");
    check(
        |f| write(&f.join("m.gguf"), "GGUF"),
        "model has no config.json",
        "holds a GGUF file: name it, `model/m.gguf`",
    );
    check(
        |f| write(&f.join("config.json"), "{"),
        "model/config.json: is not JSON: EOF while parsing an object at line 1 column 1",
        "fetch the file again",
    );
    for (number, column) in [("NaN", 41), ("-Infinity", 42)] {
        check(
            |f| {
                write(
                    &f.join("config.json"),
                    format!("{{\"model_type\": \"llama\", \"rms_norm_eps\": {number}}}"),
                );
            },
            &format!("model/config.json: is not JSON: a number that is not finite at line 1 column {column}"),
            "fetch the file again",
        );
    }
    check(
        |f| write(&f.join("config.json"), "[]"),
        "model/config.json: holds an array where an object belongs",
        "fetch the file again",
    );
    check(
        |f| write(&f.join("config.json"), "{}"),
        "model/config.json has no `model_type`",
        "\"model_type\": \"llama\"",
    );
    check(
        |f| write(&f.join("config.json"), config()),
        "model has no model.safetensors and no model.safetensors.index.json",
        "as `save_pretrained` writes them",
    );
    check(
        |f| {
            write(&f.join("config.json"), config());
            write(&f.join("weights.safetensors"), safetensors(&[("w", 4)]));
        },
        "model has no model.safetensors and no model.safetensors.index.json",
        "it holds weights.safetensors",
    );
    check(
        |f| {
            write(&f.join("config.json"), config());
            write(&f.join("pytorch_model.bin"), "PK");
            write(&f.join("old.pt"), "PK");
        },
        "model holds its weights only as pickles: old.pt, pytorch_model.bin",
        "safetensors only",
    );
}

#[test]
fn code_in_a_config_is_refused_wherever_it_hides() {
    let with = |value: serde_json::Value| {
        move |f: &Path| {
            whole(f);
            write(&f.join("config.json"), value.to_string());
        }
    };
    check(
        with(json!({"model_type": "llama", "auto_map": {"AutoModel": "modeling_x.X"}})),
        "model/config.json asks for remote code (`auto_map`)",
        "allow_remote_code = true",
    );
    check(
        |f| {
            whole(f);
            write(&f.join("tokenizer_config.json"), r#"{"auto_map": {}}"#);
        },
        "model/tokenizer_config.json asks for remote code (`auto_map`)",
        "allow_remote_code = true",
    );
    check(
        with(
            json!({"model_type": "llama", "text_config": {"_attn_implementation_internal": "someone/kernels"}}),
        ),
        "model/config.json sets `text_config._attn_implementation_internal` to \"someone/kernels\", which makes some transformers versions load and run code",
        "CVE-2026-4372",
    );
    check(
        with(json!({"model_type": "llama", "attn_implementation": "someone/kernels:f"})),
        "model/config.json sets `attn_implementation` to \"someone/kernels:f\", which makes some transformers versions load and run code",
        "remove the key",
    );
}

#[test]
fn allowed_remote_code_is_reported_and_built_in_attention_is_accepted() {
    let root = tempfile::tempdir().unwrap();
    whole(root.path());
    let config = json!({"model_type": "llama", "auto_map": {}, "_attn_implementation": "sdpa", "_attn_implementation_autoset": true});
    write(&root.path().join("config.json"), config.to_string());
    let settings = checkpoint::Settings { allow_remote_code: true, ..settings(root.path()) };
    let checkpoint = checkpoint::resolve(root.path().to_str().unwrap(), &settings, &mut |_| ()).unwrap();
    assert!(checkpoint.notes.iter().any(|note| note.contains("auto_map")), "{:?}", checkpoint.notes);
}

#[test]
fn damaged_weights_report_the_file_and_its_expected_length() {
    let with = |bytes: Vec<u8>| {
        move |f: &Path| {
            whole(f);
            write(&f.join("model.safetensors"), bytes);
        }
    };
    let good = safetensors(&[("a", 3), ("b", 5)]);
    let length = good.len();
    let cut = |end: usize| good[..end].to_vec();
    check(
        with(cut(length - 5)),
        &format!("model/model.safetensors should be {length} bytes by its header, but is {}", length - 5),
        "fetch it again",
    );
    check(
        with([good.as_slice(), b"xx"].concat()),
        &format!("model/model.safetensors should be {length} bytes by its header, but is {}", length + 2),
        "fetch it again",
    );
    check(
        with(cut(20)),
        &format!("model/model.safetensors should be {} bytes by its header, but is 20", length - 32),
        "fetch it again",
    );
    check(
        with(cut(3)),
        "model/model.safetensors is not valid safetensors: it is 3 bytes long, shorter than the length of its header",
        "fetch it again",
    );
    check(
        with(b"version https://git-lfs.github.com/spec/v1\n".to_vec()),
        "model/model.safetensors is not valid safetensors: it is a git-lfs pointer, not the weights; run `git lfs pull` there",
        "fetch it again",
    );
    check(
        with(vec![0xff; 64]),
        "model/model.safetensors is not valid safetensors: its header claims 18446744073709551615 bytes, more than the format allows",
        "fetch it again",
    );
    let lying = String::from_utf8_lossy(&good).replace("[3]", "[4]").into_bytes();
    check(
        with(lying),
        r#"model/model.safetensors is not valid safetensors: tensor `a` has no dtype, shape or offsets that fit each other: {"dtype":"F32","shape":[4],"data_offsets":[0,12]}"#,
        "fetch it again",
    );
}

#[test]
fn an_index_must_agree_with_its_shards() {
    let sharded = |index: serde_json::Value| {
        move |f: &Path| {
            write(&f.join("config.json"), config());
            write(&f.join("model-00001-of-00002.safetensors"), safetensors(&[("a", 3)]));
            write(&f.join("model.safetensors.index.json"), index.to_string());
        }
    };
    check(
        sharded(
            json!({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}),
        ),
        "model/model.safetensors.index.json names files that are missing: model-00002-of-00002.safetensors",
        "fetch the missing shards",
    );
    check(
        sharded(json!({"weight_map": {"z": "model-00001-of-00002.safetensors"}})),
        "model/model.safetensors.index.json places `z` in model-00001-of-00002.safetensors, which does not hold it",
        "different revisions",
    );
    check(
        sharded(json!({"weight_map": {"a": "../../x.safetensors"}})),
        "model/model.safetensors.index.json: places `a` in `../../x.safetensors`, which is not a safetensors file of this folder",
        "fetch the file again",
    );
    check(
        sharded(json!({})),
        "model/model.safetensors.index.json: has no `weight_map` object",
        "fetch the file again",
    );
}

#[test]
fn sources_that_match_nothing_give_the_reason() {
    let root = tempfile::tempdir().unwrap();
    for (given, message) in [
        (
            "gpt 2",
            "`gpt 2` is neither a hub id (owner/name), a folder (./folder), a .gguf file nor synthetic:<model_type>",
        ),
        (
            "synthetic:",
            "`synthetic:` does not read synthetic:<model_type> or synthetic:<model_type>:<variant>",
        ),
        (
            "synthetic:../x",
            "`synthetic:../x` does not read synthetic:<model_type> or synthetic:<model_type>:<variant>",
        ),
        ("./nowhere", "checkpoint folder ./nowhere does not exist"),
        ("a/b/c", "checkpoint folder a/b/c does not exist"),
        ("owner/na--me", "checkpoint folder owner/na--me does not exist"),
        ("nowhere.gguf", "GGUF file nowhere.gguf does not exist"),
    ] {
        assert_eq!(resolve(root.path(), given).unwrap_err().to_string(), message);
    }
    let settings = checkpoint::Settings { revision: Some("main".to_owned()), ..settings(root.path()) };
    let given = root.path().to_str().unwrap();
    let error = checkpoint::resolve(given, &settings, &mut |_| ()).unwrap_err();
    assert!(error.to_string().ends_with("has no revisions, but revision `main` was asked for"), "{error}");
}

#[test]
fn weights_that_two_readers_may_read_differently_are_refused() {
    let header = |text: &str, data: usize| {
        let length = (text.len() as u64).to_le_bytes();
        [&length[..], text.as_bytes(), &vec![0; data]].concat()
    };
    let with = |bytes: Vec<u8>| {
        move |f: &Path| {
            whole(f);
            write(&f.join("model.safetensors"), bytes);
        }
    };
    let one = r#""w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}"#;
    check(
        with(header(&format!("{{{one}, {one}}}"), 4)),
        &format!(
            "model/model.safetensors is not valid safetensors: its header cannot be read: `w` is listed twice at line 1 column {}",
            2 * one.len() + 4
        ),
        "fetch it again",
    );
    check(
        with(header(r#"{"a.weight": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}"#, 4)),
        "model/model.safetensors holds `a.weight` as I32 where floats belong",
        "quantization_config",
    );
    check(
        with(header(&format!("{{\"__metadata__\": [1], {one}}}"), 4)),
        "model/model.safetensors is not valid safetensors: its `__metadata__` is not an object of texts",
        "fetch it again",
    );
    check(
        |f| {
            write(&f.join("config.json"), config());
            write(&f.join("one.safetensors"), safetensors(&[("a", 3)]));
            write(&f.join("two.safetensors"), safetensors(&[("a", 3), ("b", 3)]));
            let index = json!({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}});
            write(&f.join("model.safetensors.index.json"), index.to_string());
        },
        "model/one.safetensors and model/two.safetensors both hold `a`",
        "another checkpoint",
    );
}

#[test]
fn a_file_whose_bytes_are_not_on_disk_is_an_incomplete_download() {
    check(
        |f| {
            whole(f);
            let file = std::fs::File::options().write(true).open(f.join("model.safetensors")).unwrap();
            file.set_len(2 << 30).unwrap();
        },
        "model/model.safetensors is not valid safetensors: only 4096 of its 2147483648 bytes are on disk: its download is not complete",
        "fetch it again",
    );
}

#[test]
fn a_damaged_synthetic_checkpoint_in_the_cache_is_made_again_once_it_is_deleted() {
    let root = tempfile::tempdir().unwrap();
    let found = resolve(root.path(), "synthetic:llama:tiny").unwrap();
    std::fs::remove_file(found.folder.join("config.json")).unwrap();
    let error = resolve(root.path(), "synthetic:llama:tiny").unwrap_err();
    assert!(error.to_string().ends_with("has no config.json"), "{error}");
    assert_eq!(
        error.help().unwrap().to_string(),
        format!("delete {}; the next run makes it again", found.folder.display())
    );
    std::fs::remove_dir_all(&found.folder).unwrap();
    assert_eq!(resolve(root.path(), "synthetic:llama:tiny").unwrap().digest, found.digest);
}
