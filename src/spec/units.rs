//! Units: the parts of a plan that different machines may compute, and the shares into which a plan is divided.
//!
//! Every machine divides a plan alike, without a coordinator: the division depends only on the plan and on the estimates
//! that are kept with it.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::plan::{CellPlan, Plan};

/// The largest number of shards of a plan.
pub const MOST_SHARDS: usize = 100_000;

/// Whether a unit's times count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
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
    /// Case, device class and kind: `llama-128.cpu.timing`; unique in the plan, and safe as a file name.
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

/// Divides a plan into its units, case by case: within a case, variants of one device class stay together; timed variants
/// form one unit, because only variants that are timed in the same rounds can be compared in speed.
pub fn groups(plan: &Plan, is_timed: impl Fn(&CellPlan) -> bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (index, cell) in plan.cells.iter().enumerate() {
        let kind = if is_timed(cell) { UnitKind::Timing } else { UnitKind::Numeric };
        let device = device_class(&cell.variant.device);
        let is_it = |group: &&mut Group| (group.case, group.kind, group.device) == (cell.case, kind, device);
        if let Some(known) = groups.iter_mut().find(is_it) {
            known.cells.push(index);
        } else if let Some(case) = plan.cases.get(cell.case) {
            let name = format!("{}.{device}.{}", case.name, kind.word());
            groups.push(Group { name, kind, case: cell.case, device, cells: vec![index] });
        }
    }
    groups
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
    use super::*;

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
    fn units_of_unknown_time_are_spread_evenly() {
        let units: Vec<Unit> = (0..8).map(|at| unit(&format!("u{at}"), 0)).collect();
        for index in 1..=4 {
            assert_eq!(Shard { index, count: 4 }.of(&units).len(), 2);
        }
    }
}
