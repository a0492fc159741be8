//! Units: the parts of a plan that different machines may compute, and the shares into which a plan is divided.
//!
//! Every machine divides a plan alike, without a coordinator: the division depends only on the plan and on the estimates
//! that are kept with it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::UnitOf;
use super::plan::{CellPlan, Plan};

/// The largest number of shards of a plan.
pub const MOST_SHARDS: usize = 100_000;
/// Bytes of a unit's name before its device class: a file name has at most 255.
const NAME_BYTES: usize = 200;

/// Whether a unit's times count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnitKind {
    /// Variants whose logits are computed and that are not timed. They may share a machine with other work.
    Numeric,
    /// Variants that are timed in interleaved rounds. The unit is indivisible and needs the machine for itself.
    Timing,
}

impl UnitKind {
    /// `numeric`, `timing`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Numeric => "numeric",
            Self::Timing => "timing",
        }
    }
}

/// The variants of one case that one machine computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Unit {
    /// Case, device class and kind: `llama-128.cpu.timing`; if a unit holds one version, also that:
    /// `llama-128.4.54.0.cpu.numeric`. Unique in the plan, and safe as a file name.
    pub name: String,
    /// Whether its times count.
    pub kind: UnitKind,
    /// The case's name.
    pub case: String,
    /// Class of the devices: `cpu` or `cuda`.
    pub device: String,
    /// Names of its variants, in the plan's order.
    pub variants: Vec<String>,
    /// Whether no other work may run on the machine at the same time.
    pub exclusive: bool,
    /// What it needs of a machine.
    pub needs: Needs,
}

/// What a unit needs of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Needs {
    /// Compute threads of each worker; one worker computes at a time.
    pub cpus: usize,
    /// Bytes of memory that its workers hold, estimated.
    pub memory_bytes: u64,
    /// Number of GPUs that must be visible.
    pub gpus: usize,
    /// Seconds, estimated.
    pub seconds: u64,
    /// Source of the estimates.
    pub estimated_from: EstimatedFrom,
    /// Digests of the Python environments that its variants run in.
    pub environments: Vec<String>,
}

/// Source of a unit's estimates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EstimatedFrom {
    /// Sizes of checkpoint and inputs.
    #[default]
    Sizes,
    /// Earlier runs of the same cells on this machine.
    History,
}

/// Some variants of one case, by index into [`Plan::cells`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name of the unit.
    pub name: String,
    /// Whether its times count.
    pub kind: UnitKind,
    /// Index into [`Plan::cases`].
    pub case: usize,
    /// Class of the devices.
    pub device: &'static str,
    /// Indices into [`Plan::cells`].
    pub cells: Vec<usize>,
}

/// Divides a plan into its units, case by case: within a case, variants of one device class stay together, or those of one
/// version; timed variants form one unit, because only variants that are timed in the same rounds can be compared in speed.
pub fn groups(plan: &Plan, unit_of: UnitOf, is_timed: impl Fn(&CellPlan) -> bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut known: HashMap<_, usize> = HashMap::new();
    let mut names = HashSet::new();
    for (index, cell) in plan.cells.iter().enumerate() {
        let kind = if is_timed(cell) { UnitKind::Timing } else { UnitKind::Numeric };
        let device = device_class(&cell.variant.device);
        let is_divided = unit_of == UnitOf::Version && kind == UnitKind::Numeric;
        let version = is_divided.then_some(cell.variant.version.as_str());
        if let Some(&at) = known.get(&(cell.case, kind, device, version)) {
            groups[at].cells.push(index);
        } else if let Some(case) = plan.cases.get(cell.case) {
            known.insert((cell.case, kind, device, version), groups.len());
            let stem =
                version.map_or_else(|| case.name.clone(), |version| format!("{}.{version}", case.name));
            let name = unused(&stem, &format!(".{device}.{}", kind.word()), &mut names);
            groups.push(Group { name, kind, case: cell.case, device, cells: vec![index] });
        }
    }
    groups
}

/// `stem` and `ending` as a file name that no other unit has: cut off if it is long, and with a number if it is taken, also
/// where a file system does not distinguish capitals. `names` has those that are taken.
fn unused(stem: &str, ending: &str, names: &mut HashSet<String>) -> String {
    let end = (0..=stem.len().min(NAME_BYTES)).rev().find(|&at| stem.is_char_boundary(at)).unwrap_or(0);
    let stem = &stem[..end];
    let mut name = format!("{stem}{ending}");
    let mut number = 1;
    while !names.insert(name.to_lowercase()) {
        number += 1;
        name = format!("{stem}-{number}{ending}");
    }
    name
}

/// `cuda` for `cuda:0` and the like, else `cpu`.
fn device_class(device: &str) -> &'static str {
    if device.starts_with("cuda") { "cuda" } else { "cpu" }
}

/// One of several shares of a plan, as `--shard 2/4` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1 to `count`.
    pub index: usize,
    /// Number of shards.
    pub count: usize,
}

