//! Pads sequences of token ids to one batch with mask and positions.

use sha2::{Digest, Sha256};

use super::{Choice, Error, Fill, Inputs, Padding, Prompt, Source};
use crate::spec::machine::hex;

/// One batch of explicit prompts.
pub(super) fn from_prompts(
    source: &Source<'_>,
    prompts: &[Prompt],
    fill: Fill,
    choices: &[String],
) -> Result<Inputs, Error> {
    if prompts.is_empty() {
        return Err(Error::Empty { what: "the list of prompts".to_owned() });
    }
    let mut notes = Vec::new();
    let mut rendered = Vec::new();
    let mut rows = Vec::new();
    for (i, prompt) in prompts.iter().enumerate() {
        let what = || format!("prompt {}", i + 1);
        let (text, add_special_tokens) = match prompt {
            Prompt::Text(text) if text.is_empty() => return Err(Error::Empty { what: what() }),
            Prompt::Text(text) => (text.clone(), true),
            // The template writes the special tokens itself, as in `apply_chat_template`.
            Prompt::Chat(messages) => {
                if messages.is_empty() {
                    return Err(Error::Empty { what: what() });
                }
                source.need_tokenizer(what)?;
                let chat = source.render(messages)?;
                notes.extend(chat.notes);
                (chat.text, false)
            }
        };
        if text.is_empty() {
            return Err(Error::NoToken {
                what: what(),
                reason: "the chat template makes an empty text of it",
            });
        }
        let row = source.encode(&text, add_special_tokens, what)?;
        if row.is_empty() {
            let reason = "the tokenizer makes no token of its text";
            return Err(Error::NoToken { what: what(), reason });
        }
        rows.push(row);
        rendered.push(text);
    }
    notes.sort();
    notes.dedup();
    let mut inputs = from_sequences(source, "prompts".to_owned(), &rows, fill, notes)?;
    inputs.prompts = prompts.to_vec();
    inputs.rendered = rendered;
    inputs.choices = self::choices(source, choices)?;
    for choice in inputs.choices.iter().filter(|choice| choice.tokens > 1) {
        inputs.notes.push(format!(
            "choice `{}` has {} tokens; its probability is that of its first token",
            choice.text, choice.tokens
        ));
    }
    Ok(inputs)
}

/// The tokens of answers.
pub(super) fn choices(source: &Source<'_>, choices: &[String]) -> Result<Vec<Choice>, Error> {
    choices.iter().map(|choice| resolve(source, choice)).collect()
}

fn resolve(source: &Source<'_>, choice: &str) -> Result<Choice, Error> {
    let problem = |reason: &str| Error::Choice { choice: choice.to_owned(), reason: reason.to_owned() };
    if choice.is_empty() {
        return Err(problem("is empty"));
    }
    let ids = source.encode(choice, false, || format!("choice `{choice}`"))?;
    let id = ids
        .first()
        .and_then(|id| u32::try_from(*id).ok())
        .ok_or_else(|| problem("has no token in this tokenizer"))?;
    if source.checkpoint.number("vocab_size").is_some_and(|size| u64::from(id) >= size) {
        return Err(problem("starts with a token that the model does not have"));
    }
    Ok(Choice { text: choice.to_owned(), id, tokens: ids.len() })
}

/// One batch of explicit sequences, with the padding that `fill` asks for.
pub(super) fn from_sequences(
    source: &Source<'_>,
    name: String,
    rows: &[Vec<i64>],
    fill: Fill,
    notes: Vec<String>,
) -> Result<Inputs, Error> {
    if let Some(empty) = rows.iter().position(Vec::is_empty) {
        return Err(Error::Empty { what: format!("sequence {} of `{name}`", empty + 1) });
    }
    let longest = rows.iter().map(Vec::len).max();
    let (Some(longest), Some(shortest)) = (longest, rows.iter().map(Vec::len).min()) else {
        return Err(Error::Empty { what: format!("the list of {name}") });
    };
    let (seq, padding) = match fill {
        Fill::Never if shortest != longest => return Err(Error::Lengths { shortest, longest }),
        Fill::AsNeeded | Fill::Never => (longest, Padding::Right),
        Fill::Always(side) if shortest != longest => (longest, side),
        Fill::Always(side) => (longest + (longest / 4).max(1), side),
    };
    pad(source, name, rows, seq, padding, notes)
}

/// Pads sequences to `seq` tokens, at least the longest one's, and checks them against the model.
pub(super) fn pad(
    source: &Source<'_>,
    name: String,
    rows: &[Vec<i64>],
    seq: usize,
    padding: Padding,
    notes: Vec<String>,
) -> Result<Inputs, Error> {
    if let Some(vocab_size) = source.checkpoint.number("vocab_size") {
        for (i, row) in rows.iter().enumerate() {
            if let Some(id) =
                row.iter().copied().find(|id| u64::try_from(*id).map_or(true, |id| id >= vocab_size))
            {
                return Err(Error::OutOfVocabulary {
                    what: format!("row {} of `{name}`", i + 1),
                    id,
                    vocab_size,
                });
            }
        }
    }
    let (pad_id, pad_note) = source.pad_id();
    let mut inputs = lay_out(name, rows, seq, padding, pad_id);
    inputs.notes.extend(notes);
    inputs.notes.extend(pad_note.filter(|_| inputs.padding.is_some()));
    Ok(inputs)
}

