//! Typed values of this process: bounded, and never older than the last removal that this process knows.
//!
//! Owns the table, its fences and what leaves it. Knows nothing of tiers, loads or bytes.

pub(crate) mod fence;
mod resident;
#[allow(unreachable_pub, reason = "larder-bench reaches it through `unstable-table`")]
#[cfg_attr(
    not(feature = "unstable-table"),
    allow(dead_code, reason = "the benchmarks and tests ask for more than the cache does")
)]
pub mod table;

pub(crate) use resident::{Freshness, Now, Provenance, Resident};

use crate::backend::{Mark, Ticket};
use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, Meta, Tags};
use crate::key::Namespace;
use crate::options::EntryOptions;
use crate::rules::{Rule, holds};
use crate::stamp::Stamp;
use crate::stats::{Count, Counters};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use equivalent::Equivalent;
use fence::Fences;
use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use table::{Gone, Pin, Table, Terms};

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
    /// It was never admitted: it is heavier than the cache allows one entry to be, or what is pinned leaves
    /// no room for it.
    TooLarge,
    /// It was reported bad too often in a row: see [`Cache::report`](crate::Cache::report).
    Health,
}

impl From<Gone> for EvictReason {
    fn from(gone: Gone) -> Self {
        match gone {
            Gone::Replaced => EvictReason::Replaced,
            Gone::Evicted => EvictReason::Size,
            Gone::TooHeavy => EvictReason::TooLarge,
        }
    }
}

/// Called for each value that leaves L1, on the thread that caused it, with no lock held.
pub(crate) type OnEvict<K, V> = Arc<dyn Fn(&K, &V, EvictReason) + Send + Sync>;

/// A key space inside one L1.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) id: u64,
    pub(crate) namespace: Namespace,
}

impl Space {
    const UNBOUND: u64 = u64::MAX;

    /// The space of a view that has no tenant yet: nothing is ever read from it or kept in it.
    pub(crate) fn unbound(namespace: Namespace) -> Self {
        Space { id: Self::UNBOUND, namespace }
    }

    #[inline]
    pub(crate) fn is_unbound(&self) -> bool {
        self.id == Self::UNBOUND
    }
}

/// A key of a space.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Slot<K> {
    pub(crate) space: u64,
    pub(crate) key: K,
}

struct Lookup<'a, Q: ?Sized> {
    space: u64,
    key: &'a Q,
}

impl<K: Hash> Hash for Slot<K> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.space);
        self.key.hash(state);
    }
}

impl<Q: Hash + ?Sized> Hash for Lookup<'_, Q> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.space);
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
    table: Table<Slot<K>, Resident<V>>,
    fences: Fences,
    trust: Trust,
    /// The least that an entry weighs: with limits on both entries and bytes, a share of the bytes that
    /// makes the entries' limit hold as well.
    weight_min: u64,
    limit: Mutex<Limit>,
    on_evict: Option<OnEvict<K, V>>,
    counters: Arc<Counters>,
}

/// Until when this node believes to know what other nodes removed; later, it serves what was known not to be
/// outdated a short while ago.
struct Trust {
    /// In milliseconds of the monotonic clock; for ever where there are no other nodes.
    until_ms: AtomicU64,
    /// For how long an entry may be served that was known not to be outdated.
    serve_ms: AtomicU64,
}

impl Trust {
    #[inline]
    fn lasts(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms.load(Relaxed) || !holds(Rule::Suspect)
    }

    fn allows(&self, known_ms: u64, now_ms: u64) -> bool {
        self.lasts(now_ms) || now_ms < known_ms.saturating_add(self.serve_ms.load(Relaxed))
    }
}

/// The limit that was asked for, and the share of it that memory pressure leaves.
#[derive(Clone, Copy)]
struct Limit {
    asked: u64,
    share: f64,
}

/// A value on its way into L1.
pub(crate) struct Entry<V> {
    /// `None`: an absence to remember.
    pub(crate) value: Option<V>,
    pub(crate) meta: Meta,
    /// `None`: take one once nobody else can write the key.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) weight: u64,
    /// The position of the tier that it was copied from, from 1; 0: from none.
    pub(crate) from_tier: u8,
    pub(crate) provenance: Option<Provenance>,
}

/// A copy of an entry, for those who may have to serve it when it is stale.
#[derive(Clone)]
pub(crate) struct Seen<V> {
    pub(crate) value: Option<V>,
    pub(crate) meta: Meta,
    pub(crate) from_tier: u8,
}

