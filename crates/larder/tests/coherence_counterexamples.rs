//! Failure: each of these is a sequence that once broke a version of the protocol that looked right. A random
//! search found them; here they are by name. See `DESIGN.md`, "Coherence".

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use larder::backend::{Backend, MemoryBackend, MemoryOptions};
use larder::clock::{Clock, ManualClock};
use larder::key::{EntryKey, Namespace};
use larder::{Cache, EntryOptions, ErrorKind, LoadContext, Written};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use support::{Faulty, Moment};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

type Db = Cache<String, u64>;

fn tier(clock: &ManualClock) -> Arc<Faulty> {
    let clock = Clock::from(clock.clone());
    Faulty::new(Arc::new(MemoryBackend::new(MemoryOptions { clock, ..MemoryOptions::default() })))
}

fn over(clock: &ManualClock, tier: &Arc<Faulty>) -> Db {
    Cache::builder().clock(Clock::from(clock.clone())).entries_max(4).tier(tier.clone()).build().unwrap()
}

async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// L1 drops the key to make room.
async fn evict(cache: &Db, key: &str) {
    for round in 0..20 {
        for other in 0..100 {
            let other = format!("other {round} {other}");
            for _ in 0..3 {
                cache.get_or_load(&other, |_| async { Ok::<_, Infallible>(0) }).await.unwrap();
            }
        }
        // Not more often: a look keeps it alive.
        if cache.peek(key).is_none() {
            return;
        }
    }
    panic!("{key} is never dropped");
}

/// A load that has read `version` and hangs until it is told to go on.
fn load(cache: &Db, version: u64) -> (JoinHandle<u64>, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let (cache, wait) = (cache.clone(), Arc::clone(&go));
    let caller = tokio::spawn(async move {
        let load = move |_| async move {
            wait.notified().await;
            Ok::<_, Infallible>(version)
        };
        cache.get_or_load("a", load).await.unwrap()
    });
    (caller, go)
}

#[tokio::test]
async fn a_reader_joins_a_flight_from_before_a_local_set() {
    let cache: Db = Cache::builder().entries_max(4).build().unwrap();
    let (early, go) = load(&cache, 1);
    settle().await;
    cache.set("a".into(), 2).await.unwrap();
    evict(&cache, "a").await;
    let (late, go_late) = load(&cache, 2);
    settle().await;
    go.notify_one();
    go_late.notify_one();
    assert_eq!(late.await.unwrap(), 2);
    assert_eq!(early.await.unwrap(), 1);
    assert_eq!(cache.get("a").await, Some(2));
}

#[tokio::test]
async fn a_set_refused_by_a_neighbours_stripe_leaves_no_older_value() {
    let clock = ManualClock::new();
    let tier = tier(&clock);
    let cache = over(&clock, &tier);
    let stripe = |key: &str| EntryKey::new(&Namespace::default(), &key).unwrap().hash64() % 4096;
    let neighbour = (0..).map(|i| format!("{i}")).find(|key| stripe(key) == stripe("a")).unwrap();
    cache.set("a".into(), 1).await.unwrap();
    let go = tier.hold_next_put(Moment::BeforeItIsDone);
    let set = tokio::spawn({
        let cache = cache.clone();
        async move { cache.set("a".into(), 2).await }
    });
    settle().await;
    cache.remove(&neighbour).await.unwrap();
    go.notify_one();
    // Refused once, it begins again: it was not acknowledged, so it may as well come after the removal.
    assert_eq!(set.await.unwrap().unwrap(), Written::Stored);
    assert_eq!(cache.get("a").await, Some(2));
    assert_eq!(over(&clock, &tier).get("a").await, Some(2));
    assert_eq!(cache.stats().tiers[0].writes_fenced, 1, "the neighbour did refuse it");
}

