//! What an in-memory store remembers of removals: `DESIGN.md`, "Coherence", section A.
//!
//! Owns positions, stripes and markers; never holds entries. Whoever stores entries takes a
//! [`StripeGuard`] first, so that "check, then store" and "count, then delete" are one step each.

use crate::backend::{Mark, Miss, Ticket};
use crate::entry::{EntryKind, Tags};
use crate::key::Namespace;
use crate::rules::{Rule, holds};
use crate::sync::atomic::{AtomicU64, Ordering::SeqCst};
use crate::sync::{Mutex, MutexGuard, RwLock};
use std::collections::HashMap;

/// Fences per store. Two keys share one with probability 1/4096, which costs at worst a miss. Under shuttle
/// they are few, so that schedules are short and keys do share them.
pub(crate) const STRIPES: usize = if cfg!(larder_shuttle) { 2 } else { 4096 };
/// Locks over the stripes: writers of different keys rarely meet.
const LOCKS: usize = if cfg!(larder_shuttle) { 2 } else { 64 };
/// Most markers kept. Pruning drops the older half and clears what was written before them.
const MARKERS_MAX: usize = 65_536;

/// Most namespaces with a clear, floor or marker. One more, and everything is cleared: it takes a client that
/// clears a new namespace every time.
const NAMESPACES_MAX: usize = 65_536;

/// Most keys that are remembered because another node changed them, a few megabytes. Past it,
/// what they name has to be dropped: see [`Fences::forget_names`].
const NAMES_MAX: usize = 65_536;

/// The removals and sets that a store knows of, by position.
#[derive(Debug)]
pub(crate) struct Fences {
    inc: u64,
    pos: AtomicU64,
    stripes: Box<[Stripe]>,
    locks: Box<[Mutex<()>]>,
    markers: RwLock<Markers>,
    /// The position of the last marker: an entry that was checked at or after it needs no check.
    marker_pos: AtomicU64,
}

#[derive(Debug, Default)]
struct Stripe {
    removed: AtomicU64,
    set: AtomicU64,
}

/// The markers of a store by themselves. What it holds depends only on the calls of [`mark`](Self::mark) and
/// [`raise_floor`](Self::raise_floor), so that a log of them makes the same markers in every process.
#[derive(Debug, Default)]
pub(crate) struct Markers {
    /// Everything written before is invalid, in every namespace.
    clear: u64,
    count: usize,
    namespaces: HashMap<Namespace, NamespaceMarkers>,
    /// Keys that another node changed, by the hash of the name that tiers know them by: this store can't find its
    /// own key by it. Entries and tickets that know their name are compared.
    names: HashMap<u64, u64>,
    /// Up to here, names are no longer known: every write with a name that began before is refused.
    names_floor: u64,
}

/// One kind of marker, as a log keeps it.
#[cfg(all(feature = "files", unix))]
#[derive(Clone, Copy, Debug)]
pub(crate) enum Marker<'a> {
    Clear,
    Floor,
    Tag(&'a str),
}

#[derive(Debug, Default)]
struct NamespaceMarkers {
    /// Everything written before is invalid.
    clear: u64,
    /// Writes with an older ticket are refused; what is stored stays valid.
    floor: u64,
    tags: HashMap<Box<str>, u64>,
}

impl Fences {
    /// Fences of a new, empty store; `inc` is random.
    pub(crate) fn new(inc: u64) -> Self {
        Fences {
            inc,
            // An entry or ticket of position 0 never exists.
            pos: AtomicU64::new(1),
            stripes: (0..STRIPES).map(|_| Stripe::default()).collect(),
            locks: (0..LOCKS).map(|_| Mutex::new(())).collect(),
            markers: RwLock::new(Markers::default()),
            marker_pos: AtomicU64::new(0),
        }
    }

