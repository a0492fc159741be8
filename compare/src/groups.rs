//! Partitions one case's variants into groups that compute the same function, by the verdicts on their pairs.
//!
//! The first member of a group in the given order is its leader; a variant joins the first group whose leader computes
//! the same function. Without float64 results this relation need not be transitive: a chain of small differences can lead
//! from one group into another. Pairs on which the partition contradicts the verdict are listed as [`Chain`]s.

/// Relation of two variants according to the verdict on their pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// They compute the same function; their rounding may differ.
    Same,
    /// They compute different functions, or their logits cannot be compared.
    Different,
}

/// The partition of a case's variants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// The groups in the order of their leaders; the first one holds the reference.
    pub groups: Vec<Group>,
    /// Pairs on which the partition and the verdict disagree.
    pub chains: Vec<Chain>,
}

/// Variants that compute the same function as their leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Index of the first member.
    pub leader: usize,
    /// Indices of all members in the given order, the leader included.
    pub members: Vec<usize>,
}

/// A pair on which the partition contradicts the verdict, because [`Relation::Same`] is not transitive here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The member that comes first in the given order.
    pub a: usize,
    /// The other member.
    pub b: usize,
    /// The verdict: [`Relation::Same`] for members of different groups, [`Relation::Different`] for members of one group.
    pub relation: Relation,
}

/// Partitions `order` (indices of variants, the reference first) by the `relation` of their pairs.
pub fn groups(order: &[usize], relation: impl Fn(usize, usize) -> Relation) -> Groups {
    let mut groups: Vec<Group> = Vec::new();
    for &variant in order {
        match groups.iter_mut().find(|group| relation(group.leader, variant) == Relation::Same) {
            Some(group) => group.members.push(variant),
            None => groups.push(Group { leader: variant, members: vec![variant] }),
        }
    }
    let of = |variant: usize| groups.iter().position(|group| group.members.contains(&variant));
    let mut chains = Vec::new();
    for (at, &a) in order.iter().enumerate() {
        for &b in &order[at + 1..] {
            let found = relation(a, b);
            if (found == Relation::Same) != (of(a) == of(b)) {
                chains.push(Chain { a, b, relation: found });
            }
        }
    }
    Groups { groups, chains }
}

impl Groups {
    /// Index of the group that a variant belongs to; `None` for a variant that was not partitioned.
    pub fn of(&self, variant: usize) -> Option<usize> {
        self.groups.iter().position(|group| group.members.contains(&variant))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by(classes: &[u8]) -> impl Fn(usize, usize) -> Relation + '_ {
        |a, b| if classes[a] == classes[b] { Relation::Same } else { Relation::Different }
    }

    #[test]
    fn the_reference_leads_the_first_group() {
        let classes = [1, 0, 1, 0, 2];
        let found = groups(&[3, 0, 1, 2, 4], by(&classes));
        let members: Vec<_> = found.groups.iter().map(|group| group.members.clone()).collect();
        assert_eq!(members, [vec![3, 1], vec![0, 2], vec![4]]);
        assert!(found.chains.is_empty());
        assert_eq!((found.of(2), found.of(4), found.of(9)), (Some(1), Some(2), None));
    }

    #[test]
    fn a_chain_is_listed_and_not_hidden() {
        // 0 ~ 1 ~ 2, but 0 and 2 differ too much.
        let near = |a: usize, b: usize| if a.abs_diff(b) < 2 { Relation::Same } else { Relation::Different };
        let found = groups(&[0, 1, 2], near);
        assert_eq!(found.groups.len(), 2);
        assert_eq!(found.chains, [Chain { a: 1, b: 2, relation: Relation::Same }]);
        // 1 and 2 both agree with 0, but not with each other.
        let star = |a: usize, b: usize| if a == 0 || b == 0 { Relation::Same } else { Relation::Different };
        let found = groups(&[0, 1, 2], star);
        assert_eq!(found.groups.len(), 1);
        assert_eq!(found.chains, [Chain { a: 1, b: 2, relation: Relation::Different }]);
    }

    proptest! {
        #[test]
        fn an_equivalence_is_recovered_whole(classes in prop::collection::vec(0_u8..4, 1..12)) {
            let order: Vec<usize> = (0..classes.len()).collect();
            let found = groups(&order, by(&classes));
            prop_assert!(found.chains.is_empty());
            let mut seen: Vec<usize> = found.groups.iter().flat_map(|group| group.members.clone()).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, order);
            for group in &found.groups {
                prop_assert_eq!(group.leader, group.members[0]);
                prop_assert!(group.members.iter().all(|&member| classes[member] == classes[group.leader]));
            }
            let mut kinds: Vec<u8> = found.groups.iter().map(|group| classes[group.leader]).collect();
            kinds.sort_unstable();
            kinds.dedup();
            prop_assert_eq!(kinds.len(), found.groups.len(), "no class is split");
        }
    }
}
