//! Leases in this process.

use super::{Acquired, Claim, LockBackend, LockInfo};
use crate::clock::{Clock, millis};
use crate::error::Result;
use crate::sync::Mutex;
use async_trait::async_trait;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// From so many leases on, those that are over are freed now and then.
const SWEEP_FROM: usize = 1024;

/// Leases in this process, for caches and tasks that share it. Clones are the same store.
///
/// Tokens grow over restarts of the process, too, unless the wall clock went back: each is at least the time in
/// microseconds.
#[derive(Clone)]
pub struct MemoryLocks(Arc<Inner>);

struct Inner {
    clock: Clock,
    state: Mutex<State>,
    /// All who wait; there are few, and they look for themselves.
    freed: Notify,
}

#[derive(Default)]
struct State {
    leases: HashMap<Box<str>, Held>,
    token: u64,
    sweep_at: usize,
}

struct Held {
    claim: Claim,
    token: u64,
    until_ms: u64,
}

impl MemoryLocks {
    /// On the system's clock.
    pub fn new() -> Self {
        Self::with_clock(Clock::system())
    }

    /// On another clock; give the same to [`Locks::clock`](super::Locks::clock).
    pub fn with_clock(clock: Clock) -> Self {
        MemoryLocks(Arc::new(Inner { clock, state: Mutex::default(), freed: Notify::new() }))
    }
}

impl Default for MemoryLocks {
    fn default() -> Self {
        Self::new()
    }
}

impl State {
    /// The lease on a name that is not over.
    fn held(&mut self, name: &str, now_ms: u64) -> Option<&mut Held> {
        self.leases.get_mut(name).filter(|held| now_ms < held.until_ms)
    }

    fn sweep(&mut self, now_ms: u64) {
        if self.leases.len() >= self.sweep_at.max(SWEEP_FROM) {
            self.leases.retain(|_, held| now_ms < held.until_ms);
            self.sweep_at = self.leases.len() * 2;
        }
    }
}

#[async_trait]
impl LockBackend for MemoryLocks {
    fn name(&self) -> &str {
        "memory"
    }

    async fn acquire(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<Acquired> {
        let now_ms = self.0.clock.mono_ms();
        let until_ms = now_ms.saturating_add(millis(ttl));
        let mut state = self.0.state.lock();
        if let Some(held) = state.held(name, now_ms) {
            if held.claim != *claim {
                return Ok(Acquired::Held { left: Duration::from_millis(held.until_ms - now_ms) });
            }
            held.until_ms = until_ms;
            return Ok(Acquired::Granted { token: held.token });
        }
        state.sweep(now_ms);
        let token = self.0.clock.wall_ms().saturating_mul(1000).max(state.token.saturating_add(1));
        state.token = token;
        state.leases.insert(name.into(), Held { claim: claim.clone(), token, until_ms });
        Ok(Acquired::Granted { token })
    }

    async fn extend(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<bool> {
        let now_ms = self.0.clock.mono_ms();
        let mut state = self.0.state.lock();
        let held = state.held(name, now_ms).filter(|held| held.claim == *claim);
        Ok(held.map(|held| held.until_ms = now_ms.saturating_add(millis(ttl))).is_some())
    }

    async fn release(&self, name: &str, claim: &Claim) -> Result<bool> {
        let now_ms = self.0.clock.mono_ms();
        let was_held = {
            let mut state = self.0.state.lock();
            let is_ours = state.held(name, now_ms).is_some_and(|held| held.claim == *claim);
            is_ours && state.leases.remove(name).is_some()
        };
        self.0.freed.notify_waiters();
        Ok(was_held)
    }

    async fn release_all(&self, owner: &str) -> Result<u64> {
        let now_ms = self.0.clock.mono_ms();
        let mut released = 0;
        self.0.state.lock().leases.retain(|_, held| {
            let is_ours = *held.claim.owner == *owner;
            released += u64::from(is_ours && now_ms < held.until_ms);
            !is_ours
        });
        self.0.freed.notify_waiters();
        Ok(released)
    }

    async fn info(&self, name: &str) -> Result<Option<LockInfo>> {
        let now_ms = self.0.clock.mono_ms();
        let mut state = self.0.state.lock();
        Ok(state.held(name, now_ms).map(|held| LockInfo {
            owner: (*held.claim.owner).to_owned(),
            token: held.token,
            left: Duration::from_millis(held.until_ms - now_ms),
        }))
    }

    async fn freed(&self, _: &str) {
        self.0.freed.notified().await;
    }
}

/// Without names, which may be keys.
impl fmt::Debug for MemoryLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryLocks({} leases)", self.0.state.lock().leases.len())
    }
}
