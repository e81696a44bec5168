//! The seam to the cache that is replayed: everything else here knows only [`Stack`].

use super::error::ReplayError;
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, Weighter};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The cache under replay: reads a key, and loads and stores it on a miss.
pub(super) trait Stack {
    /// One access. `size` is the size of the value, should it have to be loaded.
    fn access(&mut self, id: u32, size: u32) -> Outcome;

    /// Moves the stack's clock, which starts at 0 and never goes back.
    fn set_time(&mut self, now_ms: u64);

    /// What each tier did so far, L1 first.
    fn report(&self) -> Vec<TierReport>;
}

/// Where an access found its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// In this tier, counted from 0 for L1.
    Hit(usize),
    /// Nowhere; it was loaded.
    Miss,
}

/// One tier's counts. A tier is asked only for what the tiers above it miss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TierReport {
    pub(super) name: &'static str,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) evictions: u64,
    pub(super) entries: u64,
    /// Bytes of the values that it holds at the end.
    pub(super) bytes: u64,
}

/// The tiers that a replay can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tiers {
    /// Memory only
    #[value(name = "l1")]
    L1,
    /// Memory, and SQLite without a limit below it, in a temporary folder
    #[value(name = "l1,sqlite")]
    L1Sqlite,
}

/// L1's limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Entries(u64),
    Bytes(u64),
}

/// What to replay on.
#[derive(Clone, Debug)]
pub(super) struct StackOptions {
    pub(super) tiers: Tiers,
    pub(super) limit: Limit,
    /// The size of most values, to guess how many fit into bytes.
    pub(super) value_bytes_typical: u64,
    /// `None` keeps entries until they are evicted.
    pub(super) ttl_ms: Option<u64>,
    pub(super) seed: u64,
}

/// Opens an empty stack.
pub(super) fn open(options: &StackOptions) -> Result<Box<dyn Stack>, ReplayError> {
    match options.tiers {
        Tiers::L1 => Ok(Box::new(QuickCacheStandIn::new(options)?)),
        Tiers::L1Sqlite => Err(ReplayError::Tier {
            tier: "sqlite",
            problem: "is not part of replay yet; use --tiers l1".to_owned(),
        }),
    }
}

/// Stands in for `larder::Cache` until that exists: the cache that larder's L1 is built on, unsharded. It
/// stores the values' sizes only.
struct QuickCacheStandIn {
    cache: Cache<u32, Stored, Weigh, SeededHash, CountEvictions>,
    evictions: Arc<AtomicU64>,
    ttl_ms: Option<u64>,
    now_ms: u64,
    hits: u64,
    misses: u64,
}

#[derive(Clone, Copy)]
struct Stored {
    size: u32,
    expires_ms: u64,
}

impl QuickCacheStandIn {
    fn new(options: &StackOptions) -> Result<Self, ReplayError> {
        let (weigh, capacity, items) = match options.limit {
            Limit::Entries(entries) => (Weigh::One, entries, entries),
            Limit::Bytes(bytes) => (Weigh::Bytes, bytes, bytes / options.value_bytes_typical.max(1)),
        };
        let tier_failed = |problem: String| ReplayError::Tier { tier: "l1", problem };
        let settings = OptionsBuilder::new()
            .shards(1)
            .weight_capacity(capacity)
            .estimated_items_capacity(usize::try_from(items).unwrap_or(usize::MAX))
            .build()
            .map_err(|error| tier_failed(error.to_string()))?;
        let evictions = Arc::new(AtomicU64::new(0));
        let count = CountEvictions(Arc::clone(&evictions));
        let cache = Cache::with_options(settings, weigh, SeededHash(options.seed), count);
        Ok(Self { cache, evictions, ttl_ms: options.ttl_ms, now_ms: 0, hits: 0, misses: 0 })
    }
}

impl Stack for QuickCacheStandIn {
    fn access(&mut self, id: u32, size: u32) -> Outcome {
        if let Some(stored) = self.cache.get(&id)
            && self.now_ms < stored.expires_ms
        {
            self.hits += 1;
            return Outcome::Hit(0);
        }
        self.misses += 1;
        let expires_ms = self.ttl_ms.map_or(u64::MAX, |ttl_ms| self.now_ms.saturating_add(ttl_ms));
        self.cache.insert(id, Stored { size, expires_ms });
        Outcome::Miss
    }

    fn set_time(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
    }

    fn report(&self) -> Vec<TierReport> {
        vec![TierReport {
            name: "l1",
            hits: self.hits,
            misses: self.misses,
            evictions: self.evictions.load(Ordering::Relaxed),
            entries: self.cache.len() as u64,
            bytes: self.cache.iter().map(|(_, stored)| u64::from(stored.size)).sum(),
        }]
    }
}

#[derive(Clone)]
enum Weigh {
    One,
    Bytes,
}

impl Weighter<u32, Stored> for Weigh {
    fn weight(&self, _: &u32, stored: &Stored) -> u64 {
        match self {
            Self::One => 1,
            Self::Bytes => u64::from(stored.size),
        }
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<AtomicU64>);

impl Lifecycle<u32, Stored> for CountEvictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: u32, _: Stored) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The same hashes in every run with the same seed.
#[derive(Clone)]
struct SeededHash(u64);

impl BuildHasher for SeededHash {
    type Hasher = Mix;

    fn build_hasher(&self) -> Mix {
        Mix(self.0)
    }
}

struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    /// splitmix64's finalizer.
    fn write_u32(&mut self, id: u32) {
        let mut mixed = (self.0 ^ u64::from(id)).wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = mixed ^ mixed >> 31;
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u32 ids are hashed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(limit: Limit) -> StackOptions {
        StackOptions { tiers: Tiers::L1, limit, value_bytes_typical: 10, ttl_ms: None, seed: 1 }
    }

    #[test]
    fn counts_add_up() {
        let mut stack = open(&options(Limit::Entries(8))).unwrap();
        assert_eq!(stack.access(1, 10), Outcome::Miss);
        assert_eq!(stack.access(1, 99), Outcome::Hit(0));
        for id in 2..20 {
            stack.access(id, 10);
        }
        let report = stack.report();
        assert_eq!((report[0].hits, report[0].misses), (1, 19));
        assert_eq!(report[0].misses - report[0].evictions, report[0].entries);
        assert!(report[0].entries <= 8);
        assert_eq!(report[0].bytes, 10 * report[0].entries, "a hit doesn't change the size");
    }

    #[test]
    fn bytes_limit_holds() {
        let mut stack = open(&options(Limit::Bytes(1000))).unwrap();
        for id in 0..500 {
            stack.access(id, 1 + id % 120);
            assert!(stack.report()[0].bytes <= 1000);
        }
        assert_eq!(stack.access(1000, 1001), Outcome::Miss);
        assert_eq!(stack.access(1000, 1001), Outcome::Miss, "larger than the cache");
    }

    #[test]
    fn entries_expire_by_the_traces_clock() {
        let mut stack = open(&StackOptions { ttl_ms: Some(5), ..options(Limit::Entries(8)) }).unwrap();
        stack.access(1, 1);
        stack.set_time(4);
        assert_eq!(stack.access(1, 1), Outcome::Hit(0));
        stack.set_time(5);
        assert_eq!(stack.access(1, 1), Outcome::Miss);
        assert_eq!(stack.access(1, 1), Outcome::Hit(0));
    }
}
