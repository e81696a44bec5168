//! Which entry goes: lazy FIFO queues under a few knobs (PANEL's live half).
//!
//! Owns the ghost and the sketch and decides; never owns entries. The queues that it reads and moves
//! belong to a [`Queues`]: the shard's entries, or one of the panel's shadows, so that what the panel
//! measures is what the shard would do.

use super::ghost::Ghost;
use super::sketch::Sketch;

/// The queue an entry stands in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum List {
    /// New entries.
    Small,
    /// The next to go, unless they were hit meanwhile.
    Probation,
    /// Entries that were hit.
    Protected,
}

/// First in, first out queues of entries that carry a hit count of at most 7.
pub(super) trait Queues {
    /// The sum of the weights in `list`.
    fn weight(&self, list: List) -> u64;
    /// The entry that has stood longest in `list`.
    fn oldest(&mut self, list: List) -> Option<u32>;
    /// Takes the oldest out.
    fn pop(&mut self, list: List) -> Option<u32>;
    /// Puts an entry that stands in no queue into `list`, as the youngest.
    fn push(&mut self, list: List, id: u32);
    fn count(&self, id: u32) -> u8;
    fn set_count(&mut self, id: u32, count: u8);
    fn fingerprint(&self, id: u32) -> u32;
}

/// One way to run the queues.
#[derive(Clone, Copy, Debug)]
pub(super) struct Knobs {
    /// The share of the capacity that new entries may fill.
    pub(super) small: Share,
    /// A new entry must have been seen more often than the one it would displace (TinyLFU).
    pub(super) admission: bool,
    /// The least times that it must have been seen for that. From 3 on, a loop that outlasts the sketch's
    /// memory admits nothing: halving leaves each of its keys at one or two.
    sightings_min: u8,
    /// A key that was evicted lately starts as protected.
    pub(super) ghost: bool,
    /// Hits that carry an entry from small to protected.
    promote_at: u8,
    /// Fewer hits give another round in small.
    retry: bool,
    /// Hits are kept on the way to protected.
    keep: bool,
}

const fn admitting(small: f64, ghost: bool, sightings_min: u8) -> Knobs {
    Knobs {
        small: Share::of(small),
        admission: true,
        sightings_min,
        ghost,
        promote_at: 1,
        retry: false,
        keep: false,
    }
}

const fn fifo(small: f64, promote_at: u8, retry: bool, keep: bool) -> Knobs {
    Knobs {
        small: Share::of(small),
        admission: false,
        sightings_min: 0,
        ghost: true,
        promote_at,
        retry,
        keep,
    }
}

/// Those that the panel compares; a cache starts with the first. Each leads somewhere: the first on mixed
/// traces, the second on skewed popularity and loops, the third on scans amid popularity, and the last,
/// which keeps almost everything in order of age, on recency.
pub(super) const KNOBS: [Knobs; 4] = [
    admitting(0.2, true, 1),
    admitting(0.003, false, 3),
    fifo(0.1, 1, false, false),
    fifo(0.7, 1, false, true),
];

/// The share of probation and protected that protected may fill where keys are admitted by frequency.
const PROTECTED_SHARE: Share = Share::of(0.8);
/// Entries that may move from an overfull small queue per eviction, after the knobs changed.
const DRIFT: usize = 4;
/// Second chances given per eviction. Past it hits count for nothing, so that an eviction is bounded work.
const PATIENCE: u32 = 256;
/// The fewest entries that a policy is made for: below, its memory costs nothing.
const ENTRIES_MIN: usize = 64;

/// The memory and the decisions of one set of queues.
pub(super) struct Policy {
    ghost: Ghost,
    sketch: Sketch,
    /// The target of the small queue under the knobs of the last eviction.
    small: Share,
    drifting: bool,
}

