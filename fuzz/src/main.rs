//! The fuzzer: one executable in which `TFCHECK_FUZZ` names the target. docs/TESTING.md tells how to run it.

#![no_main]

mod targets;

use std::cell::RefCell;

use targets::{Parse, TARGETS};

thread_local! {
    /// The target's parser, with the folder that it may write to.
    static PARSE: RefCell<Option<(Parse, tempfile::TempDir)>> = const { RefCell::new(None) };
}

/// The parser of the target that `TFCHECK_FUZZ` names.
fn open() -> (Parse, tempfile::TempDir) {
    let name = std::env::var("TFCHECK_FUZZ").unwrap_or_default();
    let target = TARGETS.iter().find(|target| target.name == name).unwrap_or_else(|| {
        let known: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        panic!("set TFCHECK_FUZZ to one of {}", known.join(", "))
    });
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    ((target.open)(folder.path()), folder)
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    PARSE.with_borrow_mut(|parse| (parse.get_or_insert_with(open).0)(bytes));
});
