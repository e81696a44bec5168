//! Memcached as a tier that nodes share, over one server or several.
//!
//! Callers meet a [`MemcachedBackend`]. A key belongs to one server ([`route`]); a call goes into the queue of a
//! connection there ([`link`], made by [`dial`]) and with what else has gathered into one write, in the meta
//! protocol of [`wire`]. [`layout`] has the names and bytes, [`put`] decides what may be written, [`pieces`] splits
//! what is too large, [`fault`] says what errors mean. Deadlines, retries and breakers are the tier's guard's business.

mod dial;
mod fault;
mod layout;
mod link;
mod options;
mod pieces;
mod put;
mod route;
mod wire;

pub use options::{LargeValues, MemcachedOptions};
#[cfg(fuzzing)]
pub use wire::check_replies;

use super::{Backend, Capabilities, Mark, Miss, Page, Put, PutOutcome, Read, Removed, Scan, Ticket, Usage};
use crate::clock::{Clock, NEVER_MS, millis};
use crate::entry::EntryKind;
use crate::error::{Error, ErrorKind, Result};
use crate::guard::GuardOptions;
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use async_trait::async_trait;
use bytes::Bytes;
use fault::{Failure, NAME};
use layout::{Entry, Record, Standing, entry_key, record_key, tag_key};
use link::{Link, LinkSettings, RESPONSE_TIMEOUT_MAX};
use route::Router;
use std::collections::HashSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::Poll;
use wire::{Answer, Command, Condition, Item, Payload, Refusal};

/// How often a call begins again because the record of its namespace was not there, or others changed the entry.
const ROUNDS_MAX: usize = 16;
/// Most calls of a batch that are under way at once.
const TOGETHER_MAX: usize = 1024;
/// Up to this many seconds an expiry is a duration to memcached; a larger number is a moment since 1970.
const RELATIVE_S_MAX: u64 = 30 * 24 * 60 * 60;

/// A tier in Memcached, shared by all nodes that name the same servers and prefix.
///
/// It connects with the first call, and again whenever it has to: a server that is down is an error of the calls
/// for its keys, which are never looked for on another. A server that restarts empty, or forgets what larder keeps
/// beside the entries, makes all that it held before invalid, because a removal may be missing. The connection lives
/// on the runtime of the first call, which needs I/O and time enabled, and moves to another when that one ends.
///
/// It can neither list keys nor count entries, so there are no patterns. Tags and clear are marks on every server,
/// so they need all of them; as long as one can't be told, the removal is queued.
///
/// # Windows that remain
/// A server that leaves and comes back **with what it held before** (a paused machine, a snapshot, a partition
/// of one node's, a restart with `-e`, a server that was taken out of the list and is added again) serves what was removed
/// meanwhile to whoever was not told that it was away. Empty it first (`flush_all`). Nodes with different lists of
/// servers don't see each other's removals. The latest stamp of a set is remembered by this process alone.
///
/// # Cancellation
/// A call whose future is dropped before it was sent is never sent. Later, a write takes effect whole or not
/// at all, and its reply goes to nobody.
pub struct MemcachedBackend {
    router: Router,
    prefix: String,
    options: MemcachedOptions,
    clock: Clock,
    /// The latest stamp of a set that this process wrote.
    last_stamp: Mutex<Option<Stamp>>,
}

impl MemcachedBackend {
    /// Checks the settings; doesn't connect.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting and what is allowed.
    pub fn new(options: MemcachedOptions) -> Result<Self> {
        let addresses = options.parse()?;
        let settings = LinkSettings {
            batch_max: options.batch_max,
            connect_timeout: options.connect_timeout,
            response_timeout: options.response_timeout.min(RESPONSE_TIMEOUT_MAX),
            tls: tls(&options, &addresses)?,
        };
        Ok(MemcachedBackend {
            router: Router::new(addresses, options.connections, settings),
            prefix: options.prefix.clone(),
            clock: options.clock.clone(),
            options,
            last_stamp: Mutex::new(None),
        })
    }

