//! What is done to entries, one step at a time: reads without the lock, changes with it. Decides who is fenced
//! (rules A2 and A5 of `DESIGN.md`, "Coherence"); never when to publish.

use super::FilesLimits;
use super::entry::{Head, Place, encode_head};
use super::fault::{Guard, NAME, to_error};
use super::fence::{Amount, Fence, Header, Locked, Stripe};
use super::folder::{Found, SHARDS, Staged};
use super::marks::Change;
use super::recent::Recent;
use crate::backend::{Cursor, Listed, Mark, Miss, Page, Put, PutOutcome, Read, Removed, Scan, Ticket};
use crate::entry::EntryKind;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace};
use crate::stamp::Stamp;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io;

/// Most files that one page of a scan looks at.
const SCANNED_MAX: usize = 1000;

/// A folder of entries, as this process uses it.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) fence: Fence,
    pub(super) limits: FilesLimits,
    pub(super) recent: Recent,
}

/// What a look at one file found.
pub(super) struct Seen {
    pub(super) place: Place,
    /// `None`: damaged.
    pub(super) head: Option<Head>,
    /// Why it is not valid, if it isn't; [`Miss::Absent`] when it is damaged.
    pub(super) miss: Option<Miss>,
    pub(super) amount: Amount,
    pub(super) used_ms: u64,
    pub(super) inode: u64,
}

/// What deleting many found.
#[derive(Clone, Copy, Default)]
pub(super) struct Deleted {
    pub(super) valid: u64,
    pub(super) freed: u64,
}

impl Store {
    pub(super) fn now_ms(&self) -> u64 {
        self.fence.clock.wall_ms()
    }

    pub(super) fn ticket(&self) -> Result<Ticket> {
        Ok(self.fence.snapshot()?.ticket())
    }

    /// Ticket, then file, then markers: a removal up to the ticket has left nothing to find, and a marker up to
    /// the ticket is known when the file is judged.
    pub(super) fn get(&self, key: &EntryKey) -> Result<Read> {
        let ticket = self.ticket()?;
        let failed = |error| to_error("get", error).key(&key.text());
        let place = Place::of(key);
        let found = match self.fence.folder.find(&place).map_err(failed)? {
            None => None,
            Some(found) => self
                .fence
                .folder
                .read(&found, self.limits.value_bytes_max)
                .map_err(failed)?
                .map(|read| (found, read)),
        };
        let Some((found, (head, body))) = found.filter(|(_, (head, _))| head.key == *key) else {
            return Ok(Read { ticket, found: Err(Miss::Absent) });
        };
        let now_ms = self.now_ms();
        let miss = self.fence.with_markers(self.fence.snapshot()?, |header, markers| {
            header.why_invalid(markers, &head, now_ms)
        })?;
        if miss.is_none() {
            self.recent.visit(key.hash64(), now_ms);
            if found.used_ms.abs_diff(now_ms) >= self.limits.touch_after_ms {
                self.fence.folder.touch(&found, now_ms);
            }
        }
        Ok(Read { ticket, found: miss.map_or(Ok(body), Err) })
    }

