//! Diagnoses variants that diverge: one of each group at the end of a run, or one pair that the user names.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use miette::{IntoDiagnostic, Result};
use reference::protocol::{Attention, Dtype, Mode};

use super::localize::{EndOfRun, check_digests, check_names, renewed};
use super::{PreparedCase, RunRequest, Runners, load, prepare};
use crate::execute::at_once::at_once;
use crate::hunt::diagnose::{self, DiagnoseError, Diagnosed, Diagnosis, Request, Side, Tokens};
use crate::judge::findings::{Findings, findings};
use crate::judge::view::RunView;
use crate::results::RunFolder;
use crate::spec::machine::Machine;
use crate::spec::plan::CellPlan;
use crate::spec::variant::{Runner, Variant, Way};
use compare::verdict::Decision;

/// A pair to diagnose.
#[derive(Clone, Copy, Debug)]
pub struct WantedDiagnosis<'a> {
    /// The case; `None` for all of the plan's.
    pub case: Option<&'a str>,
    /// Name of the variant that is made to commit mistakes.
    pub trusted: &'a str,
    /// Name of the variant that diverges from it.
    pub suspect: &'a str,
    /// Time that each case may take.
    pub budget: Duration,
}

/// Prepares the checkpoints, inputs and environments that a pair needs, and diagnoses it in each case. If `folder`, the
/// pair's run, is given, the results are stored in it.
///
/// # Errors
/// When the plan has no such case or variant, the trusted one cannot be made to commit mistakes, or one of them cannot be
/// prepared or run.
pub fn diagnose(
    request: &RunRequest,
    wanted: &WantedDiagnosis,
    folder: Option<&RunFolder>,
) -> Result<Vec<Diagnosed>> {
    let mut plan = request.plan.clone();
    let names = [wanted.trusted, wanted.suspect];
    check_names(request, wanted.case, names.map(|name| (name, Way::Cached)))?;
    plan.cells.retain(|cell| {
        let case = &plan.cases[cell.case];
        names.contains(&cell.variant.name().as_str())
            && case.inputs.prefill().is_none()
            && wanted.case.is_none_or(|name| name == case.name)
    });
    plan.drop_unused();
    if plan.cells.is_empty() {
        miette::bail!(
            help = "name a case without a prefill",
            "a diagnosis compares full-sequence forward passes"
        );
    }
    let prepare::Preparation { plan, cases, environments } =
        prepare::prepare(&RunRequest { plan: &plan, ..*request })?;
    let request = RunRequest { plan: &plan, ..*request };
    let runners = Runners::new(&request, &environments, Machine::detect().fingerprint())?;
    let scratch = request.cache.join("diagnose");
    std::fs::create_dir_all(&scratch).into_diagnostic()?;
    let mut found = Vec::new();
    for (index, prepared) in cases.iter().enumerate() {
        let name = &plan.cases[index].name;
        if let Some(folder) = folder {
            check_digests(folder, name, prepared)?;
        }
        let cell =
            |wanted: &str| plan.cells.iter().find(|cell| cell.case == index && cell.variant.name() == wanted);
        let [Some(trusted), Some(suspect)] = names.map(cell) else { continue };
        if !prepared.inputs.tensors.is_empty() {
            miette::bail!(
                help = "`tfcheck localize` finds the first module at which the two differ",
                "{name}: a diagnosis needs inputs of tokens alone"
            );
        }
        if !trusted.variant.runner.loads_any_folder() {
            miette::bail!(
                help = "name a transformers version or a native model first",
                "`{}` cannot be made to commit mistakes",
                wanted.trusted
            );
        }
        let pair = Pair {
            request: &request,
            prepared,
            runners: &runners,
            case: name,
            logs: &scratch,
            budget: wanted.budget,
        };
        request.progress.line(&format!("{name}: diagnosing {} / {}", names[0], names[1]));
        found.push(pair.diagnose([trusted, suspect])?);
    }
    if let Some(folder) = folder {
        folder.write_diagnosed(&renewed(folder.diagnosed()?, &found, Diagnosed::is_of_the_pair))?;
    }
    Ok(found)
}

