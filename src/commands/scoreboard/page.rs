//! The page for maintainers: models × features, derived from the rows of a scoreboard.
//!
//! What a checkpoint switches on is read from its config, and each column below is a row of [`COLUMNS`]. A cell links to the
//! finding that reproduces what it shows, where `results/findings/` has one.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::LazyLock;

use ports::{is_quantised, port};
use reference::protocol::Dtype;
use serde_json::Value;

use super::lines::{header, put};
use super::{CHECKOUT, GGUF, LONG, LONGEST, SHORT, Score, Scoreboard, ScoreboardRow};
use crate::spec::checkpoint::tiny;
use crate::spec::config::{Config, Padding};
use crate::spec::variant::{Runner, Variant, dtype_name};

/// A score with what its checkpoint switches on.
struct Judged<'a> {
    row: &'a ScoreboardRow,
    score: &'a Score,
    /// Variant of the synthetic checkpoint.
    variant: &'a str,
    config: &'a Value,
}

/// A feature. `part` gives the part of it that a score is about, or nothing if the score is not about it; an empty part has
/// no name.
struct Column {
    title: &'static str,
    part: fn(&Judged<'_>) -> Option<String>,
    /// Whether the score is as it should be.
    is_good: fn(&Score) -> bool,
}

const COLUMNS: &[Column] = &[
    Column {
        title: "loads",
        part: |it| (it.is_single(SHORT) && it.is_f32()).then(String::new),
        is_good: has_numbers,
    },
    Column {
        title: "numbers",
        part: |it| (it.is_single(SHORT) && it.is_f32()).then(String::new),
        is_good: agrees,
    },
    Column {
        title: "batch",
        part: |it| (it.is_batch(Padding::None) && it.is_f32()).then(String::new),
        is_good: agrees,
    },
    Column {
        title: "padding",
        part: |it| (it.is_batch(Padding::Left) && it.is_f32()).then(String::new),
        is_good: agrees,
    },
    Column {
        title: "window",
        part: |it| (it.is_single(LONG) && it.is_f32() && has_window(it.config)).then(String::new),
        is_good: agrees,
    },
    Column {
        title: "rope scaling",
        part: |it| it.rope().filter(|_| it.is_single(LONG) && it.is_f32()),
        is_good: agrees,
    },
    Column {
        title: "dtypes",
        part: |it| (it.is_single(SHORT) || it.is_single(LONG)).then(|| it.dtype()),
        is_good: agrees,
    },
    Column { title: "600 positions", part: |it| it.is_single(LONGEST).then(|| it.dtype()), is_good: agrees },
    Column {
        title: "cache",
        part: |it| (it.prefill().is_some() && it.is_f32()).then(String::new),
        is_good: agrees,
    },
    Column {
        title: "v5 config",
        part: |it| (it.variant == "v5" && it.is_single(SHORT) && it.is_f32()).then(String::new),
        is_good: agrees,
    },
];

impl Judged<'_> {
    fn is_f32(&self) -> bool {
        self.score.variant.dtype == Dtype::F32
    }

    fn dtype(&self) -> String {
        dtype_name(self.score.variant.dtype).to_owned()
    }

    fn prefill(&self) -> Option<usize> {
        self.row.axes.and_then(|axes| axes.prefill)
    }

    /// One sequence of this length in one forward pass. Models of pictures and sounds have lengths of their own.
    fn is_single(&self, length: usize) -> bool {
        self.row.axes.is_some_and(|axes| {
            let is_own = length != LONGEST && ![SHORT, LONG, LONGEST].contains(&axes.length);
            axes.batch == 1 && axes.prefill.is_none() && (axes.length == length || is_own)
        })
    }

    fn is_batch(&self, padding: Padding) -> bool {
        let is_it = |padded: Option<Padding>| padded.unwrap_or(Padding::None) == padding;
        self.row.axes.is_some_and(|axes| axes.batch > 1 && axes.prefill.is_none() && is_it(axes.padding))
    }

