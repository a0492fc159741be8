//! The verdict on a port, by the rules of tfcheck's `compare`, and how a failed test words it.

use std::fmt;

use crate::measure::{Metrics, Place, Row, measure};
use crate::recording::{Error, Limits, Recorded, Recording};

/// What a port is to the recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every logit is equal.
    Identical,
    /// They differ by no more than rounding explains.
    SameMathematics,
    /// The same mathematics, but the port's rounding error is larger than the rule allows.
    WorseRounding,
    /// They compute different things.
    Diverged,
}

impl Verdict {
    /// Whether a test should pass.
    pub fn agrees(self) -> bool {
        matches!(self, Self::Identical | Self::SameMathematics)
    }

    /// The word, as tfcheck's tables have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Identical => "identical",
            Self::SameMathematics => "same mathematics",
            Self::WorseRounding => "worse rounding",
            Self::Diverged => "diverged",
        }
    }
}

/// A port, measured and judged. Its display is the message of a failed test.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// One sentence that says on what it rests.
    pub evidence: String,
    /// The numbers.
    pub metrics: Metrics,
    /// The port's dtype.
    pub dtype: String,
    context: Context,
}

/// What the message says of the recording.
#[derive(Clone, Debug)]
struct Context {
    recorded: Recorded,
    /// Token ids up to the worst position and with it, the last few.
    before: Vec<i64>,
}

impl Recording {
    /// Measures and judges logits given as numbers: `shape` is `[batch, seq, vocab_size]`, or for last
    /// positions `[batch, 1, vocab_size]` or `[batch, vocab_size]`; `dtype` is what the port computes in.
    ///
    /// # Errors
    /// When the shape is not that of this recording, or the dtype is not known.
    pub fn judge_values(&self, shape: &[usize], logits: &[f64], dtype: &str) -> Result<Judgement, Error> {
        let recorded = &self.recorded;
        let problem = |problem: String| Error::Logits { problem };
        let limits = *recorded.limits.get(dtype).ok_or_else(|| {
            let known: Vec<&str> = recorded.limits.keys().map(String::as_str).collect();
            problem(format!(
                "are {dtype}, for which the recording has no limits; it has {}",
                known.join(", ")
            ))
        })?;
        let (batch, seq, vocab_size) = (recorded.batch, recorded.seq, recorded.vocab_size);
        let last_only = match *shape {
            [b, s, v] if (b, s, v) == (batch, seq, vocab_size) => false,
            [b, 1, v] | [b, v] if (b, v) == (batch, vocab_size) => true,
            _ => {
                return Err(problem(format!(
                    "have the shape {shape:?}, not [{batch}, {seq}, {vocab_size}] or, for last positions, [{batch}, {vocab_size}]"
                )));
            }
        };
        let rows = self.tensors.places.iter().zip(self.tensors.logits.chunks_exact(vocab_size));
        let rows = rows.filter_map(|(&[row, position], recorded)| {
            let at = Place { row: row as usize, position: position as usize };
            let index = match last_only {
                false => at.row * seq + at.position,
                true if at.position + 1 == seq => at.row,
                true => return None,
            };
            let port = logits.get(index * vocab_size..(index + 1) * vocab_size)?;
            Some(Row { at, port, recorded })
        });
        let metrics = measure(rows, last_only && seq > 1);
        if metrics.positions == 0 {
            return Err(problem(
                "are of last positions, of which the recording holds none: let the port give every position"
                    .into(),
            ));
        }
        let (verdict, evidence) = self.decide(&metrics, &limits, dtype);
        let worst = metrics.worst_position.1;
        let end = worst.row * seq + worst.position + 1;
        let before =
            self.tensors.input_ids.get(end.saturating_sub(4).max(worst.row * seq)..end).unwrap_or_default();
        let context = Context { recorded: recorded.clone(), before: before.to_vec() };
        Ok(Judgement { verdict, evidence, metrics, dtype: dtype.to_owned(), context })
    }

