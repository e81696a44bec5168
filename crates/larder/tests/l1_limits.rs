//! Failure: what must stay in memory is evicted by a burst of other keys; or it stays at the price of the
//! limit, and the process dies of it.

#![allow(clippy::unwrap_used, reason = "tests")]

use larder::clock::ManualClock;
use larder::pressure::{Cgroup, MemoryPressure, MemoryReading, MemorySource};
use larder::{Cache, EntryOptions, ErrorKind, Written};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

fn pinned() -> EntryOptions {
    EntryOptions::default().pinned()
}

#[tokio::test]
async fn pinned_values_outlive_a_burst_and_others_do_not() {
    let cache: Cache<u64, u64> = Cache::builder().entries_max(100).build().unwrap();
    for key in 0..20 {
        let options = if key < 10 { pinned() } else { cache.options() };
        assert_eq!(cache.set_with(key, key, &options).await.unwrap(), Written::Stored);
    }
    for key in 1000..5000 {
        cache.set(key, key).await.unwrap();
        assert!(cache.stats().entries <= 100);
    }
    assert!((0..10).all(|key| cache.peek(&key) == Some(key)));
    assert!((10..20).any(|key| cache.peek(&key).is_none()));
    // Set again without the option, a value is evictable as any other.
    for key in 0..10 {
        cache.set(key, key).await.unwrap();
    }
    for key in 5000..9000 {
        cache.set(key, key).await.unwrap();
    }
    assert!((0..10).any(|key| cache.peek(&key).is_none()));
}

#[tokio::test]
async fn when_all_is_pinned_more_is_refused_until_there_is_room() {
    let cache: Cache<u64, u64> = Cache::builder().entries_max(10).build().unwrap();
    for key in 0..10 {
        assert_eq!(cache.set_with(key, key, &pinned()).await.unwrap(), Written::Stored);
    }
    assert_eq!(cache.set_with(10, 10, &pinned()).await.unwrap(), Written::Refused);
    assert_eq!(cache.set(11, 11).await.unwrap(), Written::Refused);
    // A load is answered all the same.
    let loaded = cache.get_or_load(&12, |_| async { Ok::<_, std::io::Error>(12) }).await;
    assert_eq!((loaded.unwrap(), cache.peek(&12)), (12, None));
    assert_eq!(cache.stats().entries, 10);
    // A replacement needs no room of others.
    assert_eq!(cache.set_with(0, 100, &pinned()).await.unwrap(), Written::Stored);
    assert_eq!(cache.peek(&0), Some(100));
    cache.remove(&0).await.unwrap();
    assert_eq!(cache.set(11, 11).await.unwrap(), Written::Stored);
}

#[tokio::test]
async fn a_pinned_value_expires_and_is_invalidated_as_any_other() {
    let clock = ManualClock::new();
    let cache: Cache<u64, u64> = Cache::builder().clock(clock.clone().into()).build().unwrap();
    cache.set_with(1, 1, &pinned().ttl(Duration::from_secs(1))).await.unwrap();
    clock.advance(Duration::from_secs(2));
    assert_eq!(cache.get(&1).await, None);
    cache.set_with(1, 1, &pinned()).await.unwrap();
    cache.clear().await.unwrap();
    assert_eq!(cache.get(&1).await, None);
}

#[tokio::test]
async fn a_limit_that_is_lowered_holds_at_once_and_never_below_what_is_pinned() {
    let cache: Cache<u64, u64> = Cache::builder().entries_max(1000).build().unwrap();
    for key in 0..1000 {
        let options = if key < 50 { pinned() } else { cache.options() };
        cache.set_with(key, key, &options).await.unwrap();
    }
    let full = cache.stats().entries;
    cache.resize(100).unwrap();
    let stats = cache.stats();
    assert!(stats.entries <= 100 && stats.evicted.size >= full - 100, "{stats:?}");
    for limit in [0, 1, 49] {
        assert_eq!(cache.resize(limit).unwrap_err().kind(), ErrorKind::Config);
        assert_eq!(cache.stats().weight_max, 100);
    }
    cache.resize(50).unwrap();
    assert!((0..50).all(|key| cache.peek(&key) == Some(key)));
    assert_eq!(cache.set(2000, 1).await.unwrap(), Written::Refused);
    cache.resize(2000).unwrap();
    for key in 0..1500 {
        cache.set(key, key).await.unwrap();
    }
    assert!(cache.stats().entries > 1000, "it grows back");
}

