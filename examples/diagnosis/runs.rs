//! Bugs that `tfcheck run` diagnoses and localises by itself: findings in ports, and a fork of transformers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use reference::{Source, Specification, prepare};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tfcheck::app::cache_folder;
use tfcheck::results::diagnosed::Diagnosed;
use tfcheck::results::localized::Localized;
use tfcheck::spec::config::{CheckpointSource, Config};

use crate::Add;
use crate::fork::{Fork, NEWEST};
use crate::judge::{Expected, Found, Outcome};
use crate::plants::findings::{FINDINGS, Finding};
use crate::plants::fork::{BRANCHES, Plant};
use crate::plants::public::{MAKER, WINDOWS, Window};

/// What a run found.
struct Results {
    summary: Value,
    diagnosed: Vec<Diagnosed>,
    localized: Vec<Localized>,
}

fn run(config: &Path, arguments: &[&str]) -> Results {
    // Examples lie in a folder beside the program, which configs may name as a program.
    let folder = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(folder.clone()).chain(std::env::split_paths(&path)));
    let results = tempfile::tempdir().unwrap();
    let output = Command::new(folder.join("tfcheck"))
        .env("PATH", path.unwrap())
        .args(["-q", "run"])
        .args(arguments)
        .arg("--results")
        .arg(results.path())
        .arg(config)
        .output()
        .unwrap();
    let folders = std::fs::read_dir(results.path()).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<PathBuf> = folders.filter(|path| path.join("run.json").is_file()).collect();
    let [run] = found.as_slice() else {
        panic!("{}: {}", config.display(), String::from_utf8_lossy(&output.stderr))
    };
    Results {
        summary: serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap(),
        diagnosed: list(&run.join("diagnosed.json")),
        localized: list(&run.join("localized.json")),
    }
}

/// The list in a file that a run writes if it is not empty.
fn list<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    std::fs::read(path).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap()).unwrap_or_default()
}

/// Findings that are wrong numbers, by their table in findings.md.
pub(crate) fn findings(root: &Path, part: &str, add: Add) {
    let text = std::fs::read_to_string(root.join("results/findings.md")).unwrap();
    let (_, wrong) = text.split_once("\n## Wrong numbers\n").unwrap();
    let (wrong, _) = wrong.split_once("\n## ").unwrap();
    for name in wrong.lines().filter_map(|line| Some(line.strip_prefix("| [")?.split_once(']')?.0)) {
        let path = root.join(format!("results/findings/{name}.toml"));
        if path.is_file() && name.contains(part) {
            add(name.to_owned(), finding(name, &path));
        }
    }
}

fn is_port(name: &str) -> bool {
    ["candle-transformers", "gguf"].iter().any(|port| name.starts_with(port))
}

pub(crate) fn expected_of_findings() -> HashMap<String, Expected> {
    let expected = |finding: &Finding| Expected {
        mistakes: finding.mistakes.to_vec(),
        parts: finding.parts,
        ..Expected::default()
    };
    FINDINGS.iter().map(|finding| (finding.name.to_owned(), expected(finding))).collect()
}

fn finding(name: &str, path: &Path) -> Found {
    let config = Config::load(Some(path)).unwrap().config;
    let is_native = match &config.checkpoints[0].source {
        CheckpointSource::Synthetic { model_type, variant } => {
            models::synthetic::config(model_type, variant.as_deref().unwrap_or_default()).is_ok()
        }
        _ => false,
    };
    if !is_native && FINDINGS.iter().all(|finding| finding.name != name) {
        return Found { outcome: Some(Outcome::NotTried), ..Found::default() };
    }
    let only: &[&str] = match (is_native, config.commands.is_empty()) {
        (false, _) => &[],
        (true, true) => &["--only", "*/candle*"],
        (true, false) => &["--only", "*/candle*", "--only", "*/gguf*"],
    };
    // Forward passes of transformers take longer than a run's time for a diagnosis.
    let folder = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(path).unwrap().replace("run = { ", "run = { diagnose_s = 150, ");
    let longer = folder.path().join(path.file_name().unwrap());
    std::fs::write(&longer, text).unwrap();
    let results = run(if is_native { path } else { &longer }, only);
    if let Some(diagnosed) = results.diagnosed.into_iter().find(|diagnosed| is_port(&diagnosed.suspect)) {
        return Found::of(diagnosed);
    }
    let cells = results.summary["cases"][0]["cells"].as_array().cloned().unwrap_or_default();
    let port = cells.iter().find(|cell| cell["name"].as_str().is_some_and(is_port));
    let is_run = port.is_some_and(|cell| cell["outcome"] == "completed");
    // A diagnosis is of inputs of tokens alone.
    let outcome = if is_run { Outcome::NotTried } else { Outcome::Fails };
    Found { outcome: Some(outcome), ..Found::default() }
}

fn name_of(plant: &Plant) -> String {
    format!("{} ({})", plant.class, plant.checkpoint)
}

pub(crate) fn expected_of_forks() -> HashMap<String, Expected> {
    let expected = |plant: &Plant| Expected {
        mistakes: if plant.hypotheses.is_empty() { Vec::new() } else { vec![plant.hypotheses] },
        module: plant.path.to_owned(),
        parts: plant.parts,
        ..Expected::default()
    };
    BRANCHES.into_iter().flatten().map(|plant| (name_of(plant), expected(plant))).collect()
}

