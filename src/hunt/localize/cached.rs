//! Forward passes through a cache, put together as if there had been one.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

use reference::protocol::{CapturedModule, CapturedTensor, forward_passes};

use super::tensor::Stored;

/// Tokens of each forward pass that a request with this prefill or these chunks makes over `seq` tokens.
///
/// # Errors
/// The forward passes do not cover the tokens.
pub(in crate::hunt) fn lengths(
    prefill: Option<usize>,
    chunks: &[usize],
    seq: usize,
) -> io::Result<Vec<usize>> {
    let passes = forward_passes(prefill, chunks, seq).map_err(io::Error::other)?;
    Ok(passes.unwrap_or_default().into_iter().map(|pass| pass.len()).collect())
}

/// The modules of forward passes over so many tokens each, `lengths`, in `batch` rows, their tensors joined along the
/// positions. A module that some passes call and others do not, as an expert, is left out, and
/// so is a tensor that grows otherwise, as attention's scores do. Of a module that `is_other` says runs over another
/// sequence, such as an encoder's, the calls of the first pass are kept as they are; later passes may have none.
pub(in crate::hunt) fn joined(
    modules: &[CapturedModule],
    lengths: &[usize],
    batch: usize,
    is_other: &dyn Fn(&str) -> bool,
    folder: &Path,
) -> io::Result<Vec<CapturedModule>> {
    let passes = lengths.len();
    let mut calls: HashMap<&str, Vec<&CapturedModule>> = HashMap::new();
    for module in modules {
        calls.entry(&module.path).or_default().push(module);
    }
    let mut found = Vec::new();
    for first in modules {
        let all = &calls[first.path.as_str()];
        let a_pass = all.len() / passes;
        if is_other(&first.path) {
            // Every pass may have run it, or the first one alone.
            let is_in_each = a_pass > 0 && all.len().is_multiple_of(passes);
            if first.call < if is_in_each { a_pass } else { all.len() } {
                found.push(CapturedModule { further: Vec::new(), ..first.clone() });
            }
            continue;
        }
        if !all.len().is_multiple_of(passes) || first.call >= a_pass {
            continue;
        }
        let parts: Vec<&CapturedModule> = all.iter().skip(first.call).step_by(a_pass).copied().collect();
        let join = |name: &str, of: fn(&CapturedModule) -> Option<&CapturedTensor>| {
            let parts: Option<Vec<&CapturedTensor>> = parts.iter().map(|part| of(part)).collect();
            let name = format!("{name}_{:06}", found.len());
            parts.map_or(Ok(None), |parts| tensor(&parts, (batch, lengths), folder, name))
        };
        let input = join("input", |module| module.input.as_ref())?;
        let output = join("output", |module| module.output.as_ref())?;
        found.push(CapturedModule { input, output, further: Vec::new(), ..first.clone() });
    }
    Ok(found)
}

/// Concatenates `parts` along their positions into the file `name`; `None` if they have no axis of positions.
fn tensor(
    parts: &[&CapturedTensor],
    (batch, lengths): (usize, &[usize]),
    folder: &Path,
    name: String,
) -> io::Result<Option<CapturedTensor>> {
    let found = rows_and_axis(parts, batch, lengths).filter(|(rows, _)| *rows > 0);
    let Some((rows, axis)) = found else { return Ok(None) };
    let mut shape = parts[0].shape.clone();
    shape[axis] = parts.iter().map(|part| part.shape[axis]).sum();
    let files: Option<Vec<&String>> = parts.iter().map(|part| part.file.as_ref()).collect();
    let file = match files {
        Some(files) => {
            let stored = files
                .iter()
                .zip(parts)
                .map(|(file, part)| Stored::at(&folder.join(file), &part.shape)?.bytes());
            let bytes: Vec<Vec<u8>> = stored.collect::<io::Result<_>>()?;
            let row = |part: usize, at: usize| {
                let length = bytes[part].len() / rows;
                &bytes[part][at * length..(at + 1) * length]
            };
            let whole: Vec<&[u8]> = (0..rows)
                .flat_map(|at| (0..bytes.len()).map(move |part| (part, at)))
                .map(|(part, at)| row(part, at))
                .collect();
            fs::write(folder.join(&name), whole.concat())?;
            // The parts' files are no longer needed.
            files.iter().try_for_each(|file| fs::remove_file(folder.join(file)))?;
            Some(name)
        }
        None => None,
    };
    Ok(Some(CapturedTensor { shape, file, ..parts[0].clone() }))
}

