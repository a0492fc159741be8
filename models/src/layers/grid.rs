//! Positions of tokens and patches where images stand in a text (M-RoPE, Wang et al. 2024).

use std::collections::VecDeque;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::inputs::PassInputs;

/// The patches of one image or video.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Groups of frames; 1 for an image.
    pub frames: usize,
    /// Patches from top to bottom.
    pub height: usize,
    /// Patches from left to right.
    pub width: usize,
}

impl Grid {
    /// Reads the input `name`, `[images, 3]`: frames, height and width of each.
    ///
    /// # Errors
    /// If it has another shape, or a height or width that `merge` does not divide.
    pub fn read(name: &str, grids: &Tensor, merge: usize) -> Result<Vec<Self>> {
        let bad = |problem: String| Error::Inputs(format!("{name} {problem}"));
        if !matches!(grids.dims(), [_, 3]) {
            return Err(bad(format!("has shape {:?} where [images, 3] is needed", grids.dims())));
        }
        let rows: Vec<Vec<i64>> = grids.to_device(&Device::Cpu)?.to_dtype(DType::I64)?.to_vec2()?;
        let side = |value: i64| usize::try_from(value).ok().filter(|value| (1..1 << 20).contains(value));
        let grid = |row: &Vec<i64>| {
            let sides: Option<Vec<usize>> = row.iter().map(|value| side(*value)).collect();
            match sides.as_deref() {
                Some(&[frames, height, width]) if height % merge == 0 && width % merge == 0 => {
                    Ok(Self { frames, height, width })
                }
                _ => Err(bad(format!("has {row:?} where frames and two multiples of {merge} are needed"))),
            }
        };
        rows.iter().map(grid).collect()
    }

    /// Patches of all frames.
    pub fn patches(self) -> usize {
        self.frames.saturating_mul(self.height.saturating_mul(self.width))
    }
}

/// Rows and columns of the patches of each image, in the order of the patches: neighbouring patches that are merged to one
/// token, `merge` by `merge`, follow each other (transformers 5.24.0, `get_vision_position_ids` of `vision_utils.py`).
pub fn patch_positions(grids: &[Grid], merge: usize) -> [Vec<i64>; 2] {
    let (mut rows, mut columns) = (Vec::new(), Vec::new());
    for grid in grids {
        for _ in 0..grid.frames {
            for top in (0..grid.height).step_by(merge) {
                for left in (0..grid.width).step_by(merge) {
                    for within in 0..merge * merge {
                        rows.push((top + within / merge) as i64);
                        columns.push((left + within % merge) as i64);
                    }
                }
            }
        }
    }
    [rows, columns]
}

/// What a token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// A word.
    Text,
    /// A part of an image.
    Image,
    /// A part of a video.
    Video,
}

/// The positions of tokens on three axes: time, height, width.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPositions {
    /// `[batch, seq]` each.
    pub axes: [Vec<i64>; 3],
    /// For each sequence, how far the next token's position is from the number of its real tokens so far.
    pub deltas: Vec<i64>,
}

