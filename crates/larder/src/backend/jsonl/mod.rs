//! Entries as lines of files that a person can read and `grep`: durable, shared by several processes of one
//! machine. On Unix only: a file is replaced while others have it open.
//!
//! # The folder
//! | file | what it is |
//! | --- | --- |
//! | `shard-NN-of-MM.jsonl` | the entries whose hash falls on shard NN, as a log |
//! | `shard-NN-of-MM.lock` | held while the shard is written to; empty |
//! | `shard-NN-of-MM.jsonl.new` | a rewriting that was interrupted; the next one overwrites it |
//! | `shard-NN-of-MM.jsonl.aside-N` | a file that was none of larder's; 4 at most |
//! | `quarantine.jsonl` | damaged lines with their numbers, and entries that failed authentication |
//! | `folder.lock` | held while the folder is opened |
//!
//! The folder is made with mode 0700, files with 0600.
//!
//! # A line
//! ```text
//! {"len":"000000f3","sum":"ae5c4aa3a4d3d0d9","op":"set","at":18,"prev":2931,"ns":"users","key":"ada",
//!  "tags":["staff"],"stamp":"0194…","gone":1790000000000,"value":{"name":"Ada"},"head":"TFJ…","tail":"q8…"}
//! ```
//! | field | what it is |
//! | --- | --- |
//! | `len` | bytes of the line with its newline, 8 hexadecimal digits |
//! | `sum` | XXH3-64 of all that follows it, newline included, 16 digits |
//! | `op` | first line: `shard`; entries: `set`, `load`; removals: `remove`, `tag`, `clear`, `match`; else `drop`, `unsynced`, `synced` |
//! | `at` | the shard's position after the line; `set` and removals move it by one |
//! | `prev` | the fence (hash of the key modulo 4096) of the last line that moved it; -1 for many keys |
//! | `ns`, `key` | namespace and key, if the key is a string; else `key64` (its encoding in base64) and `text` |
//! | `tags`, `stamp`, `gone` | of an entry; without `gone` it never expires |
//! | `value`, `head`, `tail` | a plain JSON payload as it is, and the envelope around it in base64 |
//! | `sealed` | any other envelope, in base64: binary, compressed or encrypted |
//! | `tag`, `glob` | what a removal of many removes |
//! | `shard` | of the first line: version, incarnation, bytes of the entries that the last rewriting kept, last stamp |
//!
//! # Why it is right
//! Each shard is a store of its own (`DESIGN.md`, "Coherence", A): its tickets are good for its keys. The
//! file is the order; everybody who reads the same lines comes to the same fences and entries. A writer
//! takes the lock, reads what others appended, decides, appends. A whole line is never withdrawn, so
//! readers need no lock.
//!
//! *A removal of many* (tag, clear, pattern) is appended to every shard, one after the other or at once, and
//! acknowledged when all have it. If one fails, the caller is told; those that have it stay removed, and to
//! do it again does no harm. So it is when the caller stops waiting while a queue is full. A pattern is one line, carried out by whoever reads it.
//!
//! *Rewriting*, when more bytes are dead than alive: live entries behind a new first line, synced, renamed
//! into place. The file then tells of no single removal, and who reads it anew refuses all that began before
//! its position: at worst a miss. Markers are not kept, since what they invalidated is not copied. Other
//! processes notice the new file by device and inode before each use.
//!
//! *Damage.* An unfinished last line is cut: nobody was told of it. Any other line that is damaged goes to
//! the quarantine, and may have been a removal. If the positions show that it was none, it is dropped. If
//! one moving line is missing and the next says by `prev` which fence it was, everything of this fence is
//! removed (1 key in 4096). Otherwise the shard begins anew with a new incarnation: nothing that was removed
//! can come back.

mod disk;
mod index;
mod line;
mod log;
mod options;
mod quarantine;
mod reader;
mod scan;
mod shard;
#[cfg(all(test, not(larder_shuttle)))]
mod tests;
mod writer;

use super::queue::{BUSY_TIMEOUT_MAX, Queue};
use super::{
    Backend, Capabilities, Cursor, Listed, Mark, Page, Put, PutOutcome, Read, Removed, Scan, Ticket, Usage,
};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use async_trait::async_trait;
use bytes::Bytes;
use disk::{Disk, NAME, io_error};
use line::LINE_BYTES_MAX;
use quarantine::Quarantine;
use reader::Request;
use shard::{Change, Done, Shard, shard_path};
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use tokio::sync::{oneshot, watch};
use writer::{Job, Limits, Writer, lost};

