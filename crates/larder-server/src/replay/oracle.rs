//! What other policies would have made of the same trace: LRU exactly, and the best that was possible.
//!
//! By entries the best is Belady's MIN: a missed key is inserted and, when there is one entry too many, the
//! one whose next use is furthest away goes, which may be the new one itself. By bytes the optimum is
//! NP-hard, so there is a bound instead: PFOO-L of Berger, Beckmann and Harchol-Balter, "Practical Bounds on
//! Optimal Caching with Variable Object Sizes" (2018). No policy can have more hits.
//!
//! None of them knows a TTL: with one, real caches must stay further below.

use super::progress::{ACCESSES_PER_TICK, Progress};
use super::trace::Trace;
use std::collections::BinaryHeap;

/// Marks an access whose key is not accessed again.
const NEVER: u32 = u32::MAX;

/// Marks the end of a list and a slot without a key.
const NONE: u32 = u32::MAX;

/// LRU's hits at every capacity in entries, from one pass.
pub(super) struct LruCurve {
    /// Hits with at most this many entries, from 0.
    hits: Vec<u64>,
}

impl LruCurve {
    /// Olken's algorithm: an access hits at every capacity from its stack distance on, the number of
    /// distinct keys since the last access of its key, itself included. A Fenwick tree over the times of
    /// last accesses counts them. Times are renumbered when they run out, so that the tree's size follows
    /// the distinct keys and not the accesses.
    pub(super) fn of(trace: &Trace, progress: &Progress) -> Self {
        progress.pass("LRU");
        let distinct = trace.distinct as usize;
        let mut at_distance = vec![0u64; distinct + 1];
        let mut stack = LastAccesses::new(distinct);
        for chunk in trace.ids.chunks(ACCESSES_PER_TICK) {
            for id in chunk {
                if let Some(distance) = stack.access(*id) {
                    at_distance[distance] += 1;
                }
            }
            progress.advance(chunk.len());
        }
        let mut sum = 0;
        for hits in &mut at_distance {
            sum += *hits;
            *hits = sum;
        }
        Self { hits: at_distance }
    }

    /// Hits with this capacity.
    pub(super) fn hits(&self, entries: u64) -> u64 {
        let last = self.hits.len() - 1;
        self.hits[usize::try_from(entries).map_or(last, |entries| entries.min(last))]
    }
}

/// When each key was last accessed, and how many were accessed since.
struct LastAccesses {
    /// Fenwick tree, 1 for each time that is the last one of its key.
    tree: Vec<u32>,
    /// The key of each time; stale where the key has a later one.
    key_at: Vec<u32>,
    /// The last time of each key.
    last: Vec<u32>,
    now: usize,
    live: u32,
}

impl LastAccesses {
    fn new(distinct: usize) -> Self {
        let times = (2 * distinct).max(64);
        Self {
            tree: vec![0; times + 1],
            key_at: vec![NONE; times],
            last: vec![NONE; distinct],
            now: 0,
            live: 0,
        }
    }

    /// The stack distance, `None` for a first access.
    fn access(&mut self, id: u32) -> Option<usize> {
        if self.now == self.key_at.len() {
            self.renumber();
        }
        let last = self.last[id as usize];
        let distance = if last == NONE {
            self.live += 1;
            None
        } else {
            let older = self.before(last as usize);
            self.add(last as usize, u32::MAX);
            Some((self.live - older) as usize)
        };
        self.add(self.now, 1);
        self.key_at[self.now] = id;
        self.last[id as usize] = self.now as u32;
        self.now += 1;
        distance
    }

    /// Live times before `time`.
    fn before(&self, time: usize) -> u32 {
        let (mut at, mut sum) = (time, 0u32);
        while at > 0 {
            sum = sum.wrapping_add(self.tree[at]);
            at &= at - 1;
        }
        sum
    }

    /// `u32::MAX` takes one away.
    fn add(&mut self, time: usize, count: u32) {
        let mut at = time + 1;
        while at < self.tree.len() {
            self.tree[at] = self.tree[at].wrapping_add(count);
            at += at & at.wrapping_neg();
        }
    }

