//! `[relations]` of the config.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{RELATIONS, Relation};

/// Invariants that each variant is checked against itself for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Relations {
    /// Whether `tfcheck run` checks relations after the cells. Default: false; `tfcheck relations` checks them in any case.
    pub enabled: bool,
    /// Names of the relations that are checked (docs/relations.md). Default: all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<String>>,
}

impl Relations {
    /// The relations that are checked, in the order of the table.
    pub fn selected(&self) -> Vec<&'static Relation> {
        let is_wanted = |relation: &&Relation| {
            self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == relation.name))
        };
        RELATIONS.iter().filter(is_wanted).collect()
    }
}