    /// Fences of a store whose removals up to `pos` are no longer known one by one: each key counts as removed
    /// there, so that what began before is refused. What is stored stays valid.
    #[cfg(all(feature = "jsonl", unix))]
    pub(crate) fn resumed(inc: u64, pos: u64) -> Self {
        let fences = Fences::new(inc);
        fences.pos.store(pos, SeqCst);
        fences.stripes.iter().for_each(|stripe| stripe.removed.store(pos, SeqCst));
        fences
    }

    /// A ticket for a read, load or set that begins now.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket { inc: self.inc, pos: self.pos.load(SeqCst) }
    }

    /// The position of the last marker.
    #[inline]
    pub(crate) fn marker_pos(&self) -> u64 {
        // Acquire on every architecture that larder runs on; a plain load on x86.
        self.marker_pos.load(crate::sync::atomic::Ordering::Acquire)
    }

    /// Keeps every other write of keys with this hash out.
    pub(crate) fn lock(&self, hash: u64) -> StripeGuard<'_> {
        let stripe = hash as usize % STRIPES;
        StripeGuard { _lock: self.locks[stripe % LOCKS].lock(), fences: self, stripe: &self.stripes[stripe] }
    }

    /// Whether a removal or set that a reader must see came after `ticket`, apart from tags. Of other nodes only
    /// with the key's name.
    pub(crate) fn moved(&self, namespace: &Namespace, hash: u64, name: Option<u64>, ticket: Ticket) -> bool {
        let stripe = &self.stripes[hash as usize % STRIPES];
        holds(Rule::Join)
            && (ticket.inc != self.inc
                || stripe.removed.load(SeqCst) > ticket.pos
                || stripe.set.load(SeqCst) > ticket.pos
                || {
                    let markers = self.markers.read();
                    markers.fences(namespace, &Tags::NONE, ticket.pos)
                        || markers.fences_name(name, ticket.pos)
                })
    }

    /// Whether one of the tags was removed after `ticket`.
    pub(crate) fn tags_moved(&self, namespace: &Namespace, tags: &Tags, ticket: Ticket) -> bool {
        self.markers.read().fences(namespace, tags, ticket.pos)
    }

    /// Why an entry that was written at `seen` is no longer valid, if it isn't.
    pub(crate) fn invalid(&self, namespace: &Namespace, tags: &Tags, seen: u64) -> Option<Miss> {
        self.markers.read().invalid(namespace, tags, seen)
    }

    /// Why an entry that was written at `seen` is no longer valid, if it isn't: also because another node changed
    /// its key, if it knows its name.
    pub(crate) fn invalid_named(
        &self,
        namespace: &Namespace,
        tags: &Tags,
        name: Option<u64>,
        seen: u64,
    ) -> Option<Miss> {
        let markers = self.markers.read();
        markers
            .invalid(namespace, tags, seen)
            .or_else(|| markers.is_named(name, seen).then_some(Miss::Absent))
    }

    /// Invalidates what has one of these names, and refuses writes of it that have begun. Returns whether too many
    /// are known: the store then drops what they name, and [forgets them](Self::forget_names).
    pub(crate) fn remove_named(&self, names: impl IntoIterator<Item = u64>) -> bool {
        let mut markers = self.markers.write();
        let pos = self.next();
        markers.names.extend(names.into_iter().map(|name| (name, pos)));
        self.marker_pos.store(pos, SeqCst);
        markers.names.len() > NAMES_MAX
    }

    /// Whether another node changed the key of this name after the entry was found valid at `seen`.
    pub(crate) fn is_named(&self, name: Option<u64>, seen: u64) -> bool {
        self.markers.read().is_named(name, seen)
    }

    /// Forgets the names up to `pos`, after everything that they invalidate was dropped. What was admitted meanwhile
    /// began after them.
    pub(crate) fn forget_names(&self, pos: u64) {
        let mut markers = self.markers.write();
        markers.names.retain(|_, at| *at > pos);
        markers.names_floor = markers.names_floor.max(pos);
    }

    /// Invalidates everything.
    pub(crate) fn clear_all(&self) {
        let mut markers = self.markers.write();
        let pos = self.next();
        *markers = Markers { clear: pos, ..Markers::default() };
        self.marker_pos.store(pos, SeqCst);
    }

    /// Invalidates a tag or a namespace.
    pub(crate) fn mark(&self, namespace: &Namespace, mark: &Mark) {
        let mut markers = self.markers.write();
        let pos = self.next();
        markers.mark(namespace, mark, pos);
        self.marker_pos.store(pos, SeqCst);
    }

    /// Refuses every write in the namespace that has begun; what is stored stays valid. When it returns, what
    /// was admitted before is stored: a scan that follows meets it.
    pub(crate) fn raise_floor(&self, namespace: &Namespace) {
        {
            let mut markers = self.markers.write();
            let pos = self.next();
            markers.raise_floor(namespace, pos);
            if markers.clear == pos {
                self.marker_pos.store(pos, SeqCst);
            }
        }
        // A writer holds its lock from its admission until its entry is stored.
        if holds(Rule::FloorWaits) {
            self.locks.iter().for_each(|lock| drop(lock.lock()));
        }
    }

    fn next(&self) -> u64 {
        self.pos.fetch_add(1, SeqCst) + 1
    }
}

