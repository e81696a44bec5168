//! Which knobs suit the accesses: miniature shadow caches, one per [`KNOBS`], over a sample of the keys.
//!
//! Owns fingerprints, never keys or values. It learns from what the shards saw and answers with an index
//! into [`KNOBS`]; it never touches an entry. Background: miniature simulation (Waldspurger et al., 2017).

use super::hash;
use super::policy::{KNOBS, List, Policy, Queues};
use super::ring::Sample;
use hashbrown::HashTable;
use std::collections::VecDeque;

const LANES: usize = KNOBS.len();
/// The smallest shadow. At 1,000 entries 100 instead of 400 loses .0008 of hit ratio on average, at most .007,
/// and makes a miss two fifths cheaper.
const SHADOW_MIN: usize = 100;
/// Entries per shadow from which on thinning the sample further costs no hit ratio. At 100,000 entries one
/// access in 64 costs up to .01 with an unlucky hash, one in 16 nothing.
const SHADOW_AMPLE: usize = 2048;

/// Most entries that a shadow evicts for one. What is left to evict goes with the next.
const EVICTED_AT_ONCE: usize = 256;

/// The shadows, what they hold, and how they fared.
pub(super) struct Panel {
    rate: u32,
    entries: usize,
    /// What the shadows may weigh: the table's limit, as thinned as the sample.
    weight_max: u64,
    records: Records,
    lanes: [Lane; LANES],
    slow: Score,
    fast: Score,
    samples: u32,
    current: usize,
}

impl Panel {
    /// A panel for a cache of about `entries` entries that may weigh `weight_max` together.
    pub(super) fn new(entries: usize, weight_max: u64) -> Self {
        let rate = rate_for(entries);
        let shadow = (entries / rate as usize).max(1);
        let (samples_slow, samples_fast) = ((5 * shadow).max(4000), (3 * shadow).max(1000));
        Panel {
            rate,
            entries,
            weight_max: shadow_weight(weight_max, rate),
            records: Records::default(),
            lanes: std::array::from_fn(|lane| Lane::new(lane, shadow)),
            slow: Score::new(samples_slow, 3.0, 0.01),
            fast: Score::new(samples_fast, 6.0, 0.05),
            samples: 0,
            current: 0,
        }
    }

    /// A fresh panel for another number of entries, which goes on with the knobs of the old one.
    pub(super) fn resized(entries: usize, weight_max: u64, old: &Panel) -> Self {
        Panel { current: old.current, ..Self::new(entries, weight_max) }
    }

    /// The table's limit is another one. Shadows that exceed it shrink as they take entries in.
    pub(super) fn set_weight_max(&mut self, weight_max: u64) {
        self.weight_max = shadow_weight(weight_max, self.rate);
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

    /// A sampled key was looked up or stored, as an entry of this weight.
    pub(super) fn access(&mut self, Sample { fingerprint, weight }: Sample) {
        let found = self.records.find(fingerprint);
        if let Some(id) = found {
            self.reweigh(id, weight);
        }
        let hits = found.map_or(0, |id| self.records.hit(id));
        if hits == ALL {
            self.slow.hit_by_all();
            self.fast.hit_by_all();
        } else {
            let id = found.unwrap_or_else(|| self.records.add(fingerprint, weight));
            for (at, lane) in self.lanes.iter_mut().enumerate() {
                if hits & LOW << (8 * at) == 0 {
                    lane.insert(&mut self.records, id, self.weight_max);
                }
            }
            self.records.free_unnamed(id);
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
        if self.samples as usize >= (self.entries / self.rate as usize / 4).max(64) {
            self.decide();
        }
    }

    /// A sampled key was removed.
    pub(super) fn forget(&mut self, fingerprint: u32) {
        let (left, weight) = self.records.remove(fingerprint);
        for (lane, list) in left.into_iter().flatten() {
            self.lanes[lane].weights[list as usize] -= weight;
        }
    }

    /// An entry was replaced by a heavier or lighter one.
    fn reweigh(&mut self, id: u32, weight: u32) {
        let before = u64::from(self.records.slots[id as usize].weight);
        if before == u64::from(weight) {
            return;
        }
        self.records.slots[id as usize].weight = weight;
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            if let Some(list) = self.records.list(id, at) {
                let sum = &mut lane.weights[list as usize];
                *sum = *sum - before + u64::from(weight);
            }
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
            let mut weights = [0; 3];
            for list in [List::Small, List::Probation, List::Protected] {
                for &id in &lane.queues[list as usize] {
                    let byte = self.records.byte(id, at);
                    assert!(byte & (GONE | LIST) != 0, "a queue names a record that is free");
                    if byte & GONE == 0 {
                        assert_eq!(byte & LIST, list_bits(list));
                        weights[list as usize] += u64::from(self.records.slots[id as usize].weight);
                    }
                }
            }
            assert_eq!(weights, lane.weights);
        }
        assert_eq!(self.records.index.len() + self.records.unindexed(), self.records.in_use());
    }
}

/// At least 1, so that what weighs 1 fits.
fn shadow_weight(weight_max: u64, rate: u32) -> u64 {
    (weight_max / u64::from(rate)).max(1)
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
    policy: Policy,
    /// With removed ones among them, which [`weights`](Self::weights) does not count.
    queues: [VecDeque<u32>; 3],
    weights: [u64; 3],
}

impl Lane {
    fn new(at: usize, entries: usize) -> Self {
        let policy = Policy::only(&KNOBS[at], entries);
        Lane { at, policy, queues: Default::default(), weights: [0; 3] }
    }

