//! `#[cached]` as callers of the function see it: who runs the body, what is kept and for how long, what
//! the companions do, and what becomes of failures.

#![allow(clippy::unwrap_used, reason = "a failure here is the test's")]

use larder::clock::{Clock, ManualClock};
use larder::key::EntryKey;
use larder::{Cache, EntryOptions, ErrorKind, cached};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// Counts the runs of one body.
macro_rules! runs {
    ($($name:ident),*) => { $(static $name: AtomicUsize = AtomicUsize::new(0);)* };
}

fn run(runs: &AtomicUsize) -> usize {
    runs.fetch_add(1, SeqCst) + 1
}

/// A cache whose time a test moves.
struct Timed<V: Clone>(Cache<EntryKey, V>, ManualClock);

fn timed<V: larder::Value>() -> Timed<V> {
    let clock = ManualClock::new();
    Timed(Cache::builder().clock(Clock::from(clock.clone())).build().unwrap(), clock)
}

mod companions;
mod failures;
mod keys;
mod methods;
mod one_flight;
mod passed_through;
mod recursion;
mod returns;
mod tenants;
mod time;
