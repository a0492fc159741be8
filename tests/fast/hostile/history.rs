//! A history that others wrote: it removes nothing outside, its SQL does not run, and its values are bounded.

use std::os::unix::fs::symlink;

use super::folders::{finished, path};
use super::{told, unwrapped};
use crate::support::stderr;

#[test]
fn a_history_removes_no_folder_but_a_baselines_own() {
    let (sandbox, _run) = finished();
    let output = sandbox.tfcheck(&["baseline", "save", "b"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let kept = sandbox.write("outside/file", "precious");
    symlink(sandbox.path().join("outside"), sandbox.results().join("baselines/link")).unwrap();
    let history = sandbox.results().join("history.sqlite");
    for folder in
        ["../outside", "../../outside", "baselines/../../outside", "baselines/link", "baselines", ""]
    {
        let connection = rusqlite::Connection::open(&history).unwrap();
        connection.execute("UPDATE baselines SET folder = ?1", [folder]).unwrap();
        drop(connection);
        let output = sandbox.tfcheck(&["baseline", "remove", "b"]);
        assert_eq!(output.status.code(), Some(2), "{folder}: {}", stderr(&output));
        assert!(unwrapped(&stderr(&output)).contains("which it cannot be"), "{}", stderr(&output));
        assert_eq!(std::fs::read(&kept).unwrap(), b"precious", "{folder}");
        assert!(sandbox.results().join("baselines").is_dir(), "{folder}");
    }
}

#[test]
fn sql_of_others_in_a_history_does_not_run() {
    let (sandbox, run) = finished();
    assert_eq!(told(&sandbox, &["baseline", "save", "b"]).0, Some(0));
    let history = sandbox.results().join("history.sqlite");
    let kept = std::fs::read(&history).unwrap();
    let endless = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) \
                   SELECT 'b' name, 'r' run, 'x' folder, 's' saved, 'f' fingerprint, n bytes, '{}' files FROM t";
    for sql in [
        format!("DROP TABLE baselines; CREATE VIEW baselines AS {endless}"),
        "CREATE TRIGGER t AFTER INSERT ON cells BEGIN DELETE FROM baselines; END".to_owned(),
        "CREATE INDEX i ON baselines(name) WHERE length(hex(zeroblob(400000000))) > 0".to_owned(),
        "DROP TABLE baselines; CREATE TABLE baselines(name, run, folder, saved, fingerprint, bytes, \
         files AS (hex(zeroblob(400000000))))"
            .to_owned(),
    ] {
        std::fs::write(&history, &kept).unwrap();
        rusqlite::Connection::open(&history).unwrap().execute_batch(&sql).unwrap();
        for arguments in [&["baseline", "list"][..], &["baseline", "save", "c"], &["baseline", "remove", "b"]]
        {
            let (code, shown) = told(&sandbox, arguments);
            assert_eq!(code, Some(2), "{sql} {arguments:?}: {shown}");
            assert!(shown.contains("is not tfcheck's") && shown.contains("move it away"), "{shown}");
        }
        // A run is not lost with its history.
        let (code, shown) = told(&sandbox, &["run", "--resume", path(&run)]);
        assert_eq!(code, Some(0), "{shown}");
        assert!(shown.contains("not in the history"), "{shown}");
    }
}

#[test]
fn values_of_a_history_are_bounded() {
    let (sandbox, _run) = finished();
    let history = sandbox.results().join("history.sqlite");
    let row = "SELECT hex(zeroblob(100000)), 'r', 'baselines/x', 's', 'f', 1, '{}'";
    let connection = rusqlite::Connection::open(&history).unwrap();
    connection.execute_batch(&format!("INSERT INTO baselines {row}")).unwrap();
    let (code, shown) = told(&sandbox, &["baseline", "list"]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("more characters") && shown.len() < 2000, "{shown}");
    let many = "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t LIMIT 20000) \
                SELECT 'n' || n, 'r', 'baselines/x', 's', 'f', 1, '{}' FROM t";
    connection.execute_batch(&format!("INSERT INTO baselines {many}")).unwrap();
    let (code, shown) = told(&sandbox, &["baseline", "list"]);
    assert_eq!(code, Some(2), "{shown}");
    assert!(shown.contains("20001 baselines of a history"), "{shown}");
}

#[test]
fn files_that_sqlite_opens_beside_a_history_are_regular_files() {
    let (sandbox, _run) = finished();
    let victim = sandbox.write("victim", "precious");
    for suffix in ["journal", "wal", "shm"] {
        let beside = sandbox.results().join(format!("history.sqlite-{suffix}"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &beside, rustix::fs::Mode::RWXU).unwrap();
        for is_link in [false, true] {
            let (code, shown) = told(&sandbox, &["baseline", "list"]);
            assert_eq!(code, Some(2), "{suffix} {is_link}: {shown}");
            assert!(shown.contains(&format!("history.sqlite-{suffix} is not a regular file")), "{shown}");
            std::fs::remove_file(&beside).unwrap();
            if !is_link {
                symlink(&victim, &beside).unwrap();
            }
        }
    }
    assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
}

#[test]
fn a_baseline_that_another_one_names_keeps_its_folder() {
    let (sandbox, _run) = finished();
    assert_eq!(told(&sandbox, &["baseline", "save", "b"]).0, Some(0));
    let connection = rusqlite::Connection::open(sandbox.results().join("history.sqlite")).unwrap();
    let copy =
        "INSERT INTO baselines SELECT 'evil', run, folder, saved, fingerprint, bytes, files FROM baselines";
    connection.execute_batch(copy).unwrap();
    assert_eq!(told(&sandbox, &["baseline", "remove", "evil"]).0, Some(0));
    let (code, shown) = told(&sandbox, &["run", "--against", "b"]);
    assert_eq!(code, Some(0), "{shown}");
    assert!(shown.contains("against baseline b"), "{shown}");
}
