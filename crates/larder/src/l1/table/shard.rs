//! One shard: what its lock protects.
//!
//! Owns the index, the slots, the policy's memory and the wheel, and keeps them in step. Never drops a key
//! or a value: what leaves is handed out, to be dropped when the lock is free.

use super::hash::index_hash;
use super::policy::{Knobs, Policy, Queues};
use super::slots::{Entry, Pin, Slots};
use super::wheel::Wheel;
use super::{Gone, Terms};
use equivalent::Equivalent;
use hashbrown::HashTable;
use std::num::NonZeroU32;

/// Most entries that one hold of the lock evicts to shrink to a new limit.
const SHRINK_AT_ONCE: usize = 64;

/// What left a shard. The first costs no allocation; there is rarely a second.
pub(crate) struct Leaving<K, V> {
    first: Option<(K, V, Gone)>,
    rest: Vec<(K, V, Gone)>,
}

impl<K, V> Leaving<K, V> {
    pub(super) fn new() -> Self {
        Leaving { first: None, rest: Vec::new() }
    }

    /// Whether an entry had to make room: the shard is full.
    pub(super) fn any_evicted(&self) -> bool {
        self.first.iter().chain(&self.rest).any(|(_, _, gone)| *gone == Gone::Evicted)
    }

    fn push(&mut self, key: K, value: V, gone: Gone) {
        if self.first.is_none() {
            self.first = Some((key, value, gone));
        } else {
            self.rest.push((key, value, gone));
        }
    }

    pub(crate) fn hand_out(self, out: &mut impl FnMut(K, V, Gone)) {
        for (key, value, gone) in self.first.into_iter().chain(self.rest) {
            out(key, value, gone);
        }
    }
}

pub(super) struct State<K, V> {
    index: HashTable<u32>,
    slots: Slots<K, V>,
    policy: Policy,
    wheel: Wheel,
    /// The share of the table's weight. What is above it after it was lowered goes bit by bit, and
    /// meanwhile no insert adds to it.
    limit: u64,
    weight: u64,
}

