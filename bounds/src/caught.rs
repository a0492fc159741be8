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
                        .map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
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
    done.map_err(|panic| format!("panicked{place}: {}", message(panic.as_ref())))
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
        assert!(error.starts_with("panicked at ") && error.contains("caught.rs:"), "{error}");
        assert!(error.ends_with("index out of bounds: the len is 0 but the index is 3"), "{error}");
        assert_eq!(caught(|| 1), Ok(1));
    }
}
