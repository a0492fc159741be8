//! Failures as the protocol words them.

use protocol::{Failed, FailedKind};

/// A failure with a message only.
pub fn exception(message: impl Into<String>) -> Failed {
    Failed {
        kind: FailedKind::Exception,
        error: String::new(),
        message: message.into(),
        traceback: String::new(),
    }
}

/// A request that the worker does not support.
pub fn unsupported(message: impl Into<String>) -> Failed {
    Failed { kind: FailedKind::Unsupported, ..exception(message) }
}

/// A request before [`protocol::Request::Load`].
pub fn not_loaded() -> Failed {
    exception("nothing is loaded yet")
}

/// A candle error: its first line is the message, because a backtrace follows it if `RUST_BACKTRACE` is set. An operation
/// that candle lacks in a dtype is unsupported.
#[expect(clippy::needless_pass_by_value, reason = "it is what map_err passes")]
pub fn failure(error: candle_core::Error) -> Failed {
    let text = error.to_string();
    let message = first_line(&text);
    let failed =
        if message.starts_with("unsupported dtype") { unsupported(message) } else { exception(message) };
    Failed { traceback: text.clone(), ..failed }
}

/// Runs code of a model, which may panic; the panic's message becomes the reason that tfcheck shows.
///
/// # Errors
/// Those of `run`, and its panic.
pub fn guarded<T>(run: impl FnOnce() -> Result<T, Failed>) -> Result<T, Failed> {
    bounds::caught(run).unwrap_or_else(|panic| {
        let brief = panic.split("\\n").next().unwrap_or(&panic);
        let message = format!("the model {}", first_line(brief));
        Err(Failed { traceback: panic.clone(), ..exception(message) })
    })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
