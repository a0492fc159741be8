//! Finds the part of a port that differs, with as few runs of the port as the decisions need.

use std::fmt;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use compare::logits::{Logits, Values};
use compare::matrix::{Entry, Options, matrix};
use compare::metrics::relative;
use compare::verdict::rounding_apart;
use compare::{Dtype, Positions};

use super::{Given, Piece, Stage, Surgery, words};
use crate::recording::{Error, Inputs, Recording};

/// Layers up to which every layer is run by itself where a kind of block differs; of more layers those until the first that differs, and
/// the last.
const FEW_LAYERS: usize = 4;

/// Parts of a port that differ, and what finding them cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Localised {
    /// The parts; none if each part agrees by itself.
    pub parts: Vec<Part>,
    /// Runs of the port on edited checkpoints.
    pub runs: usize,
}

/// A part of a port that differs.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// `layer 0's rotation`.
    pub part: String,
    /// On which edited checkpoint it differs: `with that block alone`.
    pub how: String,
    /// Relative L2 of the port's logits of that checkpoint to the recorded ones.
    pub relative_l2: f64,
}

impl fmt::Display for Localised {
    /// A line of the test's message.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = match self.runs {
            1 => "1 run of the port on an edited checkpoint".to_owned(),
            runs => format!("{runs} runs of the port on edited checkpoints"),
        };
        let places: Vec<String> = (self.parts.iter())
            .map(|part| format!("{} ({:.1e} {})", part.part, part.relative_l2, part.how))
            .collect();
        match places.as_slice() {
            [] => write!(
                out,
                "no part differs by itself, neither {} nor an MLP nor an attention, so that the difference lies in how they are put together; {runs}",
                words::ENDS
            ),
            [one] => write!(out, "the difference lies in {one}; {runs}"),
            [first @ .., last] => {
                write!(out, "the difference lies in {} and {last}; {runs}", first.join(", "))
            }
        }
    }
}

/// How far the port is from the recorded logits of a stage.
#[derive(Clone, Copy, Debug)]
struct Apart {
    relative_l2: f64,
    is_rounding: bool,
}

impl Recording {
    /// Names the parts of a port that differ, by running it on edited copies of the recorded checkpoint; `None` if the recording holds
    /// no logits of such. `port` gives the logits of the checkpoint in a folder.
    ///
    /// # Errors
    /// When the edits do not fit the checkpoint, or the port fails on an edited one.
    pub fn localised<E: fmt::Display>(
        &self,
        checkpoint: &Path,
        mut port: impl FnMut(&Path, &Inputs) -> Result<Tensor, E>,
    ) -> Result<Option<Localised>, Error> {
        let Some(surgery) = &self.recorded.surgery else { return Ok(None) };
        let mut run =
            |folder: &Path, inputs: &Inputs| port(folder, inputs).map_err(|error| error.to_string());
        let mut port = OnEdits { recording: self, surgery, checkpoint, run: &mut run, runs: 0 };
        let parts = port.parts()?;
        Ok(Some(Localised { parts, runs: port.runs }))
    }
}

/// The port on edited checkpoints.
struct OnEdits<'a> {
    recording: &'a Recording,
    surgery: &'a Surgery,
    checkpoint: &'a Path,
    run: &'a mut dyn FnMut(&Path, &Inputs) -> Result<Tensor, String>,
    runs: usize,
}