/// The exclusive right to write entries of one stripe.
pub(crate) struct StripeGuard<'a> {
    _lock: MutexGuard<'a, ()>,
    fences: &'a Fences,
    stripe: &'a Stripe,
}

impl StripeGuard<'_> {
    /// Counts a removal; the caller deletes the entry before it drops the guard.
    pub(crate) fn remove(&self) {
        self.stripe.removed.store(self.fences.next(), SeqCst);
    }

    /// Admits a write and returns the position it is valid from, or refuses it. A refused *set* must then
    /// be carried out as a [`remove`](Self::remove), or it would leave an older value behind.
    ///
    /// `meets_set`: whether a valid set entry is there, whose stamp the caller has found to be smaller.
    pub(crate) fn admit(
        &self,
        namespace: &Namespace,
        ticket: Ticket,
        kind: EntryKind,
        tags: &Tags,
        meets_set: bool,
    ) -> Option<u64> {
        self.admit_named(namespace, None, ticket, kind, tags, meets_set)
    }

    /// [`admit`](Self::admit) for an entry that knows the name of its key.
    pub(crate) fn admit_named(
        &self,
        namespace: &Namespace,
        name: Option<u64>,
        ticket: Ticket,
        kind: EntryKind,
        tags: &Tags,
        meets_set: bool,
    ) -> Option<u64> {
        let Fences { inc, pos, .. } = self.fences;
        // Held to the end: a marker that comes later must find a `seen` that is smaller than its position.
        let markers = self.fences.markers.read();
        let set_after = self.stripe.set.load(SeqCst) > ticket.pos;
        let is_fenced = (holds(Rule::Incarnation) && ticket.inc != *inc)
            || (holds(Rule::Removed) && self.stripe.removed.load(SeqCst) > ticket.pos)
            || markers.fences(namespace, tags, ticket.pos)
            || markers.fences_name(name, ticket.pos)
            || match kind {
                EntryKind::Load => holds(Rule::SetFencesLoad) && set_after,
                EntryKind::Set => holds(Rule::SetFencesSet) && set_after && !meets_set,
            };
        if is_fenced {
            return None;
        }
        Some(match kind {
            EntryKind::Load => pos.load(SeqCst),
            EntryKind::Set => {
                let seen = self.fences.next();
                self.stripe.set.store(seen, SeqCst);
                seen
            }
        })
    }
}

impl Markers {
    /// Invalidates a tag or a namespace at `pos`.
    pub(crate) fn mark(&mut self, namespace: &Namespace, mark: &Mark, pos: u64) {
        let of_namespace = self.namespaces.entry(namespace.clone()).or_default();
        match mark {
            Mark::Tag(tag) => {
                if of_namespace.tags.insert(tag.clone(), pos).is_none() {
                    self.count += 1;
                }
            }
            Mark::Clear => {
                of_namespace.clear = pos;
                // What was tagged before is invalid by the clear already.
                let covered = std::mem::take(&mut of_namespace.tags).len();
                self.count -= covered;
            }
        }
        self.prune(pos);
    }

