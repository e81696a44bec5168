//! Which knobs suit the accesses: miniature shadow caches, one per [`KNOBS`], over a sample of the keys.
//!
//! Owns fingerprints, never keys or values. It learns from what the shards saw and answers with an index
//! into [`KNOBS`]; it never touches an entry. Background: miniature simulation (Waldspurger et al., 2017).

use super::hash;
use super::policy::{KNOBS, List, Policy, Queues};
use hashbrown::HashTable;
use std::collections::VecDeque;

const LANES: usize = KNOBS.len();
/// The smallest shadow that still predicts: below, the noise of so few entries outweighs the signal.
const SHADOW_MIN: usize = 400;
/// Entries per shadow from which on thinning the sample further costs no hit ratio. At 100,000 entries one
/// access in 64 costs up to .01 with an unlucky hash, one in 16 nothing.
const SHADOW_AMPLE: usize = 2048;

/// The shadows, what they hold, and how they fared.
pub(super) struct Panel {
    rate: u32,
    entries: usize,
    records: Records,
    lanes: [Lane; LANES],
    slow: Score,
    fast: Score,
    samples: u32,
    current: usize,
}

impl Panel {
    /// A panel for a cache of about `entries` entries.
    pub(super) fn new(entries: usize) -> Self {
        let rate = rate_for(entries);
        let shadow = (entries / rate as usize).max(1);
        let (samples_slow, samples_fast) = ((10 * shadow).max(32_000), (3 * shadow).max(1000));
        Panel {
            rate,
            entries,
            records: Records::default(),
            lanes: std::array::from_fn(|lane| Lane::new(lane, shadow)),
            slow: Score::new(samples_slow, 3.0, 0.02),
            fast: Score::new(samples_fast, 12.0, 0.20),
            samples: 0,
            current: 0,
        }
    }

    /// A fresh panel for another number of entries, which goes on with the knobs of the old one.
    pub(super) fn resized(entries: usize, old: &Panel) -> Self {
        Panel { current: old.current, ..Self::new(entries) }
    }

    /// One key in this many is to be shown to the panel: a power of two.
    pub(super) fn rate(&self) -> u32 {
        self.rate
    }

    /// The entries that it was made for.
    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// The knobs that it advises.
    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// A sampled key was looked up or stored.
    pub(super) fn access(&mut self, fingerprint: u32) {
        let found = self.records.find(fingerprint);
        let hits = found.map_or(0, |id| self.records.hit(id));
        if hits == ALL {
            self.slow.hit_by_all();
            self.fast.hit_by_all();
        } else {
            let id = found.unwrap_or_else(|| self.records.add(fingerprint));
            for (at, lane) in self.lanes.iter_mut().enumerate() {
                if hits & LOW << (8 * at) == 0 {
                    lane.insert(&mut self.records, id);
                }
            }
            if hits != 0 {
                let hit: [bool; LANES] = std::array::from_fn(|lane| hits & LOW << (8 * lane) != 0);
                self.slow.disagreement(&hit);
                self.fast.disagreement(&hit);
            } else {
                self.slow.total += 1.0;
                self.fast.total += 1.0;
            }
        }
        self.samples += 1;
        if self.samples as usize >= (self.lanes[0].capacity / 4).max(64) {
            self.decide();
        }
    }

    /// A sampled key was removed.
    pub(super) fn forget(&mut self, fingerprint: u32) {
        for (lane, list) in self.records.remove(fingerprint).into_iter().flatten() {
            self.lanes[lane].lens[list as usize] -= 1;
        }
    }

    fn decide(&mut self) {
        self.slow.decay(self.samples);
        self.fast.decay(self.samples);
        self.samples = 0;
        if let Some(better) = self.slow.better_than(self.current) {
            self.current = better;
        }
        if let Some(better) = self.fast.better_than(self.current) {
            self.current = better;
            (self.slow.wins, self.slow.hits, self.slow.total) =
                (self.fast.wins, self.fast.hits, self.fast.total);
        }
    }

    /// Checks every count against a walk over all shadows.
    pub(super) fn assert_valid(&self) {
        for (at, lane) in self.lanes.iter().enumerate() {
            let mut lens = [0; 3];
            for list in [List::Small, List::Probation, List::Protected] {
                for &id in &lane.queues[list as usize] {
                    let byte = self.records.byte(id, at);
                    assert!(byte & (GONE | LIST) != 0, "a queue names a record that is free");
                    if byte & GONE == 0 {
                        assert_eq!(byte & LIST, list_bits(list));
                        lens[list as usize] += 1;
                    }
                }
            }
            assert_eq!(lens, lane.lens);
            assert!(lens.iter().sum::<usize>() <= lane.capacity);
        }
        assert_eq!(self.records.index.len() + self.records.unindexed(), self.records.in_use());
    }
}

