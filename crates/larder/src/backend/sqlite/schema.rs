//! The layout of the file: tables, their versions, and how an older version becomes the current one.
//!
//! Knows what the file must look like; never touches an entry.

use super::fault::{corrupt, to_error};
use crate::error::{Error, ErrorKind, Result};
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

/// "LRDR", in the file's header: `file(1)` shows it, and another program's database is told by it.
pub(super) const APPLICATION_ID: i32 = 0x4c52_4452;

/// What brings version `i` to `i + 1`, each in one transaction. Version 0 is the empty file. A step that
/// was released is never edited: the next version gets a step of its own.
pub(super) const STEPS: &[&str] = &[V1, V2];

/// A rowid table, because a `WITHOUT ROWID` one keeps values of a page's size in its inner nodes and is
/// three times slower and larger. The index holds a hash instead of the key, so that long keys don't
/// double the file; the key itself is compared in the row. `sealed` comes last: everything else of a row
/// is read without its overflow pages.
const V1: &str = "
    CREATE TABLE store (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        inc INTEGER NOT NULL,      -- incarnation, a random u64 stored as i64
        pos INTEGER NOT NULL,      -- moved by every removal, marker and accepted set
        born INTEGER NOT NULL,     -- position at which this incarnation began
        clear INTEGER NOT NULL,    -- what was written before is invalid
        floor INTEGER NOT NULL,    -- what began before is refused; what is stored stays valid
        marked INTEGER NOT NULL,   -- position of the last marker of any kind
        marks INTEGER NOT NULL,    -- rows of mark
        entries INTEGER NOT NULL,  -- rows of entry
        bytes INTEGER NOT NULL,    -- their size
        last_stamp BLOB,           -- greatest stamp of an accepted set
        unsynced INTEGER NOT NULL, -- commits since the last close were not synced one by one
        boot TEXT,                 -- the boot during which they were made
        clean INTEGER NOT NULL     -- closed, and not opened since
    );
    CREATE TABLE namespace (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        cleared INTEGER NOT NULL DEFAULT 0,
        floor INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE entry (
        id INTEGER PRIMARY KEY,
        ns INTEGER NOT NULL,
        hash INTEGER NOT NULL,     -- of namespace and key, a u64 stored as i64
        seen INTEGER NOT NULL,     -- position at its write
        kind INTEGER NOT NULL,     -- 0 load, 1 set
        gone_at INTEGER,           -- wall clock ms, a u64 stored as i64; NULL is never
        stamp BLOB NOT NULL,
        key BLOB NOT NULL,
        tags BLOB,                 -- length (u16 LE) and text of each; NULL is none
        sealed BLOB NOT NULL
    );
    CREATE INDEX entry_hash ON entry (ns, hash);
    CREATE INDEX entry_gone_at ON entry (gone_at) WHERE gone_at IS NOT NULL;
    CREATE TABLE fence (
        h INTEGER PRIMARY KEY,     -- hash mod 4096
        r INTEGER NOT NULL,        -- position of the last removal
        s INTEGER NOT NULL         -- position of the last accepted set
    );
    CREATE TABLE mark (
        ns INTEGER NOT NULL,
        tag TEXT NOT NULL,
        pos INTEGER NOT NULL,
        PRIMARY KEY (ns, tag)
    ) WITHOUT ROWID;
    CREATE INDEX mark_pos ON mark (pos);
";

/// Reports about entries. What is kept of one hangs on its row by foreign keys, so every connection has to
/// ask for them. `standing` stands between, so that the deletion of an entry without reports costs one look.
const V2: &str = "
    CREATE TABLE standing (
        entry INTEGER PRIMARY KEY REFERENCES entry (id) ON DELETE CASCADE,
        ns INTEGER NOT NULL,
        source TEXT,
        is_bad INTEGER NOT NULL,       -- what the last report said
        bad_in_a_row INTEGER NOT NULL,
        reports INTEGER NOT NULL,
        accessed INTEGER NOT NULL      -- wall clock ms of the last report
    );
    CREATE INDEX standing_source ON standing (ns, source, entry);
    CREATE INDEX standing_health ON standing (ns, is_bad, entry);
    CREATE INDEX standing_accessed ON standing (ns, accessed);
    CREATE TABLE history (
        id INTEGER PRIMARY KEY,
        entry INTEGER NOT NULL REFERENCES standing (entry) ON DELETE CASCADE,
        at INTEGER NOT NULL,           -- wall clock ms
        is_bad INTEGER NOT NULL,
        latency_ms INTEGER,
        note TEXT
    );
    CREATE INDEX history_entry ON history (entry, id);
";

/// What a file turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing is in it yet, or larder's tables of this or an older version.
    Ours,
    /// A sound database of another program.
    Foreign,
}

/// Tells larder's file from another program's without changing a byte of it.
///
/// # Errors
/// [`ErrorKind::Config`] for a version from the future, which is left alone.
pub(super) fn inspect(db: &Connection, steps: &[&str]) -> Result<Kind> {
    let read = |pragma: &str| db.query_row(pragma, [], |row| row.get::<_, i64>(0));
    let inspected = (|| {
        Ok((
            read("PRAGMA application_id")?,
            read("PRAGMA user_version")?,
            read("SELECT count(*) FROM sqlite_schema")?,
        ))
    })();
    let (application, version, objects) = inspected.map_err(|error| to_error("open", error))?;
    if application != i64::from(APPLICATION_ID) {
        let is_empty = application == 0 && version == 0 && objects == 0;
        return Ok(if is_empty { Kind::Ours } else { Kind::Foreign });
    }
    let known = steps.len() as i64;
    if version > known {
        return Err(Error::new(ErrorKind::Config, "open").message(format!(
            "the file has schema version {version}, written by a newer larder; this one knows versions up to \
             {known}. Upgrade larder, or give it another data folder"
        )));
    }
    Ok(Kind::Ours)
}