#[test]
fn a_listener_may_change_the_limit() {
    let slot: Arc<std::sync::OnceLock<Cache<u64, u64>>> = Arc::default();
    let of_listener = Arc::clone(&slot);
    let cache: Cache<u64, u64> = Cache::builder()
        .entries_max(10)
        .on_evict(move |_, _, _| {
            if let Some(cache) = of_listener.get() {
                cache.resize(9).unwrap();
            }
        })
        .build()
        .unwrap();
    (0..10).for_each(|key| drop(cache.blocking().set(key, key)));
    slot.set(cache.clone()).unwrap();
    cache.resize(5).unwrap();
    assert_eq!(cache.stats().weight_max, 9);
}

/// A process with as many used bytes of 1000 as the test says; counts how often it is read.
#[derive(Clone, Default)]
struct Memory {
    used: Arc<AtomicU64>,
    reads: Arc<AtomicU64>,
}

impl MemorySource for Memory {
    fn read(&self) -> Option<MemoryReading> {
        self.reads.fetch_add(1, SeqCst);
        Some(MemoryReading { used_bytes: self.used.load(SeqCst), max_bytes: 1000 })
    }
}

#[test]
fn a_process_short_of_memory_shrinks_and_grows_back_late() {
    let (clock, memory) = (ManualClock::new(), Memory::default());
    let cache: Cache<u64, u64> = Cache::builder()
        .entries_max(1000)
        .clock(clock.clone().into())
        .memory_pressure(MemoryPressure::new(memory.clone()))
        .build()
        .unwrap();
    // The limit after so many seconds at this use.
    let after = |seconds: u64, used: u64| {
        memory.used.store(used, SeqCst);
        for _ in 0..seconds {
            let reads = memory.reads.load(SeqCst);
            wait_until(|| clock.sleepers() == 1);
            clock.advance(Duration::from_secs(1));
            wait_until(|| memory.reads.load(SeqCst) > reads && clock.sleepers() == 1);
        }
        cache.stats().weight_max
    };
    assert_eq!(after(3, 800), 1000);
    assert_eq!(after(1, 950), 750);
    assert_eq!(after(1, 950), 562);
    assert_eq!(after(20, 800), 562, "between the two bounds nothing moves");
    assert_eq!(after(9, 500), 562);
    assert_eq!(after(1, 800), 562, "calm has to last");
    assert_eq!(after(10, 500), 703);
    assert_eq!(after(20, 950), 100, "never below the least share");
    cache.resize(2000).unwrap();
    assert_eq!(cache.stats().weight_max, 200, "the pressure goes on");
    assert_eq!(after(200, 500), 2000);
}

fn wait_until(mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "never");
        std::thread::yield_now();
    }
}

#[test]
fn the_fullest_of_the_cgroups_around_counts_without_idle_page_cache() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let read = || Cgroup::at(&root.join("membership"), &root.join("sys")).and_then(|group| group.read());
    let reading = |used_bytes, max_bytes| Some(MemoryReading { used_bytes, max_bytes });
    assert_eq!(read(), None);

    write("membership", "0::/app.slice/web\n");
    assert_eq!(read(), None);
    write("sys/app.slice/web/memory.max", "max\n");
    write("sys/app.slice/web/memory.current", "500\n");
    assert_eq!(read(), None, "no limit");
    write("sys/app.slice/memory.max", "1000\n");
    write("sys/app.slice/memory.current", "900\n");
    write("sys/app.slice/memory.stat", "anon 500\ninactive_file 300\nfile 400\n");
    assert_eq!(read(), reading(600, 1000));
    write("sys/app.slice/web/memory.max", "600\n");
    assert_eq!(read(), reading(500, 600));
    write("sys/app.slice/web/memory.current", "damaged");
    assert_eq!(read(), reading(600, 1000));

    write("membership", "5:cpu,cpuacct:/x\n4:memory:/web\n0::/\n");
    write("sys/memory/web/memory.limit_in_bytes", "9223372036854771712\n");
    write("sys/memory/web/memory.usage_in_bytes", "500\n");
    assert_eq!(read(), None);
    write("sys/memory/memory.limit_in_bytes", "800\n");
    write("sys/memory/memory.usage_in_bytes", "700\n");
    write("sys/memory/memory.stat", "total_inactive_file 100\n");
    assert_eq!(read(), reading(600, 800));
}
