//! What a cache counts, and how without a counter that all threads write.

use crate::bus::BusStats;
use crate::guard::GuardStats;
use serde::Serialize;
use std::cell::Cell;
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

/// Copies of each counter: one for each of the first threads, which then write it without a locked
/// instruction, and a last one that all others share.
const LANES: usize = 32;
const SHARED_LANE: usize = LANES - 1;

/// Counters of one cache.
#[derive(Debug)]
pub(crate) struct Counters {
    lanes: Box<[Lane; LANES]>,
}

/// Two cache lines, since x86 prefetches lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Lane([AtomicU64; Count::ALL]);

/// What is counted.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub(crate) enum Count {
    Hit,
    HitStale,
    HitNegative,
    Miss,
    Load,
    LoadFailed,
    LoadTimedOut,
    LoadFenced,
    LoadDeclined,
    LoadNotModified,
    LoadAwaited,
    LoadUnlocked,
    Joined,
    Refresh,
    StaleOnError,
    Overloaded,
    Set,
    SetSuperseded,
    SetLocal,
    Removal,
    RemovalQueued,
    EvictedSize,
    EvictedExpired,
    EvictedReplaced,
    EvictedRemoved,
    EvictedInvalidated,
    EvictedTooLarge,
    EvictedHealth,
    WriteBackDropped,
    TenantRefused,
}

impl Count {
    const ALL: usize = Count::TenantRefused as usize + 1;
}

thread_local! {
    /// The thread's lane. Apart from the lease, because what has a destructor is slower to reach.
    static LANE: Cell<usize> = const { Cell::new(NO_LANE) };
    static LEASE: Lease = const { Lease(Cell::new(SHARED_LANE)) };
}

const NO_LANE: usize = usize::MAX;

/// A thread's lane, given back when the thread ends.
struct Lease(Cell<usize>);

/// A bit for each lane that a living thread owns.
static LEASED: AtomicU32 = AtomicU32::new(1 << SHARED_LANE);

#[inline]
fn lane() -> usize {
    match LANE.get() {
        NO_LANE => take_lane(),
        lane => lane,
    }
}

#[cold]
fn take_lane() -> usize {
    // A thread that is ending, and has given its lane back, shares.
    let lane = LEASE.try_with(Lease::take).unwrap_or(SHARED_LANE);
    LANE.set(lane);
    lane
}

impl Lease {
    fn take(&self) -> usize {
        let mut lane = SHARED_LANE;
        // Acquire and release: the counts of the thread that had the lane before are this one's to add to.
        let taken = LEASED.fetch_update(AcqRel, Acquire, |leased| {
            lane = (!leased).trailing_zeros() as usize;
            (lane < SHARED_LANE).then(|| leased | 1 << lane)
        });
        let lane = if taken.is_ok() { lane } else { SHARED_LANE };
        self.0.set(lane);
        lane
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let lane = self.0.get();
        if lane < SHARED_LANE {
            LANE.set(SHARED_LANE);
            LEASED.fetch_and(!(1 << lane), Release);
        }
    }
}

impl Counters {
    pub(crate) fn new() -> Self {
        Counters { lanes: Box::default() }
    }

    #[inline]
    pub(crate) fn add(&self, count: Count) {
        self.mine().add(count);
    }

    /// The calling thread's lane, for a caller that needs it twice.
    #[inline]
    pub(crate) fn mine(&self) -> Mine<'_> {
        // Never above the shared one; the mask tells the compiler.
        let lane = lane() % LANES;
        Mine { lane: &self.lanes[lane], is_shared: lane == SHARED_LANE }
    }

    pub(crate) fn total(&self, count: Count) -> u64 {
        self.lanes.iter().map(|lane| lane.0[count as usize].load(Relaxed)).sum()
    }
}

/// A lane, as the thread sees it that writes it.
#[derive(Clone, Copy)]
pub(crate) struct Mine<'a> {
    lane: &'a Lane,
    is_shared: bool,
}

impl Mine<'_> {
    #[inline]
    pub(crate) fn add(self, count: Count) {
        let counter = &self.lane.0[count as usize];
        if self.is_shared {
            counter.fetch_add(1, Relaxed);
        } else {
            counter.store(counter.load(Relaxed) + 1, Relaxed);
        }
    }

    /// What the lane counted so far.
    #[inline]
    pub(crate) fn count(self, count: Count) -> u64 {
        self.lane.0[count as usize].load(Relaxed)
    }
}

