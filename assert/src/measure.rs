//! A port's logits against the recorded ones, in f64; the definitions are those of tfcheck's `compare`.

/// A position of the inputs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Row of the batch.
    pub row: usize,
    /// Position in the row, padding counted.
    pub position: usize,
}

/// One logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Element {
    /// Where in the inputs.
    pub at: Place,
    /// Token id.
    pub token: usize,
    /// The port's logit.
    pub port: f64,
    /// The recorded logit.
    pub recorded: f64,
}

/// How far one logit stands out of its position's differences.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spike {
    /// `max |d|` of the position over the RMS of the larger side's logits there.
    pub relative: f64,
    /// Where.
    pub at: Place,
}

/// What was measured. With `d` = port − recorded over all compared logits:
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics {
    /// Positions compared.
    pub positions: usize,
    /// Logits compared.
    pub elements: usize,
    /// True where the port gave last positions only.
    pub last_positions_only: bool,
    /// Every logit is equal, as the recording's dtype holds it.
    pub identical: bool,
    /// `‖d‖`.
    pub l2: f64,
    /// `‖d‖` over the larger norm of the two sides.
    pub relative_l2: f64,
    /// `sqrt(mean d²)`.
    pub rmse: f64,
    /// The largest `|d|`; `None` where all is equal.
    pub max_abs: Option<Element>,
    /// Largest over positions of `‖d‖` over the larger norm of that position, and where.
    pub worst_position: (f64, Place),
    /// The logit that stands out most from its position's other differences.
    pub spike: Spike,
    /// Share of positions with the same most likely token.
    pub top1_agreement: f64,
}

/// A position's largest difference stands out when it exceeds this many RMS of that position's
/// differences, as in tfcheck's `compare`, which says why.
const PROMINENT: f64 = 32.0;

/// One compared position.
pub(crate) struct Row<'a> {
    pub(crate) at: Place,
    pub(crate) port: &'a [f64],
    pub(crate) recorded: &'a [f64],
}

pub(crate) fn measure<'a>(rows: impl Iterator<Item = Row<'a>>, last_positions_only: bool) -> Metrics {
    let mut metrics = Metrics {
        positions: 0,
        elements: 0,
        last_positions_only,
        identical: true,
        l2: 0.0,
        relative_l2: 0.0,
        rmse: 0.0,
        max_abs: None,
        worst_position: (0.0, Place::default()),
        spike: Spike::default(),
        top1_agreement: 0.0,
    };
    let (mut all, mut all_port, mut all_recorded, mut agreeing) = (0.0, 0.0, 0.0, 0_usize);
    for row in rows {
        let (mut squares, mut port, mut recorded, mut largest) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
        for (token, (&a, &b)) in row.port.iter().zip(row.recorded).enumerate() {
            let d = a - b;
            squares += d * d;
            port += a * a;
            recorded += b * b;
            metrics.identical &= d == 0.0;
            largest = largest.max(d.abs());
            let beats = |known: &Element| d.abs() > (known.port - known.recorded).abs() || d.is_nan();
            let is_nan = metrics.max_abs.is_some_and(|known| (known.port - known.recorded).is_nan());
            if d != 0.0 && !is_nan && metrics.max_abs.as_ref().is_none_or(beats) {
                metrics.max_abs = Some(Element { at: row.at, token, port: a, recorded: b });
            }
        }
        let larger = port.max(recorded);
        let share = relative(squares.sqrt(), larger.sqrt());
        let (worst, _) = metrics.worst_position;
        // A NaN is worse than any number and stays.
        if share > worst || (share.is_nan() && !worst.is_nan()) {
            metrics.worst_position = (share, row.at);
        }
        let rms = |squares: f64| (squares / row.port.len() as f64).sqrt();
        let out = relative(largest, rms(larger));
        if relative(largest, rms(squares)) > PROMINENT && out > metrics.spike.relative {
            metrics.spike = Spike { relative: out, at: row.at };
        }
        agreeing += usize::from(top(row.port).is_some_and(|token| Some(token) == top(row.recorded)));
        metrics.positions += 1;
        metrics.elements += row.port.len();
        all += squares;
        all_port += port;
        all_recorded += recorded;
    }
    metrics.l2 = all.sqrt();
    metrics.relative_l2 = relative(metrics.l2, all_port.max(all_recorded).sqrt());
    metrics.rmse = (all / metrics.elements as f64).sqrt();
    metrics.top1_agreement = agreeing as f64 / metrics.positions as f64;
    metrics
}

/// 0 for 0/0: equal zeros do not differ.
fn relative(difference: f64, reference: f64) -> f64 {
    if difference == 0.0 { 0.0 } else { difference / reference }
}

/// The most likely token, the lowest id on a tie.
fn top(logits: &[f64]) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (token, &value) in logits.iter().enumerate() {
        if !value.is_nan() && best.is_none_or(|(_, known)| value > known) {
            best = Some((token, value));
        }
    }
    best.map(|(token, _)| token)
}
