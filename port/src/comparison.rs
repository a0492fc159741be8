//! The verdict on a port, by tfcheck's own metrics and rules, and the message of a failed test.

use std::collections::BTreeMap;
use std::fmt;

use compare::logits::{Logits, LogitsError, Values};
use compare::mask::Mask;
use compare::matrix::{Entry, Options, PairOutcome, matrix};
use compare::metrics::{ElementIndex, PairMetrics, relative};
use compare::recorded::against_recorded;
use compare::verdict::{PerDtype, Tolerances, Verdict};
use compare::{Dtype, Positions};

use crate::recording::{Error, Recorded, Recording};

/// The metrics and the verdict of a port. `Display` writes the message of a failed test.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The verdict on the port (side A) and the recorded logits (side B).
    pub verdict: Verdict,
    /// The metrics of the same two sides.
    pub metrics: PairMetrics,
    /// The port's dtype.
    pub dtype: Dtype,
    context: Context,
}

/// Context of the message.
#[derive(Clone, Debug)]
struct Context {
    recorded: Recorded,
    /// The element with the largest absolute difference, with the port's and the recorded logit.
    largest: Option<(ElementIndex, f64, f64)>,
    /// At most four token ids, up to and including the worst position.
    before: Vec<i64>,
}

impl Recording {
    /// Compares logits with the recording. `shape` is `[batch, seq, vocab_size]`, or for last positions
    /// `[batch, 1, vocab_size]` or `[batch, vocab_size]`; `dtype` is the one that the port computes in.
    ///
    /// # Errors
    /// When the shape does not match the recording, or it has no limits for `dtype`.
    pub fn compare_values(&self, shape: &[usize], logits: &[f64], dtype: &str) -> Result<Comparison, Error> {
        let known = Dtype::named(dtype).ok_or_else(|| self.no_limits(dtype))?;
        self.compare_logits(shape, Values::F64(logits.to_vec()), known)
    }

    /// [`Recording::compare_values`] for logits in their own dtype.
    pub(crate) fn compare_logits(
        &self,
        shape: &[usize],
        values: Values,
        dtype: Dtype,
    ) -> Result<Comparison, Error> {
        let recorded = &self.recorded;
        let tolerances = self.tolerances(dtype)?;
        let unusable = |error: LogitsError| Error::Logits { problem: format!("cannot be compared: {error}") };
        let (batch, seq, vocab_size) = (recorded.batch, recorded.seq, recorded.vocab_size);
        let positions = match *shape {
            [b, s, v] if (b, s, v) == (batch, seq, vocab_size) => Positions::All,
            // With `seq` 1, the only position of a sequence is its last one.
            [b, v] if (b, 1, v) == (batch, seq, vocab_size) => Positions::All,
            [b, 1, v] | [b, v] if (b, v) == (batch, vocab_size) => Positions::Last,
            _ => {
                return Err(Error::Logits {
                    problem: format!(
                        "have the shape {shape:?}, not [{batch}, {seq}, {vocab_size}] or, for last positions, [{batch}, {vocab_size}]"
                    ),
                });
            }
        };
        let held = if positions == Positions::All { seq } else { 1 };
        let port = Logits::from_values("the port", values, &[batch, held, vocab_size], positions)
            .map_err(unusable)?;
        let places =
            self.tensors.places.iter().map(|&[row, position]| row as usize * seq + position as usize);
        let rows: BTreeMap<usize, &[f64]> =
            places.zip(self.tensors.logits.chunks_exact(vocab_size)).collect();
        let real = (0..batch * seq).map(|index| rows.contains_key(&index)).collect();
        let mask = Mask::new(batch, seq, real);
        let upstream: Vec<f64> = rows.values().flat_map(|row| row.iter().copied()).collect();
        let upstream = Logits::from_rows(
            "the recording",
            rows.keys().copied().collect(),
            Values::F64(upstream),
            &[batch, seq, vocab_size],
        );
        let reference = &recorded.reference;
        let entries = [
            Entry { name: "the port".into(), dtype, logits: Ok(port) },
            Entry {
                name: reference.variant.clone(),
                dtype: Dtype::named(&reference.dtype).unwrap_or(Dtype::F64),
                logits: Ok(upstream.map_err(unusable)?),
            },
        ];
        let matrix = matrix(&entries, mask.as_ref(), &Options::default()).map_err(unusable)?;
        let PairOutcome::Compared(metrics) = matrix.pair(0, 1).clone() else {
            return Err(Error::Logits {
                problem: "are of last positions, of which the recording holds none: let the port give every position"
                    .into(),
            });
        };
        let rmse = recorded.reference_rmse.get(dtype.name()).copied();
        let verdict = against_recorded(&matrix, rmse, &tolerances);
        let worst = metrics.worst_position.1;
        let end = worst.row * seq + worst.position + 1;
        let before =
            self.tensors.input_ids.get(end.saturating_sub(4).max(worst.row * seq)..end).unwrap_or_default();
        let largest = metrics.max_abs_at.and_then(|element| {
            let (row, position) = (element.at.row, element.at.position);
            let index = if positions == Positions::All { row * seq + position } else { row };
            let port = entries[0].logits.as_ref().ok()?.value(index, element.token).ok()?;
            Some((element, port, *rows.get(&(row * seq + position))?.get(element.token)?))
        });
        let context = Context { recorded: recorded.clone(), largest, before: before.to_vec() };
        Ok(Comparison { verdict, metrics: *metrics, dtype, context })
    }

