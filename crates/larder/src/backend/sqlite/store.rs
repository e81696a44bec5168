//! The store as one transaction sees it, and what may be read of it: rules A1 to A4 of `DESIGN.md`,
//! "Coherence". Never writes.

use super::fault::corrupt;
use super::file::Conn;
use crate::backend::{Cursor, Listed, Miss, Page, Read, Scan, Ticket, Usage};
use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, Tags};
use crate::error::{Error, ErrorKind};
use crate::key::{EntryKey, Namespace};
use crate::stamp::Stamp;
use bytes::Bytes;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, ffi, params};
use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;

/// Fences per store. Two keys share one with probability 1/4096, which costs at worst a miss.
const STRIPES: u64 = 4096;
/// What a row costs beside its blobs, indexes included, as [`Usage`] counts it.
pub(super) const ROW_BYTES: u64 = 96;
/// The bytes of an entry's row; [`ROW_BYTES`] and the lengths, none of which reads an overflow page.
pub(super) const ROW_SIZE_SQL: &str = "96 + length(key) + ifnull(length(tags), 0) + length(sealed)";
/// An entry by namespace, hash and key: the columns of [`entry_row`], and the body.
const LOOKUP_SQL: &str =
    "SELECT id, seen, kind, gone_at, stamp, tags, sealed FROM entry WHERE ns = ?1 AND hash = ?2 AND key = ?3";
/// Most namespaces that a connection remembers.
const KNOWN_MAX: usize = 256;
/// Most rows that one page of a scan looks at.
const SCANNED_MAX: usize = 1000;

/// The row `store`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) inc: u64,
    pub(super) pos: u64,
    pub(super) born: u64,
    pub(super) clear: u64,
    pub(super) floor: u64,
    pub(super) marked: u64,
    pub(super) marks: u64,
    pub(super) entries: u64,
    pub(super) bytes: u64,
    pub(super) last_stamp: Option<Stamp>,
    pub(super) unsynced: bool,
}

/// A row of `namespace`.
#[derive(Clone, Copy)]
pub(super) struct NamespaceRow {
    pub(super) id: i64,
    pub(super) cleared: u64,
    pub(super) floor: u64,
}

/// A row of `entry` without key and body.
pub(super) struct EntryRow {
    pub(super) id: i64,
    pub(super) seen: u64,
    pub(super) kind: EntryKind,
    pub(super) gone_at_ms: u64,
    pub(super) stamp: Stamp,
    pub(super) tags: Option<Vec<u8>>,
}

/// What a connection has read of one version of the file, beside entries.
pub(super) struct Known {
    version: u32,
    state: State,
    namespaces: HashMap<Namespace, Option<NamespaceRow>>,
}

/// Reads one entry, in a transaction of one statement as long as the file is what it was the last time: the
/// row `store` and the namespace are then known. The second part is the entry's row, as from [`Store::get`].
pub(super) fn get_alone(conn: &Conn, key: &EntryKey, now_ms: u64) -> rusqlite::Result<(Read, Option<i64>)> {
    let db = &conn.db;
    // Taken out: an error leaves nothing behind.
    if let Some(Known { version, state, namespaces }) = conn.known.take()
        && let Some(Some(namespace)) = namespaces.get(key.namespace()).copied()
    {
        let mut lookup = statement(db, LOOKUP_SQL)?;
        let mut rows = lookup.query(params![namespace.id, key.hash64() as i64, &key.as_bytes()[..]])?;
        // From here on the snapshot is fixed: until the row is left, or, without one, it was all there is to read.
        let row = rows.next()?;
        if data_version(db)? == version {
            let store = Store { db, state, now_ms, namespaces };
            let found = store.judge_row(namespace, row)?;
            conn.known.set(Some(Known { version, state, namespaces: store.namespaces }));
            return Ok(found);
        }
    }
    statement(db, "BEGIN")?.execute([])?;
    let mut store = Store::load(db, now_ms)?;
    let found = store.get(key)?;
    let known = Known { version: data_version(db)?, state: store.state, namespaces: store.namespaces };
    statement(db, "COMMIT")?.execute([])?;
    if known.namespaces.len() <= KNOWN_MAX {
        conn.known.set(Some(known));
    }
    Ok(found)
}

