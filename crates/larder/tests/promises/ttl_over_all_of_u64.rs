//! Failure: a TTL of 0 is stored for ever, one of 300 years overflows into the past, one of half a
//! millisecond is rounded down to "for ever": each tier has its own idea.

use super::memory;
use larder::backend::Backend;
use larder::clock::{Clock, ManualClock};
use larder::{Cache, EntryOptions, Written};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "sqlite")]
pub(super) async fn sqlite(clock: &ManualClock) -> (tempfile::TempDir, Arc<dyn Backend>) {
    use larder::backend::{SqliteBackend, SqliteOptions};
    let folder = tempfile::tempdir().unwrap();
    let mut options = SqliteOptions::new(folder.path().join("cache.db"));
    options.clock = Clock::from(clock.clone());
    let backend = SqliteBackend::open(options).await.unwrap();
    (folder, Arc::new(backend))
}

/// Milliseconds at every boundary: of 0, seconds, 32 bits, signed and unsigned 64 bits.
fn ttls() -> Vec<u64> {
    let mut ttls = vec![0, 1, 2, 999, 1000, 1001, 60_000];
    for bits in [15, 16, 31, 32, 41, 47, 48, 53, 62, 63] {
        ttls.extend([(1 << bits) - 1, 1 << bits, (1 << bits) + 1]);
    }
    ttls.extend([u64::MAX / 1000, u64::MAX / 1000 + 1, u64::MAX - 1, u64::MAX]);
    ttls
}

/// What a read finds just before, at and long after the TTL's end.
async fn verdicts(
    clock: &ManualClock,
    cache: &Cache<String, u64>,
    below: &Cache<String, u64>,
    ttl: Duration,
) {
    let options = EntryOptions::default().ttl(ttl);
    clock.set_wall_ms(1_767_225_600_000);
    let written = cache.set_with("a".into(), 1, &options).await.unwrap();
    assert_eq!(written == Written::NotStored, ttl.is_zero(), "{ttl:?}");
    let last = ttl.saturating_sub(Duration::from_millis(1));
    // Longer than the clock has left: for ever.
    let is_forever = ttl.as_millis() > u128::from(u64::MAX - 1_767_225_600_000);
    if !ttl.is_zero() && !is_forever && ttl < Duration::from_secs(1 << 33) {
        clock.advance(last);
        for (place, cache) in [("above", cache), ("below", below)] {
            assert_eq!(cache.get("a").await, Some(1), "{place}: 1 ms before {ttl:?}");
        }
        clock.advance(Duration::from_millis(1));
    }
    if ttl.is_zero() || ttl < Duration::from_secs(1 << 33) {
        for (place, cache) in [("above", cache), ("below", below)] {
            assert_eq!(cache.get("a").await, None, "{place}: after {ttl:?}");
        }
    } else {
        clock.advance(Duration::from_secs(100 * 365 * 86_400));
        for (place, cache) in [("above", cache), ("below", below)] {
            assert_eq!(cache.get("a").await, Some(1), "{place}: a hundred years into {ttl:?}");
        }
    }
}

async fn every_ttl(clock: &ManualClock, tier: Option<Arc<dyn Backend>>) {
    for ttl in ttls().into_iter().map(Duration::from_millis).chain([Duration::from_nanos(1), Duration::MAX]) {
        let new = || {
            let builder = Cache::<String, u64>::builder().clock(Clock::from(clock.clone()));
            match &tier {
                Some(tier) => builder.tier(Arc::clone(tier)).build().unwrap(),
                None => builder.build().unwrap(),
            }
        };
        let cache = new();
        // Reads from the tier alone, since it never read before.
        let below = if tier.is_some() { new() } else { cache.clone() };
        verdicts(clock, &cache, &below, ttl).await;
        cache.remove("a").await.unwrap();
    }
}

#[tokio::test]
async fn in_memory() {
    every_ttl(&ManualClock::new(), None).await;
}

#[tokio::test]
async fn in_a_memory_tier() {
    let clock = ManualClock::new();
    every_ttl(&clock, Some(memory(&clock))).await;
}

#[cfg(feature = "sqlite")]
#[tokio::test]
async fn in_a_sqlite_tier() {
    let clock = ManualClock::new();
    let (_folder, tier) = sqlite(&clock).await;
    every_ttl(&clock, Some(tier)).await;
}

/// A tier's limit counts from the moment that it got its copy, and each copy has its own.
#[tokio::test]
async fn limits_of_l1_and_of_an_upper_tier() {
    use larder::{Stale, TierOptions};
    let clock = ManualClock::new();
    let (upper, lower) = (memory(&clock), memory(&clock));
    let second = Duration::from_secs(1);
    let new = || {
        let mut limit = TierOptions::default();
        limit.ttl_max = 10 * second;
        let builder = Cache::<String, u64>::builder().clock(Clock::from(clock.clone())).l1_ttl_max(second);
        builder.tier_with(Arc::clone(&upper), limit).tier(Arc::clone(&lower)).build().unwrap()
    };
    let cache = new();
    cache.set_with("a".into(), 1, &EntryOptions::default().ttl(100 * second)).await.unwrap();
    let tier = async |cache: &Cache<String, u64>| {
        let tiers = cache.explain("a").await.tiers;
        tiers.into_iter().map(|tier| tier.state).collect::<Vec<_>>()
    };
    assert_eq!(tier(&cache).await, ["fresh"; 3]);
    clock.advance(second);
    assert_eq!(cache.peek("a"), None, "L1's limit");
    assert_eq!(cache.get("a").await, Some(1));
    assert_eq!(cache.peek("a"), Some(1), "a new copy has a time of its own");
    clock.advance(9 * second);
    assert_eq!(tier(&cache).await[1..], ["expired", "fresh"], "the upper tier's limit");
    assert_eq!(cache.lookup("a", Stale::Refuse).await.unwrap().value, 1);
    super::settle().await;
    assert_eq!(tier(&cache).await, ["fresh"; 3]);
    clock.advance(10 * second);
    assert_eq!(tier(&cache).await[1..], ["expired", "fresh"], "the copy's envelope knows the limit, too");
    clock.advance(80 * second);
    assert_eq!(cache.get("a").await, None);
}
