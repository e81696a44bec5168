//! An entry in L1: the value, its times on the monotonic clock, and what a hit records.

use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, Meta, Tags};
use crate::options::EntryOptions;
use crate::stamp::Stamp;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A value in L1. Times are monotonic milliseconds, so that no jump of the wall clock moves them.
///
/// Most entries have a TTL and nothing else; what a few need is boxed, so that the others cost 40 bytes
/// beside their value. The order is that of the declaration: what a hit reads stands together at the end,
/// beside the key, so that it spans fewer cache lines. The atomics are not shuttle's: none of them decides
/// whether an entry is valid, except the position in `validity`, which only ever is one that its entry was
/// found valid at. Readers write both words by a load and a store: what is lost is an access, or the
/// knowledge of a later position, which is then looked up again.
#[repr(C)]
pub(crate) struct Resident<V> {
    details: Option<Box<Details>>,
    stamp_time: u64,
    stamp_node: u32,
    pub(crate) kind: EntryKind,
    /// Which tier it came from: 0 for a load or set of this process, else the tier's position from 1.
    pub(crate) from_tier: u8,
    /// Above: the moment before which a hit has nothing to decide; without details, the end of freshness and
    /// the end of the entry. In the low [`MOMENT_BITS`]: when it was last read, in units of 1.024 s.
    times: AtomicU64,
    /// Above: the position up to which it was found valid, where it was written or a later marker's. In the
    /// low [`ACCESSES_BITS`]: how often it was read, in the code of [`Resident::touch`].
    validity: AtomicU64,
    /// `None`: a remembered absence.
    pub(crate) value: Option<V>,
}

/// 198 days of units of 1.024 s, of which half tell how long ago it was: idle for longer than 99 days is told
/// as less.
const MOMENT_BITS: u32 = 24;
/// The rest has 40 bits, which are 34 years of milliseconds; all ones stand for never. What ends later has
/// its end in its details.
const PLAIN_NEVER: u64 = u64::MAX >> MOMENT_BITS;
const ACCESSES_BITS: u32 = 16;
/// The rest has 48 bits, which are 9 years at a million sets a second; later positions are never reached,
/// and the entry of one is a miss.
const CHECKED_MAX: u64 = u64::MAX >> ACCESSES_BITS;

/// What only some entries have.
struct Details {
    fresh_until: AtomicU64,
    /// Lengths after `fresh_until`.
    revalidate_ms: u64,
    gone_ms: u64,
    /// TTL when written; what a sliding hit starts again.
    ttl_ms: u64,
    is_sliding: bool,
    load_ms: u32,
    /// After a failed load: no new one before this moment.
    retry_at: AtomicU64,
    tags: Tags,
    provenance: Option<Provenance>,
}

/// What has to be known of an entry whose key other nodes may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Provenance {
    /// The hash of the name by which the shared tier knows its key.
    pub(crate) name: u64,
    /// When it was known not to be outdated, on the monotonic clock.
    pub(crate) known_ms: u64,
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

/// One moment on both clocks, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) wall_ms: u64,
    pub(crate) mono_ms: u64,
}

/// Up to this count accesses are exact; above, ever fewer are counted, each for more.
const EXACT_ACCESSES: u16 = 256;
/// Codes for each doubling of the count above that.
const CODES_PER_DOUBLING: u16 = 128;
/// The code of the highest count, 2^32 and a little less.
const ACCESSES_MAX: u16 = EXACT_ACCESSES + 24 * CODES_PER_DOUBLING - 1;
/// `-ln(u)` exceeds this with a probability of 1e-14: before, no early refresh is drawn.
const XFETCH_REACH: f64 = 32.0;