/// Pads sequences to `seq` tokens. Positions count a row's real tokens from 0 and are 0 at padding, as `generate` of
/// transformers 5.10 and later computes them (generation/utils.py, `cumsum(-1) - 1`, padding filled with 0; versions
/// up to 5.0 fill with 1, which no real token can see).
pub(super) fn lay_out(name: String, rows: &[Vec<i64>], seq: usize, padding: Padding, pad_id: i64) -> Inputs {
    let mut input_ids = Vec::with_capacity(rows.len() * seq);
    let mut attention_mask = Vec::with_capacity(rows.len() * seq);
    let mut position_ids = Vec::with_capacity(rows.len() * seq);
    for row in rows {
        let fill = seq - row.len();
        let (before, after) = match padding {
            Padding::Left => (fill, 0),
            Padding::Right => (0, fill),
        };
        let put = |target: &mut Vec<i64>, filler: i64, real: &mut dyn Iterator<Item = i64>| {
            target.extend(std::iter::repeat_n(filler, before));
            target.extend(real);
            target.extend(std::iter::repeat_n(filler, after));
        };
        put(&mut input_ids, pad_id, &mut row.iter().copied());
        put(&mut attention_mask, 0, &mut row.iter().map(|_| 1));
        put(&mut position_ids, 0, &mut (0..row.len() as i64));
    }
    let is_padded = attention_mask.contains(&0);
    let mut inputs = Inputs {
        name,
        input_ids,
        attention_mask,
        position_ids,
        batch: rows.len(),
        seq,
        padding: is_padded.then_some(padding),
        prompts: Vec::new(),
        rendered: Vec::new(),
        texts: Vec::new(),
        choices: Vec::new(),
        own_positions: false,
        tensors: super::Tensors::new(),
        digest: String::new(),
        notes: Vec::new(),
    };
    inputs.digest = digest(&inputs);
    inputs
}

/// SHA-256 over everything that a model receives.
pub(super) fn digest(inputs: &Inputs) -> String {
    let mut hasher = Sha256::new();
    hasher.update(format!("tfcheck inputs 1\n{} {}\n", inputs.batch, inputs.seq));
    if inputs.own_positions {
        hasher.update("without position_ids\n");
    }
    for values in [&inputs.input_ids, &inputs.attention_mask, &inputs.position_ids] {
        for value in values {
            hasher.update(value.to_le_bytes());
        }
    }
    for (name, tensor) in &inputs.tensors {
        hasher.update(format!("{name} {:?} {:?}\n", tensor.dtype, tensor.shape));
        hasher.update(&tensor.bytes);
    }
    hex(&hasher.finalize())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Padding, lay_out};

    fn rows() -> impl Strategy<Value = Vec<Vec<i64>>> {
        proptest::collection::vec(proptest::collection::vec(1i64..1000, 1..20), 1..6)
    }

    proptest! {
        #[test]
        fn padding_keeps_every_row_and_marks_exactly_the_rest(
            rows in rows(), more in 0_usize..3, left in any::<bool>(),
        ) {
            let padding = if left { Padding::Left } else { Padding::Right };
            let seq = rows.iter().map(Vec::len).max().unwrap() + more;
            let inputs = lay_out(String::new(), &rows, seq, padding, 0);
            prop_assert_eq!((inputs.batch, inputs.seq), (rows.len(), seq));
            for (i, row) in rows.iter().enumerate() {
                let of = |values: &[i64]| values[i * seq..(i + 1) * seq].to_vec();
                let (ids, mask, positions) = (of(&inputs.input_ids), of(&inputs.attention_mask), of(&inputs.position_ids));
                let begin = if left { seq - row.len() } else { 0 };
                prop_assert_eq!(&ids[begin..begin + row.len()], &row[..]);
                for j in 0..seq {
                    let is_real = (begin..begin + row.len()).contains(&j);
                    prop_assert_eq!(mask[j], i64::from(is_real));
                    // cumsum(mask) - 1, padding filled with 0.
                    let expected = if is_real { mask[..=j].iter().sum::<i64>() - 1 } else { 0 };
                    prop_assert_eq!(positions[j], expected);
                    if !is_real {
                        prop_assert_eq!(ids[j], 0);
                    }
                }
            }
            prop_assert_eq!(inputs.padding.is_some(), rows.iter().any(|row| row.len() < seq));
        }

        #[test]
        fn the_digest_tells_sides_and_ids_apart(rows in rows()) {
            let seq = rows.iter().map(Vec::len).max().unwrap();
            let left = lay_out(String::new(), &rows, seq, Padding::Left, 0);
            let right = lay_out(String::new(), &rows, seq, Padding::Right, 0);
            prop_assert_eq!(left.digest == right.digest, left.padding.is_none());
            let mut other = rows.clone();
            other[0][0] += 1;
            prop_assert_ne!(lay_out(String::new(), &other, seq, Padding::Left, 0).digest, left.digest);
        }
    }
}