    /// The recorded limits for a port that computes in `dtype`; other dtypes keep tfcheck's defaults.
    pub(crate) fn tolerances(&self, dtype: Dtype) -> Result<Tolerances, Error> {
        let limits = &self.recorded.limits;
        let own = limits.get(dtype.name()).ok_or_else(|| self.no_limits(dtype.name()))?;
        let default = Tolerances::default();
        let relative_l2 = |dtype: Dtype| {
            limits.get(dtype.name()).map_or(default.relative_l2.of(dtype), |limits| limits.relative_l2)
        };
        let dynamo =
            |dtype: Dtype| limits.get(dtype.name()).map_or(default.dynamo.of(dtype), |limits| limits.dynamo);
        let each = |of: &dyn Fn(Dtype) -> f64| PerDtype {
            f64: of(Dtype::F64),
            f32: of(Dtype::F32),
            bf16: of(Dtype::Bf16),
            f16: of(Dtype::F16),
        };
        Ok(Tolerances {
            f64_agreement: relative_l2(Dtype::F64),
            relative_l2: each(&relative_l2),
            local_factor: own.local_factor,
            dynamo: each(&dynamo),
        })
    }

    fn no_limits(&self, dtype: &str) -> Error {
        let known: Vec<&str> = self.recorded.limits.keys().map(String::as_str).collect();
        Error::Logits {
            problem: format!(
                "are {dtype}, for which the recording has no limits; it has {}",
                known.join(", ")
            ),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Context { recorded, largest, before } = &self.context;
        let metrics = &self.metrics;
        let libraries: Vec<String> =
            recorded.reference.libraries.iter().map(|(name, version)| format!("{name} {version}")).collect();
        writeln!(out, "{}: {}", self.verdict.decision.word(), self.verdict.evidence)?;
        writeln!(
            out,
            "  upstream  {}, {} ({})",
            recorded.reference.variant,
            recorded.reference.dtype,
            libraries.join(", ")
        )?;
        writeln!(out, "  checkpoint  {}", recorded.checkpoint)?;
        let last = if metrics.last_positions_only { " (last positions only)" } else { "" };
        let top1 = metrics.distribution.as_ref().map_or(f64::NAN, |distribution| distribution.top1_agreement);
        writeln!(
            out,
            "  over {} of {} positions{last}: L2 {:.6}, relative L2 {:.3e}, RMSE {:.3e}, top-1 agreement {:.1} %",
            metrics.positions,
            recorded.real_positions,
            metrics.l2,
            relative(metrics.l2, metrics.norm_a.max(metrics.norm_b)),
            metrics.rmse(),
            100.0 * top1
        )?;
        let (worst, at) = metrics.worst_position;
        writeln!(
            out,
            "  worst position  row {}, position {}: relative L2 {worst:.3e}; tokens up to it: … {before:?}",
            at.row, at.position
        )?;
        if let Some((element, port, upstream)) = largest {
            writeln!(
                out,
                "  largest difference  row {}, position {}, token {}: port {port:.6}, upstream {upstream:.6}",
                element.at.row, element.at.position, element.token
            )?;
        }
        if let Some(rmse) = recorded.reference_rmse.get(self.dtype.name()) {
            writeln!(out, "  upstream's own RMSE in {}  {rmse:.3e}", self.dtype.name())?;
        }
        write!(out, "  limits  {}", recorded.limits_from)
    }
}

#[cfg(test)]
mod tests {
    use compare::verdict::Decision;

