//! The machine and the environments of a merged run.

use sha2::{Digest, Sha256};

use super::Taken;
use super::parts::Part;
use crate::results::Frozen;
use crate::results::environment::{CheckpointRecord, EnvironmentRecord, PythonEnvironment};
use crate::spec::machine::hex;

/// A note that times were measured on several machines; `None` if all machines are alike.
pub(super) fn machine_note(used: &[&Part]) -> Option<String> {
    let mut kinds: Vec<(&str, String, Vec<&str>)> = Vec::new();
    for part in used {
        let Some(record) = &part.record else { continue };
        let machine = &record.machine;
        let words = std::iter::once(format!("{}, {} cores", machine.cpu, machine.cores));
        let words = words.chain(machine.gpus.iter().cloned()).collect::<Vec<_>>().join(", ");
        match kinds.iter_mut().find(|(fingerprint, ..)| *fingerprint == record.fingerprint) {
            Some((_, _, parts)) => parts.push(&part.share.part),
            None => kinds.push((&record.fingerprint, words, vec![&part.share.part])),
        }
    }
    if kinds.len() < 2 {
        return None;
    }
    let kinds: Vec<String> =
        kinds.into_iter().map(|(_, words, parts)| format!("{} on {words}", parts.join(", "))).collect();
    Some(format!(
        "the units were computed on different machines, whose times cannot be compared: {}",
        kinds.join("; ")
    ))
}

/// The record of the merged run, from those of its parts; `None` if no part has one.
pub(super) fn environment(frozen: &Frozen, taken: &[Taken<'_>]) -> Option<EnvironmentRecord> {
    let parts = || taken.iter().filter_map(|(_, part)| part.as_ref().ok());
    let records = || parts().filter_map(|part| part.record.as_ref());
    let mut merged = records().next()?.clone();
    let mut cpus: Vec<String> = Vec::new();
    for record in records() {
        let machine = &record.machine;
        if !cpus.contains(&machine.cpu) {
            cpus.push(machine.cpu.clone());
        }
        for (at, gpu) in machine.gpus.iter().enumerate() {
            if !merged.machine.gpus.contains(gpu) {
                merged.machine.gpus.push(gpu.clone());
                merged.machine.gpu_details.extend(machine.gpu_details.get(at).cloned());
            }
        }
    }
    merged.machine.cpu = cpus.join("; ");
    if records().any(|record| record.fingerprint != merged.fingerprint) {
        // Times are comparable only with a run whose units ran on the same machines.
        let places =
            taken.iter().map(|(unit, part)| (&unit.name, part.as_ref().map_or("", |part| part.machine())));
        let places = format!("{:?}", places.collect::<Vec<_>>());
        hex(&Sha256::digest(places))[..16].clone_into(&mut merged.fingerprint);
    }
    let environment = |locked: &crate::results::Locked| {
        let made = records().flat_map(|record| &record.environments);
        let is_it =
            |known: &&PythonEnvironment| known.versions.iter().any(|name| locked.versions.contains(name));
        let best = made.filter(is_it).max_by_key(|known| known.error.is_none());
        PythonEnvironment { versions: locked.versions.clone(), ..best.cloned().unwrap_or_default() }
    };
    merged.environments = frozen.environments.iter().map(environment).collect();
    let checkpoint = |case: &crate::results::Case| {
        let mut known = records().flat_map(|record| &record.checkpoints);
        known.find(|known| known.digest == case.checkpoint_digest).cloned().unwrap_or_else(|| {
            CheckpointRecord {
                name: case.checkpoint.clone(),
                model_type: String::new(),
                revision: None,
                digest: case.checkpoint_digest.clone(),
            }
        })
    };
    merged.checkpoints = frozen.run.cases.iter().map(checkpoint).collect();
    Some(merged)
}