/// A snapshot of what a cache counted since it was built.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Reads that L1 answered with a fresh value.
    pub hits: u64,
    /// Reads that L1 answered with a stale value.
    pub hits_stale: u64,
    /// Reads that L1 answered with a remembered absence.
    pub hits_negative: u64,
    /// Reads that L1 did not answer.
    pub misses: u64,
    /// Loaders run.
    pub loads: u64,
    /// Loaders that returned an error or panicked.
    pub loads_failed: u64,
    /// Loaders dropped at the hard timeout.
    pub loads_timed_out: u64,
    /// Loaded values not stored in L1, because of a removal or set that came after the load began.
    pub loads_fenced: u64,
    /// Loaded values that were not stored because the loader declined or the TTL is 0.
    pub loads_declined: u64,
    /// Loads that were answered "not modified".
    pub loads_not_modified: u64,
    /// Flights that waited for another node's load.
    pub loads_awaited: u64,
    /// Loads without the lease that they should have: the lock failed, or another node had it for too long.
    pub loads_unlocked: u64,
    /// Reads that waited for a load which another one had started.
    pub joined: u64,
    /// Refreshes started in the background.
    pub refreshes: u64,
    /// Stale values served because a load failed or was late.
    pub stale_on_error: u64,
    /// Reads refused at a bound on flights or waiters.
    pub overloaded: u64,
    /// Sets.
    pub sets: u64,
    /// Sets that lost to a later set or to a removal.
    pub sets_superseded: u64,
    /// Sets that a tier could not take, so that they are in memory only.
    pub sets_local: u64,
    /// Removals of keys, tags, patterns and clears.
    pub removals: u64,
    /// Removals that a tier could not take yet.
    pub removals_queued: u64,
    /// Loaded values not written to the tiers because too many writes were under way.
    pub write_backs_dropped: u64,
    /// Calls refused because they had no tenant, or another one than the view or namespace.
    pub tenant_refused: u64,
    /// Entries that left L1, by reason.
    pub evicted: Evicted,
    /// Entries that left L1 to make room in a cache with tiers, which go on having them.
    pub demotions: u64,
    /// Entries in L1 now.
    pub entries: u64,
    /// The weight of L1 now: bytes where a limit in bytes is set, else entries.
    pub weight: u64,
    /// The most that L1 may weigh.
    pub weight_max: u64,
    /// Flights under way now.
    pub flights: u64,
    /// The tiers below L1, top first.
    pub tiers: Vec<TierStats>,
    /// What is known of other nodes; `None` without a tier that they share.
    pub bus: Option<BusStats>,
}

/// Entries that left L1, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Evicted {
    /// To make room.
    pub size: u64,
    /// Past their physical expiry.
    pub expired: u64,
    /// By a newer value of the same key.
    pub replaced: u64,
    /// By key or pattern.
    pub removed: u64,
    /// By a tag or a clear.
    pub invalidated: u64,
    /// Never admitted: heavier than the cache allows.
    pub too_large: u64,
    /// Reported bad too often in a row.
    pub health: u64,
}

/// What a tier below L1 counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TierStats {
    /// The tier's name.
    pub name: String,
    /// Reads that found a usable entry.
    pub hits: u64,
    /// Reads that found none.
    pub misses: u64,
    /// Entries refused on reading, by reason: corrupt, of another type, of an unknown version.
    pub refused: Vec<(String, u64)>,
    /// Entries whose authentication failed under a known key: somebody changed, moved or forged them. Any
    /// other number than 0 deserves an alarm.
    pub tampered: u64,
    /// Entries copied upwards from this tier.
    pub promotions: u64,
    /// Accepted writes.
    pub writes: u64,
    /// Writes refused by a fence or a later stamp.
    pub writes_fenced: u64,
    /// Calls that failed or timed out.
    pub errors: u64,
    /// Reads and writes that passed the tier by while it was set aside.
    pub bypassed: u64,
    /// Removals that wait to be replayed.
    pub undelivered: u64,
    /// Whether it is set aside.
    pub is_aside: bool,
    /// What its guard counted.
    pub guard: GuardStats,
}

impl Counters {
    pub(crate) fn snapshot(&self) -> Stats {
        let total = |count| self.total(count);
        Stats {
            hits: total(Count::Hit),
            hits_stale: total(Count::HitStale),
            hits_negative: total(Count::HitNegative),
            misses: total(Count::Miss),
            loads: total(Count::Load),
            loads_failed: total(Count::LoadFailed),
            loads_timed_out: total(Count::LoadTimedOut),
            loads_fenced: total(Count::LoadFenced),
            loads_declined: total(Count::LoadDeclined),
            loads_not_modified: total(Count::LoadNotModified),
            loads_awaited: total(Count::LoadAwaited),
            loads_unlocked: total(Count::LoadUnlocked),
            joined: total(Count::Joined),
            refreshes: total(Count::Refresh),
            stale_on_error: total(Count::StaleOnError),
            overloaded: total(Count::Overloaded),
            sets: total(Count::Set),
            sets_superseded: total(Count::SetSuperseded),
            sets_local: total(Count::SetLocal),
            removals: total(Count::Removal),
            removals_queued: total(Count::RemovalQueued),
            write_backs_dropped: total(Count::WriteBackDropped),
            tenant_refused: total(Count::TenantRefused),
            evicted: Evicted {
                size: total(Count::EvictedSize),
                expired: total(Count::EvictedExpired),
                replaced: total(Count::EvictedReplaced),
                removed: total(Count::EvictedRemoved),
                invalidated: total(Count::EvictedInvalidated),
                too_large: total(Count::EvictedTooLarge),
                health: total(Count::EvictedHealth),
            },
            ..Stats::default()
        }
    }
}

#[cfg(all(test, not(larder_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_threads_add_up() {
        let counters = Counters::new();
        // More at once than there are lanes, and twice, so that lanes are handed on.
        for _ in 0..2 {
            let all_began = std::sync::Barrier::new(LANES + 8);
            std::thread::scope(|scope| {
                for _ in 0..LANES + 8 {
                    scope.spawn(|| {
                        counters.add(Count::Hit);
                        all_began.wait();
                        (1..1000).for_each(|_| counters.add(Count::Hit));
                    });
                }
            });
        }
        assert_eq!(counters.snapshot().hits, 2 * (LANES as u64 + 8) * 1000);
    }
}
