//! The vectors of one partition, and the search among them: signs first (48 bytes a vector of 384 dimensions, so that
//! 100,000 pass through the cache in a moment), then the true similarity of those whose signs are nearest.
//!
//! Signs are taken of what a vector has beside the mean of all. Models whose vectors all point the same way would
//! have nearly equal signs otherwise. The mean is renewed, and with it all signs, whenever the number of vectors has
//! doubled, so that an insertion costs the same in the mean.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::Near;
use super::kernels::{BLOCK, Kernels, Words};

/// Fewer vectors than this are all compared in full.
const SIGNS_FROM: usize = 512;
/// Of so many vectors one is a candidate, beside a fixed number: measured, see `DESIGN.md`, "Semantic index".
const CANDIDATES_SHARE: usize = 128;
const CANDIDATES_MIN: usize = 192;
/// For each entry that is asked for.
const CANDIDATES_FACTOR: usize = 8;

/// Vectors of length 1, by id.
#[derive(Debug)]
pub(super) struct Rows {
    dimensions: usize,
    slots: HashMap<u64, usize, foldhash::fast::RandomState>,
    ids: Vec<u64>,
    vectors: Vec<f32>,
    /// For each 8 vectors and 64 dimensions, their signs; empty as long as all are compared in full.
    signs: Vec<Words>,
    mean: Vec<f32>,
    /// At how many vectors the mean is renewed.
    renewed_at: usize,
    /// Whether the index has let go of this partition: nothing is put into it any more.
    pub(super) gone: bool,
}

/// Memory of a search, kept by its thread.
#[derive(Default)]
pub(super) struct Scratch {
    distances: Vec<u16>,
    histogram: Vec<u32>,
    found: Vec<Near>,
}

impl Rows {
    pub(super) fn new(dimensions: usize) -> Self {
        Rows {
            dimensions,
            slots: HashMap::default(),
            ids: Vec::new(),
            vectors: Vec::new(),
            signs: Vec::new(),
            mean: Vec::new(),
            renewed_at: SIGNS_FROM,
            gone: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.slots.contains_key(&id)
    }

    /// Ids and vectors in the order of their slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &[f32])> {
        self.ids.iter().copied().zip(self.vectors.chunks_exact(self.dimensions))
    }

    /// `vector` has length 1.
    pub(super) fn insert(&mut self, id: u64, vector: &[f32]) {
        let slot = match self.slots.get(&id) {
            Some(&slot) => {
                self.vectors[slot * self.dimensions..][..self.dimensions].copy_from_slice(vector);
                slot
            }
            None => {
                let slot = self.ids.len();
                self.slots.insert(id, slot);
                self.ids.push(id);
                self.vectors.extend_from_slice(vector);
                slot
            }
        };
        if self.ids.len() >= self.renewed_at {
            self.renew();
        } else if !self.mean.is_empty() {
            self.sign(slot);
        }
    }

    /// The last vector takes the place of the one that goes.
    pub(super) fn remove(&mut self, id: u64) -> bool {
        let Some(slot) = self.slots.remove(&id) else { return false };
        let last = self.ids.len() - 1;
        self.ids.swap_remove(slot);
        self.vectors.copy_within(last * self.dimensions.., slot * self.dimensions);
        self.vectors.truncate(last * self.dimensions);
        if slot < last {
            self.slots.insert(self.ids[slot], slot);
            if !self.mean.is_empty() {
                self.sign(slot);
            }
        }
        // A partition that was large once does not keep its memory for ever.
        if self.vectors.capacity() > 4 * self.vectors.len().max(64 * self.dimensions) {
            self.vectors.shrink_to(2 * self.vectors.len());
            self.ids.shrink_to(2 * last);
            self.slots.shrink_to(2 * last);
            if self.ids.len() < SIGNS_FROM / 2 {
                (self.signs, self.mean, self.renewed_at) = (Vec::new(), Vec::new(), SIGNS_FROM);
            } else {
                self.renew();
            }
        }
        true
    }

