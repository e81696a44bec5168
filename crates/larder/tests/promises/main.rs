//! What larder promises, one file per promise. Each opens with the failure that it prevents.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]
#![allow(clippy::cloned_ref_to_slice_refs, reason = "a slice of trait objects needs the coercion")]

#[path = "../support/mod.rs"]
mod support;

mod blocking_facade;
mod close;
mod health;
mod hostile_keys;
mod leader_cancelled_at_every_await;
mod listener_panics;
mod loader_panics;
mod nested_load;
mod overload;
mod refused_entries;
mod remove_during_load;
mod request_scope;
mod runtime_shut_down;
mod ten_thousand_callers_one_load;
mod tenants;
mod tier_fails;
mod ttl_over_all_of_u64;

use larder::backend::{Backend, MemoryBackend, MemoryOptions};
use larder::clock::{Clock, ManualClock};
use larder::{Cache, EntryOptions};
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn memory(clock: &ManualClock) -> Arc<dyn Backend> {
    let clock = Clock::from(clock.clone());
    Arc::new(MemoryBackend::new(MemoryOptions { clock, ..MemoryOptions::default() }))
}

fn cache(clock: &ManualClock, tiers: &[Arc<dyn Backend>], options: EntryOptions) -> Cache<String, u64> {
    let builder = Cache::builder().clock(Clock::from(clock.clone())).defaults(options);
    let builder = match tiers {
        [] => builder,
        _ => tiers.iter().fold(builder, |builder, tier| builder.tier(Arc::clone(tier))),
    };
    builder.build().unwrap()
}

/// Lets the other tasks of this runtime run until they wait.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// The manual clock stands still, so a wait for nothing would never end: this ends it by the system's.
async fn promptly<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it waits for ever")
}

/// Polls once, outside of any task.
fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::pin::Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}
