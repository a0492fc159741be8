//! Tensors on which the suspect's logits do not depend, such as those that it does not read.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::DiagnoseError;
use super::draft::{Draft, Values};
use super::lab::{Lab, Stage};

/// Most kinds of tensors that are tried, each of which costs a forward pass of the suspect.
const MOST_KINDS: usize = 40;

/// Notes the tensors on which the trusted side's logits depend and no bit of the suspect's does. Tensors whose names differ in the number of a layer or of
/// an expert are changed together.
pub(super) fn note(lab: &mut Lab, stage: &Stage) -> Result<(), DiagnoseError> {
    let plain = lab.plain();
    if !plain.is_editable() {
        return Ok(());
    }
    let mut kinds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in plain.names() {
        kinds.entry(kind(&name)).or_default().push(name);
    }
    let bits = |stage: &Stage| stage.suspect().values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let own = bits(stage);
    let mut unread = Vec::new();
    for (kind, names) in kinds.into_iter().take(MOST_KINDS) {
        if !lab.has_time() {
            break;
        }
        let changed = move |draft: &mut Draft| names.iter().for_each(|name| draft.edit(name, other_values));
        let mut edited = plain.clone();
        changed(&mut edited);
        if edited == plain {
            continue;
        }
        let Ok(other) = lab.stage(&stage.tokens, Arc::new(changed))? else { continue };
        if bits(&other) != own {
            continue;
        }
        // Neither side reads a head that is declared tied.
        if !lab.between([&plain, &edited], stage)?.is_rounding {
            unread.push(format!("`{kind}`"));
        }
    }
    if !unread.is_empty() {
        let suspect = &lab.request.suspect.name;
        lab.notes.push(format!(
            "{suspect} may not read {}: with other values there its logits stay the same, bit for bit",
            unread.join(", ")
        ));
    }
    Ok(())
}

/// Values that a forward pass that reads them shows: in the other order, and twice as large where all are equal.
fn other_values(values: &mut Values) {
    values.data.reverse();
    // Exact in every dtype.
    values.data.iter_mut().for_each(|value| *value *= 2.0);
}

/// A name with `*` in place of its numbers.
fn kind(name: &str) -> String {
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = name.split('.').map(|part| if is_number(&part) { "*" } else { part });
    parts.collect::<Vec<&str>>().join(".")
}
