//! Prefill and decoding through the KV cache, and each version's own tokenizer.

use std::sync::atomic::AtomicBool;

use reference::WorkerEnd;
use reference::protocol::{Attention, Mode, Reply, Request, Tokenize};
use serde_json::json;

use crate::tiny::{self, LIMIT, distance, environments, version};
use crate::{LONG, both_rows, case, newest};

#[test]
fn cached_logits_equal_full_sequence_logits_in_every_version() {
    let case = case(|_| ());
    for environment in environments() {
        for attention in [Attention::Eager, Attention::Sdpa] {
            let cell = case.cell(environment, Mode::Eager, attention);
            let whole = both_rows(&cell.run().unwrap().logits);
            // The first sequence has 5 positions of padding on the left: some prefills end within it, others
            // beyond it.
            for prefill in [1, 3, 8, LONG - 1] {
                let outcome = cell.run_with(Some(prefill)).unwrap();
                assert_eq!(outcome.forwarded.prefill, Some(prefill));
                assert_eq!(outcome.forwarded.shape, [2, LONG, tiny::VOCABULARY]);
                let decoded = both_rows(&outcome.logits);
                // The same f32 sums in another order, as between eager and sdpa.
                let found = distance(&decoded, &whole);
                assert!(found < 1e-5, "{} {attention:?} prefill {prefill}: {found:e}", version(environment));
            }
        }
    }
}

#[test]
fn an_unsupported_decode_has_a_reason() {
    let case = case(|_| ());
    let check = |mode: Mode, prefill: usize, expected: &str| {
        let cell = case.cell(newest(), mode, Attention::Sdpa);
        let Err(WorkerEnd::Unsupported(failed) | WorkerEnd::Exception(failed)) = cell.run_with(Some(prefill))
        else {
            panic!("{expected}")
        };
        assert!(failed.message.contains(expected), "{}", failed.message);
    };
    check(Mode::Compiled, 3, "not decoded token by token");
    check(Mode::Eager, LONG, "where sequences have 12");
    check(Mode::Eager, 0, "a prefill of 0");
}

#[test]
fn every_version_loads_the_checkpoint_tokenizer() {
    let case = case(|_| ());
    let vocabulary = ["<unk>", "<s>", "</s>", "the", "cat", "sat"];
    let numbered: serde_json::Map<_, _> =
        vocabulary.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": numbered, "unk_token": "<unk>"},
    });
    let write = |name: &str, value: serde_json::Value| {
        std::fs::write(case.checkpoint.join(name), value.to_string()).unwrap();
    };
    write("tokenizer.json", tokenizer);
    write(
        "tokenizer_config.json",
        json!({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "model_max_length": 128}),
    );
    for environment in environments() {
        let _turn = tiny::turn();
        let cell = case.cell(environment, Mode::Eager, Attention::Sdpa);
        let mut worker = cell.start(case.folder.path());
        let request = Request::Tokenize(Tokenize {
            checkpoint: case.checkpoint.clone(),
            texts: vec!["the cat sat".into(), "sat the dog".into()],
            add_special_tokens: false,
        });
        let reply = worker.ask(&request, LIMIT, &AtomicBool::new(false)).unwrap();
        let Reply::Tokenized(tokenized) = reply else { panic!("{reply:?}") };
        assert_eq!(tokenized.ids, [[3, 4, 5], [5, 3, 0]], "{}", version(environment));
    }
}