impl TokenPositions {
    /// The positions of the first forward pass (transformers 5.24.0, `Qwen2VLModel.get_rope_index`). Real tokens count from 0;
    /// padding has the position 0. The tokens of an image have its time, row and column, counted from the position where it
    /// begins, and the text behind it continues after the longer of its sides. `stands` is `[batch, seq]`; the images and
    /// the videos are taken in the order of the sequences.
    ///
    /// # Errors
    /// If the tokens of an image are fewer or more than its grid has.
    pub fn new(
        pass: &PassInputs,
        stands: &[Stands],
        [images, videos]: [&[Grid]; 2],
        merge: usize,
    ) -> Result<Self> {
        let (mut images, mut videos): (VecDeque<Grid>, VecDeque<Grid>) =
            (images.iter().copied().collect(), videos.iter().copied().collect());
        let seq = pass.seq();
        let mut positions =
            Self { axes: [(); 3].map(|()| vec![0; stands.len()]), deltas: Vec::with_capacity(pass.batch()) };
        for (row, stands) in stands.chunks_exact(seq).enumerate() {
            let is_real = |column: &usize| pass.padding().is_none_or(|real| real[row * seq + column]);
            let real: Vec<usize> = (0..seq).filter(is_real).collect();
            let (mut at, mut next) = (0, 0);
            while let Some(&column) = real.get(at) {
                let (name, grids) = match stands[column] {
                    Stands::Image => ("image", &mut images),
                    Stands::Video => ("video", &mut videos),
                    Stands::Text => {
                        positions.set(row * seq + column, [next; 3]);
                        (at, next) = (at + 1, next + 1);
                        continue;
                    }
                };
                let Some(grid) = grids.pop_front() else {
                    return Err(Error::Inputs(format!(
                        "row {row} has {name} tokens for more {name}s than there are grids"
                    )));
                };
                let (height, width) = (grid.height / merge, grid.width / merge);
                let count = grid.patches() / (merge * merge);
                let tokens = real.iter().skip(at).take(count);
                if tokens.clone().filter(|token| stands[**token] == stands[column]).count() != count {
                    return Err(Error::Inputs(format!(
                        "row {row} has fewer than the {count} {name} tokens of a grid of {} × {} × {} patches",
                        grid.frames, grid.height, grid.width
                    )));
                }
                for (index, token) in tokens.enumerate() {
                    let (frame, place) = (index / (height * width), index % (height * width));
                    let place = [frame, place / width, place % width].map(|place| next + place as i64);
                    positions.set(row * seq + token, place);
                }
                (at, next) = (at + count, next + height.max(width) as i64);
            }
            let largest =
                real.iter().flat_map(|token| positions.axes.iter().map(move |axis| axis[row * seq + token]));
            let delta = largest.max().map_or(0, |largest| largest + 1 - real.len() as i64);
            positions.deltas.push(delta);
        }
        Ok(positions)
    }

    /// The positions of words that continue sequences with these deltas: on all axes the number of real tokens before, plus
    /// the sequence's delta (transformers 5.24.0, `Qwen2VLModel.compute_3d_position_ids`).
    pub fn continued(pass: &PassInputs, deltas: &[i64]) -> Self {
        let keys = pass.past() + pass.seq();
        let mut axis = Vec::with_capacity(pass.batch() * pass.seq());
        for (row, delta) in deltas.iter().enumerate() {
            let is_real = |key: usize| pass.padding().is_none_or(|real| real[row * keys + key]);
            let mut before = (0..pass.past()).filter(|key| is_real(*key)).count() as i64;
            for key in pass.past()..keys {
                axis.push(if is_real(key) { before + delta } else { 0 });
                before += i64::from(is_real(key));
            }
        }
        Self { axes: [axis.clone(), axis.clone(), axis], deltas: deltas.to_vec() }
    }

    /// The positions that the caller gives: `[batch, seq]` for all axes, or `[3, batch, seq]`.
    ///
    /// # Errors
    /// If they have another shape.
    pub fn given(pass: &PassInputs, position_ids: &Tensor) -> Result<Self> {
        let (batch, seq) = (pass.batch(), pass.seq());
        let values: Vec<i64> =
            position_ids.to_device(&Device::Cpu)?.flatten_all()?.to_dtype(DType::I64)?.to_vec1()?;
        let axes = match position_ids.dims() {
            found if found == [batch, seq] => [values.clone(), values.clone(), values],
            found if found == [3, batch, seq] => {
                [0, 1, 2].map(|axis| values[axis * batch * seq..][..batch * seq].to_vec())
            }
            found => {
                let needed = format!("[{batch}, {seq}] or [3, {batch}, {seq}] is needed");
                return Err(Error::Inputs(format!("position_ids has shape {found:?} where {needed}")));
            }
        };
        Ok(Self { axes, deltas: vec![0; batch] })
    }

