//! Localises pairs of a run's variants: the diverging ones at the end of a run, or one pair that the user
//! names.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use miette::{IntoDiagnostic, Result};
use reference::protocol::{Attention, Mode};

use super::{PreparedCase, RunRequest, Runners, load, prepare};
use crate::hunt::localize::{self, Finding, LocalizeError, Localized, Options, Request, Side};
use crate::judge::findings::case_groups;
use crate::judge::view::{CaseView, RunView};
use crate::results::{Manifest, RunFolder};
use crate::spec::machine::Machine;
use crate::spec::nearest::nearest;
use crate::spec::plan::{CasePlan, CellPlan};
use crate::spec::variant::{Runner, Variant, Way};
use compare::groups::Group;
use compare::verdict::Decision;

/// Failed pairs of one group after which the end of a run gives up; if one pair cannot be captured, another
/// may be.
const MOST_FAILURES: usize = 2;

/// State of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tries {
    /// Not localised yet.
    Open,
    /// Its first divergence is known.
    Localised,
    /// Localised, and found not to diverge.
    Excused,
    /// Localisation failed.
    Failed,
}

/// A pair to localise.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// The case; `None` for all of the plan's.
    pub case: Option<&'a str>,
    /// Names of the two variants.
    pub variants: [&'a str; 2],
    /// Options of the localisation.
    pub options: &'a Options,
}

/// Prepares the checkpoints, inputs and environments that a pair needs, and localises it in each case. If
/// `folder`, the pair's run, is given, the results are stored in it.
///
/// # Errors
/// When the plan has no such case or variant, or one of them cannot be prepared, run or captured.
pub fn localize(request: &RunRequest, wanted: &Wanted, folder: Option<&RunFolder>) -> Result<Vec<Localized>> {
    let mut plan = request.plan.clone();
    let plan_cases = &request.plan.cases;
    let sides = wanted.variants.map(Way::parse);
    check_names(request, wanted.case, sides)?;
    check_one_pass(request, wanted.case, sides)?;
    let names = sides.map(|(name, _)| name);
    // A variant compared with its own full-sequence forward pass: only in cases that use a cache.
    let is_cached = names[0] == names[1];
    plan.cells.retain(|cell| {
        names.contains(&cell.variant.name().as_str())
            && (!is_cached || plan_cases[cell.case].inputs.prefill().is_some())
            && wanted.case.is_none_or(|case| case == plan.cases[cell.case].name)
    });
    plan.drop_unused();
    let prepare::Preparation { plan, cases, environments } =
        prepare::prepare(&RunRequest { plan: &plan, ..*request })?;
    let request = RunRequest { plan: &plan, ..*request };
    let runners = Runners::new(&request, &environments, Machine::detect().fingerprint())?;
    let scratch = request.cache.join("localize");
    std::fs::create_dir_all(&scratch).into_diagnostic()?;
    let own = tempfile::tempdir_in(&scratch).into_diagnostic()?;
    let mut found = Vec::new();
    for (index, prepared) in cases.iter().enumerate() {
        let name = &plan.cases[index].name;
        if let Some(folder) = folder {
            check_digests(folder, name, prepared)?;
        }
        let files = own.path().join(index.to_string());
        std::fs::create_dir_all(&files).into_diagnostic()?;
        prepared.inputs.save(&files)?;
        let cell = |wanted: &str| {
            let is_it = |cell: &&CellPlan| cell.case == index && cell.variant.name() == wanted;
            plan.cells.iter().find(is_it)
        };
        let [Some(a), Some(b)] = names.map(cell) else { continue };
        let pair = Pair {
            request: &request,
            prepared,
            runners: &runners,
            case: name,
            logs: &scratch,
            files: &files,
        };
        let [first, second] = names_of([a, b]);
        request.progress.line(&format!("{name}: localising {first} / {second}"));
        found.push(pair.localize([a, b], wanted.options)?);
    }
    if let Some(folder) = folder {
        folder.write_localized(&renewed(folder.localized()?, &found, Localized::is_of_the_pair))?;
    }
    Ok(found)
}

/// What is known of a run's pairs, with `found` in place of what was known of the same pairs.
pub(super) fn renewed<T: Clone>(
    mut known: Vec<T>,
    found: &[T],
    is_of_the_pair: impl Fn(&T, &T) -> bool,
) -> Vec<T> {
    known.retain(|known| !found.iter().any(|new| is_of_the_pair(new, known)));
    known.extend_from_slice(found);
    known
}

