//! Converts errors of the native models to the protocol's `Failed`.

use reference::protocol::{Failed, FailedKind};
use tfcheck_port::worker::exception;

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
    let mut message = match &error {
        // The same words for every type, so that a report says them once; `tfcheck list models` names the types.
        models::Error::UnknownModelType { .. } => "tfcheck has no native model of this model_type".to_owned(),
        models::Error::MissingTensor { .. } | models::Error::ShapeMismatch { .. } => {
            format!(
                "{error}; config.json and the weights do not fit each other: fetch both from one revision"
            )
        }
        models::Error::MissingKey { .. } => format!("{error} in config.json: fetch the file again"),
        error => error.to_string(),
    };
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
