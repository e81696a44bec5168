//! When entries are due: a hierarchical timing wheel over slot numbers.
//!
//! Owns deadlines, never entries. Exact to the millisecond over all of u64; setting and cancelling are
//! O(1); a timer moves at most ten times before it fires, and each move is one step of the caller's budget.
//! Costs nothing until the first deadline, then 16 bytes a slot and 2.8 KiB.

const NONE: u32 = u32::MAX;
/// Marks a `before` that names a bucket instead of a timer.
const BUCKET: u32 = 1 << 31;
const BITS: u32 = 6;
const BUCKETS: usize = 1 << BITS;
const LEVELS: usize = 11;
const NEVER: u64 = u64::MAX;

#[derive(Clone, Copy)]
struct Timer {
    /// `NEVER` while it is not set.
    deadline: u64,
    before: u32,
    after: u32,
}

/// The deadlines of one shard.
pub(super) struct Wheel {
    /// By slot number.
    timers: Vec<Timer>,
    reserved: usize,
    buckets: Box<[u32]>,
    /// Which buckets of a level hold timers.
    occupied: [u64; LEVELS],
    /// All that was due before this has fired or moved.
    elapsed: u64,
}

impl Wheel {
    /// `reserved`: the slots to make room for when the first deadline is set.
    pub(super) fn new(reserved: usize) -> Self {
        let (timers, buckets) = (Vec::new(), Box::default());
        Wheel { timers, reserved, buckets, occupied: [0; LEVELS], elapsed: 0 }
    }

    /// Sets or moves the deadline of a slot; `u64::MAX` cancels it.
    #[inline]
    pub(super) fn set(&mut self, id: u32, deadline: u64) {
        self.cancel(id);
        if deadline != NEVER {
            self.start(id, deadline);
        }
    }

    fn start(&mut self, id: u32, deadline: u64) {
        if self.buckets.is_empty() {
            self.buckets = vec![NONE; LEVELS * BUCKETS].into();
        }
        let at = id as usize;
        if at >= self.timers.len() {
            if at >= self.timers.capacity() {
                // Growth by doubling would leave up to as much again unused.
                let room = if at < self.reserved { self.reserved } else { at + 1 + at / 8 };
                self.timers.reserve_exact(room - self.timers.len());
            }
            self.timers.resize(at + 1, Timer { deadline: NEVER, before: NONE, after: NONE });
        }
        self.timers[at].deadline = deadline;
        self.link(id);
    }

    #[inline]
    pub(super) fn cancel(&mut self, id: u32) {
        if self.deadline(id) != NEVER {
            self.unlink(id);
            self.timers[id as usize].deadline = NEVER;
        }
    }

    #[inline]
    pub(super) fn deadline(&self, id: u32) -> u64 {
        self.timers.get(id as usize).map_or(NEVER, |timer| timer.deadline)
    }

    /// A time at or before the next deadline; `u64::MAX` if there is none.
    pub(super) fn wake(&self) -> u64 {
        self.earliest().map_or(NEVER, |(start, _)| start)
    }

    /// Cancels and returns a slot that is due at `now`. Takes a step off `budget` for each timer touched;
    /// `None` if nothing is due or the budget is used up.
    pub(super) fn next_due(&mut self, now: u64, budget: &mut usize) -> Option<u32> {
        while *budget > 0 {
            let Some((start, bucket)) = self.earliest().filter(|(start, _)| *start <= now) else {
                self.elapsed = self.elapsed.max(now);
                return None;
            };
            self.elapsed = self.elapsed.max(start);
            *budget -= 1;
            let id = self.buckets[bucket];
            self.unlink(id);
            let timer = &mut self.timers[id as usize];
            if timer.deadline <= now {
                timer.deadline = NEVER;
                return Some(id);
            }
            self.link(id);
        }
        None
    }

    /// The occupied bucket that starts first. Of two that start together, the coarser one: it may hold what
    /// belongs in the finer.
    fn earliest(&self) -> Option<(u64, usize)> {
        let starts = (0..LEVELS).rev().filter_map(|level| {
            let shift = BITS * level as u32;
            let here = (self.elapsed >> shift) & (BUCKETS as u64 - 1);
            let ahead = self.occupied[level] & (u64::MAX << here);
            let bucket = (ahead != 0).then(|| u64::from(ahead.trailing_zeros()))?;
            let before = self.elapsed >> shift & !(BUCKETS as u64 - 1);
            Some(((before | bucket) << shift, level * BUCKETS + bucket as usize))
        });
        starts.min_by_key(|(start, _)| *start)
    }

    /// The bucket for a deadline: the level is that of the highest digit in which it differs from now.
    fn bucket(&self, deadline: u64) -> usize {
        let deadline = deadline.max(self.elapsed);
        let level = (63 - (deadline ^ self.elapsed | 1).leading_zeros()) / BITS;
        let digit = (deadline >> (BITS * level)) & (BUCKETS as u64 - 1);
        level as usize * BUCKETS + digit as usize
    }

