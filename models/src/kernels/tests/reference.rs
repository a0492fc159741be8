//! The kernels' definitions in f64, without blocking or vectors.

use std::ops::Range;

/// `y[i][j] = sum_k x[i][k] w[j][k] + bias[j]` and, for error bounds, the same sum of magnitudes.
pub(crate) fn linear(x: &[f64], w: &[f64], k: usize, bias: Option<&[f64]>) -> (Vec<f64>, Vec<f64>) {
    let n = w.len() / k;
    let (mut y, mut size) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(k) {
        for (j, w) in w.chunks_exact(k).enumerate() {
            let b = bias.map_or(0.0, |b| b[j % n]);
            y.push(row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>() + b);
            size.push(row.iter().zip(w).map(|(a, b)| (a * b).abs()).sum::<f64>() + b.abs());
        }
    }
    (y, size)
}

pub(crate) fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

pub(crate) fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
}

/// `erf` by its Taylor series below 3 and the continued fraction of `erfc` above.
pub(crate) fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 3.0 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
            if sum == 0.0 {
                break;
            }
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let fraction = (1..60).rev().fold(a, |f, k| a + f64::from(k) / 2.0 / f);
        1.0 - (-a * a).exp() / (fraction * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

pub(crate) fn gelu_erf(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

pub(crate) fn rms_norm(x: &[f64], weight: &[f64], eps: f64) -> Vec<f64> {
    let n = weight.len();
    let rows = x.chunks_exact(n).flat_map(|row| {
        let scale = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / n as f64 + eps).sqrt();
        row.iter().zip(weight).map(move |(v, w)| v * scale * w)
    });
    rows.collect()
}

pub(crate) fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64], eps: f64) -> Vec<f64> {
    let n = weight.len();
    let rows = x.chunks_exact(n).flat_map(|row| {
        let mean = row.iter().sum::<f64>() / n as f64;
        let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
        let scale = 1.0 / (variance + eps).sqrt();
        row.iter().zip(weight).zip(bias).map(move |((v, w), b)| (v - mean) * scale * w + b)
    });
    rows.collect()
}

/// Rotates one head; `angle(i)` is the angle of pair `i`.
pub(crate) fn rope(head: &mut [f64], pairs: usize, interleaved: bool, angle: impl Fn(usize) -> (f64, f64)) {
    for i in 0..pairs {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + pairs) };
        let (cos, sin) = angle(i);
        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[b] * cos + head[a] * sin);
    }
}

/// Attention of one query over the rows of `keys` and `values` that `seen` admits; zeros if it admits none. `bias` is
/// added to the score of each key, after scale and cap.
pub(crate) fn attention(
    q: &[f64],
    keys: &[Vec<f64>],
    values: &[Vec<f64>],
    seen: impl Fn(usize) -> bool,
    (scale, softcap): (f64, Option<f64>),
    bias: impl Fn(usize) -> f64,
) -> Vec<f64> {
    let slots: Vec<usize> = (0..keys.len()).filter(|s| seen(*s)).collect();
    let score = |slot: &usize| {
        let s = scale * q.iter().zip(&keys[*slot]).map(|(a, b)| a * b).sum::<f64>();
        softcap.map_or(s, |cap| cap * (s / cap).tanh()) + bias(*slot)
    };
    let scores: Vec<f64> = slots.iter().map(score).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    let mut out = vec![0.0; q.len()];
    for (s, slot) in scores.iter().zip(&slots) {
        for (o, v) in out.iter_mut().zip(&values[*slot]) {
            *o += (s - top).exp() / total * v;
        }
    }
    out
}

/// Whether a query in slot `query` attends to a key in slot `key`.
pub(crate) fn sees(
    query: usize,
    key: usize,
    before: Option<usize>,
    after: Option<usize>,
    allowed: &Range<usize>,
) -> bool {
    allowed.contains(&key)
        && before.is_none_or(|n| key + n >= query)
        && after.is_none_or(|n| key <= query + n)
}
