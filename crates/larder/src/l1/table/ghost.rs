//! Which keys were evicted lately: fingerprints in the order of their eviction, without the keys.
//!
//! A set-associative table: a fingerprint lives in one line of 16 words and gives way to younger ones
//! there, so that adding and finding touch one cache line and nothing is ever linked or moved.

const WAYS: usize = 16;
/// Words per 16 that are meant to be in use; the rest absorbs uneven lines.
const FILL: usize = 12;
const TAG_BITS: u32 = 20;
const STAMPS: u32 = (1 << (32 - TAG_BITS)) - 1;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line([u32; WAYS]);

/// Remembers about as many evictions as it has entries; one of none remembers nothing. 5.3 bytes an entry.
pub(super) struct Ghost {
    /// A word is a 20-bit tag under a 12-bit stamp from 1 on; 0 is empty.
    lines: Box<[Line]>,
    evictions: u64,
    /// Evictions per stamp.
    unit: u64,
    /// Stamps after which an entry counts as forgotten.
    age_max: u32,
}

impl Ghost {
    pub(super) fn new(entries: usize) -> Self {
        let unit = (entries as u64 / 1024).max(1);
        Ghost {
            lines: vec![Line([0; WAYS]); entries.div_ceil(FILL)].into(),
            evictions: 0,
            unit,
            age_max: (entries as u64 / unit) as u32,
        }
    }

    pub(super) fn add(&mut self, fingerprint: u32) {
        if self.lines.is_empty() {
            return;
        }
        self.evictions += 1;
        let (at, tag) = self.place(fingerprint);
        let now = self.now();
        let oldest = self.lines[at].0.iter_mut().max_by_key(|word| age(now, **word));
        if let Some(word) = oldest {
            *word = (now << TAG_BITS) | tag;
        }
    }

    /// Forgets `fingerprint`; true if it was remembered.
    pub(super) fn remove(&mut self, fingerprint: u32) -> bool {
        if self.lines.is_empty() {
            return false;
        }
        let (at, tag) = self.place(fingerprint);
        let (now, age_max) = (self.now(), self.age_max);
        let mut found = false;
        for word in &mut self.lines[at].0 {
            if *word & ((1 << TAG_BITS) - 1) == tag && *word >> TAG_BITS != 0 {
                found |= age(now, *word) <= age_max;
                *word = 0;
            }
        }
        found
    }

    fn now(&self) -> u32 {
        (self.evictions / self.unit % u64::from(STAMPS)) as u32 + 1
    }

    fn place(&self, fingerprint: u32) -> (usize, u32) {
        let mixed = super::hash::mix(fingerprint, 0xA24B_AED4_963E_E407);
        let at = ((mixed >> 32) * self.lines.len() as u64) >> 32;
        (at as usize, mixed as u32 >> (32 - TAG_BITS))
    }
}

/// Stamps since `word` was written; an empty one is older than all.
fn age(now: u32, word: u32) -> u32 {
    match word >> TAG_BITS {
        0 => u32::MAX,
        stamp => (now + STAMPS - stamp) % STAMPS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_its_number_of_evictions_and_no_more() {
        for entries in [100, 1000, 5000, 100_000] {
            let mut ghost = Ghost::new(entries);
            let total = 20 * entries as u32;
            for fingerprint in 1..=total {
                ghost.add(fingerprint);
            }
            let young = (total - entries as u32 * 9 / 10..=total).filter(|&f| ghost.remove(f)).count();
            assert!(young * 100 > entries * 80, "{entries}: kept {young}");
            let old = (1..total - entries as u32 * 11 / 10).filter(|&f| ghost.remove(f)).count();
            assert!(old * 50 < entries, "{entries}: {old} of the old ones");
        }
    }

    #[test]
    fn finds_once() {
        let mut ghost = Ghost::new(100);
        ghost.add(5);
        assert!(!ghost.remove(6));
        assert!(ghost.remove(5));
        assert!(!ghost.remove(5));
    }
}
