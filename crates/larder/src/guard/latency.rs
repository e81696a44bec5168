//! How long an attempt may take, learned from how long attempts took.
//!
//! Keeps a decaying histogram. An attempt that was given up is counted as having taken twice its limit: it
//! is censored, and without it the limit would be learned from the fast ones alone and only ever fall.

use crate::sync::Unscheduled;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How the time limit of one attempt follows the latencies that were seen. A write that no other attempt may
/// follow has all of the call's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AttemptTimeoutOptions {
    /// Whether it adapts. Off: an attempt may take as long as the whole call. Default: on.
    pub is_adaptive: bool,
    /// Which percentile is looked at, 0 to 1. Default: 0.99: a slower attempt is one in a hundred, and is
    /// better tried again.
    pub percentile: f64,
    /// The limit is so many times the percentile, 0 to 1,000,000; below 1 counts as 1. Default: 3, since latencies
    /// have long tails.
    pub factor: f64,
    /// It never falls below. Default: 100 ms: what a garbage collection, a fork or a scheduler's hiccup
    /// takes must not look like an outage.
    #[serde(with = "crate::options::seconds")]
    pub floor: Duration,
}

impl Default for AttemptTimeoutOptions {
    fn default() -> Self {
        AttemptTimeoutOptions {
            is_adaptive: true,
            percentile: 0.99,
            factor: 3.0,
            floor: Duration::from_millis(100),
        }
    }
}

/// Below so many samples nothing is known, and the ceiling holds.
const SAMPLES_MIN: u32 = 50;
/// At so many samples all are halved: what is older than a few hundred calls fades.
const SAMPLES_MAX: u32 = 1000;
/// Four buckets to each doubling, from 64 microseconds on: a percentile is right within a fifth.
const BUCKETS: usize = 96;
const BUCKETS_PER_DOUBLING: f64 = 4.0;
const FIRST_BUCKET_US: f64 = 64.0;

#[derive(Debug)]
pub(crate) struct AttemptTimeout {
    options: AttemptTimeoutOptions,
    seen: Unscheduled<Histogram>,
}

#[derive(Debug)]
struct Histogram {
    buckets: [u32; BUCKETS],
    samples: u32,
}

impl AttemptTimeout {
    pub(crate) fn new(options: AttemptTimeoutOptions) -> Self {
        AttemptTimeout { options, seen: Unscheduled::new(Histogram { buckets: [0; BUCKETS], samples: 0 }) }
    }

    /// The limit of the next attempt, at most `ceiling`.
    pub(crate) fn limit(&self, ceiling: Duration) -> Duration {
        if !self.options.is_adaptive {
            return ceiling;
        }
        let Some(percentile) = self.seen.lock().percentile(self.options.percentile) else { return ceiling };
        percentile.mul_f64(self.options.factor.max(1.0)).max(self.options.floor).min(ceiling)
    }

    pub(crate) fn took(&self, time: Duration) {
        self.seen.lock().add(time);
    }

    /// An attempt was given up at its limit.
    pub(crate) fn gave_up(&self, limit: Duration) {
        self.seen.lock().add(limit.saturating_mul(2));
    }
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let us = time.as_micros() as f64;
        let bucket = (BUCKETS_PER_DOUBLING * (us / FIRST_BUCKET_US).max(1.0).log2()).ceil() as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.samples += 1;
        if self.samples >= SAMPLES_MAX {
            self.buckets.iter_mut().for_each(|count| *count /= 2);
            self.samples = self.buckets.iter().sum();
        }
    }

    /// The upper end of the bucket in which the percentile lies.
    fn percentile(&self, share: f64) -> Option<Duration> {
        if self.samples < SAMPLES_MIN {
            return None;
        }
        let rank = (share.clamp(0.0, 1.0) * f64::from(self.samples)).ceil().max(1.0) as u32;
        let mut below = 0;
        let bucket = self.buckets.iter().position(|count| {
            below += count;
            below >= rank
        });
        let bucket = bucket.expect("the samples are the sum of the buckets");
        let us = FIRST_BUCKET_US * (bucket as f64 / BUCKETS_PER_DOUBLING).exp2();
        Some(Duration::from_micros(us as u64))
    }
}
