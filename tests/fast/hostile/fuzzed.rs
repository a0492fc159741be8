//! The fuzzer's targets (`fuzz/src/targets`) on every seed and every input that once failed, and on mutations of them.
//!
//! Every mutation follows from its number, so that a failure repeats. A target takes mutations for `TFCHECK_FUZZ_SECONDS`
//! seconds if that is set, otherwise a fixed number of them. An input that fails is written to the temporary folder of the tests, and
//! belongs to `fuzz/seeds/<target>`.

use std::path::Path;
use std::time::{Duration, Instant};

use super::mutations::{Random, mutated};
use crate::fuzz_targets::{self, TARGETS, Target};

/// Longest time of one input, in an executable without optimisation and beside other tests.
const LIMIT: Duration = Duration::from_secs(20);
/// Mutations of a target's seeds, all seeds together.
const MUTATIONS: u64 = 60;

/// Runs a target on its seeds and on mutations of them.
fn replay(target: &Target) {
    let folder = tempfile::tempdir().unwrap();
    let mut parse = (target.open)(folder.path());
    let mut run = |bytes: &[u8], name: &str| {
        let begun = Instant::now();
        let ended = bounds::caught(|| parse(bytes));
        let took = begun.elapsed();
        if ended.is_err() || took > LIMIT {
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzzed-{}", target.name));
            std::fs::write(&path, bytes).unwrap();
            panic!("{} on {name}: {ended:?} after {took:?}; the input is in {}", target.name, path.display());
        }
    };
    let seeds: Vec<(String, Vec<u8>)> = seeds(target);
    for (name, bytes) in &seeds {
        run(bytes, name);
    }
    let seconds = std::env::var("TFCHECK_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut done = 0;
    while end.map_or(done < MUTATIONS, |end| Instant::now() < end) {
        let (name, seed) = &seeds[done as usize % seeds.len()];
        run(&mutated(seed, &mut Random(done)), &format!("mutation {done} of {name}"));
        done += 1;
    }
    if end.is_some() {
        eprintln!("{}: {done} mutations", target.name);
    }
}

/// The seeds of a target, by their names.
fn seeds(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = fuzz_targets::folder().join("seeds").join(target.name);
    let mut seeds: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).unwrap()))
        .collect();
    assert!(!seeds.is_empty(), "{} has no seeds", target.name);
    seeds.sort();
    seeds
}

/// Runs every `of`-th target, from `first` on: a few tests, which run side by side.
fn every(first: usize, of: usize) {
    TARGETS.iter().skip(first).step_by(of).for_each(replay);
}

#[test]
fn every_parser_returns_on_the_first_third_of_the_fuzzers_seeds() {
    every(0, 3);
}

#[test]
fn every_parser_returns_on_the_second_third_of_the_fuzzers_seeds() {
    every(1, 3);
}

#[test]
fn every_parser_returns_on_the_last_third_of_the_fuzzers_seeds() {
    every(2, 3);
}

#[test]
fn every_folder_of_seeds_is_that_of_a_target() {
    for entry in std::fs::read_dir(fuzz_targets::folder().join("seeds")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(TARGETS.iter().any(|target| *target.name == *name), "{name:?} is no target");
    }
}
