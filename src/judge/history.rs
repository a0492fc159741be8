//! The history of a results folder, `history.sqlite`: its baselines and the times of its runs.
//!
//! Several tfcheck processes may write it at once: every change is one immediate transaction, and a process waits
//! while the file is locked. A file of a newer tfcheck or of another program, and a damaged file, is refused with an
//! error, never repaired or overwritten. So is a file with a view, a trigger or other columns in place of tfcheck's own
//! tables: they are SQL of others, which would run.

mod baselines;
mod costs;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bounds::limits::HISTORY_VALUE_BYTES;
use miette::Diagnostic;
use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};
use thiserror::Error;

use crate::execute::cell::{Cell, Outcome};
use crate::execute::quiet::{best_ns, readings};
use crate::results::{Case, Manifest, RunFolder};
use crate::spec::variant::Variant;
use compare::timing::summarize;

pub use baselines::Known;
pub use costs::{CellId, Cost};

/// Name of the file in the results folder.
pub const FILE_NAME: &str = "history.sqlite";
/// Version of the tables, in the file's `user_version`; a reader refuses a newer one.
pub const SCHEMA_VERSION: i64 = 1;
/// `tfck`, in the file's `application_id`: distinguishes it from other SQLite files.
const APPLICATION: i64 = 0x7466_636b;
/// How often one process tries again while another's transaction goes on, and the pause before each attempt: 20 s in all.
const ATTEMPTS: i32 = 400;
const PAUSE: Duration = Duration::from_millis(50);

const TABLES: &str = "
    CREATE TABLE baselines (
        name TEXT PRIMARY KEY,
        run TEXT NOT NULL,
        folder TEXT NOT NULL,
        saved TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        files TEXT NOT NULL
    ) STRICT;
    CREATE TABLE cells (
        run TEXT NOT NULL,
        stamp TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        threads INTEGER NOT NULL,
        checkpoint_digest TEXT NOT NULL,
        inputs_digest TEXT NOT NULL,
        variant TEXT NOT NULL,
        outcome TEXT NOT NULL,
        p50_ms REAL,
        peak_bytes INTEGER,
        PRIMARY KEY (run, checkpoint_digest, inputs_digest, variant)
    ) STRICT;
    CREATE INDEX cells_by_variant ON cells (fingerprint, threads, checkpoint_digest, inputs_digest, variant, stamp);
";

/// Added after version 1; an older tfcheck ignores this table, so the version is unchanged.
const YARDSTICK: &str = "
    CREATE TABLE IF NOT EXISTS yardstick (
        run TEXT PRIMARY KEY,
        stamp TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        threads INTEGER NOT NULL,
        best_ns INTEGER NOT NULL
    ) STRICT;
";
/// Number of newest runs that give a machine's best calibration time: a machine that has become slower is recognised
/// after as many runs.
const YARDSTICK_RUNS: i64 = 20;

/// Why the history cannot be used.
#[derive(Debug, Error, Diagnostic)]
pub enum HistoryError {
    /// The file is not a tfcheck database.
    #[error("{} is damaged or not a tfcheck history: {reason}", path.display())]
    #[diagnostic(help(
        "move it away, and tfcheck creates a new one; the baselines' files are in `baselines` next to it"
    ))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        reason: String,
    },
    /// A newer tfcheck wrote the file.
    #[error("{} has schema version {found}, this tfcheck reads up to {SCHEMA_VERSION}", path.display())]
    #[diagnostic(help("use the tfcheck that wrote it, or a newer one"))]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// The file cannot be read or written.
    #[error("cannot use {}: {reason}", path.display())]
    #[diagnostic(help(
        "check the folder's owner, mode and free space, and whether another tfcheck holds the file"
    ))]
    Unusable {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        reason: String,
    },
}

impl HistoryError {
    /// That a run is not recorded, with the reason and the remedy.
    pub fn note(&self) -> String {
        let remedy = self.help().map(|help| format!(" ({help})")).unwrap_or_default();
        format!("not in the history: {self}{remedy}")
    }
}

/// An open history.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    connection: Connection,
}

/// Adds the run in `folder` to the history of the results folder, with the fingerprint and the threads of its machine.
///
/// # Errors
/// When the history cannot be read or written.
pub fn remember(
    results: &Path,
    folder: &RunFolder,
    manifest: &Manifest,
    machine: (&str, usize),
    cells: &[Vec<Cell>],
) -> Result<(), HistoryError> {
    let name = folder.path().file_name().unwrap_or_default().to_string_lossy();
    let cases: Vec<_> = manifest.cases.iter().zip(cells.iter().map(Vec::as_slice)).collect();
    History::open(results)?.record(&name, &manifest.stamp, machine, &cases)
}

