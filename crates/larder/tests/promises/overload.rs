//! Failure: the source hangs, requests pile up, and the memory of the process ends before the patience of
//! its callers does.

use super::{promptly, settle};
use larder::clock::{Clock, ManualClock};
use larder::{BoxError, Cache, EntryOptions, ErrorKind};
use std::time::Duration;

fn pending() -> impl FnOnce(larder::LoadContext<u64>) -> std::future::Pending<Result<u64, BoxError>> {
    |_| std::future::pending()
}

#[tokio::test]
async fn flights_and_waiters_are_bounded_and_come_back() {
    let clock = ManualClock::new();
    let cache: Cache<u64, u64> =
        Cache::builder().clock(Clock::from(clock.clone())).flights_max(2).waiters_max(3).build().unwrap();
    let call = |key: u64| {
        let cache = cache.clone();
        tokio::spawn(async move { cache.get_or_load(&key, pending()).await })
    };
    let under_way: Vec<_> = [1, 1, 1, 2].map(call).into();
    settle().await;
    let waiter = promptly(cache.get_or_load(&1, pending())).await.unwrap_err();
    assert_eq!(waiter.kind(), ErrorKind::Overloaded);
    assert!(waiter.is_transient());
    let flight = promptly(cache.get_or_load(&3, pending())).await.unwrap_err();
    assert_eq!(flight.kind(), ErrorKind::Overloaded);
    let options = cache.options();
    let many = cache.get_many_or_load(&[3, 4], &options, |_| async {
        Ok::<_, BoxError>(std::collections::HashMap::<u64, u64>::new())
    });
    for answer in many.await {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Overloaded);
    }
    assert_eq!(cache.stats().overloaded, 4);
    assert_eq!(cache.stats().flights, 2);
    clock.advance(Duration::from_secs(30));
    for call in under_way {
        assert_eq!(call.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    }
    settle().await;
    assert_eq!(cache.stats().flights, 0);
    assert_eq!(cache.get_or_load(&3, |_| async { Ok::<_, BoxError>(3) }).await.unwrap(), 3);
}

#[tokio::test]
async fn a_stale_value_is_served_where_a_load_is_refused() {
    let clock = ManualClock::new();
    let second = Duration::from_secs(1);
    let options = EntryOptions::default().ttl(second).stale_on_error(60 * second);
    let cache: Cache<u64, u64> =
        Cache::builder().clock(Clock::from(clock.clone())).flights_max(1).defaults(options).build().unwrap();
    cache.set(1, 10).await.unwrap();
    clock.advance(2 * second);
    let hanging = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load(&2, pending()).await }
    });
    settle().await;
    assert_eq!(cache.get_or_load(&1, pending()).await.unwrap(), 10);
    hanging.abort();
}

/// However many keys a call asks for and however often it has to start again, it waits once.
#[tokio::test]
async fn a_caller_waits_no_longer_than_its_own_timeout() {
    let clock = ManualClock::new();
    let cache: Cache<u64, u64> = Cache::builder().clock(Clock::from(clock.clone())).build().unwrap();
    let slow = cache.options().load_timeout_hard(Duration::from_secs(3600));
    let keys: Vec<u64> = (0..10).collect();
    for key in keys.clone() {
        let (cache, slow) = (cache.clone(), slow.clone());
        tokio::spawn(async move { cache.get_or_load_with(&key, &slow, pending()).await });
    }
    settle().await;
    let quick = cache.options().load_timeout_hard(Duration::from_secs(5));
    let caller = tokio::spawn({
        let cache = cache.clone();
        async move {
            let load = |_| async { Ok::<_, BoxError>(std::collections::HashMap::<u64, u64>::new()) };
            cache.get_many_or_load(&keys, &quick, load).await
        }
    });
    settle().await;
    clock.advance(Duration::from_secs(5));
    settle().await;
    assert!(caller.is_finished(), "it waits for each key in turn");
    for answer in caller.await.unwrap() {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Timeout);
    }
}