    fn words(&self) -> usize {
        self.dimensions.div_ceil(64)
    }

    fn renew(&mut self) {
        let count = self.ids.len();
        let mut mean = vec![0f64; self.dimensions];
        for vector in self.vectors.chunks_exact(self.dimensions) {
            mean.iter_mut().zip(vector).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        self.mean = mean.iter().map(|sum| (sum / count as f64) as f32).collect();
        self.signs = Vec::with_capacity(count.div_ceil(BLOCK) * 2 * self.words());
        for slot in 0..count {
            self.sign(slot);
        }
        self.renewed_at = 2 * count;
    }

    /// Writes the signs of the vector in `slot`.
    fn sign(&mut self, slot: usize) {
        let words = self.words();
        let block = slot / BLOCK * words;
        if self.signs.len() < block + words {
            self.signs.resize(block + words, [0; BLOCK]);
        }
        let vector = &self.vectors[slot * self.dimensions..][..self.dimensions];
        signs(vector, &self.mean, |word, bits| self.signs[block + word][slot % BLOCK] = bits);
    }

    /// The nearest `count` to `query`, which has length 1.
    pub(super) fn search(
        &self,
        kernels: Kernels,
        query: &[f32],
        count: usize,
        similarity_min: f32,
        scratch: &mut Scratch,
    ) -> Vec<Near> {
        let Scratch { distances, histogram, found } = scratch;
        found.clear();
        let near = |slot: usize| Near {
            id: self.ids[slot],
            similarity: kernels.product(query, &self.vectors[slot * self.dimensions..][..self.dimensions]),
        };
        let candidates = (CANDIDATES_MIN + self.len() / CANDIDATES_SHARE).max(CANDIDATES_FACTOR * count);
        if self.mean.is_empty() || candidates >= self.len() {
            found.extend((0..self.len()).map(near));
        } else {
            let mut of_query = vec![0; self.words()];
            signs(query, &self.mean, |word, bits| of_query[word] = bits);
            kernels.differing_signs(&of_query, &self.signs, distances);
            distances.truncate(self.len());
            let limit = limit(distances, self.words() * 64, candidates, histogram);
            let slots = distances.iter().enumerate().filter(|&(_, &distance)| distance <= limit);
            found.extend(slots.map(|(slot, _)| near(slot)));
        }
        found.retain(|near| near.similarity >= similarity_min);
        if found.len() > count {
            found.select_nth_unstable_by(count - 1, order);
            found.truncate(count);
        }
        found.sort_unstable_by(order);
        // Rounding may leave a little more than 1.
        found.iter().map(|near| Near { similarity: near.similarity.clamp(-1.0, 1.0), ..*near }).collect()
    }
}

fn order(a: &Near, b: &Near) -> Ordering {
    b.similarity.total_cmp(&a.similarity).then_with(|| a.id.cmp(&b.id))
}

/// The least distance that at least `count` of `distances` do not exceed.
fn limit(distances: &[u16], max: usize, count: usize, histogram: &mut Vec<u32>) -> u16 {
    histogram.clear();
    histogram.resize(max + 1, 0);
    for &distance in distances {
        histogram[usize::from(distance)] += 1;
    }
    let mut seen = 0;
    let reached = histogram.iter().position(|&more| {
        seen += more as usize;
        seen >= count
    });
    reached.unwrap_or(max) as u16
}

/// Calls `each` with a word and its bits: whether a dimension is above the mean.
fn signs(vector: &[f32], mean: &[f32], mut each: impl FnMut(usize, u64)) {
    for (word, (vector, mean)) in vector.chunks(64).zip(mean.chunks(64)).enumerate() {
        let bits = vector.iter().zip(mean).enumerate();
        each(word, bits.fold(0, |bits, (at, (x, mean))| bits | u64::from(x > mean) << at));
    }
}
