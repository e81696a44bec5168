//! Hybrid logical time, which orders sets against sets and nothing else.
//!
//! 96 bits, big-endian: wall clock in milliseconds (48), counter (16), node (32). After Kulkarni et al.,
//! "Logical Physical Clocks" (2014). Removals are never decided by stamps: see `l1::fence`.

use crate::sync::Mutex;
use std::fmt;

/// How far a stamp may lie ahead of this node's wall clock before it is distrusted, in milliseconds.
///
/// A day: far more than any skew of a maintained host, far less than a clock that is wrong by a year,
/// whose stamps would otherwise win against every later set.
pub const STAMP_AHEAD_MAX_MS: u64 = 24 * 60 * 60 * 1000;

/// A moment in hybrid logical time, unique per node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Stamp {
    /// Wall clock milliseconds (upper 48 bits) and counter (lower 16).
    time: u64,
    node: u32,
}

impl Stamp {
    /// The smallest stamp.
    pub const MIN: Stamp = Stamp { time: 0, node: 0 };

    /// A stamp at `wall_ms` with a counter, by a node.
    pub fn new(wall_ms: u64, counter: u16, node: u32) -> Self {
        Stamp { time: (wall_ms.min((1 << 48) - 1) << 16) | u64::from(counter), node }
    }

    /// Wall clock and counter in one number, and the node: for a structure that has no room for padding.
    pub(crate) fn parts(self) -> (u64, u32) {
        (self.time, self.node)
    }

    pub(crate) fn from_parts(time: u64, node: u32) -> Self {
        Stamp { time, node }
    }

    /// The 12 bytes, big-endian, whose order is the stamps' order.
    pub fn to_bytes(self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..8].copy_from_slice(&self.time.to_be_bytes());
        bytes[8..].copy_from_slice(&self.node.to_be_bytes());
        bytes
    }

    /// The stamp that [`to_bytes`](Self::to_bytes) wrote.
    pub fn from_bytes(bytes: [u8; 12]) -> Self {
        let (time, node) = bytes.split_at(8);
        Stamp {
            time: u64::from_be_bytes(time.try_into().expect("8 bytes")),
            node: u32::from_be_bytes(node.try_into().expect("4 bytes")),
        }
    }

    /// The wall clock part in milliseconds since 1970.
    pub fn wall_ms(self) -> u64 {
        self.time >> 16
    }

    /// Whether it lies further ahead of `wall_ms` than any honest clock: an entry with it is a miss.
    pub fn is_distrusted(self, wall_ms: u64) -> bool {
        self.wall_ms() > wall_ms.saturating_add(STAMP_AHEAD_MAX_MS)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.to_bytes() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stamp({}ms+{}@{:08x})", self.wall_ms(), self.time & 0xffff, self.node)
    }
}

/// Gives out stamps that grow, whatever the wall clock does.
#[derive(Debug)]
pub struct StampClock {
    last: Mutex<Last>,
    node: u32,
}

/// The last stamps that were given out or seen, in order, each more than a day after the one before: where
/// the wall clock leapt. The last one that the wall clock does not contradict counts.
#[derive(Debug, Default)]
struct Last(Vec<u64>);

/// Leaps remembered: more than any clock that is worth a promise makes.
const LEAPS_MAX: usize = 8;

impl Last {
    /// Where the trusted ones end, and the last of them.
    fn trusted(&self, wall_ms: u64) -> (usize, u64) {
        let count = self.0.iter().take_while(|time| !distrusted(**time, wall_ms)).count();
        (count, count.checked_sub(1).map_or(0, |last| self.0[last]))
    }

    fn move_to(&mut self, time: u64, wall_ms: u64) {
        let (count, last) = self.trusted(wall_ms);
        if count > 0 && !distrusted(time, last >> 16) {
            self.0[count - 1] = time;
            return;
        }
        self.0.insert(count, time);
        if self.0.len() > LEAPS_MAX {
            self.0.remove(0);
        }
    }
}

fn distrusted(time: u64, wall_ms: u64) -> bool {
    (Stamp { time, node: 0 }).is_distrusted(wall_ms)
}

impl StampClock {
    /// A clock for a node. Without a disk that keeps the last stamp, `node` must be fresh at every boot.
    pub fn new(node: u32) -> Self {
        StampClock { last: Mutex::default(), node }
    }

    /// The next stamp: after every one given out or seen, and not before `wall_ms`.
    ///
    /// Except after the wall clock went back by more than a day: then it starts again from there. Everybody
    /// distrusts the stamps from before, and would distrust all that follow them.
    pub fn tick(&self, wall_ms: u64) -> Stamp {
        let mut last = self.last.lock();
        let (_, trusted) = last.trusted(wall_ms);
        let next = trusted.saturating_add(1).max(Stamp::new(wall_ms, 0, 0).time);
        last.move_to(next, wall_ms);
        Stamp { time: next, node: self.node }
    }

    /// Moves past a stamp that was read, unless it is [distrusted](Stamp::is_distrusted).
    pub fn advance(&self, seen: Stamp, wall_ms: u64) {
        if !seen.is_distrusted(wall_ms) {
            let mut last = self.last.lock();
            let later = last.trusted(wall_ms).1.max(seen.time);
            last.move_to(later, wall_ms);
        }
    }
}

#[cfg(all(test, not(larder_shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn stamps_grow_when_the_clock_stands_still_or_goes_back() {
        let clock = StampClock::new(7);
        let stamps: Vec<_> = [100, 100, 50, 101, 3].map(|ms| clock.tick(ms)).to_vec();
        assert!(stamps.is_sorted() && stamps[0] != stamps[1], "{stamps:?}");
        assert_eq!(Stamp::from_bytes(stamps[3].to_bytes()), stamps[3]);
    }

    #[test]
    fn a_clock_that_was_a_year_ahead_is_forgotten() {
        let clock = StampClock::new(1);
        let now = 1000;
        let before = clock.tick(now);
        clock.tick(365 * STAMP_AHEAD_MAX_MS);
        let after = clock.tick(now);
        assert!(after > before && !after.is_distrusted(now), "{before:?} {after:?}");
        let back = now + 40 * STAMP_AHEAD_MAX_MS;
        let (first, _, again) = (clock.tick(back), clock.tick(now), clock.tick(back));
        assert!(again > first, "what was right once is right again");
        clock.tick(now + STAMP_AHEAD_MAX_MS);
        assert!(clock.tick(now) > Stamp::new(now + STAMP_AHEAD_MAX_MS, 0, 1), "a day is followed");
    }

    #[test]
    fn byte_order_is_stamp_order() {
        let (a, b) = (Stamp::new(1, u16::MAX, 9), Stamp::new(2, 0, 0));
        assert!(a < b && a.to_bytes() < b.to_bytes());
    }

    #[test]
    fn a_stamp_from_next_year_is_not_followed() {
        let clock = StampClock::new(1);
        clock.advance(Stamp::new(365 * STAMP_AHEAD_MAX_MS, 0, 2), 1000);
        assert_eq!(clock.tick(1000).wall_ms(), 1000);
        clock.advance(Stamp::new(STAMP_AHEAD_MAX_MS, 0, 2), 1000);
        assert_eq!(clock.tick(1000).wall_ms(), STAMP_AHEAD_MAX_MS);
    }
}
