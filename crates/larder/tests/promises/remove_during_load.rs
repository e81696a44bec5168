//! Failure: a load reads the old row, the row is changed and removed from the cache, and then the load
//! stores the old row: it is served until its TTL ends.

use super::{cache, memory, settle};
use larder::clock::ManualClock;
use larder::key::Pattern;
use larder::{Cache, EntryOptions, Loaded};
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::Notify;

type Db = Cache<String, u64>;

/// A load of version 1 hangs after it has read; `remove` runs to its end; who comes then gets version 2.
async fn is_not_put_back(tiers: usize, remove: impl AsyncFn(&Db)) {
    let clock = ManualClock::new();
    let tiers: Vec<_> = (0..tiers).map(|_| memory(&clock)).collect();
    let cache = cache(&clock, &tiers, EntryOptions::default());
    let go = Arc::new(Notify::new());
    let early = tokio::spawn({
        let (cache, go) = (cache.clone(), Arc::clone(&go));
        async move {
            let load = |_| async move {
                go.notified().await;
                Ok::<_, Infallible>(Loaded::new(1).tag("red"))
            };
            cache.get_or_load("a", load).await
        }
    });
    settle().await;
    remove(&cache).await;
    let load = |_| async { Ok::<_, Infallible>(Loaded::new(2).tag("red")) };
    let late = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load("a", load).await }
    });
    settle().await;
    go.notify_one();
    assert_eq!(late.await.unwrap().unwrap(), 2, "whoever comes after the removal gets what came after it");
    assert_eq!(early.await.unwrap().unwrap(), 1, "the removal came while it waited: either is right");
    settle().await;
    let here = cache.get("a").await;
    assert!(here.is_none_or(|value| value == 2), "{here:?}");
    let below = super::cache(&clock, &tiers, EntryOptions::default());
    let there = below.get("a").await;
    assert!(there.is_none_or(|value| value == 2), "{there:?}");
}

#[tokio::test]
async fn by_key_tag_pattern_clear_set_and_ttl_zero() {
    for tiers in 0..3 {
        is_not_put_back(tiers, async |cache| {
            cache.remove("a").await.unwrap();
        })
        .await;
        is_not_put_back(tiers, async |cache| {
            cache.remove_tag("red").await.unwrap();
        })
        .await;
        is_not_put_back(tiers, async |cache| {
            cache.remove_matching(&Pattern::new("*").unwrap()).await.unwrap();
        })
        .await;
        is_not_put_back(tiers, async |cache| {
            cache.clear().await.unwrap();
        })
        .await;
        is_not_put_back(tiers, async |cache| {
            cache.set("a".into(), 2).await.unwrap();
        })
        .await;
        is_not_put_back(tiers, async |cache| {
            let zero = cache.options().ttl(std::time::Duration::ZERO);
            cache.set_with("a".into(), 1, &zero).await.unwrap();
        })
        .await;
    }
}
