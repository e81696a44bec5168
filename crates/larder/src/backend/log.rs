//! The numbered log of a backend that nodes share: what was removed and set, one record for every position.
//!
//! A node learns from it what the others removed. A store, for this purpose, is what counts positions of its own: a
//! namespace, or one shard of it. Reading is polled; hints are for speed and never relied on.

use crate::backend::Ticket;
use crate::error::Result;
use crate::key::{ENTRY_KEY_BYTES_MAX, EntryKey, Namespace, PATTERN_BYTES_MAX, Pattern};
use crate::stamp::Stamp;
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

/// Most records of one page.
pub const LOG_PAGE_MAX: usize = 1000;

/// Reading the log of a backend: see [`Backend::log`](super::Backend::log).
#[async_trait]
pub trait Log: Send + Sync {
    /// How many stores a namespace has, numbered from 0. At least 1, and the same as long as the backend lives.
    fn shards(&self) -> u32;

    /// What records of writes through this backend carry as their [`origin`](Record::origin): random, new at each
    /// start of the process.
    fn origin(&self) -> u64;

    /// What follows each cursor, in their order, in as few round trips as the server allows: a node asks for all
    /// stores in use several times a second.
    ///
    /// Whatever was recorded before the call began is in the pages, or behind a page that is not the
    /// [last](LogPage::is_last).
    ///
    /// # Errors
    /// Of each store on its own, when the server could not answer. A store that is unknown to the server is begun
    /// anew, as by a [`ticket`](super::Backend::ticket).
    async fn read(&self, after: &[LogCursor]) -> Vec<Result<LogPage>>;

    /// Hints from now on, over all namespaces: records as they are published. Some may be missing, doubled, late or
    /// out of order. Ends when the receiver is dropped; the backend connects again by itself meanwhile. `None`, the
    /// default, without such a thing. What can't be parsed is a hint with [`Change::Unreadable`].
    ///
    /// Called inside of a runtime.
    fn hints(&self) -> Option<mpsc::Receiver<Hint>> {
        None
    }
}

/// A store, and how far its log is known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogCursor {
    /// Which namespace.
    pub namespace: Namespace,
    /// Which of its stores.
    pub shard: u32,
    /// The last position that is known, and of which incarnation. `None`: nothing is, and only where the log stands
    /// is asked for.
    pub at: Option<Ticket>,
}

/// What follows a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPage {
    /// Up to where: the next cursor.
    pub at: Ticket,
    /// The records after the cursor up to `at`, of ascending positions without a gap, at most [`LOG_PAGE_MAX`];
    /// `None` where they are not all there: the log was cut, the store was begun anew, or the cursor was `None`.
    /// Then `at` is where the store stood not later than the answer was made.
    pub records: Option<Vec<Record>>,
    /// Whether `at` is where the store stood when it answered.
    pub is_last: bool,
}

impl LogPage {
    /// Puts together what a backend read: where the store stands, and the records that it has after `cursor`, in
    /// the order of their positions. Decides whether any is missing.
    pub fn new(cursor: Option<Ticket>, stands_at: Ticket, mut records: Vec<Record>) -> Self {
        let lost = LogPage { at: stands_at, records: None, is_last: true };
        let Some(cursor) = cursor.filter(|cursor| cursor.inc == stands_at.inc && cursor.pos <= stands_at.pos)
        else {
            return lost;
        };
        // Records may have been added after the store said where it stands.
        records.truncate(LOG_PAGE_MAX);
        let are_whole = records.iter().zip(cursor.pos + 1..).all(|(record, pos)| record.pos == pos);
        let end = cursor.pos + records.len() as u64;
        if !are_whole || (end < stands_at.pos && records.len() < LOG_PAGE_MAX) {
            return lost;
        }
        let at = Ticket { inc: stands_at.inc, pos: end };
        LogPage { at, records: Some(records), is_last: end >= stands_at.pos }
    }
}

/// One change of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The store's position after it.
    pub pos: u64,
    /// [Who](Log::origin) wrote it.
    pub origin: u64,
    /// What it was.
    pub change: Change,
}

/// A record that was published, as it is published: not in order, and perhaps not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    /// Of which namespace.
    pub namespace: Namespace,
    /// What was recorded.
    pub record: Record,
}

/// What a record says.
#[derive(Clone, Debug)]
pub enum Change {
    /// A key was removed.
    Removed(EntryKey),
    /// A key was set, with this stamp.
    Set(EntryKey, Stamp),
    /// A tag was removed.
    Tag(Box<str>),
    /// The namespace was cleared.
    Cleared,
    /// Writes that began before are refused; what is stored stays valid.
    Floor,
    /// Every key that matches was removed.
    Matching(Pattern),
    /// A record that can't be parsed: damaged, or of a later version. In the log it stands for a removal of everything
    /// in its namespace; as a hint it is dropped.
    Unreadable,
}

