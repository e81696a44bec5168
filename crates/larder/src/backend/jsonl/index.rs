//! Where each entry of a shard is, and what the protocol needs to know of it. Values stay in the file.

use super::line::EntryHead;
use crate::entry::{EntryKind, Tags};
use crate::key::{EntryKey, Namespace};
use crate::stamp::Stamp;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

/// How many entries the eviction looks at to find one that was not read for long: with 16, what goes is
/// among the oldest tenth five times of six (Redis does the same).
const SAMPLE: usize = 16;

/// An entry's place in its file, and what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) offset: u64,
    pub(super) bytes: u32,
    /// The position from which it is valid.
    pub(super) seen: u64,
    pub(super) kind: EntryKind,
    pub(super) stamp: Stamp,
    pub(super) gone_at_ms: u64,
    pub(super) tags: Tags,
    /// The size of the envelope.
    pub(super) sealed_bytes: u32,
    /// When it was last read or written, on a clock that counts just that.
    accessed: u64,
}

/// Keys in the order of their hashes, so that a scan can go on where it stopped.
#[derive(Clone, PartialEq, Eq)]
struct Ordered {
    hash: u64,
    /// `None` stands before all keys of the hash, where a scan begins.
    key: Option<EntryKey>,
}

impl Ordered {
    fn of(key: &EntryKey) -> Self {
        Ordered { hash: key.hash64(), key: Some(key.clone()) }
    }
}

impl Ord for Ordered {
    fn cmp(&self, other: &Self) -> Ordering {
        fn parts(key: &Ordered) -> (u64, Option<(&[u8], &Namespace)>) {
            (key.hash, key.key.as_ref().map(|key| (&key.as_bytes()[..], key.namespace())))
        }
        parts(self).cmp(&parts(other))
    }
}

impl PartialOrd for Ordered {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The entries of one shard.
#[derive(Default)]
pub(super) struct Index {
    entries: BTreeMap<Ordered, Slot>,
    namespaces: BTreeMap<Namespace, u64>,
    /// Bytes of the lines of all entries.
    pub(super) bytes: u64,
    ticks: u64,
    /// Where the eviction and the sweep go on.
    hand: Option<Ordered>,
    swept: Option<Ordered>,
}

impl Index {
    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn get(&self, key: &EntryKey) -> Option<&Slot> {
        self.entries.get(&Ordered::of(key))
    }

    /// Notes that an entry was read.
    pub(super) fn touch(&mut self, key: &EntryKey) {
        self.ticks += 1;
        if let Some(slot) = self.entries.get_mut(&Ordered::of(key)) {
            slot.accessed = self.ticks;
        }
    }

    pub(super) fn insert(&mut self, entry: EntryHead, seen: u64, offset: u64, bytes: usize) {
        let EntryHead { key, kind, stamp, gone_at_ms, tags, sealed_bytes } = entry;
        self.ticks += 1;
        let bytes = u32::try_from(bytes).expect("a line has at most 64 MiB");
        let accessed = self.ticks;
        let slot = Slot { offset, bytes, seen, kind, stamp, gone_at_ms, tags, sealed_bytes, accessed };
        self.bytes += u64::from(bytes);
        match self.entries.insert(Ordered::of(&key), slot) {
            Some(old) => self.bytes -= u64::from(old.bytes),
            None => *self.namespaces.entry(key.namespace().clone()).or_default() += 1,
        }
    }

    pub(super) fn remove(&mut self, key: &EntryKey) -> Option<Slot> {
        let slot = self.entries.remove(&Ordered::of(key))?;
        self.bytes -= u64::from(slot.bytes);
        if let Some(count) = self.namespaces.get_mut(key.namespace()) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(key.namespace());
            }
        }
        Some(slot)
    }

    /// Removes what `is_unwanted` says.
    pub(super) fn remove_where(&mut self, is_unwanted: impl Fn(&EntryKey, &Slot) -> bool) -> Vec<Slot> {
        let found: Vec<EntryKey> =
            self.iter().filter(|(key, slot)| is_unwanted(key, slot)).map(|(key, _)| key.clone()).collect();
        found.iter().filter_map(|key| self.remove(key)).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&EntryKey, &Slot)> {
        self.after(None)
    }

    /// What follows a hash in their order. Keys of one hash stay together.
    pub(super) fn after(&self, hash: Option<u64>) -> impl Iterator<Item = (&EntryKey, &Slot)> {
        let from = hash.map_or(Bound::Unbounded, |hash| Bound::Included(Ordered { hash, key: None }));
        self.entries
            .range((from, Bound::Unbounded))
            .filter_map(|(key, slot)| Some((key.key.as_ref()?, slot)))
            .skip_while(move |(key, _)| Some(key.hash64()) == hash)
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = &Namespace> {
        self.namespaces.keys()
    }

    /// Moves an entry to its place in a new file, if it still is the one that was copied.
    pub(super) fn relocate(&mut self, key: &EntryKey, from: u64, to: u64) {
        if let Some(slot) = self.entries.get_mut(&Ordered::of(key))
            && slot.offset == from
        {
            slot.offset = to;
        }
    }

    /// Drops the entry that was not read for the longest time, of a few.
    pub(super) fn evict(&mut self) -> bool {
        let few = self.turn(self.hand.clone(), SAMPLE);
        self.hand = few.last().cloned();
        let oldest = few.into_iter().min_by_key(|key| self.entries[key].accessed);
        oldest.and_then(|key| key.key).is_some_and(|key| self.remove(&key).is_some())
    }

    /// The next entries for the sweep to look at.
    pub(super) fn next_to_sweep(&mut self, count: usize) -> Vec<EntryKey> {
        let keys = self.turn(self.swept.clone(), count);
        self.swept = keys.last().cloned();
        keys.into_iter().filter_map(|key| key.key).collect()
    }

    /// The next ones in a circle, each at most once.
    fn turn(&self, after: Option<Ordered>, count: usize) -> Vec<Ordered> {
        let Some(after) = after else { return self.entries.keys().take(count).cloned().collect() };
        let rest = self.entries.range((Bound::Excluded(&after), Bound::Unbounded));
        let begin = self.entries.range(..=&after);
        rest.chain(begin).take(count).map(|(key, _)| key.clone()).collect()
    }
}