/// What a read met in L1.
pub(crate) enum Met<V, A> {
    /// A fresh value.
    Value(V),
    /// A remembered absence that is fresh.
    Absence,
    /// Something else, to be served or not.
    Aged(A),
    /// What was invalidated; inside of L1 only.
    Invalid,
    Nothing,
}

impl<V: Clone, A> Met<V, A> {
    /// What is fresh in an entry.
    #[inline]
    pub(crate) fn fresh(value: &Option<V>) -> Self {
        value.as_ref().map_or(Met::Absence, |value| Met::Value(value.clone()))
    }
}

/// What became of a value on its way into L1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    Stored,
    Fenced,
    Older(Stamp),
    /// Heavier than its part of the limit less what is pinned there.
    TooLarge,
}

impl<K: Hash + Eq + Clone, V: Clone> L1<K, V> {
    pub(crate) fn new(
        limits: Limits,
        inc: u64,
        on_evict: Option<OnEvict<K, V>>,
        counters: Arc<Counters>,
    ) -> Self {
        let table = Table::new(table::Limits {
            weight_max: limits.bytes_max.unwrap_or(limits.entries_max),
            entries_hint: usize::try_from(limits.entries_max).unwrap_or(usize::MAX),
            shards: None,
            seed: None,
        });
        let weight_min = limits.bytes_max.map_or(1, |bytes| bytes.div_ceil(limits.entries_max).max(1));
        let limit = Mutex::new(Limit { asked: table.weight_max(), share: 1.0 });
        let trust = Trust { until_ms: AtomicU64::new(NEVER_MS), serve_ms: AtomicU64::new(0) };
        L1 { table, fences: Fences::new(inc), trust, weight_min, limit, on_evict, counters }
    }

    /// A ticket for a read, load or set that begins now.
    pub(crate) fn ticket(&self) -> Ticket {
        self.fences.ticket()
    }