    /// Writes the file of a put next to its place.
    pub(super) fn stage(&self, put: &Put) -> io::Result<Staged<'_>> {
        self.fence.folder.stage(&encode_head(put), &put.sealed, self.now_ms())
    }

    /// One page, in the order of the places.
    pub(super) fn scan(&self, scan: &Scan<'_>) -> Result<Page> {
        let failed = |error| to_error("scan", error);
        let mut after = scan.after.as_ref().map(parse_cursor).transpose()?;
        let mut page = Page::default();
        let mut looked_at = 0;
        let first = after.as_ref().map_or(0, |place| place.shard);
        for shard in first..=u8::MAX {
            for place in self.fence.folder.places(shard).map_err(failed)? {
                if after.as_ref().is_some_and(|after| place <= *after) {
                    continue;
                }
                if page.entries.len() >= scan.limit.max(1) || looked_at == SCANNED_MAX {
                    page.next = after.map(|place| Cursor(format!("files-{}", place.name)));
                    return Ok(page);
                }
                looked_at += 1;
                if let Some(Seen { head: Some(head), miss: None, .. }) =
                    self.look(&place).map_err(failed)??
                    && head.key.namespace() == scan.namespace
                    && scan.pattern.is_none_or(|pattern| pattern.matches(&head.key.text()))
                {
                    page.entries.push(Listed {
                        key: head.key,
                        gone_at_ms: head.gone_at_ms,
                        sealed_bytes: head.body_bytes,
                    });
                }
                after = Some(place);
            }
        }
        Ok(page)
    }

    pub(super) fn namespaces(&self) -> Result<Vec<Namespace>> {
        let failed = |error| to_error("scan", error);
        let mut names = BTreeSet::new();
        for shard in 0..=u8::MAX {
            for place in self.fence.folder.places(shard).map_err(failed)? {
                if let Some(Seen { head: Some(head), miss, .. }) = self.look(&place).map_err(failed)??
                    && miss != Some(Miss::Incarnation)
                {
                    names.insert(head.key.namespace().clone());
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Looks at one file without the lock.
    pub(super) fn look(&self, place: &Place) -> io::Result<Result<Option<Seen>>> {
        let Some(found) = self.fence.folder.find(place)? else { return Ok(Ok(None)) };
        let head = self.fence.folder.head(&found)?;
        let now_ms = self.now_ms();
        let judged = self.fence.snapshot().and_then(|header| {
            self.fence.with_markers(header, |header, markers| match &head {
                None => Some(Miss::Absent),
                Some(head) => header.why_invalid(markers, head, now_ms),
            })
        });
        Ok(judged.map(|miss| Some(self.seen(place, &found, head, miss, now_ms))))
    }

    fn seen(
        &self,
        place: &Place,
        found: &Found,
        head: Option<Head>,
        miss: Option<Miss>,
        now_ms: u64,
    ) -> Seen {
        let visited = head.as_ref().and_then(|head| self.recent.visited_ms(head.key.hash64(), now_ms));
        Seen {
            place: place.clone(),
            head,
            miss,
            amount: Amount::of(found.bytes),
            // A time in the future is no later use than now.
            used_ms: found.used_ms.min(now_ms).max(visited.unwrap_or(0)),
            inode: found.inode,
        }
    }

    /// Deletes at most `limit` files of one folder that are unwanted, when they are looked at without the lock
    /// and then again with it. `is_enough` is asked before each.
    pub(super) fn delete_where(
        &self,
        shard: u8,
        limit: usize,
        is_unwanted: impl Fn(&Seen) -> bool,
        is_enough: impl Fn(&Header) -> bool,
    ) -> Result<Deleted> {
        let failed = |error| to_error("sweep", error);
        let mut unwanted = Vec::new();
        for place in self.fence.folder.places(shard).map_err(failed)? {
            if unwanted.len() == limit {
                break;
            }
            if let Some(seen) = self.look(&place).map_err(failed)??
                && is_unwanted(&seen)
            {
                unwanted.push(seen);
            }
        }
        let mut deleted = Deleted::default();
        if unwanted.is_empty() {
            return Ok(deleted);
        }
        let mut locked = self.fence.lock("sweep")?;
        let done = (|| {
            locked.begin(0)?;
            for seen in unwanted {
                if is_enough(&locked.header) {
                    break;
                }
                let Some(found) = self.fence.folder.find(&seen.place)? else { continue };
                // Another file has come since: what was said of the old one says nothing of it.
                if found.inode != seen.inode {
                    continue;
                }
                let head = self.fence.folder.head(&found)?;
                let (head, miss) = self.judge(&mut locked, head)?;
                let seen = self.seen(&seen.place, &found, head, miss, self.now_ms());
                if is_unwanted(&seen) && self.fence.folder.remove(&seen.place)? {
                    locked.count(seen.place.shard, None, Some(seen.amount))?;
                    deleted.freed += 1;
                    deleted.valid += u64::from(miss.is_none());
                }
            }
            locked.publish()
        })();
        drop(locked);
        let sync = done.map_err(failed)?;
        self.fence.folder.sync_shard(shard).and_then(|()| self.fence.sync(&sync)).map_err(failed)?;
        Ok(deleted)
    }

    /// Counts one folder of entries anew, and deletes what can't be read or is of an old incarnation.
    pub(super) fn tidy(&self, shard: u8) -> Result<()> {
        let failed = |error| to_error("sweep", error);
        let is_dead = |seen: &Seen| matches!(seen.miss, Some(Miss::Absent | Miss::Incarnation));
        self.delete_where(shard, usize::MAX, is_dead, |_| false)?;
        let mut locked = self.fence.lock("sweep")?;
        (|| {
            locked.begin(0)?;
            let mut is = Amount::default();
            for place in self.fence.folder.places(shard)? {
                if let Some(found) = self.fence.folder.find(&place)? {
                    is = is.plus(Amount::of(found.bytes));
                }
            }
            locked.recount(shard, is)?;
            if usize::from(shard) == SHARDS - 1 {
                locked.header.drifted = false;
            }
            locked.publish()
        })()
        .map_err(failed)?;
        Ok(())
    }

    fn judge(&self, locked: &mut Locked<'_>, head: Option<Head>) -> io::Result<(Option<Head>, Option<Miss>)> {
        let now_ms = self.now_ms();
        let miss = match &head {
            None => Some(Miss::Absent),
            Some(head) => locked.with_markers(|header, markers| header.why_invalid(markers, head, now_ms))?,
        };
        Ok((head, miss))
    }

    /// Writes unless ticket or stamp forbid it.
    pub(super) fn put(
        &self,
        locked: &mut Locked<'_>,
        put: &Put,
        staged: &mut Staged<'_>,
    ) -> Result<PutOutcome> {
        let failed = |error| to_error("put", error).key(&put.key.text());
        let place = Place::of(&put.key);
        let present = self.fence.folder.find(&place).map_err(failed)?;
        let verdict = self.verdict(locked, put, present.as_ref()).map_err(failed)?;
        match verdict {
            Verdict::Older(stamp) => Ok(PutOutcome::Older(stamp)),
            Verdict::Fenced => {
                // A refused set must not leave an older value behind.
                if put.meta.kind == EntryKind::Set {
                    self.remove(locked, &put.key).map_err(|error| {
                        Error::new(ErrorKind::Unavailable, "put")
                            .backend(NAME)
                            .key(&put.key.text())
                            .source(error)
                    })?;
                }
                Ok(PutOutcome::Fenced)
            }
            Verdict::Accepted(stripe) => {
                let went = present.map(|found| Amount::of(found.bytes));
                let came = Amount::of(staged.bytes);
                self.check_room(locked, came, went).map_err(|error| error.key(&put.key.text()))?;
                // Read before the file moves: afterwards nothing may fail that is not undone.
                locked.count(place.shard, Some(came), went).map_err(failed)?;
                let done = self.place(locked, put, staged, &place, stripe);
                if let Err(error) = done {
                    locked.count(place.shard, went, Some(came)).map_err(failed)?;
                    return Err(failed(error));
                }
                Ok(PutOutcome::Stored)
            }
        }
    }

    fn place(
        &self,
        locked: &mut Locked<'_>,
        put: &Put,
        staged: &mut Staged<'_>,
        place: &Place,
        stripe: Stripe,
    ) -> io::Result<()> {
        if put.meta.kind == EntryKind::Set {
            let set = locked.advance();
            locked.set_stripe(&put.key, Stripe { set, ..stripe })?;
        }
        self.fence.folder.publish(staged, place)?;
        if put.meta.kind == EntryKind::Set && !put.meta.stamp.is_distrusted(self.now_ms()) {
            locked.header.last_stamp = locked.header.last_stamp.max(Some(put.meta.stamp));
        }
        self.recent.visit(put.key.hash64(), self.now_ms());
        Ok(())
    }

    /// Rule A5. Stamps come before fences: a fenced set acts as a removal, which a later set doesn't deserve.
    fn verdict(&self, locked: &mut Locked<'_>, put: &Put, present: Option<&Found>) -> io::Result<Verdict> {
        let Put { key, meta, ticket, .. } = put;
        let mut valid_set = None;
        if meta.kind == EntryKind::Set
            && let Some(found) = present
        {
            let head = self.fence.folder.head(found)?;
            let (head, miss) = self.judge(locked, head)?;
            valid_set = head
                .filter(|head| miss.is_none() && head.kind == EntryKind::Set && head.key == *key)
                .map(|head| head.stamp);
        }
        if let Some(later) = valid_set.filter(|stamp| *stamp >= meta.stamp) {
            return Ok(Verdict::Older(later));
        }
        let stripe = locked.stripe(key)?;
        let is_marked =
            locked.with_markers(|_, markers| markers.fences(key.namespace(), &meta.tags, ticket.pos))?;
        let is_fenced = ticket.inc != locked.header.inc
            // No ticket was given for a position that was not reached.
            || ticket.pos > locked.header.pos
            || (stripe.removed > ticket.pos && self.fence.folder.faults.holds(Guard::Fence))
            || is_marked
            // A set has an order of its own, if there is one to compare it with.
            || (stripe.set > ticket.pos && valid_set.is_none());
        Ok(if is_fenced { Verdict::Fenced } else { Verdict::Accepted(stripe) })
    }

    fn check_room(&self, locked: &Locked<'_>, came: Amount, went: Option<Amount>) -> Result<()> {
        let after = locked.header.total.plus(came).minus(went.unwrap_or_default());
        let (bytes_max, entries_max) = (self.limits.bytes_max, self.limits.entries_max);
        let is_over = |is: u64, was: u64, max: u64| is > max && is > was;
        if is_over(after.disk, locked.header.total.disk, bytes_max)
            || is_over(after.entries, locked.header.total.entries, entries_max)
        {
            return Err(Error::new(ErrorKind::Full, "put")
                .backend(NAME)
                .message("the folder is at its limit, and nothing could be evicted"));
        }
        Ok(())
    }

    /// Removes a key, and fences it also when it is absent.
    pub(super) fn remove(&self, locked: &mut Locked<'_>, key: &EntryKey) -> io::Result<Removed> {
        let place = Place::of(key);
        let present = self.fence.folder.find(&place)?;
        let mut removed = Removed::Absent;
        let stripe = locked.stripe(key)?;
        let pos = locked.advance();
        locked.set_stripe(key, Stripe { removed: pos, ..stripe })?;
        if let Some(found) = &present {
            let head = self.fence.folder.head(found)?;
            let (head, miss) = self.judge(locked, head)?;
            if miss.is_none() && head.is_some_and(|head| head.key == *key) {
                removed = Removed::Existed;
            }
        }
        // Also when nothing of larder's was found there: a file of somebody else's is no entry.
        if self.fence.folder.remove(&place)?
            && let Some(found) = present
        {
            locked.count(place.shard, None, Some(Amount::of(found.bytes)))?;
        }
        Ok(removed)
    }

    /// Deletes an entry that can't be opened, if it still has these bytes, or sets it aside. No removal: nothing
    /// is fenced.
    pub(super) fn discard(
        &self,
        locked: &mut Locked<'_>,
        key: &EntryKey,
        sealed: &Bytes,
        quarantine: Option<&str>,
    ) -> io::Result<()> {
        let place = Place::of(key);
        let Some(found) = self.fence.folder.find(&place)? else { return Ok(()) };
        let same = self.fence.folder.read(&found, self.limits.value_bytes_max)?;
        if !same.is_some_and(|(head, body)| head.key == *key && body == *sealed) {
            return Ok(());
        }
        let is_aside =
            quarantine.is_some_and(|why| self.fence.folder.set_aside(&place, self.now_ms(), why).is_ok());
        if is_aside || self.fence.folder.remove(&place)? {
            locked.count(place.shard, None, Some(Amount::of(found.bytes)))?;
        }
        Ok(())
    }

    pub(super) fn mark(&self, locked: &mut Locked<'_>, namespace: &Namespace, mark: &Mark) -> io::Result<()> {
        locked.mark(&Change::Mark(namespace, mark))
    }

    /// Refuses every write in the namespace that began before now; what is stored stays valid.
    pub(super) fn raise_floor(&self, locked: &mut Locked<'_>, namespace: &Namespace) -> io::Result<u64> {
        locked.mark(&Change::Floor(namespace))?;
        Ok(locked.header.pos)
    }
}

enum Verdict {
    Accepted(Stripe),
    Fenced,
    Older(Stamp),
}

fn parse_cursor(cursor: &Cursor) -> Result<Place> {
    let name = cursor.0.strip_prefix("files-");
    name.and_then(|name| Place::parse(u8::from_str_radix(name.get(..2)?, 16).ok()?, name)).ok_or_else(|| {
        Error::new(ErrorKind::Config, "scan").backend(NAME).message("the cursor is not one of this backend's")
    })
}
