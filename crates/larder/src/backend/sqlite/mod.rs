//! One SQLite file as a tier: durable, shared by several processes of one machine, nothing to run.
//!
//! Callers meet a [`SqliteBackend`], which only queues. One thread writes ([`writer`]: group commit) and a
//! few read ([`reader`]); both see the store through one transaction ([`store`], [`mutate`], [`reclaim`]),
//! in a file whose making, checking and replacing is [`file`]'s business and whose layout is [`schema`]'s.
//! All rules of the protocol are decided inside SQL transactions, so that several processes on one file
//! are as safe as several threads.

mod fault;
mod file;
mod inline;
mod mutate;
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod nowait;
mod quarantine;
mod reader;
mod reclaim;
mod reports;
mod schema;
mod store;
mod writer;

#[cfg(test)]
mod refusals;

use super::queue::{BUSY_TIMEOUT_MAX, Queue, lost};
use super::{
    Backend, Capabilities, Durability, Exchange, Mark, Page, Put, PutOutcome, Quarantined, Read, Removed,
    Scan, Ticket, Usage,
};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::report::{self, Report};
use crate::stamp::Stamp;
use async_trait::async_trait;
use bytes::Bytes;
use fault::NAME;
use file::DataFile;
use inline::{Inline, Shift};
use reader::{Reader, Request, ScanOwned, ask};
use reclaim::{Limits, Progress, Visited};
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use writer::{Done, Job, Op, Writer};

pub use file::Incident;

/// Most keys of one read transaction: a large batch is spread over the readers.
const GET_MANY_CHUNK: usize = 256;
/// Largest envelope, in bytes: SQLite's own limit is a billion per row.
const SEALED_BYTES_MAX: usize = 512 << 20;

/// The settings of a [`SqliteBackend`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteOptions {
    /// The database file. Its folder is made if it is missing, for the owner only.
    pub path: PathBuf,
    /// What an acknowledged write survives. [`Durability::Power`] by default.
    #[serde(default)]
    pub durability: Durability,
    /// Where the time comes from. The system by default.
    #[serde(skip)]
    pub clock: Clock,
    /// Most entries; `None`, the default, is unlimited.
    #[serde(default)]
    pub entries_max: Option<u64>,
    /// Most bytes of keys, tags and envelopes with 96 for each row; the file is up to a third larger. A
    /// sweep gives back up to 16 MiB of it while more than a quarter is free. `None`, the default, is
    /// unlimited.
    #[serde(default)]
    pub bytes_max: Option<u64>,
    /// Threads that read, 1 to 64. 2 by default: one slow read then stops nobody.
    #[serde(default = "readers")]
    pub readers: usize,
    /// Whether a read of up to 16 keys runs on the caller's thread when all that it needs is in memory. On by
    /// default: a hop to a reader thread and back costs several times the query. It never waits for a page
    /// of the file or a lock, and at most one thread is in it at a time; `DESIGN.md` has what remains.
    /// Without effect but on 64-bit Linux 6.5 and later, on ext4, XFS and Btrfs.
    #[serde(default = "inline_reads")]
    pub inline_reads: bool,
    /// Longest wait for another process's lock, and for a place in the queue. 5 seconds by default.
    #[serde(default = "busy_timeout", with = "crate::options::seconds")]
    pub busy_timeout: Duration,
    /// Most tag markers kept; beyond, the older half is dropped and what was written before them is
    /// invalid. 65,536 by default, about 4 MiB.
    #[serde(default = "markers_max")]
    pub markers_max: u64,
}

fn readers() -> usize {
    2
}

fn inline_reads() -> bool {
    true
}

fn busy_timeout() -> Duration {
    Duration::from_secs(5)
}

fn markers_max() -> u64 {
    65_536
}

impl SqliteOptions {
    /// The defaults, for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        SqliteOptions {
            path: path.into(),
            durability: Durability::default(),
            clock: Clock::system(),
            entries_max: None,
            bytes_max: None,
            readers: readers(),
            inline_reads: inline_reads(),
            busy_timeout: busy_timeout(),
            markers_max: markers_max(),
        }
    }

    fn check(&self) -> Result<()> {
        let refuse =
            |message: String| Err(Error::new(ErrorKind::Config, "open").backend(NAME).message(message));
        if !(1..=64).contains(&self.readers) {
            return refuse(format!("readers is {}; 1 to 64 are allowed", self.readers));
        }
        if self.path.file_name().is_none() {
            return refuse(format!("path is \"{}\"; it must name a file", self.path.display()));
        }
        if self.markers_max == 0 {
            return refuse("markers_max is 0; at least 1 is needed".to_owned());
        }
        Ok(())
    }
}

