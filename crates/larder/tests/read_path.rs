//! The read path as a caller sees it: what is fresh, what is stale, who loads.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use larder::backend::{Backend, MemoryBackend, MemoryOptions};
use larder::clock::{Clock, ManualClock};
use larder::{Cache, EntryOptions, ErrorKind, Loaded, Stale};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn cache(options: EntryOptions) -> (Cache<String, u32>, ManualClock) {
    let clock = ManualClock::new();
    let cache = Cache::builder().clock(Clock::from(clock.clone())).defaults(options).build().unwrap();
    (cache, clock)
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_value_is_loaded_once_served_from_memory_and_gone_after_its_ttl() {
    let (cache, clock) = cache(EntryOptions::default().ttl(10 * SECOND));
    let load = |n| move |_| async move { Ok::<_, Infallible>(n) };
    assert_eq!(cache.get_or_load("a", load(1)).await.unwrap(), 1);
    assert_eq!(cache.get_or_load("a", load(2)).await.unwrap(), 1);
    clock.advance(10 * SECOND - Duration::from_millis(1));
    assert_eq!(cache.get("a").await, Some(1));
    clock.advance(Duration::from_millis(1));
    assert_eq!(cache.get("a").await, None);
    assert_eq!(cache.peek("a"), None);
    assert_eq!(cache.get_or_load("a", load(3)).await.unwrap(), 3);
}

#[tokio::test]
async fn stale_while_revalidate_serves_at_once_and_refreshes_once() {
    let (cache, clock) = cache(EntryOptions::default().ttl(SECOND).stale_while_revalidate(5 * SECOND));
    cache.set("a".into(), 1).await.unwrap();
    clock.advance(2 * SECOND);
    let loads = Arc::new(AtomicUsize::new(0));
    for _ in 0..3 {
        let loads = loads.clone();
        let load = move |_| async move { Ok::<_, Infallible>(10 + loads.fetch_add(1, SeqCst) as u32) };
        assert_eq!(cache.get_or_load("a", load).await.unwrap(), 1);
    }
    assert_eq!(cache.get("a").await, None, "a get without a loader agreed to nothing stale");
    assert_eq!(cache.lookup("a", Stale::Allow).await.unwrap().value, 1);
    settle().await;
    assert_eq!(cache.get("a").await, Some(10));
    assert_eq!(loads.load(SeqCst), 1);
}

#[tokio::test]
async fn stale_on_error_serves_the_old_value_and_tries_again_after_the_throttle() {
    let (cache, clock) = cache(EntryOptions::default().ttl(SECOND).stale_on_error(60 * SECOND));
    cache.set("a".into(), 1).await.unwrap();
    clock.advance(2 * SECOND);
    let loads = Arc::new(AtomicUsize::new(0));
    let fail = || {
        let loads = loads.clone();
        move |_| async move {
            loads.fetch_add(1, SeqCst);
            Err::<u32, _>("source is down")
        }
    };
    for _ in 0..5 {
        assert_eq!(cache.get_or_load("a", fail()).await.unwrap(), 1);
    }
    assert_eq!(loads.load(SeqCst), 1);
    clock.advance(11 * SECOND);
    assert_eq!(cache.get_or_load("a", fail()).await.unwrap(), 1);
    assert_eq!(loads.load(SeqCst), 2);
    clock.advance(60 * SECOND);
    let error = cache.get_or_load("a", fail()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Loader);
    assert!(error.to_string().contains("source is down"), "{error}");
}

#[tokio::test]
async fn soft_timeout_serves_stale_and_the_load_goes_on() {
    let options = EntryOptions::default().ttl(SECOND).stale_on_error(60 * SECOND).load_timeout_soft(SECOND);
    let (cache, clock) = cache(options);
    cache.set("a".into(), 1).await.unwrap();
    clock.advance(2 * SECOND);
    let load = {
        let clock = Clock::from(clock.clone());
        move |_| async move {
            clock.sleep(3 * SECOND).await;
            Ok::<_, Infallible>(2)
        }
    };
    let reader = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load("a", load).await }
    });
    settle().await;
    clock.advance(SECOND);
    assert_eq!(reader.await.unwrap().unwrap(), 1);
    clock.advance(2 * SECOND);
    settle().await;
    assert_eq!(cache.get("a").await, Some(2));
}

#[tokio::test]
async fn hard_timeout_ends_a_load_that_hangs() {
    let (cache, clock) = cache(EntryOptions::default());
    let reader = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load("a", |_| std::future::pending::<Result<u32, Infallible>>()).await }
    });
    settle().await;
    clock.advance(30 * SECOND);
    assert_eq!(reader.await.unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    settle().await;
    assert_eq!(cache.stats().flights, 0);
    assert_eq!(cache.get_or_load("a", |_| async { Ok::<_, Infallible>(1) }).await.unwrap(), 1);
}

