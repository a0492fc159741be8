//! Differences between variants before any forward pass: config keys, tokenizers, packages.

use std::collections::HashSet;

use crate::execute::cell::{Completed, Outcome, TokenizerParity};
use crate::judge::view::{CaseView, RunView};
use crate::spec::variant::Variant;
use compare::metrics::{self, Side};

/// Names that a report lists.
const MOST_NAMES: usize = 1000;

/// A part of a checkpoint that a variant may leave unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    ConfigKey,
    Tensor,
}

impl Part {
    pub(crate) const ALL: [Self; 2] = [Self::ConfigKey, Self::Tensor];

    /// `config keys`, `tensors`.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::ConfigKey => "config keys",
            Self::Tensor => "tensors",
        }
    }

    /// Those that a variant leaves unread; `None` where it cannot tell.
    fn unread(self, completed: &Completed) -> Option<&Vec<String>> {
        match self {
            Self::ConfigKey => completed.ignored_keys.as_ref(),
            Self::Tensor => completed.unread_tensors.as_ref(),
        }
    }
}

/// A part of a checkpoint that some versions leave unread and others do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartlyRead {
    pub(crate) part: Part,
    pub(crate) checkpoint: String,
    /// The key or the tensor.
    pub(crate) name: String,
    pub(crate) ignored_by: Vec<String>,
    pub(crate) not_ignored_by: Vec<String>,
}

/// The environments of two versions, and how far the logits of the two versions differ.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EnvironmentPair {
    pub(crate) a: String,
    pub(crate) b: String,
    /// The largest relative L2 between their variants of equal mode, attention and dtype; A is the reference.
    pub(crate) relative_l2: Option<f64>,
    /// The packages that differ.
    pub(crate) packages: Vec<Package>,
}

/// A package's name, its version in A and its version in B.
type Package = (String, Option<String>, Option<String>);

impl EnvironmentPair {
    /// `numpy 2.3.0 → 2.4.1; only in 5.23.0: httpx 0.28.1`.
    pub(crate) fn text(&self) -> String {
        let both = self.packages.iter().filter_map(|(name, a, b)| {
            let (a, b) = (a.as_ref()?, b.as_ref()?);
            Some(format!("{name} {a} → {b}"))
        });
        let only = |version: &str, of: &dyn Fn(&Package) -> Option<String>| {
            let names: Vec<String> = self.packages.iter().filter_map(of).collect();
            (!names.is_empty()).then(|| format!("only in {version}: {}", names.join(", ")))
        };
        let in_a =
            only(&self.a, &|(name, a, b)| a.as_ref().filter(|_| b.is_none()).map(|a| format!("{name} {a}")));
        let in_b =
            only(&self.b, &|(name, a, b)| b.as_ref().filter(|_| a.is_none()).map(|b| format!("{name} {b}")));
        let both: Vec<String> = both.collect();
        let both = (!both.is_empty()).then(|| both.join(", "));
        let parts: Vec<String> = [both, in_a, in_b].into_iter().flatten().collect();
        if parts.is_empty() { "none".to_owned() } else { parts.join("; ") }
    }
}

/// The config keys or tensors of each checkpoint that one side leaves unread and another does not, by version. Runners
/// that cannot tell are not counted, and ids of special tokens are left out: no logit depends on them.
pub(crate) fn partly_read(run: &RunView, part: Part) -> Vec<PartlyRead> {
    let mut found: Vec<PartlyRead> = Vec::new();
    let mut known: HashSet<(&str, &str)> = HashSet::new();
    for case in &run.cases {
        // A worker may list a million names.
        let told: Vec<(&String, HashSet<&str>)> = case
            .cells
            .iter()
            .filter_map(|cell| match &cell.outcome {
                Outcome::Completed(completed) => {
                    let unread = part.unread(completed)?.iter().map(String::as_str).collect();
                    Some((&cell.variant.version, unread))
                }
                _ => None,
            })
            .collect();
        let keys = told.iter().flat_map(|(_, keys)| keys.iter().copied());
        let mut keys: Vec<&str> = keys.filter(|key| !key.ends_with("_token_id")).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let names = |ignores: bool| -> Vec<String> {
                let side = told.iter().filter(|(_, keys)| keys.contains(key) == ignores);
                let mut names: Vec<String> = Vec::new();
                for (name, _) in side {
                    if !names.contains(name) {
                        names.push((*name).clone());
                    }
                }
                names
            };
            let (ignored_by, not_ignored_by) = (names(true), names(false));
            // All cases of one checkpoint give the same result.
            if !not_ignored_by.is_empty() && known.insert((&case.checkpoint, key)) {
                found.push(PartlyRead {
                    part,
                    checkpoint: case.checkpoint.clone(),
                    name: key.to_owned(),
                    ignored_by,
                    not_ignored_by,
                });
            }
        }
    }
    let more = found.len().saturating_sub(MOST_NAMES);
    if more > 0 {
        found.truncate(MOST_NAMES);
        let last = found.last().cloned();
        found.extend(last.map(|last| PartlyRead { name: format!("… ({more} more)"), ..last }));
    }
    found
}