    fn link(&mut self, id: u32) {
        let bucket = self.bucket(self.timers[id as usize].deadline);
        let first = std::mem::replace(&mut self.buckets[bucket], id);
        let timer = &mut self.timers[id as usize];
        (timer.before, timer.after) = (BUCKET | bucket as u32, first);
        if first != NONE {
            self.timers[first as usize].before = id;
        }
        self.occupied[bucket / BUCKETS] |= 1 << (bucket % BUCKETS);
    }

    fn unlink(&mut self, id: u32) {
        let Timer { before, after, .. } = self.timers[id as usize];
        if after != NONE {
            self.timers[after as usize].before = before;
        }
        if before & BUCKET == 0 {
            self.timers[before as usize].after = after;
            return;
        }
        let bucket = (before & !BUCKET) as usize;
        self.buckets[bucket] = after;
        if after == NONE {
            self.occupied[bucket / BUCKETS] &= !(1 << (bucket % BUCKETS));
        }
    }

    /// Walks every bucket. `holds` must be true of each slot that has a deadline, and none may fire before
    /// `wake`.
    pub(super) fn assert_valid(&self, wake: u64, holds: impl Fn(u32) -> bool) {
        let mut linked = 0;
        for (bucket, &first) in self.buckets.iter().enumerate() {
            let occupied = self.occupied[bucket / BUCKETS] >> (bucket % BUCKETS) & 1 == 1;
            assert_eq!(occupied, first != NONE);
            let (mut id, mut before) = (first, BUCKET | bucket as u32);
            while id != NONE {
                let timer = self.timers[id as usize];
                assert!(timer.deadline != NEVER && timer.before == before && holds(id), "slot {id}");
                // One that was set for a time already past fires at the next step of the clock.
                assert!(timer.deadline.max(self.elapsed) >= wake, "slot {id} would sleep too long");
                linked += 1;
                (before, id) = (id, timer.after);
            }
        }
        assert_eq!(linked, self.timers.iter().filter(|timer| timer.deadline != NEVER).count());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn due(wheel: &mut Wheel, now: u64, mut budget: usize) -> Vec<u32> {
        let mut fired: Vec<_> = std::iter::from_fn(|| wheel.next_due(now, &mut budget)).collect();
        fired.sort_unstable();
        fired
    }

    #[test]
    fn fires_at_its_deadline_and_not_before() {
        for start in [0, 1, 63, 64, 1 << 40] {
            for delay in [0, 1, 63, 64, 65, 4095, 4096, 1 << 30, 1 << 50] {
                let mut wheel = Wheel::new(0);
                assert!(due(&mut wheel, start, 100).is_empty());
                wheel.set(3, start + delay);
                if delay > 0 {
                    assert!(due(&mut wheel, start + delay - 1, 100).is_empty(), "{start} + {delay}");
                }
                assert_eq!(due(&mut wheel, start + delay, 100), [3], "{start} + {delay}");
                assert_eq!(wheel.wake(), NEVER);
            }
        }
        let mut wheel = Wheel::new(0);
        wheel.set(0, NEVER - 1);
        assert!(due(&mut wheel, NEVER - 2, 100).is_empty());
        assert_eq!(due(&mut wheel, NEVER, 100), [0]);
    }

    #[test]
    fn a_clock_that_went_back_fires_nothing_early() {
        let mut wheel = Wheel::new(0);
        assert!(due(&mut wheel, 1_000_000, 100).is_empty());
        wheel.set(0, 500);
        assert!(due(&mut wheel, 400, 100).is_empty());
        assert_eq!(due(&mut wheel, 1_000_001, 100), [0]);
    }

    proptest! {
        #[test]
        fn agrees_with_a_sorted_map(
            steps in prop::collection::vec((0u32..40, 0u32..45, 0u64..64, 0usize..20), 1..300),
        ) {
            let (mut wheel, mut now) = (Wheel::new(0), 0u64);
            let mut model: BTreeMap<u32, u64> = BTreeMap::new();
            for (id, shift, low, budget) in steps {
                match low % 3 {
                    0 => {
                        let deadline = now + (low << (shift % 40));
                        wheel.set(id, deadline);
                        model.insert(id, deadline);
                    }
                    1 => {
                        wheel.cancel(id);
                        model.remove(&id);
                    }
                    _ => now += (1 << shift.min(36)) * (low / 3),
                }
                for id in due(&mut wheel, now, budget) {
                    let deadline = model.remove(&id);
                    prop_assert!(deadline.is_some_and(|deadline| deadline <= now));
                }
                wheel.assert_valid(0, |id| model.contains_key(&id));
                if let Some(first) = model.values().min() {
                    prop_assert!(wheel.wake() <= *first);
                }
            }
            let fired = due(&mut wheel, now, usize::MAX);
            let expected: Vec<_> = model.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
            prop_assert_eq!(fired, expected);
        }
    }
}
