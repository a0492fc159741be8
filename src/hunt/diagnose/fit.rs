//! Fits a factor where no row of the table closes.

use super::DiagnoseError;
use super::candidates::{Candidate, closes};
use super::causes::Cause;
use super::draft::Draft;
use super::knobs::KNOBS;
use super::lab::{Lab, Stage};
use super::side::Apart;

/// Factors of the first search, evenly spaced on a logarithmic scale: four to an octave, from 1/256 to 256.
const GRID: i32 = 32;
/// Steps of the refinement by golden section, each of which shrinks the interval to 0.618 of it: to the 1e-9th part of it.
const STEPS: usize = 44;
/// `candidate` with a factor that makes a stage agree.
pub(super) fn fitted(
    lab: &mut Lab,
    candidate: &Candidate,
    stage: &Stage,
    base: Apart,
) -> Result<Option<Candidate>, DiagnoseError> {
    for knob in KNOBS {
        if !lab.has_time() {
            break;
        }
        let turned = |factor: f64| Cause::Fitted(knob, factor);
        let measure = |lab: &mut Lab, factor: f64| -> Result<f64, DiagnoseError> {
            let Some(draft) = turned(factor).applied(&candidate.draft) else { return Ok(f64::INFINITY) };
            Ok(lab.apart(&draft, stage)?.relative_l2)
        };
        let steps: Vec<i32> = (-GRID..=GRID).filter(|step| *step != 0).collect();
        let drafts: Vec<Draft> = steps
            .iter()
            .filter_map(|step| turned(2_f64.powf(f64::from(*step) / 4.0)).applied(&candidate.draft))
            .collect();
        if drafts.len() < steps.len() {
            continue;
        }
        let mut best = (0, base.relative_l2);
        for (step, apart) in steps.into_iter().zip(lab.apart_each(&drafts, stage)?) {
            if apart.relative_l2 < best.1 {
                best = (step, apart.relative_l2);
            }
        }
        // A factor between two points of the grid halves the error at least, unless it is near 1.
        if best.0 == 0 || best.1 > 0.9 * base.relative_l2 {
            continue;
        }
        let factor = refined(|octaves| measure(lab, 2_f64.powf(octaves)), f64::from(best.0) / 4.0)?;
        let cause = turned(2_f64.powf(factor));
        let Some(draft) = cause.applied(&candidate.draft) else { continue };
        let apart = lab.apart(&draft, stage)?;
        if closes(apart, base) {
            let causes = candidate.causes.iter().copied().chain([cause]).collect();
            return Ok(Some(Candidate { causes, draft, apart }));
        }
    }
    Ok(None)
}

/// The smallest value of `measure` within a step of the grid around `middle`, by golden section.
fn refined(
    mut measure: impl FnMut(f64) -> Result<f64, DiagnoseError>,
    middle: f64,
) -> Result<f64, DiagnoseError> {
    let golden = (5_f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (middle - 0.25, middle + 0.25);
    let mut inner = [high - golden * (high - low), low + golden * (high - low)];
    let mut values = [measure(inner[0])?, measure(inner[1])?];
    for _ in 0..STEPS {
        if values[0] < values[1] {
            high = inner[1];
            inner = [high - golden * (high - low), inner[0]];
            values = [measure(inner[0])?, values[0]];
        } else {
            low = inner[0];
            inner = [inner[1], low + golden * (high - low)];
            values = [values[1], measure(inner[1])?];
        }
    }
    Ok(f64::midpoint(low, high))
}
