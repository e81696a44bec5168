//! Bytes, for any tier below L1.
//!
//! A [`Backend`] stores sealed envelopes and keeps the protocol of `DESIGN.md`, "Coherence": it counts
//! positions, gives tickets, and refuses a write that began before a removal it knows of. It never
//! decodes a value and never decides freshness: only physical expiry.

use crate::entry::Meta;
use crate::error::{Error, Result};
use crate::guard::GuardOptions;
use crate::key::{EntryKey, Namespace, Pattern};
use crate::report::{self, Report};
use crate::stamp::Stamp;
use async_trait::async_trait;
use bytes::Bytes;
use std::fmt;

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(any(feature = "sqlite", all(any(feature = "files", feature = "jsonl"), unix)))]
mod durability;
#[cfg(all(feature = "files", unix))]
mod files;
#[cfg(all(feature = "jsonl", unix))]
mod jsonl;
mod log;
mod memory;
#[cfg(all(
    test,
    feature = "conformance",
    feature = "encryption",
    feature = "files",
    feature = "jsonl",
    feature = "sqlite",
    unix
))]
mod protected_conformance;
mod quarantine;
#[cfg(any(feature = "sqlite", all(any(feature = "files", feature = "jsonl"), unix)))]
mod queue;
#[cfg(all(feature = "redis", not(larder_shuttle)))]
mod redis;
#[cfg(feature = "registry")]
mod registry;
#[cfg(feature = "sqlite")]
mod sqlite;

#[cfg(all(feature = "redis", not(larder_shuttle)))]
pub use self::redis::{RedisBackend, RedisOptions};
#[cfg(any(feature = "sqlite", all(any(feature = "files", feature = "jsonl"), unix)))]
pub use durability::Durability;
#[cfg(any(feature = "sqlite", all(feature = "files", unix)))]
use durability::boot_id;
#[cfg(all(feature = "files", unix))]
pub use files::{FilesBackend, FilesOptions};
#[cfg(all(feature = "files", unix))]
#[doc(hidden)]
pub use files::{unstable_entry_file, unstable_resealed_entry_file};
#[cfg(all(fuzzing, feature = "jsonl", unix))]
#[doc(hidden)]
pub use jsonl::check_line;
#[cfg(all(feature = "jsonl", unix))]
pub use jsonl::{JsonlBackend, JsonlOptions};
pub use log::{Change, Hint, LOG_PAGE_MAX, Log, LogCursor, LogPage, Record};
pub use memory::{MemoryBackend, MemoryOptions};
pub use quarantine::Quarantined;
#[cfg(feature = "registry")]
pub use registry::{Needs, Registry};
#[cfg(feature = "sqlite")]
pub use sqlite::{Incident, SqliteBackend, SqliteOptions};

/// A moment in one store's own order: what a reader saw before it began.
///
/// A store refuses a write whose ticket is older than the last removal of its key, its tags, or
/// everything, and any write whose incarnation is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The store's incarnation: random, new whenever the store may have forgotten a removal.
    pub inc: u64,
    /// The store's position when the ticket was taken.
    pub pos: u64,
}

/// The answer to a read: the entry, or why there is none, and the ticket for a later write of this key.
#[derive(Clone, Debug)]
pub struct Read {
    /// Taken not later than the entry was read, and before any removal of it: a removal that the ticket is
    /// younger than has left nothing to find.
    pub ticket: Ticket,
    /// The sealed envelope, or the reason why there is none.
    pub found: Result<Bytes, Miss>,
}

/// Why a store has no valid entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Miss {
    /// Nothing is stored.
    Absent,
    /// It was physically expired.
    Expired,
    /// One of its tags was removed after it was written.
    Tag,
    /// Its namespace, or everything, was cleared after it was written.
    Cleared,
    /// It was written by an earlier incarnation of the store.
    Incarnation,
    /// Its stamp lies more than a day ahead of the wall clock.
    Clock,
}

