//! Failure: a hot key expires, every request that comes before the first answer loads it again, and the
//! database goes down under ten thousand equal queries.

use super::{cache, memory};
use larder::EntryOptions;
use larder::clock::ManualClock;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::sync::Notify;

async fn stampede(tiers: usize) {
    let clock = ManualClock::new();
    let tiers: Vec<_> = (0..tiers).map(|_| memory(&clock)).collect();
    let cache = cache(&clock, &tiers, EntryOptions::default());
    let (loads, go) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let callers: Vec<_> = (0..10_000)
        .map(|_| {
            let (cache, loads, go) = (cache.clone(), Arc::clone(&loads), Arc::clone(&go));
            tokio::spawn(async move {
                let load = |_| async move {
                    let load = loads.fetch_add(1, SeqCst) as u64;
                    go.notified().await;
                    Ok::<_, Infallible>(load)
                };
                cache.get_or_load("hot", load).await.unwrap()
            })
        })
        .collect();
    while cache.stats().joined < 9_999 {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 0);
    }
    assert_eq!(loads.load(SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_cold_key_is_loaded_once_by_many_threads() {
    stampede(0).await;
    stampede(2).await;
}

/// Nobody waits in line: an error reaches all at once, it isn't found again by each in turn.
#[tokio::test]
async fn a_failing_loader_runs_once_for_all_who_wait() {
    let cache = cache(&ManualClock::new(), &[], EntryOptions::default());
    let loads = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let (cache, loads) = (cache.clone(), Arc::clone(&loads));
            tokio::spawn(async move {
                let load = |_| async move {
                    loads.fetch_add(1, SeqCst);
                    super::settle().await;
                    Err::<u64, _>("down")
                };
                cache.get_or_load("hot", load).await.unwrap_err()
            })
        })
        .collect();
    for caller in callers {
        assert!(caller.await.unwrap().to_string().contains("down"));
    }
    assert_eq!(loads.load(SeqCst), 1);
}
