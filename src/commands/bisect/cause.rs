//! Localises a change in the model, once the search has ended, from the two revisions on either side of it, and diagnoses what
//! the faulty one computes instead.

use std::path::Path;
use std::time::Duration;

use miette::{IntoDiagnostic, Report, Result};

use super::Context;
use super::subject::Subject;
use crate::commands::run::{self, Wanted, WantedDiagnosis};
use crate::execute::progress::Progress;
use crate::hunt::bisect::record::{ChangePoint, Localization, Log, Over, Phase, Question, Step};
use crate::hunt::bisect::search::Change;
use crate::hunt::diagnose::{Diagnosed, Diagnosis};
use crate::hunt::localize::{LocalizeError, Options, described};
use crate::spec::machine;
use crate::spec::plan::Plan;

/// Localises the changes of the last phase that has ended, unless that was done; false when the user stopped
/// it.
pub(super) fn changes(context: &Context, log: &mut Log, folder: &Path) -> Result<bool> {
    let Some(index) = log.phases.iter().rposition(|phase| phase.changes.is_some()) else { return Ok(true) };
    let question = log.question.clone();
    let phase = log.phases[index].clone();
    let changes = phase.changes.as_deref().unwrap_or_default();
    let is_open = |change: &ChangePoint| !matches!(change.localization, Some(Localization::Localized(_)));
    if question.test.is_on_times() || !changes.iter().any(is_open) {
        return Ok(true);
    }
    let subject = match phase.over {
        Over::Port => None,
        over => Some(Subject::new(over, &question, context.cache, folder)?),
    };
    for (number, change) in changes.iter().enumerate().filter(|(_, change)| is_open(change)) {
        let cause = match &subject {
            None => Cause::unknown("an external program has no modules to capture".to_owned()),
            Some(subject) => match find(context, &question, subject, &phase, change) {
                Some(cause) => cause,
                None => return Ok(false),
            },
        };
        if let Some(change) = log.phases[index].changes.as_mut().and_then(|all| all.get_mut(number)) {
            change.localization = Some(cause.localization);
            change.diagnosis = cause.diagnosis;
        }
        log.write(folder)?;
    }
    Ok(true)
}

/// Where a change lies, and what the faulty revision computes instead.
struct Cause {
    localization: Localization,
    diagnosis: Option<Box<Diagnosed>>,
}

impl Cause {
    fn unknown(reason: String) -> Self {
        Self { localization: Localization::NotLocalized(reason), diagnosis: None }
    }
}

/// The cause of one change; `None` when the user stopped the search for it.
fn find(
    context: &Context,
    question: &Question,
    subject: &Subject,
    phase: &Phase,
    change: &ChangePoint,
) -> Option<Cause> {
    let found = between(context, question, subject, phase, change);
    if context.stop.load(std::sync::atomic::Ordering::Relaxed) {
        return None;
    }
    Some(found.unwrap_or_else(|error| Cause::unknown(reason(&error))))
}

/// Localises and diagnoses the revisions before and after a change, in the case and variant with the largest difference.
fn between(
    context: &Context,
    question: &Question,
    subject: &Subject,
    phase: &Phase,
    change: &ChangePoint,
) -> Result<Cause> {
    let [before, after] = [change.found.before, change.found.after].map(|index| &phase.revisions[index]);
    // The revision that diverges from the good side; the good side itself has no step.
    let faulty = if change.change == Change::Went { change.found.before } else { change.found.after };
    let shown = phase.step(faulty).and_then(Step::worst);
    let Some(shown) = shown.filter(|pair| pair.verdict.is_some()) else {
        let name = &phase.revisions[faulty].name;
        return Ok(Cause::unknown(format!("{name} gives no logits")));
    };
    let config = subject.config(question, &[before, after]);
    let plan = Plan::new(&config, machine::auto_device())?;
    let note = plan.cells.iter().find(|cell| cell.variant.name() == shown.variant);
    let note = note.map(|cell| cell.variant.note());
    let name_of = |version: &str| {
        let cell = plan
            .cells
            .iter()
            .find(|cell| cell.variant.version == version && Some(cell.variant.note()) == note);
        cell.map(|cell| cell.variant.name())
    };
    let [Some(a), Some(b)] = [&before.name, &after.name].map(|name| name_of(name)) else {
        return Ok(Cause::unknown(format!("{} is on one side only", shown.variant)));
    };
    let text = toml::to_string(&config).into_diagnostic()?;
    let quiet = Progress::new(true).without_results();
    let request = run::RunRequest {
        config: &config,
        text: &text,
        plan: &plan,
        cache: context.cache,
        clean: false,
        localize: false,
        stop: context.stop,
        progress: &quiet,
        turn: None,
        sharing: None,
    };
    context.progress.line(&format!("{}: localising {a} / {b}", shown.case));
    let wanted = Wanted { case: Some(&shown.case), variants: [&a, &b], options: &Options::default() };
    let found = run::localize(&request, &wanted, None)?;
    let localization = found.into_iter().next().map_or_else(
        || Localization::NotLocalized(format!("{} is on one side only", shown.case)),
        |localized| Localization::Localized(Box::new(localized)),
    );
    let [trusted, suspect] = if change.change == Change::Went { [&b, &a] } else { [&a, &b] };
    let wanted = WantedDiagnosis {
        case: Some(&shown.case),
        trusted,
        suspect,
        budget: Duration::from_secs(config.run.diagnose_s),
    };
    Ok(Cause { localization, diagnosis: diagnose(context, &request, &wanted) })
}

/// What the suspect computes instead, with proof. A case that cannot be diagnosed, such as one through a KV cache, has none.
fn diagnose(
    context: &Context,
    request: &run::RunRequest,
    wanted: &WantedDiagnosis,
) -> Option<Box<Diagnosed>> {
    if wanted.budget.is_zero() {
        return None;
    }
    let WantedDiagnosis { trusted, suspect, .. } = wanted;
    context.progress.line(&format!("{}: diagnosing {trusted} / {suspect}", wanted.case.unwrap_or_default()));
    let found = run::diagnose(request, wanted, None).ok()?.into_iter().next()?;
    matches!(found.finding, Diagnosis::Reproduced { .. }).then(|| Box::new(found))
}

/// An error and its causes, in one line.
fn reason(error: &Report) -> String {
    error
        .downcast_ref::<LocalizeError>()
        .map_or_else(|| error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": "), described)
}
