//! The suite that every backend, and every wrapper around one, must pass.
//!
//! A [`Subject`] makes fresh backends on a clock that the suite moves; [`check_all`] runs every case that
//! the backend's [capabilities](super::Capabilities) call for, and names what failed and what was
//! expected. Cases need a Tokio runtime with several threads, and never sleep.
//!
//! ```
//! # #[tokio::main] async fn main() {
//! use larder::backend::conformance::{Subject, check_all};
//! use larder::backend::{Backend, MemoryBackend, MemoryOptions};
//! use larder::clock::Clock;
//! use std::sync::Arc;
//!
//! struct Memory;
//!
//! #[async_trait::async_trait]
//! impl Subject for Memory {
//!     async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
//!         Arc::new(MemoryBackend::new(MemoryOptions { clock, ..Default::default() }))
//!     }
//! }
//!
//! check_all(&Memory).await;
//! # }
//! ```

mod bytes;
mod concurrent;
mod fences;
mod removals;

use super::{Backend, Miss, Put, PutOutcome, Ticket, Usage};
use crate::clock::{Clock, ManualClock, NEVER_MS};
use crate::entry::{EntryKind, Meta, Tags};
use crate::error::{Error, ErrorKind};
use crate::key::{EntryKey, Namespace};
use crate::stamp::Stamp;
use ::bytes::Bytes;
use async_trait::async_trait;
use std::fmt::{self, Debug};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

/// What is tested: a way to make backends.
#[async_trait]
pub trait Subject: Send + Sync {
    /// A new, empty backend without limits on entries or bytes.
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend>;

    /// The same store again, after it was closed. Needed for backends that are durable; `None`, the
    /// default, skips the cases.
    async fn reopen(&self, closed: Arc<dyn Backend>, clock: Clock) -> Option<Arc<dyn Backend>> {
        let _ = (closed, clock);
        None
    }
}

/// One promise.
pub struct Case {
    /// Its name, also in failures.
    pub name: &'static str,
    needs: Needs,
    run: for<'a> fn(&'a Bench<'_>) -> Pin<Box<dyn Future<Output = Verdict> + Send + 'a>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Needs {
    Nothing,
    Scan,
    Durable,
}

/// How a case ended, if it didn't fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The promise was kept.
    Passed,
    /// The backend doesn't have the capability.
    Skipped,
}

/// What was expected, and what came instead.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure(format!("failed with \"{error}\""))
    }
}

type Verdict = Result<(), Failure>;

impl Case {
    /// Runs the case on a fresh backend.
    ///
    /// # Errors
    /// What was expected, and what came instead.
    pub async fn check(&self, subject: &dyn Subject) -> Result<Outcome, Failure> {
        let clock = ManualClock::new();
        let backend = subject.fresh(clock.clone().into()).await;
        let capabilities = backend.capabilities();
        let is_skipped = match self.needs {
            Needs::Nothing => false,
            Needs::Scan => !capabilities.scan,
            Needs::Durable => !capabilities.durable,
        };
        if is_skipped {
            return Ok(Outcome::Skipped);
        }
        let namespace = Namespace::new("conformance")?;
        let bench = Bench { subject, backend, clock, namespace, stamps: AtomicU16::new(0) };
        (self.run)(&bench).await.map(|()| Outcome::Passed)
    }
}

impl Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Case").field(&self.name).finish()
    }
}

/// Every case, each once.
pub fn cases() -> Vec<Case> {
    [bytes::cases(), removals::cases(), fences::cases(), concurrent::cases()].into_iter().flatten().collect()
}

/// Runs every case.
///
/// # Panics
/// When one fails, after all have run; the message lists all failures.
pub async fn check_all(subject: &dyn Subject) {
    let mut failures = Vec::new();
    for case in cases() {
        if let Err(failure) = case.check(subject).await {
            failures.push(format!("  {}: {failure}", case.name));
        }
    }
    assert!(failures.is_empty(), "{} cases failed:\n{}", failures.len(), failures.join("\n"));
}