/// Checks that the plan has this case and these two variants.
pub(super) fn check_names(request: &RunRequest, case: Option<&str>, pair: [(&str, Way); 2]) -> Result<()> {
    let unknown = |what: &str, name: &str, mut known: Vec<String>| {
        known.dedup();
        let names: Vec<&str> = known.iter().map(String::as_str).collect();
        let meant =
            nearest(name, &names).map(|meant| format!("did you mean `{meant}`? ")).unwrap_or_default();
        miette::miette!(
            help = format!("{meant}there are {}", names.join(", ")),
            "no {what} is called `{name}`"
        )
    };
    let cases: Vec<String> = request.plan.cases.iter().map(|case| case.name.clone()).collect();
    if let Some(case) = case.filter(|case| !cases.iter().any(|known| known == case)) {
        return Err(unknown("case", case, cases));
    }
    let mut variants: Vec<String> = request.plan.cells.iter().map(|cell| cell.variant.name()).collect();
    variants.sort_unstable();
    for (name, _) in pair {
        if !variants.iter().any(|known| known == name) {
            return Err(unknown("variant", name, variants));
        }
    }
    if pair[0] == pair[1] {
        let (name, way) = pair[0];
        miette::bail!(help = "name two variants", "`{}` is the same on both sides", way.name(name));
    }
    Ok(())
}

/// Checks that a full-sequence pass is compared with the cached result of the same variant.
fn check_one_pass(request: &RunRequest, case: Option<&str>, [a, b]: [(&str, Way); 2]) -> Result<()> {
    if [a.1, b.1] == [Way::Cached; 2] {
        return Ok(());
    }
    if a.0 != b.0 {
        miette::bail!(
            help = format!("name `{}` and `{}`", a.0, Way::Full.name(a.0)),
            "a cached result can be localised only against the full-sequence pass of the same variant"
        );
    }
    let is_wanted = |planned: &&CasePlan| case.is_none_or(|name| name == planned.name);
    if !request.plan.cases.iter().filter(is_wanted).any(|case| case.inputs.prefill().is_some()) {
        miette::bail!(
            help =
                "give a case with a prefill, or no case; set `prefill = [8]` under [inputs] to create some",
            "no case has a prefill"
        );
    }
    Ok(())
}

/// Names of the two sides. If both are the same cell, the first is its full-sequence forward pass and the
/// second its cached run.
fn names_of([a, b]: [&CellPlan; 2]) -> [String; 2] {
    let (first, second) = (a.variant.name(), b.variant.name());
    let way = if first == second { Way::Full } else { Way::Cached };
    [way.name(&first), second]
}

/// Checks that the checkpoint and inputs are the ones that the run's numbers come from.
pub(super) fn check_digests(folder: &RunFolder, name: &str, prepared: &PreparedCase) -> Result<()> {
    let manifest = folder.manifest()?;
    let then = manifest.cases.iter().find(|case| case.name == name);
    let now = (&prepared.checkpoint.digest, &prepared.inputs.digest);
    if then.is_some_and(|then| (&then.checkpoint_digest, &then.inputs_digest) != now) {
        miette::bail!(
            help = "localise with the config instead of --run",
            "{name}: the checkpoint or the inputs are no longer those of {}",
            folder.path().display()
        );
    }
    Ok(())
}

/// A run whose cells have all ended.
pub(super) struct EndOfRun<'a> {
    pub(super) request: &'a RunRequest<'a>,
    pub(super) folder: &'a RunFolder,
    pub(super) manifest: &'a Manifest,
    pub(super) cases: &'a [PreparedCase],
    pub(super) runners: &'a Runners<'a>,
}

/// Which diverging pairs are localised; results of an earlier stage may show that pairs of a later one do not
/// diverge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Pairs of cases without a KV cache.
    InOnePass,
    /// A cached variant and its own full-sequence forward pass.
    BesideOnePass,
    /// Other pairs of cases with a KV cache.
    ThroughCaches,
}

/// What was tried.
#[derive(Default)]
struct Tried {
    /// Case index and variant names of pairs.
    pairs: HashSet<(usize, [String; 2])>,
    /// Names of programs that show no modules in one case, and therefore in no other.
    hidden: HashSet<String>,
}

