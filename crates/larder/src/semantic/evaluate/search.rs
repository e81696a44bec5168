//! The index that a cache searches, over the questions of an evaluation: what it misses counts, as it would in service.

use super::Embedded;
use crate::semantic::Model;
use crate::semantic::index::{Partition, Scan, ScanOptions, VectorIndex};

/// Stored questions by their place.
pub(super) struct Search {
    /// `None` where no index has vectors of that length, and so nothing is ever near.
    index: Option<Scan>,
}

/// An evaluation has one scope.
const PARTITION: Partition = Partition([0; 16]);

impl Search {
    /// An empty one for up to `entries_max` questions that are embedded like `like`.
    pub(super) fn new(like: Option<&Embedded>, entries_max: usize) -> Search {
        let dimensions = like.map_or(0, |question| question.vector.len());
        let model = Model { name: "evaluated".into(), version: String::new(), dimensions };
        let index = Scan::new(model, ScanOptions { entries_max });
        Search { index: index.ok() }
    }

    pub(super) fn add(&mut self, place: usize, question: &Embedded) {
        if let Some(index) = &self.index {
            // Refused is only what has no direction, or another length: it is near to nothing.
            let _ = index.insert(PARTITION, place as u64, &question.vector);
        }
    }

    /// Places and similarities of the nearest, nearest first.
    pub(super) fn nearest(&self, question: &Embedded, count: usize) -> Vec<(usize, f32)> {
        let found = self.index.as_ref().map(|index| index.search(PARTITION, &question.vector, count, -1.0));
        let found = found.and_then(Result::ok).unwrap_or_default();
        found.into_iter().map(|near| (near.id as usize, near.similarity)).collect()
    }
}

/// Lanes summed side by side, so that the loop runs in vector registers.
const LANES: usize = 16;

/// The product of two vectors of one length; of unit vectors, their cosine.
pub(super) fn dot(one: &[f32], other: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (ones, others) = (one.chunks_exact(LANES), other.chunks_exact(LANES));
    let rest: f32 = ones.remainder().iter().zip(others.remainder()).map(|(one, other)| one * other).sum();
    for (one, other) in ones.zip(others) {
        for lane in 0..LANES {
            lanes[lane] += one[lane] * other[lane];
        }
    }
    lanes.iter().sum::<f32>() + rest
}
