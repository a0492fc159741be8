//! Rotary position embeddings.

mod axes;
mod eager;

use bounds::config::Refused;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Tensor};
use half::{bf16, f16};

use self::axes::Turn;
use super::{RopeParameters, RopeScaling};
use crate::cuda::{DevicePass, DeviceRope, DeviceTable};
use crate::deviations::Deviation;
use crate::error::Result;
use crate::fused::Workspace;
use crate::kernels::{Pairing, RopeTable};
use crate::lock::lock;
use crate::pass::Pass;

/// The parameters from which the tables of cosines and sines are computed.
///
/// The tables are computed in F32, as in torch, for every 16-bit dtype and F32, and in F64 for an F64 model. Each F32
/// operation is computed in F64 and rounded; for products and quotients the result is the same, for `pow`, `cos` and
/// `sin` it is within one unit of torch's last bit.
#[derive(Clone, Debug)]
pub struct RotaryEmbedding {
    parameters: RopeParameters,
    rotary_dim: usize,
    interleaved: bool,
    rotation: Rotation,
    /// The axis and the frequency of each rotated pair, if a token has a position on each of several axes.
    axes: Option<Arc<[Turn]>>,
    known: Arc<Mutex<Option<Known>>>,
}

/// The table that the fused backend keeps between forward passes, one row per position.
#[derive(Debug)]
struct Known {
    /// Whether the table is for sequences longer than the original context, if the frequencies depend on that.
    is_long: bool,
    table: Table,
}

#[derive(Debug)]
enum Table {
    Host(Arc<RopeTable>),
    Gpu(Arc<DeviceTable>),
}

/// The largest number of rows of a shared table: positions from here on get a table per forward pass.
const MOST_POSITIONS: i64 = 1 << 17;
/// Number of rows that a GPU's table has from the start, unless the model has fewer positions.
const DEVICE_POSITIONS: usize = 1 << 13;

/// How a rotation rounds in a 16-bit model; in F32 and F64 all variants are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// Tables, products and sums are each rounded to the model's dtype (llama).
    Rounded,
    /// Tables are rounded to the model's dtype; products and sums are F32, and the result is rounded once (cohere).
    RoundedTables,
    /// Tables, products and sums are F32, and the result is rounded once (olmo2).
    Wide,
}

/// The tables of one forward pass.
#[derive(Clone)]
pub struct Rope(RopeTables);

#[derive(Clone)]
enum RopeTables {
    Eager {
        /// `[batch, seq, rotary_dim / 2]`, in the dtype of the rotation.
        cos: Tensor,
        /// Same shape and dtype as `cos`.
        sin: Tensor,
        interleaved: bool,
        /// Whether they are laid out for the other pairing, on purpose.
        is_mislaid: bool,
    },
    /// The table, and the row of each token; `None` means that the rows are the forward pass's positions.
    Host(Arc<RopeTable>, Option<Arc<[u32]>>),
    Gpu(DeviceRope),
}

impl RotaryEmbedding {
    /// Rotates the first `head_dim * partial_rotary_factor` features of a head and pairs dimension `i` with `i +
    /// rotary_dim / 2`.
    pub fn new(parameters: RopeParameters, head_dim: usize) -> Self {
        let rotary_dim = (head_dim as f64 * parameters.partial_rotary_factor) as usize;
        Self {
            parameters,
            rotary_dim,
            interleaved: false,
            rotation: Rotation::Rounded,
            axes: None,
            known: Arc::default(),
        }
    }

    /// Pairs dimension `2 i` with `2 i + 1` instead of pairing halves.
    #[must_use]
    pub fn interleaved(mut self) -> Self {
        self.interleaved = true;
        self
    }

    /// Sets how the rotation rounds.
    #[must_use]
    pub fn rotating(mut self, rotation: Rotation) -> Self {
        self.rotation = rotation;
        self
    }

