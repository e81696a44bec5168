//! Leases: who may do something alone, for a while, over all nodes that share a [`LockBackend`].
//!
//! [`Locks`] is what a service holds; a [`Lease`] is what it gets. A lease saves work and never decides what is
//! right: its holder may be stopped for longer than the lease lasts, and no store can tell it in time. What must
//! not be overwritten checks the lease's [fencing token](Lease::token); larder's own tiers check tickets.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> larder::Result<()> {
//! use larder::lock::{Locks, MemoryLocks};
//! use std::sync::Arc;
//!
//! let locks = Locks::new(Arc::new(MemoryLocks::new()));
//! let lease = locks.lock("nightly report").await?;
//! assert!(locks.is_locked("nightly report").await?);
//! assert!(locks.try_lock("nightly report").await?.is_none());
//! // write the report, with lease.token() for who checks it
//! lease.release().await?;
//! # Ok(()) }
//! ```

#[cfg(all(feature = "conformance", not(larder_shuttle)))]
pub mod conformance;
mod lease;
mod memory;
#[cfg(all(feature = "postgres", not(larder_shuttle)))]
mod postgres;
#[cfg(all(feature = "redis", not(larder_shuttle)))]
mod redis;

pub use lease::Lease;
pub use memory::MemoryLocks;
#[cfg(all(feature = "postgres", not(larder_shuttle)))]
pub use postgres::PostgresLocks;
#[cfg(all(feature = "redis", not(larder_shuttle)))]
pub use redis::RedisLocks;

use crate::clock::{Clock, millis};
use crate::error::{Error, ErrorKind, Result};
use crate::guard::{Call, Guard, GuardOptions, Priority, Repeat, Side, Stopped};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Longest name of a lock, in bytes.
pub const NAME_BYTES_MAX: usize = 512;
/// Longest name of an owner, in bytes.
pub const OWNER_BYTES_MAX: usize = 128;
/// Longest lease: what is held for longer is no lease.
const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Shortest lease: below, the way to the store and back is all of it.
const TTL_MIN: Duration = Duration::from_millis(10);
/// The pauses between looks at a lock that somebody holds; each is doubled, and scaled by ½ to 1½ at random.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(5);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(100);

/// What frees a lock, or keeps one, goes before those who want it.
const FREES: Priority = Priority::Invalidate;

/// Where leases are kept. Each call is one atomic step.
///
/// Names and owners are checked by [`Locks`]; deadlines are its business, too.
///
/// # Cancellation
/// A call whose future is dropped takes effect whole or not at all, and before every later call of the same claim:
/// [`Locks`] releases a claim whose fate it does not know.
#[async_trait]
pub trait LockBackend: fmt::Debug + Send + Sync + 'static {
    /// Its name in errors.
    fn name(&self) -> &str;

    /// Gives the lock to the claim for `ttl`, if nobody has it. To a claim that has it already it gives the
    /// same token and a new `ttl`.
    ///
    /// A token is larger than all that were given for this name before.
    async fn acquire(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<Acquired>;

    /// Lets the claim's lease last for `ttl` from now on; whether it has it still.
    async fn extend(&self, name: &str, claim: &Claim, ttl: Duration) -> Result<bool>;

    /// Ends the claim's lease; whether it had it.
    async fn release(&self, name: &str, claim: &Claim) -> Result<bool>;

    /// Ends all leases of an owner, of all its processes; how many there were.
    async fn release_all(&self, owner: &str) -> Result<u64>;

    /// Who has the lock.
    async fn info(&self, name: &str) -> Result<Option<LockInfo>>;

    /// Returns when the lock may have become free. A hint: it may come late, in vain or, as by default, never.
    async fn freed(&self, name: &str) {
        let _ = name;
        std::future::pending::<()>().await;
    }
}

/// One attempt to get a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Who wants it.
    pub owner: Arc<str>,
    /// Tells the owner's claims apart; random.
    pub id: u64,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The claim has the lock.
    Granted {
        /// The fencing token.
        token: u64,
    },
    /// Another claim has it.
    Held {
        /// For how long, unless it is extended or released.
        left: Duration,
    },
}

/// Who has a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockInfo {
    /// The owner's name.
    pub owner: String,
    /// The fencing token.
    pub token: u64,
    /// How long the lease lasts, unless it is extended or released.
    pub left: Duration,
}