    use super::*;
    use crate::recording::{Limits, Reference, SCHEMA_VERSION, Tensors};

    /// Two sequences of three tokens over four logits; the second one is padded on the left.
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
            modules: Vec::new(),
            surgery: None,
        };
        let tensors = Tensors {
            input_ids: vec![5, 6, 7, 0, 8, 9],
            attention_mask: vec![1, 1, 1, 0, 1, 1],
            position_ids: vec![0, 1, 2, 0, 0, 1],
            places,
            logits,
            ..Tensors::default()
        };
        Recording::write(folder, &recorded, &tensors).unwrap();
        Recording::open(folder).unwrap()
    }

    /// The recorded logits in a port's layout; padding is NaN, because nothing may read it.
    fn port(recording: &Recording) -> Vec<f64> {
        let mut logits = vec![f64::NAN; 24];
        for (place, row) in recording.tensors.places.iter().zip(recording.tensors.logits.chunks_exact(4)) {
            let index = (place[0] * 3 + place[1]) as usize;
            logits[index * 4..][..4].copy_from_slice(row);
        }
        logits
    }

    fn check(change: impl Fn(&mut Vec<f64>), dtype: &str, word: &str, evidence: &str) {
        let folder = tempfile::tempdir().unwrap();
        let recording = recording(folder.path());
        let mut logits = port(&recording);
        change(&mut logits);
        let comparison = recording.compare_values(&[2, 3, 4], &logits, dtype).unwrap();
        assert_eq!(comparison.verdict.decision.word(), word, "{comparison}");
        assert!(comparison.verdict.evidence.contains(evidence), "{}", comparison.verdict.evidence);
    }

    #[test]
    fn verdicts_follow_the_size_and_place_of_the_difference() {
        check(|_| {}, "f32", "identical", "all 20 compared");
        check(|logits| logits[0] += 1e-7, "f32", "same mathematics", "within dynamo's rule");
        check(|logits| logits[0] += 1e-7, "f64", "diverged", "exceeds f64's");
        // Within f32's 1e-5 overall, but a hundred times upstream's own error.
        check(|logits| logits.iter_mut().for_each(|x| *x += 1.4e-5), "f32", "worse rounding", "dynamo");
        check(|logits| logits[5] += 0.1, "f32", "diverged", "relative L2");
        check(|logits| logits[5] = f64::NAN, "f32", "diverged", "not finite");
        check(|logits| logits[5] = f64::INFINITY, "f32", "diverged", "exceeds f32's");
    }

    #[test]
    fn last_positions_are_compared_where_they_are_real() {
        let folder = tempfile::tempdir().unwrap();
        let recording = recording(folder.path());
        let all = port(&recording);
        let last = [&all[8..12], &all[20..24]].concat();
        for shape in [&[2, 1, 4][..], &[2, 4]] {
            let comparison = recording.compare_values(shape, &last, "f32").unwrap();
            assert_eq!((comparison.verdict.decision, comparison.metrics.positions), (Decision::Identical, 2));
        }
        let error = recording.compare_values(&[2, 3, 5], &[0.0; 30], "f32").unwrap_err().to_string();
        assert!(error.contains("[2, 3, 5], not [2, 3, 4]"), "{error}");
    }

    #[test]
    fn the_message_has_verdict_position_and_upstream_variant() {
        let folder = tempfile::tempdir().unwrap();
        let recording = recording(folder.path());
        let mut logits = port(&recording);
        logits[18] += 3.0;
        let text = recording.compare_values(&[2, 3, 4], &logits, "f32").unwrap().to_string();
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
    fn damaged_and_newer_recordings_are_refused() {
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
