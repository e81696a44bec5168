//! A tier that fails on command.

use async_trait::async_trait;
use bytes::Bytes;
use larder::backend::{
    Backend, Capabilities, Mark, Page, Put, PutOutcome, Read, Removed, Scan, Ticket, Usage,
};
use larder::key::{EntryKey, Namespace, Pattern};
use larder::stamp::Stamp;
use larder::{Error, ErrorKind, Result};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// How a [`Faulty`] tier behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each test binary uses some")]
pub(crate) enum Mood {
    Well,
    /// Calls fail, and nothing is done.
    Down,
    /// Calls are carried out, and their answers are lost.
    Mute,
    /// Calls never return.
    Hangs,
    /// Calls panic.
    Panics,
}

/// A wrapper around another tier.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: Arc<dyn Backend>,
    mood: Mutex<Mood>,
    panics: AtomicU64,
    calls: AtomicU64,
    held: Mutex<Option<(Moment, Arc<Notify>)>>,
}

/// When a held put waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each test binary uses some")]
pub(crate) enum Moment {
    BeforeItIsDone,
    BeforeItsAnswer,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn Backend>) -> Arc<Self> {
        Arc::new(Faulty {
            inner,
            mood: Mutex::new(Mood::Well),
            panics: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            held: Mutex::default(),
        })
    }

    #[allow(dead_code, reason = "each test binary uses some")]
    pub(crate) fn feel(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// How many calls have panicked.
    #[allow(dead_code, reason = "each test binary uses some")]
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(SeqCst)
    }

    /// How many calls have begun.
    #[allow(dead_code, reason = "each test binary uses some")]
    pub(crate) fn calls(&self) -> u64 {
        self.calls.load(SeqCst)
    }

    /// Lets the next put wait until it is notified.
    #[allow(dead_code, reason = "each test binary uses some")]
    pub(crate) fn hold_next_put(&self, moment: Moment) -> Arc<Notify> {
        let go = Arc::new(Notify::new());
        *self.held.lock().unwrap() = Some((moment, Arc::clone(&go)));
        go
    }

    pub(crate) fn mood(&self) -> Mood {
        *self.mood.lock().unwrap()
    }

    async fn call<T>(&self, operation: &'static str, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.calls.fetch_add(1, SeqCst);
        let failed = || Error::new(ErrorKind::Unavailable, operation).backend("faulty");
        match self.mood() {
            Mood::Well => call.await,
            Mood::Down => Err(failed()),
            Mood::Mute => {
                drop(call.await);
                Err(failed())
            }
            Mood::Hangs => std::future::pending().await,
            Mood::Panics => {
                self.panics.fetch_add(1, SeqCst);
                panic!("a backend that panics")
            }
        }
    }
}

#[async_trait]
impl Backend for Faulty {
    fn name(&self) -> &str {
        "faulty"
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    async fn get(&self, key: &EntryKey) -> Result<Read> {
        self.call("get", self.inner.get(key)).await
    }
    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        self.call("ticket", self.inner.ticket(key)).await
    }
    async fn put(&self, put: Put) -> Result<PutOutcome> {
        let held = self.held.lock().unwrap().take();
        if let Some((Moment::BeforeItIsDone, go)) = &held {
            go.notified().await;
        }
        let outcome = self.call("put", self.inner.put(put)).await;
        if let Some((Moment::BeforeItsAnswer, go)) = &held {
            go.notified().await;
        }
        outcome
    }
    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        self.call("remove", self.inner.remove(key)).await
    }
    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        self.call("discard", self.inner.discard(key, sealed)).await
    }
    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        self.call("mark", self.inner.mark(namespace, mark)).await
    }
    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        self.call("remove_matching", self.inner.remove_matching(namespace, pattern)).await
    }
    async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        self.call("scan", self.inner.scan(scan)).await
    }
    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.call("namespaces", self.inner.namespaces()).await
    }
    async fn sweep(&self, limit: usize) -> Result<u64> {
        self.call("sweep", self.inner.sweep(limit)).await
    }
    async fn usage(&self) -> Result<Usage> {
        self.call("usage", self.inner.usage()).await
    }
    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        self.call("last_stamp", self.inner.last_stamp()).await
    }
    async fn ping(&self) -> Result<()> {
        self.call("ping", async { Ok(()) }).await
    }
    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
