//! Entries that failed authentication, in a table of their own that is made when the first one comes: a file
//! that never met one stays as it is.

use super::fault::corrupt;
use super::store::{Store, statement, u64_at};
use crate::backend::quarantine::{QUARANTINED_BYTES_MAX, QUARANTINED_MAX, Quarantined, Summary};
use crate::key::{EntryKey, Namespace};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS quarantine (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at INTEGER NOT NULL,       -- wall clock ms
        reason TEXT NOT NULL,
        namespace TEXT NOT NULL,
        key BLOB NOT NULL,
        sealed_bytes INTEGER NOT NULL,
        sealed BLOB                -- NULL where it was too large to keep
    )";

impl Store<'_> {
    /// Moves an entry there, if it still has these bytes; says how the quarantine is then.
    pub(super) fn quarantine(
        &mut self,
        key: &EntryKey,
        sealed: &Bytes,
        reason: &str,
    ) -> rusqlite::Result<Option<Summary>> {
        if !self.discard(key, sealed)? {
            return Ok(None);
        }
        self.db.execute_batch(TABLE)?;
        let kept = (sealed.len() <= QUARANTINED_BYTES_MAX).then_some(&sealed[..]);
        statement(
            self.db,
            "INSERT INTO quarantine (at, reason, namespace, key, sealed_bytes, sealed)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![
            self.now_ms as i64,
            reason,
            key.namespace().as_str(),
            &key.as_bytes()[..],
            sealed.len() as i64,
            kept,
        ])?;
        statement(self.db, "DELETE FROM quarantine WHERE id <= (SELECT max(id) FROM quarantine) - ?1")?
            .execute([QUARANTINED_MAX as i64])?;
        summary(self.db).map(Some)
    }

    pub(super) fn forget_quarantined(&self) -> rusqlite::Result<()> {
        if exists(self.db)? { self.db.execute_batch("DELETE FROM quarantine") } else { Ok(()) }
    }

    pub(super) fn quarantined(&self) -> rusqlite::Result<Vec<Quarantined>> {
        if !exists(self.db)? {
            return Ok(Vec::new());
        }
        let mut select = self
            .db
            .prepare("SELECT at, reason, namespace, key, sealed_bytes, sealed FROM quarantine ORDER BY id")?;
        let rows = select.query_map([], |row| {
            let impossible = || corrupt("a quarantined entry has an impossible key");
            let namespace = Namespace::new(row.get_ref(2)?.as_str()?).map_err(|_| impossible())?;
            let key = Bytes::copy_from_slice(row.get_ref(3)?.as_blob()?);
            Ok(Quarantined {
                key: EntryKey::from_bytes(&namespace, key).map_err(|_| impossible())?,
                reason: row.get(1)?,
                wall_ms: u64_at(row, 0)?,
                sealed_bytes: u64_at(row, 4)?,
                sealed: row.get_ref(5)?.as_blob_or_null()?.map(Bytes::copy_from_slice),
            })
        })?;
        rows.collect()
    }
}

/// How the quarantine of a file is.
pub(super) fn summary(db: &Connection) -> rusqlite::Result<Summary> {
    if !exists(db)? {
        return Ok(Summary::default());
    }
    let last = db
        .query_row("SELECT at, reason FROM quarantine ORDER BY id DESC LIMIT 1", [], |row| {
            Ok((u64_at(row, 0)?, row.get::<_, String>(1)?))
        })
        .optional()?;
    let entries = db.query_row("SELECT count(*) FROM quarantine", [], |row| u64_at(row, 0))?;
    let (last_ms, last_reason) = last.unwrap_or_default();
    Ok(Summary { entries, last_ms, last_reason })
}

fn exists(db: &Connection) -> rusqlite::Result<bool> {
    let found =
        db.query_row("SELECT 1 FROM sqlite_schema WHERE name = 'quarantine'", [], |_| Ok(())).optional()?;
    Ok(found.is_some())
}
