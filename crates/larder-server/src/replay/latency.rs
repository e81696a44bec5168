//! How long accesses took: a histogram with logarithmic buckets, and which accesses are timed.

use std::time::{Duration, Instant};

/// Buckets per power of two: a percentile is at most 1/32 too high.
const STEPS: u64 = 32;

/// One access in so many is timed, on average. Reading the clock twice costs more than a hit.
pub(super) const SAMPLED_ONE_IN: u64 = 16;

/// Durations counted by nanoseconds; exact below 64 ns, within 1/32 above.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        Self { counts: vec![0; bucket(u64::MAX) + 1], total: 0 }
    }

    pub(super) fn record(&mut self, nanos: u64) {
        self.counts[bucket(nanos)] += 1;
        self.total += 1;
    }

    /// How many were recorded.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The nanoseconds that this share of the durations does not exceed; `None` when there are none.
    pub(super) fn quantile(&self, share: f64) -> Option<u64> {
        let rank = ((share * self.total as f64).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        self.counts.iter().enumerate().find_map(|(at, count)| {
            seen += count;
            (seen >= rank).then(|| upper(at))
        })
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < STEPS {
        return nanos as usize;
    }
    let octave = u64::from(nanos.ilog2() - STEPS.ilog2());
    (octave * STEPS + (nanos >> octave)) as usize
}

/// The largest number of the bucket.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * STEPS {
        return bucket;
    }
    let octave = bucket / STEPS - 1;
    let first = (bucket % STEPS + STEPS) << octave;
    first + ((1 << octave) - 1)
}

/// Chooses the accesses that are timed: at random, so that a loop in the trace can't hide from it.
pub(super) struct Sampler {
    state: u64,
    gap: u64,
}

impl Sampler {
    /// Always the same choice, so that one run times what the other did.
    pub(super) fn new() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, gap: 0 }
    }

    /// Whether to time this access. The gaps are 1 to 31, 16 on average.
    pub(super) fn takes(&mut self) -> bool {
        if self.gap > 0 {
            self.gap -= 1;
            return false;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.gap = (self.state >> 32) % (2 * SAMPLED_ONE_IN - 1);
        true
    }
}

/// What measuring itself takes: the median of two clock reads in a row.
pub(super) fn clock_cost() -> Duration {
    let mut reads: Vec<Duration> = (0..999).map(|_| Instant::now().elapsed()).collect();
    reads.sort_unstable();
    reads[reads.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_narrow() {
        let mut last = 0;
        for at in 1..bucket(u64::MAX) {
            assert_eq!(bucket(upper(at)), at);
            assert_eq!(bucket(upper(at) + 1), at + 1);
            let width = upper(at) - last;
            assert!(width <= (upper(at) / STEPS).max(1), "bucket {at} is {width} wide");
            last = upper(at);
        }
        assert_eq!(upper(bucket(u64::MAX)), u64::MAX);
    }

    #[test]
    fn quantiles() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile(0.5), None);
        for nanos in 1..=1000 {
            histogram.record(nanos);
        }
        for (share, exact) in [(0.0, 1.0), (0.01, 10.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let got = histogram.quantile(share).unwrap() as f64;
            assert!(got >= exact && got <= exact * (1.0 + 1.0 / 32.0), "{share}: {got}, exact {exact}");
        }
    }

    #[test]
    fn sampler_takes_its_share() {
        let mut sampler = Sampler::new();
        let taken = (0..160_000).filter(|_| sampler.takes()).count();
        assert!((9_500..10_500).contains(&taken), "{taken}");
    }
}
