//! What changes the store: rules A2 and A5 to A7 of `DESIGN.md`, "Coherence", each inside one transaction
//! of the writer. Decides who is fenced; never when to commit.

use super::store::{
    EntryRow, NamespaceRow, ROW_BYTES, ROW_SIZE_SQL, Store, encode_tags, entry_row, gone_at_sql, statement,
    stripe, u64_at,
};
use crate::backend::{Mark, Put, PutOutcome, Removed, Ticket};
use crate::entry::EntryKind;
use crate::key::{EntryKey, Namespace};
use crate::stamp::Stamp;
use rusqlite::{OptionalExtension, params};

/// The fence of a key: positions of the last removal and the last accepted set.
#[derive(Default)]
struct Fence {
    removed: u64,
    set: u64,
}

enum Verdict {
    Accepted,
    Fenced,
    Older(Stamp),
}

impl Store<'_> {
    /// Writes unless ticket or stamp forbid it.
    pub(super) fn put(&mut self, put: &Put) -> rusqlite::Result<PutOutcome> {
        let namespace = self.namespace_or_new(put.key.namespace())?;
        let present = self.find(namespace, &put.key)?;
        let tags = encode_tags(&put.meta.tags);
        match self.judge(namespace, present.as_ref(), put, tags.as_deref())? {
            Verdict::Older(stamp) => Ok(PutOutcome::Older(stamp)),
            Verdict::Fenced => {
                // A refused set must not leave an older value behind.
                if put.meta.kind == EntryKind::Set {
                    self.fence_removal(&put.key)?;
                    self.delete(present.as_ref())?;
                }
                Ok(PutOutcome::Fenced)
            }
            Verdict::Accepted => {
                if put.meta.kind == EntryKind::Set {
                    let pos = self.advance();
                    statement(
                        self.db,
                        "INSERT INTO fence VALUES (?1, 0, ?2) ON CONFLICT (h) DO UPDATE SET s = excluded.s",
                    )?
                    .execute(params![stripe(&put.key), pos as i64])?;
                    if !put.meta.stamp.is_distrusted(self.now_ms) {
                        self.state.last_stamp = self.state.last_stamp.max(Some(put.meta.stamp));
                    }
                }
                self.write(namespace, present.as_ref(), put, tags.as_deref())?;
                Ok(PutOutcome::Stored)
            }
        }
    }

    /// Removes a key, and fences it also when it is absent.
    pub(super) fn remove(&mut self, key: &EntryKey) -> rusqlite::Result<Removed> {
        let present = match self.namespace(key.namespace())? {
            None => None,
            Some(namespace) => self.find(namespace, key)?.map(|found| (namespace, found)),
        };
        self.fence_removal(key)?;
        let Some((namespace, found)) = present else { return Ok(Removed::Absent) };
        let was_valid = self.why_invalid(namespace, &found.row)?.is_none();
        self.delete(Some(&found))?;
        Ok(if was_valid { Removed::Existed } else { Removed::Absent })
    }

    /// Deletes an entry that can't be opened, if it still has these bytes, and says whether it had. No removal:
    /// nothing is fenced.
    pub(super) fn discard(&mut self, key: &EntryKey, sealed: &[u8]) -> rusqlite::Result<bool> {
        let Some(namespace) = self.namespace(key.namespace())? else { return Ok(false) };
        let Some(found) = self.find(namespace, key)? else { return Ok(false) };
        let is_same: bool = statement(self.db, "SELECT sealed = ?2 FROM entry WHERE id = ?1")?
            .query_row(params![found.row.id, sealed], |row| row.get(0))?;
        if is_same {
            self.delete(Some(&found))?;
        }
        Ok(is_same)
    }

    /// Puts an envelope in the place of another, if that is still there, and says whether it was. The entry stays
    /// the same one: nothing is fenced.
    pub(super) fn exchange(&mut self, key: &EntryKey, old: &[u8], new: &[u8]) -> rusqlite::Result<bool> {
        let Some(namespace) = self.namespace(key.namespace())? else { return Ok(false) };
        let Some(found) = self.find(namespace, key)? else { return Ok(false) };
        let changed = statement(self.db, "UPDATE entry SET sealed = ?3 WHERE id = ?1 AND sealed = ?2")?
            .execute(params![found.row.id, old, new])?;
        if changed == 1 {
            self.state.bytes = (self.state.bytes + new.len() as u64).saturating_sub(old.len() as u64);
        }
        Ok(changed == 1)
    }

    /// Moves a marker. At most `marks_max` are kept.
    pub(super) fn mark(&mut self, name: &Namespace, mark: &Mark, marks_max: u64) -> rusqlite::Result<()> {
        let mut namespace = self.namespace_or_new(name)?;
        let pos = self.advance();
        self.state.marked = pos;
        match mark {
            Mark::Clear => {
                namespace.cleared = pos;
                self.write_namespace(name, namespace)
            }
            Mark::Tag(tag) => {
                let args = params![namespace.id, &**tag, pos as i64];
                if statement(self.db, "UPDATE mark SET pos = ?3 WHERE ns = ?1 AND tag = ?2")?.execute(args)?
                    == 0
                {
                    statement(self.db, "INSERT INTO mark (ns, tag, pos) VALUES (?1, ?2, ?3)")?
                        .execute(args)?;
                    self.state.marks += 1;
                }
                if self.state.marks > marks_max { self.prune_marks() } else { Ok(()) }
            }
        }
    }

    /// Refuses every write in the namespace that began before now; what is stored stays valid.
    pub(super) fn raise_floor(&mut self, name: &Namespace) -> rusqlite::Result<u64> {
        let mut namespace = self.namespace_or_new(name)?;
        namespace.floor = self.advance();
        self.write_namespace(name, namespace)?;
        Ok(namespace.floor)
    }

    /// Writes the row `store` back.
    pub(super) fn save(&self) -> rusqlite::Result<()> {
        let state = &self.state;
        statement(
            self.db,
            "UPDATE store SET pos = ?1, clear = ?2, floor = ?3, marked = ?4, marks = ?5, entries = ?6, bytes = ?7,
             last_stamp = ?8",
        )?
        .execute(params![
            state.pos as i64,
            state.clear as i64,
            state.floor as i64,
            state.marked as i64,
            state.marks as i64,
            state.entries as i64,
            state.bytes as i64,
            state.last_stamp.map(Stamp::to_bytes),
        ])?;
        Ok(())
    }

    /// Deletes a row and its share of the totals.
    pub(super) fn delete_row(&mut self, id: i64, bytes: u64) -> rusqlite::Result<()> {
        let deleted = statement(self.db, "DELETE FROM entry WHERE id = ?1")?.execute([id])?;
        if deleted == 1 {
            self.state.entries = self.state.entries.saturating_sub(1);
            self.state.bytes = self.state.bytes.saturating_sub(bytes);
        }
        Ok(())
    }

    fn advance(&mut self) -> u64 {
        self.state.pos += 1;
        self.state.pos
    }

    /// Rule A5. Stamps come before fences: a fenced set acts as a removal, which a later set doesn't
    /// deserve.
    fn judge(
        &self,
        namespace: NamespaceRow,
        present: Option<&Found>,
        put: &Put,
        tags: Option<&[u8]>,
    ) -> rusqlite::Result<Verdict> {
        let Ticket { inc, pos: began } = put.ticket;
        let valid_set = match present {
            Some(Found { row, .. }) if put.meta.kind == EntryKind::Set && row.kind == EntryKind::Set => {
                self.why_invalid(namespace, row)?.is_none().then_some(row.stamp)
            }
            _ => None,
        };
        if let Some(later) = valid_set.filter(|stamp| *stamp >= put.meta.stamp) {
            return Ok(Verdict::Older(later));
        }
        let state = &self.state;
        let fence = self.fence(&put.key)?;
        let removals = [fence.removed, state.clear, state.floor, namespace.cleared, namespace.floor];
        let is_fenced = inc != state.inc
            || removals.into_iter().any(|at| at > began)
            // A set has an order of its own, if there is one to compare it with.
            || (fence.set > began && valid_set.is_none())
            || (state.marked > began && self.tag_marked_after(namespace.id, tags.unwrap_or_default(), began)?);
        Ok(if is_fenced { Verdict::Fenced } else { Verdict::Accepted })
    }

    fn fence(&self, key: &EntryKey) -> rusqlite::Result<Fence> {
        let found = statement(self.db, "SELECT r, s FROM fence WHERE h = ?1")?
            .query_row([stripe(key)], |row| Ok(Fence { removed: u64_at(row, 0)?, set: u64_at(row, 1)? }))
            .optional()?;
        Ok(found.unwrap_or_default())
    }

    fn fence_removal(&mut self, key: &EntryKey) -> rusqlite::Result<()> {
        let pos = self.advance();
        statement(
            self.db,
            "INSERT INTO fence VALUES (?1, ?2, 0) ON CONFLICT (h) DO UPDATE SET r = excluded.r",
        )?
        .execute(params![stripe(key), pos as i64])?;
        Ok(())
    }

    fn find(&self, namespace: NamespaceRow, key: &EntryKey) -> rusqlite::Result<Option<Found>> {
        statement(
            self.db,
            &format!(
                "SELECT id, seen, kind, gone_at, stamp, tags, {ROW_SIZE_SQL} FROM entry
                 WHERE ns = ?1 AND hash = ?2 AND key = ?3"
            ),
        )?
        .query_row(params![namespace.id, key.hash64() as i64, &key.as_bytes()[..]], |row| {
            Ok(Found { row: entry_row(row)?, bytes: u64_at(row, 6)? })
        })
        .optional()
    }

    /// The row of a key, valid or not.
    pub(super) fn find_row(
        &self,
        namespace: NamespaceRow,
        key: &EntryKey,
    ) -> rusqlite::Result<Option<EntryRow>> {
        Ok(self.find(namespace, key)?.map(|found| found.row))
    }

    fn delete(&mut self, found: Option<&Found>) -> rusqlite::Result<()> {
        found.map_or(Ok(()), |found| self.delete_row(found.row.id, found.bytes))
    }

    fn write(
        &mut self,
        namespace: NamespaceRow,
        present: Option<&Found>,
        put: &Put,
        tags: Option<&[u8]>,
    ) -> rusqlite::Result<()> {
        let bytes = row_bytes(put, tags.map_or(0, <[u8]>::len));
        let seen = self.state.pos as i64;
        let kind = i64::from(put.meta.kind == EntryKind::Set);
        let gone_at = gone_at_sql(put.meta.gone_at_ms);
        let stamp = put.meta.stamp.to_bytes();
        if let Some(found) = present {
            // The row goes on, but the entry that it held was gone.
            if self.why_invalid(namespace, &found.row)?.is_some() {
                self.forget_reports(found.row.id)?;
            }
            statement(
                self.db,
                "UPDATE entry SET seen = ?2, kind = ?3, gone_at = ?4, stamp = ?5, tags = ?6, sealed = ?7 WHERE id = ?1",
            )?
            .execute(params![found.row.id, seen, kind, gone_at, stamp, tags, &put.sealed[..]])?;
            self.state.bytes = self.state.bytes.saturating_sub(found.bytes) + bytes;
        } else {
            statement(
                self.db,
                "INSERT INTO entry (ns, hash, seen, kind, gone_at, stamp, key, tags, sealed)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            )?
            .execute(params![
                namespace.id,
                put.key.hash64() as i64,
                seen,
                kind,
                gone_at,
                stamp,
                &put.key.as_bytes()[..],
                tags,
                &put.sealed[..],
            ])?;
            self.state.entries += 1;
            self.state.bytes += bytes;
        }
        Ok(())
    }

    fn namespace_or_new(&mut self, name: &Namespace) -> rusqlite::Result<NamespaceRow> {
        if let Some(row) = self.namespace(name)? {
            return Ok(row);
        }
        statement(self.db, "INSERT INTO namespace (name) VALUES (?1)")?.execute([name.as_str()])?;
        let row = NamespaceRow { id: self.db.last_insert_rowid(), cleared: 0, floor: 0 };
        self.remember(name, row);
        Ok(row)
    }

    fn write_namespace(&mut self, name: &Namespace, row: NamespaceRow) -> rusqlite::Result<()> {
        statement(self.db, "UPDATE namespace SET cleared = ?2, floor = ?3 WHERE id = ?1")?
            .execute(params![row.id, row.cleared as i64, row.floor as i64])?;
        self.remember(name, row);
        Ok(())
    }

    /// Rule A7: drops the older half, and clears what they would have invalidated.
    fn prune_marks(&mut self) -> rusqlite::Result<()> {
        let highest: u64 = statement(self.db, "SELECT pos FROM mark ORDER BY pos LIMIT 1 OFFSET ?1")?
            .query_row([(self.state.marks / 2) as i64], |row| u64_at(row, 0))?;
        self.drop_marks(highest)?;
        self.state.clear = self.state.clear.max(highest);
        Ok(())
    }

    pub(super) fn drop_marks(&mut self, highest: u64) -> rusqlite::Result<()> {
        let dropped = statement(self.db, "DELETE FROM mark WHERE pos <= ?1")?.execute([highest as i64])?;
        self.state.marks = self.state.marks.saturating_sub(dropped as u64);
        Ok(())
    }
}

/// An entry that a mutation meets, and its size.
struct Found {
    row: EntryRow,
    bytes: u64,
}

/// The size of an entry, as [`ROW_SIZE_SQL`] computes it.
pub(super) fn row_bytes(put: &Put, tags: usize) -> u64 {
    ROW_BYTES + (put.key.as_bytes().len() + tags + put.sealed.len()) as u64
}
