//! Which variants share a family or a code path, and which results a verdict depends on.

use compare::oracle::Origin;
use reference::protocol::Dtype;

use crate::spec::variant::Variant;

/// The origin of a variant: its family, and its code path within the family.
pub fn origin(variant: &Variant) -> Origin {
    let Variant { runner, version, mode, attention, device, .. } = variant;
    let family = format!("{runner:?} {version}");
    let path = format!("{family} {mode:?} {attention:?} {device}");
    Origin { family, path }
}

/// Whether the verdict on a pair of variants also depends on `other`: a float64 result, or a variant of a family and
/// a dtype of theirs, whose rounding error theirs is compared with.
pub fn bears_on(other: &Variant, pair: [&Variant; 2]) -> bool {
    let family = |variant: &Variant| (variant.runner, variant.version.clone());
    other.dtype == Dtype::F64
        || pair.iter().any(|variant| variant.dtype == other.dtype)
            && pair.iter().any(|variant| family(variant) == family(other))
}
