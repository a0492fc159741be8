//! The checks of `[inputs]`: each form excludes the others.

use compare::units::count;

use super::{Checkpoint, CheckpointSource, Found, InputsConfig, Step};

impl Found {
    pub(super) fn inputs(&mut self, inputs: &InputsConfig, checkpoints: &[Checkpoint]) {
        if inputs.retrieval {
            self.no_sweep(inputs, "retrieval", "the retrieval set is one batch of its own");
            let others = [
                ("prompts", inputs.prompts.is_some()),
                ("token_ids", inputs.token_ids.is_some()),
                ("tensors", inputs.tensors.is_some()),
                ("images", inputs.images.is_some()),
                ("audio", inputs.audio.is_some()),
            ];
            self.without("retrieval", &others, "each of them is the whole batch: keep one");
            self.need_tokenizer("retrieval", checkpoints);
        }
        if let Some(prompts) = &inputs.prompts {
            self.no_sweep(
                inputs,
                "prompts",
                "prompts are one batch of their own; a sweep has `lengths`, `batch` and `text` instead",
            );
            let others = [("token_ids", inputs.token_ids.is_some())];
            self.without("prompts", &others, "each of them is the whole batch: keep one");
            self.need_tokenizer("prompts", checkpoints);
            self.not_empty(at!["inputs", "prompts"], prompts);
            for (index, prompt) in prompts.iter().enumerate() {
                if prompt.trim().is_empty() {
                    self.value(at!["inputs", "prompts", index], "an empty prompt", "");
                }
            }
        } else {
            if let Some(sequences) = &inputs.token_ids {
                self.token_ids(inputs, sequences);
            }
            for (field, present) in [("chat", inputs.chat), ("choices", inputs.choices.is_some())] {
                if present {
                    self.field(
                        at!["inputs", field],
                        format!("`{field}` without `prompts`"),
                        "add `prompts = [\"…\"]`",
                    );
                }
            }
        }
        for (field, files) in [("images", &inputs.images), ("audio", &inputs.audio)] {
            let Some(files) = files else { continue };
            self.not_empty(at!["inputs", field], files);
            self.no_sweep(inputs, field, "the processor makes the whole batch; a sweep makes its own");
            let others = [("token_ids", inputs.token_ids.is_some()), ("tensors", inputs.tensors.is_some())];
            self.without(field, &others, "the processor makes the whole batch: keep one of the two");
        }
        if inputs.tensors.is_some() {
            self.no_sweep(inputs, "tensors", "the file has the whole batch; a sweep makes its own");
            let others = [("prompts", inputs.prompts.is_some()), ("token_ids", inputs.token_ids.is_some())];
            self.without("tensors", &others, "the file has the whole batch: keep one of the two");
        }
        for (field, numbers) in [("lengths", &inputs.lengths), ("batch", &inputs.batch)] {
            let Some(numbers) = numbers else { continue };
            self.list(at!["inputs", field], numbers);
            for (index, number) in numbers.iter().enumerate() {
                self.positive(at!["inputs", field, index], *number as f64);
            }
        }
        if let Some(prefill) = &inputs.prefill {
            self.list(at!["inputs", "prefill"], prefill);
            let longest = inputs.lengths.as_ref().map_or(Some(128), |lengths| lengths.iter().copied().max());
            for (index, tokens) in prefill.iter().enumerate() {
                self.positive(at!["inputs", "prefill", index], *tokens as f64);
                if longest.is_some_and(|longest| *tokens >= longest) {
                    self.value(
                        at!["inputs", "prefill", index],
                        format!("no length is longer than the prefill of {}", count(*tokens, "token")),
                        "use fewer tokens than the longest of `lengths`, so that tokens remain to be decoded",
                    );
                }
            }
        }
        if let Some(choices) = &inputs.choices {
            self.list(at!["inputs", "choices"], choices);
            for (index, choice) in choices.iter().enumerate() {
                if choice.is_empty() {
                    self.value(at!["inputs", "choices", index], "an empty choice", "");
                }
            }
        }
        if let Some(padding) = &inputs.padding {
            self.list(at!["inputs", "padding"], padding);
        }
    }

    /// The texts of `field` are tokenised, which a synthetic checkpoint cannot do.
    fn need_tokenizer(&mut self, field: &'static str, checkpoints: &[Checkpoint]) {
        let is_synthetic = |known: &&Checkpoint| matches!(known.source, CheckpointSource::Synthetic { .. });
        if let Some(checkpoint) = checkpoints.iter().find(is_synthetic) {
            self.field(
                at!["inputs", field],
                format!(
                    "`{}` has no tokenizer, which {field} need{}",
                    checkpoint.source,
                    if field == "prompts" { "" } else { "s" }
                ),
                "use `lengths`, or list checkpoints that have a tokenizer under [[checkpoints]]",
            );
        }
    }

    /// The fields of a sweep exclude `form`, which lists one batch.
    fn no_sweep(&mut self, inputs: &InputsConfig, form: &str, hint: &str) {
        let fields = [
            ("lengths", inputs.lengths.is_some()),
            ("batch", inputs.batch.is_some()),
            ("prefill", inputs.prefill.is_some()),
            ("text", inputs.text.is_some()),
        ];
        self.without(form, &fields, hint);
    }

    /// The fields that `form` excludes, each with whether it is there.
    fn without(&mut self, form: &str, fields: &[(&'static str, bool)], hint: &str) {
        for (field, _) in fields.iter().filter(|(_, present)| *present) {
            self.field(at!["inputs", *field], format!("`{field}` together with `{form}`"), hint);
        }
    }

    fn token_ids(&mut self, inputs: &InputsConfig, sequences: &[Vec<u32>]) {
        self.no_sweep(
            inputs,
            "token_ids",
            "token ids are one batch of their own; a sweep has `lengths`, `batch` and `text` instead",
        );
        self.not_empty(at!["inputs", "token_ids"], sequences);
        for (index, sequence) in sequences.iter().enumerate() {
            if sequence.is_empty() {
                self.value(at!["inputs", "token_ids", index], "a sequence without tokens", "");
            }
        }
    }
}