/// Bugs in a fork, which a native model replaces as the trusted side.
pub(crate) fn forks(part: &str, add: Add) {
    let fork = Fork::new("diagnosis");
    for branch in BRANCHES {
        let branch: Vec<&Plant> = branch.iter().filter(|plant| name_of(plant).contains(part)).collect();
        if branch.is_empty() {
            continue;
        }
        fork.plant(branch.iter().copied());
        let checkpoint = |plant: &&Plant| {
            format!(
                "[[checkpoints]]\nname = \"{}\"\nsource = \"synthetic:{}\"\n",
                plant.class, plant.checkpoint
            )
        };
        let checkpoints = branch.iter().map(checkpoint).collect::<Vec<String>>().concat();
        let config = format!(
            "{checkpoints}[inputs]\nlengths = [40]\nbatch = [2]\npadding = [\"left\"]\n\
             [[versions]]\nname = \"{NEWEST}\"\nsource = \"transformers=={NEWEST}\"\n\
             [[versions]]\nname = \"fork\"\nsource = \"-e {}\"\n\
             [candle]\nmodes = [\"eager\"]\n\
             [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\ndtypes = [\"f32\"]\noracle = true\nrounds = 0\n\
             trace = false\nnoise = false\ndiagnose_s = {}\n",
            fork.0.display(),
            60 * branch.len(),
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tfcheck.toml");
        std::fs::write(&path, config).unwrap();
        let found = run(&path, &[]);
        for plant in branch {
            let is_case = |case: &str| case.starts_with(&format!("{}-", plant.class));
            let diagnosed = found.diagnosed.iter().find(|diagnosed| is_case(&diagnosed.case)).cloned();
            let localized = found.localized.iter().find(|localized| is_case(&localized.case));
            let localized = localized.map(Found::localised).unwrap_or_default();
            add(name_of(plant), Found { diagnosed, ..localized });
        }
    }
    fork.reset();
}

/// Public bugs, those between the same two releases in one run.
pub(crate) fn public(root: &Path, part: &str, add: Add) {
    let specification = Specification::new(Source::Release(MAKER.to_owned()));
    let maker = prepare(&specification, &cache_folder().unwrap(), &|line| eprintln!("{line}")).unwrap();
    let mut left: Vec<&Window> = WINDOWS.iter().filter(|window| window.name().contains(part)).collect();
    while let Some(first) = left.first().copied() {
        let is_of_the_run = |window: &&&Window| {
            (window.versions, window.attention, window.is_padded)
                == (first.versions, first.attention, first.is_padded)
        };
        let windows: Vec<&Window> = left.iter().filter(is_of_the_run).copied().collect();
        left.retain(|window| !is_of_the_run(&window));
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<&str> = windows.iter().map(|window| window.checkpoint).collect();
        let script = root.join("tests/fixtures/public_bugs.py");
        let made = Command::new(&maker.python).arg(script).arg(folder.path()).args(&names).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let checkpoints =
            names.iter().map(|name| format!("[[checkpoints]]\nsource = \"./{name}\"\nname = \"{name}\"\n"));
        let versions = first
            .versions
            .map(|name| format!("[[versions]]\nname = \"{name}\"\nsource = \"transformers=={name}\"\n"));
        let attention = if first.attention == "eager" { "\"eager\"" } else { "\"eager\", \"sdpa\"" };
        let inputs = if first.is_padded { "batch = [2]\npadding = [\"left\"]\n" } else { "" };
        let config = format!(
            "{}{}[inputs]\nlengths = [12]\n{inputs}[candle]\nmodes = []\n\
             [run]\nmodes = [\"eager\"]\nattention = [{attention}]\ndtypes = [\"f32\"]\noracle = true\nrounds = 0\n\
             trace = false\nnoise = false\ndiagnose_s = {}\n",
            checkpoints.collect::<String>(),
            versions.concat(),
            60 * windows.len(),
        );
        let path = folder.path().join("tfcheck.toml");
        std::fs::write(&path, config).unwrap();
        let found = run(&path, &[]);
        for window in windows {
            add(window.name(), of_window(window, &found));
        }
    }
}

pub(crate) fn expected_of_windows() -> HashMap<String, Expected> {
    let expected = |window: &Window| Expected {
        mistakes: window.mistakes.to_vec(),
        module: window.module.to_owned(),
        parts: window.parts,
        place: window.place.to_owned(),
        layer: None,
    };
    WINDOWS.iter().map(|window| (window.name(), expected(window))).collect()
}

fn of_window(window: &Window, results: &Results) -> Found {
    let shape = if window.is_padded { "b2-12" } else { "12" };
    let is_case = |case: &str| case.starts_with(&format!("{}-{shape}", window.checkpoint));
    let is_pair = |[a, b]: [&str; 2]| [a, b].iter().any(|name| name.ends_with(window.attention));
    let diagnosed = results
        .diagnosed
        .iter()
        .find(|diagnosed| is_case(&diagnosed.case) && is_pair([&diagnosed.trusted, &diagnosed.suspect]));
    let findings = results.summary["findings"].as_array().cloned().unwrap_or_default();
    let finding = findings.iter().find(|finding| {
        let cases = finding["cases"].as_array().cloned().unwrap_or_default();
        finding["finding"] == "diverges" && cases.iter().any(|case| case.as_str().is_some_and(is_case))
    });
    let Some(finding) = finding else {
        return Found { outcome: Some(Outcome::Agrees), ..Found::default() };
    };
    let localized = results
        .localized
        .iter()
        .find(|localized| is_case(&localized.case) && is_pair([&localized.a, &localized.b]));
    let localized = localized.map(Found::localised).unwrap_or_default();
    let place = finding["place"].as_str().map(str::to_owned);
    Found { diagnosed: diagnosed.cloned(), place, ..localized }
}