    /// The tables for the forward pass's positions.
    ///
    /// # Errors
    /// If the tensors cannot be made, or the rotated features of a head are none or no pairs.
    pub fn forward(&self, pass: &Pass) -> Result<Rope> {
        if self.rotary_dim == 0 || !self.rotary_dim.is_multiple_of(2) {
            let share = self.parameters.partial_rotary_factor.to_string();
            let needed =
                format!("a share of a head's features that is even and not 0, not {}", self.rotary_dim);
            return Err(Refused::described("partial_rotary_factor", &share, needed).into());
        }
        if let Some(workspace) = pass.workspace() {
            return self.fused(&workspace, pass).map(Rope);
        }
        let arithmetic = Arithmetic::of(pass.dtype());
        let len = len_of(pass.positions());
        let tables = if pass.deviates(Deviation::RopeAnglesBf16) {
            let rounded = |value| bf16::from_f64(value).to_f64();
            self.coarse_tables(rounded, arithmetic, pass.positions(), len)
        } else if pass.deviates(Deviation::RopeAnglesF16) {
            let rounded = |value| f16::from_f64(value).to_f64();
            self.coarse_tables(rounded, arithmetic, pass.positions(), len)
        } else if pass.deviates(Deviation::RopeFactorsByPosition) {
            let of = |&position: &i64| self.tables(arithmetic, &[position], position + 1);
            let (cos, sin): (Vec<_>, Vec<_>) = pass.positions().iter().map(of).unzip();
            (cos.concat(), sin.concat())
        } else {
            self.tables(arithmetic, pass.positions(), len)
        };
        self.eager(pass, arithmetic, tables)
    }

    /// Pairs of features of a head that are rotated.
    fn pairs(&self) -> usize {
        self.axes.as_ref().map_or(self.rotary_dim.div_ceil(2), |axes| axes.len())
    }

    fn pairing(&self) -> Pairing {
        if self.interleaved { Pairing::Interleaved } else { Pairing::HalfSplit }
    }

    /// Cosines and sines as tensors of the eager backend.
    fn eager(&self, pass: &Pass, arithmetic: Arithmetic, (cos, sin): (Vec<f64>, Vec<f64>)) -> Result<Rope> {
        let table = |values: Vec<f64>| -> Result<Tensor> {
            let shape = (pass.batch(), pass.seq(), self.pairs());
            // The values become F32 first, because torch rounds its F32 table to 16 bits.
            let table = match arithmetic {
                Arithmetic::Double => Tensor::from_vec(values, shape, pass.device())?,
                Arithmetic::Single => {
                    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
                    Tensor::from_vec(values, shape, pass.device())?
                }
            };
            let table = pass.coarse(Deviation::RopeTablesBf16, table)?;
            let table = if pass.deviates(Deviation::RopeTablesF16) {
                table.to_dtype(DType::F16)?.to_dtype(table.dtype())?
            } else {
                table
            };
            Ok(match self.rotation {
                Rotation::Rounded => table.to_dtype(pass.dtype())?,
                Rotation::RoundedTables => table.to_dtype(pass.dtype())?.to_dtype(table.dtype())?,
                Rotation::Wide => table,
            })
        };
        Ok(Rope(RopeTables::Eager {
            cos: table(cos)?,
            sin: table(sin)?,
            interleaved: self.interleaved,
            is_mislaid: pass.deviates(Deviation::RopeTablesMislaid),
        }))
    }