impl History {
    /// Opens the history of a results folder, and creates it if it does not exist.
    ///
    /// # Errors
    /// When the file is damaged, newer than this tfcheck, or cannot be used.
    pub fn open(results: &Path) -> Result<Self, HistoryError> {
        let path = results.join(FILE_NAME);
        let unusable = |reason: String| HistoryError::Unusable { path: path.clone(), reason };
        std::fs::create_dir_all(results).map_err(|error| unusable(error.to_string()))?;
        // SQLite opens the three others by itself.
        for suffix in ["", "-journal", "-wal", "-shm"] {
            let file = results.join(format!("{FILE_NAME}{suffix}"));
            if file.symlink_metadata().is_ok_and(|metadata| !metadata.is_file()) {
                return Err(unusable(format!("{FILE_NAME}{suffix} is not a regular file")));
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(&path, flags).map_err(|error| unusable(error.to_string()))?;
        guard(&connection).map_err(|error| unusable(error.to_string()))?;
        let mut history = Self { path, connection };
        history.prepare()?;
        Ok(history)
    }

    /// Creates the tables of a new file; refuses a file of another program.
    fn prepare(&mut self) -> Result<(), HistoryError> {
        self.connection.busy_handler(Some(waits)).map_err(|error| self.error(&error))?;
        let path = self.path.clone();
        let named = |error: rusqlite::Error| named(&path, &error);
        let begun =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(named)?;
        let number =
            |name: &str| begun.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(named);
        let (application, version) = (number("application_id")?, number("user_version")?);
        let tables: i64 =
            begun.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(named)?;
        if let Some(name) = foreign_sql(&begun).map_err(named)? {
            let reason =
                format!("`{}` in it is not tfcheck's", bounds::shown(&name, bounds::limits::LINE.most));
            return Err(HistoryError::Damaged { path, reason });
        }
        match (application, version) {
            (0, 0) if tables == 0 => {
                begun.execute_batch(TABLES).map_err(named)?;
                begun.execute_batch(YARDSTICK).map_err(named)?;
                begun.execute_batch(costs::TABLE).map_err(named)?;
                begun.pragma_update(None, "application_id", APPLICATION).map_err(named)?;
                begun.pragma_update(None, "user_version", SCHEMA_VERSION).map_err(named)?;
                begun.commit().map_err(named)
            }
            (APPLICATION, SCHEMA_VERSION) => {
                begun.execute_batch(YARDSTICK).map_err(named)?;
                begun.execute_batch(costs::TABLE).map_err(named)?;
                begun.commit().map_err(named)
            }
            (APPLICATION, found) if found > SCHEMA_VERSION => {
                Err(HistoryError::Newer { path: path.clone(), found })
            }
            // A migration from an older version goes here; 1 is the first.
            _ => Err(HistoryError::Damaged {
                path: path.clone(),
                reason: format!("application id {application:#x}, version {version}"),
            }),
        }
    }

    /// Records the outcomes of a run's cells. A run that is recorded again after `--resume` replaces its earlier
    /// record.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(
        &mut self,
        run: &str,
        stamp: &str,
        machine: (&str, usize),
        cases: &[(&Case, &[Cell])],
    ) -> Result<(), HistoryError> {
        let path = self.path.clone();
        let named = |error: rusqlite::Error| named(&path, &error);
        let begun =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(named)?;
        begun.execute("DELETE FROM cells WHERE run = ?1", [run]).map_err(named)?;
        begun.execute("DELETE FROM costs WHERE run = ?1", [run]).map_err(named)?;
        for (case, cells) in cases {
            for cell in *cells {
                let (outcome, p50_ms, peak) = match &cell.outcome {
                    Outcome::Completed(completed) => {
                        let p50 = summarize(&completed.rounds_ns).map(|summary| summary.p50_ms);
                        ("completed", p50, completed.peak_bytes.and_then(|bytes| i64::try_from(bytes).ok()))
                    }
                    Outcome::Unsupported { .. } => ("unsupported", None, None),
                    Outcome::Failed(_) => ("failed", None, None),
                };
                let sql = "INSERT OR REPLACE INTO cells VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
                let row = params![
                    run,
                    stamp,
                    machine.0,
                    machine.1 as i64,
                    case.checkpoint_digest,
                    case.inputs_digest,
                    variant_key(cell),
                    outcome,
                    p50_ms,
                    peak
                ];
                begun.execute(sql, row).map_err(named)?;
                if let Outcome::Completed(completed) = &cell.outcome {
                    let id = (case.checkpoint_digest.as_str(), case.inputs_digest.as_str(), &cell.variant);
                    costs::insert(&begun, (run, stamp), machine, id, completed).map_err(named)?;
                }
            }
        }
        let readings = readings(cases.iter().flat_map(|(_, cells)| *cells));
        if let Some(best_ns) = best_ns(&readings) {
            let row = params![run, stamp, machine.0, machine.1 as i64, best_ns as i64];
            begun
                .execute("INSERT OR REPLACE INTO yardstick VALUES (?1, ?2, ?3, ?4, ?5)", row)
                .map_err(named)?;
        }
        begun.commit().map_err(named)
    }

    /// The shortest time of the calibration loop in the newest `YARDSTICK_RUNS` runs on one machine, in
    /// nanoseconds.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn yardstick_ns(&self, fingerprint: &str, threads: usize) -> Result<Option<u64>, HistoryError> {
        let sql = "SELECT min(best_ns) FROM (SELECT best_ns FROM yardstick
             WHERE fingerprint = ?1 AND threads = ?2 ORDER BY stamp DESC LIMIT ?3)";
        let values = params![fingerprint, threads as i64, YARDSTICK_RUNS];
        let best: Option<i64> =
            self.connection.query_row(sql, values, |row| row.get(0)).map_err(|error| self.error(&error))?;
        Ok(best.and_then(|best| u64::try_from(best).ok()))
    }

    /// Medians in milliseconds of a cell in the at most `most` newest runs on one machine, without `run`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn p50s(
        &self,
        fingerprint: &str,
        threads: u64,
        case: &Case,
        cell: &Cell,
        run: &Path,
        most: usize,
    ) -> Result<Vec<f64>, HistoryError> {
        let sql =
            "SELECT p50_ms FROM cells WHERE fingerprint = ?1 AND threads = ?2 AND checkpoint_digest = ?3
             AND inputs_digest = ?4 AND variant = ?5 AND run <> ?6 AND p50_ms IS NOT NULL
             ORDER BY stamp DESC LIMIT ?7";
        let run = run.file_name().unwrap_or_default().to_string_lossy();
        let read = || {
            let mut statement = self.connection.prepare(sql)?;
            let values = params![
                fingerprint,
                threads as i64,
                case.checkpoint_digest,
                case.inputs_digest,
                variant_key(cell),
                run,
                most as i64
            ];
            statement.query_map(values, |row| row.get(0))?.collect::<Result<Vec<f64>, _>>()
        };
        read().map_err(|error| self.error(&error))
    }

    fn error(&self, error: &rusqlite::Error) -> HistoryError {
        named(&self.path, error)
    }
}