    /// Gives the live times the numbers from 0, in their order. At least half of the times are stale then,
    /// so the cost per access is constant.
    fn renumber(&mut self) {
        let mut next = 0;
        for time in 0..self.key_at.len() {
            let id = self.key_at[time];
            if self.last[id as usize] == time as u32 {
                self.key_at[next] = id;
                self.last[id as usize] = next as u32;
                next += 1;
            }
        }
        self.now = next;
        for at in 1..self.tree.len() {
            // Node `at` covers the `at & -at` times that end before `at`.
            let from = at & (at - 1);
            self.tree[at] = at.min(next).saturating_sub(from) as u32;
        }
    }
}

/// LRU's hits with a limit in bytes: a plain simulation, because evicting one large entry for another is not
/// a matter of one distance. An entry keeps the size that it was loaded with; what is larger than the whole
/// cache is not stored.
pub(super) fn lru_hits_by_bytes(trace: &Trace, capacity: u64, progress: &Progress) -> u64 {
    progress.pass("LRU");
    let mut list = RecencyList::new(trace.distinct as usize);
    let mut stored = vec![0u32; trace.distinct as usize];
    let (mut bytes, mut hits) = (0u64, 0);
    for (access, id) in trace.ids.iter().copied().enumerate() {
        if access % ACCESSES_PER_TICK == 0 {
            progress.advance(ACCESSES_PER_TICK.min(trace.len() - access));
        }
        if stored[id as usize] > 0 {
            hits += 1;
            list.remove(id);
            list.push_front(id);
            continue;
        }
        let size = trace.size(access);
        if u64::from(size) > capacity {
            continue;
        }
        list.push_front(id);
        stored[id as usize] = size;
        bytes += u64::from(size);
        while bytes > capacity {
            let oldest = list.oldest();
            list.remove(oldest);
            bytes -= u64::from(std::mem::take(&mut stored[oldest as usize]));
        }
    }
    hits
}

/// A doubly linked list of ids; the last place is the ring's head.
struct RecencyList {
    newer: Vec<u32>,
    older: Vec<u32>,
    head: u32,
}

impl RecencyList {
    fn new(ids: usize) -> Self {
        let head = ids as u32;
        Self { newer: vec![head; ids + 1], older: vec![head; ids + 1], head }
    }

    fn oldest(&self) -> u32 {
        self.newer[self.head as usize]
    }

    fn remove(&mut self, id: u32) {
        let (newer, older) = (self.newer[id as usize], self.older[id as usize]);
        self.older[newer as usize] = older;
        self.newer[older as usize] = newer;
    }

    fn push_front(&mut self, id: u32) {
        let newest = self.older[self.head as usize];
        self.newer[newest as usize] = id;
        self.older[id as usize] = newest;
        self.newer[id as usize] = self.head;
        self.older[self.head as usize] = id;
    }
}

/// When the key of each access is accessed next.
pub(super) struct NextUses(Vec<u32>);

impl NextUses {
    pub(super) fn of(trace: &Trace) -> Self {
        let mut next = vec![NEVER; trace.len()];
        let mut seen = vec![NEVER; trace.distinct as usize];
        for (access, id) in trace.ids.iter().enumerate().rev() {
            next[access] = std::mem::replace(&mut seen[*id as usize], access as u32);
        }
        Self(next)
    }

    /// Hits of Belady's MIN with this many entries.
    ///
    /// An entry is known by the position of its next use, which no other entry has; one that is never used
    /// again is the first to go, so it is not kept at all. A hit is always the nearest next use, a victim the
    /// furthest, so positions that have passed lie at the bottom of the heap until a sweep.
    pub(super) fn belady_hits(&self, entries: u64, progress: &Progress) -> u64 {
        progress.pass("Belady");
        let mut kept = vec![0u64; self.0.len().div_ceil(64)];
        let mut furthest = BinaryHeap::new();
        let (mut live, mut hits) = (0u64, 0);
        for (access, next) in self.0.iter().copied().enumerate() {
            if access % ACCESSES_PER_TICK == 0 {
                progress.advance(ACCESSES_PER_TICK.min(self.0.len() - access));
            }
            if kept[access / 64] >> (access % 64) & 1 == 1 {
                hits += 1;
                live -= 1;
            }
            if next == NEVER {
                continue;
            }
            furthest.push(next);
            kept[next as usize / 64] |= 1 << (next % 64);
            live += 1;
            if live > entries
                && let Some(victim) = furthest.pop()
            {
                kept[victim as usize / 64] &= !(1 << (victim % 64));
                live -= 1;
            }
            if furthest.len() as u64 > 2 * live + 1024 {
                furthest.retain(|position| *position as usize > access);
            }
        }
        hits
    }