    /// All forward passes share one table of every position so far, so that decoding computes none. If the
    /// frequencies depend on the length of each sequence, or a position is negative or at least `MOST_POSITIONS`, the
    /// table has one row per token.
    fn fused(&self, workspace: &Workspace, pass: &Pass) -> Result<RopeTables> {
        let positions = pass.positions();
        let shared = self.shared_up_to(positions);
        match workspace {
            Workspace::Host(_) => {
                let Some((is_long, len)) = shared else {
                    let table = self.host_table(positions, len_of(positions));
                    return Ok(RopeTables::Host(
                        Arc::new(table),
                        Some((0..positions.len() as u32).collect()),
                    ));
                };
                let known = |known: &Known| match &known.table {
                    Table::Host(table) if table.positions() as i64 >= len => Some(Arc::clone(table)),
                    _ => None,
                };
                let make = || {
                    let all: Vec<i64> = (0..(len.max(128) as u64).next_power_of_two() as i64).collect();
                    let table = Arc::new(self.host_table(&all, len));
                    Ok((Table::Host(Arc::clone(&table)), table))
                };
                Ok(RopeTables::Host(self.known_or(is_long, known, make)?, None))
            }
            Workspace::Gpu(space) => {
                let device = pass.device_pass()?;
                let Some((is_long, len)) = shared else { return self.per_pass(device, pass) };
                let known = |known: &Known| match &known.table {
                    Table::Gpu(table) if table.rows as i64 >= len => Some(Arc::clone(table)),
                    _ => None,
                };
                let make = || {
                    // The table is large from the start, because growing it would invalidate captured graphs.
                    let most = self.parameters.max_position_embeddings.min(DEVICE_POSITIONS) as i64;
                    let rows = (len.max(most) as u64).next_power_of_two() as i64;
                    let all: Vec<i64> = (0..rows).collect();
                    let (cos, sin) = self.single_tables(&all, len);
                    let pairs = self.rotary_dim.div_ceil(2);
                    let table = Arc::new(DeviceTable::new(space, (&cos, &sin), pairs, self.interleaved)?);
                    Ok((Table::Gpu(Arc::clone(&table)), table))
                };
                let table = self.known_or(is_long, known, make)?;
                let (this, rows) = (self.clone(), table.rows as i64);
                device.require(move |pass| {
                    let shared = this.shared_up_to(pass.positions());
                    Ok(shared.is_some_and(|(long, len)| long == is_long && len <= rows))
                });
                Ok(RopeTables::Gpu(DeviceRope { table, rows: device.positions(pass)? }))
            }
        }
    }

    /// A table on a GPU with one row per token, computed for each forward pass.
    fn per_pass(&self, device: &DevicePass, pass: &Pass) -> Result<RopeTables> {
        let table = |is_cos: bool| {
            let this = self.clone();
            device.input(pass, move |pass| {
                let (cos, sin) = this.single_tables(pass.positions(), len_of(pass.positions()));
                Ok(if is_cos { cos } else { sin })
            })
        };
        let rows = device.input(pass, |pass| Ok((0..pass.positions().len() as u32).collect()))?;
        let table = DeviceTable {
            cos: table(true)?.as_ref().clone(),
            sin: table(false)?.as_ref().clone(),
            rows: pass.positions().len(),
            pairs: self.rotary_dim.div_ceil(2),
            interleaved: self.interleaved,
        };
        Ok(RopeTables::Gpu(DeviceRope { table: Arc::new(table), rows: rows.as_ref().clone() }))
    }

    /// Whether the sequence is longer than the original context, and how many rows of the shared table the positions
    /// need; `None` if the forward pass needs its own table.
    fn shared_up_to(&self, positions: &[i64]) -> Option<(bool, i64)> {
        let len = len_of(positions);
        let is_near = positions.iter().all(|position| (0..MOST_POSITIONS).contains(position));
        let is_long = match &self.parameters.scaling {
            RopeScaling::Dynamic { .. } if len > self.parameters.max_position_embeddings as i64 => {
                return None;
            }
            RopeScaling::Longrope { original, .. } => len > *original as i64,
            _ => false,
        };
        is_near.then_some((is_long, len))
    }

    /// The kept table if it fits, else a new one, which is kept.
    fn known_or<T>(
        &self,
        is_long: bool,
        known: impl FnOnce(&Known) -> Option<T>,
        make: impl FnOnce() -> Result<(Table, T)>,
    ) -> Result<T> {
        let mut entry = lock(&self.known);
        if let Some(found) = entry.as_ref().filter(|entry| entry.is_long == is_long).and_then(known) {
            return Ok(found);
        }
        let (table, made) = make()?;
        *entry = Some(Known { is_long, table });
        Ok(made)
    }

