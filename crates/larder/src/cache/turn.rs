//! Whose turn it is to load a key, over all nodes that share a tier.
//!
//! Owns when a flight waits for another node's load, and for how long. It saves work and decides nothing:
//! whatever happens to the lease, what is stored passes the tickets. When nothing can be learned from waiting
//! (the lock or the shared tier fails, what is loaded is not stored), a node loads by itself.

use super::flight::Answer;
use super::load::{Mode, Pending};
use super::{Key, Shared, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::l1::Space;
use crate::lock::{Lease, LockOptions, Locks};
use crate::options::EntryOptions;
use crate::stamp::Stamp;
use crate::stats::Count;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

/// How long others know that a load found nothing to store: longer than they pause between looks.
const UNSTORED_FOR: Duration = Duration::from_secs(1);

/// How nodes wait for each other's loads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LoadLockOptions {
    /// How long the lease of a key lasts without being renewed, which happens while the load lasts; 10 ms to a
    /// day. Default: 5 seconds: what the crash of a node costs those that wait for its load.
    #[serde(with = "crate::options::seconds")]
    pub ttl: Duration,
    /// How long a node waits for another one's load before it loads by itself; at most half of
    /// [`load_timeout_hard`](EntryOptions#structfield.load_timeout_hard) is spent so. Default: 5 seconds, longer
    /// than most loads take.
    #[serde(with = "crate::options::seconds")]
    pub wait: Duration,
    /// How long a call to the lock's store may take, before the node loads without a lease. Default: 250 ms:
    /// it is added to the load's time while the store hangs and its breaker has not opened yet.
    #[serde(with = "crate::options::seconds")]
    pub call_timeout: Duration,
}

impl Default for LoadLockOptions {
    fn default() -> Self {
        LoadLockOptions {
            ttl: Duration::from_secs(5),
            wait: Duration::from_secs(5),
            call_timeout: Duration::from_millis(250),
        }
    }
}

