//! Failure: a tier dies, hangs or loses its answers. Requests hang with it or fail; when it is back it serves
//! what was removed meanwhile.

use super::support::{Faulty, Mood};
use super::{SECOND, cache, memory, settle};
use larder::clock::ManualClock;
use larder::key::Pattern;
use larder::{BreakerMode, Cache, EntryOptions, ErrorKind, HealthState, Written};
use std::convert::Infallible;
use std::sync::Arc;

struct World {
    clock: ManualClock,
    tier: Arc<Faulty>,
    cache: Cache<String, u64>,
}

fn world() -> World {
    let clock = ManualClock::new();
    let tier = Faulty::new(memory(&clock));
    let cache = cache(
        &clock,
        &[Arc::clone(&tier) as Arc<dyn larder::backend::Backend>],
        EntryOptions::default().ttl(3600 * SECOND),
    );
    World { clock, tier, cache }
}

impl World {
    /// Lets timeouts pass until `future` is ready.
    async fn with_time<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        for _ in 0..1000 {
            tokio::select! {
                biased;
                output = &mut future => return output,
                () = settle() => self.clock.advance(SECOND),
            }
        }
        panic!("it hangs")
    }

    /// Reads past L1.
    async fn below(&self, key: &str) -> Option<u64> {
        let fresh = cache(
            &self.clock,
            &[Arc::clone(&self.tier) as Arc<dyn larder::backend::Backend>],
            EntryOptions::default(),
        );
        fresh.get(key).await
    }
}

const MOODS: [Mood; 3] = [Mood::Down, Mood::Mute, Mood::Hangs];

#[tokio::test]
async fn service_goes_on_and_what_was_removed_stays_removed() {
    for mood in MOODS {
        let world = world();
        let cache = &world.cache;
        for key in ["removed", "set", "tagged", "pattern", "kept"] {
            let options = cache.options().tags(larder::entry::Tags::new([key]).unwrap());
            cache.set_with(key.into(), 1, &options).await.unwrap();
        }
        world.tier.feel(mood);
        let removal = world.with_time(cache.remove("removed")).await.unwrap();
        assert!(removal.is_queued && removal.existed, "{mood:?}");
        assert!(world.with_time(cache.remove_tag("tagged")).await.unwrap().is_queued, "{mood:?}");
        world.with_time(cache.remove_matching(&Pattern::new("*patt*").unwrap())).await.unwrap();
        assert_eq!(world.with_time(cache.set("set".into(), 2)).await.unwrap(), Written::Local, "{mood:?}");
        let stats = cache.stats();
        assert!(stats.tiers[0].is_aside && stats.tiers[0].undelivered == 4, "{mood:?} {stats:?}");
        assert!(stats.removals_queued >= 2 && stats.sets_local == 1, "{mood:?} {stats:?}");
        assert!(world.with_time(cache.health()).await.state > HealthState::Healthy, "{mood:?}");
        for gone in ["removed", "tagged", "pattern"] {
            assert_eq!(world.with_time(cache.get(gone)).await, None, "{mood:?} {gone}");
        }
        assert_eq!(cache.get("set").await, Some(2), "{mood:?}");
        assert_eq!(cache.get("kept").await, Some(1), "{mood:?}");
        let load = |_| async { Ok::<_, Infallible>(3) };
        assert_eq!(world.with_time(cache.get_or_load("new", load)).await.unwrap(), 3, "{mood:?}");
        world.tier.feel(Mood::Well);
        cache.recover().await;
        let stats = cache.stats();
        assert!(!stats.tiers[0].is_aside && stats.tiers[0].undelivered == 0, "{mood:?} {stats:?}");
        // An answer is kept for a second.
        world.clock.advance(SECOND);
        assert_eq!(cache.health().await.state, HealthState::Healthy, "{mood:?}");
        for gone in ["removed", "tagged", "pattern", "set"] {
            assert_eq!(world.below(gone).await, None, "{mood:?} {gone}");
        }
        assert_eq!(world.below("kept").await, Some(1), "{mood:?}");
        cache.set("again".into(), 4).await.unwrap();
        assert_eq!(world.below("again").await, Some(4), "{mood:?}");
    }
}