impl<V> Resident<V> {
    /// `checked`: the position it is valid from.
    pub(crate) fn new(
        value: Option<V>,
        meta: &Meta,
        checked: u64,
        options: &EntryOptions,
        now: Now,
        from_tier: u8,
        provenance: Option<Provenance>,
    ) -> Self {
        // An entry is never kept longer than it was meant to live, however far the wall clock went back.
        let monotonic = |until_ms: u64| {
            let left_ms = until_ms.saturating_sub(now.wall_ms).min(until_ms.saturating_sub(meta.created_ms));
            match until_ms {
                NEVER_MS => NEVER_MS,
                _ => now.mono_ms.saturating_add(left_ms).saturating_sub(now.wall_ms.saturating_sub(until_ms)),
            }
        };
        let ttl_ms = meta.fresh_until_ms.saturating_sub(meta.created_ms);
        let fresh_until = monotonic(meta.fresh_until_ms);
        // Each end by itself: in a process that is younger than the entry, what is long past saturates at 0.
        let after_fresh = |until_ms: u64| match monotonic(until_ms) {
            NEVER_MS => NEVER_MS,
            until => until.saturating_sub(fresh_until),
        };
        let has_details = !meta.tags.is_empty()
            || meta.gone_at_ms != meta.fresh_until_ms
            || options.is_sliding
            || options.refresh_after.is_some()
            || options.early_refresh_beta.is_some()
            || provenance.is_some()
            || fresh_until != NEVER_MS && fresh_until >= PLAIN_NEVER;
        let details = has_details.then(|| {
            Box::new(Details {
                fresh_until: AtomicU64::new(fresh_until),
                revalidate_ms: after_fresh(meta.revalidate_until_ms),
                gone_ms: after_fresh(meta.gone_at_ms),
                ttl_ms,
                is_sliding: options.is_sliding,
                load_ms: meta.load_ms,
                retry_at: AtomicU64::new(0),
                tags: meta.tags.clone(),
                provenance,
            })
        });
        let (stamp_time, stamp_node) = meta.stamp.parts();
        Resident {
            details,
            stamp_time,
            stamp_node,
            kind: meta.kind,
            from_tier,
            times: AtomicU64::new(
                plain_until(fresh_until, ttl_ms, meta.load_ms, options).min(PLAIN_NEVER) << MOMENT_BITS
                    | moment(now.mono_ms),
            ),
            validity: AtomicU64::new(checked.min(CHECKED_MAX) << ACCESSES_BITS),
            value,
        }
    }

    /// The end that a plain hit compares with. A clock past 34 years finds never in the past, and asks
    /// [`freshness`](Self::freshness), which knows better.
    #[inline]
    fn plain_until(&self) -> u64 {
        self.times.load(Relaxed) >> MOMENT_BITS
    }

    /// The position up to which it was found valid.
    #[inline]
    pub(crate) fn checked(&self) -> u64 {
        self.validity.load(Relaxed) >> ACCESSES_BITS
    }

