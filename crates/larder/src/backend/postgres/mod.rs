//! PostgreSQL as a tier that nodes share.
//!
//! Callers meet a [`PostgresBackend`]. What they ask gathers in a lane ([`link`]) and becomes one statement
//! ([`batch`], [`sql`]); what changes the store is a function of the [`schema`], one transaction of the protocol
//! each. [`walk`] is what takes longer, [`log`] how other nodes learn of it, [`fault`] what PostgreSQL's errors mean. Deadlines, retries and breakers are
//! the tier's guard's business.

mod batch;
mod client;
mod fault;
mod link;
mod log;
mod options;
mod schema;
mod sql;
mod walk;

pub(crate) use client::{PostgresClient, column, nonsense};
pub(crate) use link::Param;
pub use options::PostgresOptions;
pub(crate) use sql::Sql;

use super::quarantine::Quarantined;
use super::{
    Backend, Capabilities, Exchange, Log, Mark, Page, Put, PutOutcome, Read, Removed, Scan, Ticket, Usage,
};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::guard::GuardOptions;
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use async_trait::async_trait;
use bytes::Bytes;
use fault::{Failure, NAME};
use link::{Done, Lane, Op, Settings};
use std::fmt;
use std::sync::{Arc, Mutex};
use walk::SweepPlace;

/// Largest envelope, in bytes. PostgreSQL's own limit of a message is 1 GiB, and it holds an envelope several times
/// while it stores it.
const SEALED_BYTES_MAX: usize = 128 << 20;

/// A tier in PostgreSQL, version 13 or later, shared by all nodes that use the same database and schema.
///
/// It connects with the first call, and again whenever it has to: a server that is down is an error of the call,
/// never of the start. The first one makes the schema. Connections live on the runtime of the first call, which
/// needs I/O and time enabled, and move to another when that one ends.
///
/// Space is freed by [`sweep`](Backend::sweep), which a cache calls by itself; there is no other limit on entries.
///
/// # Cancellation
/// A call whose future is dropped before it was sent is never sent. Later, a write takes effect whole or not at all:
/// each is a statement of its own, so no transaction stays open, and its reply goes to nobody.
pub struct PostgresBackend {
    settings: Arc<Settings>,
    reads: Lane,
    writes: Lane,
    /// For what takes longer.
    aside: Lane,
    markers_max: u32,
    clock: Clock,
    /// Where the next sweep begins.
    sweep_place: Mutex<SweepPlace>,
}

impl PostgresBackend {
    /// Checks the settings; doesn't connect.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting and what is allowed.
    pub fn new(options: PostgresOptions) -> Result<Self> {
        let settings = Settings::of(&options)?;
        let PostgresOptions { connections, markers_max, clock, .. } = options;
        Ok(PostgresBackend {
            reads: Lane::new(settings.clone(), connections),
            writes: Lane::new(settings.clone(), connections),
            aside: Lane::new(settings.clone(), 1),
            settings,
            markers_max,
            clock,
            sweep_place: Mutex::new(SweepPlace::START),
        })
    }