impl Policy {
    /// For about `entries` entries, under any knobs.
    pub(super) fn new(entries: usize) -> Self {
        let entries = entries.max(ENTRIES_MIN);
        Policy {
            ghost: Ghost::new(entries),
            sketch: Sketch::new(entries),
            small: KNOBS[0].small,
            drifting: false,
        }
    }

    /// For about `entries` entries, under these knobs alone.
    pub(super) fn only(knobs: &Knobs, entries: usize) -> Self {
        let entries_if = |used: bool| if used { entries } else { 0 };
        Policy {
            ghost: Ghost::new(entries_if(knobs.ghost)),
            sketch: Sketch::new(entries_if(knobs.admission)),
            small: knobs.small,
            drifting: false,
        }
    }

    /// Fits its memory to the number of entries: grows it when there are more than it was made for, and
    /// starts anew when a full shard holds less than a quarter, since it would remember for too long.
    #[inline]
    pub(super) fn fit(&mut self, entries: usize, is_full: bool) {
        let known = self.sketch.entries();
        if entries > known {
            self.sketch.grow(2);
            self.ghost = Ghost::new(self.sketch.entries());
        } else if is_full && known / 4 > entries.max(ENTRIES_MIN) {
            self.sketch = Sketch::new(entries.max(ENTRIES_MIN));
            self.ghost = Ghost::new(entries.max(ENTRIES_MIN));
        }
    }

    /// Notes a key on its way in; true if it was evicted lately.
    pub(super) fn arrive(&mut self, fingerprint: u32) -> bool {
        self.sketch.add(fingerprint);
        self.ghost.remove(fingerprint)
    }

    /// Puts the entry that [`arrive`](Self::arrive)d into its first queue.
    pub(super) fn place(&self, queues: &mut impl Queues, knobs: &Knobs, id: u32, was_evicted: bool) {
        let list = if was_evicted && knobs.ghost { List::Protected } else { List::Small };
        queues.push(list, id);
    }

    /// While there is still room: what outgrows the small queue moves on.
    pub(super) fn spill(&mut self, queues: &mut impl Queues, knobs: &Knobs, capacity: u64) {
        if queues.weight(List::Small) > small_target(knobs, capacity)
            && let Some(id) = queues.pop(List::Small)
        {
            if queues.count(id) >= knobs.promote_at {
                queues.set_count(id, 0);
                queues.push(List::Protected, id);
            } else {
                queues.push(List::Probation, id);
            }
        }
    }

    /// Takes the entry that has to go out of its queue. `None` if all queues are empty.
    pub(super) fn evict(&mut self, queues: &mut impl Queues, knobs: &Knobs, capacity: u64) -> Option<u32> {
        let small = small_target(knobs, capacity);
        self.drift(queues, knobs, small);
        let mut patience = PATIENCE;
        loop {
            if !knobs.admission
                && let Some(id) = queues.pop(List::Probation)
            {
                if self.look(queues, id, &mut patience) >= 2 {
                    queues.set_count(id, 0);
                    queues.push(List::Protected, id);
                    continue;
                }
                return Some(self.bury(queues, id));
            }
            let main = queues.weight(List::Probation) + queues.weight(List::Protected);
            if (queues.weight(List::Small) >= small || main == 0)
                && let Some(id) = queues.pop(List::Small)
            {
                let hits = self.look(queues, id, &mut patience);
                if knobs.admission {
                    if hits > 0 {
                        queues.set_count(id, 0);
                        queues.push(List::Small, id);
                        continue;
                    }
                    return Some(self.duel(queues, knobs, id, &mut patience));
                }
                if hits >= knobs.promote_at {
                    if !knobs.keep {
                        queues.set_count(id, 0);
                    }
                    queues.push(List::Protected, id);
                    continue;
                }
                if knobs.retry && hits > 0 {
                    queues.set_count(id, 0);
                    queues.push(List::Small, id);
                    continue;
                }
                return Some(self.bury(queues, id));
            }
            self.candidate(queues, knobs, &mut patience)?;
            let victim = queues.pop(List::Probation)?;
            return Some(if knobs.admission { self.bury(queues, victim) } else { victim });
        }
    }

