//! Drives the two workers: chooses the dtype and the depth, and assembles the result.

use std::collections::HashMap;
use std::time::Instant;

use miette::Diagnostic;
use reference::protocol::{Dtype, Forward, Load, Mode, Positions, Reply, Request as Ask};

use super::level::{self, Names};
use super::live::{Found, Live, Open};
use super::routed;
use super::sequences::Sequences;
use super::{Finding, LocalizeError, Localized, Request, Side};
use crate::execute::runner::Start;
use crate::spec::variant::{attention_name, dtype_name, measured_dtype, measured_positions};
use compare::mask::Mask;
use compare::matrix::{self, Entry, PairOutcome};
use compare::metrics::Side as MetricSide;

/// Finds the first module at which the pair diverges.
///
/// # Errors
/// When a worker cannot be started or fails, when what it wrote cannot be read, when the sides have no module in
/// common, or when the user stops it.
pub fn localize(request: &Request) -> Result<Localized, LocalizeError> {
    let started = Instant::now();
    let inputs = &request.sides[0].load.inputs;
    let sequences = Sequences::of_inputs(inputs).map_err(|error| {
        LocalizeError::io(inputs, std::io::Error::new(std::io::ErrorKind::InvalidData, error.to_string()))
    })?;
    let scratch = tempfile::Builder::new()
        .prefix("localize-")
        .tempdir_in(request.folder)
        .map_err(|error| LocalizeError::io(request.folder, error))?;
    let fused = request.sides.iter().find(|side| side.load.mode == Mode::Fused);
    let mut notes = Vec::new();
    let wanted = match (request.options.dtype, fused) {
        (Some(dtype), _) => dtype,
        (None, Some(side)) => {
            notes.push(format!("{} does not support float64, so both sides compute in float32", side.name));
            Dtype::F32
        }
        (None, None) => Dtype::F64,
    };
    let is_choice_free = request.options.dtype.is_none();
    let open = Open { request, sequences: &sequences, scratch: scratch.path() };
    let mut found = match open.attempt(wanted, false) {
        Err(Attempt::Lacking(error)) if is_choice_free && wanted == Dtype::F64 => {
            notes.push(format!("both sides compute in float32 instead of float64: {error}"));
            open.attempt(Dtype::F32, false)
        }
        other => other,
    }?;
    if found.finding == Finding::Nothing {
        if let Some(execution) = open.execution(&found, &mut notes)? {
            found.finding = execution;
        } else if let Some(own) = own_dtype(request).filter(|own| is_choice_free && *own != found.dtype) {
            notes.push(format!(
                "in {} both sides agree; the following is in {}",
                dtype_name(found.dtype),
                dtype_name(own)
            ));
            let again = open.attempt(own, true)?;
            let (bytes, passes_ns) = (found.bytes, found.passes_ns);
            found = again;
            found.bytes = found.bytes.saturating_add(bytes);
            found.passes_ns =
                std::array::from_fn(|index| found.passes_ns[index].saturating_add(passes_ns[index]));
        }
    }
    notes.extend(changes(request));
    if request.sides.iter().any(|side| side.prefill.is_some()) {
        notes.push(
            "each module's outputs for the prefill and for each decoded token are concatenated; attention scores are not compared, because their keys grow with each token".to_owned(),
        );
        if request.fed().is_none() {
            notes.push("no module was replayed with the other side's input".to_owned());
        }
    }
    notes.extend(found.notes);
    let [a, b] = request.sides.each_ref().map(|side| side.name.clone());
    let threshold = threshold(request, found.dtype);
    let mut localized = Localized {
        case: request.case.to_owned(),
        a,
        b,
        dtype: found.dtype,
        threshold,
        logits: found.logits,
        finding: found.finding,
        sentence: String::new(),
        modules: found.modules,
        captured_bytes: found.bytes,
        overhead: (found.passes_ns[1] > 0).then(|| found.passes_ns[0] as f64 / found.passes_ns[1] as f64),
        elapsed_ns: started.elapsed().as_nanos() as u64,
        capture_changed_nothing: found.unchanged,
        is_first_fed: request.fed() == Some(0),
        notes,
        profile: found.profile,
    };
    localized.sentence = crate::results::localized::sentence(&localized);
    Ok(localized)
}

