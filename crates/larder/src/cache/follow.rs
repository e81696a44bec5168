//! Hearing of what others changed: other nodes by the log of the tier that they share, other caches of this process
//! directly. What may be served meanwhile is decided here, too.
//!
//! A change of somebody else is applied as a removal, also a set: its value is read when it is asked for. The order is
//! that of any removal: the lowest tier above the authority first, L1 last.

use super::flight::Flight;
use super::{Cache, Key, Shared, Value};
use crate::backend::{Change, Hint, LogCursor, LogPage, Mark, Put, Ticket};
use crate::bus::{BusStats, Peer, cursor_key};
use crate::clock::{NEVER_MS, millis};
use crate::entry::{EntryKind, Meta, Tags};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::l1::Space;
use crate::rules::{Rule, holds};
use crate::tier::{Removal, TierRead, before};
use async_trait::async_trait;
use std::sync::Arc;
#[cfg(not(larder_shuttle))]
use std::sync::Weak;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

/// Most stores that are asked for in one call, so that one answer stays small.
const CURSORS_MAX: usize = 1000;
/// Most pages in a row that one poll follows a log before it counts as failed: a thousand records each.
const PAGES_MAX: usize = 64;
/// How long one poll may take. A node that waits longer is suspect anyway.
const POLL_MAX: Duration = Duration::from_secs(1);
/// Most hints that are applied together.
#[cfg(not(larder_shuttle))]
const HINTS_MAX: usize = 256;

/// Starts to follow the shared tier, if there is one. Ends with the last clone of the cache.
#[cfg(not(larder_shuttle))]
pub(super) fn start<K: Key, V: Value>(shared: &Arc<Shared<K, V>>) {
    if let Some(hub) = &shared.hub {
        let weak: Weak<dyn Peer> = Arc::downgrade(shared) as Weak<dyn Peer>;
        hub.join(weak);
    }
    if shared.bus.is_some() {
        let runtime = crate::runtime::of(&shared.clock);
        drop(runtime.spawn(follow(Arc::downgrade(shared))));
        drop(runtime.spawn(take_hints(Arc::downgrade(shared))));
    }
}

#[cfg(larder_shuttle)]
pub(super) fn start<K: Key, V: Value>(_: &Arc<Shared<K, V>>) {}

#[cfg(not(larder_shuttle))]
async fn follow<K: Key, V: Value>(shared: Weak<Shared<K, V>>) {
    loop {
        let (bus, clock) = {
            let Some(shared) = shared.upgrade().filter(|shared| !shared.is_closed.load(SeqCst)) else {
                return;
            };
            shared.poll().await;
            let Some(bus) = shared.bus.clone() else { return };
            (bus, shared.clock.clone())
        };
        before(&clock, bus.options.poll_interval, bus.wake.notified()).await;
    }
}

