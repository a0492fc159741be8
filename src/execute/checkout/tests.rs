//! What a checkout is, and the package that is generated for it; `tests/slow` builds one.

use tempfile::TempDir;

use super::*;
use crate::execute::worker::CANDLE_TRANSFORMERS;

/// A folder with these manifests, by their crate's folder.
fn folder(manifests: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in manifests {
        let at = folder.path().join(name);
        fs::create_dir_all(&at).unwrap();
        fs::write(at.join("Cargo.toml"), text.replace("VERSION", CANDLE_TRANSFORMERS)).unwrap();
    }
    folder
}

const ROOT: (&str, &str) = ("", "[workspace.package]\nversion = \"VERSION\"\n");
const MEMBER: &str = "[package]\nname = \"candle-transformers\"\nversion.workspace = true\n[dependencies]\ncandle.workspace = true\n";
const ALONE: &str = "[package]\nname = \"candle-transformers\"\nversion = \"VERSION\"\n[dependencies.candle]\nversion = \"VERSION\"\n";
const OTHER: &str = "[package]\nname = \"candle-nn\"\nversion = \"VERSION\"\n";

#[test]
fn a_checkout_is_a_workspace_or_the_crate_alone() {
    let workspace = folder(&[ROOT, (JUDGED, MEMBER), ("candle-core", OTHER), ("candle-nn", OTHER)]);
    for path in [workspace.path().to_owned(), workspace.path().join(JUDGED)] {
        let found = Checkout::at(&path).unwrap();
        let names: Vec<&str> = found.replaced.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, [JUDGED, "candle-core", "candle-nn"]);
        assert!(found.label.starts_with(&format!("{CANDLE_TRANSFORMERS} of /")), "{}", found.label);
    }
    // The crate as a registry unpacks it takes candle-core from there, whatever its neighbours are.
    let alone = folder(&[(JUDGED, ALONE), ("candle-core", OTHER)]);
    assert_eq!(Checkout::at(&alone.path().join(JUDGED)).unwrap().replaced.len(), 1);
}

#[test]
fn other_folders_and_versions_are_refused_with_the_reason() {
    let check = |manifests: &[(&str, &str)], expected: &str| {
        let folder = folder(manifests);
        let error = Checkout::at(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(&[], "is not the crate candle-transformers");
    check(&[("", OTHER)], "is not the crate candle-transformers");
    check(&[("", &ALONE.replace("\"VERSION\"\n[", "\"0.12.0\"\n["))], "and this is `0.12.0`");
    check(&[("", &ALONE.replace("\"VERSION\"\n[", "\"0.11.9-alpha.1\"\n["))], "and this is `0.11.9-alpha.1`");
    check(&[ROOT, (JUDGED, MEMBER), ("candle-nn", OTHER)], "has no crate candle-core");
    assert!(Checkout::at(Path::new("/no/such/folder")).unwrap_err().to_string().contains("/no/such/folder"));
}

#[test]
fn the_commit_and_uncommitted_changes_are_in_the_label() {
    let folder = folder(&[("", ALONE)]);
    let git = |arguments: &[&str]| {
        let identity = ["-c", "user.name=t", "-c", "user.email=t@t"];
        let mut git = Command::new("git");
        assert!(git.arg("-C").arg(folder.path()).args(identity).args(arguments).status().unwrap().success());
    };
    assert!(!Checkout::at(folder.path()).unwrap().label.contains("commit"));
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "a"]);
    let label = Checkout::at(folder.path()).unwrap().label;
    let commit = label.rsplit_once(", commit ").unwrap().1;
    assert!(commit.len() == 12 && commit.chars().all(|c| c.is_ascii_hexdigit()), "{label}");
    fs::write(folder.path().join("new.rs"), "").unwrap();
    assert!(Checkout::at(folder.path()).unwrap().label.ends_with(" with changes"));
}

#[test]
fn the_generated_package_replaces_the_checkouts_crates_and_nothing_else() {
    let checkout = Checkout {
        folder: "/candle/candle-transformers".into(),
        replaced: vec![(JUDGED, "/candle/candle-transformers".into()), ("candle-nn", "/candle/\"nn".into())],
        label: "0.11.1 of \"/candle\"".into(),
    };
    let manifest: Table = toml::from_str(&checkout.manifest(Path::new("/tfcheck/ports"))).unwrap();
    assert_eq!(manifest["dependencies"]["tfcheck-ports"]["path"].as_str(), Some("/tfcheck/ports"));
    let patch = manifest["patch"]["crates-io"].as_table().unwrap();
    assert_eq!(patch.len(), 2);
    assert_eq!(patch["candle-nn"]["path"].as_str(), Some("/candle/\"nn"));
    // It is a workspace of its own, wherever the cache is.
    assert!(manifest["workspace"].as_table().unwrap().is_empty());
    let program = checkout.program();
    assert!(program.contains(r#"ports::serve("0.11.1 of \"/candle\"")"#), "{program}");
    syn::parse_file(&program).unwrap();
}

#[test]
fn a_package_that_is_right_keeps_its_files() {
    let (cache, ports) = (tempfile::tempdir().unwrap(), adapters().unwrap());
    let checkout = Checkout { folder: "/c".into(), replaced: vec![(JUDGED, "/c".into())], label: "a".into() };
    let package = cache.path().join("package");
    checkout.write_package(&package, &ports).unwrap();
    let files = ["Cargo.toml", "Cargo.lock", "src/main.rs"].map(|name| package.join(name));
    let times = || files.clone().map(|path| fs::metadata(path).unwrap().modified().unwrap());
    let before = times();
    checkout.write_package(&package, &ports).unwrap();
    assert_eq!(times(), before);
}
