//! The cache that is replayed: a [`larder::Cache`] in memory, and SQLite below it where that is asked for.
//! Owns cache, values, clock and the folder of the file; knows nothing of traces.

use super::error::ReplayError;
use super::folder::Folder;
use bytes::Bytes;
use larder::backend::{Backend, Durability, SqliteBackend, SqliteOptions};
use larder::clock::{Clock, ManualClock};
use larder::{Cache, EntryOptions, ErrorKind, TierOptions};
use std::sync::Arc;
use std::time::Duration;

/// How long SQLite may take. Longer than larder's default, because a disk that hesitates would count as a
/// miss, and the replay is about what the tier holds.
const SQLITE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often, in the trace's time, what is expired is freed: as often as larder itself does it in L1.
const SWEEP_EVERY_MS: u64 = 1000;

/// Names of the tiers, from the top.
const NAMES: [&str; 2] = ["l1", "sqlite"];

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
    /// What it may hold; `None` is unlimited.
    pub(super) capacity: Option<u64>,
    pub(super) hits: u64,
    pub(super) misses: u64,
    /// Entries that went to make room. `None` where they can't be told from those that expired.
    pub(super) evictions: Option<u64>,
    /// How often it did not take a value because of its size.
    pub(super) too_large: u64,
    /// Calls that failed, or that passed by a tier which failed before.
    pub(super) failures: u64,
    pub(super) entries: u64,
    /// What it holds at the end: in L1 the bytes of the values, in SQLite those of the rows.
    pub(super) bytes: u64,
}

/// The tiers that a replay can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tiers {
    /// Memory only
    #[value(name = "l1")]
    L1,
    /// Memory, and below it SQLite in a temporary folder that is removed afterwards
    #[value(name = "l1,sqlite")]
    L1Sqlite,
}

/// What a tier may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    Entries(u64),
    Bytes(u64),
}

impl Limit {
    fn number(self) -> u64 {
        match self {
            Self::Entries(number) | Self::Bytes(number) => number,
        }
    }
}

/// What to replay on.
#[derive(Clone, Debug)]
pub(super) struct StackOptions {
    pub(super) l1: Limit,
    pub(super) sqlite: Option<SqliteTier>,
    /// `None` keeps entries until they are evicted.
    pub(super) ttl: Option<Duration>,
    pub(super) values: Values,
}

/// The SQLite tier of a stack.
#[derive(Clone, Copy, Debug)]
pub(super) struct SqliteTier {
    /// `None` is unlimited.
    pub(super) limit: Option<Limit>,
}

/// What is known of the trace's values.
#[derive(Clone, Debug)]
pub(super) struct Values {
    /// Zeros, as many as the largest value has.
    zeros: Bytes,
    /// All entries that there can be.
    distinct: u32,
    /// What the smallest values may be counted as.
    weight_min: u64,
}

impl Values {
    /// `smallest_sizes` has one size for each key, `largest` is that of the largest value at all.
    pub(super) fn new(smallest_sizes: Vec<u32>, largest: u32) -> Self {
        Self {
            // Pages that nobody writes to take no memory, however large one value of the trace is.
            zeros: Bytes::from(vec![0; largest as usize]),
            distinct: u32::try_from(smallest_sizes.len()).expect("ids of keys have 32 bits"),
            weight_min: weight_min(smallest_sizes),
        }
    }
}

/// The most that small values may be counted as without adding more than 1% to what all values take.
///
/// With a limit in bytes, larder wants to know how many entries it will hold at most, and counts each for
/// its share of the limit. Too low a number would distort small values, too high a number would cut the
/// table into more shards than its entries can fill.
fn weight_min(mut sizes: Vec<u32>) -> u64 {
    sizes.sort_unstable();
    let spare = sizes.iter().map(|size| u64::from(*size)).sum::<u64>() / 100;
    let (mut below, mut found) = (0u64, 1);
    for (at, size) in sizes.iter().map(|size| u64::from(*size)).enumerate() {
        if at as u64 * size - below > spare {
            break;
        }
        found = size;
        below += size;
    }
    found
}

/// The cache under replay: reads a key, and sets it on a miss.
pub(super) struct Stack {
    cache: Cache<u32, Bytes>,
    limit: Limit,
    values: Values,
    clock: Option<TraceClock>,
    sqlite: Option<Sqlite>,
    /// By tier.
    hits: Vec<u64>,
    misses: u64,
    /// Sets that were refused whole, because a tier can't encode so large a value.
    refused: u64,
    has_ttl: bool,
}

struct TraceClock {
    clock: ManualClock,
    now_ms: u64,
    swept_ms: u64,
}

