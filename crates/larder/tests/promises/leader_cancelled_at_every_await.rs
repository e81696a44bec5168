//! Failure: the request that happened to start a load is cancelled (its client hung up), and the load dies
//! with it; all who wait for the same key hang, or each starts another load.

use super::{SECOND, cache, memory, settle};
use larder::EntryOptions;
use larder::clock::{Clock, ManualClock};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::{Context, Waker};

/// Polls a future so often, then drops it.
struct Leader<F> {
    future: Option<Pin<Box<F>>>,
    left: usize,
}

impl<F: Future> Leader<F> {
    fn step(&mut self) {
        let Some(future) = self.future.as_mut().filter(|_| self.left > 0) else {
            self.future = None;
            return;
        };
        self.left -= 1;
        if future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            self.future = None;
        }
    }
}

async fn leader_leaves_after(polls: usize, with_tier: bool) {
    let clock = ManualClock::new();
    let tiers = if with_tier { vec![memory(&clock)] } else { Vec::new() };
    let cache = cache(&clock, &tiers, EntryOptions::default());
    let loads = Arc::new(AtomicUsize::new(0));
    let load = |loads: &Arc<AtomicUsize>| {
        let (loads, clock) = (Arc::clone(loads), Clock::from(clock.clone()));
        move |_| async move {
            let load = loads.fetch_add(1, SeqCst) as u64;
            for _ in 0..3 {
                clock.sleep(SECOND).await;
            }
            Ok::<_, Infallible>(100 + load)
        }
    };
    let mut leader = Leader { future: Some(Box::pin(cache.get_or_load("a", load(&loads)))), left: polls };
    leader.step();
    let waiters: Vec<_> = (0..3)
        .map(|_| {
            let (cache, load) = (cache.clone(), load(&loads));
            tokio::spawn(async move { cache.get_or_load("a", load).await })
        })
        .collect();
    for _ in 0..4 {
        leader.step();
        settle().await;
        leader.step();
        clock.advance(SECOND);
        settle().await;
    }
    for waiter in waiters {
        assert_eq!(waiter.await.unwrap().unwrap(), 100, "after {polls} polls");
    }
    assert_eq!(loads.load(SeqCst), 1, "after {polls} polls");
    assert_eq!(cache.stats().flights, 0);
}

#[tokio::test]
async fn waiters_get_the_value_of_the_one_load() {
    for with_tier in [false, true] {
        for polls in 0..10 {
            leader_leaves_after(polls, with_tier).await;
        }
    }
}

#[tokio::test]
async fn a_load_that_all_have_left_still_fills_the_cache() {
    let clock = ManualClock::new();
    let cache = cache(&clock, &[], EntryOptions::default());
    let mut only = Box::pin(cache.get_or_load("a", |_| async {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(7)
    }));
    assert!(super::poll_once(&mut only).is_pending());
    drop(only);
    settle().await;
    assert_eq!(cache.peek("a"), Some(7));
}
