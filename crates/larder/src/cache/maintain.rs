//! What happens in the background: tiers come back, what is expired is freed, and the end.

use super::{Cache, Key, Shared, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::pressure::Watch;
use crate::tier::Tier;
#[cfg(not(larder_shuttle))]
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
#[cfg(not(larder_shuttle))]
use std::sync::Weak;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

/// How often a tier that is set aside is tried: often enough to be back within seconds.
const RECOVER_EVERY: Duration = Duration::from_secs(1);
/// How many of those ticks pass between sweeps of what is expired.
const TICKS_PER_SWEEP: u32 = 60;
/// Most steps of L1's timer wheel in one tick, so that a mass expiry holds no thread for long.
const EXPIRE_STEPS: usize = 100_000;
/// Most entries that one sweep of a tier frees before others get their turn.
const SWEEP_BATCH: usize = 1000;
/// How long [`Cache::close`] waits for loads, sets and removals on their way to the tiers.
const CLOSE_PATIENCE: Duration = Duration::from_secs(10);

/// Starts the maintenance of a cache; it ends when the last clone is dropped.
#[cfg(not(larder_shuttle))]
pub(super) fn start<K: Key, V: Value>(shared: &Arc<Shared<K, V>>, watch: Option<Watch>) {
    let runtime = crate::runtime::of(&shared.clock);
    drop(runtime.spawn(maintain(Arc::downgrade(shared), shared.clock.clone(), watch)));
}

#[cfg(larder_shuttle)]
pub(super) fn start<K: Key, V: Value>(_: &Arc<Shared<K, V>>, _: Option<Watch>) {}

/// What waits for a tier or calls the user's code has a task of its own, and one at a time: neither a tier that
/// hangs nor a panic stops the rest.
#[cfg(not(larder_shuttle))]
async fn maintain<K: Key, V: Value>(
    shared: Weak<Shared<K, V>>,
    clock: crate::clock::Clock,
    mut watch: Option<Watch>,
) {
    let mut ticks = 0;
    let (mut recoveries, mut sweep, mut sharing) = (Vec::new(), Errand::default(), Errand::default());
    loop {
        clock.sleep(RECOVER_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Some(watch) = &mut watch {
            let squeeze = AssertUnwindSafe(|| shared.l1.squeeze(watch.share()));
            match catch_unwind(squeeze) {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!("memory runs short, and what is pinned in L1 does not fit a lower limit");
                }
                Err(_) => tracing::error!("the source of memory readings panicked"),
            }
        }
        recoveries.resize_with(shared.tiers.len(), Errand::default);
        for (at, errand) in recoveries.iter_mut().enumerate().filter(|(at, _)| shared.tiers[*at].is_aside()) {
            let shared = Arc::clone(&shared);
            errand.begin(async move { shared.tiers[at].recover().await });
        }
        if shared.sharing.is_some() {
            let shared = Arc::clone(&shared);
            sharing.begin(async move { shared.share_breakers().await });
        }
        shared.l1.expire(clock.mono_ms(), EXPIRE_STEPS);
        ticks += 1;
        if ticks % TICKS_PER_SWEEP == 0 {
            let shared = Arc::clone(&shared);
            sweep.begin(async move {
                if let Err(error) = shared.sweep().await {
                    tracing::warn!(%error, "a sweep of expired entries failed");
                }
            });
        }
    }
}

/// Something in the background that is not begun again before it has ended.
#[cfg(not(larder_shuttle))]
#[derive(Default)]
struct Errand(Option<tokio::task::JoinHandle<()>>);

#[cfg(not(larder_shuttle))]
impl Errand {
    fn begin(&mut self, errand: impl Future<Output = ()> + Send + 'static) {
        if self.0.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            self.0 = Some(crate::runtime::current().spawn(errand));
        }
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    /// Ticks on from the last stamp that a tier accepted before a restart. Before the first set: with a clock
    /// that went back, it would lose against values it is meant to replace.
    pub(super) async fn adopt_stamps(&self) {
        // Each early set asks for itself, or the second would overtake the first. What a tier could not say is
        // asked for again by the next set.
        if self.has_adopted_stamps.load(SeqCst) {
            return;
        }
        let mut have_all_answered = true;
        for tier in &self.tiers {
            match tier.last_stamp().await {
                Ok(Some(stamp)) => self.stamps.advance(stamp, self.clock.wall_ms()),
                Ok(None) => {}
                Err(_) => have_all_answered = false,
            }
        }
        if have_all_answered {
            self.has_adopted_stamps.store(true, SeqCst);
        }
    }

    async fn share_breakers(&self) {
        if let Some(sharing) = &self.sharing {
            let takes_part = |tier: &&Tier| tier.options.breaker_name.is_some();
            let guards: Vec<_> = self.tiers.iter().filter(takes_part).map(Tier::guard).collect();
            sharing.exchange(&guards).await;
        }
    }

    async fn recover(&self) {
        for tier in &self.tiers {
            if tier.is_aside() {
                tier.recover().await;
            }
        }
    }

    async fn sweep(&self) -> Result<u64> {
        let mut swept = self.l1.expire(self.clock.mono_ms(), usize::MAX);
        for tier in &self.tiers {
            loop {
                if tier.is_aside() {
                    break;
                }
                let freed = tier.sweep(SWEEP_BATCH).await?;
                swept += freed;
                if freed < SWEEP_BATCH as u64 {
                    break;
                }
            }
        }
        Ok(swept)
    }
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Frees what is expired or invalidated, in L1 and the tiers, and returns how many entries that were.
    /// Happens by itself every minute.
    ///
    /// # Errors
    /// Those of a tier.
    pub async fn sweep(&self) -> Result<u64> {
        self.shared.sweep().await
    }

    /// Changes the limit of L1, over all namespaces: in bytes where the cache was built with
    /// [`bytes_max`](super::Builder::bytes_max), else in entries. With both limits, that on entries moves in
    /// proportion. What exceeds a lower limit is evicted before this returns; the memory of the table itself
    /// is kept for when it grows again. Readers and writers go on meanwhile.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for 0, and where pinned values don't fit; the limit then stays.
    pub fn resize(&self, weight_max: u64) -> Result<()> {
        let refused = |message: String| Err(Error::new(ErrorKind::Config, "resize").message(message));
        if weight_max == 0 {
            return refused("weight_max is 0; at least 1 is allowed".to_owned());
        }
        if !self.shared.l1.resize(weight_max) {
            return refused(format!("weight_max is {weight_max}; less than what is pinned is not allowed"));
        }
        Ok(())
    }

    /// Tries at once to bring back tiers that are set aside. Happens by itself every second.
    pub async fn recover(&self) {
        self.shared.recover().await;
    }

    /// Waits for the sets, removals and loads under way, at most 10 seconds long, and closes the tiers. Later
    /// sets and removals fail with [`Closed`](crate::ErrorKind::Closed); reads go on from L1, and loads without
    /// the tiers.
    ///
    /// # Errors
    /// The first of a tier that could not be closed cleanly; the others are closed all the same.
    pub async fn close(&self) -> Result<()> {
        let shared = &self.shared;
        shared.is_closed.store(true, SeqCst);
        let deadline = shared.clock.mono_ms() + CLOSE_PATIENCE.as_millis() as u64;
        let is_busy = || {
            shared.writes.load(SeqCst) > 0
                || shared.write_backs.load(Relaxed) > 0
                // A load has a value for the tiers once it has landed.
                || !shared.tiers.is_empty() && shared.flights.under_way() > 0
        };
        while is_busy() && shared.clock.mono_ms() < deadline {
            shared.clock.sleep(Duration::from_millis(5)).await;
        }
        let mut outcome = Ok(());
        for tier in &shared.tiers {
            let closed = tier.backend.close().await;
            outcome = outcome.and(closed);
        }
        outcome
    }
}
