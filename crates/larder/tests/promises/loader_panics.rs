//! Failure: a loader panics, and those who wait for it wait for ever, or each runs the panicking loader
//! again; the key is locked from then on.

use super::support::{Faulty, Mood};
use super::{SECOND, cache, memory, promptly, settle};
use larder::clock::{Clock, ManualClock};
use larder::{BoxError, Cache, EntryOptions, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

#[tokio::test]
async fn every_waiter_gets_the_panic_and_the_key_works_again() {
    let cache = cache(&ManualClock::new(), &[], EntryOptions::default());
    let loads = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..100)
        .map(|_| {
            let (cache, loads) = (cache.clone(), Arc::clone(&loads));
            tokio::spawn(async move {
                let load = |_| async move {
                    loads.fetch_add(1, SeqCst);
                    settle().await;
                    if loads.load(SeqCst) > 0 {
                        panic!("out of cheese");
                    }
                    Ok::<u64, BoxError>(0)
                };
                cache.get_or_load("a", load).await.unwrap_err()
            })
        })
        .collect();
    for caller in callers {
        let error = caller.await.unwrap();
        assert_eq!(error.kind(), ErrorKind::LoaderPanicked);
        assert!(error.to_string().contains("out of cheese"), "{error}");
    }
    assert_eq!(loads.load(SeqCst), 1);
    assert_eq!(cache.get_or_load("a", |_| async { Ok::<_, BoxError>(1) }).await.unwrap(), 1);
    assert_eq!(cache.stats().loads_failed, 1);
}

#[tokio::test]
async fn a_panic_before_the_loaders_first_await_and_a_stale_value_at_hand() {
    let clock = ManualClock::new();
    let cache = cache(&clock, &[], EntryOptions::default().ttl(SECOND).stale_on_error(60 * SECOND));
    cache.set("a".into(), 1).await.unwrap();
    clock.advance(2 * SECOND);
    let load = |_| -> std::future::Ready<Result<u64, BoxError>> { panic!("at once") };
    assert_eq!(cache.get_or_load("a", load).await.unwrap(), 1, "a stale value stands in for a panic too");
    let error = cache.get_or_load("b", load).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoaderPanicked);
}

/// Other code of the caller's runs in the task of a flight or a write: its panic must end the wait as well.
#[tokio::test]
async fn a_weigher_or_backend_that_panics_is_an_error_to_all_who_wait() {
    let loads = Arc::new(AtomicUsize::new(0));
    let cache: Cache<String, u64> = Cache::builder()
        .bytes_max(1000, |_, value| if *value == 13 { panic!("unlucky") } else { 1 })
        .build()
        .unwrap();
    let callers: Vec<_> = (0..10)
        .map(|_| {
            let (cache, loads) = (cache.clone(), Arc::clone(&loads));
            tokio::spawn(async move {
                let load = |_| async move {
                    loads.fetch_add(1, SeqCst);
                    settle().await;
                    Ok::<u64, BoxError>(13)
                };
                cache.get_or_load("a", load).await.unwrap_err()
            })
        })
        .collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().kind(), ErrorKind::Panicked);
    }
    assert_eq!(loads.load(SeqCst), 1, "nobody tries again what panics");

    let clock = ManualClock::new();
    let tier = Faulty::new(memory(&clock));
    let cache: Cache<String, u64> =
        Cache::builder().clock(Clock::from(clock)).tier(tier.clone()).build().unwrap();
    tier.feel(Mood::Panics);
    assert_eq!(promptly(cache.set("a".into(), 1)).await.unwrap_err().kind(), ErrorKind::Panicked);
    assert_eq!(promptly(cache.remove("a")).await.unwrap_err().kind(), ErrorKind::Panicked);
    assert_eq!(promptly(cache.clear()).await.unwrap_err().kind(), ErrorKind::Panicked);
    assert_eq!(cache.get("a").await, None);
    tier.feel(Mood::Well);
    cache.set("a".into(), 1).await.unwrap();
    assert_eq!(cache.get("a").await, Some(1));
}