    fn place<'b>(&'b self, key: &'b EntryKey) -> Place<'b> {
        let (link, server) = self.router.of_key(key.hash64());
        let (item, is_hashed) = entry_key(&self.prefix, key);
        Place { link, server, record: record_key(&self.prefix, key.namespace()), item, is_hashed, key }
    }

    fn placeholder_s(&self) -> u32 {
        self.options.ticket_lifetime.as_secs() as u32
    }

    /// When the server frees an entry: a duration up to 30 days, whose seconds the server counts itself; beyond, a
    /// moment by the server's own clock; 0 for never, also beyond what fits into its 31 bits.
    fn exptime(&self, gone_at_ms: u64, link: &Link) -> i64 {
        if gone_at_ms == NEVER_MS {
            return 0;
        }
        let left_ms = gone_at_ms.saturating_sub(self.clock.wall_ms());
        let left_s = left_ms.saturating_add(millis(self.options.expiry_slack)).div_ceil(1000).max(1);
        if left_s <= RELATIVE_S_MAX {
            return left_s as i64;
        }
        let Some(server) = link.server().filter(|server| server.time_s > 0) else { return 0 };
        let now_s = server.time_s.saturating_add(server.at.elapsed().as_secs());
        i32::try_from(now_s.saturating_add(left_s)).map_or(0, i64::from)
    }

    /// What is at a key now, a placeholder at least, and the record of its namespace from before that.
    async fn look(&self, place: &Place<'_>) -> Result<(Record, Item), Failure> {
        for _ in 0..ROUNDS_MAX {
            let vivify = Some(self.placeholder_s());
            let command = Command::Get { key: place.item.clone(), value: Payload::Whole, vivify };
            let read = place.link.read(&place.record, command).await?;
            let item = match read.item {
                Answer::Done(item) => item,
                Answer::Refused(refusal) => return Err(Failure::Refused(refusal)),
                _ => return Err(Failure::Nonsense("the absence of what it was to put there")),
            };
            match read.record {
                Some(record) => return Ok((record, item)),
                None => self.begin(place).await?,
            }
        }
        Err(Failure::Forgetful)
    }

    /// Begins a new incarnation of a namespace on a server, unless there is one.
    async fn begin(&self, place: &Place<'_>) -> Result<(), Failure> {
        let store = |only_if| Command::Store {
            key: place.record.clone(),
            head: Record::value(fastrand::u64(..)),
            body: Bytes::new(),
            exptime: 0,
            only_if,
        };
        let get = Command::Get { key: place.record.clone(), value: Payload::Whole, vivify: None };
        let answers = place.link.run(vec![store(Condition::Absent), get]).await?;
        match &answers[..] {
            [Answer::Refused(refusal), _] => Err(Failure::Refused(*refusal)),
            [Answer::Present, Answer::Done(item)] if Record::parse(&item.value, item.cas).is_none() => {
                // Somebody else's: whatever it was, it must not keep larder out for ever.
                let answers = place.link.run(vec![store(Condition::Unchanged(item.cas))]).await?;
                refused(&answers)
            }
            _ => Ok(()),
        }
    }

    /// Why an entry is not valid, its tags' markers included.
    async fn why_invalid(
        &self,
        place: &Place<'_>,
        entry: &Entry,
        record: Record,
    ) -> Result<Option<Miss>, Failure> {
        let why = entry.why_invalid(record, self.clock.wall_ms());
        if why.is_some() || !entry.needs_markers(record) {
            return Ok(why);
        }
        let markers = entry.tags.iter().map(|(tag, _)| {
            let tag = String::from_utf8_lossy(tag);
            let key = tag_key(&self.prefix, place.key.namespace(), &tag);
            Command::Get { key, value: Payload::Nothing, vivify: None }
        });
        let answers = place.link.run(markers.collect()).await?;
        refused(&answers)?;
        let is_marked = entry.tags.iter().zip(&answers).any(|((_, seen), answer)| {
            // One that the server has forgotten may have been another.
            !matches!(answer, Answer::Done(marker) if marker.cas == *seen)
        });
        Ok(is_marked.then_some(Miss::Tag))
    }

