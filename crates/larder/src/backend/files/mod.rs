//! One file per entry in a folder: for large values, durable, shared by several processes of one machine.
//!
//! ```text
//! fences                 what all processes share: counters, fences, amounts (`fence`)
//! marks-INC-GENERATION   the log of removed tags and cleared namespaces (`marks`)
//! 00/ ... ff/            entries, one file each, by the first byte of a SHA-256 of namespace and key
//!   a1/a19c...           a head of 80 bytes with both checksums, namespace, key, tags, then the body (`entry`)
//! tmp/SESSION/           files that a process is writing; SESSION is locked as long as it lives
//! quarantine/            what failed authentication, for an operator: at most 16 files
//! ```
//!
//! Callers meet a [`FilesBackend`], which only queues. A few threads read; one writes (`writer`), in groups that
//! share a turn of the folder's lock and the syncs of what they have in common. What is done to an entry is
//! `store`'s business; every system call is in `folder`, where nothing follows a link.
//!
//! **Why files and a fence file, and not files and a database.** What must be atomic is small and of fixed
//! size: counters and 4,096 fences, of which a mutation writes three records. Entry files say everything
//! else themselves, so that no index can disagree with them, a reader needs no lock, and a damaged entry costs
//! that entry. What a database would add, an order of entries by use and expiry, is needed at an eviction only,
//! which looks at the files once per fifth of the limit that was written.
//!
//! **What a crash leaves.** An entry is written under another name and moved into place whole, so a kill leaves
//! the old file, the new one or none, and at worst an orphan under `tmp`, which the next opening deletes. A
//! removal is counted in its fence, then the file is deleted, then the position is published: a ticket that is
//! younger than a removal never comes with what it removed. With [`Durability::Power`] file, folder, log and
//! fences are synced before the answer.
//!
//! **The order of eviction** is that of the last use. A file's time is its last use, written at most once per
//! minute and entry, so that other processes and the next start know it; what happened since is remembered by
//! each process for its own reads.
//!
//! Needs a local file system: the locks are `flock`'s, and a page written by one process must be seen by all.

mod entry;
mod fault;
mod fence;
mod folder;
mod marks;
mod recent;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use super::queue::{BUSY_TIMEOUT_MAX, Queue, lost};
use super::{
    Backend, Capabilities, Durability, Mark, Page, Put, PutOutcome, Read, Removed, Scan, Ticket, Usage,
};
use crate::clock::{Clock, millis};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use async_trait::async_trait;
use bytes::Bytes;
use fault::NAME;
use fence::{Fence, Header};
use folder::{Folder, disk_bytes};
use serde::Deserialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use store::Store;
use tokio::sync::{oneshot, watch};
use writer::{Done, Job, Op, Writer};

/// Most keys of one request to a reader: a large batch is spread over the readers.
const GET_MANY_CHUNK: usize = 64;
/// Most requests that a reader takes at once.
const READER_BATCH: usize = 8;

/// The settings of a [`FilesBackend`].
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FilesOptions {
    /// The folder. It is made if it is missing, for the owner only, and must hold nothing else.
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
    /// Most bytes on disk, each file counted in whole blocks of 4 KiB; `None` is unlimited. 1 GiB by default: a
    /// cache must not fill the disk that it shares.
    #[serde(default = "bytes_max")]
    pub bytes_max: Option<u64>,
    /// Largest envelope in bytes. 100 MiB by default: it is read into memory whole.
    #[serde(default = "value_bytes_max")]
    pub value_bytes_max: u64,
    /// The share of a limit at which eviction begins in the background. 0.9 by default: there is room for
    /// what is written meanwhile, so that puts need not wait.
    #[serde(default = "high_mark")]
    pub high_mark: f64,
    /// The share of a limit at which eviction ends. 0.7 by default: eviction looks at the times of all files,
    /// which a fifth of the limit then pays for, at the price of a cache that is four fifths full on average.
    #[serde(default = "low_mark")]
    pub low_mark: f64,
    /// How old a file's note of its last use may be when it is used again. A minute by default: a write of the
    /// inode per minute and entry at most.
    #[serde(default = "touch_after", with = "crate::options::seconds")]
    pub touch_after: Duration,
    /// Threads that read, 1 to 64. 2 by default: one slow read then stops nobody.
    #[serde(default = "readers")]
    pub readers: usize,
    /// Longest wait for another process's lock, and for a place in the queue. 5 seconds by default.
    #[serde(default = "busy_timeout", with = "crate::options::seconds")]
    pub busy_timeout: Duration,
}