/// One access in 16 at most while the shadows are small; one in 64 where they stay large all the same.
fn rate_for(entries: usize) -> u32 {
    let dense = (entries / SHADOW_MIN).clamp(1, 16);
    let sparse = (entries / SHADOW_AMPLE).clamp(1, hash::SAMPLE_RATE_MAX as usize);
    1 << dense.max(sparse).ilog2()
}

/// Who hit where others missed, forgetting with a half-life.
struct Score {
    /// `wins[i][j]`: samples that shadow i hit and j missed.
    wins: [[f64; LANES]; LANES],
    hits: [f64; LANES],
    total: f64,
    half_life: f64,
    /// A lead must exceed this many standard deviations of a coin toss,
    deviations: f64,
    /// and this share of the variance of a hit, so that a switch is worth its disturbance.
    worth: f64,
}

impl Score {
    fn new(half_life: usize, deviations: f64, worth: f64) -> Self {
        let (wins, hits) = ([[0.0; LANES]; LANES], [0.0; LANES]);
        Score { wins, hits, total: 0.0, half_life: half_life as f64, deviations, worth }
    }

    fn hit_by_all(&mut self) {
        self.total += 1.0;
        self.hits.iter_mut().for_each(|hits| *hits += 1.0);
    }

    fn disagreement(&mut self, hit: &[bool; LANES]) {
        self.total += 1.0;
        for i in (0..LANES).filter(|&i| hit[i]) {
            self.hits[i] += 1.0;
            for j in (0..LANES).filter(|&j| !hit[j]) {
                self.wins[i][j] += 1.0;
            }
        }
    }

    fn decay(&mut self, samples: u32) {
        let keep = 0.5f64.powf(f64::from(samples) / self.half_life);
        self.wins.iter_mut().flatten().for_each(|wins| *wins *= keep);
        self.hits.iter_mut().for_each(|hits| *hits *= keep);
        self.total *= keep;
    }

    fn better_than(&self, current: usize) -> Option<usize> {
        let best = (0..LANES).max_by(|&i, &j| self.hits[i].total_cmp(&self.hits[j]))?;
        let (won, lost) = (self.wins[best][current], self.wins[current][best]);
        let lead = won - lost;
        let share = self.hits[best] / self.total.max(1.0);
        let distance = (KNOBS[best].small.as_f64() - KNOBS[current].small.as_f64()).abs();
        let worth = (self.worth * share * (1.0 - share) + 0.02 * distance) * self.total;
        (best != current && lead > self.deviations * (won + lost).sqrt() && lead > worth).then_some(best)
    }
}

/// One shadow: its queues of record ids and its own ghost and sketch.
struct Lane {
    at: usize,
    capacity: usize,
    policy: Policy,
    /// With removed ones among them, which [`lens`](Self::lens) does not count.
    queues: [VecDeque<u32>; 3],
    lens: [usize; 3],
}

impl Lane {
    fn new(at: usize, capacity: usize) -> Self {
        let policy = Policy::only(&KNOBS[at], capacity);
        Lane { at, capacity, policy, queues: Default::default(), lens: [0; 3] }
    }

    fn insert(&mut self, records: &mut Records, id: u32) {
        let Lane { at, capacity, ref mut policy, .. } = *self;
        let knobs = &KNOBS[at];
        let was_evicted = policy.arrive(records.slots[id as usize].fingerprint);
        let mut queues = Shadow { at, records, queues: &mut self.queues, lens: &mut self.lens };
        if queues.lens.iter().sum::<usize>() >= capacity {
            if let Some(gone) = policy.evict(&mut queues, knobs, capacity as u64) {
                queues.records.clear(gone, at);
            }
        } else {
            policy.spill(&mut queues, knobs, capacity as u64);
        }
        policy.place(&mut queues, knobs, id, was_evicted);
    }
}

struct Shadow<'a> {
    at: usize,
    records: &'a mut Records,
    queues: &'a mut [VecDeque<u32>; 3],
    lens: &'a mut [usize; 3],
}

