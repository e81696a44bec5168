//! Frees space: what is expired, what was invalidated, what matches a pattern, and what must go because
//! the file is over its limit.
//!
//! Every step looks at a bounded number of rows, so that other writes get in between. Where a step stands
//! is kept in memory and forgotten when its transaction is rolled back.
//!
//! Eviction is SIEVE (Zhang et al., NSDI 2024): a hand walks from the oldest row to the newest, spares
//! what was read since it last came by, and drops the rest. One bit in memory per row records a read, so
//! that reads never write to the disk; a restart forgets the bits and evicts in order of age at first. An
//! `accessed` column would cost one page write per entry read.

use super::store::{NamespaceRow, Place, ROW_SIZE_SQL, Store, entry_row, key_at, statement, u64_at};
use crate::backend::Miss;
use crate::key::{Namespace, Pattern};
use rusqlite::params;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Rows that one step looks at.
const STEP_ROWS: usize = 512;
/// Eviction frees down to this share of a limit, so that it doesn't run for every put.
const LOW_MARK_PERCENT: u64 = 95;

/// Free pages that one transaction gives back: about 3 ms.
const SHRINK_PAGES: u64 = 256;
/// So many transactions give pages back after a sweep.
pub(super) const SHRINK_STEPS: u32 = 16;

/// The limits that eviction keeps. `None` is unlimited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) entries_max: Option<u64>,
    pub(super) bytes_max: Option<u64>,
    pub(super) marks_max: u64,
}

impl Limits {
    fn is_over(&self, entries: u64, bytes: u64, percent: u64) -> bool {
        let over = |value: u64, max: Option<u64>| {
            max.is_some_and(|max| u128::from(value) * 100 > u128::from(max) * u128::from(percent))
        };
        over(entries, self.entries_max) || over(bytes, self.bytes_max)
    }
}

/// Which rows were read since the hand last passed; half a megabyte, whatever the file holds.
///
/// Rows whose ids are 4 million apart share a bit: at worst one is spared for the other's reads.
pub(super) struct Visited(Box<[AtomicU64]>);

impl Visited {
    const WORDS: usize = 1 << 16;

