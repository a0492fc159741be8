//! Tests how prompts, templates and sweeps become frozen batches.

#![allow(clippy::unwrap_used, reason = "a test whose preparation fails has failed")]

use std::path::{Path, PathBuf};

use crate::checkpoint_files::write;
use serde_json::{Value, json};
use tfcheck::spec::checkpoint::{Checkpoint, Source};
use tfcheck::spec::inputs::{self, Error, Fill, Inputs, Message, Padding, Prompt, Spec};

/// A checkpoint whose tokenizer gives one token per word, preceded by `<s>`.
fn checkpoint(folder: &Path, tokenizer: bool) -> Checkpoint {
    let vocab = json!({"<s>": 0, "</s>": 1, "<unk>": 2, "the": 3, "light": 4, "of": 5, "one": 6, "small": 7, "lamp": 8});
    let path = folder.join("tokenizer.json");
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    });
    write(&path, json.to_string());
    Checkpoint {
        name: "tiny".to_owned(),
        source: Source::Folder(folder.to_owned()),
        revision: None,
        folder: folder.to_owned(),
        config: json!({"model_type": "llama", "vocab_size": 9, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": [1]}),
        model_type: "llama".to_owned(),
        weights: Vec::new(),
        tokenizer: tokenizer.then_some(path),
        digest: String::new(),
        notes: Vec::new(),
    }
}

fn prompts(texts: &[&str], fill: Fill, choices: &[&str]) -> Spec {
    let prompts = texts.iter().map(|text| Prompt::Text((*text).to_owned())).collect();
    Spec::Prompts { prompts, fill, choices: choices.iter().map(|choice| (*choice).to_owned()).collect() }
}

fn lengths(lengths: &[usize], batches: &[usize], paddings: &[Option<Padding>]) -> Spec {
    Spec::Lengths {
        lengths: lengths.to_vec(),
        batches: batches.to_vec(),
        paddings: paddings.to_vec(),
        text: None,
        seed: 7,
    }
}

fn make(spec: &Spec, tokenizer: bool) -> Result<Vec<Inputs>, Error> {
    let folder = tempfile::tempdir().unwrap();
    inputs::make(spec, &checkpoint(folder.path(), tokenizer))
}

#[test]
fn prompts_become_one_batch_with_masks_and_positions() {
    let inputs = make(
        &prompts(&["the light of one", "lamp"], Fill::Always(Padding::Left), &["lamp", "small lamp"]),
        true,
    )
    .unwrap()
    .remove(0);
    assert_eq!((inputs.batch, inputs.seq, inputs.padding), (2, 5, Some(Padding::Left)));
    // The end token is the padding, because the config has no padding token.
    assert_eq!(inputs.input_ids, [0, 3, 4, 5, 6, 1, 1, 1, 0, 8]);
    assert_eq!(inputs.attention_mask, [1, 1, 1, 1, 1, 0, 0, 0, 1, 1]);
    assert_eq!(inputs.position_ids, [0, 1, 2, 3, 4, 0, 0, 0, 0, 1]);
    assert_eq!(
        inputs.choices.iter().map(|choice| (choice.id, choice.tokens)).collect::<Vec<_>>(),
        [(8, 1), (7, 2)]
    );
    assert_eq!(
        inputs.notes,
        ["choice `small lamp` has 2 tokens; its probability is that of its first token"]
    );
}

#[test]
fn a_padding_side_pads_a_single_prompt_and_token_ids_of_one_length() {
    let one = make(&prompts(&["the the the the"], Fill::Always(Padding::Left), &[]), true).unwrap().remove(0);
    assert_eq!((one.seq, one.padding), (6, Some(Padding::Left)));
    assert_eq!(one.attention_mask, [0, 1, 1, 1, 1, 1]);
    assert_eq!(one.position_ids, [0, 0, 1, 2, 3, 4]);
    let ids = |sequences: &[&[i64]], fill| {
        let sequences = sequences.iter().map(|ids| ids.to_vec()).collect();
        make(&Spec::TokenIds { sequences, fill }, false).map(|mut made| made.remove(0))
    };
    let two = ids(&[&[3, 4], &[5, 6]], Fill::Always(Padding::Right)).unwrap();
    assert_eq!(two.attention_mask, [1, 1, 0, 1, 1, 0]);
    let bare = ids(&[&[3, 4], &[5, 6]], Fill::Never).unwrap();
    assert_eq!((bare.input_ids, bare.padding), (vec![3, 4, 5, 6], None));
    let error = ids(&[&[3, 4], &[5]], Fill::Never).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the sequences have 1 to 2 tokens, and `padding = [\"none\"]` excludes padding"
    );
    let error = ids(&[&[3], &[]], Fill::AsNeeded).unwrap_err();
    assert_eq!(error.to_string(), "sequence 2 of `token_ids` is empty");
    let error = ids(&[&[3, 4000]], Fill::AsNeeded).unwrap_err().to_string();
    assert!(error.contains("token id 4000"), "{error}");
}

