//! A worker's reply within its limits: notes and names that are longer are cut, so that they can be kept and shown. A reply that
//! names files outside of its folder, or tensors beyond all limits, is refused.

use bounds::file::is_component;
use bounds::limits::{LINE, LINES, MODULES, NAMES, NOTES, STORED_TENSOR_BYTES};
use bounds::{Limit, lines, shown};

use crate::protocol::{CapturedModule, CapturedTensor, Failed, Forwarded, Ready, Reply, Tokenized};

/// The same reply with texts and lists of at most their limits. Control characters are gone already, see [`bounds::parse`].
///
/// # Errors
/// What of it is refused.
pub(super) fn within_limits(reply: Reply) -> Result<Reply, String> {
    Ok(match reply {
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
            check_axes(&forwarded.shape)?;
            forwarded.outputs.iter().try_for_each(|output| check_axes(&output.shape))?;
            forwarded.outputs.truncate(OUTPUTS);
            for output in &mut forwarded.outputs {
                output.name = short(&output.name);
            }
            Reply::Forwarded(Forwarded { notes: list(forwarded.notes, NOTES), ..forwarded })
        }
        Reply::Tokenized(found) => Reply::Tokenized(Tokenized { class: short(&found.class), ..found }),
        Reply::Captured(mut captured) => {
            MODULES.check(captured.modules.len() as u64).map_err(|exceeded| exceeded.to_string())?;
            for module in &mut captured.modules {
                tensors(module).try_for_each(check)?;
                module.path = shown(&module.path, LINE.most).into_owned();
                module.class = short(&module.class);
            }
            Reply::Captured(captured)
        }
        Reply::Replayed(replayed) => {
            check_shape(&replayed.shape)?;
            Reply::Replayed(replayed)
        }
        Reply::Failed(failed) => Reply::Failed(Failed {
            error: short(&failed.error),
            message: if failed.message.trim().is_empty() && failed.error.is_empty() {
                "the worker gives no reason".to_owned()
            } else {
                lines(&failed.message, LINE.most).into_owned()
            },
            traceback: lines(&failed.traceback, LINES.most).into_owned(),
            ..failed
        }),
        other => other,
    })
}

/// Every tensor that a captured call names.
fn tensors(module: &CapturedModule) -> impl Iterator<Item = &CapturedTensor> {
    let further = module.further.iter().map(|argument| &argument.tensor);
    module.input.iter().chain(&module.output).chain(&module.more).chain(further)
}

/// A captured tensor's file is read, and removed once it is joined with others, so it has to lie in the folder that the worker was
/// given.
fn check(tensor: &CapturedTensor) -> Result<(), String> {
    match &tensor.file {
        Some(file) if !is_component(file) => {
            Err(format!("it names `{}`, which is not a file of the capture", shown(file, 200)))
        }
        _ => check_shape(&tensor.shape),
    }
}

fn check_axes(shape: &[usize]) -> Result<(), String> {
    if shape.len() > AXES {
        return Err(format!("it names a tensor of {} axes, and tfcheck accepts at most {AXES}", shape.len()));
    }
    Ok(())
}

fn check_shape(shape: &[usize]) -> Result<(), String> {
    check_axes(shape)?;
    let bytes = shape.iter().try_fold(8_u64, |bytes, length| bytes.checked_mul(*length as u64));
    let most = STORED_TENSOR_BYTES;
    let is_within = bytes.is_some_and(|bytes| most.check(bytes).is_ok());
    let shown = || shown(&format!("{shape:?}"), 200).into_owned();
    if is_within {
        Ok(())
    } else {
        Err(format!("it names a tensor of shape {}, beyond the limit of {} {}", shown(), most.most, most.of))
    }
}

/// Most axes of a tensor.
const AXES: usize = 64;
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
    use crate::protocol::{Captured, Replayed};

    #[test]
    fn long_notes_and_many_of_them_are_cut() {
        let notes = vec!["x".repeat(1 << 20); 2000];
        let Reply::Ready(ready) = within_limits(Reply::Ready(Ready { notes, ..Ready::default() })).unwrap()
        else {
            panic!("another kind of reply")
        };
        assert_eq!(ready.notes.len(), 1001);
        assert!(ready.notes[0].ends_with("more characters)") && ready.notes[0].len() < 2100);
        assert_eq!(ready.notes[1000], "… (1000 more)");
    }

    #[test]
    fn a_failure_without_a_reason_says_so_and_shapes_have_few_axes() {
        let failed: Reply =
            serde_json::from_str(r#"{"is": "failed", "kind": "exception", "message": " "}"#).unwrap();
        let Reply::Failed(failed) = within_limits(failed).unwrap() else { panic!("another kind of reply") };
        assert_eq!(failed.message, "the worker gives no reason");
        let replayed = Reply::Replayed(Replayed { shape: vec![1; 65] });
        assert!(within_limits(replayed).unwrap_err().contains("65 axes"));
    }

    #[test]
    fn captures_of_files_elsewhere_and_of_endless_tensors_are_refused() {
        let captured = |file: Option<&str>, shape: &[usize]| {
            let file = file.map(str::to_owned);
            let tensor = CapturedTensor { shape: shape.to_vec(), dtype: "f32".to_owned(), file };
            let module = CapturedModule { more: vec![tensor], ..CapturedModule::default() };
            within_limits(Reply::Captured(Captured { modules: vec![module], ..Captured::default() }))
        };
        assert!(captured(Some("000001_output"), &[2, 3]).is_ok());
        for file in ["/etc/passwd", "../x", "a/b", "", ".", ".."] {
            let refused = captured(Some(file), &[2, 3]).unwrap_err();
            assert!(refused.contains("not a file of the capture"), "{file}: {refused}");
        }
        for shape in [[usize::MAX, 2], [1 << 32, 1 << 32], [1 << 30, 64]] {
            let refused = captured(None, &shape).unwrap_err();
            assert!(refused.contains("beyond the limit"), "{refused}");
        }
        assert!(within_limits(Reply::Replayed(Replayed { shape: vec![usize::MAX, 8] })).is_err());
    }
}
