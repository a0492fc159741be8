//! The scripts of the jobs, and the arguments with which they are submitted.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use miette::Result;

use crate::results::{Frozen, write_file};
use crate::spec::config::Engine;
use crate::spec::units::{Unit, UnitKind};

/// Tasks of an array: Slurm's default `MaxArraySize` is 1001.
const MOST_TASKS: usize = 1000;

/// What the scripts refer to.
pub(super) struct Scripts<'a> {
    /// The folder of the jobs.
    pub(super) folder: &'a Path,
    /// Where the merged run is created.
    pub(super) results: &'a Path,
    /// tfcheck's cache, which the nodes share.
    pub(super) cache: &'a Path,
    /// tfcheck itself.
    pub(super) program: &'a Path,
    pub(super) engine: &'a Engine,
    /// Whether the last job merges the units; otherwise it only writes why units have no result.
    pub(super) is_reported: bool,
}

/// Units that are submitted as one array, because they need the same of a node.
#[derive(Debug)]
pub(super) struct Batch {
    /// `1-timing-cuda`: its place, kind and device class.
    name: String,
    /// Number from 1 and name of each unit.
    units: Vec<(usize, String)>,
    cpus: usize,
    memory_mb: u64,
    gpus: usize,
    is_exclusive: bool,
}

impl Batch {
    /// A line per task: the id that Slurm shows, the unit's number and its name.
    pub(super) fn tasks(&self, id: &str) -> String {
        let mut text = String::new();
        for (at, (number, name)) in self.units.iter().enumerate() {
            let _ = writeln!(text, "{id}_{}\t{number}\t{name}", at + 1);
        }
        text
    }
}

/// The folder of a unit's runs.
pub(super) fn unit_folder(folder: &Path, number: usize) -> PathBuf {
    folder.join("units").join(number.to_string())
}

