//! Exact search by scanning all vectors: an evaluation must not blame the policy for what an index missed.

/// Vectors of one length, with the position each was added at.
pub(super) struct Scan {
    dimensions: usize,
    values: Vec<f32>,
}

/// Lanes summed side by side, so that the loop runs in vector registers.
const LANES: usize = 16;

impl Scan {
    pub(super) fn new(dimensions: usize) -> Scan {
        Scan { dimensions, values: Vec::new() }
    }

    pub(super) fn add(&mut self, vector: &[f32]) {
        assert_eq!(vector.len(), self.dimensions, "all vectors of an evaluation have one length");
        self.values.extend_from_slice(vector);
    }

    /// Positions and similarities of the nearest, nearest first.
    pub(super) fn nearest(&self, vector: &[f32], count: usize) -> Vec<(usize, f32)> {
        let mut best: Vec<(usize, f32)> = Vec::with_capacity(count + 1);
        for (at, row) in self.values.chunks_exact(self.dimensions.max(1)).enumerate() {
            let similarity = dot(row, vector);
            if best.len() == count && best.last().is_some_and(|last| similarity <= last.1) {
                continue;
            }
            let place = best.partition_point(|found| found.1 >= similarity);
            best.insert(place, (at, similarity));
            best.truncate(count);
        }
        best
    }
}

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