#[tokio::test]
async fn a_later_removal_hides_the_earlier_one_from_a_waiter() {
    let cache: Db = Cache::builder().build().unwrap();
    let (first, go_first) = load(&cache, 1);
    settle().await;
    cache.remove("a").await.unwrap();
    let (second, go_second) = load(&cache, 2);
    settle().await;
    cache.remove("a").await.unwrap();
    let (third, go_third) = load(&cache, 3);
    settle().await;
    for go in [go_first, go_second, go_third] {
        go.notify_one();
        settle().await;
    }
    assert_eq!(first.await.unwrap(), 1);
    assert_eq!(second.await.unwrap(), 2, "it came after the first removal");
    assert_eq!(third.await.unwrap(), 3, "it came after both");
    assert_eq!(cache.get("a").await, Some(3));
}

/// Two sets of one node; the tier's answer to the first is late, and the second has left L1 by then.
async fn a_late_answer_to_the_earlier_set(with_load_entry: bool) {
    let clock = ManualClock::new();
    let tier = tier(&clock);
    let cache = over(&clock, &tier);
    let go = tier.hold_next_put(Moment::BeforeItsAnswer);
    let earlier = tokio::spawn({
        let cache = cache.clone();
        async move { cache.set("a".into(), 1).await }
    });
    settle().await;
    assert_eq!(cache.set("a".into(), 2).await.unwrap(), Written::Stored);
    evict(&cache, "a").await;
    if with_load_entry {
        assert_eq!(cache.get("a").await, Some(2));
        assert_eq!(cache.peek("a"), Some(2), "promoted: an entry without a stamp of its own");
    }
    go.notify_one();
    earlier.await.unwrap().unwrap();
    assert_eq!(cache.get("a").await, Some(2));
    assert_eq!(over(&clock, &tier).get("a").await, Some(2));
}

#[tokio::test]
async fn an_earlier_set_is_published_after_the_later_one_was_evicted() {
    a_late_answer_to_the_earlier_set(false).await;
}

#[tokio::test]
async fn an_earlier_set_is_published_over_a_load_entry_of_the_later_one() {
    a_late_answer_to_the_earlier_set(true).await;
}

#[tokio::test]
async fn a_refresh_that_fetches_an_equal_value_is_not_taken_for_the_stale_one() {
    let clock = ManualClock::new();
    let second = Duration::from_secs(1);
    let options = EntryOptions::default().ttl(second).stale_on_error(60 * second);
    let cache: Db = Cache::builder().clock(Clock::from(clock.clone())).defaults(options).build().unwrap();
    cache.set("a".into(), 1).await.unwrap();
    clock.advance(2 * second);
    let go = Arc::new(Notify::new());
    let failing = tokio::spawn({
        let (cache, go) = (cache.clone(), Arc::clone(&go));
        async move {
            let load = |_| async move {
                go.notified().await;
                Err::<u64, _>("the source is down")
            };
            cache.get_or_load("a", load).await
        }
    });
    settle().await;
    // Removed and loaded again, with an equal value.
    cache.remove("a").await.unwrap();
    let equal = |_: LoadContext<u64>| async { Ok::<_, Infallible>(1) };
    assert_eq!(cache.get_or_load("a", equal).await.unwrap(), 1);
    go.notify_one();
    assert_eq!(failing.await.unwrap().unwrap_err().kind(), ErrorKind::Loader, "its stale value was removed");
    // The failure throttles the entry that it met, which is gone; not the one of equal value.
    clock.advance(2 * second);
    let loads = Arc::new(AtomicUsize::new(0));
    let counted = {
        let loads = Arc::clone(&loads);
        move |_: LoadContext<u64>| async move {
            loads.fetch_add(1, SeqCst);
            Ok::<_, Infallible>(2)
        }
    };
    assert_eq!(cache.get_or_load("a", counted).await.unwrap(), 2);
    assert_eq!(loads.load(SeqCst), 1);
}

/// Only to keep the wrapper honest: it answers as what it wraps.
#[tokio::test]
async fn the_wrapper_passes_answers_on() {
    let tier = tier(&ManualClock::new());
    assert!(tier.capabilities().scan && tier.ping().await.is_ok());
}
