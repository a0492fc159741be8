//! The JSON schema of `tfcheck.toml`, made from the types.

use std::borrow::Cow;

use reference::protocol::{Attention, Mode};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema, schema_for};
use serde_json::Value;

use super::{Config, LoadDtype};
use crate::spec::variant::{attention_name, mode_name};

/// What `tfcheck schema` prints.
pub fn schema_text() -> String {
    format!("{:#}\n", schema_for!(Config).as_value())
}

/// The sections that have `field`, as written in the file: `[run]`, `[[versions]]`.
pub(super) fn sections_with(field: &str) -> Vec<String> {
    let schema = schema_for!(Config);
    let root = schema.as_value();
    let Some(sections) = root["properties"].as_object() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (section, property) in sections {
        let (reference, written) = match property["items"]["$ref"].as_str() {
            Some(reference) => (Some(reference), format!("[[{section}]]")),
            None => (property["$ref"].as_str(), format!("[{section}]")),
        };
        let has = reference
            .and_then(|reference| root.pointer(reference.trim_start_matches('#')))
            .is_some_and(|definition| definition["properties"].get(field).is_some());
        if has {
            found.push(written);
        }
    }
    found
}

/// Schemas of the protocol's enums, whose crate does not depend on schemars.
macro_rules! names {
    ($($schema:ident of $title:literal: $name:expr, $all:expr;)*) => {$(
        pub(super) struct $schema;

        impl JsonSchema for $schema {
            fn schema_name() -> Cow<'static, str> {
                $title.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let names: Vec<Value> = $all.map(|one| Value::from($name(one))).into();
                json_schema!({ "type": "string", "enum": names })
            }
        }
    )*};
}

names! {
    ModeName of "Mode": mode_name, [Mode::Eager, Mode::Compiled, Mode::Frozen, Mode::ReduceOverhead, Mode::MaxAutotune, Mode::Fused];
    AttentionName of "Attention": attention_name, [Attention::Eager, Attention::Sdpa, Attention::Default];
    DtypeName of "Dtype": |dtype: LoadDtype| dtype.to_string(), LoadDtype::ALL;
}