pub use options::JsonlOptions;

/// Most keys of one request to a reader.
const GET_MANY_CHUNK: usize = 256;
/// Most entries of a shard that one page of a scan looks at.
const SCANNED_MAX: usize = 1000;
/// What an entry's line has beside key, tags and envelope, at most.
const LINE_FIELDS_BYTES: u64 = 512;

/// A tier in a folder of readable lines.
///
/// Values are read and written by threads of its own, one writer per shard; a call costs a hop to one of
/// them and back, and never blocks the caller's thread on the disk. Memory holds keys, tags and places, about
/// 250 bytes an entry with a short key, and no values. Dropped without [`close`](Backend::close), it finishes
/// what is queued and ends its threads; nothing acknowledged is lost.
///
/// Eviction takes the entry that was not read for the longest time, of 16. Another process on the folder
/// evicts by its own reads. While a shard is rewritten, reads of that shard wait.
pub struct JsonlBackend {
    path: PathBuf,
    shards: Box<[Arc<Shard>]>,
    writes: Box<[Arc<Queue<Job>>]>,
    reads: Arc<Queue<Request>>,
    quarantine: Arc<Quarantine>,
    line_bytes_max: u64,
    /// What the writers' ends said, once all have ended.
    ended: watch::Receiver<Option<Result<()>>>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl JsonlBackend {
    /// Opens or makes the folder, and reads all shards into memory. Damaged lines are quarantined and named in
    /// [`notes`](Backend::notes) and a warning.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for an invalid setting, a path that is a file, or a folder of a newer larder,
    /// which is left alone. [`ErrorKind::ReadOnly`], [`ErrorKind::Authentication`] (permissions),
    /// [`ErrorKind::Full`] and [`ErrorKind::Unavailable`] when the disk doesn't let it, or another process
    /// holds a lock for too long.
    pub async fn open(options: JsonlOptions) -> Result<Self> {
        let (opened, opening) = oneshot::channel();
        spawn("larder-jsonl-o", move || drop(opened.send(Self::open_blocking(options))))?;
        opening.await.unwrap_or_else(|_| Err(lost("open")))
    }

    /// [`open`](Self::open), on this thread.
    pub fn open_blocking(options: JsonlOptions) -> Result<Self> {
        Self::open_on(options, Disk::default())
    }

    fn open_on(options: JsonlOptions, disk: Disk) -> Result<Self> {
        options.check()?;
        let JsonlOptions { path, shards, durability, clock, entries_max, bytes_max, readers, busy_timeout } =
            options;
        let busy_timeout = busy_timeout.min(BUSY_TIMEOUT_MAX);
        let disk = Arc::new(disk);
        disk.create_folder(&path).map_err(|error| io_error("open", error))?;
        let opening = disk.lock(&path.join("folder.lock"), busy_timeout, "open")?;
        let count = shards_of(&path)?.unwrap_or(shards);
        let quarantine = Arc::new(Quarantine::new(&path));
        let shards: Box<[Arc<Shard>]> = (0..count)
            .map(|number| {
                let file = shard_path(&path, number, count);
                Arc::new(Shard {
                    lock_path: file.with_extension("lock"),
                    path: file,
                    folder: path.clone(),
                    disk: disk.clone(),
                    clock: clock.clone(),
                    busy_timeout,
                    quarantine: quarantine.clone(),
                    state: Mutex::new(None),
                    is_doubtful: false.into(),
                })
            })
            .collect();
        for shard in &shards {
            shard.look("open", |_| ())?;
        }
        drop(opening);
        let share = |max: Option<u64>| max.map_or(u64::MAX, |max| max.div_ceil(count as u64));
        let limits = Limits { entries: share(entries_max), bytes: share(bytes_max) };
        let (end, ended) = watch::channel(None);
        let backend = JsonlBackend {
            path,
            writes: shards.iter().map(|_| Arc::new(Queue::new(NAME, busy_timeout))).collect(),
            shards,
            reads: Arc::new(Queue::new(NAME, busy_timeout)),
            quarantine,
            line_bytes_max: limits.bytes.min(LINE_BYTES_MAX as u64),
            ended,
            threads: Mutex::default(),
        };
        // From here on an early return drops `backend`, which ends the threads that run already.
        let mut threads = Vec::new();
        for _ in 0..readers {
            let queue = backend.reads.clone();
            threads.push(spawn("larder-jsonl-r", move || reader::run(&queue, readers))?);
        }
        let left = Arc::new(Mutex::new((count, Ok(()))));
        for (shard, queue) in backend.shards.iter().zip(&backend.writes) {
            let writer =
                Writer { shard: shard.clone(), queue: queue.clone(), durability, limits, rewrite_at: 0 };
            let (left, end) = (left.clone(), end.clone());
            threads.push(spawn("larder-jsonl-w", move || {
                let result = writer.run();
                let mut left = left.lock().unwrap_or_else(PoisonError::into_inner);
                left.0 -= 1;
                if result.is_err() {
                    left.1 = result;
                }
                if left.0 == 0 {
                    // Nobody closes it: it was dropped.
                    drop(end.send(Some(left.1.clone())));
                }
            })?);
        }
        *backend.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(backend)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn shard_of(&self, key: &EntryKey) -> usize {
        // The fences of a shard take the low bits.
        (key.hash64() >> 48) as usize % self.shards.len()
    }

    async fn queue(&self, shard: usize, change: Change) -> Result<oneshot::Receiver<Result<Done>>> {
        let bytes = match &change {
            Change::Put(put) => self.check_size(put)?,
            Change::Drop(_, sealed, _) => sealed.len(),
            _ => 0,
        };
        let (answer, answered) = oneshot::channel();
        self.writes[shard].push(change.name(), bytes, Job { change, answer }).await?;
        Ok(answered)
    }

    /// Queues all, in order, then waits for all: those of a shard share its syncs.
    async fn write_all(&self, changes: impl Iterator<Item = (usize, Change)> + Send) -> Vec<Result<Done>> {
        let mut queued = Vec::new();
        for (shard, change) in changes {
            queued.push((change.name(), self.queue(shard, change).await));
        }
        let mut results = Vec::with_capacity(queued.len());
        for (name, answered) in queued {
            results.push(match answered {
                Ok(answered) => answered.await.unwrap_or_else(|_| Err(lost(name))),
                Err(error) => Err(error),
            });
        }
        results
    }

    async fn write(&self, key: &EntryKey, change: Change) -> Result<Done> {
        let name = change.name();
        self.queue(self.shard_of(key), change).await?.await.unwrap_or_else(|_| Err(lost(name)))
    }

    /// On every shard; the first error, if there is one, after all have answered.
    async fn write_everywhere(&self, change: &Change) -> Result<u64> {
        let mut count = 0;
        let mut failed = None;
        for result in self.write_all((0..self.shards.len()).map(|shard| (shard, change.clone()))).await {
            match result {
                Ok(Done::Count(more)) => count += more,
                Ok(_) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(count), Err)
    }

    fn check_size(&self, put: &Put) -> Result<usize> {
        let tags: usize = put.meta.tags.iter().map(str::len).sum();
        let sealed = put.sealed.len() as u64;
        // Base64; JSON writes a control character with six, and a key that is no string is there twice.
        let names = (16 * put.key.as_bytes().len() + 6 * tags) as u64;
        let bytes = LINE_FIELDS_BYTES + names + sealed.div_ceil(3) * 4;
        if bytes > self.line_bytes_max {
            return Err(Error::new(ErrorKind::TooLarge, "put").backend(NAME).key(&put.key.text()).message(
                format!("the line takes {bytes} bytes; at most {} are allowed", self.line_bytes_max),
            ));
        }
        Ok(put.sealed.len())
    }

    /// Has a reader do something, and waits.
    async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.begin(operation, work).await?.await.unwrap_or_else(|_| Err(lost(operation)))
    }

    async fn begin<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (answer, answered) = oneshot::channel();
        let work = Box::new(move || {
            // Whoever stopped waiting needs no read.
            if !answer.is_closed() {
                drop(answer.send(work()));
            }
        });
        self.reads.push(operation, 0, Request { work }).await?;
        Ok(answered)
    }

    /// Looks at every shard in turn.
    async fn ask_all<T: Send + 'static>(
        &self,
        operation: &'static str,
        look: impl Fn(&mut log::Log) -> T + Send + 'static,
    ) -> Result<Vec<T>> {
        let shards = self.shards.clone();
        self.ask(operation, move || shards.iter().map(|shard| shard.look(operation, &look)).collect()).await
    }
}

