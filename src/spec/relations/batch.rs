//! Batches of token ids, and the pure functions that vary them.

/// A batch of token ids with its mask and positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    rows: usize,
    seq: usize,
    /// `[rows, seq]`, row-major.
    pub input_ids: Vec<i64>,
    /// `[rows, seq]`, 1 for a real token and 0 for padding; `None` if the model gets no mask.
    pub attention_mask: Option<Vec<i64>>,
    /// `[rows, seq]`, position among the row's real tokens, 0 for padding.
    pub position_ids: Vec<i64>,
}

/// A position of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Row of the batch.
    pub row: usize,
    /// Position in the row, including padding.
    pub position: usize,
}

impl Batch {
    /// A batch of rows of equal length without padding; positions start at 0.
    ///
    /// # Panics
    /// If there is no row, rows are empty, or rows differ in length.
    pub fn of_rows(rows: &[&[i64]]) -> Self {
        let seq = rows.first().map_or(0, |row| row.len());
        assert!(seq > 0 && rows.iter().all(|row| row.len() == seq), "rows of one length");
        Self {
            rows: rows.len(),
            seq,
            input_ids: rows.concat(),
            attention_mask: Some(vec![1; rows.len() * seq]),
            position_ids: rows.iter().flat_map(|_| 0..seq as i64).collect(),
        }
    }

    /// A batch of rows of any length, padded with `pad` on the left or right to the longest row's length.
    ///
    /// # Panics
    /// If there is no row, or a row is empty.
    pub fn padded_to_the_longest(rows: &[&[i64]], is_left: bool, pad: i64) -> Self {
        let seq = rows.iter().map(|row| row.len()).max().unwrap_or_default();
        let parts = rows.iter().map(|row| {
            let missing = seq - row.len();
            let (left, right) = if is_left { (missing, 0) } else { (0, missing) };
            Self::of_rows(&[row]).padded(left, right, pad)
        });
        let mut parts = parts.collect::<Vec<_>>().into_iter();
        let first = parts.next().unwrap_or_else(|| Self::of_rows(&[]));
        parts.fold(first, Self::stacked)
    }

    fn stacked(mut self, other: Self) -> Self {
        self.rows += other.rows;
        self.input_ids.extend(other.input_ids);
        self.position_ids.extend(other.position_ids);
        self.attention_mask = self.attention_mask.zip(other.attention_mask).map(|(mut own, other)| {
            own.extend(other);
            own
        });
        self
    }

    /// Batch size.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Sequence length, including padding.
    pub fn seq(&self) -> usize {
        self.seq
    }

    /// Whether the batch has an `attention_mask`.
    pub fn has_mask(&self) -> bool {
        self.attention_mask.is_some()
    }

    /// Whether both batches have the same batch size and sequence length.
    pub fn has_the_shape_of(&self, other: &Self) -> bool {
        (self.rows, self.seq) == (other.rows, other.seq)
    }

    /// The batch with `left` padding tokens before each row and `right` after it.
    #[must_use]
    pub fn padded(&self, left: usize, right: usize, pad: i64) -> Self {
        let fill = |values: &[i64], filler: i64| -> Vec<i64> {
            let row = |row: &[i64]| [vec![filler; left], row.to_vec(), vec![filler; right]].concat();
            values.chunks_exact(self.seq).flat_map(row).collect()
        };
        let mask = self.attention_mask.clone().unwrap_or_else(|| vec![1; self.input_ids.len()]);
        Self {
            rows: self.rows,
            seq: left + self.seq + right,
            input_ids: fill(&self.input_ids, pad),
            attention_mask: Some(fill(&mask, 0)),
            position_ids: fill(&self.position_ids, 0),
        }
    }

    /// The batch whose row `i` is this batch's row `order[i]`.
    #[must_use]
    pub fn reordered(&self, order: &[usize]) -> Self {
        let pick = |values: &[i64]| -> Vec<i64> {
            order.iter().flat_map(|&row| values[row * self.seq..(row + 1) * self.seq].to_vec()).collect()
        };
        Self {
            rows: order.len(),
            seq: self.seq,
            input_ids: pick(&self.input_ids),
            attention_mask: self.attention_mask.as_deref().map(pick),
            position_ids: pick(&self.position_ids),
        }
    }

    /// The batch with every token from position `from` on replaced by the next different token of its row, cyclically, so
    /// that a row gets no new token ids. In a row of equal tokens, id `n` becomes `n - 1`, and 0 becomes 1.
    #[must_use]
    pub fn changed_from(&self, from: usize) -> Self {
        let mut changed = self.clone();
        for (row, before) in
            changed.input_ids.chunks_exact_mut(self.seq).zip(self.input_ids.chunks_exact(self.seq))
        {
            for at in from..self.seq {
                let following = before.iter().cycle().skip(at + 1).take(self.seq);
                let other = following.copied().find(|id| *id != before[at]);
                row[at] = other.unwrap_or(if before[at] > 0 { before[at] - 1 } else { 1 });
            }
        }
        changed
    }