/// A number that changes whenever what this connection reads was changed by another: SQLite's own, by which
/// it drops its page cache. Of the newest snapshot that the connection has read.
fn data_version(db: &Connection) -> rusqlite::Result<u32> {
    let mut version: u32 = 0;
    // SAFETY: the handle is open as long as `db` is borrowed, and used by this thread alone; this opcode
    // writes one unsigned int to where the last argument points.
    let result = unsafe {
        ffi::sqlite3_file_control(
            db.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_DATA_VERSION,
            (&raw mut version).cast(),
        )
    };
    if result == ffi::SQLITE_OK {
        Ok(version)
    } else {
        Err(rusqlite::Error::SqliteFailure(ffi::Error::new(result), None))
    }
}

/// One transaction's view.
pub(super) struct Store<'c> {
    pub(super) db: &'c Connection,
    pub(super) state: State,
    pub(super) now_ms: u64,
    namespaces: HashMap<Namespace, Option<NamespaceRow>>,
}

impl<'c> Store<'c> {
    /// To be called as the first thing in a transaction.
    pub(super) fn load(db: &'c Connection, now_ms: u64) -> rusqlite::Result<Self> {
        let state = statement(
            db,
            "SELECT inc, pos, born, clear, floor, marked, marks, entries, bytes, last_stamp, unsynced FROM store",
        )?
        .query_row([], |row| {
            Ok(State {
                inc: u64_at(row, 0)?,
                pos: u64_at(row, 1)?,
                born: u64_at(row, 2)?,
                clear: u64_at(row, 3)?,
                floor: u64_at(row, 4)?,
                marked: u64_at(row, 5)?,
                marks: u64_at(row, 6)?,
                entries: u64_at(row, 7)?,
                bytes: u64_at(row, 8)?,
                last_stamp: match row.get_ref(9)?.as_blob_or_null()? {
                    None => None,
                    Some(bytes) => Some(stamp(bytes)?),
                },
                unsynced: row.get(10)?,
            })
        })?;
        Ok(Store { db, state, now_ms, namespaces: HashMap::new() })
    }

    pub(super) fn ticket(&self) -> Ticket {
        Ticket { inc: self.state.inc, pos: self.state.pos }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { entries: self.state.entries, bytes: self.state.bytes }
    }

    /// Reads an entry if it is valid. The second part is its row, for the eviction to know of the visit.
    pub(super) fn get(&mut self, key: &EntryKey) -> rusqlite::Result<(Read, Option<i64>)> {
        let Some(namespace) = self.namespace(key.namespace())? else {
            return Ok((Read { ticket: self.ticket(), found: Err(Miss::Absent) }, None));
        };
        let mut lookup = statement(self.db, LOOKUP_SQL)?;
        let mut rows = lookup.query(params![namespace.id, key.hash64() as i64, &key.as_bytes()[..]])?;
        self.judge_row(namespace, rows.next()?)
    }

    /// What a row of [`LOOKUP_SQL`] is worth.
    fn judge_row(
        &self,
        namespace: NamespaceRow,
        row: Option<&Row<'_>>,
    ) -> rusqlite::Result<(Read, Option<i64>)> {
        let ticket = self.ticket();
        let missed = |miss| Ok((Read { ticket, found: Err(miss) }, None));
        let Some(row) = row else { return missed(Miss::Absent) };
        let entry = entry_row(row)?;
        if let Some(miss) = self.why_invalid(namespace, &entry)? {
            return missed(miss);
        }
        let sealed = Bytes::copy_from_slice(row.get_ref(6)?.as_blob()?);
        Ok((Read { ticket, found: Ok(sealed) }, Some(entry.id)))
    }

    /// Rule A3, then the clock.
    pub(super) fn why_invalid(
        &self,
        namespace: NamespaceRow,
        entry: &EntryRow,
    ) -> rusqlite::Result<Option<Miss>> {
        if let Some(miss) = self.why_invalidated(namespace, entry.seen, entry.tags.as_deref())? {
            return Ok(Some(miss));
        }
        let is_gone = entry.gone_at_ms != NEVER_MS && entry.gone_at_ms <= self.now_ms;
        Ok(if entry.stamp.is_distrusted(self.now_ms) {
            Some(Miss::Clock)
        } else {
            is_gone.then_some(Miss::Expired)
        })
    }