    /// The type of its rope scaling.
    fn rope(&self) -> Option<String> {
        let of = |key: &str| {
            let scaling = &self.config[key];
            scaling.get("rope_type").or_else(|| scaling.get("type"))?.as_str()
        };
        let name = ["rope_scaling", "rope_parameters"].into_iter().find_map(of)?;
        (name != "default").then(|| name.to_owned())
    }
}

fn agrees(score: &Score) -> bool {
    matches!(score.word.as_str(), "identical" | "same mathematics" | "as the reference")
}

fn has_numbers(score: &Score) -> bool {
    !matches!(score.word.as_str(), "failed" | "unsupported")
}

/// Whether a window is narrower than the long inputs.
fn has_window(config: &Value) -> bool {
    let is_narrow = |key: &str| config[key].as_u64().is_some_and(|window| window < LONG as u64);
    ["sliding_window", "attention_window_size", "local_attention"].into_iter().any(is_narrow)
}

/// The tables: the ports, those of another checkout if there are any, and tfcheck's own models.
pub(super) fn markdown(scoreboard: &Scoreboard) -> String {
    let mut text = String::from(
        "## Features\n\n`✓` every checkpoint and input that shows the feature agrees with transformers, `◐` some do, `✗` none does; \
         an empty cell: no input shows it. A cell counts what agrees of what ran where that is not all, and links to a reproduction. \
         `loads` is whether the model loads and computes, whatever the numbers; `dtypes` and `600 positions` are of each dtype, \
         the other columns are in f32; `batch` is three rows of equal length, `cache` a prefill of 32 tokens and eight that are decoded.\n",
    );
    table(&mut text, scoreboard, "Ports of candle-transformers", |variant| {
        variant.runner == Runner::CandleTransformers
    });
    table(&mut text, scoreboard, "Ports of candle-transformers that read GGUF files", |variant| {
        variant.version == GGUF
    });
    if let Some(checkout) = &scoreboard.checkout {
        let title = format!("Ports of candle-transformers {checkout}");
        table(&mut text, scoreboard, &title, |variant| variant.version == CHECKOUT);
    }
    table(&mut text, scoreboard, "tfcheck's own models", |variant| variant.runner == Runner::Candle);
    text
}

fn table(text: &mut String, scoreboard: &Scoreboard, title: &str, is_shown: fn(&Variant) -> bool) {
    let mut lines: Vec<Vec<String>> = Vec::new();
    let mut rest = scoreboard.rows.as_slice();
    while let Some(first) = rest.first() {
        let (model_type, _) = named(first);
        let count = rest.iter().take_while(|row| named(row).0 == model_type).count();
        let rows = &rest[..count];
        rest = &rest[count..];
        if let Some(cells) = cells(rows, model_type, is_shown) {
            lines.push(std::iter::once(model_type.to_owned()).chain(cells).collect());
        }
    }
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n### {title}\n");
    let titles: Vec<String> = COLUMNS.iter().map(|column| column.title.to_owned()).collect();
    header(text, &["Model"], &titles);
    for line in &lines {
        put(text, line);
    }
}

/// One cell per column; nothing if there is no such model.
fn cells(rows: &[ScoreboardRow], model_type: &str, is_shown: fn(&Variant) -> bool) -> Option<Vec<String>> {
    let configs: Vec<Value> = rows.iter().map(|row| config(named(row))).collect();
    let judged: Vec<Judged<'_>> = rows
        .iter()
        .zip(&configs)
        .flat_map(|(row, config)| {
            let shown = row
                .scores
                .iter()
                .flatten()
                .filter(|score| is_shown(&score.variant) && score.word != "not run");
            shown.map(move |score| Judged { row, score, variant: named(row).1, config })
        })
        .collect();
    let exists = |it: &Judged<'_>| match it.score.variant.runner {
        Runner::Candle => models::kind(model_type).is_some(),
        Runner::Command if it.score.variant.version == GGUF => is_quantised(model_type),
        _ => port(model_type).is_some(),
    };
    judged.iter().any(exists).then(|| COLUMNS.iter().map(|column| cell(column, &judged)).collect())
}