struct Sqlite {
    backend: Arc<SqliteBackend>,
    folder: Folder,
    limit: Option<Limit>,
}

impl Stack {
    /// Opens an empty stack.
    pub(super) async fn open(options: &StackOptions) -> Result<Self, ReplayError> {
        let trace_clock = options.ttl.map(|_| ManualClock::new());
        let clock = trace_clock.clone().map_or_else(Clock::system, Clock::from);
        let defaults = EntryOptions::default().ttl(options.ttl.unwrap_or(Duration::MAX));
        let builder = Cache::builder().clock(clock.clone()).defaults(defaults);
        // A table reserves memory for what it may hold; more than this, no trace with so many keys fills.
        let entries_useful = 4 * u64::from(options.values.distinct) + 4096;
        let mut builder = match options.l1 {
            Limit::Entries(entries) => builder.entries_max(entries.min(entries_useful)),
            Limit::Bytes(bytes) => builder
                .entries_max(bytes.div_ceil(options.values.weight_min).min(entries_useful))
                .bytes_max(bytes, |_, value: &Bytes| value.len() as u64),
        };
        let sqlite = match options.sqlite {
            Some(tier) => Some(Sqlite::open(tier, clock).await?),
            None => None,
        };
        if let Some(sqlite) = &sqlite {
            let mut tier = TierOptions::default();
            (tier.read_timeout, tier.write_timeout) = (SQLITE_TIMEOUT, SQLITE_TIMEOUT);
            builder = builder.tier_with(Arc::clone(&sqlite.backend) as Arc<dyn Backend>, tier);
        }
        Ok(Self {
            cache: builder.build().map_err(|error| failed("l1", &error))?,
            limit: options.l1,
            values: options.values.clone(),
            clock: trace_clock.map(|clock| TraceClock { clock, now_ms: 0, swept_ms: 0 }),
            hits: vec![0; if sqlite.is_some() { 2 } else { 1 }],
            sqlite,
            misses: 0,
            refused: 0,
            has_ttl: options.ttl.is_some(),
        })
    }

    /// How many tiers it has, L1 included.
    pub(super) fn tiers(&self) -> usize {
        self.hits.len()
    }

    /// One access. `size` is the size of the value, should it have to be loaded.
    ///
    /// Without SQLite it never waits.
    pub(super) async fn access(&mut self, id: u32, size: u32) -> Result<Outcome, ReplayError> {
        if let Some(tier) = self.find(id).await {
            self.hits[tier] += 1;
            return Ok(Outcome::Hit(tier));
        }
        self.misses += 1;
        match self.cache.set(id, self.values.zeros.slice(..size as usize)).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::TooLarge => self.refused += 1,
            Err(error) => return Err(failed(NAMES[self.tiers() - 1], &error)),
        }
        Ok(Outcome::Miss)
    }

    /// The tier that answers.
    async fn find(&self, id: u32) -> Option<usize> {
        if self.sqlite.is_none() {
            return self.cache.get(&id).await.map(|_| 0);
        }
        // `lookup` would name the tier as well, with an allocation that L1's hits don't have otherwise.
        match self.cache.peek(&id) {
            Some(_) => Some(0),
            None => self.cache.get(&id).await.map(|_| 1),
        }
    }

    /// Moves the clock, which starts at 0 and never goes back. Does nothing without a TTL.
    pub(super) async fn set_time(&mut self, now_ms: u64) -> Result<(), ReplayError> {
        let Some(clock) = &mut self.clock else { return Ok(()) };
        if now_ms == clock.now_ms {
            return Ok(());
        }
        clock.clock.advance(Duration::from_millis(now_ms - clock.now_ms));
        clock.now_ms = now_ms;
        // Larder's own task does this too, at a moment that the threads decide: now, both runs of one trace
        // have the same room.
        if now_ms - clock.swept_ms >= SWEEP_EVERY_MS {
            clock.swept_ms = now_ms;
            self.cache.sweep().await.map_err(|error| failed(NAMES[self.tiers() - 1], &error))?;
        }
        Ok(())
    }

    /// What each tier did so far, L1 first.
    pub(super) async fn report(&self) -> Result<Vec<TierReport>, ReplayError> {
        let stats = self.cache.stats();
        let held = |id| self.cache.peek(&id).map_or(0, |value| value.len() as u64);
        let mut reports = vec![TierReport {
            name: NAMES[0],
            capacity: Some(self.limit.number()),
            hits: self.hits[0],
            misses: self.misses + self.hits[1..].iter().sum::<u64>(),
            evictions: Some(stats.evicted.size),
            too_large: stats.evicted.too_large + self.refused,
            failures: 0,
            entries: stats.entries,
            bytes: (0..self.values.distinct).map(held).sum(),
        }];
        if let (Some(sqlite), [tier]) = (&self.sqlite, &stats.tiers[..]) {
            let usage = sqlite.backend.usage().await.map_err(|error| failed(NAMES[1], &error))?;
            let evictions = match (sqlite.limit.is_some(), self.has_ttl) {
                (false, _) => Some(0),
                // Only misses of this tier are written to it: each is a new row.
                (true, false) => Some(tier.writes.saturating_sub(usage.entries)),
                (true, true) => None,
            };
            reports.push(TierReport {
                name: NAMES[1],
                capacity: sqlite.limit.map(Limit::number),
                hits: self.hits[1],
                misses: self.misses,
                evictions,
                too_large: self.refused,
                failures: tier.errors + tier.bypassed,
                entries: usage.entries,
                bytes: usage.bytes,
            });
        }
        Ok(reports)
    }

    /// Ends the tiers and removes what they left on the disk.
    pub(super) async fn close(self) -> Result<(), ReplayError> {
        let Self { cache, sqlite, .. } = self;
        let closed = cache.close().await;
        if let Some(sqlite) = sqlite {
            sqlite.folder.remove().map_err(|error| ReplayError::Tier {
                tier: NAMES[1],
                problem: format!("the temporary folder could not be removed: {error}"),
            })?;
        }
        closed.map_err(|error| failed("sqlite", &error))
    }
}

