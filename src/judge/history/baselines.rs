//! The baselines of a history, one row each.

use bounds::limits::BASELINES;
use rusqlite::{OptionalExtension, TransactionBehavior, params};

use super::{History, HistoryError, named};

const SELECT: &str = "SELECT name, run, folder, saved, fingerprint, bytes, files FROM baselines";

/// A baseline's row in the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// The run that it was saved from.
    pub run: String,
    /// Its folder, relative to the results folder.
    pub folder: String,
    /// When it was saved, RFC 3339 in UTC.
    pub saved: String,
    /// Fingerprint of the machine that it was timed on.
    pub fingerprint: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// SHA-256 of each of its logits files by path, as JSON.
    pub files: String,
}

impl History {
    /// All baselines, in the order of their names.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn baselines(&self) -> Result<Vec<Known>, HistoryError> {
        let count: i64 = self
            .connection
            .query_row("SELECT count(*) FROM baselines", [], |row| row.get(0))
            .map_err(|error| self.error(&error))?;
        BASELINES.check(count.max(0) as u64).map_err(|exceeded| HistoryError::Damaged {
            path: self.path.clone(),
            reason: format!("it has {exceeded}"),
        })?;
        let read = || {
            let mut statement = self.connection.prepare(&format!("{SELECT} ORDER BY name"))?;
            statement.query_map([], known)?.collect::<Result<Vec<_>, _>>()
        };
        read().map_err(|error| self.error(&error))
    }

    /// The baseline `name`, if it exists.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn baseline(&self, name: &str) -> Result<Option<Known>, HistoryError> {
        let found = self.connection.query_row(&format!("{SELECT} WHERE name = ?1"), [name], known).optional();
        found.map_err(|error| self.error(&error))
    }

    /// Inserts a baseline; replaces and returns one of the same name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_baseline(&mut self, baseline: &Known) -> Result<Option<Known>, HistoryError> {
        let path = self.path.clone();
        let named = |error: rusqlite::Error| named(&path, &error);
        let begun =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(named)?;
        let before = begun
            .query_row(&format!("{SELECT} WHERE name = ?1"), [&baseline.name], known)
            .optional()
            .map_err(named)?;
        let row = params![
            baseline.name,
            baseline.run,
            baseline.folder,
            baseline.saved,
            baseline.fingerprint,
            baseline.bytes as i64,
            baseline.files
        ];
        begun
            .execute("INSERT OR REPLACE INTO baselines VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", row)
            .map_err(named)?;
        begun.commit().map_err(named)?;
        Ok(before)
    }

    /// Deletes a baseline and returns it; `None` if there is none of that name.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn take_baseline(&mut self, name: &str) -> Result<Option<Known>, HistoryError> {
        let path = self.path.clone();
        let named = |error: rusqlite::Error| named(&path, &error);
        let begun =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(named)?;
        let before =
            begun.query_row(&format!("{SELECT} WHERE name = ?1"), [name], known).optional().map_err(named)?;
        begun.execute("DELETE FROM baselines WHERE name = ?1", [name]).map_err(named)?;
        begun.commit().map_err(named)?;
        Ok(before)
    }
}

fn known(row: &rusqlite::Row<'_>) -> rusqlite::Result<Known> {
    Ok(Known {
        name: row.get(0)?,
        run: row.get(1)?,
        folder: row.get(2)?,
        saved: row.get(3)?,
        fingerprint: row.get(4)?,
        bytes: row.get::<_, i64>(5)?.max(0) as u64,
        files: row.get(6)?,
    })
}
