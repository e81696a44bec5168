//! Bytes in this process's memory: a tier for tests, for one process, or in front of a slow tier.
//!
//! Entries live in shards behind mutexes; what was removed when is the business of [`Fences`]. A write
//! takes the fence's guard, then the shard; a read takes the shard alone.

use super::quarantine::{QUARANTINED_MAX, Quarantined, Summary};
use super::{
    Backend, Capabilities, Cursor, Exchange, Listed, Mark, Miss, Page, Put, PutOutcome, Read, Removed, Scan,
    Ticket, Usage,
};
use crate::clock::Clock;
use crate::entry::{EntryKind, Meta};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::l1::fence::Fences;
use crate::report::{self, Past, Record, Report};
use crate::rules::{Rule, holds};
use crate::stamp::Stamp;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use crate::sync::{Mutex, MutexGuard};
use async_trait::async_trait;
use bytes::Bytes;
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;

const NAME: &str = "memory";
/// Shards, each with a lock and an even share of the limits.
const SHARDS: usize = if cfg!(larder_shuttle) { 1 } else { 16 };
/// What an entry costs beside key, tags and envelope.
const ENTRY_BYTES: u64 = 160;
/// How often the hand of the eviction spares an entry that was read before it drops what it meets: a
/// bound on the work of one put.
const SPARED_MAX: usize = 64;

/// The settings of a [`MemoryBackend`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryOptions {
    /// Where the time comes from. The system by default.
    #[serde(skip)]
    pub clock: Clock,
    /// Most entries; `None`, the default, is unlimited.
    pub entries_max: Option<u64>,
    /// Most bytes of keys, tags and envelopes, with 160 for each entry; `None`, the default, is unlimited.
    pub bytes_max: Option<u64>,
}

/// A tier in memory.
///
/// The limits are split evenly over 16 shards, so an entry may take at most a sixteenth of `bytes_max`,
/// and eviction may begin a little before a limit is reached. Eviction is first in, first out with a
/// second chance for what was read.
pub struct MemoryBackend {
    clock: Clock,
    fences: Fences,
    shards: Box<[Mutex<Shard>]>,
    shard_limits: Limits,
    last_stamp: Mutex<Option<Stamp>>,
    /// Where the next sweep begins.
    sweep_from: AtomicU64,
    is_closed: AtomicBool,
    quarantine: Mutex<VecDeque<Quarantined>>,
}

#[derive(Clone, Copy)]
struct Limits {
    entries: u64,
    bytes: u64,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<EntryKey, Entry>,
    /// In the order of arrival, for the eviction. A key whose entry is gone or came later is skipped.
    queue: VecDeque<(EntryKey, u64)>,
    arrivals: u64,
    bytes: u64,
}

struct Entry {
    sealed: Bytes,
    meta: Meta,
    seen: u64,
    arrival: u64,
    bytes: u64,
    was_read: bool,
    /// Reports about it, once there are any.
    reports: Option<Box<Record>>,
}

impl MemoryBackend {
    /// An empty tier.
    pub fn new(options: MemoryOptions) -> Self {
        let MemoryOptions { clock, entries_max, bytes_max } = options;
        let share = |max: Option<u64>| max.map_or(u64::MAX, |max| max.div_ceil(SHARDS as u64));
        MemoryBackend {
            clock,
            fences: Fences::new(fastrand::u64(..)),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_limits: Limits { entries: share(entries_max), bytes: share(bytes_max) },
            last_stamp: Mutex::new(None),
            sweep_from: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            quarantine: Mutex::default(),
        }
    }