/// A tier in one SQLite file.
///
/// Values are read and written by threads of its own, so that the disk never blocks the caller's; a read of
/// what is in memory spares itself the hop to one of them and back
/// ([`inline_reads`](SqliteOptions::inline_reads)). Dropped without [`close`](Backend::close), it finishes
/// what is queued and ends its threads; nothing acknowledged is lost.
pub struct SqliteBackend {
    file: Arc<DataFile>,
    writes: Arc<Queue<Job>>,
    reads: Arc<Queue<Request>>,
    inline: Arc<Inline>,
    bytes_max: Option<u64>,
    /// What the writer's end said; `None` while it runs.
    ended: watch::Receiver<Option<Result<()>>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl SqliteBackend {
    /// Opens or makes the file. A damaged file, or another program's database, is renamed to
    /// `NAME.corrupt-<seconds>-<n>` or `NAME.foreign-<seconds>-<n>`, which [`incidents`](Self::incidents)
    /// and a warning name, and a new one begins empty. The newest three damaged ones are kept; a foreign
    /// one is never deleted.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid setting, a path that is a folder, or a file of a newer larder,
    /// which is left alone. [`ErrorKind::ReadOnly`], [`ErrorKind::Authentication`] (permissions),
    /// [`ErrorKind::Full`] and [`ErrorKind::Unavailable`] when the disk doesn't let it.
    pub async fn open(options: SqliteOptions) -> Result<Self> {
        let (opened, opening) = oneshot::channel();
        spawn("larder-sqlite-o", move || drop(opened.send(Self::open_blocking(options))))?;
        opening.await.unwrap_or_else(|_| Err(lost(NAME, "open")))
    }

    /// [`open`](Self::open), on this thread.
    pub fn open_blocking(options: SqliteOptions) -> Result<Self> {
        options.check()?;
        let SqliteOptions {
            path,
            durability,
            clock,
            entries_max,
            bytes_max,
            readers,
            inline_reads,
            busy_timeout,
            markers_max,
        } = options;
        let busy_timeout = busy_timeout.min(BUSY_TIMEOUT_MAX);
        let file = Arc::new(DataFile::new(path, durability, busy_timeout, clock.clone()));
        let conn = Some(file.open_writer()?);
        let writes = Arc::new(Queue::new(NAME, busy_timeout));
        let reads = Arc::new(Queue::new(NAME, busy_timeout));
        let visited = Arc::new(Visited::new());
        let shifts: Vec<Arc<Shift>> = (0..=readers).map(|_| Shift::new()).collect();
        let inline = Inline::new(inline_reads, file.clone(), clock.clone(), visited.clone(), shifts.clone());
        let inline = Arc::new(inline);
        inline.renew();
        let (end, ended) = watch::channel(None);
        let backend = SqliteBackend {
            file: file.clone(),
            writes: writes.clone(),
            reads: reads.clone(),
            inline: inline.clone(),
            bytes_max,
            ended,
            threads: Mutex::default(),
        };
        let mut threads = Vec::with_capacity(readers + 1);
        // From here on an early return drops `backend`, which ends the threads that run already.
        for shift in &shifts[1..] {
            let reader = Reader {
                conn: Some(file.open_reader()?),
                file: file.clone(),
                queue: reads.clone(),
                clock: clock.clone(),
                visited: visited.clone(),
                readers,
                inline: inline.clone(),
                shift: shift.clone(),
            };
            threads.push(spawn("larder-sqlite-r", move || reader.run())?);
        }
        let limits = Limits { entries_max, bytes_max, marks_max: markers_max };
        let writer = Writer {
            file,
            queue: writes,
            clock,
            durability,
            limits,
            visited,
            conn,
            progress: Progress::default(),
            shift: shifts[0].clone(),
        };
        threads.push(spawn("larder-sqlite-w", move || drop(end.send(Some(writer.run()))))?);
        *backend.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(backend)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// What happened to the file since it was opened here: the last 16 times it was set aside or emptied.
    pub fn incidents(&self) -> Vec<Incident> {
        self.file.incidents()
    }

    /// The last 64 entries that failed authentication, the oldest first. They survive a restart.
    pub async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        ask(&self.reads, "quarantined", Request::Quarantined).await
    }

    /// Empties the quarantine, and with it the note of it.
    pub async fn forget_quarantined(&self) -> Result<()> {
        self.write(Op::ForgetQuarantined).await.map(|_| ())
    }

    /// Queues an operation; the receiver gets its result after the commit.
    async fn queue(&self, op: Op) -> Result<oneshot::Receiver<Result<Done>>> {
        let (answer, answered) = oneshot::channel();
        let name = op.name();
        let bytes = match &op {
            Op::Put(put) => self.check_size(put)?,
            Op::Discard(_, sealed) | Op::Quarantine(_, sealed, _) => sealed.len(),
            _ => 0,
        };
        self.writes.push(name, bytes, Job { op, answer: Some(answer) }).await?;
        Ok(answered)
    }

    async fn write(&self, op: Op) -> Result<Done> {
        let name = op.name();
        self.queue(op).await?.await.unwrap_or_else(|_| Err(lost(NAME, name)))
    }

    /// Queues all, in order, then waits for all: they share commits.
    async fn write_all(&self, ops: impl Iterator<Item = Op> + Send) -> Vec<Result<Done>> {
        let mut queued = Vec::new();
        for op in ops {
            queued.push((op.name(), self.queue(op).await));
        }
        let mut results = Vec::with_capacity(queued.len());
        for (name, answered) in queued {
            results.push(match answered {
                Ok(answered) => answered.await.unwrap_or_else(|_| Err(lost(NAME, name))),
                Err(error) => Err(error),
            });
        }
        results
    }

    fn check_size(&self, put: &Put) -> Result<usize> {
        // The tags of an entry count little and are bounded; the writer counts them exactly.
        let bytes = mutate::row_bytes(put, 0);
        let allowed = self.bytes_max.unwrap_or(u64::MAX).min(SEALED_BYTES_MAX as u64);
        if bytes > allowed {
            return Err(Error::new(ErrorKind::TooLarge, "put")
                .backend(NAME)
                .key(&put.key.text())
                .message(format!("the entry takes {bytes} bytes; at most {allowed} are allowed")));
        }
        Ok(put.sealed.len())
    }
}

#[async_trait]
impl Backend for SqliteBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: true, scan: true }
    }

    async fn get(&self, key: &EntryKey) -> Result<Read> {
        if let Some(read) = self.inline.read(std::slice::from_ref(key)).and_then(|mut reads| reads.pop()) {
            return Ok(read);
        }
        ask(&self.reads, "get", |answer| Request::Get(key.clone(), answer)).await
    }

    async fn get_many(&self, keys: &[EntryKey]) -> Vec<Result<Read>> {
        if let Some(reads) = self.inline.read(keys) {
            return reads.into_iter().map(Ok).collect();
        }
        let mut asked = Vec::new();
        for chunk in keys.chunks(GET_MANY_CHUNK) {
            let (answer, answered) = oneshot::channel();
            let queued = self.reads.push("get", 0, Request::GetMany(chunk.to_vec(), Some(answer))).await;
            asked.push((chunk.len(), queued.map(|()| answered)));
        }
        let mut reads = Vec::with_capacity(keys.len());
        for (length, answered) in asked {
            let chunk = match answered {
                Ok(answered) => answered.await.unwrap_or_else(|_| Err(lost(NAME, "get"))),
                Err(error) => Err(error),
            };
            match chunk {
                Ok(chunk) => reads.extend(chunk.into_iter().map(Ok)),
                Err(error) => reads.extend((0..length).map(|_| Err(error.clone()))),
            }
        }
        reads
    }

    async fn ticket(&self, _: &EntryKey) -> Result<Ticket> {
        ask(&self.reads, "ticket", Request::Ticket).await
    }

    async fn put(&self, put: Put) -> Result<PutOutcome> {
        self.write(Op::Put(put)).await.and_then(into_put)
    }

    async fn put_many(&self, puts: Vec<Put>) -> Vec<Result<PutOutcome>> {
        self.write_all(puts.into_iter().map(Op::Put))
            .await
            .into_iter()
            .map(|done| done.and_then(into_put))
            .collect()
    }

    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        self.write(Op::Remove(key.clone())).await.and_then(into_removed)
    }

    async fn remove_many(&self, keys: &[EntryKey]) -> Vec<Result<Removed>> {
        let ops: Vec<Op> = keys.iter().cloned().map(Op::Remove).collect();
        self.write_all(ops.into_iter()).await.into_iter().map(|done| done.and_then(into_removed)).collect()
    }

    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        self.write(Op::Discard(key.clone(), sealed.clone())).await.map(|_| ())
    }

    async fn exchange_many(&self, exchanges: Vec<Exchange>) -> Vec<Result<bool>> {
        let done = self.write_all(exchanges.into_iter().map(Op::Exchange)).await;
        done.into_iter().map(|done| done.and_then(into_count).map(|count| count == 1)).collect()
    }

    async fn quarantine(&self, key: &EntryKey, sealed: &Bytes, why: &'static str) -> Result<()> {
        self.write(Op::Quarantine(key.clone(), sealed.clone(), why)).await.map(|_| ())
    }

    async fn quarantined(&self) -> Result<Vec<Quarantined>> {
        SqliteBackend::quarantined(self).await
    }

    async fn forget_quarantined(&self) -> Result<()> {
        SqliteBackend::forget_quarantined(self).await
    }

    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        self.write(Op::Mark(namespace.clone(), mark.clone())).await.map(|_| ())
    }

    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        self.write(Op::RemoveMatching(namespace.clone(), pattern.clone())).await.and_then(into_count)
    }

    async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        let Scan { namespace, pattern, after, limit } = scan;
        let scan = ScanOwned { namespace: namespace.clone(), pattern: pattern.cloned(), after, limit };
        ask(&self.reads, "scan", |answer| Request::Scan(scan, answer)).await
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        ask(&self.reads, "scan", Request::Namespaces).await
    }

    async fn sweep(&self, limit: usize) -> Result<u64> {
        if limit == 0 {
            return Ok(0);
        }
        self.write(Op::Sweep { left: limit as u64, freed: 0 }).await.and_then(into_count)
    }

    async fn usage(&self) -> Result<Usage> {
        ask(&self.reads, "usage", Request::Usage).await
    }

    fn keeps_reports(&self) -> bool {
        true
    }

    async fn report(&self, key: &EntryKey, report: &Report) -> Result<Option<u32>> {
        let Done::Reported(in_a_row) = self.write(Op::Report(key.clone(), report.clone())).await? else {
            unreachable!("a report is answered with its count")
        };
        Ok(in_a_row)
    }

    async fn history(&self, key: &EntryKey) -> Result<Vec<report::Past>> {
        ask(&self.reads, "history", |answer| Request::History(key.clone(), answer)).await
    }

    async fn standings(&self, namespace: &Namespace, query: &report::Query) -> Result<report::Page> {
        let after = reports::parse_cursor(query)?;
        let standings = |answer| Request::Standings(namespace.clone(), query.clone(), after, answer);
        ask(&self.reads, "standings", standings).await
    }

    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        ask(&self.reads, "last_stamp", Request::LastStamp).await
    }

    async fn ping(&self) -> Result<()> {
        ask(&self.reads, "ping", Request::Ticket).await.map(|_| ())
    }

    fn notes(&self) -> Vec<String> {
        self.incidents().iter().map(ToString::to_string).chain(self.file.quarantine()).collect()
    }

    /// Waits for the end of what is queued, moves the log into the file and marks it clean.
    async fn close(&self) -> Result<()> {
        self.inline.stop();
        self.reads.close();
        self.writes.close();
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(lost(NAME, "close")),
        };
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let (joined, joining) = oneshot::channel();
        spawn("larder-sqlite-c", move || {
            for thread in threads {
                drop(thread.join());
            }
            // Dropped with the future of `close`: nobody waits.
            let _ = joined.send(());
        })?;
        drop(joining.await);
        result
    }
}

impl Drop for SqliteBackend {
    fn drop(&mut self) {
        self.reads.close();
        self.writes.close();
    }
}

impl fmt::Debug for SqliteBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteBackend").field("path", &self.file.path()).finish_non_exhaustive()
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "open")
            .backend(NAME)
            .message("no thread could be started")
            .source(error)
    })
}

fn into_put(done: Done) -> Result<PutOutcome> {
    let Done::Put(outcome) = done else { unreachable!("a put is answered with its outcome") };
    Ok(outcome)
}

fn into_removed(done: Done) -> Result<Removed> {
    let Done::Removed(removed) = done else { unreachable!("a removal is answered with what it found") };
    Ok(removed)
}

fn into_count(done: Done) -> Result<u64> {
    let Done::Count(count) = done else { unreachable!("a sweep or pattern is answered with a count") };
    Ok(count)
}