#[allow(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn bytes_max() -> Option<u64> {
    Some(1 << 30)
}

fn value_bytes_max() -> u64 {
    100 << 20
}

fn high_mark() -> f64 {
    0.9
}

fn low_mark() -> f64 {
    0.7
}

fn touch_after() -> Duration {
    Duration::from_secs(60)
}

fn readers() -> usize {
    2
}

fn busy_timeout() -> Duration {
    Duration::from_secs(5)
}

impl FilesOptions {
    /// The defaults, for a folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FilesOptions {
            path: path.into(),
            durability: Durability::default(),
            clock: Clock::system(),
            entries_max: None,
            bytes_max: bytes_max(),
            value_bytes_max: value_bytes_max(),
            high_mark: high_mark(),
            low_mark: low_mark(),
            touch_after: touch_after(),
            readers: readers(),
            busy_timeout: busy_timeout(),
        }
    }

    fn check(&self) -> Result<()> {
        let refuse =
            |message: String| Err(Error::new(ErrorKind::Config, "open").backend(NAME).message(message));
        if !(1..=64).contains(&self.readers) {
            return refuse(format!("readers is {}; 1 to 64 are allowed", self.readers));
        }
        if !(self.low_mark > 0.0 && self.low_mark <= self.high_mark && self.high_mark <= 1.0) {
            return refuse(format!(
                "low_mark is {} and high_mark is {}; 0 < low_mark <= high_mark <= 1 is needed",
                self.low_mark, self.high_mark
            ));
        }
        if self.path.as_os_str().is_empty() {
            return refuse("path is empty; it must name a folder".to_owned());
        }
        Ok(())
    }

    fn limits(&self) -> FilesLimits {
        FilesLimits {
            bytes_max: self.bytes_max.unwrap_or(u64::MAX),
            entries_max: self.entries_max.unwrap_or(u64::MAX),
            value_bytes_max: self.value_bytes_max,
            high_mark: self.high_mark,
            low_mark: self.low_mark,
            touch_after_ms: millis(self.touch_after),
        }
    }
}

/// The limits of a folder, as the eviction reads them.
#[derive(Clone, Copy, Debug)]
struct FilesLimits {
    bytes_max: u64,
    entries_max: u64,
    value_bytes_max: u64,
    high_mark: f64,
    low_mark: f64,
    touch_after_ms: u64,
}

impl FilesLimits {
    /// Whether eviction begins.
    fn is_high(&self, header: &Header) -> bool {
        header.total.disk > share(self.bytes_max, self.high_mark)
            || header.total.entries > share(self.entries_max, self.high_mark)
    }

    /// Whether so many bytes on disk in so many entries fit.
    fn fits(&self, header: &Header, disk: u64, entries: u64) -> bool {
        header.total.disk.saturating_add(disk) <= self.bytes_max
            && header.total.entries.saturating_add(entries) <= self.entries_max
    }

    /// Whether eviction ends.
    fn is_low(&self, header: &Header, incoming: u64) -> bool {
        self.excess(header, incoming) == (0, 0)
    }

    /// Entries and bytes on disk that have to go.
    fn excess(&self, header: &Header, incoming: u64) -> (u64, u64) {
        let disk_low = share(self.bytes_max, self.low_mark).min(self.bytes_max.saturating_sub(incoming));
        let entries_low = share(self.entries_max, self.low_mark).min(self.entries_max - 1);
        (header.total.entries.saturating_sub(entries_low), header.total.disk.saturating_sub(disk_low))
    }
}

fn share(max: u64, mark: f64) -> u64 {
    if max == u64::MAX { max } else { (max as f64 * mark) as u64 }
}

/// What a reader is asked; it answers by itself.
type Request = Box<dyn FnOnce(&Store) + Send>;