    fn host_table(&self, positions: &[i64], len: i64) -> RopeTable {
        let (cos, sin) = self.single_tables(positions, len);
        RopeTable::new(cos, sin, self.rotary_dim.div_ceil(2), self.pairing())
    }

    fn single_tables(&self, positions: &[i64], len: i64) -> (Vec<f32>, Vec<f32>) {
        singles(self.tables(Arithmetic::Single, positions, len))
    }

    /// Cosines and sines, `[positions, rotary_dim / 2]`, of a sequence that ends at position `len - 1`.
    fn tables(&self, arithmetic: Arithmetic, positions: &[i64], len: i64) -> (Vec<f64>, Vec<f64>) {
        let frequencies = self.rotary_dim.div_ceil(2);
        let turns =
            positions.iter().flat_map(|position| (0..frequencies).map(|frequency| (*position, frequency)));
        self.turned(arithmetic, len, turns)
    }

    /// As [`Self::tables`], with positions, frequencies, their products, cosines and sines rounded by `rounded`.
    fn coarse_tables(
        &self,
        rounded: impl Fn(f64) -> f64 + Copy,
        arithmetic: Arithmetic,
        positions: &[i64],
        len: i64,
    ) -> (Vec<f64>, Vec<f64>) {
        let (inv_freq, attention_factor) = self.inv_freq(arithmetic, len);
        let inv_freq: Vec<f64> = inv_freq.into_iter().map(rounded).collect();
        let angles = positions.iter().flat_map(|&position| {
            inv_freq.iter().map(move |frequency| rounded(rounded(position as f64) * frequency))
        });
        let scaled = |value: f64| rounded(rounded(value) * attention_factor);
        angles.map(|angle| (scaled(angle.cos()), scaled(angle.sin()))).unzip()
    }

    /// Cosines and sines of positions times frequencies, in a sequence that ends at position `len - 1`.
    fn turned(
        &self,
        arithmetic: Arithmetic,
        len: i64,
        turns: impl Iterator<Item = (i64, usize)>,
    ) -> (Vec<f64>, Vec<f64>) {
        let (inv_freq, attention_factor) = self.inv_freq(arithmetic, len);
        let attention_factor = arithmetic.round(attention_factor);
        let scaled = |value: f64| arithmetic.round(arithmetic.round(value) * attention_factor);
        turns
            .map(|(position, frequency)| {
                let angle = arithmetic.round(position as f64 * inv_freq[frequency]);
                (scaled(angle.cos()), scaled(angle.sin()))
            })
            .unzip()
    }