impl LoadLockOptions {
    /// Sets [`ttl`](Self#structfield.ttl).
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets [`wait`](Self#structfield.wait).
    #[must_use]
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Sets [`call_timeout`](Self#structfield.call_timeout).
    #[must_use]
    pub fn call_timeout(mut self, call_timeout: Duration) -> Self {
        self.call_timeout = call_timeout;
        self
    }
}

/// The lock of loads.
#[derive(Debug)]
pub(crate) struct LoadLock {
    /// With the options of a lease.
    locks: Locks,
    wait: Duration,
}

impl LoadLock {
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting and what is allowed.
    pub(super) fn new(locks: Locks, options: &LoadLockOptions, tiers: usize) -> Result<Self> {
        if tiers == 0 {
            return Err(Error::new(ErrorKind::Config, "build").message(
                "load_lock is set, but there is no tier in which a node could find what another one loaded",
            ));
        }
        let lease = LockOptions::default().ttl(options.ttl).call_timeout(options.call_timeout);
        Ok(LoadLock { locks: locks.defaults(lease)?, wait: options.wait })
    }
}

/// The right, or the duty, to run the loader.
pub(super) struct Turn {
    lease: Option<Lease>,
    /// How long it took to get here.
    pub(super) waited: Duration,
}

impl<K: Key, V: Value> Shared<K, V> {
    /// Waits until this node is to load the key; `None` when another one's value has landed, or when it is
    /// another one's to refresh.
    pub(super) async fn take_turn(
        &self,
        space: &Arc<Space>,
        mut one: Pending<K, V>,
        options: &EntryOptions,
    ) -> Option<(Pending<K, V>, Turn)> {
        let began_ms = self.clock.mono_ms();
        let turn = |lease| {
            let waited = Duration::from_millis(self.clock.mono_ms().saturating_sub(began_ms));
            Turn { lease, waited }
        };
        let Some(lock) = &self.load_lock else { return Some((one, turn(None))) };
        // A reload asks the loader whatever others found. Without an answer of the shared tier, nobody would
        // learn of a value.
        if one.item.mode == Mode::Reload || !one.has_lowest_ticket() {
            return Some((one, turn(None)));
        }
        let name = self.turn_name(&one);
        let wait = lock.wait.min(options.load_timeout_hard / 2);
        let mut looks = lock.locks.looks(&name, wait);
        let met = one.item.met.as_ref().map_or(Stamp::MIN, |met| met.meta.stamp);
        one.newer_than = (one.item.mode == Mode::Refresh).then_some(met);
        let mut has_waited = false;
        loop {
            let mut freed = looks.freed();
            let left = match lock.locks.attempt(&name).await {
                Ok(Ok(lease)) => {
                    // Its holder before may have loaded since the tiers were read.
                    one = self.read_again(space, one, options).await?;
                    if has_waited && lock.locks.is_locked(&unstored(&name)).await.unwrap_or(true) {
                        // All who wait would get the same: nothing to share. They need not stand in a line.
                        return Some((one, turn(None)));
                    }
                    return Some((one, turn(Some(lease))));
                }
                Ok(Err(left)) => left,
                Err(error) => {
                    tracing::debug!(%error, "a load goes on without a lease");
                    self.counters.add(Count::LoadUnlocked);
                    return Some((one, turn(None)));
                }
            };
            if looks.left().is_zero() {
                break;
            }
            if !has_waited {
                has_waited = true;
                self.counters.add(Count::LoadAwaited);
            }
            looks.pause(&mut freed, left).await;
            one = self.read_again(space, one, options).await?;
            if !one.has_lowest_ticket() {
                break;
            }
        }
        if one.item.mode == Mode::Refresh {
            // Whoever holds the lease refreshes it, and what this node has may be served meanwhile.
            one.item.landing = one.item.landing.abandon().err()?;
        }
        self.counters.add(Count::LoadUnlocked);
        Some((one, turn(None)))
    }

    /// Reads the tiers once more, with new tickets; lands what is fresh there.
    async fn read_again(
        &self,
        space: &Arc<Space>,
        mut one: Pending<K, V>,
        options: &EntryOptions,
    ) -> Option<Pending<K, V>> {
        one.tickets.fill(None);
        // What was read with the old tickets may have been removed before the new ones were taken.
        one.refreshes_tier = 0;
        let before = one.stale.take();
        let mut one = self.read_tiers(space, vec![one], options).await.pop()?;
        // A tier that doesn't answer any more says nothing of what it had: it may stand in for an error.
        let is_unanswered = |stale: &Answer<V>| one.tickets[usize::from(stale.from_tier) - 1].is_none();
        let before = before.filter(is_unanswered);
        one.stale = one.stale.or(before);
        Some(one)
    }

    /// Lets the next node have its turn. `is_stored`: it finds the value in the shared tier.
    pub(super) async fn end_turn(&self, turn: Turn, is_stored: bool) {
        if let (Some(lease), Some(lock)) = (turn.lease, &self.load_lock)
            && !is_stored
            && let Err(error) = lock.locks.leave_mark(&unstored(lease.name()), UNSTORED_FOR).await
        {
            tracing::debug!(%error, "other nodes are not told that a value is not stored");
        }
    }

    /// The same on all nodes, of an entry as the shared tier knows it; without its key, which others may not see.
    fn turn_name(&self, one: &Pending<K, V>) -> String {
        let lowest = self.tiers.last().expect("a lock of loads needs a tier");
        let key = lowest.key(one.entry_key.as_ref().expect("a cache with tiers encodes keys"));
        let mut name = format!("load:{}:", key.namespace());
        for byte in &Sha256::digest(key.as_bytes())[..16] {
            write!(name, "{byte:02x}").expect("a string takes all");
        }
        name
    }
}

fn unstored(name: &str) -> String {
    format!("{name}:unstored")
}