    fn set(&mut self, token: usize, position: [i64; 3]) {
        for (axis, position) in self.axes.iter_mut().zip(position) {
            axis[token] = position;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inputs::{Inputs, Vectors};

    fn pass(seq: usize, mask: &[u32], past: usize) -> PassInputs {
        let batch = mask.len() / (past + seq);
        let inputs = Inputs {
            attention_mask: Some(Tensor::from_slice(mask, (batch, past + seq), &Device::Cpu).unwrap()),
            ..Inputs::new(Tensor::zeros((batch, seq), DType::U32, &Device::Cpu).unwrap())
        };
        PassInputs::new(&inputs, DType::F64, &Device::Cpu, (past, 0), Vectors::default()).unwrap()
    }

    fn stands(text: &str) -> Vec<Stands> {
        text.chars()
            .map(|letter| match letter {
                'i' => Stands::Image,
                'v' => Stands::Video,
                _ => Stands::Text,
            })
            .collect()
    }

    const WIDE: Grid = Grid { frames: 1, height: 2, width: 6 };

    #[test]
    fn patches_that_are_merged_follow_each_other() {
        let [rows, columns] = patch_positions(&[Grid { frames: 1, height: 2, width: 4 }], 2);
        assert_eq!(rows, [0, 0, 1, 1, 0, 0, 1, 1]);
        assert_eq!(columns, [0, 1, 0, 1, 2, 3, 2, 3]);
        let [rows, columns] = patch_positions(&[Grid { frames: 2, height: 1, width: 2 }], 1);
        assert_eq!((rows, columns), (vec![0, 0, 0, 0], vec![0, 1, 0, 1]));
    }

    #[test]
    fn text_behind_an_image_continues_after_its_longer_side() {
        // A word, an image of 1 × 3 tokens and two words; on the left two tokens of padding.
        let pass = pass(8, &[0, 0, 1, 1, 1, 1, 1, 1], 0);
        let found = TokenPositions::new(&pass, &stands("..tiiitt"), [&[WIDE], &[]], 2).unwrap();
        assert_eq!(found.axes[0], [0, 0, 0, 1, 1, 1, 4, 5]);
        assert_eq!(found.axes[1], [0, 0, 0, 1, 1, 1, 4, 5]);
        assert_eq!(found.axes[2], [0, 0, 0, 1, 2, 3, 4, 5]);
        assert_eq!(found.deltas, [0]);
    }

    #[test]
    fn later_tokens_continue_from_the_positions_rather_than_from_the_tokens() {
        let tall = Grid { frames: 1, height: 4, width: 4 };
        let first = pass(6, &[1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1], 0);
        let found = TokenPositions::new(&first, &stands("tiiiit.ttttt"), [&[tall], &[]], 2).unwrap();
        assert_eq!(found.axes[1], [0, 1, 1, 2, 2, 3, 0, 0, 1, 2, 3, 4]);
        assert_eq!(found.deltas, [-2, 0]);
        let next = pass(2, &[1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1], 6);
        let found = TokenPositions::continued(&next, &found.deltas);
        assert_eq!(found.axes[2], [4, 5, 0, 5]);
    }

    #[test]
    fn videos_have_a_time_and_neighbouring_images_each_their_grid() {
        let video = Grid { frames: 2, height: 2, width: 2 };
        let pass = pass(5, &[1; 5], 0);
        let found =
            TokenPositions::new(&pass, &stands("vvtii"), [&[Grid { width: 2, ..WIDE }; 2], &[video]], 2)
                .unwrap();
        assert_eq!(found.axes[0], [0, 1, 1, 2, 3]);
        assert_eq!(found.axes[2], [0, 0, 1, 2, 3]);
    }

    #[test]
    fn tokens_that_do_not_fit_their_grids_are_refused() {
        let pass = pass(4, &[1; 4], 0);
        for (text, grids, expected) in [
            ("tiit", &[WIDE][..], "fewer than the 3 image tokens"),
            ("tiii", &[], "more images than there are grids"),
        ] {
            let error = TokenPositions::new(&pass, &stands(text), [grids, &[]], 2).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