    /// PFOO-L: an upper bound of any policy's hits with a limit in bytes, for each capacity.
    ///
    /// Keeping an entry until its next use takes its size times the accesses in between; a cache has its
    /// capacity times all accesses to give. The bound gives to the cheapest first and ignores that they must
    /// not overlap. A key whose size changes counts with its smallest, which keeps it a bound.
    pub(super) fn hits_bound_by_bytes(
        &self,
        trace: &Trace,
        capacities: &[u64],
        progress: &Progress,
    ) -> Vec<u64> {
        progress.pass("bound");
        let smallest = trace.smallest_sizes();
        let mut intervals: Vec<(u64, u32)> = Vec::new();
        for (access, next) in self.0.iter().enumerate().filter(|(_, next)| **next != NEVER) {
            let size = smallest[trace.ids[access] as usize];
            intervals.push((u64::from(size) * u64::from(*next - access as u32), size));
        }
        intervals.sort_unstable();
        let bound = |capacity: u64| {
            let mut left = u128::from(capacity) * trace.len() as u128;
            let fitting = intervals.iter().filter(|(_, size)| u64::from(*size) <= capacity);
            let kept = fitting.take_while(|(cost, _)| {
                let enough = left.checked_sub(u128::from(*cost));
                left = enough.unwrap_or(left);
                enough.is_some()
            });
            kept.count() as u64
        };
        let bounds = capacities.iter().map(|capacity| bound(*capacity)).collect();
        progress.advance(trace.len());
        bounds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    /// A mix of a hot set, a scan and noise, so that all branches are taken.
    fn random_ids(seed: &mut u64, len: usize, keys: u64) -> Vec<u32> {
        (0..len)
            .map(|access| match random(seed) % 4 {
                0 => (access as u64 % keys) as u32,
                1 => (random(seed) % keys) as u32,
                _ => (random(seed) % (keys / 4 + 1)) as u32,
            })
            .collect()
    }

    /// Newest last.
    fn naive_lru(trace: &Trace, capacity: u64, weigh: impl Fn(usize) -> u64) -> u64 {
        let mut cache: Vec<(u32, u64)> = Vec::new();
        let mut hits = 0;
        for (access, id) in trace.ids.iter().enumerate() {
            if let Some(at) = cache.iter().position(|(cached, _)| cached == id) {
                let entry = cache.remove(at);
                cache.push(entry);
                hits += 1;
            } else if weigh(access) <= capacity {
                cache.push((*id, weigh(access)));
                while cache.iter().map(|(_, weight)| weight).sum::<u64>() > capacity {
                    cache.remove(0);
                }
            }
        }
        hits
    }

    fn naive_belady(trace: &Trace, capacity: usize) -> u64 {
        let next_use = |id: u32, after: usize| trace.ids[after + 1..].iter().position(|other| *other == id);
        let mut cache: Vec<u32> = Vec::new();
        let mut hits = 0;
        for (access, id) in trace.ids.iter().enumerate() {
            if cache.contains(id) {
                hits += 1;
                continue;
            }
            cache.push(*id);
            if cache.len() > capacity {
                let furthest = (0..cache.len())
                    .max_by_key(|at| next_use(cache[*at], access).unwrap_or(usize::MAX))
                    .expect("the cache holds the new entry at least");
                cache.remove(furthest);
            }
        }
        hits
    }

    /// The most hits with a limit in bytes, by trying everything.
    fn exhaustive_best(ids: &[u32], sizes: &[u32], capacity: u64, cache: &mut Vec<u32>) -> u64 {
        let Some((id, rest)) = ids.split_first() else { return 0 };
        let hit = u64::from(cache.contains(id));
        let before = cache.clone();
        if hit == 0 {
            cache.push(*id);
        }
        let mut best = 0;
        for subset in 0..1u32 << cache.len() {
            let mut kept: Vec<u32> =
                cache.iter().enumerate().filter(|(at, _)| subset >> at & 1 == 1).map(|(_, id)| *id).collect();
            if kept.iter().map(|id| u64::from(sizes[*id as usize])).sum::<u64>() <= capacity {
                best = best.max(exhaustive_best(rest, sizes, capacity, &mut kept));
            }
        }
        *cache = before;
        hit + best
    }

    /// a b c a b d a b c d, worked out on paper.
    ///
    /// LRU with 2: every reuse is at distance 3 or 4, no hit. With 3: a, b at distance 3 twice each hit; c and
    /// d come back at distance 4 and 4. With 4: all six.
    /// Belady with 2: of a b c, c goes (next uses 3, 4, 8): a, b hit, d comes and goes (9), a hits, b hits;
    /// 4 hits, and then of a, b, which never come back, none is c or d. With 3: c stays, the same 4 and c;
    /// d (next 9) is furthest when it comes beside a (6), b (7), c (8): 5. With 4: 6.
    #[test]
    fn hand_computed() {
        let trace = Trace::of(&[0, 1, 2, 0, 1, 3, 0, 1, 2, 3], None);
        let progress = Progress::hidden();
        let curve = LruCurve::of(&trace, &progress);
        assert_eq!([1, 2, 3, 4, 5, u64::MAX].map(|entries| curve.hits(entries)), [0, 0, 4, 6, 6, 6]);
        let next = NextUses::of(&trace);
        assert_eq!([1, 2, 3, 4].map(|entries| next.belady_hits(entries, &progress)), [2, 4, 5, 6]);
    }

    #[test]
    fn entries_agree_with_naive_simulations() {
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        let progress = Progress::hidden();
        for round in 0..60 {
            // Fewer keys than 32 renumber the Fenwick tree every few dozen accesses.
            let keys = [3, 10, 40, 150][round % 4];
            let trace = Trace::of(&random_ids(&mut seed, 700, keys), None);
            let curve = LruCurve::of(&trace, &progress);
            let next = NextUses::of(&trace);
            for capacity in [1, 2, 3, 7, 20, 100, 200] {
                assert_eq!(
                    curve.hits(capacity),
                    naive_lru(&trace, capacity, |_| 1),
                    "LRU {capacity} of {keys}"
                );
                let belady = next.belady_hits(capacity, &progress);
                assert_eq!(belady, naive_belady(&trace, capacity as usize), "Belady {capacity} of {keys}");
            }
        }
    }

    #[test]
    fn lru_by_bytes_agrees_with_naive_simulation() {
        let mut seed = 42;
        for _ in 0..40 {
            let ids = random_ids(&mut seed, 600, 50);
            let sizes: Vec<u32> = ids.iter().map(|_| 1 + (random(&mut seed) % 90) as u32).collect();
            let trace = Trace::of(&ids, Some(&sizes));
            for capacity in [1, 30, 100, 700, 10_000] {
                let hits = lru_hits_by_bytes(&trace, capacity, &Progress::hidden());
                assert_eq!(
                    hits,
                    naive_lru(&trace, capacity, |access| u64::from(sizes[access])),
                    "{capacity}"
                );
            }
        }
    }

    #[test]
    fn bound_by_bytes_is_never_below_the_best_there_is() {
        let mut seed = 7;
        let mut tight = 0;
        for _ in 0..300 {
            let ids: Vec<u32> = (0..8).map(|_| (random(&mut seed) % 4) as u32).collect();
            let of_key: Vec<u32> = (0..4).map(|_| 1 + (random(&mut seed) % 5) as u32).collect();
            let sizes: Vec<u32> = ids.iter().map(|id| of_key[*id as usize]).collect();
            let trace = Trace::of(&ids, Some(&sizes));
            let capacities = [1, 3, 6, 20];
            let bounds = NextUses::of(&trace).hits_bound_by_bytes(&trace, &capacities, &Progress::hidden());
            for (capacity, bound) in capacities.into_iter().zip(bounds) {
                let best = exhaustive_best(&ids, &of_key, capacity, &mut Vec::new());
                assert!(bound >= best, "{bound} < {best}: {ids:?} {of_key:?} in {capacity}");
                tight += usize::from(bound == best);
            }
        }
        assert!(tight > 600, "a bound that is reached in {tight} of 1200 cases says little");
    }
}