#[tokio::test]
async fn loaders_set_ttl_and_tags_decline_and_answer_not_modified() {
    let (cache, clock) = cache(EntryOptions::default().ttl(60 * SECOND).stale_on_error(60 * SECOND));
    let load = |_| async { Ok::<_, Infallible>(Loaded::new(1).ttl(SECOND).tag("red")) };
    cache.get_or_load("a", load).await.unwrap();
    let hit = cache.lookup("a", Stale::Refuse).await.unwrap();
    assert_eq!(hit.ttl_left, Some(SECOND));
    assert!(hit.tags.contains("red"));
    clock.advance(2 * SECOND);
    let same = |context: larder::LoadContext<u32>| async move {
        assert_eq!(context.previous(), Some(&1));
        Ok::<_, Infallible>(Loaded::not_modified())
    };
    assert_eq!(cache.get_or_load("a", same).await.unwrap(), 1);
    let hit = cache.lookup("a", Stale::Refuse).await.unwrap();
    assert_eq!(hit.ttl_left, Some(60 * SECOND));
    assert!(hit.tags.contains("red"), "an unmodified value keeps its tags");
    cache.remove_tag("red").await.unwrap();
    assert_eq!(cache.get("a").await, None);
    let declined = |_| async { Ok::<_, Infallible>(Loaded::new(5).do_not_store()) };
    assert_eq!(cache.get_or_load("b", declined).await.unwrap(), 5);
    assert_eq!(cache.get("b").await, None);
    let nothing = |_| async { Ok::<Loaded<u32>, Infallible>(Loaded::not_modified()) };
    assert_eq!(cache.get_or_load("c", nothing).await.unwrap_err().kind(), ErrorKind::Loader);
}

#[tokio::test]
async fn not_modified_after_a_stale_answer_of_a_tier_renews_the_tier_too() {
    let clock = ManualClock::new();
    let options = MemoryOptions { clock: Clock::from(clock.clone()), ..MemoryOptions::default() };
    let tier: Arc<dyn Backend> = Arc::new(MemoryBackend::new(options));
    let start = || {
        let options = EntryOptions::default().ttl(SECOND).stale_while_revalidate(60 * SECOND);
        let builder = Cache::<String, u32>::builder().clock(Clock::from(clock.clone())).defaults(options);
        builder.tier(Arc::clone(&tier)).build().unwrap()
    };
    start().set("a".into(), 1).await.unwrap();
    clock.advance(2 * SECOND);
    let restarted = start();
    let load = |_| async { Ok::<Loaded<u32>, Infallible>(Loaded::not_modified()) };
    assert_eq!(restarted.get_or_load_with("a", &restarted.options(), load).await.unwrap(), 1);
    settle().await;
    let hit = start().lookup("a", Stale::Allow).await.unwrap();
    assert_eq!((hit.value, hit.is_stale), (1, false));
}