#[async_trait]
impl Backend for JsonlBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: true, scan: true }
    }

    async fn get(&self, key: &EntryKey) -> Result<Read> {
        let (shard, key) = (self.shards[self.shard_of(key)].clone(), key.clone());
        self.ask("get", move || {
            let mut reads = reader::get_many(&shard, std::slice::from_ref(&key))?;
            reads.pop().unwrap_or_else(|| Err(lost("get")))
        })
        .await
    }

    async fn get_many(&self, keys: &[EntryKey]) -> Vec<Result<Read>> {
        let mut of_shard: Vec<Vec<usize>> = vec![Vec::new(); self.shards.len()];
        keys.iter().enumerate().for_each(|(i, key)| of_shard[self.shard_of(key)].push(i));
        let mut asked = Vec::new();
        for (shard, places) in self.shards.iter().zip(of_shard) {
            for places in places.chunks(GET_MANY_CHUNK) {
                let chunk: Vec<EntryKey> = places.iter().map(|i| keys[*i].clone()).collect();
                let shard = shard.clone();
                let answered = self.begin("get", move || reader::get_many(&shard, &chunk)).await;
                asked.push((places.to_vec(), answered));
            }
        }
        let mut reads: Vec<Result<Read>> = keys.iter().map(|_| Err(lost("get"))).collect();
        for (places, answered) in asked {
            let chunk = match answered {
                Ok(answered) => answered.await.unwrap_or_else(|_| Err(lost("get"))),
                Err(error) => Err(error),
            };
            match chunk {
                Ok(chunk) => places.iter().zip(chunk).for_each(|(i, read)| reads[*i] = read),
                Err(error) => places.iter().for_each(|i| reads[*i] = Err(error.clone())),
            }
        }
        reads
    }

    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        let shard = self.shards[self.shard_of(key)].clone();
        self.ask("ticket", move || shard.look("ticket", |log| log.ticket())).await
    }

    async fn put(&self, put: Put) -> Result<PutOutcome> {
        self.write(&put.key.clone(), Change::Put(put)).await.and_then(into_put)
    }

    async fn put_many(&self, puts: Vec<Put>) -> Vec<Result<PutOutcome>> {
        let changes = puts.into_iter().map(|put| (self.shard_of(&put.key), Change::Put(put)));
        self.write_all(changes).await.into_iter().map(|done| done.and_then(into_put)).collect()
    }

    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        self.write(key, Change::Remove(key.clone())).await.and_then(into_removed)
    }

    async fn remove_many(&self, keys: &[EntryKey]) -> Vec<Result<Removed>> {
        let changes: Vec<(usize, Change)> =
            keys.iter().map(|key| (self.shard_of(key), Change::Remove(key.clone()))).collect();
        let done = self.write_all(changes.into_iter()).await;
        done.into_iter().map(|done| done.and_then(into_removed)).collect()
    }

    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        self.write(key, Change::Drop(key.clone(), sealed.clone(), None)).await.map(drop)
    }

    /// The entry goes to `quarantine.jsonl` of the folder, which holds 4 MiB at most.
    async fn quarantine(&self, key: &EntryKey, sealed: &Bytes, why: &'static str) -> Result<()> {
        self.write(key, Change::Drop(key.clone(), sealed.clone(), Some(why))).await.map(drop)
    }

    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        self.write_everywhere(&Change::Mark(namespace.clone(), mark.clone())).await.map(drop)
    }

    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        self.write_everywhere(&Change::Match(namespace.clone(), pattern.clone())).await
    }

    /// In the order of shards, and within one of hashes. The cursor names both.
    async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        let Scan { namespace, pattern, after, limit } = scan;
        let (first, mut after) = parse_cursor(after.as_ref(), self.shards.len())?;
        let (namespace, pattern, shards) = (namespace.clone(), pattern.cloned(), self.shards.clone());
        let limit = limit.max(1);
        self.ask("scan", move || {
            let mut page = Page::default();
            let mut looked_at = 0;
            for (number, shard) in shards.iter().enumerate().skip(first) {
                let next = shard.look("scan", |log| {
                    for (key, slot) in log.index.after(after) {
                        looked_at += 1;
                        let is_wanted = key.namespace() == &namespace
                            && log.why_invalid(&namespace, slot, log.now_ms).is_none()
                            && pattern.as_ref().is_none_or(|pattern| pattern.matches(&key.text()));
                        if is_wanted {
                            page.entries.push(Listed {
                                key: key.clone(),
                                gone_at_ms: slot.gone_at_ms,
                                sealed_bytes: u64::from(slot.sealed_bytes),
                            });
                        }
                        if page.entries.len() >= limit || looked_at >= SCANNED_MAX {
                            return Some(Cursor(format!("{number:x}-{:x}", key.hash64())));
                        }
                    }
                    None
                })?;
                if next.is_some() {
                    page.next = next;
                    break;
                }
                after = None;
            }
            Ok(page)
        })
        .await
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        let all = self.ask_all("scan", |log| log.index.namespaces().cloned().collect::<Vec<_>>()).await?;
        Ok(all.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect())
    }

    async fn sweep(&self, limit: usize) -> Result<u64> {
        let mut freed = 0;
        for shard in 0..self.shards.len() {
            let left = limit.saturating_sub(usize::try_from(freed).unwrap_or(usize::MAX));
            if left == 0 {
                break;
            }
            let done = self.write_all(std::iter::once((shard, Change::Sweep(left)))).await;
            for done in done {
                if let Done::Count(more) = done? {
                    freed += more;
                }
            }
        }
        Ok(freed)
    }

    async fn usage(&self) -> Result<Usage> {
        let all = self.ask_all("usage", |log| (log.index.len(), log.index.bytes)).await?;
        Ok(all.into_iter().fold(Usage::default(), |sum, (entries, bytes)| Usage {
            entries: sum.entries + entries,
            bytes: sum.bytes + bytes,
        }))
    }

    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        Ok(self.ask_all("last_stamp", |log| log.last_stamp).await?.into_iter().max().flatten())
    }

    async fn ping(&self) -> Result<()> {
        self.ask_all("ping", |_| ()).await.map(drop)
    }

    fn notes(&self) -> Vec<String> {
        self.quarantine.notes()
    }

    /// Waits for the end of what is queued; with [`Durability::Process`](crate::backend::Durability::Process) syncs it.
    async fn close(&self) -> Result<()> {
        self.reads.close();
        self.writes.iter().for_each(|queue| queue.close());
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(lost("close")),
        };
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let (joined, joining) = oneshot::channel();
        spawn("larder-jsonl-c", move || {
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

impl Drop for JsonlBackend {
    fn drop(&mut self) {
        self.reads.close();
        self.writes.iter().for_each(|queue| queue.close());
    }
}

impl fmt::Debug for JsonlBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JsonlBackend").field("path", &self.path).finish_non_exhaustive()
    }
}

