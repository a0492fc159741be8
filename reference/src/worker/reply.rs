//! A worker's reply within its limits: notes and names that are longer are cut, so that they can be kept and shown.

use bounds::limits::{LINE, LINES, NAMES, NOTES};
use bounds::{Limit, lines, shown};

use crate::protocol::{Captured, Failed, Forwarded, Ready, Reply, Tokenized};

/// The same reply with texts and lists of at most their limits. Control characters are gone already, see [`bounds::parse`].
pub(super) fn within_limits(reply: Reply) -> Reply {
    match reply {
        Reply::Ready(ready) => Reply::Ready(Ready {
            libraries: ready
                .libraries
                .into_iter()
                .take(NOTES.most_usize())
                .map(|(name, version)| (short(&name), short(&version)))
                .collect(),
            notes: list(ready.notes, NOTES),
            ignored_keys: ready.ignored_keys.map(|keys| list(keys, NAMES)),
            translated: list(ready.translated, NOTES),
            unread_tensors: ready.unread_tensors.map(|names| list(names, NAMES)),
            ..ready
        }),
        Reply::Forwarded(mut forwarded) => {
            forwarded.outputs.truncate(OUTPUTS);
            for output in &mut forwarded.outputs {
                output.name = short(&output.name);
            }
            Reply::Forwarded(Forwarded { notes: list(forwarded.notes, NOTES), ..forwarded })
        }
        Reply::Tokenized(found) => Reply::Tokenized(Tokenized { class: short(&found.class), ..found }),
        Reply::Captured(mut captured) => {
            for module in &mut captured.modules {
                module.path = shown(&module.path, LINE.most).into_owned();
                module.class = short(&module.class);
            }
            Reply::Captured(Captured { ..captured })
        }
        Reply::Failed(failed) => Reply::Failed(Failed {
            error: short(&failed.error),
            message: lines(&failed.message, LINE.most).into_owned(),
            traceback: lines(&failed.traceback, LINES.most).into_owned(),
            ..failed
        }),
        other => other,
    }
}

/// Most outputs of a pass that are compared: a mixture of experts with a router in each of 200 layers has fewer.
const OUTPUTS: usize = 256;

fn short(text: &str) -> String {
    shown(text, 200).into_owned()
}

fn list(texts: Vec<String>, limit: Limit) -> Vec<String> {
    let left = texts.len().saturating_sub(limit.most_usize());
    let mut kept: Vec<String> = texts
        .into_iter()
        .take(limit.most_usize())
        .map(|text| if text.len() as u64 > LINE.most { lines(&text, LINE.most).into_owned() } else { text })
        .collect();
    if left > 0 {
        kept.push(format!("… ({left} more)"));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_and_many_of_them_are_cut() {
        let notes = vec!["x".repeat(1 << 20); 2000];
        let Reply::Ready(ready) = within_limits(Reply::Ready(Ready { notes, ..Ready::default() })) else {
            panic!("another kind of reply")
        };
        assert_eq!(ready.notes.len(), 1001);
        assert!(ready.notes[0].ends_with("more characters)") && ready.notes[0].len() < 2100);
        assert_eq!(ready.notes[1000], "… (1000 more)");
    }
}
