//! What other nodes changed: how far a node has heard of it, and whether it may believe that it knows.
//!
//! Owns the cursors into the log of the *authority*, the lowest tier, where that is one that nodes share; the peers
//! of the same process; and the journal of what the authority could not be told. Asks and applies nothing itself:
//! `cache/follow.rs` does. `DESIGN.md`, "Coherence", sections C and D.

mod cursor;
mod journal;
mod options;
mod peers;

pub use options::BusOptions;

pub(crate) use cursor::{Kept, cursor_key};
pub(crate) use journal::{Journal, Note};
pub(crate) use peers::{Hub, Peer};

use crate::backend::{LogCursor, Ticket};
use crate::clock::{Clock, NEVER_MS, millis};
use crate::key::Namespace;
use crate::rules::{Rule, holds};
use crate::sync::Unscheduled;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::Notify;

/// What a node knows of the authority's log.
#[derive(Debug)]
pub(crate) struct Bus {
    /// The authority's position among the tiers.
    pub(crate) authority: usize,
    pub(crate) shards: u32,
    /// What the authority's records of this process' own writes carry.
    pub(crate) origin: u64,
    pub(crate) options: BusOptions,
    clock: Clock,
    // No step of a schedule: where there is a log to follow, time decides, and not the order of threads.
    feeds: Unscheduled<BTreeMap<Namespace, Feed>>,
    /// Something is to be asked before the next interval.
    pub(crate) wake: Notify,
    pub(crate) counters: BusCounters,
}

#[derive(Debug, Default)]
pub(crate) struct BusCounters {
    pub(crate) records: AtomicU64,
    pub(crate) gaps: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) hints: AtomicU64,
    pub(crate) polls_failed: AtomicU64,
    /// When everything was last known; 0 before the first time.
    complete_ms: AtomicU64,
    suspect: AtomicU64,
}

/// A namespace that is followed.
#[derive(Debug)]
struct Feed {
    shards: Vec<Shard>,
    /// Whether the tiers above the authority have heard of all that they may have missed before this process began.
    is_caught_up: bool,
    /// Whether the cursors of an earlier process were asked for.
    is_begun: bool,
}

#[derive(Clone, Copy, Debug)]
struct Shard {
    at: Option<Ticket>,
    /// The moment up to which everything of it is known that this process may have seen.
    complete_ms: u64,
    /// Whether all that was there was read once.
    was_complete: bool,
}

/// What became of the log as a whole after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// Until when the node believes that it knows.
    pub(crate) until_ms: u64,
}

impl Bus {
    pub(crate) fn new(authority: usize, shards: u32, origin: u64, options: BusOptions, clock: Clock) -> Self {
        Bus {
            authority,
            shards: shards.max(1),
            origin,
            options,
            clock,
            feeds: Unscheduled::default(),
            wake: Notify::new(),
            counters: BusCounters::default(),
        }
    }

    /// Follows a namespace from now on.
    pub(crate) fn join(&self, namespace: &Namespace) {
        let complete_ms = self.clock.mono_ms();
        self.feeds.lock().entry(namespace.clone()).or_insert_with(|| Feed {
            shards: vec![Shard { at: None, complete_ms, was_complete: false }; self.shards as usize],
            is_caught_up: !holds(Rule::CaughtUpFirst),
            is_begun: false,
        });
        self.wake.notify_one();
    }

    /// Follows only these any longer.
    pub(crate) fn keep(&self, is_used: impl Fn(&Namespace) -> bool) {
        self.feeds.lock().retain(|namespace, _| is_used(namespace));
    }

    pub(crate) fn follows(&self, namespace: &Namespace) -> bool {
        self.feeds.lock().contains_key(namespace)
    }

    /// The namespaces whose earlier cursors were not asked for.
    pub(crate) fn unbegun(&self) -> Vec<Namespace> {
        let feeds = self.feeds.lock();
        feeds.iter().filter(|(_, feed)| !feed.is_begun).map(|(namespace, _)| namespace.clone()).collect()
    }

    /// Goes on from where an earlier process was, if that is known of every tier above the authority.
    pub(crate) fn begin(&self, namespace: &Namespace, kept: Option<Vec<Ticket>>) {
        let mut feeds = self.feeds.lock();
        let Some(feed) = feeds.get_mut(namespace).filter(|feed| !feed.is_begun) else { return };
        feed.is_begun = true;
        if let Some(kept) = kept.filter(|kept| kept.len() == feed.shards.len()) {
            for (shard, at) in feed.shards.iter_mut().zip(kept) {
                shard.at = Some(at);
            }
        }
    }