impl OnEdits<'_> {
    /// From the outside in: what all blocks have around them, then the blocks of each kind.
    fn parts(&mut self) -> Result<Vec<Part>, Error> {
        if let Some(relative_l2) = self.beyond(Piece::Ends, None)? {
            let how = words::how(Piece::Ends).to_owned();
            return Ok(vec![Part { part: words::ENDS.to_owned(), how, relative_l2 }]);
        }
        let mut parts = Vec::new();
        for piece in [Piece::Mlp, Piece::Uniform, Piece::Attention] {
            let kind = self.of_kind(piece)?;
            let has_found = kind.is_some();
            parts.extend(kind);
            // Where mask or values differ, the whole of an attention differs as well.
            if piece == Piece::Uniform && has_found {
                break;
            }
        }
        Ok(parts)
    }

    /// The part of one kind that differs: all blocks of the kind are asked at once, then single layers.
    fn of_kind(&mut self, piece: Piece) -> Result<Option<Part>, Error> {
        let all = self.asked(Stage::of(piece, None))?;
        if all.is_some_and(|all| all.is_rounding) {
            return Ok(None);
        }
        let count = self.surgery.layers;
        let mut found = Vec::new();
        for layer in 0..count {
            if let Some(relative_l2) = self.beyond(piece, Some(layer))? {
                found.push((layer, relative_l2));
                if count > FEW_LAYERS {
                    break;
                }
            }
        }
        let Some(&(first, _)) = found.first() else {
            // A block may be one among few that an edited checkpoint leaves, and agree by itself.
            return Ok(all.map(|all| Part {
                part: match piece {
                    Piece::Mlp => "the MLPs of all layers together",
                    _ => "the attentions of all layers together",
                }
                .to_owned(),
                how: "though each agrees by itself".to_owned(),
                relative_l2: all.relative_l2,
            }));
        };
        if count > FEW_LAYERS
            && first + 1 < count
            && let Some(relative_l2) = self.beyond(piece, Some(count - 1))?
        {
            found.push((count - 1, relative_l2));
        }
        let kind = match piece {
            Piece::Uniform => words::of_uniform(
                self.differs(Stage { inputs: Given::One, ..Stage::of(Piece::Uniform, Some(first)) })?,
            ),
            Piece::Attention => self.of_scores(first)?,
            _ => words::of_mlp(self.surgery.expert_layers.contains(&first)),
        };
        let layers: Vec<usize> = found.iter().map(|(layer, _)| *layer).collect();
        let between = match layers.as_slice() {
            _ if count <= FEW_LAYERS => String::new(),
            [first, last] if last - first == 2 => format!("; layer {} was not run", first + 1),
            [first, last] if last - first > 2 => {
                format!("; layers {} to {} were not run", first + 1, last - 1)
            }
            _ => String::new(),
        };
        Ok(Some(Part {
            part: words::part(piece, kind, &layers, count),
            how: format!("{}{between}", words::how(piece)),
            relative_l2: found.iter().map(|(_, relative_l2)| *relative_l2).fold(0.0, f64::max),
        }))
    }

    /// What differs in the scores of a layer's attention.
    fn of_scores(&mut self, layer: usize) -> Result<&'static str, Error> {
        let of = |piece| Stage::of(piece, Some(layer));
        if !self.surgery.stages.contains(&of(Piece::Uniform)) {
            return Ok("attention");
        }
        // Ports that count positions themselves rotate tokens that are at one position; so the features alone whose angles are next
        // to nothing are asked first, which may be all that is needed.
        let unrotated = self.differs(of(Piece::Unrotated))?;
        let together = if unrotated == Some(false) {
            None
        } else {
            self.differs(Stage { inputs: Given::Together, ..of(Piece::Attention) })?
        };
        let kind = words::of_scores([together, unrotated], self.surgery.scales_rotation);
        // Without rotation, the bias of the keys adds the same to the scores of every key, which a softmax does not show.
        if kind == words::ROTATION && self.differs(of(Piece::NoKeyBias))? == Some(false) {
            return Ok(words::KEY_BIAS);
        }
        Ok(kind)
    }

    /// Relative L2 of a piece with the recording's inputs, if it differs by more than rounding.
    fn beyond(&mut self, piece: Piece, layer: Option<usize>) -> Result<Option<f64>, Error> {
        let apart = self.asked(Stage::of(piece, layer))?;
        Ok(apart.filter(|apart| !apart.is_rounding).map(|apart| apart.relative_l2))
    }

    fn differs(&mut self, stage: Stage) -> Result<Option<bool>, Error> {
        Ok(self.asked(stage)?.map(|apart| !apart.is_rounding))
    }

    /// Runs the port on a stage; `None` if it is not recorded or has logits that are not finite.
    fn asked(&mut self, stage: Stage) -> Result<Option<Apart>, Error> {
        let Some(index) = self.surgery.stages.iter().position(|known| *known == stage) else {
            return Ok(None);
        };
        let scratch = tempfile::tempdir().map_err(|source| Error::Io {
            action: "write",
            path: std::env::temp_dir(),
            source,
        })?;
        let folder = scratch.path().join("checkpoint");
        self.surgery.write(&stage, self.checkpoint, &folder)?;
        let failed = |problem: String| Error::Edited { stage: stage.to_string(), problem };
        let inputs = self.recording.inputs_of(stage.inputs).map_err(|error| failed(error.to_string()))?;
        self.runs += 1;
        let logits =
            (self.run)(&folder, &inputs).map_err(|error| failed(format!("the port failed: {error}")))?;
        self.apart(stage, index, &logits).map_err(|error| failed(error.to_string()))
    }

    fn apart(&self, stage: Stage, index: usize, logits: &Tensor) -> Result<Option<Apart>, Error> {
        let unreadable =
            |error: candle_core::Error| Error::Logits { problem: format!("cannot be read: {error}") };
        let uncomparable =
            |error: &dyn fmt::Display| Error::Logits { problem: format!("cannot be compared: {error}") };
        let recorded = &self.recording.recorded;
        let (batch, seq) = match stage.inputs {
            Given::One => (1, 1),
            Given::Whole | Given::Together => (recorded.batch, recorded.seq),
        };
        let vocab_size = recorded.vocab_size;
        let held = match *logits.dims() {
            [b, s, v] if (b, s, v) == (batch, seq, vocab_size) => seq,
            [b, 1, v] | [b, v] if (b, v) == (batch, vocab_size) => 1,
            ref other => {
                return Err(Error::Logits {
                    problem: format!("have the shape {other:?}, not [{batch}, {seq}, {vocab_size}]"),
                });
            }
        };
        let dtype = match logits.dtype() {
            DType::F64 => Dtype::F64,
            DType::BF16 => Dtype::Bf16,
            DType::F16 => Dtype::F16,
            _ => Dtype::F32,
        };
        let values: Vec<f64> = (logits.to_device(&Device::Cpu))
            .and_then(|logits| logits.to_dtype(DType::F64)?.flatten_all()?.to_vec1())
            .map_err(unreadable)?;
        let tokens = &self.surgery.tokens;
        let stored = self.recording.tensors.surgery[index].chunks_exact(tokens.len());
        let (mut port, mut upstream) = (Vec::new(), Vec::new());
        for (&[row, position], stored) in self.surgery.places(&stage).iter().zip(stored) {
            // A port of last positions is compared at those.
            if held == seq || position + 1 == seq {
                let at = row * held + position.min(held - 1);
                port.extend(tokens.iter().map(|token| values[at * vocab_size + token]));
                upstream.extend(stored.iter().map(|&value| f64::from(value)));
            }
        }
        let shape = [port.len() / tokens.len(), 1, tokens.len()];
        if shape[0] == 0 {
            return Ok(None);
        }
        let entry = |name: &str, dtype: Dtype, values: Vec<f64>| {
            let logits = Logits::from_values(name, Values::F64(values), &shape, Positions::All)
                .map_err(|error| error.to_string());
            Entry { name: name.to_owned(), dtype, logits }
        };
        // They are stored as f32, so that a port in f64 is compared to the precision of f32.
        let entries = [entry("the port", dtype, port), entry("the recording", Dtype::F32, upstream)];
        let matrix = matrix(&entries, None, &Options::default()).map_err(|error| uncomparable(&error))?;
        let Some(pair) = matrix.compared(0, 1) else { return Ok(None) };
        let relative_l2 = relative(pair.l2, pair.norm_a.max(pair.norm_b));
        let tolerances = self.recording.tolerances(dtype)?;
        let is_rounding = pair.identical || rounding_apart(&matrix, (0, 1), &tolerances).is_some();
        Ok(relative_l2.is_finite().then_some(Apart { relative_l2, is_rounding }))
    }
}
