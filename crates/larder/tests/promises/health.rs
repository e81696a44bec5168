//! Failure: probes become load for a tier that is ill already, wait for one that hangs until the process is
//! taken for dead, call a service unhealthy that serves, or leave something behind in users' data.

use super::support::{Faulty, Mood};
use super::{SECOND, memory, promptly, settle};
use larder::clock::{Clock, ManualClock};
use larder::health::Reason;
use larder::pressure::{MemoryPressure, MemoryReading, MemorySource};
use larder::{Cache, EntryOptions, ErrorKind, Health, HealthLevel, HealthOptions, HealthState, TierOptions};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

struct World {
    clock: ManualClock,
    tiers: Vec<Arc<Faulty>>,
    cache: Cache<String, u64>,
}

fn world(tiers: usize, change: impl FnOnce(&mut HealthOptions)) -> World {
    let clock = ManualClock::new();
    let tiers: Vec<_> = (0..tiers).map(|_| Faulty::new(memory(&clock))).collect();
    let mut options = HealthOptions::default();
    change(&mut options);
    let mut builder = Cache::builder()
        .clock(Clock::from(clock.clone()))
        .defaults(EntryOptions::default().ttl(3600 * SECOND))
        .health(options);
    for (at, tier) in tiers.iter().enumerate() {
        let mut options = TierOptions::default();
        options.name = Some(format!("tier-{at}"));
        builder = builder.tier_with(Arc::clone(tier) as Arc<dyn larder::backend::Backend>, options);
    }
    World { clock, tiers, cache: builder.build().unwrap() }
}

impl World {
    /// The answer, with as many seconds passing as it waits for.
    async fn at(&self, level: HealthLevel) -> (Health, u32) {
        let mut answer = std::pin::pin!(self.cache.health_at(level));
        for seconds in 0..1000 {
            tokio::select! {
                biased;
                health = &mut answer => return (health, seconds),
                () = settle() => self.clock.advance(SECOND),
            }
        }
        panic!("it hangs")
    }
}

fn kinds(reasons: &[Reason]) -> Vec<&'static str> {
    reasons.iter().map(|reason| reason.kind).collect()
}

#[tokio::test]
async fn a_crowd_of_probes_asks_a_tier_once_a_second() {
    let world = world(1, |_| ());
    for level in [HealthLevel::Basic, HealthLevel::Full] {
        let before = world.tiers[0].calls();
        let crowd: Vec<_> = (0..100)
            .map(|_| {
                let cache = world.cache.clone();
                tokio::spawn(async move { cache.health_at(level).await })
            })
            .collect();
        for probe in crowd {
            assert_eq!(promptly(probe).await.unwrap().state, HealthState::Healthy);
        }
        let once = world.tiers[0].calls() - before;
        // Ping; and ticket, put, get, remove, get and usage.
        assert_eq!(once, if level == HealthLevel::Full { 7 } else { 1 }, "{level:?}");
        world.clock.advance(SECOND / 2);
        assert_eq!(world.cache.health_at(level).await.age_ms, 500);
        world.clock.advance(SECOND / 2);
        assert_eq!(world.cache.health_at(level).await.age_ms, 0);
        assert_eq!(world.tiers[0].calls() - before, 2 * once);
    }
    // The control: what is not kept is asked for each time.
    let control = self::world(1, |options| options.cached_for = Duration::ZERO);
    for _ in 0..10 {
        control.cache.health().await;
    }
    assert_eq!(control.tiers[0].calls(), 10);
}

#[tokio::test]
async fn a_tier_that_hangs_delays_nobody_beyond_the_timeout_and_a_ping_not_at_all() {
    let world = world(6, |options| options.timeout = 3 * SECOND);
    world.tiers[1..].iter().for_each(|tier| tier.feel(Mood::Hangs));
    let (health, seconds) = world.at(HealthLevel::Ping).await;
    assert_eq!((health.state, seconds), (HealthState::Healthy, 0), "nothing is known yet");
    // The read timeout is a second, and all wait for it at the same time.
    let (health, seconds) = world.at(HealthLevel::Basic).await;
    assert!(seconds <= 2, "{seconds}");
    let is_well: Vec<_> = health.tiers.iter().map(|tier| tier.state == HealthState::Healthy).collect();
    assert_eq!(is_well, [true, false, false, false, false, false]);
    assert_eq!(kinds(&health.tiers[1].reasons), ["no_answer"]);
    assert!(health.tiers[0].ping_us.is_some() && health.tiers[1].ping_us.is_none());
    // One who leaves early leaves an answer for the next.
    world.clock.advance(SECOND);
    let calls = world.tiers[1].calls();
    {
        let mut gone = std::pin::pin!(world.cache.health());
        tokio::select! { biased; _ = &mut gone => panic!("it hangs"), () = settle() => {} }
    }
    let (_, _) = world.at(HealthLevel::Basic).await;
    assert_eq!(world.tiers[1].calls(), calls + 1);
}