#[test]
fn a_padding_token_outside_the_vocabulary_is_token_0_with_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let mut small = checkpoint(folder.path(), false);
    small.config["pad_token_id"] = json!(50_256);
    let spec = |fill| Spec::TokenIds { sequences: vec![vec![3, 4], vec![5]], fill };
    let made = inputs::make(&spec(Fill::AsNeeded), &small).unwrap().remove(0);
    assert_eq!(made.input_ids, [3, 4, 5, 0]);
    assert!(made.notes[0].contains("pad_token_id 50256 is outside"), "{:?}", made.notes);
}

#[test]
fn withheld_positions_count_padding_and_change_the_digest() {
    let mut made =
        make(&prompts(&["the light", "lamp"], Fill::Always(Padding::Left), &[]), true).unwrap().remove(0);
    let before = made.digest.clone();
    made.withhold_positions();
    assert_eq!(made.position_ids[..made.seq], (0..made.seq as i64).collect::<Vec<_>>());
    assert_ne!(made.digest, before);
    let folder = tempfile::tempdir().unwrap();
    made.save(folder.path()).unwrap();
    assert!(inputs::load(folder.path()).unwrap().own_positions);
}

#[test]
fn inputs_that_cannot_be_made_give_the_reason() {
    let check = |spec: Spec, tokenizer: bool, message: &str| {
        assert_eq!(make(&spec, tokenizer).unwrap_err().to_string(), message);
    };
    check(prompts(&[], Fill::AsNeeded, &[]), true, "the list of prompts is empty");
    check(prompts(&["the", ""], Fill::AsNeeded, &[]), true, "prompt 2 is empty");
    check(prompts(&["the"], Fill::AsNeeded, &[""]), true, "choice `` is empty");
    check(prompts(&["the"], Fill::AsNeeded, &["  "]), true, "choice `  ` has no token in this tokenizer");
    check(
        prompts(&["the"], Fill::AsNeeded, &[]),
        false,
        "checkpoint `tiny` has no tokenizer.json, so prompt 1 cannot be tokenised",
    );
    check(lengths(&[], &[1], &[None]), true, "the list of lengths is empty");
    check(lengths(&[4], &[0], &[None]), true, "one of the batch sizes is empty");
    check(lengths(&[4], &[1], &[]), true, "the list of paddings is empty");

    let folder = tempfile::tempdir().unwrap();
    let mut small = checkpoint(folder.path(), true);
    small.config["vocab_size"] = json!(8);
    let error = inputs::make(&prompts(&["the lamp"], Fill::AsNeeded, &[]), &small).unwrap_err();
    assert_eq!(error.to_string(), "row 1 of `prompts` contains token id 8, but the vocabulary has 8 tokens");
    let error = inputs::make(&prompts(&["the"], Fill::AsNeeded, &["lamp"]), &small).unwrap_err();
    assert_eq!(error.to_string(), "choice `lamp` starts with a token that the model does not have");
}

#[test]
fn a_sweep_makes_every_combination_once() {
    let sides = [None, Some(Padding::Left), Some(Padding::Right)];
    let made = make(&lengths(&[4, 6], &[1, 3], &sides), true).unwrap();
    let names: Vec<_> = made.iter().map(|inputs| inputs.name.as_str()).collect();
    let expected =
        ["1", "1_left", "1_right", "3", "3_left", "3_right"].map(|name| format!("seq4_batch{name}"));
    assert_eq!(names[..6], expected);
    assert_eq!(names[6..], expected.map(|name| name.replace("seq4", "seq6")));
    for inputs in &made {
        let rows: Vec<i64> = inputs.attention_mask.chunks(inputs.seq).map(|row| row.iter().sum()).collect();
        let expected: Vec<i64> = match (inputs.seq, inputs.batch, inputs.padding) {
            (seq, batch, None) => vec![seq as i64; batch],
            // A quarter of the length, rounded down, and at least one token.
            (seq, 1, Some(_)) => vec![seq as i64 - 1],
            (4, ..) => vec![4, 4, 3],
            _ => vec![6, 5, 4],
        };
        assert_eq!(rows, expected, "{}", inputs.name);
        // The first real token of every row is the begin token, with padding on either side.
        for (ids, positions) in
            inputs.input_ids.chunks(inputs.seq).zip(inputs.position_ids.chunks(inputs.seq))
        {
            let begin = positions.iter().rposition(|position| *position == 0).unwrap();
            let begin = if inputs.padding == Some(Padding::Right) { 0 } else { begin };
            assert_eq!(ids[begin], 0, "{}", inputs.name);
        }
    }
}