/// How many shards a folder has; `None` for a new one.
fn shards_of(folder: &Path) -> Result<Option<usize>> {
    let failed = |error| io_error("open", error);
    let mut found = BTreeSet::new();
    for file in std::fs::read_dir(folder).map_err(failed)? {
        let name = file.map_err(failed)?.file_name();
        let of = name.to_str().and_then(|name| {
            name.strip_prefix("shard-")?.strip_suffix(".jsonl")?.split_once("-of-")?.1.parse::<usize>().ok()
        });
        found.extend(of.filter(|of| (1..=99).contains(of)));
    }
    if found.len() > 1 {
        return Err(Error::new(ErrorKind::Config, "open")
            .backend(NAME)
            .message(format!("the folder has shards of {found:?}: keep those of one number")));
    }
    Ok(found.pop_first())
}

fn parse_cursor(cursor: Option<&Cursor>, shards: usize) -> Result<(usize, Option<u64>)> {
    let Some(Cursor(text)) = cursor else { return Ok((0, None)) };
    text.split_once('-')
        .and_then(|(shard, hash)| {
            let shard = usize::from_str_radix(shard, 16).ok().filter(|shard| *shard < shards)?;
            Some((shard, Some(u64::from_str_radix(hash, 16).ok()?)))
        })
        .ok_or_else(|| {
            Error::new(ErrorKind::Config, "scan")
                .backend(NAME)
                .message("the cursor is not one of this backend's")
        })
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

/// For the fuzz target: any bytes are refused, or are a line that comes back the same.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn check_line(bytes: &[u8]) {
    line::check(bytes);
}