impl<K, V> State<K, V> {
    pub(super) fn new(limit: u64, entries: usize) -> Self {
        State {
            index: HashTable::with_capacity(entries),
            slots: Slots::with_capacity(entries),
            policy: Policy::new(entries),
            wheel: Wheel::new(entries),
            limit,
            weight: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    pub(super) fn pinned_weight(&self) -> u64 {
        self.slots.pinned_weight()
    }

    /// A time at or before the next deadline.
    pub(super) fn wake(&self) -> u64 {
        self.wheel.wake()
    }

    /// One past the last slot, for scans.
    pub(super) fn end(&self) -> usize {
        self.slots.end()
    }

    pub(super) fn at(&self, slot: u32) -> Option<&Entry<K, V>> {
        self.slots.get(slot)
    }

    #[inline]
    pub(super) fn find<Q>(&self, fingerprint: NonZeroU32, key: &Q) -> Option<(u32, &Entry<K, V>)>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let fingerprint = fingerprint.get();
        let is_it = |&id: &u32| {
            let entry = self.slots.get(id);
            entry.is_some_and(|entry| entry.fingerprint() == fingerprint && key.equivalent(&entry.key))
        };
        let id = *self.index.find(index_hash(fingerprint), is_it)?;
        Some((id, self.slots.get(id)?))
    }

    /// Stores an entry; true if its key is new here.
    pub(super) fn insert(
        &mut self,
        fingerprint: NonZeroU32,
        (key, value): (K, V),
        terms: Terms,
        knobs: &Knobs,
        gone: &mut Leaving<K, V>,
    ) -> bool
    where
        K: Eq,
    {
        let found = self.find(fingerprint, &key).map(|(id, _)| id);
        let own_pin = found.filter(|&id| self.slots.is_pinned(id)).and_then(|id| self.slots.get(id));
        let pinned = self.slots.pinned_weight() - own_pin.map_or(0, Entry::weight);
        let room = self.limit.saturating_sub(pinned);
        let Some(weight) = u32::try_from(terms.weight.max(1)).ok().filter(|&w| u64::from(w) <= room) else {
            if let Some(entry) = found.map(|id| self.take(id)) {
                gone.push(entry.key, entry.value, Gone::Replaced);
            }
            gone.push(key, value, Gone::TooHeavy);
            return found.is_none();
        };
        if let Some(id) = found {
            let before = self.weight;
            self.replace(id, (key, value), weight, terms, gone);
            self.evict_down_to(self.limit.max(before), usize::MAX, knobs, gone);
            return false;
        }
        let pinned = terms.pin == Pin::Pinned;
        let was_evicted = !pinned && self.policy.arrive(fingerprint.get());
        let room = self.limit.max(self.weight) - u64::from(weight);
        let is_full = self.weight > room;
        if is_full {
            self.evict_down_to(room, usize::MAX, knobs, gone);
        } else {
            let capacity = self.evictable_max();
            self.policy.spill(&mut self.slots, knobs, capacity);
        }
        let id = self.slots.add(fingerprint, key, value, weight);
        if pinned {
            self.slots.pin(id);
        } else {
            self.policy.place(&mut self.slots, knobs, id, was_evicted);
        }
        let slots = &self.slots;
        let hash = |&id: &u32| slots.get(id).map_or(0, |entry| index_hash(entry.fingerprint()));
        self.index.insert_unique(index_hash(fingerprint.get()), id, hash);
        self.weight += u64::from(weight);
        self.wheel.set(id, terms.expires_at_ms);
        self.policy.fit(self.slots.len(), is_full);
        true
    }

    fn replace(
        &mut self,
        id: u32,
        (key, value): (K, V),
        weight: u32,
        terms: Terms,
        gone: &mut Leaving<K, V>,
    ) {
        let before = self.slots.get(id).map_or(0, Entry::weight);
        let (key, value) = self.slots.replace(id, key, value, weight);
        self.weight = self.weight - before + u64::from(weight);
        match (self.slots.is_pinned(id), terms.pin) {
            (false, Pin::Pinned) => {
                self.slots.unlink(id);
                self.slots.pin(id);
            }
            (true, Pin::Evictable) => {
                self.slots.unlink(id);
                self.slots.push(super::policy::List::Small, id);
            }
            _ => {}
        }
        self.wheel.set(id, terms.expires_at_ms);
        gone.push(key, value, Gone::Replaced);
    }

    /// Removes the entry of a slot in use.
    pub(super) fn remove_at(&mut self, slot: u32) -> (K, V) {
        let entry = self.take(slot);
        (entry.key, entry.value)
    }

    /// Removes an entry that is due.
    pub(super) fn next_due(&mut self, now_ms: u64, budget: &mut usize) -> Option<(K, V)> {
        let id = self.wheel.next_due(now_ms, budget)?;
        let entry = self.take(id);
        Some((entry.key, entry.value))
    }

    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Evicts some of what exceeds the limit; true if there is more to do.
    pub(super) fn shrink(&mut self, knobs: &Knobs, gone: &mut Leaving<K, V>) -> bool {
        self.evict_down_to(self.limit, SHRINK_AT_ONCE, knobs, gone);
        self.weight > self.limit.max(self.slots.pinned_weight())
    }

    fn evict_down_to(&mut self, weight: u64, most: usize, knobs: &Knobs, gone: &mut Leaving<K, V>) {
        for _ in 0..most {
            if self.weight <= weight {
                break;
            }
            let capacity = self.evictable_max();
            let Some(id) = self.policy.evict(&mut self.slots, knobs, capacity) else { break };
            let entry = self.take_unlinked(id);
            gone.push(entry.key, entry.value, Gone::Evicted);
        }
    }

    /// The weight that the policy shares out among its queues.
    fn evictable_max(&self) -> u64 {
        self.limit.saturating_sub(self.slots.pinned_weight())
    }

    fn take(&mut self, id: u32) -> Entry<K, V> {
        self.slots.unlink(id);
        self.take_unlinked(id)
    }

    fn take_unlinked(&mut self, id: u32) -> Entry<K, V> {
        let entry = self.slots.take(id);
        self.wheel.cancel(id);
        self.weight -= entry.weight();
        if let Ok(found) = self.index.find_entry(index_hash(entry.fingerprint()), |&other| other == id) {
            found.remove();
        }
        entry
    }

    /// Walks everything. The table thinks that the shard's limit is `limit` and nothing is due before
    /// `wake_ms`.
    pub(super) fn assert_valid(&self, limit: u64, wake_ms: u64)
    where
        K: Eq,
    {
        self.slots.assert_valid();
        self.wheel.assert_valid(wake_ms, |id| self.slots.get(id).is_some());
        assert_eq!(self.weight, self.slots.weight_all());
        assert_eq!(self.limit, limit);
        assert!(self.weight <= limit.max(self.slots.pinned_weight()));
        assert_eq!(self.index.len(), self.slots.len());
        for &id in &self.index {
            let entry = self.slots.get(id).expect("an indexed slot is in use");
            let fingerprint = NonZeroU32::new(entry.fingerprint()).expect("never 0");
            assert_eq!(self.find(fingerprint, &entry.key).map(|(found, _)| found), Some(id));
        }
    }
}