impl EndOfRun<'_> {
    /// Localises diverging pairs; a failure becomes a note. If a result shows that a pair does not diverge,
    /// `assess` re-evaluates the verdicts.
    pub(super) fn localize(
        &self,
        mut view: RunView,
        assess: impl Fn() -> Result<RunView>,
    ) -> Result<RunView> {
        let mut tried = Tried::default();
        for stage in [Stage::InOnePass, Stage::BesideOnePass, Stage::ThroughCaches] {
            while self.localize_stage(stage, &mut view, &mut tried)? {
                let notes = view.notes;
                view = assess()?;
                view.notes = notes;
            }
        }
        Ok(view)
    }

    /// Returns whether a localised pair turned out not to diverge.
    fn localize_stage(&self, stage: Stage, view: &mut RunView, tried: &mut Tried) -> Result<bool> {
        let mut is_changed = false;
        for (index, prepared) in self.cases.iter().enumerate() {
            let case = &mut view.cases[index];
            let is_cached = self.request.plan.cases[index].inputs.prefill().is_some();
            if is_cached == (stage == Stage::InOnePass) {
                continue;
            }
            let mut pairs = self.pairs(index, case, tried);
            pairs.retain(|pair| stage != Stage::BesideOnePass || is_own(pair));
            pairs.retain(|pair| !pair.iter().any(|cell| is_hidden(cell, tried)));
            let files = self.folder.case_folder(self.manifest, &case.name);
            let pair = Pair {
                request: self.request,
                prepared,
                runners: self.runners,
                case: &case.name,
                logs: &files,
                files: &files,
            };
            for cells in pairs {
                let names = names_of(cells);
                let [a, b] = &names;
                self.request.progress.line(&format!("{}: localising {a} / {b}", case.name));
                match pair.localize(cells, &Options::default()) {
                    Ok(localized) if is_hidden_program(cells, &localized) => {
                        let programs = cells.into_iter().filter(|cell| is_program(cell));
                        tried.hidden.extend(programs.map(|cell| cell.variant.version.clone()));
                    }
                    Ok(localized) => {
                        is_changed |= !localized.is_divergence();
                        case.localized.push(localized);
                    }
                    Err(LocalizeError::Interrupted) => break,
                    Err(error) => {
                        view.notes.push(format!(
                            "{}: {a} / {b} not localised: {}",
                            case.name,
                            localize::described(&error)
                        ));
                    }
                }
                tried.pairs.insert((index, names));
            }
        }
        let all: Vec<Localized> = view.cases.iter().flat_map(|case| case.localized.clone()).collect();
        if !all.is_empty() {
            self.folder.write_localized(&all)?;
        }
        Ok(is_changed)
    }

    /// The pairs of a case still to be localised: each cached variant that diverges from its own
    /// full-sequence forward pass, then one member of each group with one of group A.
    fn pairs(&self, index: usize, case: &CaseView, tried: &Tried) -> Vec<[&CellPlan; 2]> {
        let cells: Vec<&CellPlan> =
            self.request.plan.cells.iter().filter(|cell| cell.case == index).collect();
        let cell = |name: &str| cells.iter().find(|cell| cell.variant.name() == name).copied();
        let own = case.cache_verdicts().filter(|(_, verdict)| verdict.decision == Decision::Diverged);
        let mut pairs: Vec<[&CellPlan; 2]> =
            own.filter_map(|(own, _)| cell(&case.cells[own].name)).map(|cell| [cell, cell]).collect();
        pairs.retain(|pair| {
            pair[0].variant.runner.may_show_modules() && !tried.pairs.contains(&(index, names_of(*pair)))
        });

        let groups = case_groups(case).groups.groups;
        let planned = |group: &Group| -> Vec<&CellPlan> {
            group.members.iter().filter_map(|&member| cell(&case.cells[member].name)).collect()
        };
        let Some((first, others)) = groups.split_first() else { return pairs };
        let state = |pair: [&CellPlan; 2]| {
            let names = names_of(pair);
            let is_it = |found: &&Localized| names == [found.a.as_str(), found.b.as_str()];
            match case.localized.iter().find(is_it) {
                Some(found) if found.is_divergence() => Tries::Localised,
                Some(_) => Tries::Excused,
                None if tried.pairs.contains(&(index, names)) => Tries::Failed,
                None => Tries::Open,
            }
        };
        for group in others {
            pairs.extend(representatives(&planned(first), &planned(group), state));
        }
        pairs
    }
}