/// Largest relative L2 that rounding explains: `f64_agreement` for float64, the tolerance of the dtype otherwise.
pub(super) fn threshold(request: &Request, dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => request.tolerances.f64_agreement,
        dtype => request.tolerances.relative_l2.of(measured_dtype(dtype)),
    }
}

/// The common dtype of both variants, if they have one.
fn own_dtype(request: &Request) -> Option<Dtype> {
    let [a, b] = request.sides.each_ref().map(|side| side.load.dtype);
    (a == b).then_some(a)
}

/// The load of the same variant with modules that can be captured: without `torch.compile`, with eager attention.
pub(super) fn twin(load: &Load, dtype: Dtype) -> Load {
    use reference::protocol::Attention;
    let mode = if load.mode == Mode::Fused { Mode::Fused } else { Mode::Eager };
    Load { mode, attention: load.attention.map(|_| Attention::Eager), ..load.in_dtype(dtype) }
}

/// Notes on the mode and attention that were changed for the capture.
fn changes(request: &Request) -> Vec<String> {
    let change = |side: &Side| {
        let twin = twin(&side.load, side.load.dtype);
        let changed = [
            (twin.mode != side.load.mode).then(|| "without torch.compile".to_owned()),
            side.load.attention.filter(|own| Some(*own) != twin.attention).map(|own| {
                format!(
                    "with eager attention instead of {}, whose steps cannot be captured",
                    attention_name(own)
                )
            }),
        ];
        let changed: Vec<String> = changed.into_iter().flatten().collect();
        (!changed.is_empty()).then(|| format!("{} was captured {}", side.name, changed.join(" and ")))
    };
    request.sides.iter().filter_map(change).collect()
}

/// Why a dtype gives no result.
pub(super) enum Attempt {
    /// A side cannot load or run the model in it.
    Lacking(LocalizeError),
    Failed(LocalizeError),
}

impl From<LocalizeError> for Attempt {
    fn from(error: LocalizeError) -> Self {
        Self::Failed(error)
    }
}

impl From<Attempt> for LocalizeError {
    fn from(attempt: Attempt) -> Self {
        match attempt {
            Attempt::Lacking(error) | Attempt::Failed(error) => error,
        }
    }
}

/// Classifies a failure before any capture: a worker's failure is [`Attempt::Lacking`], an interruption is not.
fn lacking(error: LocalizeError) -> Attempt {
    match error {
        LocalizeError::Worker { .. } => Attempt::Lacking(error),
        error => Attempt::Failed(error),
    }
}

impl<'a> Open<'a> {
    /// Localises in one dtype; `wider_agrees` tells whether the two agree in a wider one.
    fn attempt(&self, dtype: Dtype, wider_agrees: bool) -> Result<Found, Attempt> {
        let loads = self.request.sides.each_ref().map(|side| twin(&side.load, dtype));
        self.attempt_as(loads, dtype, wider_agrees)
    }