    async fn read(&self, place: &Place<'_>) -> Result<Read, Failure> {
        let (record, item) = self.look(place).await?;
        let Some(entry) = Entry::parse(&item.value, place.key, place.is_hashed) else {
            let ticket = Standing::begun(item.cas).position(record).ticket(record.inc);
            return Ok(Read { ticket, found: Err(Miss::Absent) });
        };
        let ticket = entry.standing(item.cas, record).position(record).ticket(record.inc);
        if let Some(miss) = self.why_invalid(place, &entry, record).await? {
            return Ok(Read { ticket, found: Err(miss) });
        }
        let found = match entry.is_in_pieces {
            false => Some(entry.body),
            true => self.read_pieces(place, &entry.body).await?,
        };
        Ok(Read { ticket, found: found.ok_or(Miss::Absent) })
    }

    /// With the value: where an entry stands is written in it, and a set has to look at what is there anyway.
    async fn ticket_of(&self, place: &Place<'_>) -> Result<Ticket, Failure> {
        let (record, item) = self.look(place).await?;
        let entry = Entry::parse(&item.value, place.key, place.is_hashed);
        let standing = entry.map_or(Standing::begun(item.cas), |entry| entry.standing(item.cas, record));
        Ok(standing.position(record).ticket(record.inc))
    }

    async fn remove_one(&self, place: &Place<'_>) -> Result<Removed, Failure> {
        let get = |key: &Bytes| Command::Get { key: key.clone(), value: Payload::Whole, vivify: None };
        let delete = Command::Delete { key: place.item.clone() };
        let answers = place.link.run(vec![get(&place.record), get(&place.item), delete]).await?;
        let [record, item, deleted] = <[Answer; 3]>::try_from(answers).map_err(|_| Failure::Astray)?;
        match deleted {
            Answer::Done(_) => {}
            Answer::Refused(refusal) => return Err(Failure::Refused(refusal)),
            _ => return Ok(Removed::Absent),
        }
        let (Answer::Done(record), Answer::Done(item)) = (record, item) else { return Ok(Removed::Absent) };
        let record = Record::parse(&record.value, record.cas);
        let entry = Entry::parse(&item.value, place.key, place.is_hashed);
        let (Some(record), Some(entry)) = (record, entry) else { return Ok(Removed::Absent) };
        Ok(match self.why_invalid(place, &entry, record).await? {
            None => Removed::Existed,
            Some(_) => Removed::Absent,
        })
    }

    /// What is dropped leaves its position behind: nothing is refused for it.
    async fn discard_one(&self, place: &Place<'_>, sealed: &Bytes) -> Result<(), Failure> {
        let (record, item) = self.look(place).await?;
        let Some(entry) = Entry::parse(&item.value, place.key, place.is_hashed) else { return Ok(()) };
        let body = match entry.is_in_pieces {
            false => Some(entry.body.clone()),
            true => self.read_pieces(place, &entry.body).await?,
        };
        if entry.kind.is_none() || body.is_none_or(|body| body != *sealed) {
            return Ok(());
        }
        let Standing { cas, root, changed } = entry.standing(item.cas, record);
        let nothing = Entry {
            kind: None,
            is_in_pieces: false,
            inc: record.inc,
            root,
            changed,
            body: Bytes::new(),
            ..entry
        };
        let store = Command::Store {
            key: place.item.clone(),
            head: nothing.encode_head(place.key, place.is_hashed),
            body: Bytes::new(),
            exptime: i64::from(self.placeholder_s()),
            only_if: Condition::Unchanged(cas),
        };
        refused(&place.link.run(vec![store]).await?)
    }