impl EndOfRun<'_> {
    /// Diagnoses one representative of each group that diverges, on its longest inputs; a failure becomes a note. What is left
    /// of the time is divided evenly between those that are left.
    pub(super) fn diagnose(&self, view: &mut RunView) -> Result<()> {
        let budget = Duration::from_secs(self.request.config.run.diagnose_s);
        if budget.is_zero() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut representatives = self.representatives(&findings(view), view);
        for found in self.rounding_worse(view) {
            if representatives.iter().all(|(_, [_, suspect])| !is_of_a_program(suspect, found.1[1])) {
                representatives.push(found);
            }
        }
        // The hypotheses are about models of text.
        representatives.retain(|(index, _)| self.cases[*index].inputs.tensors.is_empty());
        // No mistake of the table changes the shape of the logits.
        representatives.retain(|(index, pair)| {
            let case = &view.cases[*index];
            let at = |cell: &CellPlan| case.cells.iter().position(|known| known.variant == cell.variant);
            at(pair[0]).zip(at(pair[1])).is_some_and(|(a, b)| case.matrix.compared(a, b).is_some())
        });
        let most = self.request.config.run.first_passes_at_once.max(1);
        while !representatives.is_empty() {
            let together = of_other_cases(&mut representatives, most);
            let (now, later) = (together.len(), representatives.len());
            let left = budget.saturating_sub(begun.elapsed());
            let share = left.mul_f64(now as f64 / (now + later) as f64);
            let found = at_once(together, |(index, pair)| {
                let name = &view.cases[index].name;
                self.request.progress.line(&format!("{name}: diagnosing {}", names(pair)));
                (index, pair, self.of_pair(index, name, pair, share))
            });
            let mut interrupted = false;
            for (index, pair, found) in found {
                let case = &mut view.cases[index];
                match found {
                    Ok(diagnosed) => case.diagnosed.push(diagnosed),
                    Err(DiagnoseError::Interrupted) => interrupted = true,
                    Err(error) => {
                        view.notes.push(format!("{}: {} not diagnosed: {error}", case.name, names(pair)));
                    }
                }
            }
            if interrupted {
                break;
            }
        }
        let all: Vec<Diagnosed> = view.cases.iter().flat_map(|case| case.diagnosed.clone()).collect();
        if !all.is_empty() {
            self.folder.write_diagnosed(&all)?;
        }
        Ok(())
    }

    fn of_pair(
        &self,
        index: usize,
        case: &str,
        pair: [&CellPlan; 2],
        budget: Duration,
    ) -> Result<Diagnosed, DiagnoseError> {
        let files = self.folder.case_folder(self.manifest, case);
        let prepared = &self.cases[index];
        Pair { request: self.request, prepared, runners: self.runners, case, logs: &files, budget }
            .diagnose(pair)
    }

    /// For each checkpoint, each program or port that rounds worse in 16 bits than the native model in the eager backend, on
    /// the case with the most tokens.
    fn rounding_worse(&self, view: &RunView) -> Vec<(usize, [&CellPlan; 2])> {
        let plan = self.request.plan;
        let mut chosen: BTreeMap<(usize, String), (usize, [&CellPlan; 2])> = BTreeMap::new();
        for (index, case) in view.cases.iter().enumerate() {
            if plan.cases[index].inputs.prefill().is_some() {
                continue;
            }
            let cell =
                |name: &str| plan.cells.iter().find(|cell| cell.case == index && cell.variant.name() == name);
            for verdict in &case.verdicts {
                let Decision::WorseRounding { worse } = &verdict.decision else { continue };
                let better = if *worse == verdict.a { &verdict.b } else { &verdict.a };
                let (Some(trusted), Some(suspect)) = (cell(better), cell(worse)) else { continue };
                let is_native =
                    trusted.variant.runner == Runner::Candle && trusted.variant.mode == Mode::Eager;
                let dtype = suspect.variant.dtype;
                let is_narrow = [Dtype::Bf16, Dtype::F16].contains(&dtype) && trusted.variant.dtype == dtype;
                if !is_native || !is_narrow || suspect.variant.runner.loads_any_folder() {
                    continue;
                }
                let key = (plan.cases[index].checkpoint, worse.clone());
                let tokens = |index: usize| self.cases[index].inputs.input_ids.len();
                let place = chosen.entry(key).or_insert((index, [trusted, suspect]));
                if tokens(index) > tokens(place.0) {
                    *place = (index, [trusted, suspect]);
                }
            }
        }
        chosen.into_values().collect()
    }

    /// For each group of each checkpoint, the case in which it diverges that has the most tokens among those without padding
    /// (among all if there are none), with a member of group A and one of the group. Padding would add a second fault to the
    /// many ports that take no mask.
    fn representatives(&self, found: &Findings, view: &RunView) -> Vec<(usize, [&CellPlan; 2])> {
        let plan = self.request.plan;
        let mut chosen: BTreeMap<(usize, &str), (usize, [&CellPlan; 2])> = BTreeMap::new();
        for (index, groups) in found.cases.iter().enumerate() {
            let case = &plan.cases[index];
            let Some((first, others)) = groups.groups.groups.split_first() else { continue };
            if case.inputs.prefill().is_some() {
                continue;
            }
            let cells = |members: &[usize]| -> Vec<&CellPlan> {
                let names = members.iter().map(|&member| &view.cases[index].cells[member].name);
                let cell = |name: &String| {
                    plan.cells.iter().find(|cell| cell.case == index && cell.variant.name() == *name)
                };
                names.filter_map(cell).collect()
            };
            let trusted = cells(&first.members)
                .into_iter()
                .filter(|cell| cell.variant.runner.loads_any_folder())
                .min_by_key(|cell| ease(cell));
            for (group, letter) in others.iter().zip(groups.letters.iter().skip(1)) {
                let suspect = cells(&group.members).into_iter().min_by_key(|cell| ease(cell));
                let (Some(trusted), Some(suspect)) = (trusted, suspect) else { continue };
                let rank = |index: usize| {
                    let inputs = &self.cases[index].inputs;
                    (inputs.padding.is_none(), inputs.input_ids.len())
                };
                let place = chosen.entry((case.checkpoint, letter)).or_insert((index, [trusted, suspect]));
                if rank(index) > rank(place.0) {
                    *place = (index, [trusted, suspect]);
                }
            }
        }
        // The dtypes of one variant are groups of their own where they round differently; one of them is diagnosed.
        let mut kept: Vec<(usize, [&CellPlan; 2])> = Vec::new();
        for (index, pair) in chosen.into_values() {
            let known =
                kept.iter_mut().find(|(at, [_, suspect])| *at == index && differ_in_dtype(suspect, pair[1]));
            match known {
                Some(known) if precision(pair[1]) < precision(known.1[1]) => *known = (index, pair),
                Some(_) => {}
                None => kept.push((index, pair)),
            }
        }
        kept
    }
}

