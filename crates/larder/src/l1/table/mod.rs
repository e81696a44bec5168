//! The table of L1: a concurrent map that is bounded by weight and evicts by PANEL.
//!
//! Owns keys, values, weights, deadlines and what the policy remembers. It knows nothing of freshness,
//! loads or fences, which live above it, and it never runs a callback or drops a key or value under a lock,
//! except the `read` and `test` closures that are documented to.
//!
//! An access goes through `hash`, its `shard` and, if it is in the sample, a `ring` to the `panel`.
//! Beside key and value an entry costs 16 bytes in its slot, 5 to 10 in the index, 2.1 in the ghost, 8 in
//! the sketch and about 4 in the panel (more below 130,000 entries, where the panel's shadows are not
//! thinned as much: up to 1 MB in all), and 16 more once any entry of the shard has had a deadline.

mod ghost;
pub(crate) mod hash;
mod panel;
mod policy;
mod ring;
mod shard;
mod sketch;
mod slots;
mod wheel;

#[cfg(all(test, larder_shuttle))]
mod shuttle_tests;
#[cfg(all(test, not(larder_shuttle)))]
mod tests;

pub use slots::Pin;

use crate::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, RwLock};
use equivalent::Equivalent;
use hash::KeyedState;
use panel::Panel;
use policy::{KNOBS, Knobs};
use ring::{Ring, Sample};
pub(crate) use shard::Leaving;
use shard::State;
use std::hash::{BuildHasher, Hash};

/// The smallest shard: with fewer entries, chance fills one and leaves another empty, which costs up to
/// .05 of hit ratio, and a heavy entry finds no shard that takes it.
const SHARD_ENTRIES_MIN: usize = 1000;
/// Shards per processor: enough that two threads rarely meet in one.
const SHARDS_PER_CPU: usize = 4;
/// Most entries that a table reserves memory for before it holds them.
const RESERVE_MAX: usize = 1 << 24;
/// Slots that [`Table::retain`] looks at in one hold of a lock.
const RETAIN_AT_ONCE: usize = 256;
/// Entries that [`Table::expire`] removes in one hold of a lock.
const EXPIRE_AT_ONCE: usize = 32;

/// What bounds a table.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The most that all entries may weigh together.
    pub weight_max: u64,
    /// About how many entries that will be. It decides shards and reserved memory, and the panel learns the
    /// true number by itself.
    pub entries_hint: usize,
    /// A power of two, or `None` for what suits the processors and the number of entries.
    pub shards: Option<usize>,
    /// Fixes the hash, for tests and benchmarks. `None`: keyed at random, which flooding can't foresee.
    pub seed: Option<u64>,
}

/// How one entry is kept.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// In the unit of [`Limits::weight_max`]; 0 counts as 1, so that no number of entries is free.
    pub weight: u64,
    /// When [`Table::expire`] may remove it; `u64::MAX` for never. Lookups don't look at it.
    pub expires_at_ms: u64,
    /// Whether it may be evicted.
    pub pin: Pin,
}

impl Terms {
    /// An evictable entry that doesn't expire.
    pub fn weighing(weight: u64) -> Self {
        Terms { weight, expires_at_ms: u64::MAX, pin: Pin::Evictable }
    }
}

/// Why an insert handed an entry back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Gone {
    /// Another value took its place.
    Replaced,
    /// It made room.
    Evicted,
    /// It was not stored: heavier than its shard's limit less what is pinned there, or than 4 GiB.
    TooHeavy,
}

/// A concurrent, weighted map of bounded size.
pub struct Table<K, V> {
    hasher: KeyedState,
    shards: Box<[Shard<K, V>]>,
    weight_max: AtomicU64,
    panel: Mutex<Panel>,
    /// An index into [`KNOBS`], by the panel.
    knobs: AtomicU8,
    /// One key in this many is shown to the panel.
    rate: AtomicU32,
    /// The shard that the next [`expire`](Self::expire) begins with.
    expire_at: AtomicUsize,
}

/// On cache lines of its own, so that threads in neighbouring shards don't meet.
#[repr(align(128))]
struct Shard<K, V> {
    state: RwLock<State<K, V>>,
    ring: Ring,
    /// A time at or before the shard's next deadline.
    wake_ms: AtomicU64,
}

