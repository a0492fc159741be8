//! The variants of one case, in groups that compute the same function.

use crate::judge::findings::{CaseGroups, subject};
use crate::judge::view::CaseView;
use crate::report::document::{Block, Cell, Content, Medium, Row, Table, Tone};
use compare::groups::Relation;
use compare::metric::RELATIVE_L2;

pub(super) fn content(case: &CaseView, found: &CaseGroups, _: Medium) -> Option<Content> {
    let first = found.groups.groups.first()?;
    let rows = found.groups.groups.iter().zip(&found.letters).map(|(group, letter)| -> Row {
        let members = subject(group.members.iter().map(|&member| &case.cells[member]));
        let apart = match case.matrix.compared(first.leader, group.leader) {
            _ if group.leader == first.leader => "reference".to_owned(),
            Some(pair) => {
                RELATIVE_L2.of(pair).map_or_else(|| "—".to_owned(), |value| RELATIVE_L2.written(value))
            }
            None => "not comparable".to_owned(),
        };
        let tone = if group.leader == first.leader { Tone::Good } else { Tone::Bad };
        [Cell::toned(letter.clone(), tone), members.into(), apart.into()].into_iter().collect()
    });
    let table = Table::new(["Group", "Variants that compute the same", "Relative L2 to A"], rows);
    let mut blocks = vec![Block::Table(table)];
    if !found.groups.chains.is_empty() {
        let name = |index: usize| &case.cells[index].name;
        blocks.push(Block::text("Closeness is not transitive here:"));
        blocks.push(Block::list(found.groups.chains.iter().map(|chain| match chain.relation {
            Relation::Same => {
                format!("{} and {} agree, though their groups do not.", name(chain.a), name(chain.b))
            }
            Relation::Different => {
                format!("{} and {} are in one group, but do not agree.", name(chain.a), name(chain.b))
            }
        })));
    }
    Some(Content::titled("Groups", blocks))
}
