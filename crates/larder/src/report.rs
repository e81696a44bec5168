//! How entries fare in use: what their users report of them, and what is asked about that.
//!
//! For caches of what can go bad while it is fresh: proxies, endpoints, tokens. Owns the words; who keeps
//! reports is a [`Backend`](crate::backend::Backend)'s business, and what follows from them
//! [`Cache::report`](crate::Cache::report)'s.
//!
//! Sources and notes are stored in plain, even by a cache that encrypts: never put a value or a credential
//! into them.

use crate::error::{Error, ErrorKind, Result};
use crate::key::EntryKey;
use std::collections::VecDeque;
use std::time::Duration;

/// Longest [source](Report::source) in bytes.
pub const SOURCE_BYTES_MAX: usize = 128;
/// Longest [note](Report::note) in bytes; a longer one is cut.
pub const NOTE_BYTES_MAX: usize = 200;
/// Most reports kept of one entry: enough to see a pattern, and at most some 8 KiB.
pub const REPORTS_KEPT: usize = 32;

/// What a user of an entry found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It did what it is for.
    Good,
    /// It did not.
    Bad,
}

/// One report about an entry.
///
/// ```
/// use larder::report::Report;
/// use std::time::Duration;
///
/// let report = Report::bad().latency(Duration::from_secs(5)).note("connect timed out").source("list-a");
/// assert_eq!(report.verdict(), larder::report::Verdict::Bad);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a report counts once it is given to the cache"]
pub struct Report {
    verdict: Verdict,
    latency: Option<Duration>,
    note: Option<Box<str>>,
    source: Option<Box<str>>,
}

impl Report {
    /// It worked.
    pub fn good() -> Self {
        Report { verdict: Verdict::Good, latency: None, note: None, source: None }
    }

    /// It did not work.
    pub fn bad() -> Self {
        Report { verdict: Verdict::Bad, ..Report::good() }
    }

    /// How long the use took; kept to the millisecond.
    pub fn latency(mut self, latency: Duration) -> Self {
        self.latency = Some(latency);
        self
    }

    /// What there is to say, cut to [`NOTE_BYTES_MAX`]. Stored in plain.
    pub fn note(mut self, note: &str) -> Self {
        let mut end = note.len().min(NOTE_BYTES_MAX);
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        self.note = Some(note[..end].into());
        self
    }

    /// Where the entry came from, to be asked by. Stays with the entry until another report names another
    /// source. At most [`SOURCE_BYTES_MAX`]; stored in plain.
    pub fn source(mut self, source: &str) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Good or bad.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    pub(crate) fn is_bad(&self) -> bool {
        self.verdict == Verdict::Bad
    }

    /// The source that it names.
    pub fn named_source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// The latency that it tells.
    pub fn named_latency(&self) -> Option<Duration> {
        self.latency
    }

    /// The note that it has.
    pub fn named_note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The report as a history keeps it.
    pub(crate) fn past(&self, wall_ms: u64) -> Past {
        let latency = self.latency.map(|latency| Duration::from_millis(crate::clock::millis(latency)));
        Past { wall_ms, verdict: self.verdict, latency, note: self.note.clone() }
    }

    pub(crate) fn check(&self) -> Result<()> {
        match &self.source {
            Some(source) if source.len() > SOURCE_BYTES_MAX => Err(Error::new(ErrorKind::TooLarge, "report")
                .message(format!(
                    "the source has {} bytes; at most {SOURCE_BYTES_MAX} are allowed",
                    source.len()
                ))),
            _ => Ok(()),
        }
    }
}

/// What became of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reported {
    /// Bad reports of the entry in a row, this one included. 0 after a good one, and for an entry that is
    /// not there.
    pub in_a_row: u32,
    /// That was one too many: the entry was removed from every tier.
    pub is_evicted: bool,
}

/// A report of the past.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Past {
    /// When it came, in wall clock milliseconds since 1970.
    pub wall_ms: u64,
    /// Good or bad.
    pub verdict: Verdict,
    /// How long the use took, in whole milliseconds.
    pub latency: Option<Duration>,
    /// What there was to say.
    pub note: Option<Box<str>>,
}

/// How an entry stands by its reports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// Its key, as tiers see it.
    pub key: EntryKey,
    /// The source that was named last.
    pub source: Option<Box<str>>,
    /// What the last report said.
    pub verdict: Verdict,
    /// Bad reports in a row; 0 if the last one was good.
    pub bad_in_a_row: u32,
    /// Reports in its life, also those that are no longer kept.
    pub reports: u64,
    /// When it was last used, as its reports tell, in wall clock milliseconds since 1970.
    pub accessed_ms: u64,
}

/// Which entries to list, of those that were reported on. All conditions have to hold.
#[derive(Clone, Debug)]
pub struct Query {
    /// Only those from this source. Default: any.
    pub source: Option<String>,
    /// Only those whose last report said this. Default: either.
    pub verdict: Option<Verdict>,
    /// Only those last used before this wall clock millisecond. Default: no limit.
    pub accessed_before_ms: Option<u64>,
    /// Only those last used at this wall clock millisecond or later. Default: no limit.
    pub accessed_from_ms: Option<u64>,
    /// Where the last page ended. Default: the start.
    pub after: Option<String>,
    /// Most entries of the page; at least 1. Default: 100.
    pub limit: usize,
}

impl Default for Query {
    fn default() -> Self {
        Query {
            source: None,
            verdict: None,
            accessed_before_ms: None,
            accessed_from_ms: None,
            after: None,
            limit: 100,
        }
    }
}

impl Query {
    pub(crate) fn takes(&self, source: Option<&str>, verdict: Verdict, accessed_ms: u64) -> bool {
        self.source.as_deref().is_none_or(|wanted| source == Some(wanted))
            && self.verdict.is_none_or(|wanted| verdict == wanted)
            && self.accessed_before_ms.is_none_or(|before| accessed_ms < before)
            && self.accessed_from_ms.is_none_or(|from| accessed_ms >= from)
    }
}

/// A page of standings.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The entries, in an order of the tier's. A page may be short, and even empty, although more follow.
    pub entries: Vec<Standing>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

/// What a tier in memory keeps of one entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) source: Option<Box<str>>,
    pub(crate) bad_in_a_row: u32,
    pub(crate) reports: u64,
    /// The oldest first, at most [`REPORTS_KEPT`].
    pub(crate) kept: VecDeque<Past>,
}

impl Record {
    /// Adds a report; the bad ones in a row.
    pub(crate) fn add(&mut self, report: &Report, wall_ms: u64) -> u32 {
        if let Some(source) = report.named_source() {
            self.source = Some(source.into());
        }
        self.bad_in_a_row = if report.is_bad() { self.bad_in_a_row.saturating_add(1) } else { 0 };
        self.reports += 1;
        if self.kept.len() == REPORTS_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(report.past(wall_ms));
        self.bad_in_a_row
    }

    pub(crate) fn standing(&self, key: &EntryKey) -> Standing {
        Standing {
            key: key.clone(),
            source: self.source.clone(),
            verdict: if self.bad_in_a_row > 0 { Verdict::Bad } else { Verdict::Good },
            bad_in_a_row: self.bad_in_a_row,
            reports: self.reports,
            accessed_ms: self.kept.back().map_or(0, |last| last.wall_ms),
        }
    }
}
