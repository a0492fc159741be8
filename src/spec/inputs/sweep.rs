//! Batches of given lengths and sizes, from a text or, without a tokenizer, from seeded token ids.

use std::collections::BTreeSet;
use std::path::Path;

use bounds::limits::{TEXT_BYTES, VOCAB_SIZE};

use super::{Error, Inputs, Padding, Source, batch, modal};

/// English prose written for this purpose, so that a sweep over lengths needs no other file.
const TEXT: &str = include_str!("text.txt");

/// The tokens that sequences are cut from.
struct Stream {
    /// The begin tokens of every sequence; empty if the tokenizer adds none.
    prefix: Vec<i64>,
    /// Tokens in a ring, from which sequences are cut.
    tokens: Vec<i64>,
    note: String,
}

/// One batch for every combination.
pub(super) fn from_lengths(
    source: &Source<'_>,
    lengths: &[usize],
    batches: &[usize],
    paddings: &[Option<Padding>],
    text: Option<&Path>,
    seed: u64,
) -> Result<Vec<Inputs>, Error> {
    for (what, is_empty, has_zero) in [
        ("lengths", lengths.is_empty(), lengths.contains(&0)),
        ("batch sizes", batches.is_empty(), batches.contains(&0)),
        ("paddings", paddings.is_empty(), false),
    ] {
        if is_empty || has_zero {
            let what = if is_empty { format!("the list of {what}") } else { format!("one of the {what}") };
            return Err(Error::Empty { what });
        }
    }
    let longest = lengths.iter().copied().max().unwrap_or_default();
    let stream = match (source.has_tokenizer(), text) {
        (true, _) => from_text(source, text)?,
        (false, Some(path)) => {
            return Err(Error::NoTokenizer {
                checkpoint: source.checkpoint.name.clone(),
                what: path.display().to_string(),
            });
        }
        (false, None) => from_seed(source, seed, longest)?,
    };
    let mut made: Vec<Inputs> = Vec::new();
    for &length in lengths {
        for &rows in batches {
            for &padding in paddings {
                let inputs = one(source, &stream, length, rows, padding)?;
                // One token has no room for padding, so that its paddings coincide.
                if made.iter().all(|before| before.name != inputs.name) {
                    made.push(inputs);
                }
            }
        }
    }
    Ok(made)
}

fn one(
    source: &Source<'_>,
    stream: &Stream,
    length: usize,
    rows: usize,
    padding: Option<Padding>,
) -> Result<Inputs, Error> {
    let padding = padding.filter(|_| rows * length > 1);
    let total = stream.tokens.len();
    let mut notes = vec![stream.note.clone()];
    let wanted = length.saturating_sub(stream.prefix.len());
    if wanted > total {
        notes.push(format!("the text's {total} tokens are repeated to fill {length}"));
    }
    let taken = (0..rows).map(|row| {
        let length = match padding {
            None => length,
            // A batch of one is padded by a quarter of its length.
            Some(_) if rows == 1 => length - (length / 4).max(1),
            // The last sequence is about half as long as the first.
            Some(_) => length - row * length / (2 * rows),
        };
        let start = row * total / rows;
        let tokens = stream.tokens.iter().cycle().skip(start);
        stream.prefix.iter().chain(tokens).take(length).copied().collect::<Vec<_>>()
    });
    let side = match padding {
        None => "",
        Some(Padding::Left) => "_left",
        Some(Padding::Right) => "_right",
    };
    let name = format!("seq{length}_batch{rows}{side}");
    batch::pad(source, name, &taken.collect::<Vec<_>>(), length, padding.unwrap_or(Padding::Right), notes)
}

/// The text that sequences are cut from, and its name in notes.
pub(super) fn read(path: Option<&Path>) -> Result<(String, String), Error> {
    let Some(path) = path else { return Ok((TEXT.to_owned(), "tfcheck's own text".to_owned())) };
    let text = bounds::file::read_text(path, TEXT_BYTES).map_err(|error| Error::Io {
        action: "read",
        path: path.to_owned(),
        source: error,
    })?;
    Ok((text, path.display().to_string()))
}

fn from_text(source: &Source<'_>, path: Option<&Path>) -> Result<Stream, Error> {
    let (text, name) = read(path)?;
    let tokens = source.encode(&text, false, || name.clone())?;
    if tokens.is_empty() {
        return Err(Error::Empty { what: name });
    }
    // The special tokens around an empty text are those before a full one; an end token is left out because sequences are
    // cut from the middle of a text.
    let ends = source.ids("eos_token_id");
    let prefix =
        source.encode("", true, || name.clone())?.into_iter().filter(|id| !ends.contains(id)).collect();
    Ok(Stream { prefix, tokens, note: format!("token ids of {name}; sequences start at different places") })
}

/// Token ids drawn uniformly from the vocabulary without its special ids.
fn from_seed(source: &Source<'_>, seed: u64, longest: usize) -> Result<Stream, Error> {
    let too_short =
        |what: String| Error::TooShort { what, help: "correct `vocab_size` in config.json".to_owned() };
    let vocab_size = source
        .checkpoint
        .number("vocab_size")
        .or_else(|| modal::vocab_size(&source.checkpoint.config))
        // FSMT, which translates into another vocabulary.
        .or_else(|| source.checkpoint.number("src_vocab_size"))
        .ok_or_else(|| too_short("config.json has no `vocab_size` to draw token ids from".to_owned()))?;
    VOCAB_SIZE.check(vocab_size).map_err(|exceeded| too_short(format!("config.json claims {exceeded}")))?;
    let special: BTreeSet<i64> =
        ["bos_token_id", "eos_token_id", "pad_token_id"].iter().flat_map(|key| source.ids(key)).collect();
    let allowed: Vec<i64> = (0..vocab_size as i64).filter(|id| !special.contains(id)).collect();
    if allowed.is_empty() {
        return Err(too_short(format!("a vocabulary of {vocab_size} has only special token ids")));
    }
    let mut state = seed;
    let count = longest.max(1024) * 2;
    let tokens = (0..count).map(|_| {
        // Multiply-shift: uniform over the ids to within 2^-40 for any real vocabulary.
        let index = (u128::from(split_mix(&mut state)) * allowed.len() as u128) >> 64;
        allowed[index as usize]
    });
    Ok(Stream {
        prefix: Vec::new(),
        tokens: tokens.collect(),
        note: format!("token ids drawn with seed {seed}: the checkpoint has no tokenizer"),
    })
}

/// SplitMix64 (Steele, Lea and Flood 2014, the reference constants): the same numbers on every machine.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::{TEXT, split_mix};

    #[test]
    fn split_mix_matches_its_published_test_vector() {
        // First outputs for seed 1234567 (Rosetta Code's test vector of splitmix64.c).
        let mut state = 1_234_567;
        let drawn: Vec<_> = (0..3).map(|_| split_mix(&mut state)).collect();
        assert_eq!(drawn, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn the_text_is_long_enough_for_a_thousand_tokens() {
        // English prose has at least one token per word.
        assert!(TEXT.split_whitespace().count() >= 1100);
    }
}
