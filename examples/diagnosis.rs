//! Writes results/diagnosis.md: what tfcheck finds of each bug that it has met or planted, and whether that is right.
//!
//! `cargo run --release --example diagnosis [-- KIND[/NAME]…]`, after `cargo build --release`, measures the kinds that are named, or
//! all, and keeps the rows of the others in results/diagnosis.json; `NAME` is a part of the names of findings, of bugs in the fork or of public bugs, and `none` measures nothing. `rows`, `native` and `sequences` run in this process; `findings` and
//! `fork` run the program and need Python, except for findings whose architecture has a native model.

#![allow(clippy::unwrap_used, reason = "an example whose preparation fails has failed")]
#![expect(clippy::print_stdout, reason = "it shows each diagnosis as it is made")]

#[path = "../tests/support/localize/engine.rs"]
mod engine;
#[path = "../tests/support/fork.rs"]
mod fork;
#[path = "../tests/support/mistaken.rs"]
mod mistaken;
#[path = "../tests/support/plants/mod.rs"]
mod plants;
#[path = "../tests/support/localize/setting.rs"]
mod setting;
#[path = "diagnosis/judge.rs"]
mod judge;
#[path = "diagnosis/page.rs"]
mod page;
#[path = "diagnosis/runs.rs"]
mod runs;

use std::collections::HashMap;
use std::path::Path;

use reference::protocol::{Dtype, Mode};
use serde::{Deserialize, Serialize};
use tfcheck::hunt::diagnose::{Diagnosis, hypotheses};

use judge::{Expected, Found, Outcome, judged};
use mistaken::{NOT_SHOWN, diagnosed, planted, rows, shown, tokens};
use plants::known::known_positives;
use plants::{Edit, Plant, text};
use setting::Setting;

/// A bug and what was found of it.
#[derive(Serialize, Deserialize)]
struct Row {
    kind: String,
    name: String,
    found: Found,
}

/// The kinds of rows, in their order, with their titles.
const KINDS: [(&str, &str); 6] = [
    ("findings", "Findings in candle-transformers' ports"),
    ("native", "Bugs that tests plant in native models"),
    ("rows", "Rows of the table of mistakes, each planted where a synthetic checkpoint shows it"),
    ("fork", "Bugs that tests plant in a fork of transformers"),
    ("public", "Public bugs of transformers, between two releases"),
    ("sequences", "Bugs that tests plant in models with inputs beside one text"),
];

fn main() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("results/diagnosis.json");
    let read = |path: &Path| -> Vec<Row> {
        std::fs::read(path).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap()).unwrap_or_default()
    };
    let named: Vec<String> = std::env::args().skip(1).collect();
    for (kind, _) in KINDS {
        let meant = named.iter().find_map(|name| match name.split_once('/') {
            Some((of, part)) => (of == kind).then(|| part.to_owned()),
            None => (name == kind).then(String::new),
        });
        let Some(part) = meant.or_else(|| named.is_empty().then(String::new)) else { continue };
        let expectations = expectations(kind);
        let mut add = |name: String, found: Found| {
            let verdict = judged(&found, expectations.get(&name).unwrap_or(&Expected::default()));
            let right = if verdict.is_right { "" } else { " WRONG" };
            println!(
                "{kind}/{name}: {:?}{right} ({:.1} s) {}",
                verdict.outcome, verdict.seconds, verdict.sentence
            );
            // Each row is kept as soon as it is known, because all of them take an hour; several kinds may be measured at once.
            let lock = std::fs::File::create(std::env::temp_dir().join("tfcheck-diagnosis.lock")).unwrap();
            lock.lock().unwrap();
            let mut all = read(&path);
            let row = Row { kind: kind.to_owned(), name, found };
            match all.iter_mut().find(|known| (&known.kind, &known.name) == (&row.kind, &row.name)) {
                Some(known) => *known = row,
                None => all.push(row),
            }
            std::fs::write(&path, serde_json::to_string_pretty(&all).unwrap() + "\n").unwrap();
        };
        match kind {
            "native" => native(&mut add),
            "rows" => of_the_table(&mut add),
            "sequences" => sequences(&mut add),
            "findings" => runs::findings(root, &part, &mut add),
            "fork" => runs::forks(&part, &mut add),
            "public" => runs::public(root, &part, &mut add),
            _ => {}
        }
    }
    std::fs::write(root.join("results/diagnosis.md"), page::page(&read(&path))).unwrap();
}

