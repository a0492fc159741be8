//! The search over revisions for a change, independent of how a revision is tested.
//!
//! Revisions are numbered from the good side, 0, to the bad side. The search always tests the middle of the untested
//! revisions, so that each answer halves their number. A revision that cannot be tested costs only its own attempt.

use serde::{Deserialize, Serialize};

/// The result of the test of one revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It passes the test.
    Good,
    /// It fails the test.
    Bad,
    /// It could not be tested.
    Skipped,
}

/// A bisection in progress: the first revision is good, the last one is bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    answers: Vec<Option<Answer>>,
    good: usize,
    bad: usize,
}

/// Two revisions between which something changed, without a testable revision in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The last revision before the change.
    pub before: usize,
    /// The first revision after it. If the two are not neighbours, any revision from `before + 1` to `after` may be
    /// the cause.
    pub after: usize,
}

impl Search {
    /// A search over `revisions` revisions whose ends are known.
    ///
    /// # Panics
    /// If `revisions < 2`.
    pub fn new(revisions: usize) -> Self {
        assert!(revisions >= 2, "a search has a good side and a bad one");
        let mut answers = vec![None; revisions];
        answers[0] = Some(Answer::Good);
        answers[revisions - 1] = Some(Answer::Bad);
        Self { answers, good: 0, bad: revisions - 1 }
    }

    /// The revision to test next; `None` when the search has ended.
    pub fn next(&self) -> Option<usize> {
        let open: Vec<usize> =
            (self.good + 1..self.bad).filter(|&index| self.answers[index].is_none()).collect();
        open.get(open.len() / 2).copied()
    }

    /// The revisions that may follow [`Search::next`], one for each of its answers: at most two.
    pub fn ahead(&self) -> Vec<usize> {
        let Some(next) = self.next() else { return Vec::new() };
        let after = |answer| {
            let mut search = self.clone();
            search.tell(next, answer);
            search.next()
        };
        [Answer::Bad, Answer::Good].into_iter().filter_map(after).collect()
    }

    /// Records the answer of a revision between the current ends.
    pub fn tell(&mut self, index: usize, answer: Answer) {
        debug_assert!(self.good < index && index < self.bad, "{index} is decided already");
        self.answers[index] = Some(answer);
        match answer {
            Answer::Good => self.good = index,
            Answer::Bad => self.bad = index,
            Answer::Skipped => {}
        }
    }

    /// The narrowest known range of the change.
    pub fn found(&self) -> Found {
        Found { before: self.good, after: self.bad }
    }
}

/// Upper bound of the number of runs of a bisection, including the run of its two ends: ⌈log₂ n⌉ + 1. Revisions that
/// cannot be tested are not counted.
pub fn bound(revisions: usize) -> usize {
    revisions.next_power_of_two().trailing_zeros() as usize + 1
}

/// The result of a scan for one revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The revision compared with the good side.
    pub answer: Answer,
    /// Whether it fails the test against the previous revision that could be tested.
    pub departs: bool,
}

/// The kind of a change point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// From good to bad.
    Came,
    /// From bad to good.
    Went,
    /// From bad to bad, with a different result.
    Another,
}