    /// Marks a tag or the namespace on one server.
    ///
    /// A tag's mark begins with a new position of the record. Whoever writes looks at the markers first and at the
    /// record then, so it sees the new position, or its entry has the old marker.
    async fn mark_on(&self, link: &Link, namespace: &Namespace, mark: &Mark) -> Result<(), Failure> {
        let record = record_key(&self.prefix, namespace);
        let clear = || vec![Command::Delete { key: record.clone() }];
        let Mark::Tag(tag) = mark else { return refused(&link.run(clear()).await?) };
        let marker = Command::Store {
            key: tag_key(&self.prefix, namespace, tag),
            head: Bytes::new(),
            body: Bytes::new(),
            exptime: 0,
            only_if: Condition::Always,
        };
        let answers = link.run(vec![Command::Bump { key: record.clone() }, marker]).await?;
        match refused(&answers) {
            // A removal needs no memory: without any for the marker, everything goes.
            Err(Failure::Refused(Refusal::OutOfMemory)) => refused(&link.run(clear()).await?),
            done => done,
        }
    }

    fn note_stamp(&self, stamp: Stamp) {
        if !stamp.is_distrusted(self.clock.wall_ms()) {
            let mut last = self.last_stamp.lock().unwrap_or_else(PoisonError::into_inner);
            *last = (*last).max(Some(stamp));
        }
    }

    fn unsupported(operation: &'static str) -> Error {
        Error::new(ErrorKind::Unsupported, operation)
            .backend(NAME)
            .message("memcached neither lists nor counts its keys; remove by tag instead")
    }
}

/// Where a key is.
struct Place<'b> {
    link: &'b Link,
    server: &'b str,
    record: Bytes,
    item: Bytes,
    is_hashed: bool,
    key: &'b EntryKey,
}

impl Place<'_> {
    fn fail<T>(&self, answer: Result<T, Failure>, operation: &'static str) -> Result<T> {
        answer.map_err(|failure| failure.into_error(operation, self.server))
    }
}

/// The first refusal, if there is one.
fn refused(answers: &[Answer]) -> Result<(), Failure> {
    answers.iter().try_for_each(|answer| match answer {
        Answer::Refused(refusal) => Err(Failure::Refused(*refusal)),
        _ => Ok(()),
    })
}

#[cfg(feature = "memcached-tls")]
fn tls(options: &MemcachedOptions, addresses: &[options::Address]) -> Result<dial::Tls> {
    let is_used =
        addresses.iter().any(|address| matches!(address.place, options::Place::Tcp { is_tls: true, .. }));
    if is_used { dial::tls(options.tls_root.as_deref()) } else { Ok(dial::Tls { connector: None }) }
}

#[cfg(not(feature = "memcached-tls"))]
fn tls(_: &MemcachedOptions, _: &[options::Address]) -> Result<dial::Tls> {
    Ok(dial::Tls {})
}

type Call<'c, T> = Pin<Box<dyn Future<Output = T> + Send + 'c>>;

