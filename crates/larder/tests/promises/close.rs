//! Failure: the process ends while loaded values are on their way to the tiers, or hangs at its end because
//! a tier does not answer.

use super::support::{Faulty, Moment, Mood};
use super::{SECOND, cache, memory, settle};
use larder::clock::ManualClock;
use larder::{EntryOptions, ErrorKind};
use std::convert::Infallible;

#[tokio::test]
async fn reads_go_on_from_memory_and_writes_are_refused() {
    let clock = ManualClock::new();
    let cache = cache(&clock, &[memory(&clock)], EntryOptions::default());
    cache.set("a".into(), 1).await.unwrap();
    cache.close().await.unwrap();
    assert_eq!(cache.get("a").await, Some(1));
    assert_eq!(cache.get("b").await, None);
    assert_eq!(cache.get_or_load("c", |_| async { Ok::<_, Infallible>(3) }).await.unwrap(), 3);
    let closed = [
        cache.set("a".into(), 2).await.map(drop),
        cache.remove("a").await.map(drop),
        cache.clear().await.map(drop),
        cache.remove_tag("t").await.map(drop),
    ];
    for answer in closed {
        assert_eq!(answer.unwrap_err().kind(), ErrorKind::Closed);
    }
    cache.close().await.unwrap();
}

#[tokio::test]
async fn it_waits_for_write_backs_but_not_for_ever() {
    let clock = ManualClock::new();
    let tier = Faulty::new(memory(&clock));
    let cache = cache(
        &clock,
        &[std::sync::Arc::clone(&tier) as std::sync::Arc<dyn larder::backend::Backend>],
        EntryOptions::default(),
    );
    let load = {
        let tier = tier.clone();
        move |_| async move {
            // The tier hangs once the load is done, when its value is on its way there.
            tier.feel(Mood::Hangs);
            Ok::<_, Infallible>(1)
        }
    };
    assert_eq!(cache.get_or_load("a", load).await.unwrap(), 1);
    settle().await;
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close().await }
    });
    settle().await;
    assert!(!closing.is_finished(), "a value is on its way to the tier");
    for _ in 0..40 {
        clock.advance(SECOND);
        settle().await;
    }
    assert!(closing.is_finished(), "ten seconds are enough");
    closing.await.unwrap().unwrap();
}

#[tokio::test]
async fn it_waits_for_sets_and_loads_under_way_and_both_are_stored() {
    let clock = ManualClock::new();
    let memory = memory(&clock);
    let tier = Faulty::new(std::sync::Arc::clone(&memory));
    let tiers = [std::sync::Arc::clone(&tier) as std::sync::Arc<dyn larder::backend::Backend>];
    let cache = cache(&clock, &tiers, EntryOptions::default());
    let go = std::sync::Arc::new(tokio::sync::Notify::new());
    let loading = tokio::spawn({
        let (cache, go) = (cache.clone(), std::sync::Arc::clone(&go));
        let load = |_| async move {
            go.notified().await;
            Ok::<_, Infallible>(1)
        };
        async move { cache.get_or_load("loaded", load).await }
    });
    settle().await;
    let put = tier.hold_next_put(Moment::BeforeItIsDone);
    let setting = tokio::spawn({
        let cache = cache.clone();
        async move { cache.set("set".into(), 2).await }
    });
    settle().await;
    let closing = tokio::spawn({
        let cache = cache.clone();
        async move { cache.close().await }
    });
    for release in [&put, &go] {
        for _ in 0..3 {
            clock.advance(SECOND / 2);
            settle().await;
        }
        assert!(!closing.is_finished(), "a set or a load is under way");
        release.notify_one();
    }
    for _ in 0..3 {
        settle().await;
        clock.advance(SECOND / 2);
    }
    super::promptly(closing).await.unwrap().unwrap();
    assert_eq!(setting.await.unwrap().unwrap(), larder::Written::Stored);
    assert_eq!(loading.await.unwrap().unwrap(), 1);
    let stats = cache.stats();
    assert_eq!((stats.tiers[0].writes, stats.sets_local), (2, 0), "both came before the tier was closed");
}
