//! Typed values of this process: bounded, and never older than the last removal that this process knows.
//!
//! Owns the table, its fences and what leaves it. Knows nothing of tiers, loads or bytes.

pub(crate) mod fence;
mod resident;

pub(crate) use resident::{Freshness, Resident};

use crate::backend::{Mark, Ticket};
use crate::entry::{EntryKind, Tags};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Namespace;
use crate::stamp::Stamp;
use crate::stats::{Count, Counters};
use equivalent::Equivalent;
use fence::Fences;
use quick_cache::sync::Cache as Table;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter};
use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::Arc;

/// Why an entry left L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EvictReason {
    /// To make room.
    Size,
    /// It was past its physical expiry.
    Expired,
    /// A newer value of the same key took its place.
    Replaced,
    /// It was removed by key or pattern.
    Removed,
    /// One of its tags or its namespace was removed.
    Invalidated,
    /// It was never admitted: it is heavier than the cache allows one entry to be.
    TooLarge,
}

/// Called for each value that leaves L1, on the thread that caused it, with no lock held.
pub(crate) type OnEvict<K, V> = Arc<dyn Fn(&K, &V, EvictReason) + Send + Sync>;

/// A key space inside one L1.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) id: u32,
    pub(crate) namespace: Namespace,
}

/// A key of a space.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Slot<K> {
    pub(crate) space: u32,
    pub(crate) key: K,
}

struct Lookup<'a, Q: ?Sized> {
    space: u32,
    key: &'a Q,
}

impl<K: Hash> Hash for Slot<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.space);
        self.key.hash(state);
    }
}

impl<Q: Hash + ?Sized> Hash for Lookup<'_, Q> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.space);
        self.key.hash(state);
    }
}

impl<K: Borrow<Q>, Q: Eq + ?Sized> Equivalent<Slot<K>> for Lookup<'_, Q> {
    fn equivalent(&self, slot: &Slot<K>) -> bool {
        self.space == slot.space && slot.key.borrow() == self.key
    }
}

/// How much L1 may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) entries_max: u64,
    pub(crate) bytes_max: Option<u64>,
}

pub(crate) struct L1<K, V> {
    table: Table<Slot<K>, Arc<Resident<V>>, Weigh, DefaultHashBuilder, CollectEvicted>,
    fences: Fences,
    hasher: DefaultHashBuilder,
    /// The least that an entry weighs: with limits on both entries and bytes, a share of the bytes that
    /// makes the entries' limit hold as well.
    weight_min: u64,
    on_evict: Option<OnEvict<K, V>>,
}

/// What decides whether a value may enter L1.
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) stamp: Stamp,
    pub(crate) tags: Tags,
    /// `None`: take one once nobody else can write the key.
    pub(crate) ticket: Option<Ticket>,
}

/// What became of a value on its way into L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    Stored,
    Fenced,
    Older(Stamp),
}

impl<K: Hash + Eq + Clone, V> L1<K, V> {
    pub(crate) fn new(limits: Limits, inc: u64, on_evict: Option<OnEvict<K, V>>) -> Result<Self> {
        let capacity = limits.bytes_max.unwrap_or(limits.entries_max);
        let weight_min = limits.bytes_max.map_or(1, |bytes| bytes.div_ceil(limits.entries_max).max(1));
        let hasher = DefaultHashBuilder::default();
        let options = OptionsBuilder::new()
            .estimated_items_capacity(usize::try_from(limits.entries_max).unwrap_or(usize::MAX).min(1 << 24))
            .weight_capacity(capacity)
            .build()
            .map_err(|error| Error::new(ErrorKind::Config, "build").source(error))?;
        Ok(L1 {
            table: Table::with_options(options, Weigh, hasher.clone(), CollectEvicted),
            fences: Fences::new(inc),
            hasher,
            weight_min,
            on_evict,
        })
    }

    /// A ticket for a read, load or set that begins now.
    pub(crate) fn ticket(&self) -> Ticket {
        self.fences.ticket()
    }