    /// After the knobs changed, lets the small queue shrink to its new target some entries at a time. At
    /// other times it may exceed the target, by a heavy entry, and its oldest are to be judged as ever.
    #[inline]
    fn drift(&mut self, queues: &mut impl Queues, knobs: &Knobs, small: u64) {
        if self.small != knobs.small {
            self.small = knobs.small;
            self.drifting = true;
        }
        if !self.drifting {
            return;
        }
        for _ in 0..DRIFT {
            self.drifting = queues.weight(List::Small) > small + 1;
            if !self.drifting {
                break;
            }
            let Some(id) = queues.pop(List::Small) else { break };
            queues.push(List::Probation, id);
        }
    }

    /// The challenger, out of the small queue, stays if it was seen more often than the next to go.
    fn duel(&mut self, queues: &mut impl Queues, knobs: &Knobs, challenger: u32, patience: &mut u32) -> u32 {
        if let Some(victim) = self.candidate(queues, knobs, patience) {
            let seen = |id| self.sketch.estimate(queues.fingerprint(id));
            let sightings = seen(challenger);
            if sightings > seen(victim) && sightings >= knobs.sightings_min {
                queues.pop(List::Probation);
                queues.push(List::Probation, challenger);
                return self.bury(queues, victim);
            }
        }
        self.bury(queues, challenger)
    }

    /// The oldest in probation that was not hit there, with protected kept within its share. It stays where
    /// it stands. `None` if both are empty.
    fn candidate(&mut self, queues: &mut impl Queues, knobs: &Knobs, patience: &mut u32) -> Option<u32> {
        let share = if knobs.admission { PROTECTED_SHARE } else { Share::of(1.0) };
        loop {
            loop {
                let protected = queues.weight(List::Protected);
                let most = share.times(protected + queues.weight(List::Probation));
                let next = queues.oldest(List::Probation);
                // A protected queue that is far over its share after the knobs changed shrinks bit by bit.
                if next.is_some() && (protected <= most || *patience == 0) {
                    break;
                }
                let id = queues.pop(List::Protected)?;
                let hits = self.look(queues, id, patience);
                if hits > 0 {
                    queues.set_count(id, if knobs.admission { 0 } else { hits - 1 });
                    queues.push(List::Protected, id);
                } else {
                    *patience = patience.saturating_sub(1);
                    queues.push(List::Probation, id);
                }
            }
            let id = queues.oldest(List::Probation)?;
            let hits = self.look(queues, id, patience);
            if hits == 0 {
                return Some(id);
            }
            queues.pop(List::Probation);
            queues.set_count(id, if knobs.admission { 0 } else { hits - 1 });
            queues.push(List::Protected, id);
        }
    }

    /// The hits since the last look, which the sketch learns of; none once the patience is used up.
    fn look(&mut self, queues: &impl Queues, id: u32, patience: &mut u32) -> u8 {
        let hits = queues.count(id);
        if hits > 0 {
            self.sketch.add(queues.fingerprint(id));
            if *patience == 0 {
                return 0;
            }
            *patience -= 1;
        }
        hits
    }

    fn bury(&mut self, queues: &impl Queues, id: u32) -> u32 {
        self.ghost.add(queues.fingerprint(id));
        id
    }
}

fn small_target(knobs: &Knobs, capacity: u64) -> u64 {
    knobs.small.times(capacity).max(1)
}

/// A part of a whole, in 65,536ths: evictions multiply by it too often for floating point.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Share(u64);

impl Share {
    const fn of(share: f64) -> Self {
        Share((share * 65_536.0) as u64)
    }

    pub(super) fn as_f64(self) -> f64 {
        self.0 as f64 / 65_536.0
    }

    #[inline]
    fn times(self, whole: u64) -> u64 {
        (whole >> 16) * self.0 + (((whole & 0xFFFF) * self.0) >> 16)
    }
}
