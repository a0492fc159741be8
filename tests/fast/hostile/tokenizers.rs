//! Tokenizers and templates that overflow the stack, eat memory or loop end their own process, and tfcheck says which.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tfcheck::spec::checkpoint::{Checkpoint, Source};
use tfcheck::spec::inputs::{self, Apart, Fill, Message, Prompt, Spec};

/// A checkpoint whose tokenizer knows two words, and whose chat template is `template`.
fn checkpoint(folder: &Path, pre_tokenizer: &Value, template: &str) -> Checkpoint {
    let tokenizer = folder.join("tokenizer.json");
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [], "post_processor": null, "pre_tokenizer": pre_tokenizer,
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "aaa": 1}, "unk_token": "<unk>"},
    });
    std::fs::write(&tokenizer, json.to_string()).unwrap();
    let config = json!({"chat_template": template});
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    Checkpoint {
        name: "tiny".to_owned(),
        source: Source::Folder(folder.to_owned()),
        revision: None,
        folder: folder.to_owned(),
        config: json!({"model_type": "llama", "vocab_size": 9}),
        model_type: "llama".to_owned(),
        weights: Vec::new(),
        tokenizer: Some(tokenizer),
        digest: String::new(),
        notes: Vec::new(),
    }
}

/// The message of the error of a chat prompt, within twelve seconds.
fn problem(pre_tokenizer: &Value, template: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path(), pre_tokenizer, template);
    let apart = Apart { program: PathBuf::from(env!("CARGO_BIN_EXE_tfcheck")), stop: Arc::default() };
    let message = Message { role: "user".to_owned(), content: "aaa".to_owned() };
    let spec = Spec::Prompts {
        prompts: vec![Prompt::Chat(vec![message])],
        fill: Fill::AsNeeded,
        choices: Vec::new(),
    };
    let begun = Instant::now();
    let made = inputs::Source::open_apart(&checkpoint, &apart).and_then(|source| source.make(&spec));
    assert!(begun.elapsed() < Duration::from_secs(12));
    made.err().map(|error| error.to_string())
}

#[test]
fn foreign_code_that_dies_is_an_error_of_its_file() {
    let plain = json!({"type": "WhitespaceSplit"});
    let content = "{{ messages[0].content }}";
    assert_eq!(problem(&plain, content), None);
    let check = |pre_tokenizer: &Value, template: &str, expected: &[&str]| {
        let message = problem(pre_tokenizer, template).unwrap_or_default();
        assert!(expected.iter().any(|expected| message.contains(expected)), "{message}");
    };
    let lists = format!("{{{{ {}{} }}}}", "[".repeat(20_000), "]".repeat(20_000));
    check(&plain, &lists, &["chat template", "nests too deeply"]);
    let forever = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    check(&plain, forever, &["steps", "does not end"]);
    let doubling = "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    check(&plain, doubling, &["too much memory", "does not end", "steps"]);
    check(&plain, "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", &["recursion", "nests too deeply"]);
    check(&plain, "{{ [[1]]|tojson(indent=4000000000) }}", &["spaces of indent"]);
    let groups = format!("{}a{}", "(?=".repeat(50_000), ")".repeat(50_000));
    let split =
        json!({"type": "Split", "pattern": {"Regex": groups}, "behavior": "Isolated", "invert": false});
    check(&split, content, &["tokenizer"]);
}