fn cell(column: &Column, judged: &[Judged<'_>]) -> String {
    let mut parts: BTreeMap<String, Vec<&Judged<'_>>> = BTreeMap::new();
    for it in judged {
        if let Some(part) = (column.part)(it) {
            parts.entry(part).or_default().push(it);
        }
    }
    let shown = parts.iter().map(|(part, of_part)| {
        let good = of_part.iter().filter(|it| (column.is_good)(it.score)).count();
        let mark = match good {
            _ if good == of_part.len() => "✓".to_owned(),
            0 => "✗".to_owned(),
            _ => format!("◐ {good}/{}", of_part.len()),
        };
        let text = if part.is_empty() { mark } else { format!("{part} {mark}") };
        let mut bad = of_part.iter().filter(|it| !(column.is_good)(it.score));
        match bad.find_map(|it| finding(it)) {
            Some(name) => format!("[{text}](findings/{name}.toml)"),
            None => text,
        }
    });
    shown.collect::<Vec<_>>().join(", ")
}

/// Model type and variant of a row's checkpoint.
fn named(row: &ScoreboardRow) -> (&str, &str) {
    let name = row.checkpoint.strip_prefix("synthetic:").unwrap_or(&row.checkpoint);
    name.split_once(':').unwrap_or((name, ""))
}

/// The config of a synthetic checkpoint.
fn config((model_type, variant): (&str, &str)) -> Value {
    let made = || tiny::find(model_type, Some(variant)).map(|tiny| Value::Object(tiny.config()));
    models::synthetic::config(model_type, variant).ok().or_else(made).unwrap_or_default()
}

/// A reproduction of `results/findings/`, and where it shows its finding.
#[expect(clippy::struct_excessive_bools, reason = "each is an axis of the table")]
struct Finding {
    name: &'static str,
    checkpoint: String,
    /// Whether it is one of the ports that read GGUF files, which are a program beside those of candle.
    is_gguf: bool,
    is_padded: bool,
    is_batch: bool,
    is_bf16: bool,
    lengths: Vec<usize>,
}

static FINDINGS: LazyLock<Vec<Finding>> = LazyLock::new(|| {
    let files: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/findings.rs"));
    let read = |(name, text): &(&'static str, &str)| {
        let config = Config::parse(text, Path::new(name)).ok()?;
        Some(Finding {
            name,
            checkpoint: config.checkpoints.first()?.source.to_string(),
            is_gguf: !config.commands.is_empty(),
            is_padded: config.inputs.padding.is_some(),
            is_batch: config.inputs.batch.is_some_and(|batch| batch != [1]),
            is_bf16: config.run.dtypes == [Dtype::Bf16.into()],
            lengths: config.inputs.lengths.unwrap_or_default(),
        })
    };
    files.iter().filter_map(read).collect()
});

/// The reproduction of what a score shows: on its checkpoint and inputs, else on its checkpoint.
fn finding(it: &Judged<'_>) -> Option<&'static str> {
    if it.score.variant.runner == Runner::Candle {
        return None;
    }
    let axes = it.row.axes?;
    let of_checkpoint = || {
        FINDINGS.iter().filter(|finding| {
            finding.checkpoint == it.row.checkpoint
                && finding.is_gguf == (it.score.variant.version == GGUF)
                && (!finding.is_bf16 || it.score.variant.dtype == Dtype::Bf16)
                && (!finding.is_padded || matches!(axes.padding, Some(Padding::Left)))
                && (!finding.is_batch || axes.batch > 1)
        })
    };
    let closeness = |finding: &&Finding| {
        let is_padded = matches!(axes.padding, Some(Padding::Left));
        let equal = [
            finding.is_padded == is_padded,
            finding.is_batch == (axes.batch > 1),
            finding.is_bf16 == (it.score.variant.dtype == Dtype::Bf16),
            finding.lengths.contains(&axes.length),
        ];
        equal.into_iter().filter(|equal| *equal).count()
    };
    of_checkpoint().max_by_key(closeness).map(|finding| finding.name)
}