#[tokio::test]
async fn absences_are_remembered_for_their_own_ttl() {
    let (cache, clock) = cache(EntryOptions::default().negative_ttl(5 * SECOND));
    let loads = Arc::new(AtomicUsize::new(0));
    let absent = || {
        let loads = loads.clone();
        move |_| async move {
            loads.fetch_add(1, SeqCst);
            Ok::<Option<u32>, Infallible>(None)
        }
    };
    for _ in 0..3 {
        assert_eq!(cache.get_or_load_optional("a", &cache.options(), absent()).await.unwrap(), None);
    }
    assert_eq!(loads.load(SeqCst), 1);
    let error = cache.get_or_load("a", |_| async { Ok::<_, Infallible>(1) }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    clock.advance(5 * SECOND);
    assert_eq!(cache.get_or_load("a", |_| async { Ok::<_, Infallible>(1) }).await.unwrap(), 1);
}

#[tokio::test]
async fn early_refresh_by_threshold_and_by_xfetch_keeps_hot_values_fresh() {
    let (cache, clock) = cache(EntryOptions::default().ttl(10 * SECOND).refresh_after(0.8));
    cache.set("a".into(), 1).await.unwrap();
    let load = |_| async { Ok::<_, Infallible>(2) };
    clock.advance(7 * SECOND);
    assert_eq!(cache.get_or_load("a", load).await.unwrap(), 1);
    settle().await;
    assert_eq!(cache.peek("a"), Some(1));
    clock.advance(SECOND);
    assert_eq!(cache.get_or_load("a", load).await.unwrap(), 1);
    settle().await;
    assert_eq!(cache.peek("a"), Some(2));

    let (cache, clock) = self::cache(EntryOptions::default().ttl(100 * SECOND).early_refresh_beta(1.0));
    let slow = {
        let clock = Clock::from(clock.clone());
        move |_| async move {
            clock.sleep(SECOND).await;
            Ok::<_, Infallible>(1)
        }
    };
    let first = tokio::spawn({
        let cache = cache.clone();
        async move { cache.get_or_load("a", slow).await }
    });
    settle().await;
    clock.advance(SECOND);
    first.await.unwrap().unwrap();
    clock.advance(60 * SECOND);
    for _ in 0..1000 {
        cache.get_or_load("a", load).await.unwrap();
    }
    settle().await;
    assert_eq!(cache.peek("a"), Some(1), "39 load times before its expiry nobody refreshes");
    clock.advance(38 * SECOND);
    for _ in 0..1000 {
        cache.get_or_load("a", load).await.unwrap();
    }
    settle().await;
    assert_eq!(cache.peek("a"), Some(2), "one load time before it, one of 1,000 readers does");
}

#[tokio::test]
async fn sliding_entries_live_while_they_are_read() {
    let (cache, clock) = cache(EntryOptions::default().ttl(10 * SECOND).sliding());
    cache.set("a".into(), 1).await.unwrap();
    for _ in 0..10 {
        clock.advance(9 * SECOND);
        assert_eq!(cache.get("a").await, Some(1));
    }
    clock.advance(10 * SECOND);
    assert_eq!(cache.get("a").await, None);
}

#[tokio::test]
async fn a_batch_loads_only_what_is_missing_in_one_call() {
    let (cache, _) = cache(EntryOptions::default());
    cache.set("a".into(), 1).await.unwrap();
    let keys = ["a", "b", "c", "b"].map(String::from);
    let load = |missing: Vec<String>| async move {
        assert_eq!(missing, ["b", "c"]);
        Ok::<_, Infallible>([("b".to_owned(), 2)].into())
    };
    let values = cache.get_many_or_load(&keys, &cache.options(), load).await;
    let values: Vec<_> = values.into_iter().map(Result::unwrap).collect();
    assert_eq!(values, [Some(1), Some(2), None, Some(2)]);
    let nobody = |_: Vec<String>| async { Err::<std::collections::HashMap<String, u32>, _>("not called") };
    let again = cache.get_many_or_load(&keys, &cache.options(), nobody).await;
    assert_eq!(again.into_iter().map(Result::unwrap).collect::<Vec<_>>(), values, "absence is remembered");
    assert_eq!(cache.get_many(&keys).await, values);
}

#[tokio::test]
async fn ttl_zero_stores_nothing_and_removes_what_was_there() {
    let (cache, _) = cache(EntryOptions::default());
    cache.set("a".into(), 1).await.unwrap();
    let zero = cache.options().ttl(Duration::ZERO);
    assert_eq!(cache.set_with("a".into(), 2, &zero).await.unwrap(), larder::Written::NotStored);
    assert_eq!(cache.get("a").await, None);
    assert_eq!(cache.get_or_load_with("a", &zero, |_| async { Ok::<_, Infallible>(3) }).await.unwrap(), 3);
    assert_eq!(cache.get("a").await, None);
}

#[tokio::test]
async fn forever_is_forever_and_clock_jumps_of_a_year_change_nothing_in_memory() {
    let (cache, clock) = cache(EntryOptions::default().ttl(Duration::MAX).stale_on_error(Duration::MAX));
    cache.set("a".into(), 1).await.unwrap();
    cache.set_with("b".into(), 2, &cache.options().ttl(100 * SECOND)).await.unwrap();
    let now = Clock::from(clock.clone()).wall_ms();
    let year = 365 * 24 * 3600 * 1000;
    for wall in [now + year, now - year, 0, u64::MAX, now] {
        clock.set_wall_ms(wall);
        assert_eq!(cache.get_many(&["a".into(), "b".into()]).await, [Some(1), Some(2)], "at {wall}");
        cache.set("c".into(), 3).await.unwrap();
        assert_eq!(cache.get("c").await, Some(3), "at {wall}");
    }
    clock.advance(Duration::from_millis(1000 * year));
    assert_eq!(cache.get("a").await, Some(1));
    assert_eq!(cache.get("b").await, None);
}

#[tokio::test]
async fn expire_gives_a_new_ttl_and_says_whether_there_was_an_entry() {
    let (cache, clock) = cache(EntryOptions::default().ttl(10 * SECOND));
    assert!(!cache.expire("a", SECOND).await.unwrap());
    cache.set("a".into(), 1).await.unwrap();
    assert!(cache.expire("a", 100 * SECOND).await.unwrap());
    clock.advance(99 * SECOND);
    assert_eq!(cache.get("a").await, Some(1));
    assert!(cache.expire("a", Duration::ZERO).await.unwrap());
    assert_eq!(cache.get("a").await, None);
}

#[tokio::test]
async fn an_absence_takes_the_place_of_the_stale_value_even_if_it_is_not_remembered() {
    let options =
        EntryOptions::default().ttl(SECOND).stale_on_error(60 * SECOND).negative_ttl(Duration::ZERO);
    let (cache, clock) = cache(options.clone());
    cache.set("a".into(), 1).await.unwrap();
    clock.advance(2 * SECOND);
    let absent = |_| async { Ok::<Option<u32>, Infallible>(None) };
    assert_eq!(cache.get_or_load_optional("a", &options, absent).await.unwrap(), None);
    let error = cache.get_or_load("a", |_| async { Err::<u32, _>("down") }).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Loader, "what the source has no more must not be served for it");
}

#[test]
fn a_runtime_without_timers_is_enough() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let cache: Cache<String, u32> = Cache::builder().build().unwrap();
    let load = |_| async {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(1)
    };
    assert_eq!(runtime.block_on(cache.get_or_load("a", load)).unwrap(), 1);
}
