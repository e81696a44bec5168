//! Where entries live: numbered slots that are linked into queues.
//!
//! Owns keys, values, weights and hit counts. A slot's number stays the same for as long as its entry
//! lives, which is what the index, the wheel and a scan rely on.

use super::policy::{List, Queues};
use crate::sync::atomic::{AtomicU32, Ordering};
use std::num::NonZeroU32;

const COUNT_BITS: u32 = 3;
const COUNT: u32 = (1 << COUNT_BITS) - 1;
const QUEUE_BITS: u32 = 2;
const QUEUE: u32 = (1 << QUEUE_BITS) - 1;
/// No slot: the highest number that a link beside a hit count has room for.
const NONE: u32 = u32::MAX >> COUNT_BITS;
/// The queue of entries that are never evicted; the policy doesn't know of it.
const PINNED: usize = 3;

/// Whether an entry may be evicted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pin {
    /// It goes when the policy says so.
    #[default]
    Evictable,
    /// It stays until it is removed or expires.
    Pinned,
}

/// An entry: 16 bytes beside the key and the value. In the order of the declaration: what a hit reads stands
/// together, and what only an eviction does at the end.
#[repr(C)]
pub(super) struct Entry<K, V> {
    pub(super) value: V,
    pub(super) key: K,
    fingerprint: NonZeroU32,
    /// Three bits of hit count, written by readers under the shared lock, below the older neighbour in the
    /// queue, written under the exclusive one. Readers store what they loaded plus one: a lost count is
    /// cheaper than a read-modify-write, and the neighbour can't change meanwhile.
    older_and_count: AtomicU32,
    weight: u32,
    /// Two bits of queue below the younger neighbour.
    younger_and_queue: u32,
}