    /// Remembers that it was found valid at a later position.
    pub(crate) fn set_checked(&self, pos: u64) {
        let word = self.validity.load(Relaxed);
        if pos > word >> ACCESSES_BITS {
            let accesses = word & ((1 << ACCESSES_BITS) - 1);
            self.validity.store(pos.min(CHECKED_MAX) << ACCESSES_BITS | accesses, Relaxed);
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp::from_parts(self.stamp_time, self.stamp_node)
    }

    pub(crate) fn tags(&self) -> &Tags {
        const NONE: &Tags = &Tags::NONE;
        self.details.as_ref().map_or(NONE, |details| &details.tags)
    }

    /// What is known of it in a cache that hears of other nodes.
    pub(crate) fn provenance(&self) -> Option<Provenance> {
        self.details.as_ref()?.provenance
    }

    /// What may be done with it at `now_ms`. A sliding entry that is fresh starts its TTL again.
    pub(crate) fn freshness(&self, now_ms: u64, options: &EntryOptions) -> Freshness {
        let Some(details) = &self.details else {
            return if now_ms < self.fresh_until() { Freshness::Fresh } else { Freshness::Gone };
        };
        let fresh_until = details.fresh_until.load(Relaxed);
        let may_load = now_ms >= details.retry_at.load(Relaxed);
        if now_ms < fresh_until {
            if details.is_sliding {
                details.fresh_until.store(now_ms.saturating_add(details.ttl_ms), Relaxed);
                return Freshness::Fresh;
            }
            let is_due = may_load && details.refresh_is_due(now_ms, fresh_until, options);
            return if is_due { Freshness::RefreshDue } else { Freshness::Fresh };
        }
        if now_ms >= fresh_until.saturating_add(details.gone_ms) {
            Freshness::Gone
        } else if !may_load {
            Freshness::Throttled
        } else if now_ms < fresh_until.saturating_add(details.revalidate_ms) {
            Freshness::Revalidate
        } else {
            Freshness::OnError
        }
    }

    /// Serves it without another load until `retry_at_ms`, because the last load failed.
    pub(crate) fn throttle(&self, retry_at_ms: u64) {
        if let Some(details) = &self.details {
            details.retry_at.fetch_max(retry_at_ms, Relaxed);
        }
    }

    /// How long it stays fresh; `None` is for ever.
    pub(crate) fn fresh_ms_left(&self, now_ms: u64) -> Option<u64> {
        left(self.fresh_until(), now_ms)
    }

    /// How long until it is physically gone; `None` is never.
    pub(crate) fn gone_ms_left(&self, now_ms: u64) -> Option<u64> {
        left(self.gone_at(), now_ms)
    }

    pub(crate) fn is_gone(&self, now_ms: u64) -> bool {
        self.gone_ms_left(now_ms) == Some(0)
    }

    /// When it is gone for certain: a sliding entry has no such moment.
    pub(crate) fn expires_at_ms(&self) -> u64 {
        match &self.details {
            Some(details) if details.is_sliding => NEVER_MS,
            _ => self.gone_at(),
        }
    }

    /// Its metadata as a tier would keep it.
    pub(crate) fn meta(&self, now: Now) -> Meta {
        let on_wall = |at_ms: u64| match at_ms {
            NEVER_MS => NEVER_MS,
            _ => (now.wall_ms.saturating_add(at_ms)).saturating_sub(now.mono_ms),
        };
        let fresh_until = self.fresh_until();
        let details = self.details.as_ref();
        let revalidate_ms = details.map_or(0, |details| details.revalidate_ms);
        Meta {
            kind: self.kind,
            stamp: self.stamp(),
            created_ms: self.stamp().wall_ms(),
            fresh_until_ms: on_wall(fresh_until),
            revalidate_until_ms: on_wall(fresh_until.saturating_add(revalidate_ms)),
            gone_at_ms: on_wall(self.gone_at()),
            load_ms: details.map_or(0, |details| details.load_ms),
            is_negative: self.value.is_none(),
            tags: self.tags().clone(),
        }
    }

    /// Records an access. Hot entries are rarely written: their count grows in larger steps that are taken
    /// with a smaller probability (Morris, "Counting Large Numbers of Events in Small Registers", 1978).
    ///
    /// `turn` differs from access to access, and is mixed here: a count that the caller has at hand does, and
    /// saves the generator of random numbers. Where it stands still for once, the time moves the draw.
    pub(crate) fn touch(&self, now_ms: u64, turn: impl FnOnce() -> u64) {
        self.touch_words(self.times.load(Relaxed), self.validity.load(Relaxed), now_ms, turn);
    }

    /// Whether it is fresh with nothing else to decide, and no marker came after it was found valid; then it
    /// also records the access. One look at each word.
    #[inline]
    pub(crate) fn plain_hit(&self, now_ms: u64, marker_pos: u64, turn: impl FnOnce() -> u64) -> bool {
        let (times, validity) = (self.times.load(Relaxed), self.validity.load(Relaxed));
        let is_plain = now_ms < times >> MOMENT_BITS && validity >> ACCESSES_BITS >= marker_pos;
        if is_plain {
            self.touch_words(times, validity, now_ms, turn);
        }
        is_plain
    }

    #[inline]
    fn touch_words(&self, times: u64, validity: u64, now_ms: u64, turn: impl FnOnce() -> u64) {
        let touched = times >> MOMENT_BITS << MOMENT_BITS | moment(now_ms);
        if times != touched {
            self.times.store(touched, Relaxed);
        }
        let code = validity as u16;
        let is_counted = code < EXACT_ACCESSES || {
            let mixed = turn().wrapping_add(now_ms << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let drawn = (mixed ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 32;
            drawn as u32 & (step(code) - 1) == 0 && code < ACCESSES_MAX
        };
        if is_counted {
            self.validity.store(validity + 1, Relaxed);
        }
    }

    /// How often it was read; above 256 an estimate with a standard error of about 6 %.
    pub(crate) fn accesses(&self) -> u32 {
        match self.validity.load(Relaxed) as u16 {
            code if code < EXACT_ACCESSES => u32::from(code),
            code => {
                let into = u32::from(code % CODES_PER_DOUBLING);
                (u32::from(CODES_PER_DOUBLING) + into) * step(code)
            }
        }
    }

    /// Milliseconds since it was last read or written, to about a second.
    pub(crate) fn idle_ms(&self, now_ms: u64) -> u64 {
        let units = moment(now_ms).wrapping_sub(self.times.load(Relaxed)) & ((1 << MOMENT_BITS) - 1);
        // More than half of what can be told apart: it was read after `now_ms` was taken.
        if units >> (MOMENT_BITS - 1) == 0 { (units << 10) + (now_ms & 1023) } else { 0 }
    }

    fn fresh_until(&self) -> u64 {
        match &self.details {
            Some(details) => details.fresh_until.load(Relaxed),
            None => match self.plain_until() {
                PLAIN_NEVER => NEVER_MS,
                until => until,
            },
        }
    }

    fn gone_at(&self) -> u64 {
        self.fresh_until().saturating_add(self.details.as_ref().map_or(0, |details| details.gone_ms))
    }
}

impl Details {
    fn refresh_is_due(&self, now_ms: u64, fresh_until: u64, options: &EntryOptions) -> bool {
        let is_old = |share| now_ms >= threshold(fresh_until, self.ttl_ms, share);
        let is_drawn = |beta: f64| {
            let early_ms = f64::from(self.load_ms) * beta * -(1.0 - fastrand::f64()).ln();
            now_ms as f64 + early_ms >= fresh_until as f64
        };
        options.refresh_after.is_some_and(is_old) || options.early_refresh_beta.is_some_and(is_drawn)
    }
}

#[inline]
fn moment(now_ms: u64) -> u64 {
    now_ms >> 10 & ((1 << MOMENT_BITS) - 1)
}

/// How many accesses the next code stands for, above the exact ones.
#[inline]
fn step(code: u16) -> u32 {
    1 << ((code / CODES_PER_DOUBLING).wrapping_sub(1) & 31)
}

fn plain_until(fresh_until: u64, ttl_ms: u64, load_ms: u32, options: &EntryOptions) -> u64 {
    if options.is_sliding {
        return 0;
    }
    let mut until = fresh_until;
    if let Some(share) = options.refresh_after {
        until = until.min(threshold(fresh_until, ttl_ms, share));
    }
    if let Some(beta) = options.early_refresh_beta {
        until =
            until.min(fresh_until.saturating_sub((f64::from(load_ms) * beta * XFETCH_REACH).ceil() as u64));
    }
    until
}

/// When `share` of the TTL is gone.
fn threshold(fresh_until_ms: u64, ttl_ms: u64, share: f64) -> u64 {
    fresh_until_ms.saturating_sub(ttl_ms.saturating_sub((ttl_ms as f64 * share).round() as u64))
}

fn left(at_ms: u64, now_ms: u64) -> Option<u64> {
    (at_ms != NEVER_MS).then(|| at_ms.saturating_sub(now_ms))
}

#[cfg(all(test, not(larder_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn an_entry_with_nothing_but_a_ttl_costs_40_bytes_and_its_value() {
        assert_eq!(size_of::<Resident<std::num::NonZeroU64>>(), 40 + 8);
    }

    #[test]
    fn a_process_that_is_younger_than_the_entry_keeps_it_no_longer() {
        let hour = 3_600_000;
        let wall_ms = 100 * hour;
        // Fresh until an hour ago, to be served on errors for one minute more.
        let meta = Meta {
            created_ms: wall_ms - 2 * hour,
            fresh_until_ms: wall_ms - hour,
            revalidate_until_ms: wall_ms - hour,
            gone_at_ms: wall_ms + 60_000,
            ..meta()
        };
        for mono_ms in [5_000, 10 * hour] {
            let resident = Resident::new(
                Some(()),
                &meta,
                1,
                &EntryOptions::default(),
                Now { wall_ms, mono_ms },
                1,
                None,
            );
            assert!(!resident.is_gone(mono_ms + 59_999), "{mono_ms}");
            assert!(resident.is_gone(mono_ms + 60_000), "{mono_ms}");
        }
    }

    #[test]
    fn accesses_are_exact_at_first_and_then_about_right() {
        let now = Now { wall_ms: 0, mono_ms: 1 };
        let resident = Resident::new(Some(()), &meta(), 1, &EntryOptions::default(), now, 0, None);
        (0..256).for_each(|turn| resident.touch(1, || turn));
        assert_eq!(resident.accesses(), 256);
        (256..1_000_000).for_each(|turn| resident.touch(1, || turn));
        let estimate = resident.accesses();
        assert!((700_000..1_300_000).contains(&estimate), "{estimate}");
    }

    fn meta() -> Meta {
        Meta {
            kind: EntryKind::Set,
            stamp: Stamp::MIN,
            created_ms: 0,
            fresh_until_ms: NEVER_MS,
            revalidate_until_ms: NEVER_MS,
            gone_at_ms: NEVER_MS,
            load_ms: 0,
            is_negative: false,
            tags: Tags::NONE,
        }
    }
}