/// Whether to wait for another process's transaction after so many attempts. A request to stop ends the wait.
fn waits(attempts: i32) -> bool {
    let goes_on = attempts < ATTEMPTS && !reference::is_stopped();
    if goes_on {
        std::thread::sleep(PAUSE);
    }
    goes_on
}

/// Settings of SQLite for a file that others may have made: no view, trigger or function in its schema runs, and no value is
/// larger than its limit.
fn guard(connection: &Connection) -> rusqlite::Result<()> {
    for (setting, value) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
    ] {
        connection.set_db_config(setting, value)?;
    }
    let most = i32::try_from(HISTORY_VALUE_BYTES.most).unwrap_or(i32::MAX);
    connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, most).map(drop)
}

/// The first object of the schema that SQL of others made: a trigger, or one that has the name of a table of ours or is an
/// index of it, and is not as we make it. Tables of other names are never read: a newer tfcheck may have added them.
fn foreign_sql(begun: &Transaction<'_>) -> rusqlite::Result<Option<String>> {
    let own: Vec<String> =
        [TABLES, YARDSTICK, costs::TABLE].iter().flat_map(|sql| sql.split(';')).map(in_one_form).collect();
    let is_ours = |table: &str| {
        ["baselines", "cells", "yardstick", "costs"].iter().any(|name| table.eq_ignore_ascii_case(name))
    };
    let mut statement = begun.prepare("SELECT type, name, tbl_name, sql FROM sqlite_schema")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let [kind, name, table]: [String; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
        let sql: Option<String> = row.get(3)?;
        // An index that SQLite makes for a primary key has no SQL.
        let is_as_made = sql.is_none_or(|sql| own.contains(&in_one_form(&sql)));
        if kind == "trigger" || ((is_ours(&table) || is_ours(&name)) && !is_as_made) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// SQL without line ends and indentation, as SQLite keeps it.
fn in_one_form(sql: &str) -> String {
    sql.split_whitespace().collect::<Vec<_>>().join(" ").replace("TABLE IF NOT EXISTS", "TABLE")
}

/// The key of a cell's variant across runs.
fn variant_key(cell: &Cell) -> String {
    variant_key_of(&cell.variant)
}

/// The key of a variant across runs: its fully qualified name.
fn variant_key_of(variant: &Variant) -> String {
    Variant { qualified: true, ..variant.clone() }.name()
}

fn named(path: &Path, error: &rusqlite::Error) -> HistoryError {
    let (path, reason) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(
            ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::PermissionDenied,
        ) => HistoryError::Unusable { path, reason },
        _ => HistoryError::Damaged { path, reason },
    }
}

#[cfg(test)]
mod tests;