/// The tensors of each checkpoint that every variant which can tell leaves unread.
pub(crate) fn unread_by_all(run: &RunView) -> Vec<(&str, Vec<&str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for case in &run.cases {
        let mut told = case.cells.iter().filter_map(|cell| match &cell.outcome {
            Outcome::Completed(completed) => completed.unread_tensors.as_ref(),
            _ => None,
        });
        let Some(first) = told.next() else { continue };
        let mut names: Vec<&str> = first.iter().map(String::as_str).collect();
        for other in told {
            let other: HashSet<&str> = other.iter().map(String::as_str).collect();
            names.retain(|name| other.contains(name));
        }
        // All cases of one checkpoint give the same result.
        if !names.is_empty() && found.iter().all(|(known, _)| *known != case.checkpoint) {
            found.push((&case.checkpoint, names));
        }
    }
    found
}

/// Versions that would have read the config otherwise without translation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Translated {
    pub(crate) versions: Vec<String>,
    pub(crate) checkpoints: Vec<String>,
    /// `rope_theta 500000.0 (untranslated: 10000.0)`.
    pub(crate) values: Vec<String>,
}

/// Every translation of a config that changed what a version read, the same one of several checkpoints and versions once.
pub(crate) fn translated(run: &RunView) -> Vec<Translated> {
    let mut of_checkpoints: Vec<Translated> = Vec::new();
    for case in &run.cases {
        for cell in &case.cells {
            let Outcome::Completed(completed) = &cell.outcome else { continue };
            if completed.translated.is_empty() {
                continue;
            }
            let is_same = |known: &&mut Translated| {
                known.checkpoints[0] == case.checkpoint && known.values == completed.translated
            };
            let version = &cell.variant.version;
            match of_checkpoints.iter_mut().find(is_same) {
                Some(known) if known.versions.contains(version) => {}
                Some(known) => known.versions.push(version.clone()),
                None => of_checkpoints.push(Translated {
                    versions: vec![version.clone()],
                    checkpoints: vec![case.checkpoint.clone()],
                    values: completed.translated.clone(),
                }),
            }
        }
    }
    let mut found: Vec<Translated> = Vec::new();
    for one in of_checkpoints {
        match found.iter_mut().find(|known| (&known.versions, &known.values) == (&one.versions, &one.values))
        {
            Some(known) => known.checkpoints.extend(one.checkpoints),
            None => found.push(one),
        }
    }
    found
}

/// Every tokenizer that was held against the run's ids: checkpoint, version, finding.
pub(crate) fn tokenizers(run: &RunView) -> Vec<(&str, &str, &TokenizerParity)> {
    let cells = run.cases.iter().flat_map(|case| case.cells.iter().map(move |cell| (case, cell)));
    cells
        .filter_map(|(case, cell)| match &cell.outcome {
            Outcome::Completed(completed) => {
                let found = completed.tokenizer.as_ref()?;
                Some((case.checkpoint.as_str(), cell.variant.version.as_str(), found))
            }
            _ => None,
        })
        .collect()
}

/// Every pair of versions whose environments are known, in order.
pub(crate) fn environments(run: &RunView) -> Vec<EnvironmentPair> {
    let mut pairs = Vec::new();
    for (index, (b, packages_b)) in run.packages.iter().enumerate() {
        for (a, packages_a) in &run.packages[..index] {
            let mut names: Vec<&String> = packages_a.keys().chain(packages_b.keys()).collect();
            names.sort();
            names.dedup();
            let versions = names
                .into_iter()
                .map(|name| (name.clone(), packages_a.get(name).cloned(), packages_b.get(name).cloned()));
            pairs.push(EnvironmentPair {
                a: a.clone(),
                b: b.clone(),
                relative_l2: largest(run, a, b),
                packages: versions.filter(|(_, a, b)| a != b).collect(),
            });
        }
    }
    pairs
}

fn largest(run: &RunView, a: &str, b: &str) -> Option<f64> {
    let mut shares = Vec::new();
    for case in &run.cases {
        for (i, first) in case.cells.iter().enumerate().filter(|(_, cell)| cell.variant.version == a) {
            for (j, second) in case.cells.iter().enumerate().filter(|(_, cell)| cell.variant.version == b) {
                if alike(&first.variant, &second.variant)
                    && let Some(share) = share(case, i, j)
                {
                    shares.push(share);
                }
            }
        }
    }
    metrics::largest(shares)
}

fn alike(a: &Variant, b: &Variant) -> bool {
    (a.runner, a.mode, a.attention, a.dtype, &a.device) == (b.runner, b.mode, b.attention, b.dtype, &b.device)
}

fn share(case: &CaseView, a: usize, b: usize) -> Option<f64> {
    let pair = case.matrix.compared(a, b)?;
    Some(pair.relative_l2(if a <= b { Side::A } else { Side::B }))
}
