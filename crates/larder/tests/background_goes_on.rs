//! Failure: one tier that hangs, or a panic in what the user gave, ends the work in the background for all:
//! tiers that were set aside never come back, and memory pressure is no longer seen.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use larder::Cache;
use larder::backend::{MemoryBackend, MemoryOptions};
use larder::clock::ManualClock;
use larder::pressure::{MemoryPressure, MemoryReading, MemorySource};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};
use support::{Faulty, Mood};

/// Panics at its first reading; then memory is short.
#[derive(Clone, Default)]
struct Source(Arc<AtomicU64>);

impl MemorySource for Source {
    fn read(&self) -> Option<MemoryReading> {
        assert!(self.0.fetch_add(1, SeqCst) > 0, "a source that panics");
        Some(MemoryReading { used_bytes: 950, max_bytes: 1000 })
    }
}

fn tier() -> Arc<Faulty> {
    Faulty::new(Arc::new(MemoryBackend::new(MemoryOptions::default())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_a_hanging_tier_nor_a_panic_stops_the_rest() {
    let (clock, source, hangs, fails) = (ManualClock::new(), Source::default(), tier(), tier());
    let cache: Cache<u64, u64> = Cache::builder()
        .entries_max(1000)
        .clock(clock.clone().into())
        .memory_pressure(MemoryPressure::new(source.clone()))
        .tier(hangs.clone())
        .tier(fails.clone())
        .build()
        .unwrap();
    let tick = || {
        let reads = source.0.load(SeqCst);
        wait_until(|| clock.sleepers() > 0);
        clock.advance(Duration::from_secs(1));
        wait_until(|| source.0.load(SeqCst) > reads && clock.sleepers() > 0);
    };
    tick();
    assert_eq!(cache.stats().weight_max, 1000);
    tick();
    wait_until(|| cache.stats().weight_max == 750);
    // The first sweep comes after a minute, and never ends.
    (0..57).for_each(|_| tick());
    hangs.feel(Mood::Hangs);
    tick();
    wait_until(|| clock.sleepers() == 2);
    hangs.feel(Mood::Well);

    fails.feel(Mood::Down);
    let is_aside = || cache.stats().tiers[1].is_aside;
    for key in 0..3 {
        cache.get(&key).await;
    }
    assert!(is_aside());
    fails.feel(Mood::Panics);
    // No single ticks: a panic takes its time to be reported, and its call's own timer is a sleeper too.
    let wait_while_time_passes = |is_so: &dyn Fn() -> bool| {
        wait_until(|| {
            clock.advance(Duration::from_secs(1));
            is_so()
        });
    };
    wait_while_time_passes(&|| fails.panics() > 0);
    fails.feel(Mood::Well);
    wait_while_time_passes(&|| !is_aside());
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "never");
        std::thread::yield_now();
    }
}