#[test]
fn without_a_tokenizer_ids_are_drawn_from_the_seed_and_never_special() {
    let spec =
        |seed| Spec::Lengths { lengths: vec![512], batches: vec![2], paddings: vec![None], text: None, seed };
    let (a, b, c) =
        (make(&spec(7), false).unwrap(), make(&spec(7), false).unwrap(), make(&spec(8), false).unwrap());
    assert_eq!(a, b);
    assert_ne!(a[0].digest, c[0].digest);
    assert_ne!(a[0].input_ids[..512], a[0].input_ids[512..], "rows differ");
    // Ids 0 and 1 are the special begin and end tokens; the other seven all occur.
    for id in 0..9 {
        assert_eq!(a[0].input_ids.contains(&id), id > 1, "{id}");
    }
}

#[test]
fn a_saved_batch_is_read_back_and_a_changed_one_refused() {
    let folder = tempfile::tempdir().unwrap();
    let inputs = make(&prompts(&["the light", "lamp"], Fill::AsNeeded, &["lamp"]), true).unwrap().remove(0);
    let saved = inputs.save(folder.path()).unwrap();
    assert_eq!(inputs::load(folder.path()).unwrap(), inputs);
    let mut files: Vec<_> =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["inputs.json", "inputs.safetensors"], "no temporary file is left");

    let mut bytes = std::fs::read(&saved.safetensors).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    write(&saved.safetensors, bytes);
    let error = inputs::load(folder.path()).unwrap_err();
    assert!(error.to_string().contains("does not have the digest"), "{error}");
}

fn conversation() -> Vec<Message> {
    [
        ("system", " Be <brief>. "),
        ("user", " Hi there \"you\" ü"),
        ("assistant", " Hello. "),
        ("user", "Bye now"),
    ]
    .map(|(role, content)| Message { role: role.to_owned(), content: content.to_owned() })
    .to_vec()
}

fn template(template: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let config: Value =
        json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": template});
    write(&folder.path().join("tokenizer_config.json"), config.to_string());
    let path = folder.path().to_owned();
    (folder, path)
}

#[test]
fn a_template_renders_as_transformers_renders_it() {
    let (_folder, path) = template(include_str!("inputs_template.jinja"));
    // Printed by `render_jinja_template` of transformers 5.23 for the same conversation.
    let expected = "<s><user>Be <brief>.\nHI TH|ü\n<model>Hello.</s>\n<user>BYE N|now\n[{\"role\": \"system\", \"content\": \" Be <brief>. \"}, {\"role\": \"user\", \"content\": \" Hi there \\\"you\\\" ü\"}, {\"role\": \"assistant\", \"content\": \" Hello. \"}, {\"role\": \"user\", \"content\": \"Bye now\"}] {\n  \"n\": 3,\n  \"é\": [\n    1.5,\n    true,\n    null\n  ]\n} a;b role=6 content=13<model>";
    assert_eq!(inputs::render(&path, &conversation()).unwrap().text, expected);
}

#[test]
fn a_template_that_refuses_is_quoted() {
    let (_folder, path) = template(include_str!("inputs_template.jinja"));
    let error = inputs::render(&path, &conversation()[2..]).unwrap_err();
    assert!(error.to_string().contains("roles must alternate user/assistant/user/assistant/..."), "{error}");
}

#[test]
fn a_template_file_wins_and_todays_date_is_noted() {
    let (_folder, path) = template("from the config");
    write(&path.join("chat_template.jinja"), "{{ strftime_now('%Y') }}");
    let chat = inputs::render(&path, &conversation()).unwrap();
    assert!(chat.text.len() == 4 && chat.text.starts_with('2'), "{}", chat.text);
    assert_eq!(chat.notes.len(), 1);
    std::fs::remove_file(path.join("chat_template.jinja")).unwrap();
    assert_eq!(inputs::render(&path, &conversation()).unwrap().text, "from the config");
    std::fs::remove_file(path.join("tokenizer_config.json")).unwrap();
    assert!(
        inputs::render(&path, &conversation()).unwrap_err().to_string().ends_with("has no chat template")
    );
}

#[test]
fn a_chat_prompt_gets_no_second_begin_token() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint(folder.path(), true);
    let config = json!({"bos_token": "<s>", "chat_template": [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ bos_token }} {{ messages[0].content }}"}]});
    write(&folder.path().join("tokenizer_config.json"), config.to_string());
    let message = Message { role: "user".to_owned(), content: "one lamp".to_owned() };
    let spec = Spec::Prompts {
        prompts: vec![Prompt::Chat(vec![message])],
        fill: Fill::AsNeeded,
        choices: Vec::new(),
    };
    let inputs = inputs::make(&spec, &checkpoint).unwrap().remove(0);
    assert_eq!(inputs.input_ids, [0, 6, 8]);
    assert_eq!(inputs.rendered, ["<s> one lamp"]);
}
