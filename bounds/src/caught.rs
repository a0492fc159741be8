//! Panics of foreign code as errors.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    /// `Some` while this thread runs foreign code; then the place of its last panic.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs foreign code; a panic becomes its message and place instead of text on standard error. It does not cover aborts: a
/// stack overflow, or an allocation that fails.
///
/// # Errors
/// If `work` panics. What it changed is then in an unknown state.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let is_caught = PLACE.with_borrow_mut(|place| {
                place.as_mut().map(|place| {
                    *place = panic
                        .location()
                        .map_or_else(String::new, |at| format!(" ({}:{})", short(at.file()), at.line()));
                })
            });
            if is_caught.is_none() {
                before(panic);
            }
        }));
    });
    let outer = PLACE.replace(Some(String::new()));
    let done = catch_unwind(AssertUnwindSafe(work));
    let place = PLACE.replace(outer).unwrap_or_default();
    done.map_err(|panic| format!("panicked: {}{place}", message(panic.as_ref())))
}

/// A source file without the folder in which cargo keeps crates.
fn short(file: &str) -> &str {
    let in_registry = file.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/'));
    in_registry.map_or(file, |(_, file)| file)
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message_and_place() {
        let nothing: Vec<u8> = Vec::new();
        let error = caught(|| nothing[3]).unwrap_err();
        let expected = "panicked: index out of bounds: the len is 0 but the index is 3 (";
        assert!(error.starts_with(expected) && error.contains("caught.rs:"), "{error}");
        let file = "/cargo/registry/src/index.invalid-1/tokenizers-0.23.2/src/lib.rs";
        assert_eq!(short(file), "tokenizers-0.23.2/src/lib.rs");
        assert_eq!(caught(|| 1), Ok(1));
    }
}