    /// Refuses writes in the namespace that began before `pos`.
    pub(crate) fn raise_floor(&mut self, namespace: &Namespace, pos: u64) {
        self.namespaces.entry(namespace.clone()).or_default().floor = pos;
        self.prune(pos);
    }

    pub(crate) fn fences(&self, namespace: &Namespace, tags: &Tags, ticket_pos: u64) -> bool {
        self.invalid(namespace, tags, ticket_pos).is_some()
            || (holds(Rule::Floor) && self.namespaces.get(namespace).is_some_and(|of| of.floor > ticket_pos))
    }

    pub(crate) fn invalid(&self, namespace: &Namespace, tags: &Tags, seen: u64) -> Option<Miss> {
        if self.clear > seen {
            return Some(Miss::Cleared);
        }
        let of_namespace = self.namespaces.get(namespace)?;
        if holds(Rule::Clear) && of_namespace.clear > seen {
            return Some(Miss::Cleared);
        }
        let is_removed = |tag| holds(Rule::Tag) && of_namespace.tags.get(tag).is_some_and(|&pos| pos > seen);
        tags.iter().any(is_removed).then_some(Miss::Tag)
    }

    fn is_named(&self, name: Option<u64>, seen: u64) -> bool {
        let removed_at = |name| self.names.get(&name).copied().unwrap_or(0);
        holds(Rule::ForeignRemoves) && name.is_some_and(|name| removed_at(name) > seen)
    }

    fn fences_name(&self, name: Option<u64>, ticket_pos: u64) -> bool {
        self.is_named(name, ticket_pos) || (name.is_some() && self.names_floor > ticket_pos)
    }

