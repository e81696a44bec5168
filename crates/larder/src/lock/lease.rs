//! What a holder has: a claim that was granted, the task that renews it, and its end.
//!
//! A lease is held until the time that was asked for has passed since the request was *sent*: by then the store
//! may have given it to somebody else. That it is lost is final, also when nobody has taken it meanwhile.

use super::{Claim, FREES, Inner, LockOptions, check_ttl, either, unwrap};
use crate::clock::millis;
use crate::error::Result;
use crate::sync::Unscheduled;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// A lock that is held, until this is dropped, released or lost.
///
/// Dropping it releases it in the background; what can't be delivered ends with the TTL. A process that dies, and
/// a runtime that ends, take the renewal with them.
#[must_use = "the lock is released when the lease is dropped"]
pub struct Lease {
    held: Arc<Held>,
    claimed: Claimed,
    /// Dropped, it ends the renewal.
    _renewal: Option<oneshot::Sender<()>>,
}

/// What the holder and the renewal share.
struct Held {
    token: u64,
    ttl_ms: AtomicU64,
    /// By the monotonic clock.
    until_ms: AtomicU64,
    is_lost: AtomicBool,
    lost: Notify,
    /// The TTL is shorter now than the pause before the next renewal was made for.
    shortened: Notify,
    /// When the latest request that was answered was sent: an answer that was overtaken says nothing.
    extended: Unscheduled<u64>,
}

impl Lease {
    /// The name of the lock.
    pub fn name(&self) -> &str {
        &self.claimed.name
    }

    /// The fencing token: larger than that of every earlier lease on this name. Send it along with what is
    /// written, and let the resource refuse what comes with a smaller one than it has seen.
    pub fn token(&self) -> u64 {
        self.held.token
    }

    /// Whether it is held, as far as this process can tell without asking. False once its time is over without a
    /// renewal, and for ever from then on.
    pub fn is_held(&self) -> bool {
        self.held.left(&self.claimed.inner).is_some()
    }

    /// Returns when the lease is lost: to the end of its time without a renewal, or because the store says so.
    ///
    /// # Cancellation
    /// Leaves nothing behind.
    pub async fn lost(&self) {
        loop {
            let lost = self.held.lost.notified();
            let mut lost = std::pin::pin!(lost);
            lost.as_mut().enable();
            let Some(left) = self.held.left(&self.claimed.inner) else { return };
            either(lost, self.claimed.inner.clock.sleep(left)).await;
        }
    }

    /// Lets it last for `ttl` from now on, and from each renewal; whether it was held still.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for a `ttl` that is not allowed; otherwise as
    /// [`Locks::try_lock`](super::Locks::try_lock). Then it lasts as before, or as was asked for.
    pub async fn extend(&self, ttl: Duration) -> Result<bool> {
        check_ttl(ttl)?;
        if millis(ttl) < self.held.ttl_ms.swap(millis(ttl), SeqCst) {
            self.held.shortened.notify_one();
        }
        self.held.extend(&self.claimed, ttl).await
    }

    /// Releases it, and says whether it was held still: if not, somebody else may have had the lock meanwhile.
    ///
    /// # Errors
    /// As [`Locks::try_lock`](super::Locks::try_lock). Then it ends with its TTL.
    ///
    /// # Cancellation
    /// It is released in the background.
    pub async fn release(mut self) -> Result<bool> {
        self._renewal = None;
        let was_held = self.claimed.release().await?;
        self.claimed.forget();
        Ok(was_held)
    }
}

impl Held {
    /// What is left of it; `None` once it is lost.
    fn left(&self, inner: &Inner) -> Option<Duration> {
        let left = self.until_ms.load(SeqCst).saturating_sub(inner.clock.mono_ms());
        if left == 0 {
            self.lose();
        }
        (!self.is_lost.load(SeqCst)).then(|| Duration::from_millis(left))
    }

    fn lose(&self) {
        if !self.is_lost.swap(true, SeqCst) {
            self.lost.notify_waiters();
        }
    }

