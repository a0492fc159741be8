//! Seconds and memory of earlier cells, from which the needs of a plan's units are estimated.

use rusqlite::{OptionalExtension, Transaction, params};

use super::{History, HistoryError, named, variant_key_of};
use crate::execute::cell::Completed;
use crate::spec::variant::Variant;

/// Added after version 1; an older tfcheck ignores this table, so the version is unchanged.
pub(super) const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS costs (
        run TEXT NOT NULL,
        stamp TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        threads INTEGER NOT NULL,
        checkpoint_digest TEXT NOT NULL,
        inputs_digest TEXT NOT NULL,
        variant TEXT NOT NULL,
        seconds REAL NOT NULL,
        peak_bytes INTEGER,
        PRIMARY KEY (run, checkpoint_digest, inputs_digest, variant)
    ) STRICT;
";

/// What a cell took in the newest run that completed it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Seconds of loading, forward passes, timing rounds and repetitions.
    pub seconds: f64,
    /// Peak memory in bytes, if the worker reported it.
    pub peak_bytes: Option<u64>,
}

/// Which cell a cost belongs to: digests of the checkpoint and of the inputs, and the variant.
pub type CellId<'a> = (&'a str, &'a str, &'a Variant);

impl History {
    /// What a cell took in the newest run that completed it on one machine; `None` if there is no such run.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn cost(
        &self,
        machine: (&str, usize),
        (checkpoint, inputs, variant): CellId<'_>,
    ) -> Result<Option<Cost>, HistoryError> {
        let sql = "SELECT seconds, peak_bytes FROM costs WHERE fingerprint = ?1 AND threads = ?2
             AND checkpoint_digest = ?3 AND inputs_digest = ?4 AND variant = ?5 ORDER BY stamp DESC LIMIT 1";
        let values = params![machine.0, machine.1 as i64, checkpoint, inputs, variant_key_of(variant)];
        let row = |row: &rusqlite::Row<'_>| {
            let peak: Option<i64> = row.get(1)?;
            Ok(Cost { seconds: row.get(0)?, peak_bytes: peak.and_then(|bytes| u64::try_from(bytes).ok()) })
        };
        self.connection.query_row(sql, values, row).optional().map_err(|error| named(&self.path, &error))
    }
}

/// Replaces the cost of a cell in a run.
pub(super) fn insert(
    begun: &Transaction<'_>,
    (run, stamp): (&str, &str),
    machine: (&str, usize),
    (checkpoint, inputs, variant): CellId<'_>,
    completed: &Completed,
) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO costs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    let peak = completed.peak_bytes.and_then(|bytes| i64::try_from(bytes).ok());
    let threads = machine.1 as i64;
    let key = variant_key_of(variant);
    let values = params![run, stamp, machine.0, threads, checkpoint, inputs, key, seconds(completed), peak];
    begun.execute(sql, values).map(drop)
}

/// Seconds of everything that the record of a cell times.
fn seconds(completed: &Completed) -> f64 {
    let rounds = completed.rounds_ns.iter().chain(&completed.decode_rounds_ns).flatten();
    let repeated = completed.noise.as_ref().map_or(0, |noise| noise.elapsed_ns);
    let parts = [completed.load_ns, completed.first_call_ns, repeated];
    rounds.chain(&parts).map(|ns| *ns as f64 / 1e9).sum()
}