    /// The last 64 entries that failed authentication, on any node, the oldest first.
    ///
    /// # Errors
    /// As any call's.
    pub async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        let fail = |failure: Failure| failure.into_error("quarantined");
        let rows = self.aside.query(Sql::Quarantined, Vec::new()).await.map_err(fail)?;
        rows.iter().map(|row| parse_quarantined(row).map_err(fail)).collect()
    }

    /// Empties the quarantine.
    ///
    /// # Errors
    /// As any call's.
    pub async fn forget_quarantined(&self) -> Result<()> {
        let forgotten = self.aside.query(Sql::ForgetQuarantined, Vec::new()).await;
        forgotten.map(drop).map_err(|failure| failure.into_error("forget_quarantined"))
    }

    fn check_size(&self, op: Op) -> Result<Op> {
        let bytes = match &op {
            Op::Put(put) => put.sealed.len(),
            Op::Exchange(exchange) => exchange.new.len(),
            _ => 0,
        };
        if bytes > SEALED_BYTES_MAX {
            return Err(Error::new(ErrorKind::TooLarge, "put")
                .backend(NAME)
                .key(&op.key().text())
                .message(format!("the envelope has {bytes} bytes; at most {SEALED_BYTES_MAX} are allowed")));
        }
        Ok(op)
    }

    async fn write(&self, op: Op, operation: &'static str) -> Result<Done> {
        self.writes.write(self.check_size(op)?).await.map_err(|failure| failure.into_error(operation))
    }

    /// As [`write`](Self::write), of many, in their order.
    async fn write_all(
        &self,
        ops: impl Iterator<Item = Op> + Send,
        operation: &'static str,
    ) -> Vec<Result<Done>> {
        let (mut results, mut sound) = (Vec::new(), Vec::new());
        for op in ops {
            match self.check_size(op) {
                Ok(op) => {
                    sound.push(op);
                    results.push(None);
                }
                Err(error) => results.push(Some(Err(error))),
            }
        }
        let mut done = self.writes.write_all(sound).await.into_iter();
        let mut next = || done.next().unwrap_or(Err(Failure::Nonsense("no answer to a write")));
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|| next().map_err(|failure| failure.into_error(operation))))
            .collect()
    }

    /// Moves a marker; its position.
    async fn move_mark(&self, namespace: &Namespace, kind: &'static str, text: &str) -> Result<i64, Failure> {
        let params: Vec<Param> = vec![
            Box::new(namespace.as_str().to_owned()),
            Box::new(kind),
            Box::new(batch::tag_hash(text)),
            Box::new(text.as_bytes().to_vec()),
            Box::new(i64::from(self.markers_max)),
            Box::new(batch::origin_text(self.settings.origin)),
        ];
        batch::get(walk::first(&self.writes.query(Sql::Mark, params).await?)?, 0)
    }
}

fn into_put(done: Done) -> Result<PutOutcome> {
    match done {
        Done::Put(outcome) => Ok(outcome),
        Done::Met(_) => unreachable!("a put is answered with its outcome"),
    }
}

fn met(done: Done) -> bool {
    matches!(done, Done::Met(true))
}

fn removed(done: Done) -> Removed {
    if met(done) { Removed::Existed } else { Removed::Absent }
}

fn parse_quarantined(row: &tokio_postgres::Row) -> Result<Quarantined, Failure> {
    let impossible = |_| Failure::Nonsense("a quarantined entry has an impossible key");
    let namespace = Namespace::new(batch::get(row, 2)?).map_err(impossible)?;
    let key = Bytes::copy_from_slice(batch::get(row, 3)?);
    Ok(Quarantined {
        key: EntryKey::from_bytes(&namespace, key).map_err(impossible)?,
        reason: batch::get(row, 1)?,
        wall_ms: batch::unordered(batch::get(row, 0)?),
        sealed_bytes: batch::get::<i64>(row, 4)? as u64,
        sealed: batch::get::<Option<&[u8]>>(row, 5)?.map(Bytes::copy_from_slice),
    })
}