    /// Reads a valid entry. `read` runs under a lock: it looks, clones and returns.
    pub(crate) fn get<Q, R>(
        &self,
        space: &Space,
        key: &Q,
        now_ms: u64,
        read: impl FnOnce(&Resident<V>) -> R,
    ) -> Option<R>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let marker_pos = self.marker_pos(now_ms);
        let found = self.table.get(&Lookup { space: space.id, key }, |resident| {
            let is_valid = resident.checked() >= marker_pos || self.is_valid(space, resident, now_ms);
            if is_valid { Some(read(resident)) } else { None }
        });
        if let Some(None) = found {
            self.evict_invalid(space, key);
        }
        found?
    }

    /// [`get`](Self::get) for a hit: what is valid and fresh with nothing else to decide is cloned and counted
    /// as read. Of any other entry that is valid, `weigh` decides.
    #[inline]
    pub(crate) fn hit<Q, A>(
        &self,
        space: &Space,
        key: &Q,
        now_ms: u64,
        turn: impl FnOnce() -> u64,
        weigh: impl FnOnce(&Resident<V>) -> Met<V, A>,
    ) -> Met<V, A>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let marker_pos = self.marker_pos(now_ms);
        let found = self.table.get(&Lookup { space: space.id, key }, |resident| {
            if resident.plain_hit(now_ms, marker_pos, turn) {
                return Met::fresh(&resident.value);
            }
            let is_valid = resident.checked() >= marker_pos || self.is_valid(space, resident, now_ms);
            if is_valid { weigh(resident) } else { Met::Invalid }
        });
        match found {
            Some(Met::Invalid) => {
                self.evict_invalid(space, key);
                Met::Nothing
            }
            Some(met) => met,
            None => Met::Nothing,
        }
    }

    /// Drops an entry that was found invalid, if what is there now is invalid as well.
    #[cold]
    fn evict_invalid<Q>(&self, space: &Space, key: &Q)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let is_invalid = |there: &Resident<V>| self.is_outdated(space, there);
        let removed = self.table.remove_if(&Lookup { space: space.id, key }, is_invalid);
        self.report_one(removed, EvictReason::Invalidated);
    }

    /// What an entry must have been checked at to be served without another look: beyond every position while this
    /// node may have missed what others removed.
    #[inline]
    fn marker_pos(&self, now_ms: u64) -> u64 {
        if self.trust.lasts(now_ms) { self.fences.marker_pos() } else { u64::MAX }
    }

    /// The slow half of [`get`](Self::get): a marker moved since the entry was last found valid, or this node may have
    /// missed what others removed.
    #[cold]
    fn is_valid(&self, space: &Space, resident: &Resident<V>, now_ms: u64) -> bool {
        // What was valid at `checked` has no older marker against it, so `checked` stands for where it was
        // written.
        let marker_pos = self.fences.marker_pos();
        if self.is_outdated(space, resident) {
            return false;
        }
        resident.set_checked(marker_pos);
        self.is_trusted(resident, now_ms)
    }

    /// Whether a marker is against it.
    fn is_outdated(&self, space: &Space, resident: &Resident<V>) -> bool {
        let name = resident.provenance().map(|provenance| provenance.name);
        self.fences.invalid_named(&space.namespace, resident.tags(), name, resident.checked()).is_some()
    }

    /// Whether it may be served as far as other nodes are concerned.
    fn is_trusted(&self, resident: &Resident<V>, now_ms: u64) -> bool {
        let known_ms = resident.provenance().map_or(0, |provenance| provenance.known_ms);
        self.trust.allows(known_ms, now_ms)
    }

    /// Whether what was known not to be outdated at `known_ms` may be served.
    pub(crate) fn trusts(&self, known_ms: u64, now_ms: u64) -> bool {
        self.trust.allows(known_ms, now_ms)
    }

    /// Until when this node knows what others removed, and for how long it serves afterwards what was known not to be
    /// outdated.
    pub(crate) fn set_trust(&self, until_ms: u64, serve_ms: u64) {
        self.trust.serve_ms.store(serve_ms, Relaxed);
        self.trust.until_ms.store(until_ms, Relaxed);
    }

    /// Whether this node may have missed what others removed.
    pub(crate) fn is_suspect(&self, now_ms: u64) -> bool {
        !self.trust.lasts(now_ms)
    }

    /// Removes what other nodes changed, by the hashes of the names that the shared tier knows the keys by.
    pub(crate) fn remove_named(&self, names: impl IntoIterator<Item = u64>) {
        if !self.fences.remove_named(names) {
            return;
        }
        // Each entry is compared with the names once; then none of them has to be remembered.
        let upto = self.fences.marker_pos();
        let is_named = |resident: &Resident<V>| {
            let name = resident.provenance().map(|provenance| provenance.name);
            self.fences.is_named(name, resident.checked())
        };
        let pick = |slot: &Slot<K>, resident: &Resident<V>| is_named(resident).then(|| slot.clone());
        self.scan(pick, |slot| {
            let removed = self.table.remove_if(&Lookup { space: slot.space, key: &slot.key }, is_named);
            self.report_one(removed, EvictReason::Invalidated);
        });
        self.fences.forget_names(upto);
    }

    /// Removes everything.
    pub(crate) fn clear_all(&self) {
        self.fences.clear_all();
    }

    /// A copy of a valid entry that is not physically expired.
    pub(crate) fn seen<Q>(&self, space: &Space, key: &Q, now: Now) -> Option<Seen<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.get(space, key, now.mono_ms, |resident| resident.seen(now))
            .filter(|seen| !seen.meta.is_gone(now.wall_ms))
    }

    /// Serves an entry without another load until `retry_at_ms`, if it still is the one of `stamp`, valid
    /// and not expired; returns whether it is.
    pub(crate) fn throttle(&self, space: &Space, key: &K, stamp: Stamp, now: Now, retry_at_ms: u64) -> bool {
        let _guard = self.fences.lock(self.table.hash(&Lookup { space: space.id, key }));
        let throttled = self.peek(space, key, now.mono_ms, |resident| {
            let is_same = resident.stamp() == stamp && !resident.is_gone(now.mono_ms);
            if is_same {
                resident.throttle(retry_at_ms);
            }
            is_same
        });
        throttled.unwrap_or(false)
    }

    /// Looks at a valid entry. Counts as no access and drops nothing.
    pub(crate) fn peek<R>(
        &self,
        space: &Space,
        key: &K,
        now_ms: u64,
        read: impl FnOnce(&Resident<V>) -> R,
    ) -> Option<R> {
        let found = self.table.peek(&Lookup { space: space.id, key }, |resident| {
            let is_valid = !self.is_outdated(space, resident) && self.is_trusted(resident, now_ms);
            is_valid.then(|| read(resident))
        });
        found.flatten()
    }

    /// Whether the entry of `stamp` still is the one of its key, valid and not expired. If so, no ticket that was
    /// taken before knows of a removal of it.
    pub(crate) fn is_current(&self, space: &Space, key: &K, stamp: Stamp, now: Now) -> bool {
        // A removal counts first and deletes then: without the guard, its entry could be met in between.
        let _guard = self.fences.lock(self.table.hash(&Lookup { space: space.id, key }));
        let is_it = |resident: &Resident<V>| resident.stamp() == stamp && !resident.is_gone(now.mono_ms);
        self.peek(space, key, now.mono_ms, is_it).unwrap_or(false)
    }

    /// Puts an entry, unless its ticket or stamp forbid it.
    pub(crate) fn publish(
        &self,
        space: &Space,
        key: &K,
        entry: Entry<V>,
        options: &EntryOptions,
        now: Now,
    ) -> Published {
        let Entry { value, meta, ticket, weight, from_tier, provenance } = entry;
        let lookup = Lookup { space: space.id, key };
        let hash = self.table.hash(&lookup);
        let guard = self.fences.lock(hash);
        let ticket = ticket.unwrap_or_else(|| self.fences.ticket());
        let meets_set = self.table.peek_hashed(hash, &lookup, |there| {
            let is_ordered = there.kind == EntryKind::Set
                && !there.stamp().is_distrusted(now.wall_ms)
                && !self.is_outdated(space, there);
            is_ordered.then_some(there.stamp())
        });
        let meets_set = meets_set.flatten();
        if let (EntryKind::Set, Some(later)) = (meta.kind, meets_set.filter(|&there| there >= meta.stamp))
            && holds(Rule::StampOrder)
        {
            let removed = self.table.remove(&lookup);
            drop(guard);
            self.report_one(removed, EvictReason::Replaced);
            return Published::Older(later);
        }
        let name = provenance.map(|provenance| provenance.name);
        let seen =
            guard.admit_named(&space.namespace, name, ticket, meta.kind, &meta.tags, meets_set.is_some());
        let Some(seen) = seen else {
            if meta.kind == EntryKind::Load || !holds(Rule::RefusedSetRemoves) {
                return Published::Fenced;
            }
            guard.remove();
            let removed = self.table.remove(&lookup);
            drop(guard);
            self.report_one(removed, EvictReason::Replaced);
            return Published::Fenced;
        };
        // An absence is never worth room that others can't have.
        let pin = if options.is_pinned && value.is_some() { Pin::Pinned } else { Pin::Evictable };
        let resident = Resident::new(value, &meta, seen, options, now, from_tier, provenance);
        let terms =
            Terms { weight: weight.max(self.weight_min), expires_at_ms: resident.expires_at_ms(), pin };
        let slot = Slot { space: space.id, key: key.clone() };
        let gone = self.table.insert_hashed(hash, slot, resident, terms);
        drop(guard);
        let mut published = Published::Stored;
        gone.hand_out(&mut |slot, resident, reason| {
            if reason == Gone::TooHeavy {
                published = Published::TooLarge;
            }
            self.report(&slot.key, &resident, reason.into());
        });
        published
    }

    /// Changes the limit, in the unit of its weights; false if what is pinned does not fit.
    pub(crate) fn resize(&self, weight_max: u64) -> bool {
        self.limit_to(|limit| limit.asked = weight_max)
    }

    /// Leaves L1 a share of the limit that was asked for; false if what is pinned does not fit.
    pub(crate) fn squeeze(&self, share: f64) -> bool {
        self.limit_to(|limit| limit.share = share)
    }

    fn limit_to(&self, change: impl FnOnce(&mut Limit)) -> bool {
        {
            let mut limit = self.limit.lock();
            let mut changed = *limit;
            change(&mut changed);
            let weight_max = (changed.asked as f64 * changed.share).max(1.0) as u64;
            // Exactly what was asked for, also above the 53 bits of a fraction.
            let weight_max = if changed.share < 1.0 { weight_max } else { changed.asked };
            let is_same = weight_max == self.table.weight_max();
            if !is_same && !self.table.try_set_weight_max(weight_max) {
                return false;
            }
            *limit = changed;
            if is_same {
                return true;
            }
        }
        // The listener may change the limit as well, so no lock is held.
        self.table.shrink(&mut |slot, resident, reason| self.report(&slot.key, &resident, reason.into()));
        true
    }

    /// Removes a key; returns whether a valid value was there.
    pub(crate) fn remove(&self, space: &Space, key: &K) -> bool {
        self.remove_for(space, key, EvictReason::Removed)
    }

    /// [`remove`](Self::remove), for a reason of its own.
    pub(crate) fn remove_for(&self, space: &Space, key: &K, reason: EvictReason) -> bool {
        let lookup = Lookup { space: space.id, key };
        let guard = self.fences.lock(self.table.hash(&lookup));
        guard.remove();
        let removed = self.table.remove(&lookup);
        drop(guard);
        let was_there = removed
            .as_ref()
            .is_some_and(|(_, resident)| resident.value.is_some() && !self.is_outdated(space, resident));
        self.report_one(removed, reason);
        was_there
    }

    pub(crate) fn mark(&self, space: &Space, mark: &Mark) {
        self.fences.mark(&space.namespace, mark);
    }

    /// Removes every key that `matches`, and refuses writes of the space that have begun.
    pub(crate) fn remove_matching(&self, space: &Space, mut matches: impl FnMut(&K) -> bool) -> u64 {
        self.fences.raise_floor(&space.namespace);
        let mut removed = 0;
        self.scan(
            |slot, _| (slot.space == space.id).then(|| slot.key.clone()),
            |key| {
                if matches(&key) && self.remove(space, &key) {
                    removed += 1;
                }
            },
        );
        removed
    }

    /// Drops an entry if it still is the one of `stamp`.
    pub(crate) fn evict<Q>(&self, space: &Space, key: &Q, stamp: Stamp, reason: EvictReason)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let removed = self.table.remove_if(&Lookup { space: space.id, key }, |there| there.stamp() == stamp);
        self.report_one(removed, reason);
    }

    /// Drops what is past its physical expiry, in at most `steps` steps; returns how many entries that were.
    /// What was invalidated goes when it is read or evicted.
    pub(crate) fn expire(&self, now_ms: u64, steps: usize) -> u64 {
        let mut expired = 0;
        self.table.expire(now_ms, steps, &mut |slot: Slot<K>, resident| {
            expired += 1;
            self.report(&slot.key, &resident, EvictReason::Expired);
        });
        expired
    }

    /// Copies of the valid entries of a space, with their weights in bytes unknown to it.
    pub(crate) fn list(&self, space: &Space, now: Now, mut each: impl FnMut(K, Seen<V>)) {
        let copy = |slot: &Slot<K>, resident: &Resident<V>| {
            let is_listed = slot.space == space.id
                && !resident.is_gone(now.mono_ms)
                && !self.is_outdated(space, resident);
            is_listed.then(|| (slot.key.clone(), resident.seen(now)))
        };
        self.scan(copy, |(key, seen)| each(key, seen));
    }

    /// Whether a removal or set that a reader must see came after `ticket`, apart from tags.
    pub(crate) fn moved(&self, space: &Space, key: &K, name: Option<u64>, ticket: Ticket) -> bool {
        self.fences.moved(&space.namespace, self.table.hash(&Lookup { space: space.id, key }), name, ticket)
    }

    /// Whether one of the tags was removed after `ticket`.
    pub(crate) fn tags_moved(&self, space: &Space, tags: &Tags, ticket: Ticket) -> bool {
        self.fences.tags_moved(&space.namespace, tags, ticket)
    }

    pub(crate) fn len(&self) -> u64 {
        self.table.len() as u64
    }

    pub(crate) fn weight(&self) -> u64 {
        self.table.weight()
    }

    pub(crate) fn weight_max(&self) -> u64 {
        self.table.weight_max()
    }

    /// Walks the table a few hundred entries at a time: `pick` under a lock, `then` outside of it.
    fn scan<T>(&self, pick: impl Fn(&Slot<K>, &Resident<V>) -> Option<T>, mut then: impl FnMut(T)) {
        let mut next = Some(0);
        while let Some(cursor) = next {
            let mut picked = Vec::new();
            next =
                self.table.scan(cursor, SCAN_AT_ONCE, |slot, resident| picked.extend(pick(slot, resident)));
            picked.into_iter().for_each(&mut then);
        }
    }

    fn report_one(&self, removed: Option<(Slot<K>, Resident<V>)>, reason: EvictReason) {
        if let Some((slot, resident)) = removed {
            self.report(&slot.key, &resident, reason);
        }
    }

    fn report(&self, key: &K, resident: &Resident<V>, reason: EvictReason) {
        self.counters.add(match reason {
            EvictReason::Size => Count::EvictedSize,
            EvictReason::Expired => Count::EvictedExpired,
            EvictReason::Replaced => Count::EvictedReplaced,
            EvictReason::Removed => Count::EvictedRemoved,
            EvictReason::Invalidated => Count::EvictedInvalidated,
            EvictReason::TooLarge => Count::EvictedTooLarge,
            EvictReason::Health => Count::EvictedHealth,
        });
        if let (Some(on_evict), Some(value)) = (&self.on_evict, &resident.value) {
            let call = std::panic::AssertUnwindSafe(|| on_evict(key, value, reason));
            if std::panic::catch_unwind(call).is_err() {
                tracing::error!(?reason, "an eviction listener panicked");
            }
        }
    }
}

/// Entries that a scan looks at in one hold of a lock.
const SCAN_AT_ONCE: usize = 256;

impl<V: Clone> Resident<V> {
    pub(crate) fn seen(&self, now: Now) -> Seen<V> {
        Seen { value: self.value.clone(), meta: self.meta(now), from_tier: self.from_tier }
    }
}