/// A tier of files in one folder.
///
/// Files are read and written by threads of its own; a call costs a hop to one of them and back, and never
/// blocks the caller's thread on the disk. Dropped without [`close`](Backend::close), it finishes what is
/// queued and ends its threads; nothing acknowledged is lost.
pub struct FilesBackend {
    store: Arc<Store>,
    writes: Arc<Queue<Job>>,
    reads: Arc<Queue<Request>>,
    /// What the writer's end said; `None` while it runs.
    ended: watch::Receiver<Option<Result<()>>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl FilesBackend {
    /// Opens or makes the folder. If what its processes share is missing, damaged, restored from a backup, or
    /// lost power unsafely, a new incarnation begins: every entry is a miss, which [`notes`](Backend::notes)
    /// and a warning say, and old files are deleted in the background.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid setting, a path that is no folder, a folder with other files in it,
    /// or one of a newer larder, which is left alone. [`ErrorKind::Authentication`] when it belongs to another
    /// user; [`ErrorKind::ReadOnly`], [`ErrorKind::Full`] and [`ErrorKind::Unavailable`] when the disk doesn't
    /// let it.
    pub async fn open(options: FilesOptions) -> Result<Self> {
        let (opened, opening) = oneshot::channel();
        spawn("larder-files-o", move || drop(opened.send(Self::open_blocking(options))))?;
        opening.await.unwrap_or_else(|_| Err(lost(NAME, "open")))
    }

    /// [`open`](Self::open), on this thread.
    pub fn open_blocking(options: FilesOptions) -> Result<Self> {
        options.check()?;
        let limits = options.limits();
        let FilesOptions { path, durability, clock, readers, busy_timeout, .. } = options;
        let busy_timeout = busy_timeout.min(BUSY_TIMEOUT_MAX);
        let folder = Folder::open(&path, durability)?;
        let fence = Fence::open(folder, clock, busy_timeout)?;
        let store = Arc::new(Store { fence, limits, recent: recent::Recent::new() });
        let writes = Arc::new(Queue::new(NAME, busy_timeout));
        let reads = Arc::new(Queue::<Request>::new(NAME, busy_timeout));
        let (end, ended) = watch::channel(None);
        let backend = FilesBackend {
            store: store.clone(),
            writes: writes.clone(),
            reads: reads.clone(),
            ended,
            threads: Mutex::default(),
        };
        let mut threads = Vec::with_capacity(readers + 1);
        // From here on an early return drops `backend`, which ends the threads that run already.
        for _ in 0..readers {
            let (store, reads) = (store.clone(), reads.clone());
            threads.push(spawn("larder-files-r", move || {
                let leave = LeaveOnDrop(reads);
                while let Some(batch) = leave.0.pop_many(READER_BATCH, readers) {
                    batch.into_iter().for_each(|queued| queued.run(|request| request(&store)));
                }
            })?);
        }
        let mut writer =
            Writer { store, queue: writes, sweep_from: 0, is_tidying: false, is_evicting: false };
        writer.look_after();
        threads.push(spawn("larder-files-w", move || drop(end.send(Some(writer.run()))))?);
        *backend.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(backend)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.store.fence.folder.path()
    }

    /// Asks a reader.
    async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T> {
        self.queue_read(operation, read).await?.await.map_err(|_| lost(NAME, operation))
    }

    async fn queue_read<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>> {
        let (answer, answered) = oneshot::channel();
        let request: Request = Box::new(move |store| {
            // Whoever stopped waiting needs no read.
            if !answer.is_closed() {
                drop(answer.send(read(store)));
            }
        });
        self.reads.push(operation, 0, request).await?;
        Ok(answered)
    }

    /// Queues an operation; the receiver gets its result after the commit.
    async fn queue(&self, op: Op) -> Result<oneshot::Receiver<Result<Done>>> {
        let (answer, answered) = oneshot::channel();
        let name = op.name();
        let bytes = match &op {
            Op::Put(put) => self.check_size(put)?,
            Op::Discard(_, sealed, _) => sealed.len(),
            _ => 0,
        };
        self.writes.push(name, bytes, Job { op, answer: Some(answer) }).await?;
        Ok(answered)
    }

    async fn write(&self, op: Op) -> Result<Done> {
        let name = op.name();
        self.queue(op).await?.await.unwrap_or_else(|_| Err(lost(NAME, name)))
    }

    /// Queues all, in order, then waits for all: they share turns and syncs.
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
        let bytes = put.sealed.len() as u64;
        let limits = &self.store.limits;
        let head = entry::HEAD_BYTES_MAX as u64;
        if bytes > limits.value_bytes_max || disk_bytes(bytes.saturating_add(head)) > limits.bytes_max {
            return Err(Error::new(ErrorKind::TooLarge, "put").backend(NAME).key(&put.key.text()).message(
                format!(
                    "the entry takes {bytes} bytes; at most {} are allowed",
                    limits.value_bytes_max.min(limits.bytes_max.saturating_sub(head))
                ),
            ));
        }
        Ok(put.sealed.len())
    }
}