/// Takes the name of a row and what was found.
type Add<'a> = &'a mut dyn FnMut(String, Found);

/// What is right of each bug of a kind, by its name.
fn expectations(kind: &str) -> HashMap<String, Expected> {
    match kind {
        "native" => natives().into_iter().map(|bug| (bug.name, bug.expected)).collect(),
        "sequences" => {
            plants::sequences::localised().iter().map(|plant| (plant.name(), expected(plant))).collect()
        }
        "findings" => runs::expected_of_findings(),
        "fork" => runs::expected_of_forks(),
        "public" => runs::expected_of_windows(),
        _ => HashMap::new(),
    }
}

fn expected(plant: &Plant) -> Expected {
    Expected {
        mistakes: if plant.hypotheses.is_empty() { Vec::new() } else { vec![plant.hypotheses] },
        module: plant.module.clone(),
        parts: plant.parts,
        layer: plant.layer(),
        place: String::new(),
    }
}

/// A bug in a native model.
struct Native {
    name: String,
    expected: Expected,
    bug: Bug,
}

enum Bug {
    Plant(Plant, Vec<usize>),
    Rows(&'static str, &'static [&'static str]),
}

fn natives() -> Vec<Native> {
    let mut all = Vec::new();
    let mut add = |name: String, plant: Plant, lengths: &[usize]| {
        all.push(Native { name, expected: expected(&plant), bug: Bug::Plant(plant, lengths.to_vec()) });
    };
    for known in known_positives() {
        let padded = matches!(known.plant.edit, Edit::Inputs(_));
        let lengths = if padded || known.lengths.len() == 1 { known.lengths } else { &known.lengths[..1] };
        let name = known.claim.replace('_', " ");
        add(format!("{name} ({})", known.plant.checkpoint), known.plant, lengths);
    }
    for plant in text::localised() {
        let lengths: &[usize] = if matches!(plant.edit, Edit::Inputs(_)) { &[40, 25] } else { &[40] };
        add(plant.name(), plant, lengths);
    }
    for plant in text::outside_the_table() {
        add(format!("{}, outside the table", plant.name()), plant, &[40]);
    }
    for (plant, factor) in text::factors() {
        add(format!("{}, times {factor}", plant.name()), plant, &[40]);
    }
    for (checkpoint, planted) in text::SEVERAL {
        all.push(Native {
            name: format!("{checkpoint}: {}", planted.join(", ")),
            expected: Expected { mistakes: planted.chunks(1).collect(), ..Expected::default() },
            bug: Bug::Rows(checkpoint, planted),
        });
    }
    all
}

/// Diagnoses each bug by logits alone; if that does not find it, the modules of both sides are compared.
fn native(add: Add) {
    for Native { name, bug, .. } in natives() {
        let found = match bug {
            Bug::Rows(checkpoint, planted) => {
                Found::of(diagnosed(checkpoint, &tokens(&[40]), &rows(planted)))
            }
            Bug::Plant(plant, lengths) => {
                let found = diagnosed(plant.checkpoint, &tokens(&lengths), &self::planted(&plant));
                if matches!(found.finding, Diagnosis::Unexplained | Diagnosis::Nothing) {
                    let setting = Setting::new(plant.checkpoint);
                    Found { diagnosed: Some(found), ..localised(&plant, &setting) }
                } else {
                    Found::of(found)
                }
            }
        };
        add(name, found);
    }
}

/// Compares the modules of both sides.
fn localised(plant: &Plant, setting: &Setting) -> Found {
    let right = setting.load(Mode::Eager, Dtype::F32);
    let wrong = plant.committed(&right, &setting.folder.path().join("changed"));
    Found::localised(&setting.localize(right, wrong))
}

fn of_the_table(add: Add) {
    for row in hypotheses().filter(|row| !NOT_SHOWN.contains(&row.name)) {
        let Some(shown) = shown(row) else { continue };
        let outcome = if shown.is_named { Outcome::Named } else { Outcome::WrongName };
        let found = Found { outcome: Some(outcome), ..Found::of(shown.found) };
        add(format!("{} ({})", row.name, shown.checkpoint), found);
    }
}

fn sequences(add: Add) {
    for plant in plants::sequences::localised() {
        let setting = Setting::with_made_inputs(plant.checkpoint);
        add(plant.name(), localised(&plant, &setting));
    }
}