    /// Reads a valid entry.
    #[inline]
    pub(crate) fn get<Q>(&self, space: &Space, key: &Q, counters: &Counters) -> Option<Arc<Resident<V>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let resident = self.table.get(&Lookup { space: space.id, key })?;
        let marker_pos = self.fences.marker_pos();
        if resident.checked.load(std::sync::atomic::Ordering::Relaxed) >= marker_pos {
            return Some(resident);
        }
        self.check(space, key, resident, marker_pos, counters)
    }

    /// The slow half of [`get`](Self::get): a marker moved since the entry was last found valid.
    #[cold]
    fn check<Q>(
        &self,
        space: &Space,
        key: &Q,
        resident: Arc<Resident<V>>,
        marker_pos: u64,
        counters: &Counters,
    ) -> Option<Arc<Resident<V>>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.fences.invalid(&space.namespace, &resident.meta.tags, resident.seen).is_none() {
            resident.checked.fetch_max(marker_pos, std::sync::atomic::Ordering::Relaxed);
            return Some(resident);
        }
        self.evict_exact(space, key, &resident, EvictReason::Invalidated, counters);
        None
    }

    /// Whether `resident` still is the entry of its key, and valid.
    pub(crate) fn is_current(&self, space: &Space, key: &K, resident: &Arc<Resident<V>>) -> bool {
        self.table.peek(&Lookup { space: space.id, key }).is_some_and(|there| Arc::ptr_eq(&there, resident))
            && self.fences.invalid(&space.namespace, &resident.meta.tags, resident.seen).is_none()
    }

    /// Puts an entry, unless its ticket or stamp forbid it.
    ///
    /// `make` gets the position that the entry is valid from, and the least it weighs.
    pub(crate) fn publish(
        &self,
        space: &Space,
        key: &K,
        entry: Entry,
        wall_ms: u64,
        counters: &Counters,
        make: impl FnOnce(u64, u64) -> Resident<V>,
    ) -> Published {
        let Entry { kind, stamp, tags, ticket } = entry;
        let lookup = Lookup { space: space.id, key };
        let mut evicted = Vec::new();
        let guard = self.fences.lock(self.hash(space, key));
        let ticket = ticket.unwrap_or_else(|| self.fences.ticket());
        let present = self.table.peek(&lookup);
        let meets_set = present.as_ref().filter(|there| {
            there.is_set()
                && !there.meta.stamp.is_distrusted(wall_ms)
                && self.fences.invalid(&space.namespace, &there.meta.tags, there.seen).is_none()
        });
        let outcome = if let (EntryKind::Set, Some(there)) = (kind, meets_set)
            && there.meta.stamp >= stamp
        {
            let later = there.meta.stamp;
            self.table.remove(&lookup);
            Published::Older(later)
        } else if let Some(seen) = guard.admit(&space.namespace, ticket, kind, &tags, meets_set.is_some()) {
            let resident = Arc::new(make(seen, self.weight_min));
            let slot = Slot { space: space.id, key: key.clone() };
            self.table.insert_with_lifecycle(slot, resident, &mut evicted);
            Published::Stored
        } else {
            if kind == EntryKind::Set {
                guard.remove();
                self.table.remove(&lookup);
            }
            Published::Fenced
        };
        drop(guard);
        if let Some(replaced) = present
            && (outcome == Published::Stored || kind == EntryKind::Set)
        {
            self.report(key, &replaced, EvictReason::Replaced, counters);
        }
        for (slot, resident) in evicted {
            // Only the entry itself can be refused at once; any other was there before.
            let is_new = slot.space == space.id && slot.key == *key;
            let reason = if is_new { EvictReason::TooLarge } else { EvictReason::Size };
            self.report(&slot.key, &resident, reason, counters);
        }
        outcome
    }

    /// Removes a key; returns whether a value was there.
    pub(crate) fn remove(&self, space: &Space, key: &K, counters: &Counters) -> bool {
        let guard = self.fences.lock(self.hash(space, key));
        guard.remove();
        let removed = self.table.remove(&Lookup { space: space.id, key });
        drop(guard);
        let Some((slot, resident)) = removed else { return false };
        let was_valid = self.fences.invalid(&space.namespace, &resident.meta.tags, resident.seen).is_none();
        self.report(&slot.key, &resident, EvictReason::Removed, counters);
        was_valid && resident.value.is_some()
    }

    pub(crate) fn mark(&self, space: &Space, mark: &Mark) {
        self.fences.mark(&space.namespace, mark);
    }

    /// Removes every key that `matches`, and refuses writes of the space that have begun.
    pub(crate) fn remove_matching(
        &self,
        space: &Space,
        counters: &Counters,
        mut matches: impl FnMut(&K) -> bool,
    ) -> u64 {
        self.fences.raise_floor(&space.namespace);
        let keys: Vec<_> = self
            .table
            .iter()
            .filter(|(slot, _)| slot.space == space.id && matches(&slot.key))
            .map(|(slot, _)| slot.key)
            .collect();
        keys.iter().filter(|key| self.remove(space, key, counters)).count() as u64
    }

    /// Drops an entry if it still is this one.
    pub(crate) fn evict_exact<Q>(
        &self,
        space: &Space,
        key: &Q,
        resident: &Arc<Resident<V>>,
        reason: EvictReason,
        counters: &Counters,
    ) where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let lookup = Lookup { space: space.id, key };
        if let Some((slot, resident)) = self.table.remove_if(&lookup, |there| Arc::ptr_eq(there, resident)) {
            self.report(&slot.key, &resident, reason, counters);
        }
    }

    /// Drops what is expired or invalidated.
    pub(crate) fn sweep(&self, now_ms: u64, spaces: &[Arc<Space>], counters: &Counters) -> u64 {
        let mut swept = 0;
        for (slot, resident) in self.table.iter() {
            let Some(space) = spaces.iter().find(|space| space.id == slot.space) else { continue };
            let reason = if resident.is_gone(now_ms) {
                EvictReason::Expired
            } else if self.fences.invalid(&space.namespace, &resident.meta.tags, resident.seen).is_some() {
                EvictReason::Invalidated
            } else {
                continue;
            };
            self.evict_exact(space, &slot.key, &resident, reason, counters);
            swept += 1;
        }
        swept
    }

    /// Valid entries of a space.
    pub(crate) fn list(&self, space: &Space, now_ms: u64) -> Vec<(K, Arc<Resident<V>>)> {
        self.table
            .iter()
            .filter(|(slot, resident)| {
                slot.space == space.id
                    && !resident.is_gone(now_ms)
                    && self.fences.invalid(&space.namespace, &resident.meta.tags, resident.seen).is_none()
            })
            .map(|(slot, resident)| (slot.key, resident))
            .collect()
    }

    /// Whether a removal or set that a reader must see came after `ticket`, apart from tags.
    pub(crate) fn moved(&self, space: &Space, key: &K, ticket: Ticket) -> bool {
        self.fences.moved(&space.namespace, self.hash(space, key), ticket)
    }

    pub(crate) fn fences(&self) -> &Fences {
        &self.fences
    }

    pub(crate) fn len(&self) -> u64 {
        self.table.len() as u64
    }

    pub(crate) fn weight(&self) -> u64 {
        self.table.weight()
    }

    pub(crate) fn weight_max(&self) -> u64 {
        self.table.capacity()
    }

    fn hash<Q: Hash + ?Sized>(&self, space: &Space, key: &Q) -> u64 {
        self.hasher.hash_one(Lookup { space: space.id, key })
    }

    fn report(&self, key: &K, resident: &Resident<V>, reason: EvictReason, counters: &Counters) {
        counters.add(match reason {
            EvictReason::Size => Count::EvictedSize,
            EvictReason::Expired => Count::EvictedExpired,
            EvictReason::Replaced => Count::EvictedReplaced,
            EvictReason::Removed => Count::EvictedRemoved,
            EvictReason::Invalidated => Count::EvictedInvalidated,
            EvictReason::TooLarge => Count::EvictedTooLarge,
        });
        if let (Some(on_evict), Some(value)) = (&self.on_evict, &resident.value) {
            let call = std::panic::AssertUnwindSafe(|| on_evict(key, value, reason));
            if std::panic::catch_unwind(call).is_err() {
                tracing::error!(?reason, "an eviction listener panicked");
            }
        }
    }
}

#[derive(Clone)]
struct Weigh;

impl<K, V> Weighter<Slot<K>, Arc<Resident<V>>> for Weigh {
    fn weight(&self, _: &Slot<K>, resident: &Arc<Resident<V>>) -> u64 {
        resident.weight
    }
}

#[derive(Clone)]
struct CollectEvicted;

impl<K, V> Lifecycle<Slot<K>, Arc<Resident<V>>> for CollectEvicted {
    type RequestState = Vec<(Slot<K>, Arc<Resident<V>>)>;

    fn on_evict(&self, evicted: &mut Self::RequestState, slot: Slot<K>, resident: Arc<Resident<V>>) {
        evicted.push((slot, resident));
    }
}