#[tokio::test]
async fn a_round_trip_finds_what_a_ping_does_not_and_leaves_nothing() {
    let world = world(1, |_| ());
    world.cache.set("user".into(), 1).await.unwrap();
    let entries = async || world.at(HealthLevel::Full).await.0.tiers[0].usage.unwrap().entries;
    assert_eq!(entries().await, 1);
    let health = world.at(HealthLevel::Full).await.0;
    assert!(health.tiers[0].round_trip_us.is_some(), "{health:?}");
    for at in 0..50 {
        world.clock.advance(SECOND);
        assert_eq!(entries().await, 1, "{at}");
    }
    let names = world.cache.namespaces().await.unwrap();
    assert_eq!(names.iter().map(larder::key::Namespace::as_str).collect::<Vec<_>>(), ["default"]);
    assert_eq!(world.cache.get("user").await, Some(1));
    // A put that goes nowhere: the entry is held, and then the tier goes down.
    world.clock.advance(SECOND);
    let go = world.tiers[0].hold_next_put(super::support::Moment::BeforeItIsDone);
    let (health, _) = world.at(HealthLevel::Full).await;
    assert_eq!(kinds(&health.tiers[0].reasons), ["round_trip"], "{health:?}");
    assert_eq!(health.state, HealthState::Degraded);
    go.notify_one();
    world.clock.advance(SECOND);
    assert_eq!(world.at(HealthLevel::Full).await.0.state, HealthState::Healthy);
}

#[tokio::test]
async fn what_is_set_aside_is_said_with_its_age_and_not_written_to() {
    let world = world(2, |options| {
        options.undelivered_unhealthy = 60 * SECOND;
        options.tiers_aside_unhealthy = Some(2);
    });
    for tier in &world.tiers {
        tier.feel(Mood::Down);
    }
    world.tiers[1].feel(Mood::Well);
    world.cache.remove("a").await.unwrap();
    let (health, _) = world.at(HealthLevel::Ping).await;
    assert_eq!(kinds(&health.tiers[0].reasons), ["aside", "undelivered"], "{health:?}");
    assert_eq!((health.state, health.tiers[0].undelivered), (HealthState::Degraded, 1));
    world.clock.advance(30 * SECOND);
    settle().await;
    let (health, _) = world.at(HealthLevel::Full).await;
    assert!(health.tiers[0].undelivered_ms >= Some(30_000) && health.tiers[0].aside_ms >= Some(30_000));
    assert_eq!((health.state, health.tiers[0].round_trip_us), (HealthState::Degraded, None));
    assert!(health.tiers[1].round_trip_us.is_some());
    world.clock.advance(30 * SECOND);
    assert_eq!(world.at(HealthLevel::Ping).await.0.state, HealthState::Unhealthy);
    world.tiers[0].feel(Mood::Well);
    world.cache.recover().await;
    let (health, _) = world.at(HealthLevel::Ping).await;
    assert_eq!((health.state, health.tiers[0].undelivered_ms), (HealthState::Healthy, None));
    // Both aside.
    for tier in &world.tiers {
        tier.feel(Mood::Down);
    }
    world.cache.remove("a").await.unwrap();
    let (health, _) = world.at(HealthLevel::Ping).await;
    assert_eq!((health.state, kinds(&health.reasons)), (HealthState::Unhealthy, vec!["tiers_aside"]));
}