    /// Inverse frequencies for a sequence that ends at position `len - 1`, and the factor of cos and sin (as in
    /// transformers 5.23.0, `modeling_rope_utils.py`, with the same order of operations).
    fn inv_freq(&self, arithmetic: Arithmetic, len: i64) -> (Vec<f64>, f64) {
        let round = |value: f64| arithmetic.round(value);
        let theta = self.parameters.theta;
        let dim = self.rotary_dim as f64;
        let exponents = (0..self.rotary_dim).step_by(2).map(|i| round(i as f64 / dim));
        let powers = |theta: f64| -> Vec<f64> {
            let theta = round(theta);
            exponents.clone().map(|exponent| round(theta.powf(exponent))).collect()
        };
        let inverse =
            |theta: f64| -> Vec<f64> { powers(theta).into_iter().map(|power| round(1.0 / power)).collect() };
        match &self.parameters.scaling {
            RopeScaling::Default => (inverse(theta), 1.0),
            RopeScaling::Linear { factor } => {
                let factor = round(*factor);
                let inv_freq = inverse(theta).into_iter().map(|f| round(f / factor));
                (inv_freq.collect(), 1.0)
            }
            RopeScaling::Dynamic { factor } => {
                let max = self.parameters.max_position_embeddings as f64;
                if len as f64 <= max {
                    return (inverse(theta), 1.0);
                }
                let stretch = round(round(round(factor * len as f64) / max) - (factor - 1.0));
                let theta = theta * round(stretch.powf(dim / (dim - 2.0)));
                (inverse(theta), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let (original, factor) = (*original as f64, round(*factor));
                let (low, high) = (original / low_freq_factor, original / high_freq_factor);
                let stretch = |f: f64| {
                    let wavelength = round(round(1.0 / f) * round(2.0 * std::f64::consts::PI));
                    if wavelength > round(low) {
                        return round(f / factor);
                    }
                    if wavelength < round(high) {
                        return f;
                    }
                    let smooth = round(round(1.0 / wavelength) * original);
                    let smooth =
                        round(round(smooth - low_freq_factor) / round(high_freq_factor - low_freq_factor));
                    let divided = round(round(round(1.0 - smooth) * f) / factor);
                    round(divided + round(smooth * f))
                };
                (inverse(theta).into_iter().map(stretch).collect(), 1.0)
            }
            RopeScaling::Yarn { factor, attention_factor, beta_fast, beta_slow, original, truncate } => {
                let bound = |rotations: f64| {
                    let turns = *original as f64 / (rotations * 2.0 * std::f64::consts::PI);
                    dim * turns.ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (bound(*beta_fast), bound(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if (high - low).abs() <= 0.0 {
                    high += 0.001;
                }
                let blend = |(i, power): (usize, f64)| {
                    let ramp = round(round(i as f64 - low) / round(high - low)).clamp(0.0, 1.0);
                    let kept = round(1.0 - ramp);
                    let interpolated = round(1.0 / round(factor * power));
                    let extrapolated = round(1.0 / power);
                    round(round(interpolated * round(1.0 - kept)) + round(extrapolated * kept))
                };
                let inv_freq = powers(theta).into_iter().enumerate().map(blend);
                (inv_freq.collect(), *attention_factor)
            }
            RopeScaling::Longrope { attention_factor, short, long, original } => {
                let factors = if len > *original as i64 { long } else { short };
                let inv_freq = powers(theta)
                    .into_iter()
                    .zip(factors)
                    .map(|(power, factor)| round(1.0 / round(round(*factor) * power)));
                (inv_freq.collect(), *attention_factor)
            }
        }
    }
}

impl Rope {
    /// The fused backend's table on the CPU, and the row of each token, by default its position.
    pub(super) fn fused<'a>(&'a self, positions: &'a [u32]) -> Option<(&'a RopeTable, &'a [u32])> {
        match &self.0 {
            RopeTables::Host(table, rows) => Some((table, rows.as_deref().unwrap_or(positions))),
            _ => None,
        }
    }

    /// The GPU's table, and the row of each token.
    pub(super) fn device(&self) -> Option<&DeviceRope> {
        match &self.0 {
            RopeTables::Gpu(rope) => Some(rope),
            _ => None,
        }
    }
}

fn singles((cos, sin): (Vec<f64>, Vec<f64>)) -> (Vec<f32>, Vec<f32>) {
    let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
    (single(cos), single(sin))
}

/// One more than the largest of these positions.
fn len_of(positions: &[i64]) -> i64 {
    positions.iter().max().map_or(0, |max| max + 1)
}

/// The precision to which each operation on the tables is rounded.
#[derive(Clone, Copy, Debug)]
enum Arithmetic {
    Single,
    Double,
}

impl Arithmetic {
    fn of(dtype: DType) -> Self {
        match dtype {
            DType::F64 => Self::Double,
            _ => Self::Single,
        }
    }

    fn round(self, value: f64) -> f64 {
        match self {
            Self::Single => f64::from(value as f32),
            Self::Double => value,
        }
    }
}