/// The pair of a member of group A and one of another group whose modules compare best: preferably one dtype,
/// eager mode and eager attention. `None` if no pair can be captured, one was localised, or [`MOST_FAILURES`]
/// failed.
fn representatives<'a>(
    first: &[&'a CellPlan],
    group: &[&'a CellPlan],
    state: impl Fn([&CellPlan; 2]) -> Tries,
) -> Option<[&'a CellPlan; 2]> {
    let kind = |cell: &CellPlan| {
        let Variant { version, mode, attention, device, .. } = &cell.variant;
        (version.clone(), *mode, *attention, device.clone())
    };
    let mut pairs: Vec<[&CellPlan; 2]> = Vec::new();
    for &a in first {
        // Two dtypes of one variant run the same modules.
        let shows = |cell: &CellPlan| cell.variant.runner.may_show_modules();
        let fitting = group.iter().filter(|b| shows(a) && shows(b) && kind(a) != kind(b));
        pairs.extend(fitting.map(|&b| [a, b]));
    }
    let plain = |cell: &CellPlan| {
        let Variant { mode, attention, .. } = &cell.variant;
        usize::from(*mode != Mode::Eager)
            + usize::from(*attention == Some(Attention::Sdpa))
            + 2 * usize::from(is_program(cell))
    };
    // The sort is stable: among equals the order of the cells decides, in which the reference comes first.
    pairs.sort_by_key(|[a, b]| (a.variant.dtype != b.variant.dtype, plain(a) + plain(b)));
    let count = |wanted: Tries| pairs.iter().filter(|pair| state(**pair) == wanted).count();
    if count(Tries::Localised) > 0 || count(Tries::Failed) >= MOST_FAILURES {
        return None;
    }
    pairs.into_iter().find(|pair| state(*pair) == Tries::Open)
}

fn is_program(cell: &CellPlan) -> bool {
    cell.variant.runner == Runner::Command
}

fn is_hidden(cell: &CellPlan, tried: &Tried) -> bool {
    is_program(cell) && tried.hidden.contains(&cell.variant.version)
}

/// Whether a program that shows no modules is the reason that nothing was found.
fn is_hidden_program(cells: [&CellPlan; 2], localized: &Localized) -> bool {
    matches!(localized.finding, Finding::Logits { .. }) && cells.into_iter().any(is_program)
}

/// Whether a pair is a variant's cached run and its own full-sequence forward pass.
fn is_own([a, b]: &[&CellPlan; 2]) -> bool {
    a.variant == b.variant
}

/// Two cells of one case.
struct Pair<'a> {
    request: &'a RunRequest<'a>,
    prepared: &'a PreparedCase,
    runners: &'a Runners<'a>,
    case: &'a str,
    /// Folder for worker logs and temporary captured tensors.
    logs: &'a Path,
    /// Folder with `inputs.safetensors`.
    files: &'a Path,
}

impl Pair<'_> {
    fn localize(&self, cells: [&CellPlan; 2], options: &Options) -> Result<Localized, LocalizeError> {
        let names = names_of(cells);
        let prefill = self.request.plan.cases[cells[0].case].inputs.prefill();
        let is_one_pass = |index: usize| index == 0 && cells[0].variant == cells[1].variant;
        let side = |index: usize| {
            let cell = cells[index];
            let refused = |ended| LocalizeError::ended(&cell.variant.name(), self.logs, ended);
            let runner = self.runners.of(cell).map_err(refused)?;
            let inputs = self.files.join("inputs.safetensors");
            let load = load(self.request, self.prepared, &inputs, self.runners, cell);
            let prefill = prefill.filter(|_| !is_one_pass(index));
            Ok::<_, LocalizeError>(Side { name: names[index].clone(), runner, load, prefill })
        };
        let config = self.request.config;
        let own = &config.checkpoints[self.request.plan.cases[cells[0].case].checkpoint].tolerances;
        let tolerances = config.tolerances.with(own.as_ref());
        localize::localize(&Request {
            case: self.case,
            sides: [side(0)?, side(1)?],
            options,
            tolerances: &tolerances,
            folder: self.logs,
            timeout: Duration::from_secs(self.request.config.run.timeout_s),
            stop: self.request.stop,
        })
    }
}
