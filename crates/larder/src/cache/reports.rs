//! Reports about entries, and the removal of what was reported bad too often in a row.
//!
//! The lowest tier that can keeps them, with the entry's life. What it can't be told of, because it is not
//! there, fails or hasn't the entry, counts in memory, so that a bad entry goes all the same.

use super::{Cache, Key, Shared, Value};
use crate::error::{Error, ErrorKind, Result};
use crate::l1::{EvictReason, Slot, Space};
use crate::report::{Page, Past, Query, Report, Reported};
use crate::sync::Mutex;
use crate::tier::Tier;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Most keys whose bad reports are counted in memory, some hundred kilobytes beside the keys.
const STREAKS_MAX: usize = 10_000;

impl<K: Key, V: Value> Cache<K, V> {
    /// Reports how an entry fared in use. After [`evict_after_bad`](super::Builder::evict_after_bad) bad
    /// reports in a row it is removed from every tier, as by [`remove`](Self::remove): a load that began
    /// before will not put it back. A good one begins the count anew. Overwriting the entry does not: a feed
    /// that is read again makes nothing healthy.
    ///
    /// The lowest tier that keeps reports (SQLite, memory) has the last
    /// [`REPORTS_KEPT`](crate::report::REPORTS_KEPT) of them until the entry is removed, evicted or expired
    /// there. Without one, or while it fails, only the bad ones in a row are counted, in memory, for at most
    /// 10,000 keys; past that, those with few are forgotten first.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] for a source that is too long; [`Key`](ErrorKind::Key) when the key can't be
    /// encoded; [`Closed`](ErrorKind::Closed). A tier that fails is no error.
    ///
    /// # Cancellation
    /// With tiers, a report that was polled once goes on to its end. Without, it never waits.
    pub async fn report<Q>(&self, key: &Q, report: Report) -> Result<Reported>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        report.check()?;
        let this = &*self.view()?;
        this.open()?;
        let (shared, space, key) = (Arc::clone(&this.shared), Arc::clone(&this.space), key.to_owned());
        let has_tiers = !shared.tiers.is_empty();
        let reported = async move { shared.report(&space, key, &report).await };
        if has_tiers { this.run_to_end(reported).await? } else { reported.await }
    }

    /// The reports about an entry that are kept, the newest first; empty if there is no such entry.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] if no tier keeps them; those of the tier that does.
    pub async fn history<Q>(&self, key: &Q) -> Result<Vec<Past>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let this = &*self.view()?;
        let tier = this.shared.keeper("history")?;
        let key = this.shared.encode(&this.space, &key.to_owned())?.expect("a cache with tiers encodes keys");
        tier.history(&tier.key(&key)).await
    }

    /// Lists the entries of the namespace that were reported on, a page at a time, from the lowest tier that
    /// keeps reports. Each that stays is listed once.
    ///
    /// # Errors
    /// As [`history`](Self::history); [`ErrorKind::Unsupported`] also where the tier has its keys hidden;
    /// [`ErrorKind::Config`] for a limit of 0 or a cursor that is none.
    pub async fn by_health(&self, query: &Query) -> Result<Page> {
        let this = &*self.view()?;
        if query.limit == 0 {
            return Err(
                Error::new(ErrorKind::Config, "by_health").message("limit is 0; at least 1 is allowed")
            );
        }
        let tier = this.shared.keeper("by_health")?;
        if tier.hides_keys() {
            return Err(Error::new(ErrorKind::Unsupported, "by_health")
                .backend(tier.name().to_owned())
                .message("keys are hidden from it, so that it can't name them"));
        }
        tier.standings(&this.space.namespace, query).await
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    async fn report(&self, space: &Space, key: K, report: &Report) -> Result<Reported> {
        let kept = match (self.encode(space, &key)?, self.keeper("report")) {
            (Some(encoded), Ok(tier)) => tier.report(&tier.key(&encoded), report).await,
            (_, Err(error)) => Err(error),
            (None, Ok(_)) => unreachable!("a cache with tiers encodes keys"),
        };
        let in_a_row = match kept {
            Ok(Some(in_a_row)) => {
                self.streaks.forget(space, &key);
                in_a_row
            }
            // Late news of what is gone must not count against what will be loaded in its place.
            Ok(None) if !self.has_in_l1(space, &key) => 0,
            Err(_) if self.tiers.is_empty() && !self.has_in_l1(space, &key) => 0,
            Ok(None) | Err(_) if report.is_bad() => self.streaks.add(space, &key),
            Ok(None) | Err(_) => {
                self.streaks.forget(space, &key);
                0
            }
        };
        let is_evicted = self.evict_after_bad.is_some_and(|most| in_a_row >= most);
        if is_evicted {
            self.evict_everywhere(space, key).await?;
        }
        Ok(Reported { in_a_row, is_evicted })
    }

    async fn evict_everywhere(&self, space: &Space, key: K) -> Result<()> {
        if self.tiers.is_empty() {
            self.remove_in_l1(space, &key, EvictReason::Health);
            return Ok(());
        }
        let mut removed = self.remove_many(space, &[key], EvictReason::Health).await;
        removed.pop().expect("one key, one answer").map(|_| ())
    }

    fn has_in_l1(&self, space: &Space, key: &K) -> bool {
        let mono_ms = self.clock.mono_ms();
        self.l1
            .peek(space, key, mono_ms, |resident| resident.value.is_some() && !resident.is_gone(mono_ms))
            .unwrap_or(false)
    }

    /// The tier that keeps reports: the lowest, which has an entry for longest.
    fn keeper(&self, operation: &'static str) -> Result<&Tier> {
        self.tiers.iter().rev().find(|tier| tier.backend.keeps_reports()).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, operation)
                .message("no tier keeps reports about entries; SQLite and memory do")
        })
    }
}

/// Bad reports in a row of what no tier keeps reports of.
pub(crate) struct Streaks<K> {
    counts: Mutex<HashMap<Slot<K>, u32>>,
    /// Whether anything was ever counted: a removal in a cache without reports takes no lock.
    is_used: AtomicBool,
}

impl<K> Default for Streaks<K> {
    fn default() -> Self {
        Streaks { counts: Mutex::default(), is_used: AtomicBool::new(false) }
    }
}

impl<K: Hash + Eq + Clone> Streaks<K> {
    fn add(&self, space: &Space, key: &K) -> u32 {
        let slot = Slot { space: space.id, key: key.clone() };
        self.is_used.store(true, Relaxed);
        let mut counts = self.counts.lock();
        if counts.len() >= STREAKS_MAX && !counts.contains_key(&slot) {
            counts.retain(|_, count| *count > 1);
            if counts.len() >= STREAKS_MAX {
                counts.clear();
            }
        }
        let count = counts.entry(slot).or_default();
        *count = count.saturating_add(1);
        *count
    }

    pub(crate) fn forget(&self, space: &Space, key: &K) {
        if self.is_used.load(Relaxed) {
            self.counts.lock().remove(&Slot { space: space.id, key: key.clone() });
        }
    }

    /// Forgets a namespace's: some of its entries were removed, and nothing says which.
    pub(crate) fn forget_all(&self, space: &Space) {
        if self.is_used.load(Relaxed) {
            self.counts.lock().retain(|slot, _| slot.space != space.id);
        }
    }
}