    /// What is to be asked for.
    pub(crate) fn cursors(&self) -> Vec<LogCursor> {
        let feeds = self.feeds.lock();
        let begun = feeds.iter().filter(|(_, feed)| feed.is_begun);
        let of = |(namespace, feed): (&Namespace, &Feed)| {
            let numbered: Vec<_> = (0..).zip(&feed.shards).map(|(shard, of)| (shard, of.at)).collect();
            let namespace = namespace.clone();
            numbered.into_iter().map(move |(shard, at)| LogCursor { namespace: namespace.clone(), shard, at })
        };
        begun.flat_map(of).collect()
    }

    /// Everything up to `at` was applied, and if it is `complete`, all that was recorded until then.
    pub(crate) fn advance(&self, cursor: &LogCursor, at: Ticket, complete_ms: Option<u64>) {
        let mut feeds = self.feeds.lock();
        let Some(feed) = feeds.get_mut(&cursor.namespace) else { return };
        let shard = &mut feed.shards[cursor.shard as usize];
        shard.at = Some(at);
        if let Some(complete_ms) = complete_ms {
            shard.complete_ms = shard.complete_ms.max(complete_ms);
            shard.was_complete = true;
        }
    }

    /// After a poll: notes which namespaces have caught up, and until when the node knows what others removed.
    pub(crate) fn settle(&self) -> Known {
        let mut feeds = self.feeds.lock();
        let mut complete_ms = NEVER_MS;
        for feed in feeds.values_mut() {
            feed.is_caught_up |= feed.shards.iter().all(|shard| shard.was_complete);
            let oldest = feed.shards.iter().map(|shard| shard.complete_ms).min();
            complete_ms = complete_ms.min(oldest.unwrap_or(NEVER_MS));
        }
        drop(feeds);
        let before = self.counters.complete_ms.load(Relaxed);
        let suspect_after_ms = millis(self.options.suspect_after);
        if complete_ms == NEVER_MS {
            complete_ms = self.clock.mono_ms();
        }
        if before > 0 && complete_ms > before.saturating_add(suspect_after_ms) {
            self.counters.suspect.fetch_add(1, Relaxed);
        }
        self.counters.complete_ms.store(complete_ms, Relaxed);
        Known { until_ms: complete_ms.saturating_add(suspect_after_ms) }
    }

    /// Whether the tiers above the authority may be read for a namespace, as far as its history is concerned.
    pub(crate) fn has_caught_up(&self, namespace: &Namespace) -> bool {
        self.feeds.lock().get(namespace).is_some_and(|feed| feed.is_caught_up)
    }

    /// The moment up to which everything is known; 0 before the first poll.
    pub(crate) fn complete_ms(&self) -> u64 {
        self.counters.complete_ms.load(Relaxed)
    }

    /// Where every namespace stands that has caught up.
    pub(crate) fn stands(&self) -> Vec<(Namespace, Vec<Ticket>)> {
        let feeds = self.feeds.lock();
        let caught_up = feeds.iter().filter(|(_, feed)| feed.is_caught_up && feed.is_begun);
        caught_up
            .filter_map(|(namespace, feed)| {
                let at: Option<Vec<Ticket>> = feed.shards.iter().map(|shard| shard.at).collect();
                Some((namespace.clone(), at?))
            })
            .collect()
    }

    pub(crate) fn serve_ms(&self) -> u64 {
        millis(self.options.serve_suspect_max)
    }

    pub(crate) fn stats(&self, is_suspect: bool, is_journal_durable: bool) -> BusStats {
        let load = |counter: &AtomicU64| counter.load(Relaxed);
        let complete_ms = self.complete_ms();
        let lag = (complete_ms > 0).then(|| self.clock.mono_ms().saturating_sub(complete_ms));
        BusStats {
            is_suspect,
            lag: lag.map(Duration::from_millis),
            suspicions: load(&self.counters.suspect),
            records: load(&self.counters.records),
            hints: load(&self.counters.hints),
            gaps: load(&self.counters.gaps),
            malformed: load(&self.counters.malformed),
            polls_failed: load(&self.counters.polls_failed),
            is_journal_durable,
        }
    }
}

/// What a cache with a tier that nodes share counted about the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BusStats {
    /// Whether it may have missed what others removed, and so serves only what was known not to be outdated at most
    /// [`serve_suspect_max`](BusOptions#structfield.serve_suspect_max) ago.
    pub is_suspect: bool,
    /// How long ago everything was known; `None` before the first answer.
    pub lag: Option<Duration>,
    /// How often it was suspect and ceased to be, the start not counted.
    pub suspicions: u64,
    /// Records of other nodes that were applied.
    pub records: u64,
    /// Hints of other nodes that were applied.
    pub hints: u64,
    /// How often the log was not whole, so that everything in a namespace above the authority was dropped.
    pub gaps: u64,
    /// Records and hints that could not be parsed.
    pub malformed: u64,
    /// Polls without an answer.
    pub polls_failed: u64,
    /// Whether removals that the authority could not be told survive the end of the process.
    pub is_journal_durable: bool,
}