    /// Rule A3: whether what was written at `seen` was invalidated since.
    pub(super) fn why_invalidated(
        &self,
        namespace: NamespaceRow,
        seen: u64,
        tags: Option<&[u8]>,
    ) -> rusqlite::Result<Option<Miss>> {
        let State { born, clear, marked, .. } = self.state;
        if seen < born {
            return Ok(Some(Miss::Incarnation));
        }
        if seen < clear || seen < namespace.cleared {
            return Ok(Some(Miss::Cleared));
        }
        let is_marked =
            seen < marked && self.tag_marked_after(namespace.id, tags.unwrap_or_default(), seen)?;
        Ok(is_marked.then_some(Miss::Tag))
    }

    /// Whether one of the tags was removed after `pos`.
    pub(super) fn tag_marked_after(&self, ns: i64, tags: &[u8], pos: u64) -> rusqlite::Result<bool> {
        for tag in decode_tags(tags) {
            let marked = statement(self.db, "SELECT pos FROM mark WHERE ns = ?1 AND tag = ?2")?
                .query_row(params![ns, tag?], |row| u64_at(row, 0))
                .optional()?;
            if marked.is_some_and(|marked| marked > pos) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The namespace's row, read once per transaction.
    pub(super) fn namespace(&mut self, name: &Namespace) -> rusqlite::Result<Option<NamespaceRow>> {
        match self.namespaces.entry(name.clone()) {
            MapEntry::Occupied(known) => Ok(*known.get()),
            MapEntry::Vacant(unknown) => {
                let row = statement(self.db, "SELECT id, cleared, floor FROM namespace WHERE name = ?1")?
                    .query_row([name.as_str()], |row| {
                        Ok(NamespaceRow { id: row.get(0)?, cleared: u64_at(row, 1)?, floor: u64_at(row, 2)? })
                    })
                    .optional()?;
                Ok(*unknown.insert(row))
            }
        }
    }

    /// What this transaction wrote of a namespace.
    pub(super) fn remember(&mut self, name: &Namespace, row: NamespaceRow) {
        self.namespaces.insert(name.clone(), Some(row));
    }

    pub(super) fn namespaces(&self) -> rusqlite::Result<Vec<Namespace>> {
        statement(
            self.db,
            "SELECT name FROM namespace n WHERE EXISTS (SELECT 1 FROM entry WHERE ns = n.id) ORDER BY name",
        )?
        .query_map([], |row| row.get::<_, String>(0))?
        .map(|name| Namespace::new(&name?).map_err(|_| corrupt("a namespace has an impossible name")))
        .collect()
    }

    /// One page, in the order of the index (hash, row): an entry that is overwritten keeps its place.
    pub(super) fn scan(&mut self, scan: &Scan<'_>, after: Place) -> rusqlite::Result<Page> {
        let mut page = Page::default();
        let Some(namespace) = self.namespace(scan.namespace)? else { return Ok(page) };
        let mut select = statement(
            self.db,
            &format!(
                "SELECT id, seen, kind, gone_at, stamp, tags, length(sealed), hash, key FROM entry
                 WHERE ns = ?1 AND (hash, id) > (?2, ?3) ORDER BY hash, id LIMIT {SCANNED_MAX}"
            ),
        )?;
        let mut rows = select.query(params![namespace.id, after.hash, after.id])?;
        let mut looked_at = 0;
        while let Some(row) = rows.next()? {
            let entry = entry_row(row)?;
            looked_at += 1;
            let here = Place { hash: row.get(7)?, id: entry.id };
            if self.why_invalid(namespace, &entry)?.is_none() {
                let key = key_at(scan.namespace, row, 8)?;
                if scan.pattern.is_none_or(|pattern| pattern.matches(&key.text())) {
                    page.entries.push(Listed {
                        key,
                        gone_at_ms: entry.gone_at_ms,
                        sealed_bytes: u64_at(row, 6)?,
                    });
                }
            }
            if page.entries.len() >= scan.limit.max(1) || looked_at == SCANNED_MAX {
                page.next = Some(here.into());
                break;
            }
        }
        Ok(page)
    }
}

/// Where a scan stands in the index of a namespace.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) hash: i64,
    pub(super) id: i64,
}

impl Place {
    pub(super) const START: Place = Place { hash: i64::MIN, id: i64::MIN };