/// What a case works with: a fresh backend, and shorthands.
struct Bench<'s> {
    subject: &'s dyn Subject,
    backend: Arc<dyn Backend>,
    clock: ManualClock,
    namespace: Namespace,
    stamps: AtomicU16,
}

impl Bench<'_> {
    fn key(&self, name: &str) -> Result<EntryKey, Failure> {
        Ok(EntryKey::new(&self.namespace, name)?)
    }

    fn now_ms(&self) -> u64 {
        Clock::from(self.clock.clone()).wall_ms()
    }

    /// A stamp of now, later than every one before.
    fn stamp(&self) -> Stamp {
        Stamp::new(self.now_ms(), self.stamps.fetch_add(1, Ordering::SeqCst), 1)
    }

    async fn ticket(&self, key: &EntryKey) -> Result<Ticket, Failure> {
        Ok(self.backend.ticket(key).await?)
    }

    async fn put(&self, put: Put) -> Result<PutOutcome, Failure> {
        Ok(self.backend.put(put).await?)
    }

    /// Sets and expects it to be stored.
    async fn set(&self, key: &EntryKey, body: &str) -> Result<Stamp, Failure> {
        self.set_tagged(key, body, &[]).await
    }

    async fn set_tagged(&self, key: &EntryKey, body: &str, tags: &[&str]) -> Result<Stamp, Failure> {
        let stamp = self.stamp();
        let mut put = set(key, body, self.ticket(key).await?, stamp);
        put.meta.tags = Tags::new(tags)?;
        same("a set with a fresh ticket", self.put(put).await?, PutOutcome::Stored)?;
        Ok(stamp)
    }

    /// How much it holds; `None` where that is unsupported.
    async fn usage(&self) -> Result<Option<Usage>, Failure> {
        match self.backend.usage().await {
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
            usage => Ok(Some(usage?)),
        }
    }

    async fn read(&self, key: &EntryKey) -> Result<Result<Bytes, Miss>, Failure> {
        Ok(self.backend.get(key).await?.found)
    }

    async fn reads(&self, what: &str, key: &EntryKey, body: &str) -> Verdict {
        same(what, self.read(key).await?, Ok(Bytes::copy_from_slice(body.as_bytes())))
    }

    /// A miss for this reason, or because the backend has dropped the entry altogether.
    async fn misses(&self, what: &str, key: &EntryKey, why: Miss) -> Verdict {
        match self.read(key).await? {
            Err(miss) if miss == why || miss == Miss::Absent => Ok(()),
            other => Err(Failure(format!("{what}: expected a miss ({why:?}), got {other:?}"))),
        }
    }
}

fn meta(kind: EntryKind, stamp: Stamp) -> Meta {
    Meta {
        kind,
        stamp,
        created_ms: stamp.wall_ms(),
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    }
}

fn set(key: &EntryKey, body: &str, ticket: Ticket, stamp: Stamp) -> Put {
    let sealed = Bytes::copy_from_slice(body.as_bytes());
    Put { key: key.clone(), meta: meta(EntryKind::Set, stamp), sealed, ticket }
}

fn load(key: &EntryKey, body: &str, ticket: Ticket, stamp: Stamp) -> Put {
    Put { meta: meta(EntryKind::Load, stamp), ..set(key, body, ticket, stamp) }
}

fn gone_at(mut put: Put, gone_at_ms: u64) -> Put {
    put.meta.fresh_until_ms = gone_at_ms;
    put.meta.revalidate_until_ms = gone_at_ms;
    put.meta.gone_at_ms = gone_at_ms;
    put
}

#[allow(clippy::needless_pass_by_value, reason = "most are made for the comparison")]
fn same<T: PartialEq + Debug>(what: &str, got: T, expected: T) -> Verdict {
    if got == expected {
        return Ok(());
    }
    let shorten = |value: &T| {
        let text = format!("{value:?}");
        if text.len() > 400 { format!("{}…", text.chars().take(400).collect::<String>()) } else { text }
    };
    Err(Failure(format!("{what}: expected {}, got {}", shorten(&expected), shorten(&got))))
}
