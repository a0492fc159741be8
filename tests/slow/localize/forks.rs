//! Plants bugs in an editable fork of transformers and runs `tfcheck run` on the release, the fork and the native model.
//! The verdict on each must be *diverged*, and the run itself must localise it.

use serde_json::Value;

use crate::fork::{Fork, NEWEST};
use crate::plants::fork::{BRANCHES, Branch, Plant};
use crate::support::{Run, Sandbox, stderr};

/// A checkpoint whose modeling file no branch touches.
const UNTOUCHED: &str = "xlm-roberta";

/// One run of all checkpoints of a branch, with the native model if `has_native`.
fn run(fork: &Fork, branch: Branch, has_native: bool) -> (Sandbox, Run) {
    let sandbox = Sandbox::new();
    let checkpoint = |name: &str, checkpoint: &str| {
        format!("[[checkpoints]]\nname = \"{name}\"\nsource = \"synthetic:{checkpoint}\"\n")
    };
    let checkpoints: String = branch.iter().map(|plant| checkpoint(plant.class, plant.checkpoint)).collect();
    let config = format!(
        "{checkpoints}{}[inputs]\nlengths = [40]\nbatch = [2]\npadding = [\"left\"]\n\
         [[versions]]\nname = \"{NEWEST}\"\nsource = \"transformers=={NEWEST}\"\n\
         [[versions]]\nname = \"fork\"\nsource = \"-e {}\"\n\
         [candle]\nmodes = [{}]\n\
         [run]\nmodes = [\"eager\"]\nattention = [\"eager\"]\ndtypes = [\"f32\"]\noracle = true\nrounds = 0\n\
         trace = false\nnoise = false\nthreads = 1\ndiagnose_s = 0\n",
        checkpoint("untouched", UNTOUCHED),
        fork.0.display(),
        if has_native { "\"eager\"" } else { "" },
    );
    let config = sandbox.write("tfcheck.toml", &config);
    let output = sandbox.run(&config, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let run = sandbox.only_run();
    if has_native {
        // The run localises the fork against the release only, because the native model is in the release's group.
        let folder = run.path().to_str().unwrap();
        let output = sandbox.tfcheck(&["localize", "--run", folder, "fork_eager_eager", "candle_eager"]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    }
    (sandbox, run)
}

/// The verdict on two variants of a case, and its evidence.
pub(crate) fn verdict(case: &Value, a: &str, b: &str) -> (String, String) {
    let verdicts = case["verdicts"].as_array().unwrap();
    let found = verdicts.iter().find(|verdict| verdict["a"] == a && verdict["b"] == b);
    let found = found.unwrap_or_else(|| panic!("no verdict on {a} and {b}"));
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    (text("verdict"), text("evidence"))
}

/// Problems with the verdicts on a bug: the fork must diverge from the release and from the native model.
fn judged(plant: &Plant, case: &Value, has_native: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expect = |a: &str, b: &str, words: &[&str]| {
        let (word, evidence) = verdict(case, a, b);
        if !words.contains(&word.as_str()) {
            wrong.push(format!("{}: {a} and {b} are {word}: {evidence}", plant.class));
        }
    };
    for dtype in ["", "_f64"] {
        let [release, own] = [NEWEST, "fork"].map(|version| format!("{version}_eager_eager{dtype}"));
        expect(&release, &own, &["diverged"]);
        if has_native {
            let native = format!("candle_eager{dtype}");
            expect(&own, &native, &["diverged"]);
            expect(&release, &native, &["identical", "same_mathematics"]);
        }
    }
    wrong
}

/// Problems with the localisations of a bug: the run's own and, if `has_native`, that of `tfcheck localize`.
fn localized(plant: &Plant, case: &Value, has_native: bool) -> Vec<String> {
    let localized = case["localized"].as_array().unwrap();
    let mut expected = vec![(["5.23.0_eager_eager", "fork_eager_eager"], plant.path)];
    if has_native {
        let path = if plant.native.is_empty() { plant.path } else { plant.native };
        expected.push((["fork_eager_eager", "candle_eager"], path));
    }
    if localized.len() != expected.len() {
        return vec![format!("{}: {} pairs are localised", plant.class, localized.len())];
    }
    let mut wrong = Vec::new();
    for (found, ([a, b], path)) in localized.iter().zip(expected) {
        let has_note = b != "fork_eager_eager" || found["notes"].to_string().contains(plant.note);
        let is_sound = found["dtype"] == "f64" && found["capture_changed_nothing"] == true;
        if !(found["a"] == a && found["b"] == b && found["finding"]["path"] == path && is_sound && has_note) {
            wrong.push(format!("{}: {} ({})", plant.class, found["sentence"], found["notes"]));
        }
    }
    wrong
}

#[test]
fn bugs_in_an_editable_fork_diverge_and_the_run_names_the_module() {
    let fork = Fork::new("bugs");
    let mut wrong = Vec::new();
    let mut keys = Vec::new();
    for (branch, has_native) in BRANCHES.into_iter().zip([false, true]) {
        let commit = fork.plant(branch);
        let (_sandbox, run) = run(&fork, branch, has_native);
        // The working copy is identified by its commit and its uncommitted changes.
        let environments = run.json("environment.json")["environments"].clone();
        assert!(environments[1]["notes"].to_string().contains(&format!("{commit}+")), "{environments}");
        keys.push(environments[1]["key"].clone());
        let summary = run.json("summary.json");
        let cases = summary["cases"].as_array().unwrap();
        assert_eq!(cases.len(), branch.len() + 1);
        for (plant, case) in branch.iter().zip(cases) {
            wrong.extend(judged(plant, case, has_native));
            wrong.extend(localized(plant, case, has_native));
        }
        // A model whose file is unchanged is bitwise equal to the release.
        let (word, evidence) = verdict(&cases[branch.len()], "5.23.0_eager_eager", "fork_eager_eager");
        assert_eq!(word, "identical", "{evidence}");
    }
    fork.reset();
    assert_ne!(keys[0], keys[1], "each state of the working copy has results of its own");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(BRANCHES.iter().map(|branch| branch.len()).sum::<usize>() >= 20);
}