    /// The last 64 entries that failed authentication, the oldest first.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.quarantine.lock().iter().cloned().collect()
    }

    /// Empties the quarantine, and with it the note of it.
    pub fn forget_quarantined(&self) {
        self.quarantine.lock().clear();
    }

    fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.is_closed.load(Relaxed) {
            return Err(Error::new(ErrorKind::Closed, operation).backend(NAME));
        }
        Ok(())
    }

    fn shard(&self, key: &EntryKey) -> MutexGuard<'_, Shard> {
        // The stripes of the fences take the low bits.
        self.shards[(key.hash64() >> 48) as usize % SHARDS].lock()
    }

    /// Why an entry is not valid, if it isn't.
    fn why_invalid(&self, key: &EntryKey, entry: &Entry, now_ms: u64) -> Option<Miss> {
        self.fences.invalid(key.namespace(), &entry.meta.tags, entry.seen).or_else(|| {
            if entry.meta.stamp.is_distrusted(now_ms) {
                Some(Miss::Clock)
            } else {
                entry.meta.is_gone(now_ms).then_some(Miss::Expired)
            }
        })
    }

    fn store(&self, put: Put, now_ms: u64) -> Result<PutOutcome> {
        let Put { key, meta, sealed, ticket } = put;
        let tags: usize = meta.tags.iter().map(str::len).sum();
        let bytes = ENTRY_BYTES + (key.as_bytes().len() + tags + sealed.len()) as u64;
        if bytes > self.shard_limits.bytes {
            return Err(Error::new(ErrorKind::TooLarge, "put").backend(NAME).key(&key.text()).message(
                format!(
                    "the entry takes {bytes} bytes; at most {} are allowed, a sixteenth of bytes_max",
                    self.shard_limits.bytes
                ),
            ));
        }
        let guard = self.fences.lock(key.hash64());
        let mut shard = self.shard(&key);
        let was_valid =
            shard.entries.get(&key).is_some_and(|entry| self.why_invalid(&key, entry, now_ms).is_none());
        let valid_set = shard
            .entries
            .get(&key)
            .filter(|entry| was_valid && entry.meta.kind == EntryKind::Set)
            .map(|entry| entry.meta.stamp);
        // Before the fences: a refused set acts as a removal, which a later set doesn't deserve.
        if meta.kind == EntryKind::Set
            && holds(Rule::StampOrder)
            && let Some(later) = valid_set.filter(|stamp| *stamp >= meta.stamp)
        {
            return Ok(PutOutcome::Older(later));
        }
        let Some(seen) = guard.admit(key.namespace(), ticket, meta.kind, &meta.tags, valid_set.is_some())
        else {
            if meta.kind == EntryKind::Set && holds(Rule::RefusedSetRemoves) {
                guard.remove();
                shard.delete(&key);
            }
            return Ok(PutOutcome::Fenced);
        };
        if meta.kind == EntryKind::Set && !meta.stamp.is_distrusted(now_ms) {
            let mut last = self.last_stamp.lock();
            *last = (*last).max(Some(meta.stamp));
        }
        let reports = shard.entries.get_mut(&key).and_then(|entry| entry.reports.take());
        // They end with an entry that is not valid any more, even if its place is taken over.
        let reports = if was_valid { reports } else { None };
        shard.insert(key, Entry { sealed, meta, seen, arrival: 0, bytes, was_read: false, reports });
        shard.evict(self.shard_limits);
        Ok(PutOutcome::Stored)
    }

    /// Deletes what `is_unwanted` says of one shard; how many of those were valid, and how many there were.
    fn delete_where(
        &self,
        shard: &Mutex<Shard>,
        limit: usize,
        is_unwanted: impl Fn(&EntryKey, &Entry) -> bool,
    ) -> (u64, u64) {
        let now_ms = self.clock.wall_ms();
        let mut shard = shard.lock();
        let found: Vec<EntryKey> = shard
            .entries
            .iter()
            .filter(|(key, entry)| is_unwanted(key, entry))
            .take(limit)
            .map(|(key, _)| key.clone())
            .collect();
        let mut valid = 0;
        for key in &found {
            let is_valid = shard.entries.get(key).is_some_and(|e| self.why_invalid(key, e, now_ms).is_none());
            valid += u64::from(is_valid);
            shard.delete(key);
        }
        (valid, found.len() as u64)
    }
}

impl Shard {
    fn insert(&mut self, key: EntryKey, mut entry: Entry) {
        self.arrivals += 1;
        entry.arrival = self.arrivals;
        self.queue.push_back((key.clone(), entry.arrival));
        self.bytes += entry.bytes;
        if let Some(old) = self.entries.insert(key, entry) {
            self.bytes -= old.bytes;
        }
        // Places of entries that are gone: without this, overwriting one key would grow the queue for ever.
        if self.queue.len() > 2 * self.entries.len() + 64 {
            let Shard { queue, entries, .. } = self;
            queue.retain(|(key, arrival)| entries.get(key).is_some_and(|entry| entry.arrival == *arrival));
        }
    }