    /// [`Self::attempt`] with each side loaded as its load says.
    pub(super) fn attempt_as(
        &self,
        [first, second]: [Load; 2],
        dtype: Dtype,
        wider_agrees: bool,
    ) -> Result<Found, Attempt> {
        let [a, b] = &self.request.sides;
        let mut sides = [self.start(a, first)?, self.start(b, second)?];
        let mut files = Vec::new();
        for (side, name) in sides.iter_mut().zip(["a", "b"]) {
            let file = format!("logits_{name}_{}", dtype_name(dtype));
            files.push(self.forward(side, &file).map_err(lacking)?);
        }
        let apart = self.apart(&files[0], &files[1], dtype);
        let logits = apart.map(|(whole, _)| whole);
        let threshold = threshold(self.request, dtype);
        // A token that is routed to another expert changes only one of many positions.
        let local = threshold * self.request.tolerances.local_factor;
        let is_whole_agreed = logits.is_some_and(|whole| whole <= threshold);
        let is_each_agreed = !wider_agrees || apart.is_some_and(|(_, position)| position <= local);
        let nothing = Found {
            dtype,
            logits,
            finding: Finding::Nothing,
            modules: 0,
            bytes: 0,
            passes_ns: [0, 0],
            unchanged: true,
            notes: Vec::new(),
            profile: Vec::new(),
        };
        let found = if is_whole_agreed && is_each_agreed {
            nothing
        } else {
            match level::names(self, &mut sides)? {
                Names::Hidden(reason) => Found { finding: Finding::Logits { reason }, ..nothing },
                Names::Common(names, _) if is_whole_agreed && !routed::is_routed(&names) => nothing,
                Names::Common(names, alone) => {
                    let mut found = level::search(
                        self,
                        &mut sides,
                        (&names, &alone),
                        nothing,
                        (threshold, wider_agrees),
                    )?;
                    // Levels were captured one after the other; the names are in call order.
                    let order: HashMap<(&str, usize), usize> = names
                        .iter()
                        .enumerate()
                        .map(|(at, name)| ((&*name.path[0], name.call), at))
                        .collect();
                    found.profile.sort_by_key(|module| order.get(&(&*module.path, module.call)).copied());
                    found
                }
            }
        };
        for side in sides {
            side.end();
        }
        Ok(found)
    }

    pub(super) fn start(&self, side: &'a Side<'a>, load: Load) -> Result<Live<'a>, Attempt> {
        let failed = |ended| lacking(LocalizeError::worker(side, self.request.folder, ended));
        let log = self.request.folder.join("worker.log");
        let session = side.runner.start(log, self.request.stop, Start::default()).map_err(failed)?;
        let mut live = Live { side, session, request: self.request };
        live.try_ask(&Ask::Load(load)).map_err(failed)?;
        Ok(live)
    }

    /// The file of the logits of one forward of the inputs, and their positions.
    pub(super) fn forward(
        &self,
        side: &mut Live,
        name: &str,
    ) -> Result<(std::path::PathBuf, Positions), LocalizeError> {
        let path = self.scratch.join(format!("{name}.safetensors"));
        let ask = Forward::prefilled(path.clone(), side.side.prefill);
        match side.ask(&Ask::Forward(ask))? {
            Reply::Forwarded(forwarded) => Ok((path, forwarded.positions)),
            _ => Err(side.out_of_turn()),
        }
    }

    /// Relative L2 of two logits files, over all positions and at the worst one; `None` if they cannot be compared.
    pub(super) fn apart(
        &self,
        a: &(std::path::PathBuf, Positions),
        b: &(std::path::PathBuf, Positions),
        dtype: Dtype,
    ) -> Option<(f64, f64)> {
        let entry = |(path, positions): &(std::path::PathBuf, Positions)| {
            Entry::of_file(path, measured_positions(*positions), measured_dtype(dtype))
        };
        let pair = [entry(a), entry(b)];
        let whole = pair.iter().filter_map(|entry| entry.logits.as_ref().ok()).map(|logits| {
            let [batch, seq, _] = logits.shape();
            (logits.positions() == compare::Positions::All).then_some((batch, seq))
        });
        let mask =
            whole.flatten().next().map(|shape| Mask::fitting(Some(self.sequences.output().clone()), shape));
        match matrix::of_pair(&pair, Some(mask.as_ref().unwrap_or(self.sequences.output()))).ok()? {
            PairOutcome::Compared(pair) => Some((pair.relative_l2(MetricSide::A), pair.worst_position.0)),
            _ => None,
        }
    }
}

/// An error's message and its hint in one line.
pub(crate) fn described(error: &LocalizeError) -> String {
    error.help().map_or_else(|| error.to_string(), |help| format!("{error} ({help})"))
}