/// How a lock is taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LockOptions {
    /// How long the lease lasts without being renewed; 10 ms to a day. Default: 10 seconds: what a holder's
    /// crash costs the others, and long enough that a slow moment is no loss.
    #[serde(with = "crate::options::seconds")]
    pub ttl: Duration,
    /// Whether a task renews the lease, every third of its TTL, until the [`Lease`] is dropped. Default: yes.
    pub renew: bool,
    /// How long to wait for a lock that somebody else has. Zero: not at all. Default: 10 seconds, as long as the
    /// lease of one who crashed.
    #[serde(with = "crate::options::seconds")]
    pub wait: Duration,
    /// How long one call to the store may take. Default: 1 second, as a tier's read.
    #[serde(with = "crate::options::seconds")]
    pub call_timeout: Duration,
}

impl Default for LockOptions {
    fn default() -> Self {
        LockOptions {
            ttl: Duration::from_secs(10),
            renew: true,
            wait: Duration::from_secs(10),
            call_timeout: Duration::from_secs(1),
        }
    }
}

impl LockOptions {
    /// Sets [`ttl`](Self#structfield.ttl).
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets [`renew`](Self#structfield.renew) to no.
    #[must_use]
    pub fn without_renewal(mut self) -> Self {
        self.renew = false;
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

    /// # Errors
    /// [`ErrorKind::Config`], naming the setting, what it was and what is allowed.
    pub(crate) fn check(&self) -> Result<()> {
        check_ttl(self.ttl)?;
        if self.call_timeout.is_zero() {
            return refuse("call_timeout is 0; it has to be longer".to_owned());
        }
        Ok(())
    }
}

/// Takes locks, as one owner. Cheap to clone; clones are the same owner.
///
/// Every call passes a guard: it has a time limit, and a store that keeps failing is not called until it may be
/// well again; then calls fail at once with [`ErrorKind::Unavailable`].
#[derive(Clone)]
pub struct Locks {
    inner: Arc<Inner>,
    defaults: LockOptions,
}

struct Inner {
    backend: Arc<dyn LockBackend>,
    owner: Arc<str>,
    clock: Clock,
    guard: Guard,
}

impl Locks {
    /// Leases in `backend`, for an owner with a random name, on the system's clock.
    pub fn new(backend: Arc<dyn LockBackend>) -> Self {
        Locks::of(backend, format!("{:016x}", fastrand::u64(..)).into(), Clock::system())
    }

    fn of(backend: Arc<dyn LockBackend>, owner: Arc<str>, clock: Clock) -> Self {
        let guard = Guard::new(&GuardOptions::default(), clock.clone());
        let inner = Inner { backend, owner, clock, guard };
        Locks { inner: Arc::new(inner), defaults: LockOptions::default() }
    }

    /// With an owner's name that survives restarts, such as the node's: then [`release_all`](Self::release_all)
    /// at the start frees what was held before a crash. No two processes that live at the same time may share
    /// one, or each frees the other's. 1 to 128 bytes without control characters.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for any other.
    pub fn owned_by(self, owner: &str) -> Result<Self> {
        if owner.is_empty() || owner.len() > OWNER_BYTES_MAX || owner.chars().any(char::is_control) {
            return refuse(format!(
                "the owner has {} bytes; 1 to {OWNER_BYTES_MAX} are allowed, without control characters",
                owner.len()
            ));
        }
        let locks = Locks::of(self.inner.backend.clone(), owner.into(), self.inner.clock.clone());
        Ok(Locks { defaults: self.defaults, ..locks })
    }

    /// Where the time is read. The store may have a clock of its own, as Redis has.
    #[must_use]
    pub fn clock(self, clock: Clock) -> Self {
        let locks = Locks::of(self.inner.backend.clone(), self.inner.owner.clone(), clock);
        Locks { defaults: self.defaults, ..locks }
    }

    /// The options of locks that are taken without their own.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting, what it was and what is allowed.
    pub fn defaults(mut self, defaults: LockOptions) -> Result<Self> {
        defaults.check()?;
        self.defaults = defaults;
        Ok(self)
    }

    /// A copy of the default options, to change for a call.
    pub fn options(&self) -> LockOptions {
        self.defaults.clone()
    }

    /// The name of the owner.
    pub fn owner(&self) -> &str {
        &self.inner.owner
    }

    /// Takes a lock that nobody has; `None` when somebody has it.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a name that is empty or over 512 bytes; those of the store; and
    /// [`ErrorKind::Timeout`], [`ErrorKind::Unavailable`] and [`ErrorKind::Overloaded`] of the guard.
    ///
    /// # Cancellation
    /// What may have been granted is released in the background, at the latest by its TTL.
    pub async fn try_lock(&self, name: &str) -> Result<Option<Lease>> {
        self.try_lock_with(name, &self.defaults).await
    }

    /// [`try_lock`](Self::try_lock) with options of its own.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock), and [`ErrorKind::Config`] for options that are not allowed.
    pub async fn try_lock_with(&self, name: &str, options: &LockOptions) -> Result<Option<Lease>> {
        check_name(name)?;
        options.check()?;
        Ok(self.attempt_with(name, options).await?.ok())
    }

    /// Takes a lock, and waits while somebody else has it.
    ///
    /// Who waits looks again after pauses at random, at once when the store tells that the lock was released, and
    /// when the lease of its holder ends. Nobody waits in a line: among many, who looks first has it.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock), and [`ErrorKind::Timeout`] when somebody else has it for all of
    /// [`LockOptions::wait`]. A store that fails for a moment is asked again within that time.
    ///
    /// # Cancellation
    /// As [`try_lock`](Self::try_lock).
    pub async fn lock(&self, name: &str) -> Result<Lease> {
        self.lock_with(name, &self.defaults).await
    }

    /// [`lock`](Self::lock) with options of its own.
    ///
    /// # Errors
    /// As [`lock`](Self::lock), and [`ErrorKind::Config`] for options that are not allowed.
    pub async fn lock_with(&self, name: &str, options: &LockOptions) -> Result<Lease> {
        check_name(name)?;
        options.check()?;
        let mut looks = self.looks(name, options.wait);
        loop {
            let mut freed = looks.freed();
            let left = match self.attempt_with(name, options).await {
                Ok(Ok(lease)) => return Ok(lease),
                Ok(Err(left)) => left,
                Err(error) if !error.is_transient() || looks.left().is_zero() => return Err(error),
                Err(_) => Duration::MAX,
            };
            if looks.left().is_zero() {
                let message = format!("somebody else has it for longer than wait ({:?})", options.wait);
                return Err(self.error(ErrorKind::Timeout, "lock", name).message(message));
            }
            looks.pause(&mut freed, left).await;
        }
    }

    /// Whether anybody has the lock.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock).
    pub async fn is_locked(&self, name: &str) -> Result<bool> {
        Ok(self.info(name).await?.is_some())
    }

    /// Who has the lock.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock).
    pub async fn info(&self, name: &str) -> Result<Option<LockInfo>> {
        check_name(name)?;
        let inner = &self.inner;
        inner
            .call("lock info", Priority::Read, self.defaults.call_timeout, || inner.backend.info(name))
            .await
            .map_err(unwrap)
    }

    /// Ends all leases of this owner, also those of an earlier process with its name; how many there were. Who
    /// held one learns of it when it is next renewed.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock).
    pub async fn release_all(&self) -> Result<u64> {
        let inner = &self.inner;
        let attempt = || inner.backend.release_all(&inner.owner);
        inner.call("release all", FREES, self.defaults.call_timeout, attempt).await.map_err(unwrap)
    }

    /// Takes a lock, if nobody has it, that is never released and so ends with its TTL.
    pub(crate) async fn leave_mark(&self, name: &str, ttl: Duration) -> Result<()> {
        let claim = self.claim();
        let inner = &self.inner;
        let attempt = || inner.backend.acquire(name, &claim, ttl);
        inner.call("lock", Priority::Set, self.defaults.call_timeout, attempt).await.map(drop).map_err(unwrap)
    }

    /// The schedule of one that waits for a lock, for at most `wait` from now on.
    pub(crate) fn looks<'a>(&'a self, name: &'a str, wait: Duration) -> Looks<'a> {
        let clock = &self.inner.clock;
        let until_ms = clock.mono_ms().saturating_add(millis(wait));
        Looks { inner: &self.inner, name, until_ms, pause: LOOK_AGAIN_MIN }
    }

    fn claim(&self) -> Claim {
        Claim { owner: self.inner.owner.clone(), id: fastrand::u64(..) }
    }

    /// A lease with the default options, or for how long somebody else has it.
    pub(crate) async fn attempt(&self, name: &str) -> Result<Result<Lease, Duration>> {
        self.attempt_with(name, &self.defaults).await
    }

    async fn attempt_with(&self, name: &str, options: &LockOptions) -> Result<Result<Lease, Duration>> {
        let inner = &self.inner;
        let mut claimed = lease::Claimed::new(inner.clone(), name, self.claim(), options.call_timeout);
        let sent_ms = inner.clock.mono_ms();
        let attempt = || inner.backend.acquire(name, claimed.claim(), options.ttl);
        match inner.call("lock", Priority::Set, options.call_timeout, attempt).await {
            Ok(Acquired::Granted { token }) => Ok(Ok(claimed.granted(token, sent_ms, options))),
            Ok(Acquired::Held { left }) => {
                claimed.forget();
                Ok(Err(left))
            }
            Err(stopped) => {
                if let Stopped::Refused(_) = stopped {
                    claimed.forget();
                }
                Err(unwrap(stopped))
            }
        }
    }

    fn error(&self, kind: ErrorKind, operation: &'static str, name: &str) -> Error {
        Error::new(kind, operation).backend(self.inner.backend.name().to_owned()).key(name)
    }
}

impl Inner {
    async fn call<T, F>(
        &self,
        operation: &'static str,
        priority: Priority,
        deadline: Duration,
        attempt: impl FnMut() -> F,
    ) -> Result<T, Stopped>
    where
        F: Future<Output = Result<T>>,
    {
        let call = Call { operation, side: Side::Write, priority, deadline, repeat: Repeat::Never };
        let name = |error: Error| match error.backend_name() {
            Some(_) => error,
            None => error.backend(self.backend.name().to_owned()),
        };
        self.guard.call(call, attempt).await.map_err(|stopped| match stopped {
            Stopped::Refused(error) => Stopped::Refused(name(error)),
            Stopped::Failed(error) => Stopped::Failed(name(error)),
        })
    }
}

/// When to look again at a lock that somebody has.
pub(crate) struct Looks<'a> {
    inner: &'a Inner,
    name: &'a str,
    until_ms: u64,
    pause: Duration,
}

impl<'a> Looks<'a> {
    /// What is left of the time to wait.
    pub(crate) fn left(&self) -> Duration {
        Duration::from_millis(self.until_ms.saturating_sub(self.inner.clock.mono_ms()))
    }

