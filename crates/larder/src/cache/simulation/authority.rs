//! The model of what the nodes share: a store with a log, over a network that delays, loses and cuts off. It may drop
//! entries as it likes, and come back empty.

use super::world::{Message, World};
use crate::backend::{
    Backend, Capabilities, Change, Hint, Log, LogCursor, LogPage, Mark, MemoryBackend, MemoryOptions, Page,
    Put, PutOutcome, Read, Record, Removed, Scan, Ticket, Usage,
};
use crate::clock::{Clock, ManualClock};
use crate::entry::EntryKind;
use crate::envelope::{Envelope, EnvelopeOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::guard::GuardOptions;
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::{mpsc, oneshot};

/// The store itself: every step of it is atomic.
pub(super) struct Authority {
    store: Arc<MemoryBackend>,
    clock: ManualClock,
    log: VecDeque<Record>,
    format: Envelope,
    /// Records that are kept: few, so that nodes that were away for a while meet a gap.
    kept_max: usize,
    /// What was recorded since it was last asked for: what the change was, and the version of a set.
    pub(super) fresh: Vec<(Record, Option<u64>)>,
}

impl Authority {
    pub(super) fn new(clock: ManualClock, kept_max: usize) -> Self {
        Authority {
            store: empty(&clock),
            clock,
            log: VecDeque::new(),
            kept_max,
            format: Envelope::new(EnvelopeOptions::default()).unwrap(),
            fresh: Vec::new(),
        }
    }

    /// It comes back without anything.
    pub(super) fn restart(&mut self) {
        self.store = empty(&self.clock);
        self.log.clear();
    }

    /// It drops an entry to make room.
    pub(super) fn evict(&self, key: &EntryKey) {
        if let Ok(Read { found: Ok(sealed), .. }) = at_once(self.store.get(key)) {
            at_once(self.store.discard(key, &sealed)).unwrap();
        }
    }

    fn ticket(&self, key: &EntryKey) -> Ticket {
        at_once(self.store.ticket(key)).unwrap()
    }

    fn stands_at(&self) -> Ticket {
        let key = EntryKey::new(&Namespace::default(), "any").unwrap();
        self.ticket(&key)
    }

    fn note(&mut self, before: Ticket, origin: u64, change: Change, version: Option<u64>) {
        let after = self.stands_at();
        if after.pos > before.pos {
            let record = Record { pos: after.pos, origin, change };
            self.log.push_back(record.clone());
            self.fresh.push((record, version));
            if self.log.len() > self.kept_max {
                self.log.pop_front();
            }
        }
    }

    fn put(&mut self, put: Put, origin: u64) -> Result<PutOutcome> {
        let before = self.stands_at();
        let (key, stamp, kind) = (put.key.clone(), put.meta.stamp, put.meta.kind);
        let version = self.format.open::<u64>(&key, &put.sealed).ok().and_then(|(_, version)| version);
        let outcome = at_once(self.store.put(put))?;
        if kind == EntryKind::Set {
            let (change, version) = match outcome {
                PutOutcome::Stored => (Change::Set(key, stamp), version),
                _ => (Change::Removed(key), None),
            };
            self.note(before, origin, change, version);
        }
        Ok(outcome)
    }

    fn remove(&mut self, key: &EntryKey, origin: u64) -> Result<Removed> {
        let before = self.stands_at();
        let removed = at_once(self.store.remove(key))?;
        self.note(before, origin, Change::Removed(key.clone()), None);
        Ok(removed)
    }

    fn mark(&mut self, namespace: &Namespace, mark: &Mark, origin: u64) -> Result<()> {
        let before = self.stands_at();
        at_once(self.store.mark(namespace, mark))?;
        let change = match mark {
            Mark::Tag(tag) => Change::Tag(tag.clone()),
            Mark::Clear => Change::Cleared,
        };
        self.note(before, origin, change, None);
        Ok(())
    }

    fn page(&self, at: Option<Ticket>) -> LogPage {
        let after = at.map_or(u64::MAX, |at| at.pos);
        let records = self.log.iter().filter(|record| record.pos > after).cloned().collect();
        LogPage::new(at, self.stands_at(), records)
    }
}

fn empty(clock: &ManualClock) -> Arc<MemoryBackend> {
    let options = MemoryOptions { clock: Clock::from(clock.clone()), ..MemoryOptions::default() };
    Arc::new(MemoryBackend::new(options))
}

/// The output of what never waits.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("a store in memory never waits"),
    }
}

/// A node's way to the authority.
pub(super) struct Link {
    pub(super) node: usize,
    pub(super) origin: u64,
    pub(super) world: World,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({})", self.node)
    }
}

impl Link {
    async fn ask<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Authority) -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let message: Message = Box::new(move |authority| {
            let output = run(authority);
            Box::new(move || drop(answer.send(output)))
        });
        self.world.send(self.node, message);
        answered.await.map_err(|_| Error::new(ErrorKind::Unavailable, "link").message("the connection broke"))
    }
}

#[async_trait]
impl Backend for Link {
    fn name(&self) -> &str {
        "authority"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: false, scan: false }
    }

    fn guard(&self) -> GuardOptions {
        GuardOptions::remote()
    }

    async fn get(&self, key: &EntryKey) -> Result<Read> {
        let key = key.clone();
        self.ask(move |authority| at_once(authority.store.get(&key))).await?
    }

    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        let key = key.clone();
        self.ask(move |authority| authority.ticket(&key)).await
    }

    async fn put(&self, put: Put) -> Result<PutOutcome> {
        let origin = self.origin;
        self.ask(move |authority| authority.put(put, origin)).await?
    }

    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        let (key, origin) = (key.clone(), self.origin);
        self.ask(move |authority| authority.remove(&key, origin)).await?
    }

    async fn discard(&self, _: &EntryKey, _: &Bytes) -> Result<()> {
        Ok(())
    }

    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        let (namespace, mark, origin) = (namespace.clone(), mark.clone(), self.origin);
        self.ask(move |authority| authority.mark(&namespace, &mark, origin)).await?
    }

    async fn remove_matching(&self, _: &Namespace, _: &Pattern) -> Result<u64> {
        Err(Error::new(ErrorKind::Unsupported, "remove_matching"))
    }

    async fn scan(&self, _: Scan<'_>) -> Result<Page> {
        Err(Error::new(ErrorKind::Unsupported, "scan"))
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        Err(Error::new(ErrorKind::Unsupported, "scan"))
    }

    async fn sweep(&self, _: usize) -> Result<u64> {
        Ok(0)
    }

    async fn usage(&self) -> Result<Usage> {
        Ok(Usage::default())
    }

    fn log(&self) -> Option<&dyn Log> {
        Some(self)
    }

    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        self.ask(move |authority| at_once(authority.store.last_stamp())).await?
    }

    async fn ping(&self) -> Result<()> {
        self.ask(|_| ()).await
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Log for Link {
    fn shards(&self) -> u32 {
        1
    }

    fn origin(&self) -> u64 {
        self.origin
    }

    async fn read(&self, after: &[LogCursor]) -> Vec<Result<LogPage>> {
        let cursors: Vec<Option<Ticket>> = after.iter().map(|cursor| cursor.at).collect();
        let count = cursors.len();
        let read = move |authority: &mut Authority| -> Vec<LogPage> {
            cursors.into_iter().map(|at| authority.page(at)).collect()
        };
        match self.ask(read).await {
            Ok(pages) => pages.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error); count],
        }
    }

    fn hints(&self) -> Option<mpsc::Receiver<Hint>> {
        Some(self.world.subscribe(self.node))
    }
}