#[async_trait]
impl Backend for PostgresBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: self.settings.logged, scan: true }
    }

    fn guard(&self) -> GuardOptions {
        GuardOptions::remote()
    }

    async fn get(&self, key: &EntryKey) -> Result<Read> {
        self.reads.read(key.namespace(), Some(key)).await.map_err(|failure| failure.into_error("get"))
    }

    async fn get_many(&self, keys: &[EntryKey]) -> Vec<Result<Read>> {
        let reads = self.reads.read_all(keys).await;
        reads.into_iter().map(|read| read.map_err(|failure| failure.into_error("get"))).collect()
    }

    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        let read = self.reads.read(key.namespace(), None).await;
        read.map(|read| read.ticket).map_err(|failure| failure.into_error("ticket"))
    }

    async fn put(&self, put: Put) -> Result<PutOutcome> {
        self.write(Op::Put(put), "put").await.and_then(into_put)
    }

    async fn put_many(&self, puts: Vec<Put>) -> Vec<Result<PutOutcome>> {
        let done = self.write_all(puts.into_iter().map(Op::Put), "put").await;
        done.into_iter().map(|done| done.and_then(into_put)).collect()
    }

    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        self.write(Op::Remove(key.clone()), "remove").await.map(removed)
    }

    async fn remove_many(&self, keys: &[EntryKey]) -> Vec<Result<Removed>> {
        let ops: Vec<Op> = keys.iter().cloned().map(Op::Remove).collect();
        let done = self.write_all(ops.into_iter(), "remove").await;
        done.into_iter().map(|done| done.map(removed)).collect()
    }

    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        self.write(Op::Discard(key.clone(), sealed.clone()), "discard").await.map(drop)
    }

    async fn exchange_many(&self, exchanges: Vec<Exchange>) -> Vec<Result<bool>> {
        let done = self.write_all(exchanges.into_iter().map(Op::Exchange), "exchange").await;
        done.into_iter().map(|done| done.map(met)).collect()
    }

    async fn quarantine(&self, key: &EntryKey, sealed: &Bytes, why: &'static str) -> Result<()> {
        self.write(Op::Quarantine(key.clone(), sealed.clone(), why), "quarantine").await.map(drop)
    }

    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        let (kind, text) = match mark {
            Mark::Tag(tag) => ("t", &**tag),
            Mark::Clear => ("c", ""),
        };
        let marked = self.move_mark(namespace, kind, text).await;
        marked.map(drop).map_err(|failure| failure.into_error("mark"))
    }

    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        let fail = |failure: Failure| failure.into_error("remove_matching");
        // Before anything is deleted: what a load in flight writes after the scan has passed is refused.
        let floor = self.move_mark(namespace, "f", "").await.map_err(fail)?;
        let dropped = self.drop_matching(namespace, pattern, floor).await.map_err(fail)?;
        // After everything is deleted: whoever follows the log may have read it until now.
        self.move_mark(namespace, "p", pattern.as_str()).await.map_err(fail)?;
        Ok(dropped)
    }

    async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        self.list(scan).await
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let fail = |failure: Failure| failure.into_error("scan");
        let rows = self.aside.query(Sql::Namespaces, Vec::new()).await.map_err(fail)?;
        rows.iter().map(|row| Namespace::new(batch::get(row, 0).map_err(fail)?)).collect()
    }

    async fn sweep(&self, limit: usize) -> Result<u64> {
        self.sweep_some(limit).await.map_err(|failure| failure.into_error("sweep"))
    }

    /// Exact up to about 100,000 entries; beyond, the server's own estimate, because counting reads all.
    async fn usage(&self) -> Result<Usage> {
        let fail = |failure: Failure| failure.into_error("usage");
        let rows = self.aside.query(Sql::Usage, Vec::new()).await.map_err(fail)?;
        let row = walk::first(&rows).map_err(fail)?;
        let count = |column| batch::get::<i64>(row, column).map(|count| count.max(0) as u64).map_err(fail);
        Ok(Usage { entries: count(0)?, bytes: count(1)? })
    }

    fn log(&self) -> Option<&dyn Log> {
        Some(self)
    }

    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        let fail = |failure: Failure| failure.into_error("last_stamp");
        let rows = self.aside.query(Sql::LastStamp, Vec::new()).await.map_err(fail)?;
        rows.first().map(|row| batch::get(row, 0).and_then(batch::stamp).map_err(fail)).transpose()
    }

    async fn ping(&self) -> Result<()> {
        let answered = self.reads.query(Sql::Ping, Vec::new()).await;
        answered.map(drop).map_err(|failure| failure.into_error("ping"))
    }

    async fn close(&self) -> Result<()> {
        for lane in [&self.reads, &self.writes, &self.aside] {
            lane.close();
        }
        Ok(())
    }
}

/// Without credentials.
impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBackend")
            .field("hosts", &self.settings.target)
            .field("schema", &self.settings.schema)
            .finish_non_exhaustive()
    }
}
