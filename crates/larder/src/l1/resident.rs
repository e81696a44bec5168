//! An entry in L1: the value, its times on the monotonic clock, and what a hit records.

use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, Meta};
use crate::options::EntryOptions;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// A value in L1. Times are monotonic milliseconds, so that no jump of the wall clock moves them.
///
/// The atomics are not shuttle's: none of them decides whether an entry is valid, except `checked`, which
/// only ever holds a position that its entry was found valid at.
#[derive(Debug)]
pub(crate) struct Resident<V> {
    /// `None`: a remembered absence.
    pub(crate) value: Option<V>,
    pub(crate) meta: Meta,
    /// The position it is valid from.
    pub(crate) seen: u64,
    /// The position up to which it was found valid.
    pub(crate) checked: AtomicU64,
    /// Before this moment a hit has nothing to decide.
    plain_until: AtomicU64,
    fresh_until: AtomicU64,
    /// Lengths after `fresh_until`.
    revalidate_ms: u64,
    gone_ms: u64,
    /// TTL when written; what a sliding hit starts again.
    ttl_ms: u64,
    is_sliding: bool,
    /// After a failed load: no new one before this moment.
    retry_at: AtomicU64,
    /// When last read, in units of 1.024 s of the monotonic clock.
    accessed: AtomicU32,
    accesses: AtomicU32,
    /// Which tier it came from: 0 for a load or set of this process, else the tier's position from 1.
    pub(crate) from_tier: u8,
    pub(crate) weight: u64,
}

/// What a read may do with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    Fresh,
    /// Fresh, and a refresh in the background is due.
    RefreshDue,
    /// Past its TTL: may be served while a refresh runs.
    Revalidate,
    /// May be served when a load fails or is late.
    OnError,
    /// May be served, and no load is to be tried yet: the last one failed a moment ago.
    Throttled,
    /// Physically expired.
    Gone,
}

/// Up to this count accesses are exact; above, ever fewer are counted, each for more.
const EXACT_ACCESSES: u32 = 256;

impl<V> Resident<V> {
    /// `wall_ms` and `mono_ms` are one moment, now.
    pub(crate) fn new(
        value: Option<V>,
        meta: Meta,
        seen: u64,
        options: &EntryOptions,
        (wall_ms, mono_ms): (u64, u64),
        weight: u64,
        from_tier: u8,
    ) -> Self {
        // An entry is never kept longer than it was meant to live, however far the wall clock went back.
        let ttl_ms = meta.fresh_until_ms.saturating_sub(meta.created_ms);
        let left_ms = meta.fresh_until_ms.saturating_sub(wall_ms).min(ttl_ms);
        let overdue_ms = wall_ms.saturating_sub(meta.fresh_until_ms);
        let after_fresh = |until_ms: u64| match until_ms {
            NEVER_MS => NEVER_MS,
            _ => until_ms.saturating_sub(meta.fresh_until_ms),
        };
        let fresh_until = match meta.fresh_until_ms {
            NEVER_MS => NEVER_MS,
            _ => (mono_ms.saturating_add(left_ms)).saturating_sub(overdue_ms),
        };
        let mut plain_until = fresh_until;
        if let Some(share) = options.refresh_after {
            plain_until = plain_until.min(threshold(fresh_until, ttl_ms, share));
        }
        if let Some(beta) = options.early_refresh_beta {
            // -ln(u) exceeds 32 with a probability of 1e-14.
            let earliest = (f64::from(meta.load_ms) * beta * 32.0).ceil() as u64;
            plain_until = plain_until.min(fresh_until.saturating_sub(earliest));
        }
        if options.is_sliding {
            plain_until = 0;
        }
        Resident {
            revalidate_ms: after_fresh(meta.revalidate_until_ms),
            gone_ms: after_fresh(meta.gone_at_ms),
            value,
            meta,
            seen,
            checked: AtomicU64::new(seen),
            plain_until: AtomicU64::new(plain_until),
            fresh_until: AtomicU64::new(fresh_until),
            ttl_ms,
            is_sliding: options.is_sliding,
            retry_at: AtomicU64::new(0),
            accessed: AtomicU32::new((mono_ms >> 10) as u32),
            accesses: AtomicU32::new(0),
            from_tier,
            weight,
        }
    }

