//! Copies the files of parts into the merged run.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use bounds::limits::CHECKPOINT_JSON_BYTES;
use miette::{IntoDiagnostic, Result, WrapErr};
use sha2::{Digest, Sha256};

use super::Taken;
use super::parts::Part;
use crate::execute::cell::{Cell, Completed, Outcome};
use crate::results::{Case, Frozen, Manifest, RunFolder, write_file};
use crate::spec::atomic::is_inside;
use crate::spec::inputs;
use crate::spec::machine::hex;
use crate::spec::variant::Runner;

/// The merged run that files are copied into.
pub(super) struct Copy<'a> {
    pub(super) frozen: &'a Frozen,
    pub(super) folder: &'a RunFolder,
    pub(super) manifest: &'a Manifest,
}

/// Round numbers of a case. Cells with equal numbers were timed in the same round, so that numbers of different parts must
/// differ: times of different machines never form a ratio.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// What is added to the numbers of each part.
    offsets: BTreeMap<usize, u32>,
    /// The smallest number that no cell has.
    next: u32,
}

impl Rounds {
    fn renumber(&mut self, part: usize, completed: &mut Completed) {
        let offset = *self.offsets.entry(part).or_insert(self.next);
        for number in &mut completed.round_numbers {
            *number = number.saturating_add(offset);
            self.next = self.next.max(number.saturating_add(1));
        }
    }
}

impl Copy<'_> {
    /// Copies what the cells of a case share: inputs and vocabularies.
    pub(super) fn shared(&self, used: &[&Part]) -> Result<()> {
        let mut known: HashSet<&str> = HashSet::new();
        for case in &self.manifest.cases {
            for part in used.iter().filter(|part| part.has(&case.name)) {
                let inputs = inputs::load(&part.files(&case.name))?;
                if inputs.digest != case.inputs_digest {
                    miette::bail!(
                        help = "the folder was changed: leave it out",
                        "{}: the inputs of {} are not those of the plan",
                        part.folder.path().display(),
                        case.name
                    );
                }
                let folder = self.folder.make_case_folder(self.manifest, &case.name)?;
                if !folder.join("inputs.safetensors").exists() {
                    inputs.save(&folder)?;
                }
                if !known.contains(case.checkpoint_digest.as_str()) {
                    let vocabulary = part.folder.vocabulary(&case.checkpoint_digest);
                    if !vocabulary.is_empty() {
                        self.folder.write_vocabulary(&case.checkpoint_digest, &vocabulary)?;
                        known.insert(&case.checkpoint_digest);
                    }
                }
            }
        }
        Ok(())
    }

    /// Copies the files of a cell; returns its record in the merged run.
    pub(super) fn cell(&self, part: &Part, case: &Case, cell: &Cell, rounds: &mut Rounds) -> Result<Cell> {
        let mut cell = cell.clone();
        let (from, to) = (part.files(&case.name), self.folder.case_folder(self.manifest, &case.name));
        let version = PathBuf::from(&cell.variant.version);
        self.lock(&from, &to, &cell)?;
        if let Outcome::Completed(completed) = &mut cell.outcome {
            let logits = version.join(format!("logits_{}.safetensors", cell.variant.note()));
            link(&from.join(&completed.logits), &to.join(&logits))?;
            completed.logits = logits;
            if let Some(trace) = completed.trace.take().filter(|trace| is_inside(trace)) {
                let name = format!("trace_{}_{}.json", self.manifest.stamp, cell.variant.name());
                // A trace is for people; a run without one is complete.
                if link(&from.join(trace), &to.join(&version).join(&name)).is_ok() {
                    completed.trace = Some(version.join(name));
                }
            }
            rounds.renumber(part.number, completed);
        }
        Ok(cell)
    }

    /// Copies the lock of a cell's environment, which must be the plan's.
    fn lock(&self, from: &Path, to: &Path, cell: &Cell) -> Result<()> {
        let version = &cell.variant.version;
        let own = [from, to].map(|folder| folder.join(version).join("uv.lock"));
        if cell.variant.runner != Runner::Transformers || !own[0].exists() || own[1].exists() {
            return Ok(());
        }
        let text = bounds::file::read_unlinked(&own[0], CHECKPOINT_JSON_BYTES)
            .map_err(super::Unreadable::of(&own[0]))?;
        let known = self.frozen.environments.iter().find(|known| known.versions.contains(version));
        let is_the_plans =
            known.is_none_or(|known| known.lock.is_empty() || known.lock == hex(&Sha256::digest(&text)));
        if !is_the_plans {
            miette::bail!(
                help = "the part was computed in another environment: leave it out",
                "{} is not the lock of the plan",
                own[0].display()
            );
        }
        Ok(write_file(&own[1], &text)?)
    }

    /// Copies the relations of variants by themselves: one record per variant, checkpoint and length, as in a whole run.
    pub(super) fn relations(&self, taken: &[Taken<'_>]) -> Result<()> {
        let mut known = HashSet::new();
        for (unit, part) in taken {
            let Ok(part) = part else { continue };
            let case = self.manifest.cases.iter().find(|case| case.name == unit.case);
            let Some(case) = case else { continue };
            for found in part.folder.relations(&part.manifest)? {
                let is_own = found.case == case.name && unit.variants.contains(&found.variant.name());
                if is_own && known.insert((&case.checkpoint_digest, found.seq, found.variant.name())) {
                    self.folder.write_relations(self.manifest, &found)?;
                }
            }
        }
        Ok(())
    }
}

/// Links a regular file into the merged run, or copies it to another file system.
fn link(from: &Path, to: &Path) -> Result<()> {
    let linked = || -> io::Result<()> {
        if !from.symlink_metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder)?;
        }
        if fs::hard_link(from, to).is_ok() {
            return Ok(());
        }
        let mut source = bounds::file::open_unlinked(from)?;
        let mut target = OpenOptions::new().write(true).create_new(true).open(to)?;
        io::copy(&mut source, &mut target)?;
        target.sync_all()
    };
    linked().into_diagnostic().wrap_err_with(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_of_different_parts_have_different_numbers() {
        let timed = |numbers: &[u32]| Completed { round_numbers: numbers.to_vec(), ..Completed::default() };
        let mut rounds = Rounds::default();
        let mut cells = [timed(&[0, 1]), timed(&[0, 1]), timed(&[0, 1])];
        for (part, completed) in [3, 3, 5].into_iter().zip(&mut cells) {
            rounds.renumber(part, completed);
        }
        let numbers: Vec<&[u32]> = cells.iter().map(|cell| &*cell.round_numbers).collect();
        assert_eq!(numbers, [&[0, 1][..], &[0, 1], &[2, 3]]);
    }
}