    /// What it takes to make the same markers again: calls of `tell` with a namespace (`None`: all) and what
    /// was marked in it, in an order that [`restore`](Self::restore) takes.
    #[cfg(all(feature = "files", unix))]
    pub(crate) fn describe(&self, mut tell: impl FnMut(Option<&Namespace>, Marker<'_>, u64)) {
        tell(None, Marker::Clear, self.clear);
        for (namespace, of) in &self.namespaces {
            tell(Some(namespace), Marker::Clear, of.clear);
            tell(Some(namespace), Marker::Floor, of.floor);
            of.tags.iter().for_each(|(tag, pos)| tell(Some(namespace), Marker::Tag(tag), *pos));
        }
    }

    /// Takes one piece of what [`describe`](Self::describe) told; it is not pruned.
    #[cfg(all(feature = "files", unix))]
    pub(crate) fn restore(&mut self, namespace: Option<Namespace>, marker: Marker<'_>, pos: u64) {
        let Some(namespace) = namespace else {
            self.clear = pos;
            return;
        };
        let of = self.namespaces.entry(namespace).or_default();
        match marker {
            Marker::Clear => of.clear = pos,
            Marker::Floor => of.floor = pos,
            Marker::Tag(tag) => self.count += usize::from(of.tags.insert(tag.into(), pos).is_none()),
        }
    }

    fn prune(&mut self, pos: u64) {
        if self.namespaces.len() > NAMESPACES_MAX {
            // Everything written so far is invalid, so nothing has to be remembered of any of them.
            (self.clear, self.count) = (pos, 0);
            self.namespaces.clear();
        }
        if self.count <= MARKERS_MAX {
            return;
        }
        let mut positions: Vec<u64> =
            self.namespaces.values().flat_map(|of| of.tags.values().copied()).collect();
        let (_, &mut dropped, _) = positions.select_nth_unstable(MARKERS_MAX / 2);
        for of_namespace in self.namespaces.values_mut() {
            of_namespace.tags.retain(|_, pos| *pos > dropped);
        }
        self.count = self.namespaces.values().map(|of| of.tags.len()).sum();
        self.clear = self.clear.max(dropped);
    }
}

#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn admit(fences: &Fences, hash: u64, ticket: Ticket, kind: EntryKind, tags: &[&str]) -> Option<u64> {
        fences.lock(hash).admit(&namespace(), ticket, kind, &Tags::new(tags).unwrap(), false)
    }

    fn namespace() -> Namespace {
        Namespace::new("n").unwrap()
    }

    #[test]
    fn a_load_loses_to_a_removal_and_to_a_set_that_came_after_its_ticket() {
        let fences = Fences::new(1);
        let before = fences.ticket();
        fences.lock(5).remove();
        assert!(admit(&fences, 5, before, EntryKind::Load, &[]).is_none());
        assert!(admit(&fences, 6, before, EntryKind::Load, &[]).is_some());
        let before = fences.ticket();
        assert!(admit(&fences, 5, before, EntryKind::Set, &[]).is_some());
        assert!(admit(&fences, 5, before, EntryKind::Load, &[]).is_none());
        assert!(admit(&fences, 5, fences.ticket(), EntryKind::Load, &[]).is_some());
    }

    #[test]
    fn tag_clear_and_floor_refuse_older_tickets_and_only_the_first_two_invalidate() {
        let fences = Fences::new(1);
        let tags = Tags::new(["red"]).unwrap();
        let before = fences.ticket();
        fences.mark(&namespace(), &Mark::Tag("red".into()));
        assert!(admit(&fences, 5, before, EntryKind::Load, &["red"]).is_none());
        assert!(admit(&fences, 5, before, EntryKind::Load, &["blue"]).is_some());
        assert_eq!(fences.invalid(&namespace(), &tags, before.pos), Some(Miss::Tag));
        let before = fences.ticket();
        fences.raise_floor(&namespace());
        assert!(admit(&fences, 5, before, EntryKind::Load, &[]).is_none());
        assert_eq!(fences.invalid(&namespace(), &Tags::NONE, before.pos), None);
        let before = fences.ticket();
        fences.mark(&namespace(), &Mark::Clear);
        assert!(admit(&fences, 5, before, EntryKind::Load, &[]).is_none());
        assert_eq!(fences.invalid(&namespace(), &Tags::NONE, before.pos), Some(Miss::Cleared));
        let other = Namespace::new("other").unwrap();
        assert_eq!(fences.invalid(&other, &tags, 1), None);
    }

    #[test]
    fn a_ticket_of_another_incarnation_is_refused() {
        let fences = Fences::new(1);
        let foreign = Ticket { inc: 2, pos: u64::MAX };
        assert!(admit(&fences, 5, foreign, EntryKind::Load, &[]).is_none());
    }

    #[test]
    fn too_many_cleared_namespaces_clear_everything_and_are_forgotten() {
        let fences = Fences::new(1);
        let before = fences.ticket();
        for i in 0..=NAMESPACES_MAX {
            fences.raise_floor(&Namespace::new(&format!("n{i}")).unwrap());
        }
        assert_eq!(fences.invalid(&namespace(), &Tags::NONE, before.pos), Some(Miss::Cleared));
        assert!(fences.marker_pos() > before.pos, "an L1 hit has to notice");
        assert!(fences.markers.read().namespaces.is_empty());
    }

    #[test]
    fn pruned_markers_invalidate_what_they_covered() {
        let fences = Fences::new(1);
        let before = fences.ticket();
        for i in 0..=MARKERS_MAX {
            fences.mark(&namespace(), &Mark::Tag(format!("t{i}").into()));
        }
        assert_eq!(fences.invalid(&namespace(), &Tags::NONE, before.pos), Some(Miss::Cleared));
        let newest = Tags::new([format!("t{MARKERS_MAX}")]).unwrap();
        assert_eq!(fences.invalid(&namespace(), &Tags::NONE, fences.ticket().pos), None);
        assert!(fences.tags_moved(&namespace(), &newest, Ticket { inc: 1, pos: fences.ticket().pos - 1 }));
        assert!(fences.markers.read().count <= MARKERS_MAX);
    }
}
