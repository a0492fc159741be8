//! Converts errors to the protocol's `Failed`.

use reference::protocol::{Failed, FailedKind};

/// A failure with a message only.
pub fn exception(message: impl Into<String>) -> Failed {
    Failed {
        kind: FailedKind::Exception,
        error: String::new(),
        message: message.into(),
        traceback: String::new(),
    }
}

pub(super) fn not_loaded() -> Failed {
    exception("nothing is loaded yet")
}

pub(super) fn unsupported(message: impl Into<String>) -> Failed {
    Failed { kind: FailedKind::Unsupported, ..exception(message) }
}

pub(super) fn tensor_failure(error: candle_core::Error) -> Failed {
    model_failure(error.into())
}

pub(super) fn model_failure(error: models::Error) -> Failed {
    let unsupported = matches!(
        error,
        models::Error::UnknownModelType { .. }
            | models::Error::UnknownHead { .. }
            | models::Error::UnknownValue { .. }
            | models::Error::Unsupported(_)
    );
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    let kind = match error {
        _ if unsupported => FailedKind::Unsupported,
        // The CUDA driver's error name.
        models::Error::Gpu(reason) if reason.contains("CUDA_ERROR_OUT_OF_MEMORY") => FailedKind::OutOfMemory,
        _ => FailedKind::Exception,
    };
    Failed { kind, ..exception(message) }
}