impl Sqlite {
    async fn open(tier: SqliteTier, clock: Clock) -> Result<Self, ReplayError> {
        let folder = Folder::new().map_err(|error| ReplayError::Tier {
            tier: NAMES[1],
            problem: format!("no temporary folder could be made: {error}"),
        })?;
        let mut options = SqliteOptions::new(folder.path().join("replay.db"));
        // A file that is thrown away has no power loss to survive.
        options.durability = Durability::Process;
        options.clock = clock;
        match tier.limit {
            Some(Limit::Entries(entries)) => options.entries_max = Some(entries),
            Some(Limit::Bytes(bytes)) => options.bytes_max = Some(bytes),
            None => {}
        }
        let backend = SqliteBackend::open(options).await.map_err(|error| failed(NAMES[1], &error))?;
        Ok(Self { backend: Arc::new(backend), folder, limit: tier.limit })
    }
}

fn failed(tier: &'static str, error: &larder::Error) -> ReplayError {
    ReplayError::Tier { tier, problem: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::runtime;

    fn options(l1: Limit) -> StackOptions {
        StackOptions { l1, sqlite: None, ttl: None, values: Values::new(vec![10; 2000], 2000) }
    }

    fn with_sqlite(l1: u64, sqlite: Option<u64>) -> StackOptions {
        let limit = sqlite.map(Limit::Entries);
        StackOptions { sqlite: Some(SqliteTier { limit }), ..options(Limit::Entries(l1)) }
    }

    fn run(test: impl Future<Output = Result<(), ReplayError>>) {
        runtime().unwrap().block_on(test).unwrap();
    }

    #[test]
    fn counts_add_up_and_the_limit_holds_at_any_size() {
        run(async {
            for capacity in [1, 2, 3, 10, 100, 1500, 10_000] {
                let mut stack = Stack::open(&options(Limit::Entries(capacity))).await?;
                let mut hits = 0;
                for at in 0..6000 {
                    let id = at * at % 1999;
                    let outcome = stack.access(id, 10).await?;
                    hits += u64::from(outcome == Outcome::Hit(0));
                    assert!(stack.cache.stats().entries <= capacity);
                    // Even where only one fits, it may be the old one that stays.
                    assert!(capacity < 1000 || stack.access(id, 99).await? == Outcome::Hit(0));
                    hits += u64::from(capacity >= 1000);
                }
                let report = &stack.report().await?[0];
                assert_eq!(
                    (report.hits, report.hits + report.misses),
                    (hits, if capacity < 1000 { 6000 } else { 12_000 })
                );
                assert_eq!(report.misses - report.evictions.unwrap(), report.entries, "{capacity}");
                assert_eq!(report.bytes, 10 * report.entries, "a hit doesn't change the size");
                assert!(report.entries > 0);
                stack.close().await?;
            }
            Ok(())
        });
    }

    #[test]
    fn bytes_limit_holds() {
        run(async {
            for capacity in [1, 100, 1000, 20_000, 1_000_000] {
                let sizes: Vec<u32> = (0..=2000).map(|id| 1 + id % 120).collect();
                let values = Values::new(sizes, 2000);
                let mut stack =
                    Stack::open(&StackOptions { values, ..options(Limit::Bytes(capacity)) }).await?;
                for id in 0..2000 {
                    stack.access(id, 1 + id % 120).await?;
                    assert!(stack.cache.stats().weight <= capacity);
                    if id % 100 == 0 {
                        assert!(stack.report().await?[0].bytes <= capacity);
                    }
                }
                if capacity <= 1000 {
                    assert_eq!(stack.access(2000, 1001).await?, Outcome::Miss);
                    assert_eq!(stack.access(2000, 1001).await?, Outcome::Miss, "larger than the cache");
                }
                let report = &stack.report().await?[0];
                assert_eq!(report.misses - report.too_large - report.evictions.unwrap(), report.entries);
                stack.close().await?;
            }
            Ok(())
        });
    }

    #[test]
    fn small_values_are_counted_for_hardly_more_than_they_are() {
        assert_eq!(weight_min(vec![7; 100]), 7);
        assert_eq!(weight_min(vec![]), 1);
        assert_eq!(weight_min([vec![1; 1], vec![1000; 1000]].concat()), 1000);
        assert_eq!(weight_min([vec![1; 100], vec![1000; 100]].concat()), 1);
        let sizes: Vec<u32> = (1..=4000).collect();
        let counted = |least: u64| sizes.iter().map(|size| u64::from(*size).max(least)).sum::<u64>();
        let least = weight_min(sizes.clone());
        assert!(counted(least) <= counted(0) * 101 / 100 && counted(least + 2) > counted(0) * 101 / 100);
    }

    #[test]
    fn entries_expire_by_the_traces_clock() {
        run(async {
            for tiers in [options(Limit::Entries(8)), with_sqlite(1, None)] {
                let mut stack =
                    Stack::open(&StackOptions { ttl: Some(Duration::from_millis(5)), ..tiers }).await?;
                stack.access(1, 1).await?;
                stack.set_time(4).await?;
                assert_eq!(stack.access(1, 1).await?, Outcome::Hit(0));
                stack.set_time(5).await?;
                assert_eq!(stack.access(1, 1).await?, Outcome::Miss);
                assert_eq!(stack.access(1, 1).await?, Outcome::Hit(0));
                stack.set_time(5000).await?;
                assert!(stack.report().await?.iter().all(|tier| tier.entries == 0), "expired is freed");
                stack.close().await?;
            }
            Ok(())
        });
    }

    #[test]
    fn evicted_from_l1_is_answered_by_sqlite_and_the_folder_goes() {
        run(async {
            let mut stack = Stack::open(&with_sqlite(1, None)).await?;
            let folder = stack.sqlite.as_ref().unwrap().folder.path().to_owned();
            assert!(folder.join("replay.db").is_file());
            let mut seen = [0; 3];
            for at in 0..60 {
                let outcome = stack.access(at % 6, 10).await?;
                // L1 holds one key and six take turns: each round, at most the one that stayed is in L1.
                assert_eq!(outcome == Outcome::Miss, at < 6, "{at}: {outcome:?}");
                seen[match outcome {
                    Outcome::Hit(tier) => tier,
                    Outcome::Miss => 2,
                }] += 1;
            }
            let reports = stack.report().await?;
            let [l1, sqlite] = &reports[..] else { panic!("{reports:?}") };
            assert_eq!([l1.hits, sqlite.hits, sqlite.misses], seen);
            assert_eq!(l1.misses, sqlite.hits + sqlite.misses, "what L1 misses reaches SQLite");
            assert!(seen[1] >= 40, "{seen:?}");
            assert_eq!((l1.entries, sqlite.entries), (1, 6));
            assert_eq!((sqlite.evictions, sqlite.failures), (Some(0), 0));
            // What larder counted itself agrees.
            let counted = &stack.cache.stats().tiers[0];
            assert_eq!((counted.hits, counted.misses, counted.writes), (seen[1], seen[2], 6));
            stack.close().await?;
            assert!(!folder.exists());
            Ok(())
        });
    }

    #[test]
    fn sqlite_has_a_limit_of_its_own() {
        run(async {
            let mut stack = Stack::open(&with_sqlite(2, Some(20))).await?;
            for id in 0..100 {
                assert_eq!(stack.access(id, 10).await?, Outcome::Miss);
            }
            let sqlite = &stack.report().await?[1];
            assert!((1..=20).contains(&sqlite.entries), "{sqlite:?}");
            assert_eq!(sqlite.evictions, Some(100 - sqlite.entries));
            stack.close().await
        });
    }
}
