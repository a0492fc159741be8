//! Which variants share a mathematics or a code, and which results a verdict rests on.

use compare::oracle::Origin;
use reference::protocol::Dtype;

use crate::spec::variant::Variant;

/// The origin of a variant of a run.
pub fn origin(variant: &Variant) -> Origin {
    let Variant { runner, version, mode, attention, device, .. } = variant;
    let family = format!("{runner:?} {version}");
    let path = format!("{family} {mode:?} {attention:?} {device}");
    Origin { family, path }
}

/// Whether the verdict on a pair of variants rests on `other` too: a float64 result, or one of a family and a dtype of
/// theirs, whose rounding theirs is held against.
pub fn bears_on(other: &Variant, pair: [&Variant; 2]) -> bool {
    let family = |variant: &Variant| (variant.runner, variant.version.clone());
    other.dtype == Dtype::F64
        || pair.iter().any(|variant| variant.dtype == other.dtype)
            && pair.iter().any(|variant| family(variant) == family(other))
}