/// One conditional write.
#[derive(Clone, Debug)]
pub struct Put {
    /// Where to.
    pub key: EntryKey,
    /// What the store needs to know: kind, stamp, physical expiry, tags.
    pub meta: Meta,
    /// The envelope.
    pub sealed: Bytes,
    /// The ticket taken before the load or set began.
    pub ticket: Ticket,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PutOutcome {
    /// It is stored, as durably as the backend is.
    Stored,
    /// Refused: a removal (for a load: or a set) came after the ticket. A refused *set* has removed the
    /// key, so that it doesn't leave an older value behind.
    Fenced,
    /// Refused: a set with this later stamp is stored.
    Older(Stamp),
}

/// The same value sealed anew, to take the place of the envelope that it was in.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Where.
    pub key: EntryKey,
    /// What has to be there.
    pub old: Bytes,
    /// What takes its place; kind, stamp, expiries and tags are those of `old`.
    pub new: Bytes,
}

/// What a removal found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Removed {
    /// A valid entry, now gone.
    Existed,
    /// Nothing; later writes of older tickets are refused all the same.
    Absent,
}

/// A removal of many entries at once, at a cost that doesn't depend on how many.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    /// All entries of the namespace that carry this tag.
    Tag(Box<str>),
    /// All entries of the namespace.
    Clear,
}

/// One page of a scan.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The valid entries, in an order of the backend's.
    pub entries: Vec<Listed>,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// Where a scan goes on; opaque, printable, valid for the same backend only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub String);

/// An entry as a scan lists it.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its key.
    pub key: EntryKey,
    /// When it is physically gone, in wall clock milliseconds.
    pub gone_at_ms: u64,
    /// The size of its envelope in bytes.
    pub sealed_bytes: u64,
}

/// What to scan.
#[derive(Clone, Debug)]
pub struct Scan<'a> {
    /// In which namespace.
    pub namespace: &'a Namespace,
    /// Only keys whose text matches.
    pub pattern: Option<&'a Pattern>,
    /// Where the last page ended.
    pub after: Option<Cursor>,
    /// Most entries of a page. A page may have fewer, and even none, although more follow.
    pub limit: usize,
}

/// How much a backend holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Entries, expired and invalidated ones that were not yet swept included.
    pub entries: u64,
    /// Bytes that they take, as the backend counts them.
    pub bytes: u64,
}

/// What a backend can do beyond get, put and remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What is stored survives a restart of the process.
    pub durable: bool,
    /// Keys can be listed, so that patterns can be removed.
    pub scan: bool,
}

