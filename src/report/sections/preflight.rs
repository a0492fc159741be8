//! Differences before any forward pass: config keys, tokenizers, environments.

use crate::judge::gates::Judged;
use crate::judge::view::RunView;
use crate::report::document::{Block, Content, Medium, Row, Table};
use crate::report::preflight::{self, Part};
use compare::metric::RELATIVE_L2;

pub(super) fn content(run: &RunView, _: &Judged, medium: Medium) -> Option<Content> {
    if medium == Medium::Terminal {
        return Some(Content::untitled(brief(run)));
    }
    let tokenizers = preflight::tokenizers(run);
    let environments = preflight::environments(run);
    let mut blocks = Vec::new();
    for (part, title, column) in [
        (Part::ConfigKey, "Config keys that one side ignores", "Key"),
        (Part::Tensor, "Tensors that one side does not read", "Tensor"),
    ] {
        let partly = preflight::partly_read(run, part);
        if partly.is_empty() {
            continue;
        }
        let rows = partly.into_iter().map(|found| -> Row {
            let (ignored, read) = (found.ignored_by.join(", "), found.not_ignored_by.join(", "));
            [found.checkpoint, found.name, ignored, read].into_iter().collect()
        });
        blocks.push(Block::Heading(title.to_owned()));
        blocks.push(Block::Table(Table::new(["Checkpoint", column, "Ignored by", "Not ignored by"], rows)));
    }
    let translated = preflight::translated(run);
    if !translated.is_empty() {
        let rows = translated.into_iter().map(|found| -> Row {
            [found.checkpoints.join(", "), found.versions.join(", "), found.values.join("; ")]
                .into_iter()
                .collect()
        });
        blocks.push(Block::Heading("Configs that a release alone would have read otherwise".to_owned()));
        blocks.push(Block::text(
            "tfcheck translated config.json for these releases; `translate = false` of a checkpoint turns that off.",
        ));
        blocks.push(Block::Table(Table::new(["Checkpoint", "Release", "Read"], rows)));
    }
    if !tokenizers.is_empty() {
        let rows = tokenizers.into_iter().map(|(checkpoint, version, found)| -> Row {
            [checkpoint.to_owned(), version.to_owned(), found.said()].into_iter().collect()
        });
        blocks.push(Block::Heading("Tokenizers".to_owned()));
        blocks.push(Block::Table(Table::new(["Checkpoint", "Version", "Its own tokenizer"], rows)));
    }
    if !environments.is_empty() {
        let rows = environments.iter().map(|pair| -> Row {
            let relative = pair.relative_l2.map_or_else(|| "—".to_owned(), |l2| RELATIVE_L2.written(l2));
            [pair.a.clone(), pair.b.clone(), relative, pair.text()].into_iter().collect()
        });
        blocks.push(Block::Heading("Environments".to_owned()));
        blocks.push(Block::text(
            "The relative L2 is the largest between variants of one mode, attention and dtype.",
        ));
        blocks.push(Block::Table(Table::new(["A", "B", "Relative L2", "Packages that differ"], rows)));
    }
    (!blocks.is_empty()).then(|| Content::titled("Preflight", blocks))
}

/// Config keys and token ids that differ between versions.
fn brief(run: &RunView) -> Vec<Block> {
    let keys = Part::ALL.into_iter().flat_map(|part| preflight::partly_read(run, part)).map(|found| {
        let (ignored, read) = (found.ignored_by.join(", "), found.not_ignored_by.join(", "));
        let what = match found.part {
            Part::ConfigKey => "config key",
            Part::Tensor => "tensor",
        };
        format!("{}: {what} {} is ignored by {ignored} and not by {read}", found.checkpoint, found.name)
    });
    let tokenizers = preflight::tokenizers(run)
        .into_iter()
        .filter(|(_, _, found)| found.difference.is_some())
        .map(|(checkpoint, version, found)| format!("{checkpoint}, {version}: {}", found.said()));
    keys.chain(tokenizers).map(|found| Block::text(format!("preflight: {found}"))).collect()
}
