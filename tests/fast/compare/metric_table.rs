//! Tests that the table of metrics matches docs/metrics.md and is consistent.

use std::collections::{BTreeMap, BTreeSet};

use compare::metric::{METRICS, Metric};
use tfcheck::spec::gate::Gate;

/// The unit of each name in docs/metrics.md's table.
fn documented() -> BTreeMap<&'static str, &'static str> {
    let text = include_str!("../../../docs/metrics.md");
    let rows = text.lines().skip_while(|line| !line.starts_with("| metric | names | unit |")).skip(2);
    let mut found = BTreeMap::new();
    for row in rows.take_while(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        for name in cells[1].split_whitespace().filter(|name| *name != "—") {
            let name = name.trim_matches('`');
            assert_eq!(found.insert(name, cells[2].trim_matches('—')), None, "{name} is in two rows");
        }
    }
    found
}

#[test]
fn the_documentation_has_the_names_and_units_of_the_table() {
    let documented = documented();
    let names: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(documented.keys().copied().collect::<BTreeSet<_>>(), names);
    // A place or a word that is joined to a number has no unit.
    for metric in METRICS.iter().filter(|metric| metric.is_gate || !metric.unit.is_empty()) {
        assert_eq!(documented[metric.name], metric.unit, "{}", metric.name);
    }
}

#[test]
fn no_two_rows_share_a_name_a_key_or_a_column() {
    let check = |what: &str, of: &dyn Fn(&'static Metric) -> Vec<String>| {
        let mut seen = BTreeSet::new();
        for name in METRICS.iter().flat_map(of) {
            assert!(seen.insert(name.clone()), "{what} {name}");
        }
    };
    let keys = |keys: Vec<(&str, _)>| keys.into_iter().map(|(key, _)| key.to_owned()).collect::<Vec<_>>();
    check("name", &|metric| [metric.name].iter().chain(metric.aliases).map(|&n| n.to_owned()).collect());
    check("key", &|metric| keys(metric.json.of(metric)));
    check("column", &|metric| {
        let suffixes = metric.format.csv_suffixes();
        let columns = keys(metric.csv.of(metric)).into_iter();
        columns.flat_map(|key| suffixes.iter().map(move |suffix| format!("{key}{suffix}"))).collect()
    });
}

#[test]
fn every_name_that_may_be_a_gate_is_one() {
    for metric in METRICS {
        for name in [metric.name].iter().chain(metric.aliases) {
            assert_eq!(Gate::parse(&format!("{name}>0.5")).is_ok(), metric.is_gate, "{name}");
        }
    }
}
