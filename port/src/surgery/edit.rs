//! Edits of a checkpoint as data: tensors that are filled with a value, and keys of config.json.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An edit of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Edit {
    /// Tensors that are filled, one after the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fills: Vec<Fill>,
    /// Keys of config.json with their new values.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
}

/// A tensor that is filled with a value, all of it or some of its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// Name of the tensor.
    pub tensor: String,
    /// The value.
    pub value: f64,
    /// What is filled; all if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Rows>,
}

/// Rows of a matrix, or elements of a vector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rows {
    /// Whether they are rows or columns of the stored matrix.
    pub axis: Axis,
    /// First row of each range, and the row after its last.
    pub ranges: Vec<[usize; 2]>,
    /// Rows among them that are not filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// Axis of a stored matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// The first one.
    Rows,
    /// The last one.
    Columns,
}

/// Features of each head that keep their values: the `i`-th row of all ranges is feature `i % head_dim` of its head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    /// Features of a head.
    pub head_dim: usize,
    /// Those that keep their values.
    pub features: Vec<usize>,
}

impl Fill {
    /// Whether it can be applied to a tensor at all.
    pub(crate) fn check(&self) -> Result<(), String> {
        let wrong = |problem: &str| Err(format!("has an edit of {} that {problem}", self.tensor));
        if !self.value.is_finite() {
            return wrong("fills it with no number");
        }
        let Some(rows) = &self.rows else { return Ok(()) };
        if rows.ranges.is_empty() || rows.ranges.iter().any(|[begin, end]| begin >= end) {
            return wrong("fills no rows");
        }
        match &rows.kept {
            Some(kept) if kept.head_dim == 0 => wrong("has heads of 0 features"),
            _ => Ok(()),
        }
    }

    /// Calls `fill` with each range of elements of a tensor of this shape that gets the value.
    ///
    /// # Errors
    /// When the tensor has fewer rows; `fill` is then not called.
    pub fn elements(&self, shape: &[usize], mut fill: impl FnMut(Range<usize>)) -> Result<(), String> {
        let count: usize = shape.iter().product();
        let Some(Rows { axis, ranges, kept }) = &self.rows else {
            fill(0..count);
            return Ok(());
        };
        let is_columns = *axis == Axis::Columns;
        let length = if is_columns { shape.last() } else { shape.first() }.copied().unwrap_or(0);
        if ranges.iter().any(|[begin, end]| begin >= end || *end > length) {
            return Err(format!("{} of shape {shape:?} has not the rows that are edited", self.tensor));
        }
        let is_kept = |at: usize| {
            kept.as_ref().is_some_and(|kept| kept.features.contains(&(at % kept.head_dim.max(1))))
        };
        let rows = ranges.iter().flat_map(|&[begin, end]| begin..end).enumerate();
        let width = count / length.max(1);
        for (_, row) in rows.filter(|(at, _)| !is_kept(*at)) {
            if is_columns {
                for at in 0..width {
                    fill(at * length + row..at * length + row + 1);
                }
            } else {
                fill(row * width..(row + 1) * width);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(shape: &[usize], axis: Axis, ranges: &[[usize; 2]], kept: Option<Kept>) -> Vec<usize> {
        let rows = Some(Rows { axis, ranges: ranges.to_vec(), kept });
        let fill = Fill { tensor: "q_proj.weight".into(), value: 0.0, rows };
        let mut all = Vec::new();
        fill.elements(shape, |range| all.extend(range)).unwrap();
        all.sort_unstable();
        all
    }

    #[test]
    fn rows_and_columns_are_filled_except_the_kept_features() {
        assert_eq!(filled(&[4, 3], Axis::Rows, &[[1, 2], [3, 4]], None), [3, 4, 5, 9, 10, 11]);
        assert_eq!(filled(&[2, 4], Axis::Columns, &[[1, 3]], None), [1, 2, 5, 6]);
        assert_eq!(filled(&[6], Axis::Columns, &[[2, 4]], None), [2, 3]);
        let kept = || Some(Kept { head_dim: 2, features: vec![1] });
        assert_eq!(filled(&[5, 1], Axis::Rows, &[[0, 4]], kept()), [0, 2]);
        assert_eq!(
            filled(&[5, 1], Axis::Rows, &[[0, 1], [3, 5]], kept()),
            [0, 4],
            "features count over ranges"
        );
        let rows = Some(Rows { axis: Axis::Rows, ranges: vec![[3, 5]], kept: None });
        let fill = Fill { tensor: "q_proj.weight".into(), value: 0.0, rows };
        let error = fill.elements(&[4, 4], |_| panic!("nothing is filled")).unwrap_err();
        assert!(error.contains("q_proj.weight of shape [4, 4]"), "{error}");
    }
}
