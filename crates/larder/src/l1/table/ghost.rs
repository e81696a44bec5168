//! Which keys were evicted lately: fingerprints in the order of their eviction, without the keys.
//!
//! A set-associative table: each line is a ring of its own that forgets its oldest, so that adding and
//! finding touch one cache line and nothing is ever linked or moved. 2.1 bytes an entry.

/// Tags of a line; the word after them is the place of the next.
const WAYS: usize = 31;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line {
    /// 0 is empty. Of 31 tags with 16 bits one equals that of a stranger once in 2,000 lookups.
    tags: [u16; WAYS],
    next: u16,
}

/// Remembers about as many evictions as it has entries, those of a line up to a fifth longer or shorter;
/// one of none remembers nothing.
pub(super) struct Ghost {
    lines: Box<[Line]>,
}

impl Ghost {
    pub(super) fn new(entries: usize) -> Self {
        Ghost { lines: vec![Line { tags: [0; WAYS], next: 0 }; entries.div_ceil(WAYS)].into() }
    }

    #[inline]
    pub(super) fn add(&mut self, fingerprint: u32) {
        let (at, tag) = self.place(fingerprint);
        let Some(line) = self.lines.get_mut(at) else { return };
        let next = usize::from(line.next).min(WAYS - 1);
        line.tags[next] = tag;
        line.next = if next + 1 == WAYS { 0 } else { next as u16 + 1 };
    }

    /// Forgets `fingerprint`; true if it was remembered.
    #[inline]
    pub(super) fn remove(&mut self, fingerprint: u32) -> bool {
        let (at, tag) = self.place(fingerprint);
        let Some(line) = self.lines.get_mut(at) else { return false };
        // Without an early exit the comparison becomes a few vector instructions.
        let found = line.tags.iter().fold(false, |found, other| found | (*other == tag));
        if found {
            for other in line.tags.iter_mut().filter(|other| **other == tag) {
                *other = 0;
            }
        }
        found
    }

    #[inline]
    fn place(&self, fingerprint: u32) -> (usize, u16) {
        let mixed = super::hash::mix(fingerprint, 0xA24B_AED4_963E_E407);
        let at = ((mixed >> 32) * self.lines.len() as u64) >> 32;
        (at as usize, (mixed as u16).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_about_its_number_of_evictions() {
        for entries in [100, 1000, 5000, 100_000] {
            let mut ghost = Ghost::new(entries);
            let (total, half) = (20 * entries as u32, entries as u32 / 2);
            for fingerprint in 1..=total {
                ghost.add(fingerprint);
            }
            let young = (total - half..total).filter(|&f| ghost.remove(f)).count();
            assert!(young * 100 > entries * 48, "{entries}: kept {young}");
            let old = (1..total - 4 * half).filter(|&f| ghost.remove(f)).count();
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
        assert!(!Ghost::new(0).remove(5));
    }
}