impl Shard {
    /// Indices of the units that this shard computes, in the order of the plan.
    ///
    /// Units are assigned by decreasing estimated seconds, each to the shard with the fewest seconds so far; equal units in
    /// the order of their names, equal shards in the order of their numbers.
    pub fn of(self, units: &[Unit]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..units.len()).collect();
        order.sort_by_key(|&at| (std::cmp::Reverse(units[at].needs.seconds), units[at].name.as_str()));
        let mut loads = vec![(0_u64, 0_usize); self.count];
        let mut own = Vec::new();
        for at in order {
            // The number of units distinguishes shards whose units are estimated at 0 s.
            let Some(least) = (0..loads.len()).min_by_key(|&shard| loads[shard]) else { break };
            loads[least].0 = loads[least].0.saturating_add(units[at].needs.seconds);
            loads[least].1 += 1;
            if least + 1 == self.index {
                own.push(at);
            }
        }
        own.sort_unstable();
        own
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, count)) if 1 <= index && index <= count && count <= MOST_SHARDS => {
                Ok(Self { index, count })
            }
            _ => Err(format!("a shard is K/N with 1 <= K <= N <= {MOST_SHARDS}, such as 2/4")),
        }
    }
}

#[cfg(test)]
mod tests {
    use reference::protocol::Mode;

    use super::*;
    use crate::spec::config::{Config, Version};

    fn unit(name: &str, seconds: u64) -> Unit {
        Unit {
            name: name.to_owned(),
            kind: UnitKind::Numeric,
            case: name.to_owned(),
            device: "cpu".to_owned(),
            variants: vec!["one".to_owned()],
            exclusive: false,
            needs: Needs { seconds, ..Needs::default() },
        }
    }

    #[test]
    fn a_shard_is_a_number_of_a_count() {
        assert_eq!("2/4".parse(), Ok(Shard { index: 2, count: 4 }));
        assert_eq!("1/1".parse::<Shard>().unwrap().to_string(), "1/1");
        for text in ["", "0/4", "5/4", "1", "1/0", "-1/2", "a/b", "1/100001", "1/2/3"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn every_unit_is_in_exactly_one_shard(seconds in proptest::collection::vec(0_u64..50, 0..40), count in 1_usize..9) {
            let units: Vec<Unit> =
                seconds.iter().enumerate().map(|(at, &seconds)| unit(&format!("u{at}"), seconds)).collect();
            let shares: Vec<Vec<usize>> =
                (1..=count).map(|index| Shard { index, count }.of(&units)).collect();
            let mut all = shares.concat();
            all.sort_unstable();
            proptest::prop_assert_eq!(all, (0..units.len()).collect::<Vec<_>>());
            // A greedy share exceeds the mean by less than the largest unit.
            let load = |share: &Vec<usize>| share.iter().map(|&at| seconds[at]).sum::<u64>();
            let total: u64 = seconds.iter().sum();
            let largest = seconds.iter().copied().max().unwrap_or(0);
            let most = shares.iter().map(load).max().unwrap_or(0);
            proptest::prop_assert!(most <= total / count as u64 + largest);
        }
    }

    #[test]
    fn only_variants_that_are_not_timed_are_divided_by_version() {
        let mut config =
            Config { versions: ["4.54.0", "5.23.0"].map(Version::release).into(), ..Config::default() };
        config.inputs.lengths = Some(vec![8]);
        config.run.modes = vec![Mode::Eager, Mode::Compiled];
        let plan = Plan::new(&config, "cpu").unwrap();
        let is_timed = |cell: &CellPlan| cell.variant.version == "5.23.0" || cell.variant.mode == Mode::Fused;
        let check = |unit_of: UnitOf, expected: &[(&str, &str)]| {
            let groups = groups(&plan, unit_of, is_timed);
            let variants = |group: &Group| {
                group.cells.iter().map(|&at| plan.cells[at].variant.name()).collect::<Vec<_>>().join(" ")
            };
            let found: Vec<_> = groups.iter().map(|group| (group.name.clone(), variants(group))).collect();
            assert!(
                found.iter().map(|(name, variants)| (&**name, &**variants)).eq(expected.iter().copied()),
                "{found:?}"
            );
        };
        let timing = "5.23.0_eager_sdpa 5.23.0_compiled_sdpa candle_fused";
        check(
            UnitOf::Case,
            &[
                ("llama-8.cpu.numeric", "4.54.0_eager_sdpa 4.54.0_compiled_sdpa candle_eager"),
                ("llama-8.cpu.timing", timing),
            ],
        );
        check(
            UnitOf::Version,
            &[
                ("llama-8.4.54.0.cpu.numeric", "4.54.0_eager_sdpa 4.54.0_compiled_sdpa"),
                ("llama-8.cpu.timing", timing),
                ("llama-8.candle.cpu.numeric", "candle_eager"),
            ],
        );
    }

    #[test]
    fn names_of_units_are_unique_file_names() {
        let mut names = HashSet::new();
        let mut check = |stem: &str, expected: &str| {
            let name = unused(stem, ".cpu.numeric", &mut names);
            assert!(crate::spec::atomic::is_component(&name), "{name}");
            assert_eq!(name, expected);
        };
        // Case `a` with version `1.2`, and case `a.1` with version `2`.
        check("a.1.2", "a.1.2.cpu.numeric");
        check("a.1.2", "a.1.2-2.cpu.numeric");
        check("A.1.2", "A.1.2-3.cpu.numeric");
        let long = "é".repeat(150);
        check(&long, &format!("{}.cpu.numeric", "é".repeat(100)));
        check(&long, &format!("{}-2.cpu.numeric", "é".repeat(100)));
    }

    #[test]
    fn units_of_unknown_time_are_spread_evenly() {
        let units: Vec<Unit> = (0..8).map(|at| unit(&format!("u{at}"), 0)).collect();
        for index in 1..=4 {
            assert_eq!(Shard { index, count: 4 }.of(&units).len(), 2);
        }
    }
}
