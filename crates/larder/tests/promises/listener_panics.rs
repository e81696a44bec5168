//! Failure: an eviction listener panics, or asks the cache itself, and the reader that happened to cause the
//! eviction dies or hangs with a lock held.

use larder::clock::{Clock, ManualClock};
use larder::{Cache, EntryOptions, EvictReason};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

#[tokio::test]
async fn callers_do_not_notice() {
    let clock = ManualClock::new();
    let cache: Cache<u64, u64> = Cache::builder()
        .clock(Clock::from(clock.clone()))
        .entries_max(4)
        .defaults(EntryOptions::default().ttl(Duration::from_secs(1)))
        .on_evict(|_, _, reason| panic!("{reason:?}"))
        .build()
        .unwrap();
    for i in 0..100 {
        cache.set(i, i).await.unwrap();
    }
    cache.set(99, 1).await.unwrap();
    assert!(cache.stats().entries <= 4);
    cache.remove(&99).await.unwrap();
    cache.set(7, 7).await.unwrap();
    clock.advance(Duration::from_secs(2));
    cache.sweep().await.unwrap();
    assert_eq!(cache.stats().entries, 0);
}

#[tokio::test]
async fn a_listener_may_ask_the_cache_and_hears_of_each_value_once() {
    let own: Arc<OnceLock<Cache<u64, u64>>> = Arc::default();
    let heard: Arc<Mutex<Vec<(u64, u64, EvictReason)>>> = Arc::default();
    let (inner, list) = (Arc::clone(&own), Arc::clone(&heard));
    let cache: Cache<u64, u64> = Cache::builder()
        .on_evict(move |key, value, reason| {
            list.lock().unwrap().push((*key, *value, reason));
            if let Some(cache) = inner.get() {
                cache.peek(key);
                cache.blocking().set(1000 + key, *value).unwrap();
            }
        })
        .build()
        .unwrap();
    assert!(own.set(cache.clone()).is_ok());
    cache.set(1, 10).await.unwrap();
    cache.set(1, 11).await.unwrap();
    cache.remove(&1).await.unwrap();
    cache.set_with(2, 20, &cache.options().tags(larder::entry::Tags::new(["t"]).unwrap())).await.unwrap();
    cache.remove_tag("t").await.unwrap();
    assert_eq!(cache.get(&2).await, None);
    let heard = heard.lock().unwrap().clone();
    let expected = [
        (1, 10, EvictReason::Replaced),
        (1, 11, EvictReason::Removed),
        // The listener's own set of 1001 replaced what its first call had set.
        (2, 20, EvictReason::Invalidated),
    ];
    let of_test: Vec<_> = heard.into_iter().filter(|(key, ..)| *key < 1000).collect();
    assert_eq!(of_test, expected);
}