    async fn extend(&self, claimed: &Claimed, ttl: Duration) -> Result<bool> {
        let inner = &claimed.inner;
        if self.left(inner).is_none() {
            return Ok(false);
        }
        let sent_ms = inner.clock.mono_ms();
        let attempt = || inner.backend.extend(&claimed.name, &claimed.claim, ttl);
        if !inner.call("extend", FREES, claimed.call_timeout, attempt).await.map_err(unwrap)? {
            self.lose();
            return Ok(false);
        }
        let mut extended = self.extended.lock();
        if *extended <= sent_ms {
            *extended = sent_ms;
            // An answer that comes after the end of the lease does not bring it back: the loss was told.
            if self.left(inner).is_some() {
                self.until_ms.store(sent_ms.saturating_add(millis(ttl)), SeqCst);
            }
        }
        Ok(self.left(inner).is_some())
    }

    /// Renews until the lease is lost.
    async fn renew(&self, claimed: &Claimed) {
        let mut pause = 3;
        loop {
            let ttl = Duration::from_millis(self.ttl_ms.load(SeqCst));
            either(self.shortened.notified(), claimed.inner.clock.sleep(ttl / pause)).await;
            if self.ttl_ms.load(SeqCst) < millis(ttl) {
                pause = 3;
                continue;
            }
            pause = match self.extend(claimed, ttl).await {
                Ok(true) => 3,
                Ok(false) => return,
                // A few more times before its time is over.
                Err(error) if self.left(&claimed.inner).is_some() => {
                    tracing::debug!(%error, "a lease was not renewed, and will be tried again");
                    10
                }
                Err(error) => {
                    tracing::warn!(%error, "a lease is lost");
                    return;
                }
            };
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("name", &self.claimed.name)
            .field("owner", &self.claimed.claim.owner)
            .field("token", &self.held.token)
            .field("is_held", &self.is_held())
            .finish_non_exhaustive()
    }
}

/// A claim that the store may have granted. Dropped, it is released in the background.
pub(super) struct Claimed {
    inner: Arc<Inner>,
    name: Arc<str>,
    claim: Claim,
    call_timeout: Duration,
    is_forgotten: bool,
}

impl Claimed {
    pub(super) fn new(inner: Arc<Inner>, name: &str, claim: Claim, call_timeout: Duration) -> Self {
        Claimed { inner, name: name.into(), claim, call_timeout, is_forgotten: false }
    }

    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// There is nothing to release.
    pub(super) fn forget(&mut self) {
        self.is_forgotten = true;
    }

    pub(super) fn granted(self, token: u64, sent_ms: u64, options: &LockOptions) -> Lease {
        let ttl_ms = millis(options.ttl);
        let held = Arc::new(Held {
            token,
            ttl_ms: AtomicU64::new(ttl_ms),
            until_ms: AtomicU64::new(sent_ms.saturating_add(ttl_ms)),
            is_lost: AtomicBool::new(false),
            lost: Notify::new(),
            shortened: Notify::new(),
            extended: Unscheduled::new(sent_ms),
        });
        let renewal = options.renew.then(|| {
            let (renewal, dropped) = oneshot::channel();
            let (held, claimed) = (held.clone(), self.for_renewal());
            crate::runtime::spawn(async move {
                let dropped = async { drop(dropped.await) };
                either(dropped, held.renew(&claimed)).await;
            });
            renewal
        });
        Lease { held, claimed: self, _renewal: renewal }
    }

    /// The same claim, with nothing to release at its end.
    fn for_renewal(&self) -> Self {
        let Claimed { inner, name, claim, call_timeout, .. } = self;
        Claimed {
            inner: inner.clone(),
            name: name.clone(),
            claim: claim.clone(),
            call_timeout: *call_timeout,
            is_forgotten: true,
        }
    }

    async fn release(&self) -> Result<bool> {
        let inner = &self.inner;
        let attempt = || inner.backend.release(&self.name, &self.claim);
        inner.call("release", FREES, self.call_timeout, attempt).await.map_err(unwrap)
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        if self.is_forgotten {
            return;
        }
        let claimed = self.for_renewal();
        crate::runtime::spawn(async move {
            if let Err(error) = claimed.release().await {
                tracing::debug!(%error, "a lease was not released, and ends with its time");
            }
        });
    }
}
