//! How far the tiers above the authority had heard of its log when a process ended: kept in those tiers themselves.
//!
//! A cursor is written after what it covers was removed from the tier, into the same store, and only when every write
//! of this process that it may cover has ended. So it is never ahead of the data. A cursor that was lost, evicted or
//! damaged costs the tier's entries, and no more.

use crate::backend::Ticket;
use crate::error::Result;
use crate::key::{EntryKey, Namespace};
use crate::rules::{Rule, holds};
use std::sync::Weak;

/// Where cursors are kept.
const NAMESPACE: &str = "larder.cursors";

/// The key of a namespace's cursors into the log of the authority.
pub(crate) fn cursor_key(namespace: &Namespace, authority: &str) -> Result<EntryKey> {
    EntryKey::new(&Namespace::new(NAMESPACE)?, &("cursors", authority, namespace.as_str()))
}

/// Where namespaces stand: a position for each of their stores.
type Stands = Vec<(Namespace, Vec<Ticket>)>;

/// What is to be kept once everything that may have been under way has ended.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    waiting: Option<(Weak<()>, Stands)>,
    last: Stands,
}

impl Kept {
    /// What may be written now. `stands` is taken for later, with a new epoch of writes that begins now.
    pub(crate) fn due(
        &mut self,
        stands: impl FnOnce() -> Stands,
        next_epoch: impl FnOnce() -> Weak<()>,
    ) -> Stands {
        let may_write = |epoch: &Weak<()>| epoch.strong_count() == 0 || !holds(Rule::CursorFollowsData);
        let due = match self.waiting.take() {
            Some((epoch, kept)) if !may_write(&epoch) => {
                self.waiting = Some((epoch, kept));
                return Vec::new();
            }
            Some((_, kept)) => {
                let changed = kept.iter().filter(|one| !self.last.contains(one)).cloned().collect();
                self.last = kept;
                changed
            }
            None => Vec::new(),
        };
        let stands = stands();
        if stands != self.last {
            self.waiting = Some((next_epoch(), stands));
        }
        due
    }

    /// Not written after all.
    pub(crate) fn failed(&mut self, namespace: &Namespace) {
        self.last.retain(|(kept, _)| kept != namespace);
    }
}