/// Whether two cells are of one program, in whatever dtype.
fn is_of_a_program(a: &CellPlan, b: &CellPlan) -> bool {
    let (a, b) = (&a.variant, &b.variant);
    (a.runner, &a.version, a.mode) == (b.runner, &b.version, b.mode)
}

/// Takes at most `most` representatives of different cases, because those of one case write to one folder.
fn of_other_cases<'a>(
    waiting: &mut Vec<(usize, [&'a CellPlan; 2])>,
    most: usize,
) -> Vec<(usize, [&'a CellPlan; 2])> {
    let mut together: Vec<(usize, [&CellPlan; 2])> = Vec::new();
    let mut position = 0;
    while position < waiting.len() && together.len() < most {
        if together.iter().any(|(index, _)| *index == waiting[position].0) {
            position += 1;
        } else {
            together.push(waiting.remove(position));
        }
    }
    together
}

/// `A / B`, the two variants of a pair.
fn names([trusted, suspect]: [&CellPlan; 2]) -> String {
    format!("{} / {}", trusted.variant.name(), suspect.variant.name())
}

/// Whether two cells are the same variant in two dtypes.
fn differ_in_dtype(a: &CellPlan, b: &CellPlan) -> bool {
    a.variant.dtype != b.variant.dtype && Variant { dtype: b.variant.dtype, ..a.variant.clone() } == b.variant
}

/// The rank of a suspect's dtype: in f32 fewer mistakes hide in rounding than in bf16, and every port has it.
fn precision(cell: &CellPlan) -> usize {
    [Dtype::F32, Dtype::F64, Dtype::Bf16, Dtype::F16]
        .iter()
        .position(|dtype| *dtype == cell.variant.dtype)
        .unwrap_or_default()
}

/// How soon a cell is taken for a diagnosis: native models start in no time, and eager modes load any edit.
fn ease(cell: &CellPlan) -> (bool, bool, bool) {
    let variant = &cell.variant;
    (
        variant.mode != Mode::Eager,
        variant.runner != Runner::Candle,
        variant.attention.is_some_and(|attention| attention != Attention::Eager),
    )
}

/// Two cells of one case.
struct Pair<'a> {
    request: &'a RunRequest<'a>,
    prepared: &'a PreparedCase,
    runners: &'a Runners<'a>,
    case: &'a str,
    /// Folder for worker logs and edited checkpoints.
    logs: &'a Path,
    budget: Duration,
}

impl Pair<'_> {
    /// Diagnoses the suspect. Of two versions of transformers the trusted one may be the one that has the mistake, so that each
    /// is made to commit those of the other, in half of the time.
    fn diagnose(&self, [trusted, suspect]: [&CellPlan; 2]) -> Result<Diagnosed, DiagnoseError> {
        let is_either = [trusted, suspect].iter().all(|cell| cell.variant.runner == Runner::Transformers);
        if !is_either {
            return self.diagnose_in([trusted, suspect], self.budget);
        }
        let begun = Instant::now();
        let first = self.diagnose_in([trusted, suspect], self.budget / 2)?;
        if matches!(first.finding, Diagnosis::Reproduced { .. } | Diagnosis::Nothing) {
            return Ok(first);
        }
        let left = self.budget.saturating_sub(begun.elapsed());
        let second = self.diagnose_in([suspect, trusted], left);
        Ok(match second {
            Ok(mut second) if matches!(second.finding, Diagnosis::Reproduced { .. }) => {
                second.elapsed_ns = begun.elapsed().as_nanos() as u64;
                second
            }
            Err(DiagnoseError::Interrupted) => return Err(DiagnoseError::Interrupted),
            _ => Diagnosed { elapsed_ns: begun.elapsed().as_nanos() as u64, ..first },
        })
    }

    fn diagnose_in(
        &self,
        [trusted, suspect]: [&CellPlan; 2],
        budget: Duration,
    ) -> Result<Diagnosed, DiagnoseError> {
        let side = |cell: &CellPlan| {
            let runner = self
                .runners
                .of(cell)
                .map_err(|ended| DiagnoseError::ended(&cell.variant.name(), self.logs, ended))?;
            let inputs = self.logs.join("inputs.safetensors");
            let load = load(self.request, self.prepared, &inputs, self.runners, cell);
            let computes_f64 = cell.variant.mode == Mode::Eager && cell.variant.runner.loads_any_folder();
            let is_native = computes_f64 && cell.variant.runner == Runner::Candle;
            Ok::<_, DiagnoseError>(Side { name: cell.variant.name(), runner, load, computes_f64, is_native })
        };
        let config = self.request.config;
        let own = &config.checkpoints[self.request.plan.cases[trusted.case].checkpoint].tolerances;
        let tolerances = config.tolerances.with(own.as_ref());
        diagnose::diagnose(&Request {
            case: self.case,
            trusted: side(trusted)?,
            suspect: side(suspect)?,
            tokens: Tokens::from(&self.prepared.inputs),
            tolerances: &tolerances,
            folder: self.logs,
            timeout: Duration::from_secs(config.run.timeout_s),
            budget,
            stop: self.request.stop,
        })
    }
}