impl Queues for Shadow<'_> {
    fn weight(&self, list: List) -> u64 {
        self.lens[list as usize] as u64
    }

    fn oldest(&mut self, list: List) -> Option<u32> {
        let queue = &mut self.queues[list as usize];
        while let Some(&id) = queue.front() {
            if self.records.byte(id, self.at) & GONE == 0 {
                return Some(id);
            }
            queue.pop_front();
            self.records.clear(id, self.at);
        }
        None
    }

    fn pop(&mut self, list: List) -> Option<u32> {
        let id = self.oldest(list)?;
        self.queues[list as usize].pop_front();
        self.lens[list as usize] -= 1;
        Some(id)
    }

    fn push(&mut self, list: List, id: u32) {
        self.records.set(id, self.at, LIST, list_bits(list));
        self.queues[list as usize].push_back(id);
        self.lens[list as usize] += 1;
    }

    fn count(&self, id: u32) -> u8 {
        self.records.byte(id, self.at) & COUNT
    }

    fn set_count(&mut self, id: u32, count: u8) {
        self.records.set(id, self.at, COUNT, count);
    }

    fn fingerprint(&self, id: u32) -> u32 {
        self.records.slots[id as usize].fingerprint
    }
}

/// The bits of a record's byte: a hit count, the queue from 1 on, and whether it was removed while queued.
const COUNT: u8 = 0b111;
const LIST: u8 = 0b11000;
const GONE: u8 = 0b10_0000;
/// The lowest bit of every shadow's byte.
const ALL: u64 = 0x0001_0101_0101_0101;
const LOW: u64 = 1;
const _: () = assert!(LANES == 7, "ALL names seven bytes");

fn list_bits(list: List) -> u8 {
    (list as u8 + 1) << 3
}

#[derive(Clone, Copy)]
struct Record {
    fingerprint: u32,
    indexed: bool,
    /// A byte per shadow; 0 in all: free.
    bytes: u64,
}

/// What all shadows hold, a record per key, so that a hit in all of them is one probe and one addition.
#[derive(Default)]
struct Records {
    index: HashTable<u32>,
    slots: Vec<Record>,
    free: Vec<u32>,
}

impl Records {
    fn find(&self, fingerprint: u32) -> Option<u32> {
        let is_it = |&id: &u32| self.slots[id as usize].fingerprint == fingerprint;
        self.index.find(hash::index_hash(fingerprint), is_it).copied()
    }

    fn add(&mut self, fingerprint: u32) -> u32 {
        let record = Record { fingerprint, indexed: true, bytes: 0 };
        let id = self.free.pop().unwrap_or(self.slots.len() as u32);
        match self.slots.get_mut(id as usize) {
            Some(slot) => *slot = record,
            None => self.slots.push(record),
        }
        let hash = |&id: &u32| hash::index_hash(self.slots[id as usize].fingerprint);
        self.index.insert_unique(hash::index_hash(fingerprint), id, hash);
        id
    }

    /// Counts a hit in every shadow that holds the record; a bit for each.
    fn hit(&mut self, id: u32) -> u64 {
        let bytes = &mut self.slots[id as usize].bytes;
        let present = (*bytes >> 3 | *bytes >> 4) & ALL;
        let full = *bytes & *bytes >> 1 & *bytes >> 2;
        *bytes += present & !full;
        present
    }

    fn byte(&self, id: u32, lane: usize) -> u8 {
        (self.slots[id as usize].bytes >> (8 * lane)) as u8
    }

    fn set(&mut self, id: u32, lane: usize, field: u8, to: u8) {
        let bytes = &mut self.slots[id as usize].bytes;
        *bytes = *bytes & !(u64::from(field) << (8 * lane)) | u64::from(to) << (8 * lane);
    }

    /// The shadow no longer names the record; the last one frees it.
    fn clear(&mut self, id: u32, lane: usize) {
        self.set(id, lane, u8::MAX, 0);
        let record = self.slots[id as usize];
        if record.bytes == 0 {
            if record.indexed {
                let hash = hash::index_hash(record.fingerprint);
                if let Ok(found) = self.index.find_entry(hash, |&other| other == id) {
                    found.remove();
                }
            }
            self.free.push(id);
        }
    }

    /// Takes the key out of all shadows at once; their queues drop it when they come to it.
    fn remove(&mut self, fingerprint: u32) -> [Option<(usize, List)>; LANES] {
        let mut left = [None; LANES];
        let Some(id) = self.find(fingerprint) else { return left };
        for (lane, left) in left.iter_mut().enumerate() {
            let list = match self.byte(id, lane) & LIST {
                0 => continue,
                0b01000 => List::Small,
                0b10000 => List::Probation,
                _ => List::Protected,
            };
            self.set(id, lane, u8::MAX, GONE);
            *left = Some((lane, list));
        }
        let hash = hash::index_hash(fingerprint);
        if let Ok(found) = self.index.find_entry(hash, |&other| other == id) {
            found.remove();
        }
        self.slots[id as usize].indexed = false;
        left
    }

    fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn unindexed(&self) -> usize {
        self.slots.iter().filter(|record| record.bytes != 0 && !record.indexed).count()
    }
}