    fn decide(&self, metrics: &Metrics, limits: &Limits, dtype: &str) -> (Verdict, String) {
        let recorded = &self.recorded;
        if metrics.identical {
            return (Verdict::Identical, format!("all {} compared logits are equal", metrics.elements));
        }
        if metrics.l2.is_nan() {
            return (Verdict::Diverged, "logits are not finite".into());
        }
        // What was recorded in a low precision has that precision's error itself.
        let limits = recorded
            .limits
            .get(&recorded.reference.dtype)
            .map_or(*limits, |own| if own.relative_l2 > limits.relative_l2 { *own } else { *limits });
        if let Some(excess) = excess(metrics, &limits, dtype) {
            return (Verdict::Diverged, excess);
        }
        let text =
            format!("relative L2 {:.2e} is within {dtype}'s {:.1e}", metrics.relative_l2, limits.relative_l2);
        let Some(&reference) = recorded.reference_rmse.get(dtype) else {
            return (Verdict::SameMathematics, text);
        };
        // torch 2.15, torch/_dynamo/utils.py, `same` and `get_multiplier`.
        let multiplier = if matches!(dtype, "bf16" | "f16") || metrics.elements < 1000 { 3.0 } else { 2.0 };
        let errors = format!("RMSE is {:.2e} and upstream's own in {dtype} {reference:.2e}", metrics.rmse);
        if metrics.rmse <= multiplier * reference + limits.dynamo / 10.0 {
            (Verdict::SameMathematics, format!("{text}; {errors}, within dynamo's rule"))
        } else {
            (Verdict::WorseRounding, format!("{errors}: the port exceeds dynamo's rule"))
        }
    }
}

/// By what the port exceeds the rounding of its dtype, overall, at one position or at one token.
fn excess(metrics: &Metrics, limits: &Limits, dtype: &str) -> Option<String> {
    let limit = limits.relative_l2;
    let local = limit * limits.local_factor;
    let overall = metrics.relative_l2;
    // False for NaN.
    let at_most = |value: f64, limit: f64| value <= limit;
    if !at_most(overall, limit) {
        return Some(format!("relative L2 {overall:.2e} exceeds {dtype}'s {limit:.1e}"));
    }
    let (worst, at) = metrics.worst_position;
    if !at_most(worst, local) {
        return Some(format!(
            "relative L2 {worst:.2e} in row {}, position {} exceeds {dtype}'s {local:.1e} for one position",
            at.row, at.position
        ));
    }
    let spike = metrics.spike;
    (spike.relative > local).then(|| {
        format!(
            "one logit in row {}, position {} differs by {:.2e} of the row's RMS",
            spike.at.row, spike.at.position, spike.relative
        )
    })
}