    fn insert(&mut self, records: &mut Records, id: u32, weight_max: u64) {
        let Lane { at, ref mut policy, .. } = *self;
        let knobs = &KNOBS[at];
        let was_evicted = policy.arrive(records.slots[id as usize].fingerprint);
        let Some(room) = weight_max.checked_sub(u64::from(records.slots[id as usize].weight)) else { return };
        let mut queues = Shadow { at, records, queues: &mut self.queues, weights: &mut self.weights };
        if queues.weights.iter().sum::<u64>() <= room {
            policy.spill(&mut queues, knobs, weight_max);
        }
        for _ in 0..EVICTED_AT_ONCE {
            if queues.weights.iter().sum::<u64>() <= room {
                break;
            }
            let Some(gone) = policy.evict(&mut queues, knobs, weight_max) else { break };
            queues.records.clear(gone, at);
        }
        policy.place(&mut queues, knobs, id, was_evicted);
    }
}

struct Shadow<'a> {
    at: usize,
    records: &'a mut Records,
    queues: &'a mut [VecDeque<u32>; 3],
    weights: &'a mut [u64; 3],
}

impl Queues for Shadow<'_> {
    fn weight(&self, list: List) -> u64 {
        self.weights[list as usize]
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
        self.weights[list as usize] -= u64::from(self.records.slots[id as usize].weight);
        Some(id)
    }

    fn push(&mut self, list: List, id: u32) {
        self.records.set(id, self.at, LIST, list_bits(list));
        self.queues[list as usize].push_back(id);
        self.weights[list as usize] += u64::from(self.records.slots[id as usize].weight);
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
const ALL: u32 = 0x0101_0101;
const LOW: u32 = 1;
const _: () = assert!(LANES == 4, "ALL names four bytes");

fn list_bits(list: List) -> u8 {
    (list as u8 + 1) << 3
}

#[derive(Clone, Copy)]
struct Record {
    fingerprint: u32,
    weight: u32,
    indexed: bool,
    /// A byte per shadow; 0 in all: free.
    bytes: u32,
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

    fn add(&mut self, fingerprint: u32, weight: u32) -> u32 {
        let record = Record { fingerprint, weight, indexed: true, bytes: 0 };
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
    fn hit(&mut self, id: u32) -> u32 {
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
        *bytes = *bytes & !(u32::from(field) << (8 * lane)) | u32::from(to) << (8 * lane);
    }

    /// The shadow no longer names the record; the last one frees it.
    fn clear(&mut self, id: u32, lane: usize) {
        self.set(id, lane, u8::MAX, 0);
        self.free_unnamed(id);
    }

    /// Frees a record that no shadow names.
    fn free_unnamed(&mut self, id: u32) {
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
    fn remove(&mut self, fingerprint: u32) -> ([Option<(usize, List)>; LANES], u64) {
        let mut left = [None; LANES];
        let Some(id) = self.find(fingerprint) else { return (left, 0) };
        for (lane, left) in left.iter_mut().enumerate() {
            let Some(list) = self.list(id, lane) else { continue };
            self.set(id, lane, u8::MAX, GONE);
            *left = Some((lane, list));
        }
        let hash = hash::index_hash(fingerprint);
        if let Ok(found) = self.index.find_entry(hash, |&other| other == id) {
            found.remove();
        }
        self.slots[id as usize].indexed = false;
        (left, u64::from(self.slots[id as usize].weight))
    }

    /// The queue of this shadow that the record stands in.
    fn list(&self, id: u32, lane: usize) -> Option<List> {
        match self.byte(id, lane) & LIST {
            0 => None,
            0b01000 => Some(List::Small),
            0b10000 => Some(List::Probation),
            _ => Some(List::Protected),
        }
    }

    fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn unindexed(&self) -> usize {
        self.slots.iter().filter(|record| record.bytes != 0 && !record.indexed).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sums that a shadow keeps against a walk, under removals, changed weights and a changed limit.
    #[test]
    fn shadows_are_bounded_by_weight() {
        let mut panel = Panel::new(1600, 40_000);
        let mut rng = fastrand::Rng::with_seed(11);
        let mut largest = 0;
        for round in 0..6u32 {
            let limit = if round < 3 { 40_000 } else { 20_000 };
            panel.set_weight_max(limit);
            for _ in 0..if cfg!(miri) { 200 } else { 5000 } {
                let fingerprint = 1 + (rng.f64().powi(3) * 3000.0) as u32;
                // Some are heavier than a shadow: those it refuses.
                let weight = if rng.u32(0..50) == 0 { 5000 } else { 1 + fingerprint % 50 };
                panel.access(Sample { fingerprint, weight });
                if rng.u32(0..20) == 0 {
                    panel.forget(1 + rng.u32(0..3000));
                }
            }
            panel.assert_valid();
            // A key that came back heavier may stand above the limit until the next one that is taken in.
            for fingerprint in 10_000..10_050 {
                panel.access(Sample { fingerprint, weight: 1 });
            }
            for lane in &panel.lanes {
                let weight = lane.weights.iter().sum::<u64>();
                assert!(weight <= limit / u64::from(panel.rate), "{weight} of {limit} / {}", panel.rate);
                largest = weight.max(largest);
            }
        }
        assert!(largest > 1000, "the shadows stayed empty: {largest}");
    }
}