/// Brings the file to the version after the last step. Two processes may do so at once: each step looks
/// again under the write lock.
pub(super) fn migrate(db: &mut Connection, steps: &[&str]) -> rusqlite::Result<()> {
    loop {
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: usize =
            tx.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))?.max(0) as usize;
        let Some(step) = steps.get(version) else { return Ok(()) };
        tx.execute_batch(step)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.pragma_update(None, "user_version", (version + 1) as i64)?;
        tx.commit()?;
    }
}

/// Begins a new incarnation if the store may have forgotten a removal: its row is missing, or commits
/// that were not synced met another boot of the machine. Entries of the old one become invalid, and are
/// swept later. Says why, if it did.
pub(super) fn incarnate(db: &mut Connection, boot: Option<&str>) -> rusqlite::Result<Option<&'static str>> {
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let row: Option<(bool, Option<String>, bool)> = tx
        .query_row("SELECT unsynced, boot, clean FROM store WHERE id = 1", [], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let inc = fastrand::u64(..) as i64;
    let why = match row {
        None => {
            tx.execute("DELETE FROM entry", [])?;
            tx.execute("DELETE FROM mark", [])?;
            tx.execute(
                "INSERT INTO store VALUES (1, ?1, 1, 1, 0, 0, 1, 0, 0, 0, NULL, 0, NULL, 0)",
                params![inc],
            )?;
            None
        }
        // Without a boot id, every unsynced file may have lost power.
        Some((true, recorded, _)) if boot.is_none() || recorded.as_deref() != boot => {
            tx.execute(
                "UPDATE store SET inc = ?1, pos = pos + 1, born = pos + 1, clear = pos + 1, marked = pos + 1,
                 unsynced = 0, clean = 0",
                params![inc],
            )?;
            Some("the machine restarted while commits were not synced")
        }
        Some((_, _, true)) => {
            tx.execute("UPDATE store SET clean = 0", [])?;
            None
        }
        Some(_) => None,
    };
    tx.commit()?;
    Ok(why)
}

/// Whether the last process to leave closed the file. `None`: no such row or table yet.
pub(super) fn was_closed(db: &Connection) -> rusqlite::Result<Option<bool>> {
    let has_table = db
        .query_row("SELECT 1 FROM sqlite_schema WHERE name = 'store' AND type = 'table'", [], |_| Ok(()))
        .optional()?;
    match has_table {
        None => Ok(None),
        Some(()) => db.query_row("SELECT clean FROM store", [], |row| row.get(0)).optional(),
    }
}

/// SQLite's own check of pages, tables and indexes; reads the whole file.
pub(super) fn check(db: &Connection) -> rusqlite::Result<()> {
    let verdict: String = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict == "ok" { Ok(()) } else { Err(corrupt(verdict)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: &str = "ALTER TABLE entry ADD COLUMN flavour TEXT; UPDATE store SET pos = pos + 1;";

    fn version(db: &Connection) -> i64 {
        db.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_older_version_is_brought_up_and_keeps_its_rows() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, &[V1]).unwrap();
        incarnate(&mut db, None).unwrap();
        db.execute("INSERT INTO entry VALUES (1, 1, 1, 1, 0, NULL, x'00', x'01', NULL, x'02')", []).unwrap();
        migrate(&mut db, &[V1, V2, NEXT]).unwrap();
        migrate(&mut db, &[V1, V2, NEXT]).unwrap();
        assert_eq!(version(&db), 3);
        let (pos, flavour): (i64, Option<String>) = db
            .query_row("SELECT pos, flavour FROM store, entry", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!((pos, flavour), (2, None));
    }

    #[test]
    fn a_failing_step_leaves_the_older_version() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, &[V1]).unwrap();
        migrate(&mut db, &[V1, "CREATE TABLE extra (id); SELECT no_such_function();"]).unwrap_err();
        assert_eq!(version(&db), 1);
        let extra: i64 = db
            .query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'extra'", [], |row| row.get(0))
            .unwrap();
        assert_eq!(extra, 0);
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, &[V1, V2, NEXT]).unwrap();
        let error = inspect(&db, STEPS).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("version 3") && error.to_string().contains("up to 2"), "{error}");
    }

    #[test]
    fn another_programs_database_is_foreign() {
        let db = Connection::open_in_memory().unwrap();
        assert_eq!(inspect(&db, STEPS).unwrap(), Kind::Ours);
        db.execute_batch("CREATE TABLE invoices (id INTEGER)").unwrap();
        assert_eq!(inspect(&db, STEPS).unwrap(), Kind::Foreign);
    }

    #[test]
    fn unsynced_commits_of_another_boot_begin_a_new_incarnation() {
        let mut db = Connection::open_in_memory().unwrap();
        migrate(&mut db, STEPS).unwrap();
        let inc =
            |db: &Connection| db.query_row("SELECT inc FROM store", [], |row| row.get::<_, i64>(0)).unwrap();
        incarnate(&mut db, Some("a")).unwrap();
        let first = inc(&db);
        assert_eq!(incarnate(&mut db, Some("b")).unwrap(), None, "synced commits survive any restart");
        db.execute("UPDATE store SET unsynced = 1, boot = 'b'", []).unwrap();
        assert_eq!(incarnate(&mut db, Some("b")).unwrap(), None, "a killed process loses nothing");
        assert_eq!(inc(&db), first);
        assert!(incarnate(&mut db, Some("c")).unwrap().is_some());
        assert_ne!(inc(&db), first);
    }
}