#[cfg(not(larder_shuttle))]
async fn take_hints<K: Key, V: Value>(shared: Weak<Shared<K, V>>) {
    let subscribe = |shared: Arc<Shared<K, V>>| {
        let authority = shared.bus.as_ref().map(|bus| bus.authority)?;
        shared.tiers[authority].backend.log()?.hints()
    };
    let Some(mut hints) = shared.upgrade().and_then(subscribe) else { return };
    let mut taken = Vec::new();
    while hints.recv_many(&mut taken, HINTS_MAX).await > 0 {
        let Some(shared) = shared.upgrade() else { return };
        shared.take_hints(taken.drain(..)).await;
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    /// The hash of the name by which the lowest tier knows a key; `None` where nobody else can change it.
    pub(super) fn name(&self, space: &Space, key: &K) -> Option<u64> {
        if !self.is_named.load(Relaxed) {
            return None;
        }
        // A key that can't be encoded is in no tier, and nobody else can have changed it.
        let key = self.encode(space, key).ok()??;
        Some(self.tiers.last()?.key(&key).hash64())
    }

    /// Whether a caller may join a flight that is under way.
    pub(super) fn may_join(&self, space: &Space, key: &K, name: Option<u64>, flight: &Flight<K, V>) -> bool {
        !self.l1.moved(space, key, name, flight.ticket)
            && (!holds(Rule::FlightAge) || self.l1.trusts(flight.began_ms, self.clock.coarse_ms()))
    }

    /// Since when something is known not to be outdated that a flight found: since it began, or as long as everything
    /// is known where it comes from a tier above the authority.
    pub(super) fn known_ms(&self, began_ms: u64, from_tier: u8) -> u64 {
        match &self.bus {
            Some(bus)
                if (1..=bus.authority).contains(&usize::from(from_tier))
                    && holds(Rule::PromotionKeepsTime) =>
            {
                began_ms.min(bus.complete_ms())
            }
            _ => began_ms,
        }
    }

    /// Whether a tier may be read: those above the authority hold what others may have removed.
    pub(super) fn may_read(&self, position: usize, namespace: &Namespace) -> bool {
        match &self.bus {
            Some(bus) if position < bus.authority => {
                bus.has_caught_up(namespace) && !self.l1.is_suspect(self.clock.mono_ms())
            }
            _ => true,
        }
    }

    /// Whether this node may have missed what others removed.
    pub(super) fn is_suspect(&self) -> bool {
        self.bus.is_some() && self.l1.is_suspect(self.clock.mono_ms())
    }

    pub(super) fn bus_stats(&self) -> Option<BusStats> {
        let bus = self.bus.as_ref()?;
        let authority = &self.tiers[bus.authority];
        let is_journal_durable = authority.has_journal() && authority.journal_failure().is_none();
        Some(bus.stats(self.is_suspect(), is_journal_durable))
    }

    /// Tells the other caches of this process over the same store.
    pub(super) async fn tell(&self, space: &Space, changes: impl FnOnce(&Self) -> Vec<Change>) {
        if let Some(hub) = &self.hub {
            hub.tell(std::ptr::from_ref(self).cast::<()>() as usize, &space.namespace, || changes(self))
                .await;
        }
    }

    /// [`tell`](Self::tell) of a key that was set, or that a refused set has removed.
    pub(super) async fn tell_key(&self, space: &Space, key: &EntryKey) {
        let lowest = self.tiers.last().expect("a cache with tiers");
        self.tell(space, |_| vec![Change::Removed(lowest.key(key))]).await;
    }

    /// Asks the authority what others changed, applies it, and decides for how long that is good.
    pub(super) async fn poll(&self) {
        let Some(bus) = &self.bus else { return };
        for namespace in bus.unbegun() {
            let kept = self.kept_cursors(&namespace).await;
            bus.begin(&namespace, kept);
        }
        let mut cursors = bus.cursors();
        for _ in 0..PAGES_MAX {
            // All that was recorded until now is in the answer, or behind a page that is not the last.
            let asked_ms = self.clock.mono_ms();
            let mut unfinished = Vec::new();
            for some in cursors.chunks(CURSORS_MAX) {
                let Ok(pages) = self.ask(some).await else {
                    bus.counters.polls_failed.fetch_add(1, Relaxed);
                    return;
                };
                for (cursor, page) in some.iter().zip(pages) {
                    match page {
                        Ok(page) => {
                            self.apply_page(cursor, &page).await;
                            bus.advance(cursor, page.at, page.is_last.then_some(asked_ms));
                            if !page.is_last {
                                unfinished.push(LogCursor { at: Some(page.at), ..cursor.clone() });
                            }
                        }
                        Err(error) => {
                            bus.counters.polls_failed.fetch_add(1, Relaxed);
                            tracing::debug!(%error, "a log was not read");
                        }
                    }
                }
            }
            cursors = unfinished;
            if cursors.is_empty() {
                break;
            }
        }
        let was_suspect = self.is_suspect();
        self.l1.set_trust(bus.settle().until_ms, bus.serve_ms());
        if was_suspect && !self.is_suspect() {
            tracing::info!("what other nodes removed is known again");
        }
        self.keep_cursors().await;
    }

    async fn ask(&self, cursors: &[LogCursor]) -> Result<Vec<Result<LogPage>>> {
        let bus = self.bus.as_ref().expect("only a cache with a bus polls");
        let tier = &self.tiers[bus.authority];
        let log = tier.backend.log().expect("a backend that has a log keeps it");
        // Past the guard: a breaker must not keep a node from hearing of removals.
        let pages = before(&self.clock, POLL_MAX, log.read(cursors)).await;
        let pages = pages.filter(|pages| pages.len() == cursors.len());
        pages.ok_or_else(|| Error::new(ErrorKind::Timeout, "log").backend(tier.name().to_owned()))
    }

    async fn apply_page(&self, cursor: &LogCursor, page: &LogPage) {
        let bus = self.bus.as_ref().expect("only a cache with a bus polls");
        let is_gap = match cursor.at {
            Some(at) if at.inc != page.at.inc => holds(Rule::IncarnationClears),
            _ => holds(Rule::GapClears),
        };
        let Some(records) = &page.records else {
            if is_gap {
                self.apply(&cursor.namespace, &[Change::Cleared]).await;
            }
            if cursor.at.is_some() {
                bus.counters.gaps.fetch_add(1, Relaxed);
                tracing::warn!(namespace = %cursor.namespace, "the log is not whole; what is above it was dropped");
            }
            return;
        };
        let foreign = records.iter().filter(|record| record.origin != bus.origin);
        let changes: Vec<Change> = foreign.map(|record| record.change.clone()).collect();
        bus.counters.records.fetch_add(changes.len() as u64, Relaxed);
        if !changes.is_empty() {
            self.apply(&cursor.namespace, &changes).await;
        }
    }

    /// Applies hints. They never move a cursor: what came before them may be missing.
    #[cfg_attr(larder_shuttle, allow(dead_code, reason = "no log is followed there"))]
    async fn take_hints(&self, hints: impl Iterator<Item = Hint>) {
        let Some(bus) = &self.bus else { return };
        let mut by_namespace: Vec<(Namespace, Vec<Change>)> = Vec::new();
        for Hint { namespace, record } in hints {
            if record.change == Change::Unreadable {
                bus.counters.malformed.fetch_add(1, Relaxed);
            } else if record.origin != bus.origin && bus.follows(&namespace) {
                bus.counters.hints.fetch_add(1, Relaxed);
                match by_namespace.iter_mut().find(|(known, _)| *known == namespace) {
                    Some((_, changes)) => changes.push(record.change),
                    None => by_namespace.push((namespace, vec![record.change])),
                }
            }
        }
        for (namespace, changes) in by_namespace {
            self.apply(&namespace, &changes).await;
        }
    }

    /// Removes what others changed, from the lowest tier above the authority up to L1.
    async fn apply(&self, namespace: &Namespace, changes: &[Change]) {
        let mut keys: Vec<EntryKey> = Vec::new();
        let mut marks: Vec<Mark> = Vec::new();
        let mut patterns: Vec<&Pattern> = Vec::new();
        for change in changes {
            match change {
                Change::Removed(key) => keys.push(key.clone()),
                Change::Set(key, stamp) => {
                    if holds(Rule::ForeignSetRemoves) {
                        keys.push(key.clone());
                    }
                    self.stamps.advance(*stamp, self.clock.wall_ms());
                }
                Change::Tag(tag) => marks.push(Mark::Tag(tag.clone())),
                Change::Cleared => marks.push(Mark::Clear),
                Change::Unreadable => {
                    if let Some(bus) = &self.bus {
                        bus.counters.malformed.fetch_add(1, Relaxed);
                    }
                    marks.push(Mark::Clear);
                }
                // Refuses writes to the authority, and removes nothing; the pattern follows.
                Change::Floor => {}
                Change::Matching(pattern) => patterns.push(pattern),
            }
        }
        if marks.contains(&Mark::Clear) {
            (marks, keys, patterns) = (vec![Mark::Clear], Vec::new(), Vec::new());
        }
        let above = self.tiers.len().saturating_sub(1);
        for tier in self.tiers[..above].iter().rev() {
            if !keys.is_empty() {
                tier.remove(Removal::Keys(&keys)).await;
            }
            for mark in &marks {
                tier.remove(Removal::Mark(namespace, mark)).await;
            }
            for pattern in &patterns {
                tier.remove(Removal::Matching(namespace, pattern)).await;
            }
        }
        let Some(space) = self.spaces.lock().get(namespace).cloned() else { return };
        if !keys.is_empty() {
            self.l1.remove_named(keys.iter().map(EntryKey::hash64));
        }
        for mark in &marks {
            self.streaks.forget_all(&space);
            self.l1.mark(&space, mark);
        }
        for pattern in patterns {
            self.l1.remove_matching(&space, |key| {
                // What has no text is removed rather than kept.
                self.encode(&space, key).ok().flatten().is_none_or(|key| pattern.matches(&key.text()))
            });
        }
    }

    /// Where every tier above the authority was told that it stands; the least of them. `None` if one doesn't know:
    /// then it is cleared, as after a gap.
    async fn kept_cursors(&self, namespace: &Namespace) -> Option<Vec<Ticket>> {
        let bus = self.bus.as_ref()?;
        let format = self.format.as_ref()?;
        let key = cursor_key(namespace, self.tiers[bus.authority].name()).ok()?;
        let mut least: Option<Vec<Ticket>> = None;
        for tier in &self.tiers[..bus.authority] {
            let name = tier.key(&key);
            let TierRead::Found { sealed, .. } = tier.read(std::slice::from_ref(&name)).await.pop()? else {
                return None;
            };
            let kept: Vec<Ticket> = format
                .open_pairs(&name, &sealed)?
                .into_iter()
                .map(|(inc, pos)| Ticket { inc, pos })
                .collect();
            least = match least {
                None => Some(kept),
                Some(least) if least.len() != kept.len() => return None,
                Some(least) => {
                    let pairs = least.into_iter().zip(kept);
                    let lesser = |(one, other): (Ticket, Ticket)| {
                        (one.inc == other.inc).then_some(if one.pos < other.pos { one } else { other })
                    };
                    Some(pairs.map(lesser).collect::<Option<_>>()?)
                }
            };
        }
        least
    }

    /// Keeps the cursors that cover nothing which is under way, in the tiers that they are for.
    async fn keep_cursors(&self) {
        let (Some(bus), Some(hub), Some(format)) = (&self.bus, &self.hub, &self.format) else { return };
        if bus.authority == 0 {
            return;
        }
        let due = self.kept_cursors.lock().due(|| bus.stands(), || hub.next_epoch());
        for (namespace, at) in due {
            let pairs: Vec<(u64, u64)> = at.iter().map(|at| (at.inc, at.pos)).collect();
            for tier in &self.tiers[..bus.authority] {
                let wall_ms = self.clock.wall_ms();
                let meta = Meta {
                    kind: EntryKind::Load,
                    stamp: self.stamps.tick(wall_ms),
                    created_ms: wall_ms,
                    fresh_until_ms: NEVER_MS,
                    revalidate_until_ms: NEVER_MS,
                    gone_at_ms: NEVER_MS,
                    load_ms: 0,
                    is_negative: false,
                    tags: Tags::NONE,
                };
                let Ok(key) = cursor_key(&namespace, self.tiers[bus.authority].name()) else { continue };
                let key = tier.key(&key);
                // A tier that was not told of a removal has none of it in its own store: see `Tier::is_aside`.
                let Some(ticket) = tier.ticket(&key).await else {
                    self.kept_cursors.lock().failed(&namespace);
                    continue;
                };
                let Ok(sealed) = format.seal_pairs(&key, &meta, &pairs) else { continue };
                let written = tier.write_many(vec![Put { key, meta, sealed, ticket }]).await;
                if written.iter().any(Result::is_err) {
                    self.kept_cursors.lock().failed(&namespace);
                }
            }
        }
    }
}

#[async_trait]
impl<K: Key, V: Value> Peer for Shared<K, V> {
    async fn hear(&self, namespace: &Namespace, changes: &[Change]) {
        self.apply(namespace, changes).await;
    }

    fn expect(&self) {
        if !self.is_named.swap(true, SeqCst) {
            // What is there has no name to be found by.
            self.l1.clear_all();
        }
    }
}

impl<K: Key, V: Value> Cache<K, V> {
    /// Asks the shared tier at once what other nodes changed. Happens by itself, several times a second.
    pub async fn catch_up(&self) {
        let Some(bus) = &self.shared.bus else { return };
        let most = millis(bus.options.suspect_after);
        before(&self.shared.clock, Duration::from_millis(most), self.shared.poll()).await;
    }
}