/// The change points of a scan; a change that was later reverted gives two.
pub fn change_points(seen: &[Seen]) -> Vec<(Found, Change)> {
    let mut points = Vec::new();
    let mut last: Option<(usize, Answer)> = None;
    for (index, now) in seen.iter().enumerate() {
        if now.answer == Answer::Skipped {
            continue;
        }
        if let Some((before, answer)) = last {
            let change = match (answer, now.answer) {
                (Answer::Good, Answer::Bad) => Some(Change::Came),
                (Answer::Bad, Answer::Good) => Some(Change::Went),
                (Answer::Bad, Answer::Bad) if now.departs => Some(Change::Another),
                _ => None,
            };
            points.extend(change.map(|change| (Found { before, after: index }, change)));
        }
        last = Some((index, now.answer));
    }
    points
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a search in which revisions from `first_bad` on are bad and those of `broken` cannot be tested. Returns
    /// the range found, the number of runs that gave an answer, and all answers.
    fn search(n: usize, first_bad: usize, broken: &[bool]) -> (Found, usize, Vec<Option<Answer>>) {
        let mut search = Search::new(n);
        let mut answered = 1;
        while let Some(index) = search.next() {
            let answer = match (broken[index], index >= first_bad) {
                (true, _) => Answer::Skipped,
                (false, true) => Answer::Bad,
                (false, false) => Answer::Good,
            };
            answered += usize::from(answer != Answer::Skipped);
            search.tell(index, answer);
        }
        (search.found(), answered, search.answers)
    }

    #[test]
    fn the_bound_is_log2_of_the_revisions_plus_one() {
        for (n, expected) in [(2, 2), (3, 3), (4, 3), (50, 7), (64, 7), (65, 8), (100, 8)] {
            assert_eq!(bound(n), expected, "{n}");
        }
    }

    #[test]
    fn a_change_at_any_revision_is_found_within_the_bound() {
        for n in 2..70 {
            for first_bad in 1..n {
                let (found, answered, _) = search(n, first_bad, &vec![false; n]);
                assert_eq!(found, Found { before: first_bad - 1, after: first_bad });
                assert!(answered <= bound(n), "{answered} tests of {n}");
            }
        }
    }

    #[test]
    fn a_reverted_change_gives_two_change_points() {
        let seen = |text: &str| -> Vec<Seen> {
            text.chars()
                .map(|c| Seen {
                    answer: match c {
                        '+' => Answer::Good,
                        '?' => Answer::Skipped,
                        _ => Answer::Bad,
                    },
                    departs: c == '!',
                })
                .collect()
        };
        let check = |text: &str, expected: &[(usize, usize, Change)]| {
            let points: Vec<_> = change_points(&seen(text))
                .into_iter()
                .map(|(found, change)| (found.before, found.after, change))
                .collect();
            assert_eq!(points, expected, "{text}");
        };
        check("++++", &[]);
        check("+??+", &[]);
        check("++!--++", &[(1, 2, Change::Came), (4, 5, Change::Went)]);
        check("++?!-?+", &[(1, 3, Change::Came), (4, 6, Change::Went)]);
        check("+!-!-", &[(0, 1, Change::Came), (2, 3, Change::Another)]);
        check("+-?-", &[(0, 1, Change::Came)]);
    }

    proptest! {
        #[test]
        fn a_change_is_found_for_any_set_of_untestable_revisions(
            (n, first_bad, broken) in (2_usize..200).prop_flat_map(|n| (
                Just(n), 1..n, prop::collection::vec(prop::bool::weighted(0.3), n)))
        ) {
            let (found, answered, answers) = search(n, first_bad, &broken);
            prop_assert!(answered <= bound(n), "{answered} tests of {n}");
            prop_assert!(found.before < first_bad && first_bad <= found.after);
            // Both ends were tested and gave their expected answer; all revisions between were tried and skipped.
            prop_assert_eq!(answers[found.before], Some(Answer::Good));
            prop_assert_eq!(answers[found.after], Some(Answer::Bad));
            for index in found.before + 1..found.after {
                prop_assert_eq!(answers[index], Some(Answer::Skipped));
                prop_assert!(broken[index]);
            }
        }

        #[test]
        fn ahead_contains_the_next_revision_for_either_answer(
            (n, answers) in (3_usize..100).prop_flat_map(|n| (Just(n), prop::collection::vec(any::<bool>(), n)))
        ) {
            let mut search = Search::new(n);
            while let Some(index) = search.next() {
                let ahead = search.ahead();
                prop_assert!(ahead.len() <= 2);
                search.tell(index, if answers[index] { Answer::Bad } else { Answer::Good });
                prop_assert!(search.next().is_none_or(|next| ahead.contains(&next)));
            }
        }

        #[test]
        fn a_scan_finds_exactly_the_planted_changes(
            kinds in prop::collection::vec(0_u8..3, 1..60), broken in prop::collection::vec(prop::bool::weighted(0.2), 60)
        ) {
            // Kind 0 is the good side's result; all kinds differ from each other.
            let kinds: Vec<u8> = std::iter::once(0).chain(kinds).collect();
            let tested: Vec<usize> = (0..kinds.len()).filter(|&index| index == 0 || !broken[index]).collect();
            let seen: Vec<Seen> = (0..kinds.len()).map(|index| {
                let last = tested.iter().rev().find(|&&other| other < index);
                Seen {
                    answer: match (tested.contains(&index), kinds[index]) {
                        (false, _) => Answer::Skipped,
                        (true, 0) => Answer::Good,
                        (true, _) => Answer::Bad,
                    },
                    departs: last.is_some_and(|&last| kinds[last] != kinds[index]),
                }
            }).collect();
            let expected: Vec<Found> = tested.windows(2)
                .filter(|pair| kinds[pair[0]] != kinds[pair[1]])
                .map(|pair| Found { before: pair[0], after: pair[1] })
                .collect();
            let found: Vec<Found> = change_points(&seen).into_iter().map(|(found, _)| found).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
