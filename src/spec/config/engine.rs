//! `[engine]`: how a plan is divided into units, and how these are submitted to a cluster.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a plan is divided, and what jobs of `tfcheck run --engine slurm` ask of the cluster. Without `--engine`, `--shard`,
/// `--unit` and `--plan` it is ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Engine {
    /// What a unit holds of a case's variants that are not timed. Default: all of them.
    #[serde(skip_serializing_if = "UnitOf::is_case")]
    pub unit: UnitOf,
    /// Partition of the jobs. Default: the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// Account that the jobs are charged to. Default: the user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub account: Option<String>,
    /// Features that the nodes must have, in Slurm's syntax. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<String>,
    /// Generic resources of units that need a GPU. Default: `gpu:N`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gres: Option<String>,
    /// Time limit of a unit in minutes. Default: the partition's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minutes: Option<u32>,
    /// Memory of a unit in MB (10^6 bytes). Default: twice the estimate, at least 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    /// Units that run at the same time. Default: as many as the cluster allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_once: Option<usize>,
    /// Further options of `sbatch`, such as `--qos=low`. Default: none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
    /// Environment variables of the jobs. Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

/// What a unit holds of a case's variants that are not timed. Timed variants are never divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnitOf {
    /// All of them on one class of devices.
    #[default]
    Case,
    /// Those of one version or program, so that the versions of a case run at the same time.
    Version,
}

impl UnitOf {
    /// Whether it is the default.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
    fn is_case(&self) -> bool {
        *self == Self::Case
    }
}

impl Engine {
    /// The first value that cannot be an option or a variable of a job, with the name of its field and the reason.
    pub(super) fn problem(&self) -> Option<(&'static str, String)> {
        let words = [
            ("partition", &self.partition),
            ("account", &self.account),
            ("constraint", &self.constraint),
            ("gres", &self.gres),
        ];
        let is_bad = |text: &str| text.is_empty() || text.chars().any(char::is_control);
        let named = words.iter().filter_map(|(name, value)| Some((*name, value.as_ref()?)));
        let options = self.options.iter().map(|option| ("options", option));
        let bad = named.chain(options).find(|(_, value)| is_bad(value));
        if let Some((name, value)) = bad {
            return Some((name, format!("`{}` is empty or has control characters", value.escape_default())));
        }
        let option = self.options.iter().find(|option| !option.starts_with('-'));
        if let Some(option) = option {
            return Some(("options", format!("`{option}` does not begin with `-`")));
        }
        let is_name = |name: &str| {
            let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            starts && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let bad = |(name, value): &(&String, &String)| !is_name(name) || value.chars().any(|c| c == '\0');
        let (name, _) = self.environment.iter().find(bad)?;
        Some(("environment", format!("`{}` cannot be a variable of a shell", name.escape_default())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_could_add_lines_or_options_to_a_script_are_refused() {
        let check = |engine: Engine, expected: Option<&str>| {
            assert_eq!(engine.problem().map(|(name, _)| name), expected);
        };
        check(Engine::default(), None);
        check(
            Engine { partition: Some("a\n#SBATCH --uid=0".into()), ..Engine::default() },
            Some("partition"),
        );
        check(Engine { gres: Some(String::new()), ..Engine::default() }, Some("gres"));
        check(Engine { options: vec!["--qos=low".into()], ..Engine::default() }, None);
        check(Engine { options: vec!["script.sh".into()], ..Engine::default() }, Some("options"));
        let variable = |name: &str| [(name.to_owned(), "a b".to_owned())].into();
        check(Engine { environment: variable("HF_HOME"), ..Engine::default() }, None);
        check(Engine { environment: variable("A;rm"), ..Engine::default() }, Some("environment"));
    }
}