/// A store of bytes below L1.
///
/// Every method may be called concurrently, and any future may be dropped at any point: a write whose
/// future was dropped either took effect whole or not at all, and never leaves its answer to another
/// call. Every implementation and every wrapper passes [`conformance`](self) (feature `conformance`).
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// A short name for errors, metrics and `explain`: "sqlite".
    fn name(&self) -> &str;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// The guard that suits it as a tier. Default: [`GuardOptions::default`], for what is local; a backend
    /// across a network answers [`GuardOptions::remote`].
    fn guard(&self) -> GuardOptions {
        GuardOptions::default()
    }

    /// Reads a valid entry and a ticket.
    ///
    /// # Errors
    /// Only when the store could not answer. Anything wrong with the entry itself is a [`Miss`].
    async fn get(&self, key: &EntryKey) -> Result<Read>;

    /// Reads many, in the order of `keys`. One round trip where the store has batches.
    async fn get_many(&self, keys: &[EntryKey]) -> Vec<Result<Read>> {
        let mut reads = Vec::with_capacity(keys.len());
        for key in keys {
            reads.push(self.get(key).await);
        }
        reads
    }

    /// A ticket for a set of `key` that begins now.
    async fn ticket(&self, key: &EntryKey) -> Result<Ticket>;

    /// Writes, unless the ticket or the stamp forbid it.
    ///
    /// # Errors
    /// The outcome is unknown only for [`ErrorKind::Timeout`](crate::ErrorKind::Timeout) and
    /// [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable); after any other error nothing was written.
    async fn put(&self, put: Put) -> Result<PutOutcome>;

    /// Writes many, in the order of `puts`.
    async fn put_many(&self, puts: Vec<Put>) -> Vec<Result<PutOutcome>> {
        let mut outcomes = Vec::with_capacity(puts.len());
        for put in puts {
            outcomes.push(self.put(put).await);
        }
        outcomes
    }

    /// Removes an entry, and refuses writes that began before, also when there is none.
    async fn remove(&self, key: &EntryKey) -> Result<Removed>;

    /// Removes many, in the order of `keys`.
    async fn remove_many(&self, keys: &[EntryKey]) -> Vec<Result<Removed>> {
        let mut removed = Vec::with_capacity(keys.len());
        for key in keys {
            removed.push(self.remove(key).await);
        }
        removed
    }

    /// Drops an entry that could not be opened, if it still is `sealed`. Refuses nothing afterwards.
    async fn discard(&self, key: &EntryKey, sealed: &Bytes) -> Result<()>;

    /// Puts envelopes in the places of others, each if the entry still is exactly `old`, and says whether it was.
    /// All else of an entry stays: kind, stamp, position. So nothing is fenced, and nobody's write is refused.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) by default; a caller then writes it as a load.
    async fn exchange_many(&self, exchanges: Vec<Exchange>) -> Vec<Result<bool>> {
        let unsupported =
            || Error::new(crate::ErrorKind::Unsupported, "exchange").backend(self.name().to_owned());
        exchanges.iter().map(|_| Err(unsupported())).collect()
    }

    /// Sets an entry aside whose authentication failed under a known key, if it still is `sealed`: it is no
    /// longer served, and kept for an operator to look at where the store has room for that. `why` is a
    /// reason's name, without secrets. By default the entry is [discarded](Self::discard).
    async fn quarantine(&self, key: &EntryKey, sealed: &Bytes, why: &'static str) -> Result<()> {
        let _ = why;
        self.discard(key, sealed).await
    }

    /// Invalidates a tag or the namespace, and refuses writes that began before. Space is freed later.
    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()>;

    /// Removes every key of the namespace whose text matches, and refuses writes in it that began before.
    /// Returns how many were removed.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without [`Capabilities::scan`].
    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64>;

    /// Lists valid entries.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without [`Capabilities::scan`].
    async fn scan(&self, scan: Scan<'_>) -> Result<Page>;

    /// The namespaces that hold entries.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) without [`Capabilities::scan`].
    async fn namespaces(&self) -> Result<Vec<Namespace>>;

    /// Frees at most `limit` entries that are expired or invalidated; returns how many it freed.
    async fn sweep(&self, limit: usize) -> Result<u64>;

    /// How much it holds.
    async fn usage(&self) -> Result<Usage>;

    /// Whether it keeps [reports](Self::report). Default: no.
    fn keeps_reports(&self) -> bool {
        false
    }

    /// Keeps a report about a valid entry for as long as the entry is there, also while it is overwritten:
    /// the last [`REPORTS_KEPT`](report::REPORTS_KEPT). Returns the bad ones in a row; `None` if there is no
    /// such entry.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) unless it [keeps reports](Self::keeps_reports).
    async fn report(&self, key: &EntryKey, report: &Report) -> Result<Option<u32>> {
        let _ = (key, report);
        Err(keeps_no_reports(self.name(), "report"))
    }

    /// The reports kept of a valid entry, the newest first; empty where there is none.
    ///
    /// # Errors
    /// As [`report`](Self::report).
    async fn history(&self, key: &EntryKey) -> Result<Vec<report::Past>> {
        let _ = key;
        Err(keeps_no_reports(self.name(), "history"))
    }

    /// Lists valid entries of a namespace that were reported on.
    ///
    /// # Errors
    /// As [`report`](Self::report); [`ErrorKind::Config`](crate::ErrorKind::Config) for a cursor that is none.
    async fn standings(&self, namespace: &Namespace, query: &report::Query) -> Result<report::Page> {
        let _ = (namespace, query);
        Err(keeps_no_reports(self.name(), "standings"))
    }

    /// The numbered log of what was removed and set, where several nodes share this store: how each learns what the
    /// others removed. Default: `None`, the store belongs to one process or to processes that don't tell each other.
    fn log(&self) -> Option<&dyn Log> {
        None
    }

    /// The latest stamp of any set it accepted, so that a restarted node ticks on from there.
    async fn last_stamp(&self) -> Result<Option<Stamp>>;

    /// Whether it answers.
    async fn ping(&self) -> Result<()>;

    /// What an operator should know: a file that was set aside and rebuilt, a disk that was full. Empty when
    /// all is well.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Finishes what was acknowledged and releases files and connections. Later calls fail with
    /// [`ErrorKind::Closed`](crate::ErrorKind::Closed).
    async fn close(&self) -> Result<()>;
}

fn keeps_no_reports(backend: &str, operation: &'static str) -> Error {
    Error::new(crate::ErrorKind::Unsupported, operation)
        .backend(backend.to_owned())
        .message("it keeps no reports about entries")
}