    /// Whether it is fresh and nothing else is to be decided.
    #[inline]
    pub(crate) fn is_plain(&self, now_ms: u64) -> bool {
        now_ms < self.plain_until.load(Relaxed)
    }

    /// What may be done with it at `now_ms`. A sliding entry that is fresh starts its TTL again.
    pub(crate) fn freshness(&self, now_ms: u64, options: &EntryOptions) -> Freshness {
        let fresh_until = self.fresh_until.load(Relaxed);
        if now_ms < fresh_until {
            if self.is_sliding {
                self.fresh_until.store(now_ms.saturating_add(self.ttl_ms), Relaxed);
                return Freshness::Fresh;
            }
            let is_due = options
                .refresh_after
                .is_some_and(|share| now_ms >= threshold(fresh_until, self.ttl_ms, share))
                || options.early_refresh_beta.is_some_and(|beta| {
                    let early_ms = f64::from(self.meta.load_ms) * beta * -(1.0 - fastrand::f64()).ln();
                    now_ms as f64 + early_ms >= fresh_until as f64
                });
            return match is_due && now_ms >= self.retry_at.load(Relaxed) {
                true => Freshness::RefreshDue,
                false => Freshness::Fresh,
            };
        }
        if now_ms >= fresh_until.saturating_add(self.gone_ms) {
            Freshness::Gone
        } else if now_ms < self.retry_at.load(Relaxed) {
            Freshness::Throttled
        } else if now_ms < fresh_until.saturating_add(self.revalidate_ms) {
            Freshness::Revalidate
        } else {
            Freshness::OnError
        }
    }

    /// Serves it without another load until `retry_at_ms`, because the last load failed.
    pub(crate) fn throttle(&self, retry_at_ms: u64) {
        self.retry_at.fetch_max(retry_at_ms, Relaxed);
    }

    /// How long it stays fresh; `None` is for ever.
    pub(crate) fn fresh_ms_left(&self, now_ms: u64) -> Option<u64> {
        match self.fresh_until.load(Relaxed) {
            NEVER_MS => None,
            until => Some(until.saturating_sub(now_ms)),
        }
    }

    /// How long until it is physically gone; `None` is never.
    pub(crate) fn gone_ms_left(&self, now_ms: u64) -> Option<u64> {
        match self.fresh_until.load(Relaxed).saturating_add(self.gone_ms) {
            NEVER_MS => None,
            at => Some(at.saturating_sub(now_ms)),
        }
    }

    pub(crate) fn is_gone(&self, now_ms: u64) -> bool {
        let fresh_until = self.fresh_until.load(Relaxed);
        now_ms >= fresh_until.saturating_add(self.gone_ms)
    }

    /// Records an access. Hot entries are rarely written: their count grows in larger steps that are taken
    /// with a smaller probability (Morris, "Counting Large Numbers of Events in Small Registers", 1978).
    #[inline]
    pub(crate) fn touch(&self, now_ms: u64) {
        let moment = (now_ms >> 10) as u32;
        if self.accessed.load(Relaxed) != moment {
            self.accessed.store(moment, Relaxed);
        }
        let count = self.accesses.load(Relaxed);
        if count < EXACT_ACCESSES {
            self.accesses.store(count + 1, Relaxed);
        } else {
            let step = 1 << (count / EXACT_ACCESSES).ilog2().min(16);
            if fastrand::u32(..) & (step * 2 - 1) == 0 {
                self.accesses.store(count.saturating_add(step * 2), Relaxed);
            }
        }
    }

    /// How often it was read; above 256 an estimate with a standard error of about 6 %.
    pub(crate) fn accesses(&self) -> u32 {
        self.accesses.load(Relaxed)
    }

    /// Milliseconds since it was last read or written, to about a second.
    pub(crate) fn idle_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(u64::from(self.accessed.load(Relaxed)) << 10)
    }

    pub(crate) fn is_set(&self) -> bool {
        self.meta.kind == EntryKind::Set
    }
}

fn threshold(fresh_until_ms: u64, ttl_ms: u64, share: f64) -> u64 {
    fresh_until_ms.saturating_sub(ttl_ms.saturating_sub((ttl_ms as f64 * share).round() as u64))
}