#[async_trait]
impl Backend for FilesBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: true, scan: true }
    }

    async fn get(&self, key: &EntryKey) -> Result<Read> {
        let key = key.clone();
        self.ask("get", move |store| store.get(&key)).await?
    }

    async fn get_many(&self, keys: &[EntryKey]) -> Vec<Result<Read>> {
        let mut asked = Vec::new();
        for chunk in keys.chunks(GET_MANY_CHUNK) {
            let owned = chunk.to_vec();
            let read = move |store: &Store| owned.iter().map(|key| store.get(key)).collect::<Vec<_>>();
            asked.push((chunk.len(), self.queue_read("get", read).await));
        }
        let mut reads = Vec::with_capacity(keys.len());
        for (length, answered) in asked {
            let chunk = match answered {
                Ok(answered) => answered.await.map_err(|_| lost(NAME, "get")),
                Err(error) => Err(error),
            };
            match chunk {
                Ok(chunk) => reads.extend(chunk),
                Err(error) => reads.extend((0..length).map(|_| Err(error.clone()))),
            }
        }
        reads
    }

    async fn ticket(&self, _: &EntryKey) -> Result<Ticket> {
        self.ask("ticket", Store::ticket).await?
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
        self.write(Op::Discard(key.clone(), sealed.clone(), None)).await.map(|_| ())
    }

    /// Moves the file into `quarantine/`, where the newest 16 stay.
    async fn quarantine(&self, key: &EntryKey, sealed: &Bytes, why: &'static str) -> Result<()> {
        self.write(Op::Discard(key.clone(), sealed.clone(), Some(why))).await.map(|_| ())
    }

    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        self.write(Op::Mark(namespace.clone(), mark.clone())).await.map(|_| ())
    }

    /// Looks at every file of the folder.
    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        self.write(Op::RemoveMatching(namespace.clone(), pattern.clone())).await.and_then(into_count)
    }

    async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        let Scan { namespace, pattern, after, limit } = scan;
        let (namespace, pattern) = (namespace.clone(), pattern.cloned());
        self.ask("scan", move |store| {
            store.scan(&Scan { namespace: &namespace, pattern: pattern.as_ref(), after, limit })
        })
        .await?
    }

    /// Looks at every file of the folder.
    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.ask("scan", Store::namespaces).await?
    }

    async fn sweep(&self, limit: usize) -> Result<u64> {
        if limit == 0 {
            return Ok(0);
        }
        self.write(Op::Sweep { left: limit as u64, freed: 0, visited: 0 }).await.and_then(into_count)
    }

    async fn usage(&self) -> Result<Usage> {
        let header = self.ask("usage", |store| store.fence.snapshot()).await??;
        Ok(Usage { entries: header.total.entries, bytes: header.total.bytes })
    }

    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        Ok(self.ask("last_stamp", |store| store.fence.snapshot()).await??.last_stamp)
    }

    async fn ping(&self) -> Result<()> {
        self.ask("ping", Store::ticket).await?.map(|_| ())
    }

    fn notes(&self) -> Vec<String> {
        self.store.fence.incidents()
    }

    /// Waits for the end of what is queued, and makes it durable.
    async fn close(&self) -> Result<()> {
        self.reads.close();
        self.writes.close();
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(lost(NAME, "close")),
        };
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let (joined, joining) = oneshot::channel();
        spawn("larder-files-c", move || {
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

impl Drop for FilesBackend {
    fn drop(&mut self) {
        self.reads.close();
        self.writes.close();
    }
}

impl fmt::Debug for FilesBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesBackend").field("path", &self.path()).finish_non_exhaustive()
    }
}

/// Whether these bytes are an entry's file. For the fuzzer, and not part of the API.
#[doc(hidden)]
pub fn unstable_entry_file(bytes: &[u8]) -> bool {
    entry::decode(bytes.to_vec()).is_some()
}

/// The same for bytes whose checksums are made right first, so that the fuzzer gets behind them.
#[doc(hidden)]
pub fn unstable_resealed_entry_file(bytes: &[u8]) -> bool {
    entry::decode(entry::reseal(bytes.to_vec())).is_some()
}

/// Fails everybody who waits if a reader panics: nobody hangs.
struct LeaveOnDrop(Arc<Queue<Request>>);

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.abort();
        }
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