    pub(super) fn new() -> Self {
        Visited((0..Self::WORDS).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn touch(&self, id: i64) {
        let (word, bit) = self.locate(id);
        // Most reads find the bit set, and then don't take the cache line from the other threads.
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn take(&self, id: i64) -> bool {
        let (word, bit) = self.locate(id);
        word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }

    fn locate(&self, id: i64) -> (&AtomicU64, u64) {
        (&self.0[(id as u64 / 64) as usize % Self::WORDS], 1 << (id as u64 % 64))
    }
}

/// Where the hand of the eviction and the pass of the sweep stand.
#[derive(Default)]
pub(super) struct Progress {
    hand: i64,
    pass: Option<Pass>,
    /// Everything that was invalidated up to here has been swept.
    swept: u64,
}

/// A walk over all rows in search of invalidated ones.
#[derive(Clone, Copy)]
struct Pass {
    after: i64,
    began: u64,
    /// The lowest `seen` of the tagged rows that stay.
    oldest_tagged: u64,
}

impl Progress {
    /// A transaction was rolled back: rows that a pass counted as gone are there again.
    pub(super) fn forget(&mut self) {
        self.pass = None;
    }
}

/// One step's result.
pub(super) struct Step {
    pub(super) freed: u64,
    pub(super) is_done: bool,
}

/// A row that may have to go.
struct Candidate {
    id: i64,
    bytes: u64,
}

impl Store<'_> {
    /// Frees at most `limit` rows: expired ones first, then invalidated ones.
    pub(super) fn sweep(&mut self, limit: u64, progress: &mut Progress) -> rusqlite::Result<Step> {
        let expired = self.expired(limit.min(STEP_ROWS as u64))?;
        let mut freed = expired.len() as u64;
        self.delete_all(&expired)?;
        if freed == limit {
            return Ok(Step { freed, is_done: true });
        }
        if expired.len() == STEP_ROWS {
            return Ok(Step { freed, is_done: false });
        }
        if progress.pass.is_none() && self.state.marked <= progress.swept {
            return Ok(Step { freed, is_done: true });
        }
        let pass =
            progress.pass.get_or_insert(Pass { after: 0, began: self.state.pos, oldest_tagged: u64::MAX });
        let (invalid, is_end) = self.invalidated(pass, limit - freed)?;
        self.delete_all(&invalid)?;
        freed += invalid.len() as u64;
        if is_end {
            let Pass { began, oldest_tagged, .. } = *pass;
            progress.pass = None;
            progress.swept = began;
            self.drop_marks_before(oldest_tagged.min(began))?;
        }
        Ok(Step { freed, is_done: is_end || freed == limit })
    }

    /// Whether more than a quarter of the file is free. Less is kept: the next writes use it, and taking a
    /// page away and adding it again costs more than either.
    pub(super) fn is_sparse(&self) -> rusqlite::Result<bool> {
        let read = |sql| statement(self.db, sql)?.query_row([], |row| u64_at(row, 0));
        let free = read("PRAGMA freelist_count")?;
        Ok(free > SHRINK_PAGES && free.saturating_mul(4) > read("PRAGMA page_count")?)
    }

    /// Gives free pages back, one step. The file shrinks at the next checkpoint; one that was made before
    /// larder asked SQLite for this stays as it is.
    pub(super) fn shrink(&self) -> rusqlite::Result<()> {
        let mut vacuum = self.db.prepare(&format!("PRAGMA incremental_vacuum({SHRINK_PAGES})"))?;
        let mut pages = vacuum.query([])?;
        // It gives back one page for each row that is asked for.
        while pages.next()?.is_some() {}
        Ok(())
    }

    /// Evicts if the store is over a limit, one step. Not done: it still is.
    pub(super) fn evict(
        &mut self,
        limits: &Limits,
        visited: &Visited,
        progress: &mut Progress,
    ) -> rusqlite::Result<Step> {
        let mut freed = 0;
        if !limits.is_over(self.state.entries, self.state.bytes, 100) {
            return Ok(Step { freed, is_done: true });
        }
        let expired = self.expired(STEP_ROWS as u64)?;
        freed += expired.len() as u64;
        self.delete_all(&expired)?;
        let candidates = self.rows_after(progress.hand)?;
        if candidates.is_empty() && progress.hand == 0 {
            // Over a limit without a row: the totals were damaged, and would keep the eviction going for ever.
            (self.state.entries, self.state.bytes) = (0, 0);
        }
        for candidate in candidates {
            if !limits.is_over(self.state.entries, self.state.bytes, LOW_MARK_PERCENT) {
                return Ok(Step { freed, is_done: true });
            }
            progress.hand = candidate.id;
            if !visited.take(candidate.id) {
                self.delete_row(candidate.id, candidate.bytes)?;
                freed += 1;
            }
        }
        if self.rows_after(progress.hand)?.is_empty() {
            progress.hand = 0;
        }
        Ok(Step { freed, is_done: !limits.is_over(self.state.entries, self.state.bytes, 100) })
    }

    /// Deletes the rows of a namespace that match and were written before `floor`, one step from `after`
    /// on. The second part is where the next step begins, if one is needed.
    pub(super) fn remove_matching(
        &mut self,
        name: &Namespace,
        pattern: &Pattern,
        floor: u64,
        after: Place,
    ) -> rusqlite::Result<(u64, Option<Place>)> {
        let Some(namespace) = self.namespace(name)? else { return Ok((0, None)) };
        let mut matching = Vec::new();
        let mut removed = 0;
        let mut next = None;
        {
            let mut select = statement(
                self.db,
                &format!(
                    "SELECT id, seen, kind, gone_at, stamp, tags, hash, key, {ROW_SIZE_SQL} FROM entry
                     WHERE ns = ?1 AND (hash, id) > (?2, ?3) ORDER BY hash, id LIMIT {STEP_ROWS}"
                ),
            )?;
            let mut rows = select.query(params![namespace.id, after.hash, after.id])?;
            let mut looked_at = 0;
            while let Some(row) = rows.next()? {
                looked_at += 1;
                let entry = entry_row(row)?;
                if looked_at == STEP_ROWS {
                    next = Some(Place { hash: row.get(6)?, id: entry.id });
                }
                if entry.seen < floor && pattern.matches(&key_at(name, row, 7)?.text()) {
                    removed += u64::from(self.why_invalid(namespace, &entry)?.is_none());
                    matching.push(Candidate { id: entry.id, bytes: u64_at(row, 8)? });
                }
            }
        }
        self.delete_all(&matching)?;
        Ok((removed, next))
    }

    fn expired(&self, limit: u64) -> rusqlite::Result<Vec<Candidate>> {
        // Times beyond i64 are negative in the column, and 290 million years away.
        let now = i64::try_from(self.now_ms).unwrap_or(i64::MAX);
        statement(
            self.db,
            &format!("SELECT id, {ROW_SIZE_SQL} FROM entry WHERE gone_at BETWEEN 0 AND ?1 LIMIT ?2"),
        )?
        .query_map(params![now, limit as i64], |row| {
            Ok(Candidate { id: row.get(0)?, bytes: u64_at(row, 1)? })
        })?
        .collect()
    }

    fn rows_after(&self, id: i64) -> rusqlite::Result<Vec<Candidate>> {
        statement(
            self.db,
            &format!("SELECT id, {ROW_SIZE_SQL} FROM entry WHERE id > ?1 ORDER BY id LIMIT {STEP_ROWS}"),
        )?
        .query_map([id], |row| Ok(Candidate { id: row.get(0)?, bytes: u64_at(row, 1)? }))?
        .collect()
    }

    /// The invalidated rows of the next step of a pass, and whether it is the last.
    fn invalidated(&mut self, pass: &mut Pass, limit: u64) -> rusqlite::Result<(Vec<Candidate>, bool)> {
        let namespaces = self.namespaces_by_id()?;
        let mut select = statement(
            self.db,
            &format!(
                "SELECT id, ns, seen, tags, {ROW_SIZE_SQL} FROM entry WHERE id > ?1 ORDER BY id LIMIT {STEP_ROWS}"
            ),
        )?;
        let mut rows = select.query([pass.after])?;
        let (mut invalid, mut looked_at) = (Vec::new(), 0);
        while let Some(row) = rows.next()? {
            if invalid.len() as u64 == limit {
                return Ok((invalid, false));
            }
            looked_at += 1;
            pass.after = row.get(0)?;
            let seen = u64_at(row, 2)?;
            let tags = row.get_ref(3)?.as_blob_or_null()?;
            let why = match namespaces.get(&row.get::<_, i64>(1)?) {
                Some(namespace) => self.why_invalidated(*namespace, seen, tags)?,
                // A row of no namespace can't be reached.
                None => Some(Miss::Absent),
            };
            if why.is_some() {
                invalid.push(Candidate { id: pass.after, bytes: u64_at(row, 4)? });
            } else if tags.is_some() {
                pass.oldest_tagged = pass.oldest_tagged.min(seen);
            }
        }
        Ok((invalid, looked_at < STEP_ROWS))
    }

    fn namespaces_by_id(&self) -> rusqlite::Result<HashMap<i64, NamespaceRow>> {
        statement(self.db, "SELECT id, cleared, floor FROM namespace")?
            .query_map([], |row| {
                let id = row.get(0)?;
                Ok((id, NamespaceRow { id, cleared: u64_at(row, 1)?, floor: u64_at(row, 2)? }))
            })?
            .collect()
    }

    /// Drops markers that no remaining entry is older than. Writes that began before them are refused by
    /// the floor instead.
    fn drop_marks_before(&mut self, oldest: u64) -> rusqlite::Result<()> {
        let highest: Option<i64> = statement(self.db, "SELECT max(pos) FROM mark WHERE pos <= ?1")?
            .query_row([i64::try_from(oldest).unwrap_or(i64::MAX)], |row| row.get(0))?;
        if let Some(highest) = highest {
            self.drop_marks(highest as u64)?;
            self.state.floor = self.state.floor.max(highest as u64);
        }
        Ok(())
    }

    fn delete_all(&mut self, candidates: &[Candidate]) -> rusqlite::Result<()> {
        candidates.iter().try_for_each(|candidate| self.delete_row(candidate.id, candidate.bytes))
    }
}