impl<K, V> Entry<K, V> {
    /// Counts a hit.
    #[inline]
    pub(super) fn touch(&self) {
        let word = self.older_and_count.load(Ordering::Relaxed);
        if word & COUNT != COUNT {
            self.older_and_count.store(word + 1, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(super) fn fingerprint(&self) -> u32 {
        self.fingerprint.get()
    }

    pub(super) fn weight(&self) -> u64 {
        u64::from(self.weight)
    }

    fn queue(&self) -> usize {
        (self.younger_and_queue & QUEUE) as usize
    }

    fn count(&self) -> u32 {
        self.older_and_count.load(Ordering::Relaxed) & COUNT
    }

    fn older(&self) -> u32 {
        self.older_and_count.load(Ordering::Relaxed) >> COUNT_BITS
    }

    fn younger(&self) -> u32 {
        self.younger_and_queue >> QUEUE_BITS
    }

    fn set_older(&mut self, id: u32) {
        let word = self.older_and_count.get_mut();
        *word = id << COUNT_BITS | *word & COUNT;
    }

    fn set_younger(&mut self, id: u32) {
        self.younger_and_queue = id << QUEUE_BITS | self.younger_and_queue & QUEUE;
    }
}

struct Ends {
    oldest: u32,
    youngest: u32,
    weight: u64,
}

/// The slots of one shard.
pub(super) struct Slots<K, V> {
    slots: Vec<Option<Entry<K, V>>>,
    free: Vec<u32>,
    queues: [Ends; 4],
}

impl<K, V> Slots<K, V> {
    pub(super) fn with_capacity(entries: usize) -> Self {
        Slots {
            slots: Vec::with_capacity(entries),
            free: Vec::new(),
            queues: std::array::from_fn(|_| Ends { oldest: NONE, youngest: NONE, weight: 0 }),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// One past the highest slot that was ever used.
    pub(super) fn end(&self) -> usize {
        self.slots.len()
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<&Entry<K, V>> {
        self.slots.get(id as usize)?.as_ref()
    }

    /// Stores an entry that stands in no queue yet.
    pub(super) fn add(&mut self, fingerprint: NonZeroU32, key: K, value: V, weight: u32) -> u32 {
        let entry = Entry {
            value,
            key,
            fingerprint,
            older_and_count: AtomicU32::new(NONE << COUNT_BITS),
            weight,
            younger_and_queue: NONE << QUEUE_BITS,
        };
        if let Some(id) = self.free.pop() {
            self.slots[id as usize] = Some(entry);
            return id;
        }
        let id = u32::try_from(self.slots.len()).ok().filter(|&id| id < NONE);
        let id = id.expect("a shard holds fewer than 2^29 entries");
        self.slots.push(Some(entry));
        id
    }

    pub(super) fn pin(&mut self, id: u32) {
        self.link(PINNED, id);
    }

    pub(super) fn is_pinned(&self, id: u32) -> bool {
        self.entry(id).queue() == PINNED
    }

    pub(super) fn pinned_weight(&self) -> u64 {
        self.queues[PINNED].weight
    }

    /// The weight of all queues.
    pub(super) fn weight_all(&self) -> u64 {
        self.queues.iter().map(|ends| ends.weight).sum()
    }

    /// Puts a new key, value and weight in the place of the old.
    pub(super) fn replace(&mut self, id: u32, key: K, value: V, weight: u32) -> (K, V) {
        let entry = entry_mut(&mut self.slots, id);
        let ends = &mut self.queues[entry.queue()];
        ends.weight = ends.weight - u64::from(entry.weight) + u64::from(weight);
        entry.weight = weight;
        (std::mem::replace(&mut entry.key, key), std::mem::replace(&mut entry.value, value))
    }

    /// Takes an entry out of its queue; its slot stays.
    pub(super) fn unlink(&mut self, id: u32) {
        let entry = self.entry(id);
        let (older, younger) = (entry.older(), entry.younger());
        let (at, weight) = (entry.queue(), entry.weight());
        let ends = &mut self.queues[at];
        ends.weight -= weight;
        match older {
            NONE => ends.oldest = younger,
            older => entry_mut(&mut self.slots, older).set_younger(younger),
        }
        match younger {
            NONE => ends.youngest = older,
            younger => entry_mut(&mut self.slots, younger).set_older(older),
        }
    }

    /// Empties the slot of an entry that stands in no queue.
    pub(super) fn take(&mut self, id: u32) -> Entry<K, V> {
        let entry = self.slots[id as usize].take().expect("a slot in use");
        self.free.push(id);
        entry
    }

    fn link(&mut self, at: usize, id: u32) {
        let ends = &mut self.queues[at];
        let before = std::mem::replace(&mut ends.youngest, id);
        let entry = entry_mut(&mut self.slots, id);
        entry.set_older(before);
        entry.younger_and_queue = NONE << QUEUE_BITS | at as u32;
        ends.weight += entry.weight();
        match before {
            NONE => ends.oldest = id,
            before => entry_mut(&mut self.slots, before).set_younger(id),
        }
    }

    #[inline]
    fn entry(&self, id: u32) -> &Entry<K, V> {
        self.slots[id as usize].as_ref().expect("a slot in use")
    }

    /// Walks every queue and checks its links and weight, and that every entry stands in one.
    pub(super) fn assert_valid(&self) {
        let mut linked = 0;
        for (at, ends) in self.queues.iter().enumerate() {
            let (mut id, mut before, mut weight) = (ends.oldest, NONE, 0);
            while id != NONE {
                let entry = self.entry(id);
                assert_eq!((entry.queue(), entry.older()), (at, before), "slot {id}");
                weight += entry.weight();
                linked += 1;
                (before, id) = (id, entry.younger());
            }
            assert_eq!((ends.youngest, ends.weight), (before, weight), "queue {at}");
        }
        assert_eq!(linked, self.len());
        assert_eq!(self.slots.iter().flatten().count(), self.len());
        assert!(self.free.iter().all(|&id| self.get(id).is_none()));
    }
}

#[inline]
fn entry_mut<K, V>(slots: &mut [Option<Entry<K, V>>], id: u32) -> &mut Entry<K, V> {
    slots[id as usize].as_mut().expect("a slot in use")
}

impl<K, V> Queues for Slots<K, V> {
    fn weight(&self, list: List) -> u64 {
        self.queues[list as usize].weight
    }

    fn oldest(&mut self, list: List) -> Option<u32> {
        Some(self.queues[list as usize].oldest).filter(|&id| id != NONE)
    }

    fn pop(&mut self, list: List) -> Option<u32> {
        let id = self.oldest(list)?;
        self.unlink(id);
        Some(id)
    }

    fn push(&mut self, list: List, id: u32) {
        self.link(list as usize, id);
    }

    fn count(&self, id: u32) -> u8 {
        self.entry(id).count() as u8
    }

    fn set_count(&mut self, id: u32, count: u8) {
        let word = entry_mut(&mut self.slots, id).older_and_count.get_mut();
        *word = *word & !COUNT | u32::from(count);
    }

    fn fingerprint(&self, id: u32) -> u32 {
        self.entry(id).fingerprint()
    }
}