impl Change {
    /// Parses what a backend recorded: a `kind` (`r`emoved, `s`et, `t`ag, `c`leared, `f`loor, `p`attern), the key, tag
    /// or pattern, and a set's stamp as 24 hex digits. Total: what is not of this form is [`Unreadable`](Self::Unreadable).
    pub fn parse(namespace: &Namespace, kind: &[u8], name: &[u8], stamp: &[u8]) -> Self {
        Self::parsed(namespace, kind, name, stamp).unwrap_or(Change::Unreadable)
    }

    fn parsed(namespace: &Namespace, kind: &[u8], name: &[u8], stamp: &[u8]) -> Option<Self> {
        let key = || {
            let bytes = (name.len() <= ENTRY_KEY_BYTES_MAX).then(|| Bytes::copy_from_slice(name))?;
            EntryKey::from_bytes(namespace, bytes).ok()
        };
        Some(match kind {
            b"r" => Change::Removed(key()?),
            b"s" => Change::Set(key()?, parse_stamp(stamp)?),
            b"t" => {
                let tag = std::str::from_utf8(name).ok()?;
                crate::entry::check_tag(tag).ok()?;
                Change::Tag(tag.into())
            }
            b"c" => Change::Cleared,
            b"f" => Change::Floor,
            b"p" if name.len() <= PATTERN_BYTES_MAX => {
                Change::Matching(Pattern::new(std::str::from_utf8(name).ok()?).ok()?)
            }
            _ => return None,
        })
    }
}

impl PartialEq for Change {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Change::Removed(one), Change::Removed(other)) => one == other,
            (Change::Set(one, at), Change::Set(other, other_at)) => one == other && at == other_at,
            (Change::Tag(one), Change::Tag(other)) => one == other,
            (Change::Matching(one), Change::Matching(other)) => one.as_str() == other.as_str(),
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

impl Eq for Change {}

fn parse_stamp(hex: &[u8]) -> Option<Stamp> {
    let mut bytes = [0; 12];
    if hex.len() != 24 {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(hex.chunks(2)) {
        let digit = |digit: u8| (digit as char).to_digit(16);
        *byte = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
    }
    Some(Stamp::from_bytes(bytes))
}

#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn record(pos: u64) -> Record {
        Record { pos, origin: 1, change: Change::Cleared }
    }

    fn page(
        after: u64,
        stands_at: u64,
        records: impl IntoIterator<Item = u64>,
    ) -> Option<(u64, usize, bool)> {
        let at = |pos| Ticket { inc: 7, pos };
        let records = records.into_iter().map(record).collect();
        let page = LogPage::new(Some(at(after)), at(stands_at), records);
        Some((page.at.pos, page.records?.len(), page.is_last))
    }

    #[test]
    fn a_page_is_whole_or_says_that_it_is_not() {
        assert_eq!(page(5, 5, []), Some((5, 0, true)));
        assert_eq!(page(5, 7, [6, 7]), Some((7, 2, true)));
        assert_eq!(page(5, 6, [6, 7]), Some((7, 2, true)), "one was added meanwhile");
        let long = LOG_PAGE_MAX as u64;
        assert_eq!(page(5, 5000, 6..=5000), Some((5 + long, LOG_PAGE_MAX, false)));
        for (after, stands_at, records) in
            [(5, 7, vec![7]), (5, 7, vec![6]), (5, 7, vec![]), (5, 8, vec![6, 8]), (5, 4, vec![])]
        {
            assert_eq!(page(after, stands_at, records), None);
        }
        let (old, new) = (Ticket { inc: 1, pos: 5 }, Ticket { inc: 2, pos: 5 });
        for cursor in [None, Some(old)] {
            let page = LogPage::new(cursor, new, Vec::new());
            assert_eq!((page.records, page.at, page.is_last), (None, new, true));
        }
    }

    #[test]
    fn what_is_no_change_is_unreadable() {
        let namespace = Namespace::new("n").unwrap();
        let key = EntryKey::new(&namespace, "k").unwrap();
        let stamp = Stamp::new(77, 3, 9);
        let parse =
            |kind: &[u8], name: &[u8], stamp: &str| Change::parse(&namespace, kind, name, stamp.as_bytes());
        assert_eq!(parse(b"r", key.as_bytes(), ""), Change::Removed(key.clone()));
        assert_eq!(parse(b"s", key.as_bytes(), &stamp.to_string()), Change::Set(key.clone(), stamp));
        assert_eq!(parse(b"t", b"red", ""), Change::Tag("red".into()));
        assert_eq!(parse(b"p", b"user:*", ""), Change::Matching(Pattern::new("user:*").unwrap()));
        let long = [b'a'; 5000];
        for (kind, name, stamp) in [
            (&b"x"[..], &b""[..], ""),
            (b"", b"", ""),
            (b"rr", key.as_bytes(), ""),
            (b"r", &long, ""),
            (b"r", b"", ""),
            (b"s", key.as_bytes(), ""),
            (b"s", key.as_bytes(), "zz0000000000000000000000"),
            (b"t", &long, ""),
            (b"t", b"\xff", ""),
            (b"p", b"[", ""),
            (b"p", &long, ""),
        ] {
            assert_eq!(parse(kind, name, stamp), Change::Unreadable);
        }
    }
}
