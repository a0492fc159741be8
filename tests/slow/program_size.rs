//! Checks the size of the program in the release profile.

/// The program is copied to GPU machines, so it must stay below 60 MB.
#[test]
fn the_stripped_program_is_below_60_mb() {
    let folder = tempfile::tempdir().unwrap();
    let stripped = folder.path().join("tfcheck");
    let status = std::process::Command::new("strip")
        .arg("-o")
        .arg(&stripped)
        .arg(env!("CARGO_BIN_EXE_tfcheck"))
        .status()
        .unwrap();
    assert!(status.success());
    let bytes = std::fs::metadata(&stripped).unwrap().len();
    assert!(bytes < 60_000_000, "{bytes} bytes");
}
