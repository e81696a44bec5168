//! Failure: the process ends while loaded values are on their way to the tiers, or hangs at its end because
//! a tier does not answer.

use super::support::{Faulty, Mood};
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
