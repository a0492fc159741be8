//! What is accepted of a worker's replies: a worker is untrusted, and numbers that cannot be are a failed cell.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use reference::protocol::{Positions, Timed};

use crate::execute::cell::{FailureKind, Written};
use crate::execute::runner::NoResult;
use crate::execute::written;
use compare::logits::Logits;

/// The largest accepted peak memory, 1 PiB.
const MOST_BYTES: u64 = 1 << 50;

fn refused(reason: String) -> NoResult {
    NoResult::failed(FailureKind::MissingResult, reason)
}

/// Refuses a time that is longer than the request may take.
pub(super) fn duration(what: &str, ns: u64, timeout: Duration) -> Result<(), NoResult> {
    if Duration::from_nanos(ns) <= timeout {
        return Ok(());
    }
    let seconds = timeout.as_secs_f64();
    Err(refused(format!("the worker reports {ns} ns for {what}, which may take at most {seconds} s")))
}

/// Refuses memory that no machine has.
pub(super) fn peak(bytes: Option<u64>) -> Result<(), NoResult> {
    match bytes {
        Some(bytes) if bytes > MOST_BYTES => {
            Err(refused(format!("the worker reports a peak of {bytes} bytes of memory")))
        }
        _ => Ok(()),
    }
}

/// The round, if it has a time above 0 for each of the forward passes that were asked for, and for each of the decoded
/// tokens if it decoded any.
pub(super) fn timed(
    timed: Timed,
    (iterations, decode): (usize, usize),
    timeout: Duration,
) -> Result<Timed, NoResult> {
    peak(timed.peak_bytes)?;
    for (what, samples, asked) in
        [("forward passes", &timed.samples_ns, iterations), ("decoded tokens", &timed.decode_ns, decode)]
    {
        let is_left_out = what == "decoded tokens" && samples.is_empty();
        if samples.len() != asked && !is_left_out {
            let found = samples.len();
            return Err(refused(format!("the worker reports times of {found} {what} instead of {asked}")));
        }
        if samples.contains(&0) {
            return Err(refused(format!("the worker reports 0 ns for one of the {what}")));
        }
        samples.iter().try_for_each(|ns| duration(&format!("one of the {what}"), *ns, timeout))?;
    }
    Ok(timed)
}

/// The record of a logits file, taken when the worker replied.
pub(super) fn written(path: &Path, stop: &AtomicBool) -> Result<Written, NoResult> {
    match written::written(path, stop) {
        Ok(written) => Ok(written),
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => Err(NoResult::Interrupted),
        Err(error) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Err(refused(format!("the worker reported that it wrote {name}, but it cannot be read: {error}")))
        }
    }
}

/// Checks that the logits file exists, is complete and has the shape that the worker reported.
pub(super) fn verify_logits(path: &Path, shape: &[usize], positions: Positions) -> Result<Logits, NoResult> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let logits = written::open(path, positions)
        .map_err(|problem| refused(format!("the worker reported that it wrote {name}, but it {problem}")))?;
    let [batch, seq, vocab_size] = logits.shape();
    // A classifier's logits, `[batch, labels]`, have no sequence axis.
    if shape != [batch, seq, vocab_size] && !(seq == 1 && shape == [batch, vocab_size]) {
        let found = logits.shape();
        return Err(refused(format!("{name} holds logits {found:?}, but the worker reported {shape:?}")));
    }
    Ok(logits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_needs_a_possible_time_for_each_pass() {
        let timeout = Duration::from_secs(10);
        let check = |samples_ns: Vec<u64>, decode_ns: Vec<u64>, expected: Option<&str>| {
            let reply = Timed { samples_ns, decode_ns, ..Timed::default() };
            match (timed(reply, (2, 3), timeout), expected) {
                (Ok(_), None) => {}
                (Err(NoResult::Failed(failure)), Some(expected)) => {
                    assert!(failure.reason.contains(expected), "{}", failure.reason);
                }
                (found, expected) => panic!("{found:?} where {expected:?} was expected"),
            }
        };
        check(vec![1, 2], vec![], None);
        check(vec![1, 2], vec![3, 3, 3], None);
        check(vec![], vec![], Some("0 forward passes instead of 2"));
        check(vec![1; 1_000_000], vec![], Some("1000000 forward passes instead of 2"));
        check(vec![1, 0], vec![], Some("reports 0 ns"));
        check(vec![1, u64::MAX], vec![], Some("at most 10 s"));
        check(vec![1, 2], vec![3], Some("1 decoded tokens instead of 3"));
        assert!(peak(Some(u64::MAX)).is_err() && peak(Some(1 << 40)).is_ok());
    }
}