impl fmt::Display for Judgement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Context { recorded, before } = &self.context;
        let metrics = &self.metrics;
        let libraries: Vec<String> =
            recorded.reference.libraries.iter().map(|(name, version)| format!("{name} {version}")).collect();
        writeln!(out, "{}: {}", self.verdict.word(), self.evidence)?;
        writeln!(
            out,
            "  upstream  {}, {} ({})",
            recorded.reference.variant,
            recorded.reference.dtype,
            libraries.join(", ")
        )?;
        writeln!(out, "  checkpoint  {}", recorded.checkpoint)?;
        let last = if metrics.last_positions_only { " (last positions only)" } else { "" };
        writeln!(
            out,
            "  over {} of {} positions{last}: L2 {:.6}, relative L2 {:.3e}, RMSE {:.3e}, top-1 agreement {:.1} %",
            metrics.positions,
            recorded.real_positions,
            metrics.l2,
            metrics.relative_l2,
            metrics.rmse,
            100.0 * metrics.top1_agreement
        )?;
        let (worst, at) = metrics.worst_position;
        writeln!(
            out,
            "  worst position  row {}, position {}: relative L2 {worst:.3e}; tokens up to it: … {before:?}",
            at.row, at.position
        )?;
        if let Some(element) = &metrics.max_abs {
            writeln!(
                out,
                "  largest difference  row {}, position {}, token {}: port {:.6}, upstream {:.6}",
                element.at.row, element.at.position, element.token, element.port, element.recorded
            )?;
        }
        if let Some(rmse) = recorded.reference_rmse.get(&self.dtype) {
            writeln!(out, "  upstream's own RMSE in {}  {rmse:.3e}", self.dtype)?;
        }
        write!(out, "  limits  {}", recorded.limits_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::{Reference, SCHEMA_VERSION, Tensors};

    /// Two rows of three tokens over four logits; the second row is padded on the left.
    fn recording(folder: &std::path::Path) -> Recording {
        let limits = |relative_l2| Limits { relative_l2, local_factor: 4.0, dynamo: 1e-4 };
        let places = vec![[0, 0], [0, 1], [0, 2], [1, 1], [1, 2]];
        let logits = (0..20).map(|i| f64::from(i % 7) - 2.5).collect();
        let recorded = Recorded {
            schema_version: SCHEMA_VERSION,
            checkpoint: "synthetic:llama:tiny".into(),
            seed: Some(0),
            files: [].into(),
            batch: 2,
            seq: 3,
            vocab_size: 4,
            real_positions: 5,
            reference: Reference {
                variant: "5.23.0_eager_sdpa_f64".into(),
                dtype: "f64".into(),
                libraries: [("torch".to_owned(), "2.15.0".to_owned())].into(),
            },
            reference_rmse: [("f32".to_owned(), 1e-7)].into(),
            limits: [("f64".to_owned(), limits(1e-10)), ("f32".to_owned(), limits(1e-5))].into(),
            limits_from: "a test".into(),
            tfcheck: "0.1.0".into(),
            tensors_sha256: String::new(),
        };
        let tensors = Tensors {
            input_ids: vec![5, 6, 7, 0, 8, 9],
            attention_mask: vec![1, 1, 1, 0, 1, 1],
            position_ids: vec![0, 1, 2, 0, 0, 1],
            places,
            logits,
        };
        Recording::write(folder, &recorded, &tensors).unwrap();
        Recording::open(folder).unwrap()
    }

    /// The recorded logits laid out as a port gives them; padding holds what nothing may look at.
    fn port(recording: &Recording) -> Vec<f64> {
        let mut logits = vec![f64::NAN; 24];
        for (place, row) in recording.tensors.places.iter().zip(recording.tensors.logits.chunks_exact(4)) {
            let index = (place[0] * 3 + place[1]) as usize;
            logits[index * 4..][..4].copy_from_slice(row);
        }
        logits
    }

    fn check(change: impl Fn(&mut Vec<f64>), dtype: &str, verdict: Verdict, evidence: &str) {
        let folder = tempfile::tempdir().unwrap();
        let recording = recording(folder.path());
        let mut logits = port(&recording);
        change(&mut logits);
        let judgement = recording.judge_values(&[2, 3, 4], &logits, dtype).unwrap();
        assert_eq!(judgement.verdict, verdict, "{judgement}");
        assert!(judgement.evidence.contains(evidence), "{}", judgement.evidence);
    }

    #[test]
    fn verdicts_follow_the_size_and_place_of_the_difference() {
        check(|_| {}, "f32", Verdict::Identical, "all 20 compared");
        check(|logits| logits[0] += 1e-7, "f32", Verdict::SameMathematics, "within dynamo's rule");
        check(|logits| logits[0] += 1e-7, "f64", Verdict::Diverged, "exceeds f64's");
        // Within f32's 1e-5 overall, but a hundred times upstream's own error.
        check(|logits| logits.iter_mut().for_each(|x| *x += 1.4e-5), "f32", Verdict::WorseRounding, "dynamo");
        check(|logits| logits[5] += 0.1, "f32", Verdict::Diverged, "relative L2");
        check(|logits| logits[5] = f64::NAN, "f32", Verdict::Diverged, "not finite");
        check(|logits| logits[5] = f64::INFINITY, "f32", Verdict::Diverged, "exceeds f32's");
    }

    #[test]
    fn last_positions_are_judged_where_they_are_real() {
        let folder = tempfile::tempdir().unwrap();
        let recording = recording(folder.path());
        let all = port(&recording);
        let last = [&all[8..12], &all[20..24]].concat();
        for shape in [&[2, 1, 4][..], &[2, 4]] {
            let judgement = recording.judge_values(shape, &last, "f32").unwrap();
            assert_eq!((judgement.verdict, judgement.metrics.positions), (Verdict::Identical, 2));
        }
        let error = recording.judge_values(&[2, 3, 5], &[0.0; 30], "f32").unwrap_err().to_string();
        assert!(error.contains("[2, 3, 5], not [2, 3, 4]"), "{error}");
    }

    #[test]
    fn the_message_says_what_where_and_against_whom() {
        let folder = tempfile::tempdir().unwrap();
        let recording = recording(folder.path());
        let mut logits = port(&recording);
        logits[18] += 3.0;
        let text = recording.judge_values(&[2, 3, 4], &logits, "f32").unwrap().to_string();
        for part in [
            "diverged: relative L2",
            "5.23.0_eager_sdpa_f64, f64 (torch 2.15.0)",
            "over 5 of 5 positions: L2 3.000000",
            "worst position  row 1, position 1",
            "tokens up to it: … [0, 8]",
            "row 1, position 1, token 2: port",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn damaged_and_newer_recordings_are_named() {
        let folder = tempfile::tempdir().unwrap();
        recording(folder.path());
        let (json, file) =
            (folder.path().join("recording.json"), folder.path().join("recording.safetensors"));
        let text = std::fs::read_to_string(&json).unwrap();
        std::fs::write(&json, text.replace("\"schema_version\": 1", "\"schema_version\": 2")).unwrap();
        assert!(matches!(Recording::open(folder.path()), Err(Error::Newer { found: 2, .. })));
        std::fs::write(&json, &text).unwrap();
        let mut bytes = std::fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        let error = Recording::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("digest"), "{error}");
        std::fs::remove_file(&file).unwrap();
        assert!(Recording::open(folder.path()).unwrap_err().to_string().contains("tfcheck record"));
    }
}