impl Scripts<'_> {
    /// Writes the scripts for the units with these numbers, and the list of each array's units.
    pub(super) fn write(&self, frozen: &Frozen, numbers: &[usize]) -> Result<Vec<Batch>> {
        let batches = self.batches(frozen, numbers);
        for name in ["logs", "units"] {
            let folder = self.folder.join(name);
            std::fs::create_dir_all(&folder)
                .map_err(|error| miette::miette!("cannot create {}: {error}", folder.display()))?;
        }
        // A result of an earlier submission would end the wait at once.
        let _ = std::fs::remove_file(self.folder.join("merge.code"));
        for batch in &batches {
            let mut list = String::new();
            for (number, _) in &batch.units {
                let _ = writeln!(list, "{number}");
            }
            write_file(&self.list(batch), list.as_bytes())?;
        }
        write_file(&self.folder.join("unit.sh"), self.unit().as_bytes())?;
        write_file(&self.folder.join("merge.sh"), self.merge().as_bytes())?;
        Ok(batches)
    }

    fn batches(&self, frozen: &Frozen, numbers: &[usize]) -> Vec<Batch> {
        let mut kinds: Vec<(UnitKind, &str)> = Vec::new();
        let wanted: Vec<(usize, &Unit)> = numbers
            .iter()
            .filter_map(|&number| Some((number, frozen.units.get(number.checked_sub(1)?)?)))
            .collect();
        for (_, unit) in &wanted {
            if !kinds.contains(&(unit.kind, unit.device.as_str())) {
                kinds.push((unit.kind, &unit.device));
            }
        }
        let mut batches = Vec::new();
        for (kind, device) in kinds {
            let own: Vec<&(usize, &Unit)> =
                wanted.iter().filter(|(_, unit)| unit.kind == kind && unit.device == device).collect();
            for units in own.chunks(MOST_TASKS) {
                let most =
                    |of: &dyn Fn(&Unit) -> u64| units.iter().map(|(_, unit)| of(unit)).max().unwrap_or(0);
                let memory_mb = (2 * most(&|unit| unit.needs.memory_bytes / 1_000_000)).max(1000);
                batches.push(Batch {
                    name: format!("{}-{}-{device}", batches.len() + 1, kind.word()),
                    units: units.iter().map(|(number, unit)| (*number, unit.name.clone())).collect(),
                    cpus: most(&|unit| unit.needs.cpus as u64).max(1) as usize,
                    memory_mb: self.engine.memory_mb.unwrap_or(memory_mb),
                    gpus: most(&|unit| unit.needs.gpus as u64) as usize,
                    is_exclusive: units.iter().any(|(_, unit)| unit.exclusive),
                });
            }
        }
        batches
    }

    fn list(&self, batch: &Batch) -> PathBuf {
        self.folder.join(format!("units_{}.txt", batch.name))
    }

    /// Arguments of `sbatch` that all jobs have.
    fn common(&self, name: &str) -> Vec<String> {
        let Engine { partition, account, constraint, options, .. } = self.engine;
        let mut words = vec!["--parsable".to_owned(), format!("--job-name=tfcheck-{name}")];
        for (option, value) in [("partition", partition), ("account", account), ("constraint", constraint)] {
            words.extend(value.iter().map(|value| format!("--{option}={value}")));
        }
        words.extend(options.iter().cloned());
        words
    }

    /// Arguments of `sbatch` for an array.
    pub(super) fn submit_arguments(&self, batch: &Batch) -> Vec<String> {
        let Engine { gres, minutes, at_once, .. } = self.engine;
        let mut words = self.common(&batch.name);
        let throttle = at_once.map(|most| format!("%{most}")).unwrap_or_default();
        words.push(format!("--array=1-{}{throttle}", batch.units.len()));
        words.push("--requeue".to_owned());
        words.push("--ntasks=1".to_owned());
        words.push(format!("--cpus-per-task={}", batch.cpus));
        words.push(format!("--mem={}M", batch.memory_mb));
        words.extend(minutes.map(|minutes| format!("--time={minutes}")));
        if batch.is_exclusive {
            words.push("--exclusive".to_owned());
        }
        if batch.gpus > 0 {
            words.push(format!("--gres={}", gres.clone().unwrap_or_else(|| format!("gpu:{}", batch.gpus))));
        }
        words.push(format!("--output={}", self.folder.join("logs/%A_%a.out").display()));
        words.push("--open-mode=append".to_owned());
        words.push(self.folder.join("unit.sh").display().to_string());
        words.push(self.list(batch).display().to_string());
        words
    }

    /// Arguments of `sbatch` for the merge, which starts when the arrays with these ids have ended.
    pub(super) fn merge_arguments(&self, arrays: &[String]) -> Vec<String> {
        let mut words = self.common("merge");
        words.push("--ntasks=1".to_owned());
        if !arrays.is_empty() {
            words.push(format!("--dependency=afterany:{}", arrays.join(":")));
        }
        words.push(format!("--output={}", self.folder.join("logs/merge.out").display()));
        words.push(self.folder.join("merge.sh").display().to_string());
        words
    }

    /// The command that submits an array, as a person would type it.
    pub(super) fn submit_line(&self, batch: &Batch) -> String {
        line(&self.submit_arguments(batch))
    }

    /// The command that submits the merge.
    pub(super) fn merge_line(&self, arrays: &[String]) -> String {
        line(&self.merge_arguments(arrays))
    }

    /// The script of a task. A unit that was begun, as on a node that failed, is resumed.
    fn unit(&self) -> String {
        format!(
            r#"#!/bin/bash
# Computes one unit of plan.json; $1 lists the numbers of the array's units.
set -u
{variables}unit=$(sed -n "${{SLURM_ARRAY_TASK_ID}}p" "$1")
folder={folder}/units/$unit
mkdir -p "$folder"
run=$(ls -1 "$folder"/run_*/run.json 2>/dev/null | tail -n 1)
if [ -n "$run" ]; then
    set -- --resume "$(dirname "$run")"
else
    set -- --plan {folder}/plan.json --unit "$unit" --results "$folder"
fi
# Where the controller is busy, srun may end before tfcheck has begun; such a step is started again.
for attempt in 1 2 3; do
    rm -f "$folder/begun"
    srun --ntasks=1 --cpu-bind=cores sh -c ': >"$0"; exec "$@"' "$folder/begun" {program} run "$@" --quiet
    code=$?
    [ -e "$folder/begun" ] && break
    sleep 5
done
# A gate that fails is a result: only the merged run is judged.
[ "$code" = 1 ] && code=0
exit "$code"
"#,
            variables = self.variables(),
            folder = quoted(&self.folder.display().to_string()),
            program = quoted(&self.program.display().to_string()),
        )
    }

    /// The script of the merge. A unit without a result is reported with the state of its task.
    fn merge(&self) -> String {
        let [program, results] = [self.program, self.results].map(|path| quoted(&path.display().to_string()));
        let options = "--plan plan.json --reasons reasons.tsv";
        let merge = format!("{program} merge {options} --results {results} units/* >merge.out 2>merge.log");
        format!(
            r#"#!/bin/bash
# Writes why units have no result, and merges those that there are where that is wanted.
set -u
{variables}cd {folder} || exit 2
cut -f 1 tasks.tsv | cut -d _ -f 1 | sort -u | paste -sd , >ids.txt
squeue --noheader --array --states=all --format='%F_%K %T %r' --jobs "$(cat ids.txt)" >states.txt
: >reasons.tsv
while IFS=$'\t' read -r task number name; do
    state=$(grep "^$task " states.txt | tail -n 1 | cut -d ' ' -f 2-)
    if grep -qsE 'exceeded (job )?memory limit|oom[-_ ]kill' "logs/$task.out"; then
        state="out of memory, $state"
    fi
    printf '%s\tits job %s ended without a result: %s\n' "$name" "$task" "${{state:-unknown}}" >>reasons.tsv
done <tasks.tsv
{merge}
code=$?
echo "$code" >merge.code.new && mv merge.code.new merge.code
exit "$code"
"#,
            variables = self.variables(),
            folder = quoted(&self.folder.display().to_string()),
            merge = if self.is_reported { merge.as_str() } else { "true" },
        )
    }

    fn variables(&self) -> String {
        let cache = ("TFCHECK_CACHE".to_owned(), self.cache.display().to_string());
        let given = self.engine.environment.iter().map(|(name, value)| (name.clone(), value.clone()));
        let mut text = String::new();
        for (name, value) in std::iter::once(cache).chain(given) {
            let _ = writeln!(text, "export {name}={}", quoted(&value));
        }
        text
    }
}

/// Words of a command line, quoted where a shell needs it.
fn line(arguments: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,%+@".contains(c);
    let word = |word: &String| if word.chars().all(is_plain) { word.clone() } else { quoted(word) };
    std::iter::once("sbatch".to_owned()).chain(arguments.iter().map(word)).collect::<Vec<_>>().join(" ")
}

/// A word that a shell takes as it is.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_takes_a_quoted_word_as_it_is() {
        for text in ["plain", "two words", "it's", "$(rm -r /)", "`x`", "a\"b\\c", "new\nline", ""] {
            let script = format!("printf %s {}", quoted(text));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }
}
