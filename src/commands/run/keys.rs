//! A cell's key: the digest of everything that its numbers depend on.

use sha2::{Digest, Sha256};

use super::Runners;
use super::prepare::PreparedCase;
use crate::spec::machine::hex;
use crate::spec::plan::CellPlan;

/// The key of a cell. A saved result with an equal key is reused.
pub(super) fn cell(plan: &CellPlan, prepared: &PreparedCase, runners: &Runners) -> String {
    let environment = plan.environment.map(|index| runners.environment_keys[index].as_str());
    let parts = (
        &plan.key,
        environment,
        &prepared.checkpoint.digest,
        &prepared.inputs.digest,
        reference::bridge_digest(),
        program(),
        runners.threads,
        &runners.fingerprint,
    );
    hex(&Sha256::digest(format!("{parts:?}")))
}

/// This program's version, and its build as size and modification time of the executable.
fn program() -> String {
    let built = std::env::current_exe().and_then(std::fs::metadata);
    let built = built.map(|metadata| (metadata.len(), metadata.modified().ok()));
    format!("{} {:?}", env!("CARGO_PKG_VERSION"), built.ok())
}