#[tokio::test]
async fn a_tier_that_fails_reads_is_set_aside_and_tried_again() {
    for mood in MOODS {
        let world = world();
        world.tier.feel(mood);
        for i in 0..10 {
            assert_eq!(world.with_time(world.cache.get(&format!("{i}"))).await, None);
        }
        let stats = world.cache.stats();
        assert!(stats.tiers[0].is_aside, "{mood:?} {stats:?}");
        assert!(stats.tiers[0].errors <= 4, "{mood:?}: later reads pass it by: {stats:?}");
        world.with_time(world.cache.recover()).await;
        assert!(world.cache.stats().tiers[0].is_aside, "{mood:?}");
        world.tier.feel(Mood::Well);
        world.cache.recover().await;
        assert!(!world.cache.stats().tiers[0].is_aside, "{mood:?}");
    }
}

#[tokio::test]
async fn the_first_set_does_not_wait_for_a_tier_that_hangs() {
    let world = world();
    world.tier.feel(Mood::Hangs);
    assert_eq!(world.with_time(world.cache.set("a".into(), 1)).await.unwrap(), Written::Local);
    assert_eq!(world.cache.get("a").await, Some(1));
}

#[tokio::test]
async fn sweeps_and_listings_do_not_wait_for_a_tier_that_hangs() {
    let world = world();
    world.tier.feel(Mood::Hangs);
    let _ = world.with_time(world.cache.sweep()).await;
    let _ = world.with_time(world.cache.keys(&larder::KeysRequest::default())).await;
    let _ = world.with_time(world.cache.namespaces()).await;
    let _ = world.with_time(world.cache.health()).await;
    let _ = world.with_time(world.cache.explain("a")).await;
}

#[tokio::test]
async fn too_many_undelivered_removals_become_a_clear() {
    let world = world();
    world.cache.set("kept".into(), 1).await.unwrap();
    world.tier.feel(Mood::Down);
    let keys: Vec<String> = (0..10_050).map(|i| format!("{i}")).collect();
    for removal in world.cache.remove_many(&keys).await {
        assert!(removal.unwrap().is_queued);
    }
    let undelivered = world.cache.stats().tiers[0].undelivered;
    assert!(undelivered <= 10_000, "{undelivered}");
    world.tier.feel(Mood::Well);
    world.cache.recover().await;
    assert_eq!(world.below("kept").await, None, "what can't be told apart is removed");
}

#[tokio::test]
async fn removing_many_says_of_each_key_whether_it_was_there() {
    let world = world();
    world.cache.set("a".into(), 1).await.unwrap();
    let existed: Vec<bool> = world
        .cache
        .remove_many(&["a".into(), "b".into()])
        .await
        .into_iter()
        .map(|removal| removal.unwrap().existed)
        .collect();
    assert_eq!(existed, [true, false]);
}

#[tokio::test]
async fn a_tier_whose_breaker_an_operator_holds_open_is_passed_by_and_forgets_no_removal() {
    let world = world();
    let cache = &world.cache;
    cache.set("a".into(), 1).await.unwrap();
    cache.set("b".into(), 2).await.unwrap();
    cache.set_breakers("faulty", BreakerMode::ForcedOpen).unwrap();
    // Any call would hang, and with it the test.
    world.tier.feel(Mood::Hangs);
    assert!(cache.remove("a").await.unwrap().is_queued);
    assert_eq!(cache.get("absent").await, None);
    assert_eq!(cache.set("b".into(), 3).await.unwrap(), Written::Local);
    assert!(cache.stats().tiers[0].guard.refused_open > 0);
    world.tier.feel(Mood::Well);
    cache.set_breakers("faulty", BreakerMode::Automatic).unwrap();
    cache.recover().await;
    assert_eq!(world.below("a").await, None);
    assert_eq!(world.below("b").await, None, "a set that stayed local is a removal below");
    let error = cache.set_breakers("fautly", BreakerMode::Disabled).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}