/// The axis of the positions, as long in each part as the pass has tokens, while the parts are alike otherwise; and how
/// many runs of positions a part has one after the other.
fn rows_and_axis(parts: &[&CapturedTensor], batch: usize, lengths: &[usize]) -> Option<(usize, usize)> {
    let first = &parts[0].shape;
    let grows = |axis: usize, times: usize| {
        let is_of = |shape: &[usize], length: usize| {
            let expected = |at: usize| if at == axis { times * length } else { first[at] };
            shape.len() == first.len() && (0..shape.len()).all(|at| shape[at] == expected(at))
        };
        axis < first.len() && parts.iter().zip(lengths).all(|(part, &length)| is_of(&part.shape, length))
    };
    // Rows come first, but for tokens that were brought into one row, as experts see them, and for what all rows share.
    let behind_rows = (1..first.len()).find(|&axis| grows(axis, 1));
    behind_rows
        .map(|axis| (first[..axis].iter().product(), axis))
        .or_else(|| grows(0, batch).then_some((batch, 0)))
        .or_else(|| grows(0, 1).then_some((1, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A captured module call whose output has this shape and the values `from`, `from + 1`, …
    fn call(folder: &Path, path: &str, call: usize, shape: &[usize], from: f64) -> CapturedModule {
        let file = format!("{path}-{call}");
        let count: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..count).flat_map(|at| (from + at as f64).to_le_bytes()).collect();
        fs::write(folder.join(&file), bytes).unwrap();
        let output = CapturedTensor { shape: shape.to_vec(), dtype: "f64".into(), file: Some(file) };
        CapturedModule {
            path: path.into(),
            call,
            class: "native".into(),
            output: Some(output),
            ..CapturedModule::default()
        }
    }

    fn values(folder: &Path, module: &CapturedModule) -> Vec<f64> {
        let file = module.output.as_ref().unwrap().file.as_ref().unwrap();
        let bytes = fs::read(folder.join(file)).unwrap();
        bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
    }

    #[test]
    fn the_tokens_of_each_sequence_follow_its_prefill() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        // Two sequences of three tokens, two of them in the prefill. `rope_q` has heads before positions; `norm` is
        // called twice per forward pass.
        let calls = [
            call(folder, "mlp", 0, &[2, 2, 1], 0.0),
            call(folder, "rope_q", 0, &[2, 2, 2, 1], 0.0),
            call(folder, "norm", 0, &[2, 2, 1], 0.0),
            call(folder, "norm", 1, &[2, 2, 1], 50.0),
            call(folder, "softmax", 0, &[2, 1, 2, 2], 0.0),
            call(folder, "expert", 0, &[3, 1], 0.0),
            call(folder, "gate", 0, &[4, 1], 0.0),
            call(folder, "tables", 0, &[2, 2], 0.0),
            call(folder, "mlp", 1, &[2, 1, 1], 10.0),
            call(folder, "rope_q", 1, &[2, 2, 1, 1], 10.0),
            call(folder, "norm", 2, &[2, 1, 1], 10.0),
            call(folder, "norm", 3, &[2, 1, 1], 60.0),
            call(folder, "softmax", 1, &[2, 1, 1, 3], 0.0),
            call(folder, "gate", 1, &[2, 1], 10.0),
            call(folder, "tables", 1, &[1, 2], 10.0),
        ];
        let found = joined(&calls, &[2, 1], 2, &|_| false, folder).unwrap();
        let names: Vec<(&str, usize)> = found.iter().map(|module| (&*module.path, module.call)).collect();
        let expected =
            [("mlp", 0), ("rope_q", 0), ("norm", 0), ("norm", 1), ("softmax", 0), ("gate", 0), ("tables", 0)];
        assert_eq!(names, expected);
        assert_eq!(found[0].output.as_ref().unwrap().shape, [2, 3, 1]);
        assert_eq!(values(folder, &found[0]), [0.0, 1.0, 10.0, 2.0, 3.0, 11.0]);
        assert_eq!(found[1].output.as_ref().unwrap().shape, [2, 2, 3, 1]);
        let expected = [0.0, 1.0, 10.0, 2.0, 3.0, 11.0, 4.0, 5.0, 12.0, 6.0, 7.0, 13.0];
        assert_eq!(values(folder, &found[1]), expected);
        assert_eq!(values(folder, &found[3]), [50.0, 51.0, 60.0, 52.0, 53.0, 61.0]);
        assert!(found[4].output.is_none(), "scores have more keys with each token");
        assert_eq!(found[5].output.as_ref().unwrap().shape, [6, 1]);
        assert_eq!(values(folder, &found[5]), [0.0, 1.0, 10.0, 2.0, 3.0, 11.0], "tokens of two rows in one");
        assert_eq!(values(folder, &found[6]), [0.0, 1.0, 2.0, 3.0, 10.0, 11.0], "the rows share it");
    }
}