/// Runs futures together, so that what they ask for gathers; their answers in order.
async fn together<T>(mut calls: Vec<Call<'_, T>>) -> Vec<T> {
    let mut answers = Vec::with_capacity(calls.len());
    while !calls.is_empty() {
        let first = calls.len().min(TOGETHER_MAX);
        let mut wave: Vec<_> = calls.drain(..first).map(|call| (call, None)).collect();
        std::future::poll_fn(|cx| {
            let mut is_done = true;
            for (call, answer) in wave.iter_mut().filter(|(_, answer)| answer.is_none()) {
                match call.as_mut().poll(cx) {
                    Poll::Ready(ready) => *answer = Some(ready),
                    Poll::Pending => is_done = false,
                }
            }
            if is_done { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        answers.extend(wave.into_iter().filter_map(|(_, answer)| answer));
    }
    answers
}

/// Splits a batch where a key comes again: calls of one key must happen in their order.
fn runs_of_different<'k, T>(batch: &'k [T], key: impl Fn(&'k T) -> &'k EntryKey) -> Vec<&'k [T]> {
    let (mut runs, mut from, mut seen) = (Vec::new(), 0, HashSet::new());
    for (place, element) in batch.iter().enumerate() {
        if !seen.insert(key(element)) {
            runs.push(&batch[from..place]);
            from = place;
            seen = HashSet::from([key(element)]);
        }
    }
    runs.push(&batch[from..]);
    runs
}

#[async_trait]
impl Backend for MemcachedBackend {
    fn name(&self) -> &str {
        NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { durable: false, scan: false }
    }

    fn guard(&self) -> GuardOptions {
        GuardOptions::remote()
    }

    async fn get(&self, key: &EntryKey) -> Result<Read> {
        let place = self.place(key);
        place.fail(self.read(&place).await, "get")
    }

    async fn get_many(&self, keys: &[EntryKey]) -> Vec<Result<Read>> {
        together(keys.iter().map(|key| self.get(key)).collect()).await
    }

    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        let place = self.place(key);
        place.fail(self.ticket_of(&place).await, "ticket")
    }

    async fn put(&self, put: Put) -> Result<PutOutcome> {
        let place = self.place(&put.key);
        let outcome = self.put_one(&place, &put).await?;
        if put.meta.kind == EntryKind::Set && outcome == PutOutcome::Stored {
            self.note_stamp(put.meta.stamp);
        }
        Ok(outcome)
    }

    async fn put_many(&self, puts: Vec<Put>) -> Vec<Result<PutOutcome>> {
        let mut outcomes = Vec::with_capacity(puts.len());
        for run in runs_of_different(&puts, |put| &put.key) {
            outcomes.extend(together(run.iter().map(|put| self.put(put.clone())).collect()).await);
        }
        outcomes
    }

    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        let place = self.place(key);
        place.fail(self.remove_one(&place).await, "remove")
    }

    async fn remove_many(&self, keys: &[EntryKey]) -> Vec<Result<Removed>> {
        let mut removed = Vec::with_capacity(keys.len());
        for run in runs_of_different(keys, |key| key) {
            removed.extend(together(run.iter().map(|key| self.remove(key)).collect()).await);
        }
        removed
    }

    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()> {
        let place = self.place(key);
        place.fail(self.discard_one(&place, sealed).await, "discard")
    }

    /// On every server: all that could be reached are marked, also when one could not.
    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        let calls = self.router.servers().map(|(link, server)| {
            let marked = async move {
                let marked = self.mark_on(link, namespace, mark).await;
                marked.map_err(|failure| failure.into_error("mark", server))
            };
            Box::pin(marked) as Call<'_, Result<()>>
        });
        together(calls.collect()).await.into_iter().collect()
    }

    async fn remove_matching(&self, _: &Namespace, _: &Pattern) -> Result<u64> {
        Err(Self::unsupported("remove_matching"))
    }

    async fn scan(&self, _: Scan<'_>) -> Result<Page> {
        Err(Self::unsupported("scan"))
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        Err(Self::unsupported("namespaces"))
    }

    /// Nothing to do: memcached frees what is expired, and makes room when it has to.
    async fn sweep(&self, _: usize) -> Result<u64> {
        Ok(0)
    }

    async fn usage(&self) -> Result<Usage> {
        Err(Self::unsupported("usage"))
    }

    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        Ok(*self.last_stamp.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether any server answers: the keys of one that doesn't are errors by themselves. [`notes`](Self::notes)
    /// names it.
    async fn ping(&self) -> Result<()> {
        let calls = self.router.servers().map(|(link, server)| {
            let key = Bytes::from(format!("{}:ping", self.prefix));
            let asked = async move {
                let get = Command::Get { key, value: Payload::Nothing, vivify: None };
                let answers = link.run(vec![get]).await.and_then(|answers| refused(&answers));
                answers.map_err(|failure| failure.into_error("ping", server))
            };
            Box::pin(asked) as Call<'_, Result<()>>
        });
        let mut answers = together(calls.collect()).await;
        if answers.iter().any(Result::is_ok) { Ok(()) } else { answers.swap_remove(0) }
    }

    fn notes(&self) -> Vec<String> {
        self.router.notes()
    }

    async fn close(&self) -> Result<()> {
        self.router.close();
        Ok(())
    }
}

/// Without users and passwords.
impl fmt::Debug for MemcachedBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MemcachedBackend").field(&self.options).finish()
    }
}