    pub(super) fn parse(cursor: Option<&Cursor>) -> Result<Place, Error> {
        let Some(Cursor(text)) = cursor else { return Ok(Place::START) };
        let parse = |part: &str| u64::from_str_radix(part, 16).ok();
        text.split_once('-')
            .and_then(|(hash, id)| Some(Place { hash: parse(hash)? as i64, id: parse(id)? as i64 }))
            .ok_or_else(|| {
                Error::new(ErrorKind::Config, "scan").message("the cursor is not one of this backend's")
            })
    }
}

impl From<Place> for Cursor {
    fn from(place: Place) -> Self {
        Cursor(format!("{:x}-{:x}", place.hash as u64, place.id as u64))
    }
}

/// A prepared statement, kept by the connection.
pub(super) fn statement<'c>(db: &'c Connection, sql: &str) -> rusqlite::Result<CachedStatement<'c>> {
    db.prepare_cached(sql)
}

/// The fence of a key.
pub(super) fn stripe(key: &EntryKey) -> i64 {
    (key.hash64() % STRIPES) as i64
}

pub(super) fn u64_at(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|value| value as u64)
}

/// Never is NULL, so that the index holds only what can expire.
pub(super) fn gone_at_sql(gone_at_ms: u64) -> Option<i64> {
    (gone_at_ms != NEVER_MS).then_some(gone_at_ms as i64)
}

/// The columns id, seen, kind, gone_at, stamp, tags, in this order from the first.
pub(super) fn entry_row(row: &Row<'_>) -> rusqlite::Result<EntryRow> {
    Ok(EntryRow {
        id: row.get(0)?,
        seen: u64_at(row, 1)?,
        kind: match row.get::<_, i64>(2)? {
            0 => EntryKind::Load,
            1 => EntryKind::Set,
            _ => return Err(corrupt("an entry has an impossible kind")),
        },
        gone_at_ms: row.get::<_, Option<i64>>(3)?.map_or(NEVER_MS, |ms| ms as u64),
        stamp: stamp(row.get_ref(4)?.as_blob()?)?,
        tags: row.get_ref(5)?.as_blob_or_null()?.map(<[u8]>::to_vec),
    })
}

pub(super) fn key_at(namespace: &Namespace, row: &Row<'_>, column: usize) -> rusqlite::Result<EntryKey> {
    let bytes = Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?);
    EntryKey::from_bytes(namespace, bytes).map_err(|_| corrupt("an entry has an impossible key"))
}

fn stamp(bytes: &[u8]) -> rusqlite::Result<Stamp> {
    bytes.try_into().map(Stamp::from_bytes).map_err(|_| corrupt("a stamp has not 12 bytes"))
}

/// The column `tags`.
pub(super) fn encode_tags(tags: &Tags) -> Option<Vec<u8>> {
    if tags.is_empty() {
        return None;
    }
    let mut bytes = Vec::new();
    for tag in tags.iter() {
        // A tag has at most 256 bytes: `TAG_BYTES_MAX`.
        bytes.extend_from_slice(&(tag.len() as u16).to_le_bytes());
        bytes.extend_from_slice(tag.as_bytes());
    }
    Some(bytes)
}

fn decode_tags(mut bytes: &[u8]) -> impl Iterator<Item = rusqlite::Result<&str>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let tag = bytes.split_first_chunk::<2>().and_then(|(length, rest)| {
            let (tag, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
            bytes = rest;
            std::str::from_utf8(tag).ok()
        });
        if tag.is_none() {
            bytes = &[];
        }
        Some(tag.ok_or_else(|| corrupt("the tags of an entry can't be read")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_survive_their_column_and_damage_is_named() {
        let tags = Tags::new(["b", "a", &"x".repeat(256)]).unwrap();
        let bytes = encode_tags(&tags).unwrap();
        let decoded: Vec<_> = decode_tags(&bytes).map(Result::unwrap).collect();
        assert_eq!(decoded, tags.iter().collect::<Vec<_>>());
        for end in 1..bytes.len() {
            let whole = decode_tags(&bytes[..end]).filter(Result::is_err).count();
            assert!(whole <= 1, "a truncated list ends with one error");
        }
        assert!(decode_tags(&bytes[..5]).any(|tag| tag.is_err()));
        assert_eq!(encode_tags(&Tags::NONE), None);
    }
}