    /// The batch with `by` added to all `position_ids`.
    #[must_use]
    pub fn shifted(&self, by: usize) -> Self {
        let position_ids = self.position_ids.iter().map(|position| position + by as i64).collect();
        Self { position_ids, ..self.clone() }
    }

    /// The batch without an `attention_mask`.
    #[must_use]
    pub fn without_mask(&self) -> Self {
        Self { attention_mask: None, ..self.clone() }
    }

    /// The batch's only row with `ids` appended, without padding.
    #[must_use]
    pub fn followed_by(&self, ids: &[i64]) -> Self {
        let row = [&self.input_ids, ids].concat();
        Self::of_rows(&[&row])
    }

    /// The places of a row's real tokens, in order.
    pub fn real(&self, row: usize) -> impl Iterator<Item = Place> + '_ {
        let is_real = move |position: &usize| {
            self.attention_mask.as_ref().is_none_or(|mask| mask[row * self.seq + position] != 0)
        };
        (0..self.seq).filter(is_real).map(move |position| Place { row, position })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Ids and positions of a row's real tokens.
    fn tokens(batch: &Batch, row: usize) -> Vec<(i64, i64)> {
        let at = |place: Place| place.row * batch.seq() + place.position;
        batch.real(row).map(|place| (batch.input_ids[at(place)], batch.position_ids[at(place)])).collect()
    }

    fn rows() -> impl Strategy<Value = Vec<Vec<i64>>> {
        (1..4usize, 1..12usize)
            .prop_flat_map(|(rows, seq)| prop::collection::vec(prop::collection::vec(1..50i64, seq), rows))
    }

    fn batch(rows: &[Vec<i64>]) -> Batch {
        Batch::of_rows(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn padding_keeps_the_real_tokens_and_their_positions(rows in rows(), left in 0..5usize, right in 0..5usize) {
            let base = batch(&rows);
            let padded = base.padded(left, right, 0);
            prop_assert_eq!(padded.seq(), base.seq() + left + right);
            for row in 0..base.rows() {
                prop_assert_eq!(tokens(&padded, row), tokens(&base, row));
                let first = padded.real(row).next().unwrap();
                prop_assert_eq!(first.position, left);
            }
            let again = padded.padded(1, 2, 0);
            prop_assert_eq!(again, base.padded(left + 1, right + 2, 0));
        }

        #[test]
        fn rows_of_any_length_are_themselves_when_padded(lengths in prop::collection::vec(1..9usize, 1..4), is_left: bool) {
            let rows: Vec<Vec<i64>> = lengths.iter().map(|&n| (1..=n as i64).collect()).collect();
            let slices: Vec<&[i64]> = rows.iter().map(Vec::as_slice).collect();
            let padded = Batch::padded_to_the_longest(&slices, is_left, 0);
            prop_assert_eq!(padded.rows(), rows.len());
            for (at, row) in slices.iter().enumerate() {
                prop_assert_eq!(tokens(&padded, at), tokens(&Batch::of_rows(&[row]), 0));
            }
        }

        #[test]
        fn reordering_twice_by_an_order_and_its_inverse_changes_nothing(rows in rows()) {
            let base = batch(&rows);
            let order: Vec<usize> = (0..base.rows()).rev().collect();
            let turned = base.reordered(&order);
            for (row, &from) in order.iter().enumerate() {
                prop_assert_eq!(tokens(&turned, row), tokens(&base, from));
            }
            prop_assert_eq!(turned.reordered(&order), base);
        }

        #[test]
        fn a_change_leaves_earlier_tokens_and_changes_every_later_one(rows in rows(), share in 0.0..1.0f64) {
            let base = batch(&rows);
            let from = (base.seq() as f64 * share) as usize;
            let changed = base.changed_from(from);
            for (at, (new, old)) in changed.input_ids.iter().zip(&base.input_ids).enumerate() {
                prop_assert_eq!(new == old, at % base.seq() < from);
                prop_assert!(*new >= 0);
            }
            prop_assert_eq!(&changed.position_ids, &base.position_ids);
            prop_assert_eq!(&changed.attention_mask, &base.attention_mask);
        }

        #[test]
        fn shifts_add_up_and_touch_positions_alone(rows in rows(), a in 0..9usize, b in 0..9usize) {
            let base = batch(&rows);
            prop_assert_eq!(base.shifted(a).shifted(b), base.shifted(a + b));
            prop_assert_eq!(&base.shifted(a).input_ids, &base.input_ids);
            prop_assert_eq!(base.shifted(a).position_ids[0], a as i64);
        }
    }
}