#[tokio::test]
async fn failed_calls_count_by_their_share_until_they_are_old() {
    let world = world(1, |options| options.error_share_unhealthy = Some(0.2));
    for at in 0..24 {
        world.cache.set(format!("{at}"), 1).await.unwrap();
    }
    assert_eq!(world.at(HealthLevel::Ping).await.0.tiers[0].error_share, Some(0.0));
    world.tiers[0].feel(Mood::Down);
    // A set that fails is a removal that fails, and sets the tier aside.
    for at in 0..5 {
        world.cache.set(format!("{at}"), 2).await.unwrap();
        world.tiers[0].feel(Mood::Well);
        world.cache.recover().await;
        world.tiers[0].feel(Mood::Down);
    }
    world.tiers[0].feel(Mood::Well);
    let (health, _) = world.at(HealthLevel::Ping).await;
    assert!(kinds(&health.tiers[0].reasons).contains(&"errors"), "{health:?}");
    let share = health.tiers[0].error_share.unwrap();
    let expected = if share >= 0.2 { HealthState::Unhealthy } else { HealthState::Degraded };
    assert!(share > 0.1, "{share}");
    assert_eq!(health.state, expected);
    // Nobody calls any more, and what failed is long ago.
    world.clock.advance(60 * SECOND);
    assert_eq!(world.at(HealthLevel::Ping).await.0.state, HealthState::Healthy);
}

#[tokio::test]
async fn an_open_breaker_is_a_reason_until_it_is_given_free() {
    let world = world(1, |_| ());
    world.cache.set_breakers("tier-0", larder::BreakerMode::ForcedOpen).unwrap();
    let (health, _) = world.at(HealthLevel::Full).await;
    assert_eq!(kinds(&health.tiers[0].reasons), ["breaker", "breaker"]);
    assert!(health.tiers[0].round_trip_us.is_some(), "a check is no call that a breaker counts");
    world.cache.set_breakers("tier-0", larder::BreakerMode::Automatic).unwrap();
    assert_eq!(world.at(HealthLevel::Ping).await.0.state, HealthState::Healthy);
}

#[tokio::test]
async fn a_backend_that_panics_is_a_tier_without_an_answer() {
    let world = world(1, |_| ());
    world.tiers[0].feel(Mood::Panics);
    for level in [HealthLevel::Basic, HealthLevel::Full] {
        let (health, _) = world.at(level).await;
        assert_eq!((health.level, kinds(&health.tiers[0].reasons)), (level, vec!["no_answer"]));
    }
}

#[tokio::test]
async fn memory_and_a_closed_cache_count() {
    #[derive(Clone)]
    struct Used(Arc<AtomicU64>);
    impl MemorySource for Used {
        fn read(&self) -> Option<MemoryReading> {
            Some(MemoryReading { used_bytes: self.0.load(SeqCst), max_bytes: 100 })
        }
    }
    let used = Used(Arc::default());
    let mut options = HealthOptions::default();
    options.memory_unhealthy = Some(0.95);
    let cache: Cache<u64, u64> =
        Cache::builder().memory_pressure(MemoryPressure::new(used.clone())).health(options).build().unwrap();
    for (share, state) in
        [(50, HealthState::Healthy), (90, HealthState::Degraded), (95, HealthState::Unhealthy)]
    {
        used.0.store(share, SeqCst);
        let health = cache.health_at(HealthLevel::Ping).await;
        assert_eq!((health.state, health.memory_share), (state, Some(share as f64 / 100.0)));
    }
    used.0.store(1, SeqCst);
    cache.close().await.unwrap();
    let health = cache.health().await;
    assert_eq!((health.state, kinds(&health.reasons)), (HealthState::Unhealthy, vec!["closed"]));
}

#[test]
fn bounds_that_can_t_be_meant_are_named() {
    let build = |change: fn(&mut HealthOptions)| {
        let mut options = HealthOptions::default();
        change(&mut options);
        let refused = Cache::<u64, u64>::builder().health(options).build().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Config);
        refused.to_string()
    };
    assert!(build(|o| o.timeout = Duration::ZERO).contains("timeout is 0"));
    assert!(build(|o| o.latency_unhealthy = Duration::ZERO).contains("latency_unhealthy is 0ns"));
    assert!(build(|o| o.error_share_degraded = 0.0).contains("error_share_degraded is 0"));
    assert!(build(|o| o.memory_unhealthy = Some(0.5)).contains("memory_unhealthy is 0.5"));
    assert!(build(|o| o.tiers_aside_unhealthy = Some(0)).contains("tiers_aside_unhealthy is 0"));
    assert!(build(|o| o.memory_degraded = f64::NAN).contains("memory_degraded is NaN"));
}