    /// Puts an envelope in the place of another, if that is still there.
    fn exchange(&mut self, key: &EntryKey, old: &Bytes, new: Bytes, limits: Limits) -> bool {
        let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.sealed == *old) else {
            return false;
        };
        let bytes = (entry.bytes + new.len() as u64).saturating_sub(old.len() as u64);
        self.bytes = self.bytes - entry.bytes + bytes;
        (entry.sealed, entry.bytes) = (new, bytes);
        self.evict(limits);
        true
    }

    fn delete(&mut self, key: &EntryKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    fn evict(&mut self, limits: Limits) {
        let mut spared = 0;
        while self.entries.len() as u64 > limits.entries || self.bytes > limits.bytes {
            let Some((key, arrival)) = self.queue.pop_front() else { return };
            let Some(entry) = self.entries.get_mut(&key).filter(|entry| entry.arrival == arrival) else {
                continue;
            };
            if std::mem::take(&mut entry.was_read) && spared < SPARED_MAX {
                spared += 1;
                self.queue.push_back((key, arrival));
            } else {
                self.delete(&key);
            }
        }
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: false, scan: true }
    }

    async fn get(&self, key: &EntryKey) -> Result<Read> {
        self.check_open("get")?;
        let now_ms = self.clock.wall_ms();
        let mut shard = self.shard(key);
        // With the shard held, as in `remove`: whoever finds an entry has a ticket from before its removal.
        let ticket = self.fences.ticket();
        let found = match shard.entries.get_mut(key) {
            None => Err(Miss::Absent),
            Some(entry) => match self.why_invalid(key, entry, now_ms) {
                Some(miss) => Err(miss),
                None => {
                    entry.was_read = true;
                    Ok(entry.sealed.clone())
                }
            },
        };
        Ok(Read { ticket, found })
    }

    async fn ticket(&self, _: &EntryKey) -> Result<Ticket> {
        self.check_open("ticket")?;
        Ok(self.fences.ticket())
    }

    async fn put(&self, put: Put) -> Result<PutOutcome> {
        self.check_open("put")?;
        self.store(put, self.clock.wall_ms())
    }

    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        self.check_open("remove")?;
        let guard = self.fences.lock(key.hash64());
        let mut shard = self.shard(key);
        guard.remove();
        let removed = shard.delete(key);
        drop(shard);
        let was_valid =
            removed.is_some_and(|entry| self.why_invalid(key, &entry, self.clock.wall_ms()).is_none());
        Ok(if was_valid { Removed::Existed } else { Removed::Absent })
    }

    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        self.check_open("discard")?;
        let mut shard = self.shard(key);
        if shard.entries.get(key).is_some_and(|entry| entry.sealed == *sealed) {
            shard.delete(key);
        }
        Ok(())
    }

    async fn exchange_many(&self, exchanges: Vec<Exchange>) -> Vec<Result<bool>> {
        let exchange = |Exchange { key, old, new }: Exchange| {
            self.check_open("exchange")?;
            Ok(self.shard(&key).exchange(&key, &old, new, self.shard_limits))
        };
        exchanges.into_iter().map(exchange).collect()
    }

    async fn quarantine(&self, key: &EntryKey, sealed: &Bytes, why: &'static str) -> Result<()> {
        self.check_open("quarantine")?;
        let mut shard = self.shard(key);
        if shard.entries.get(key).is_none_or(|entry| entry.sealed != *sealed) {
            return Ok(());
        }
        shard.delete(key);
        drop(shard);
        let mut quarantine = self.quarantine.lock();
        if quarantine.len() == QUARANTINED_MAX {
            quarantine.pop_front();
        }
        quarantine.push_back(Quarantined::new(key, sealed, why, self.clock.wall_ms()));
        Ok(())
    }

    async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        Ok(MemoryBackend::quarantined(self))
    }

    async fn forget_quarantined(&self) -> Result<()> {
        MemoryBackend::forget_quarantined(self);
        Ok(())
    }

    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        self.check_open("mark")?;
        self.fences.mark(namespace, mark);
        Ok(())
    }

    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        self.check_open("remove_matching")?;
        // Before anything is deleted: what a load in flight writes after its shard was passed is refused.
        self.fences.raise_floor(namespace);
        let floor = self.fences.ticket().pos;
        let matches = |key: &EntryKey, entry: &Entry| {
            entry.seen < floor && key.namespace() == namespace && pattern.matches(&key.text())
        };
        Ok(self.shards.iter().map(|shard| self.delete_where(shard, usize::MAX, matches).0).sum())
    }

    async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        self.check_open("scan")?;
        let after = parse_cursor(scan.after.as_ref(), "scan")?;
        let now_ms = self.clock.wall_ms();
        let mut found: Vec<(u64, Listed)> = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            for (key, entry) in &shard.entries {
                let is_wanted = key.namespace() == scan.namespace
                    && after.is_none_or(|after| key.hash64() > after)
                    && self.why_invalid(key, entry, now_ms).is_none()
                    && scan.pattern.is_none_or(|pattern| pattern.matches(&key.text()));
                if is_wanted {
                    let gone_at_ms = entry.meta.gone_at_ms;
                    let sealed_bytes = entry.sealed.len() as u64;
                    found.push((key.hash64(), Listed { key: key.clone(), gone_at_ms, sealed_bytes }));
                }
            }
        }
        let (entries, next) = page_of(found, scan.limit);
        Ok(Page { entries, next })
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.check_open("scan")?;
        let mut names = BTreeSet::new();
        for shard in &self.shards {
            for key in shard.lock().entries.keys() {
                if !names.contains(key.namespace()) {
                    names.insert(key.namespace().clone());
                }
            }
        }
        Ok(names.into_iter().collect())
    }

    async fn sweep(&self, limit: usize) -> Result<u64> {
        self.check_open("sweep")?;
        let now_ms = self.clock.wall_ms();
        let from = self.sweep_from.load(Relaxed) as usize;
        let mut freed = 0;
        for i in from..from + SHARDS {
            let left = limit - freed as usize;
            if left == 0 {
                break;
            }
            let is_invalid = |key: &EntryKey, entry: &Entry| {
                // A distrusted stamp may be trusted once the clock is set right.
                matches!(self.why_invalid(key, entry, now_ms), Some(miss) if miss != Miss::Clock)
            };
            freed += self.delete_where(&self.shards[i % SHARDS], left, is_invalid).1;
            self.sweep_from.store((i % SHARDS) as u64, Relaxed);
        }
        Ok(freed)
    }

    async fn usage(&self) -> Result<Usage> {
        self.check_open("usage")?;
        let mut usage = Usage::default();
        for shard in &self.shards {
            let shard = shard.lock();
            usage.entries += shard.entries.len() as u64;
            usage.bytes += shard.bytes;
        }
        Ok(usage)
    }

    fn keeps_reports(&self) -> bool {
        true
    }

    async fn report(&self, key: &EntryKey, report: &Report) -> Result<Option<u32>> {
        self.check_open("report")?;
        let now_ms = self.clock.wall_ms();
        let mut shard = self.shard(key);
        let Some(entry) = shard.entries.get_mut(key) else { return Ok(None) };
        if self.why_invalid(key, entry, now_ms).is_some() {
            return Ok(None);
        }
        Ok(Some(entry.reports.get_or_insert_default().add(report, now_ms)))
    }

    async fn history(&self, key: &EntryKey) -> Result<Vec<Past>> {
        self.check_open("history")?;
        let now_ms = self.clock.wall_ms();
        let shard = self.shard(key);
        let entry = shard.entries.get(key).filter(|entry| self.why_invalid(key, entry, now_ms).is_none());
        let record = entry.and_then(|entry| entry.reports.as_ref());
        Ok(record.map_or(Vec::new(), |record| record.kept.iter().rev().cloned().collect()))
    }

    async fn standings(&self, namespace: &Namespace, query: &report::Query) -> Result<report::Page> {
        self.check_open("standings")?;
        let after = query.after.clone().map(Cursor);
        let after = parse_cursor(after.as_ref(), "standings")?;
        let now_ms = self.clock.wall_ms();
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            for (key, entry) in &shard.entries {
                let Some(record) = &entry.reports else { continue };
                if key.namespace() != namespace
                    || after.is_some_and(|after| key.hash64() <= after)
                    || self.why_invalid(key, entry, now_ms).is_some()
                {
                    continue;
                }
                let standing = record.standing(key);
                if query.takes(standing.source.as_deref(), standing.verdict, standing.accessed_ms) {
                    found.push((key.hash64(), standing));
                }
            }
        }
        let (entries, next) = page_of(found, query.limit);
        Ok(report::Page { entries, next: next.map(|Cursor(cursor)| cursor) })
    }

    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        self.check_open("last_stamp")?;
        Ok(*self.last_stamp.lock())
    }

    async fn ping(&self) -> Result<()> {
        self.check_open("ping")
    }

    fn notes(&self) -> Vec<String> {
        let quarantine = self.quarantine.lock();
        let summary = quarantine.back().map(|last| Summary {
            entries: quarantine.len() as u64,
            last_ms: last.wall_ms,
            last_reason: last.reason.clone(),
        });
        summary.and_then(|summary| summary.note()).into_iter().collect()
    }

    async fn close(&self) -> Result<()> {
        self.is_closed.store(true, SeqCst);
        for shard in &self.shards {
            *shard.lock() = Shard::default();
        }
        Ok(())
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend").finish_non_exhaustive()
    }
}

/// The hash after which a page begins.
fn parse_cursor(cursor: Option<&Cursor>, operation: &'static str) -> Result<Option<u64>> {
    let bad_cursor = || {
        Error::new(ErrorKind::Config, operation)
            .backend(NAME)
            .message("the cursor is not one of this backend's")
    };
    cursor.map(|Cursor(text)| u64::from_str_radix(text, 16).map_err(|_| bad_cursor())).transpose()
}

/// The first of what was found, in the order of hashes, and where to go on.
fn page_of<T>(mut found: Vec<(u64, T)>, limit: usize) -> (Vec<T>, Option<Cursor>) {
    found.sort_unstable_by_key(|(hash, _)| *hash);
    let is_end = found.len() <= limit.max(1);
    found.truncate(limit.max(1));
    let next = if is_end { None } else { found.last().map(|(hash, _)| Cursor(format!("{hash:x}"))) };
    (found.into_iter().map(|(_, one)| one).collect(), next)
}