    /// The store's hint, from this moment on.
    pub(crate) fn freed(&self) -> impl Future<Output = ()> + Send + Unpin + use<'a> {
        Primed::new(self.inner.backend.freed(self.name))
    }

    /// Waits until it is worth looking again, at the latest when the holder's lease or the time to wait ends.
    pub(crate) async fn pause(&mut self, freed: impl Future<Output = ()> + Unpin, lease: Duration) {
        let pause = self.pause.mul_f64(0.5 + fastrand::f64());
        self.pause = (self.pause * 2).min(LOOK_AGAIN_MAX);
        // A lease that ends is free a moment later, by the store's clock.
        let pause = pause.min(lease.saturating_add(Duration::from_millis(1))).min(self.left());
        either(freed, self.inner.clock.sleep(pause)).await;
    }
}

/// A hint whose waiting begins with its making, so that nothing that comes before it is first polled is missed.
struct Primed<F>(F, bool);

impl<F: Future<Output = ()> + Unpin> Primed<F> {
    fn new(mut hint: F) -> Self {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let is_there = pin!(&mut hint).poll(&mut cx).is_ready();
        Primed(hint, is_there)
    }
}

impl<F: Future<Output = ()> + Unpin> Future for Primed<F> {
    type Output = ();

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<()> {
        if self.1 {
            return Poll::Ready(());
        }
        pin!(&mut self.0).poll(cx)
    }
}

/// Returns when one of two futures does.
async fn either(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    std::future::poll_fn(|cx| match first.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => second.as_mut().poll(cx),
    })
    .await;
}

impl fmt::Debug for Locks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Locks")
            .field("backend", &self.inner.backend)
            .field("owner", &self.inner.owner)
            .field("defaults", &self.defaults)
            .finish_non_exhaustive()
    }
}

fn unwrap(stopped: Stopped) -> Error {
    stopped.into_error()
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return refuse(format!("the name has {} bytes; 1 to {NAME_BYTES_MAX} are allowed", name.len()));
    }
    Ok(())
}

fn check_ttl(ttl: Duration) -> Result<()> {
    if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
        return refuse(format!("ttl is {ttl:?}; {TTL_MIN:?} to {TTL_MAX:?} are allowed"));
    }
    Ok(())
}

fn refuse<T>(message: String) -> Result<T> {
    Err(Error::new(ErrorKind::Config, "lock").message(message))
}