impl<K: Hash + Eq, V> Table<K, V> {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        let entries = limits.entries_hint.min(usize::try_from(limits.weight_max).unwrap_or(usize::MAX));
        let shards = limits.shards.unwrap_or_else(|| shards_for(entries));
        let shards = shards.clamp(1, hash::SHARDS_MAX).next_power_of_two();
        let reserved = entries.min(RESERVE_MAX).div_ceil(shards);
        let panel = Panel::new(entries, limits.weight_max);
        Table {
            hasher: hash::keyed_state(limits.seed),
            shards: (0..shards)
                .map(|at| Shard {
                    state: RwLock::new(State::new(share(limits.weight_max, at, shards), reserved)),
                    ring: Ring::default(),
                    wake_ms: AtomicU64::new(u64::MAX),
                })
                .collect(),
            weight_max: AtomicU64::new(limits.weight_max),
            knobs: AtomicU8::new(panel.current() as u8),
            rate: AtomicU32::new(panel.rate()),
            panel: Mutex::new(panel),
            expire_at: AtomicUsize::new(0),
        }
    }

    /// Looks `key` up and counts the access. `read` runs under the shard's shared lock: clone and return.
    /// One probe, no allocation.
    #[inline]
    pub fn get<Q, R>(&self, key: &Q, read: impl FnOnce(&V) -> R) -> Option<R>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash);
        let fingerprint = hash::fingerprint(hash);
        let (found, weight) = {
            let state = shard.state.read();
            let (_, entry) = state.find(fingerprint, key)?;
            entry.touch();
            (read(&entry.value), entry.weight() as u32)
        };
        if hash::is_sampled(hash, self.rate.load(Ordering::Relaxed))
            && shard.ring.push(Sample { fingerprint: fingerprint.get(), weight })
        {
            self.drain(shard, None);
        }
        Some(found)
    }

    /// [`get`](Self::get) that doesn't count as an access.
    pub fn peek<Q, R>(&self, key: &Q, read: impl FnOnce(&V) -> R) -> Option<R>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.peek_hashed(self.hasher.hash_one(key), key, read)
    }

    /// [`peek`](Self::peek) for a caller that has the [`hash`](Self::hash) of the key.
    pub(crate) fn peek_hashed<Q, R>(&self, hash: u64, key: &Q, read: impl FnOnce(&V) -> R) -> Option<R>
    where
        Q: Equivalent<K> + ?Sized,
    {
        let state = self.shard(hash).state.read();
        state.find(hash::fingerprint(hash), key).map(|(_, entry)| read(&entry.value))
    }

    /// Stores an entry, or puts it in the place of the one with its key. What had to leave goes to `out`
    /// when the lock is free. If the entry is too heavy, its predecessor leaves all the same.
    ///
    /// A new key counts as an access and a replacement doesn't: the lookup before it did.
    pub fn insert(&self, key: K, value: V, terms: Terms, out: &mut impl FnMut(K, V, Gone)) {
        self.insert_hashed(self.hasher.hash_one(&key), key, value, terms).hand_out(out);
    }

    /// [`insert`](Self::insert) for a caller that has the [`hash`](Self::hash) of the key. Returns what had to
    /// leave.
    pub(crate) fn insert_hashed(&self, hash: u64, key: K, value: V, terms: Terms) -> Leaving<K, V> {
        let shard = self.shard(hash);
        let fingerprint = hash::fingerprint(hash);
        let knobs = self.knobs();
        let mut gone = Leaving::new();
        let (is_new, full_at) = {
            let mut state = shard.state.write();
            let is_new = state.insert(fingerprint, (key, value), terms, knobs, &mut gone);
            if terms.expires_at_ms < shard.wake_ms.load(Ordering::Relaxed) {
                shard.wake_ms.store(terms.expires_at_ms, Ordering::Relaxed);
            }
            (is_new, gone.any_evicted().then(|| state.len() * self.shards.len()))
        };
        if is_new && hash::is_sampled(hash, self.rate.load(Ordering::Relaxed)) {
            let weight = u32::try_from(terms.weight.max(1)).unwrap_or(u32::MAX);
            shard.ring.push(Sample { fingerprint: fingerprint.get(), weight });
            self.drain(shard, full_at);
        }
        gone
    }

    /// The hash of a key, keyed at random: the same for equal keys of this table only.
    pub fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        self.hasher.hash_one(key)
    }

    /// Removes an entry.
    pub fn remove<Q>(&self, key: &Q) -> Option<(K, V)>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.remove_if(key, |_| true)
    }

    /// Removes an entry if `test`, run under the shard's lock, agrees.
    pub fn remove_if<Q>(&self, key: &Q, test: impl FnOnce(&V) -> bool) -> Option<(K, V)>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        let hash = self.hasher.hash_one(key);
        let shard = self.shard(hash);
        let removed = {
            let mut state = shard.state.write();
            let (id, entry) = state.find(hash::fingerprint(hash), key)?;
            if !test(&entry.value) {
                return None;
            }
            state.remove_at(id)
        };
        self.forget(shard, hash);
        Some(removed)
    }

    /// Shows `each` up to `limit` slots from `cursor` on (0 to begin), under one shard's shared lock, and
    /// returns the next cursor, or `None` at the end. An entry that stays throughout is seen exactly once;
    /// one that comes or goes meanwhile may be missed.
    pub fn scan(&self, cursor: u64, limit: usize, mut each: impl FnMut(&K, &V)) -> Option<u64> {
        let (at, from) = ((cursor >> 32) as usize, cursor as u32 as usize);
        let state = self.shards.get(at)?.state.read();
        let end = from.saturating_add(limit.max(1)).min(state.end());
        for entry in (from..end).filter_map(|slot| state.at(slot as u32)) {
            each(&entry.key, &entry.value);
        }
        if end < state.end() {
            Some((at as u64) << 32 | end as u64)
        } else {
            Some((at as u64 + 1) << 32).filter(|_| at + 1 < self.shards.len())
        }
    }

    /// Removes what `keep` refuses, a few hundred slots per hold of a lock. What it refuses goes to `out`
    /// when the lock is free.
    pub fn retain(&self, mut keep: impl FnMut(&K, &V) -> bool, out: &mut impl FnMut(K, V)) {
        for shard in &self.shards {
            let mut from = 0;
            loop {
                let mut removed = Vec::new();
                let end = {
                    let mut state = shard.state.write();
                    let end = state.end();
                    for slot in from..end.min(from + RETAIN_AT_ONCE) {
                        if state.at(slot as u32).is_some_and(|entry| !keep(&entry.key, &entry.value)) {
                            removed.push(state.remove_at(slot as u32));
                        }
                    }
                    end
                };
                for (key, value) in removed {
                    self.forget(shard, self.hasher.hash_one(&key));
                    out(key, value);
                }
                from += RETAIN_AT_ONCE;
                if from >= end {
                    break;
                }
            }
        }
    }

    /// Removes entries whose deadline has passed, in at most `limit` steps; true if there may be more to do
    /// now. A deadline costs a few steps over its life. Where nothing is due it reads one word per shard.
    pub fn expire(&self, now_ms: u64, limit: usize, out: &mut impl FnMut(K, V)) -> bool {
        let mut budget = limit;
        let first = self.expire_at.load(Ordering::Relaxed);
        for step in 0..self.shards.len() {
            let at = first.wrapping_add(step) & (self.shards.len() - 1);
            let shard = &self.shards[at];
            while shard.wake_ms.load(Ordering::Relaxed) <= now_ms {
                if budget == 0 {
                    self.expire_at.store(at, Ordering::Relaxed);
                    return true;
                }
                let mut due = Vec::new();
                {
                    let mut state = shard.state.write();
                    while due.len() < EXPIRE_AT_ONCE {
                        let Some(entry) = state.next_due(now_ms, &mut budget) else {
                            shard.wake_ms.store(state.wake(), Ordering::Relaxed);
                            break;
                        };
                        due.push(entry);
                    }
                }
                for (key, value) in due {
                    self.forget(shard, self.hasher.hash_one(&key));
                    out(key, value);
                }
            }
        }
        false
    }

    /// The entries it holds. Takes every shard's lock in turn.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.state.read().len()).sum()
    }

    /// True if it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What its entries weigh. Takes every shard's lock in turn.
    pub fn weight(&self) -> u64 {
        self.shards.iter().map(|shard| shard.state.read().weight()).sum()
    }

    /// The most that its entries may weigh.
    pub fn weight_max(&self) -> u64 {
        self.weight_max.load(Ordering::Relaxed)
    }

    /// Lowers or raises the limit, unless what is pinned in a shard would not fit its part: then nothing changes
    /// and it returns false. Calls must not overlap. What exceeds the limit stays until
    /// [`shrink`](Self::shrink), and meanwhile no insert adds to the weight.
    pub fn try_set_weight_max(&self, weight_max: u64) -> bool {
        let before = self.weight_max.swap(weight_max, Ordering::Relaxed);
        let fits = self.shards.iter().enumerate().all(|(at, shard)| {
            let mut state = shard.state.write();
            let limit = share(weight_max, at, self.shards.len());
            let fits = state.pinned_weight() <= limit;
            // From here on the shard admits no more pins than the new limit allows.
            if fits {
                state.set_limit(limit);
            }
            fits
        });
        if !fits {
            self.weight_max.store(before, Ordering::Relaxed);
            for (at, shard) in self.shards.iter().enumerate() {
                shard.state.write().set_limit(share(before, at, self.shards.len()));
            }
        }
        fits
    }

    /// Changes the limit. What exceeds it is evicted before this returns, a few dozen entries per hold of a
    /// lock, and meanwhile no insert adds to the weight. What is pinned stays, even above the limit.
    pub fn set_weight_max(&self, weight_max: u64, out: &mut impl FnMut(K, V, Gone)) {
        self.weight_max.store(weight_max, Ordering::Relaxed);
        self.shrink(out);
    }

    /// Evicts what exceeds the limit. May overlap with changes of it.
    pub fn shrink(&self, out: &mut impl FnMut(K, V, Gone)) {
        self.panel.lock().set_weight_max(self.weight_max());
        for (at, shard) in self.shards.iter().enumerate() {
            loop {
                let mut gone = Leaving::new();
                let more = {
                    let mut state = shard.state.write();
                    // Read anew: of two calls that overlap, the later one's limit stays.
                    state.set_limit(share(self.weight_max(), at, self.shards.len()));
                    state.shrink(self.knobs(), &mut gone)
                };
                gone.hand_out(out);
                if !more {
                    break;
                }
            }
        }
    }

    /// Which of the panel's knobs are in use, for metrics and benchmarks.
    pub fn knobs_index(&self) -> usize {
        usize::from(self.knobs.load(Ordering::Relaxed))
    }

    /// Walks every structure and panics where two disagree. For tests.
    pub fn assert_valid(&self) {
        for (at, shard) in self.shards.iter().enumerate() {
            let state = shard.state.read();
            let limit = share(self.weight_max(), at, self.shards.len());
            state.assert_valid(limit, shard.wake_ms.load(Ordering::Relaxed));
        }
        self.panel.lock().assert_valid();
    }

    #[inline]
    fn shard(&self, hash: u64) -> &Shard<K, V> {
        &self.shards[hash::shard(hash, self.shards.len())]
    }

    fn knobs(&self) -> &'static Knobs {
        &KNOBS[self.knobs_index()]
    }

    /// Shows the panel what a shard sampled, unless another thread is at it: then it stays for the next.
    /// A full table that holds far more or fewer entries than the panel was made for starts it anew.
    #[cold]
    fn drain(&self, shard: &Shard<K, V>, full_at: Option<usize>) {
        let Some(mut panel) = self.panel.try_lock() else { return };
        shard.ring.drain(|sample| panel.access(sample));
        self.knobs.store(panel.current() as u8, Ordering::Relaxed);
        let made_for = panel.entries();
        if let Some(entries) = full_at.filter(|&entries| entries < made_for / 2 || entries / 2 > made_for) {
            *panel = Panel::resized(entries, self.weight_max(), &panel);
            self.rate.store(panel.rate(), Ordering::Relaxed);
        }
    }

    /// Tells the panel that a key was removed. Best effort: the shadows forget it in time by themselves.
    fn forget(&self, shard: &Shard<K, V>, hash: u64) {
        if hash::is_sampled(hash, self.rate.load(Ordering::Relaxed))
            && let Some(mut panel) = self.panel.try_lock()
        {
            shard.ring.drain(|sample| panel.access(sample));
            panel.forget(hash::fingerprint(hash).get());
        }
    }
}

impl<K, V> std::fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("weight_max", &self.weight_max).finish_non_exhaustive()
    }
}

fn shards_for(entries: usize) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let most = (entries / SHARD_ENTRIES_MIN).max(1);
    (cpus * SHARDS_PER_CPU).next_power_of_two().min(1 << most.ilog2())
}

/// A shard's part of the weight: all parts together are the whole.
fn share(weight_max: u64, at: usize, shards: usize) -> u64 {
    let shards = shards as u64;
    weight_max / shards + u64::from((at as u64) < weight_max % shards)
}
