//! How often a key was seen lately: a count-min sketch of 4-bit counters that forgets by halving.
//!
//! Additions are conservative (Estan and Varghese, 2002): they raise only the lowest of a key's counters.
//! Plain ones lost up to .009 of hit ratio on Zipf and .008 on loops.
//! Owns counters, never keys. One estimate or addition touches one cache line, and halving is spread over
//! the additions that follow, so that no operation walks the table.

/// Words of a block: one cache line, of which each of the four rows owns two words.
const WORDS: usize = 8;
const ROWS: usize = 4;
/// What a counter holds at most.
const MOST: u64 = 15;
/// Entries per block, at 16 counters an entry (8 cost up to .004 of hit ratio).
const ENTRIES_PER_BLOCK: usize = WORDS * 16 / 16;
/// Halve after this many additions per entry, as TinyLFU does.
const ADDITIONS_PER_ENTRY: u64 = 10;
/// Blocks halved per addition while a halving is under way.
const HALVED_AT_ONCE: usize = 8;

#[repr(align(64))]
#[derive(Clone, Copy)]
struct Block([u64; WORDS]);

/// A frequency sketch for a number of entries; one of none counts nothing.
pub(super) struct Sketch {
    blocks: Box<[Block]>,
    additions: u64,
    additions_max: u64,
    /// Blocks from here on are still to be halved; past the end, none is.
    halved: usize,
}

impl Sketch {
    pub(super) fn new(entries: usize) -> Self {
        Self::of(vec![Block([0; WORDS]); entries.div_ceil(ENTRIES_PER_BLOCK)].into())
    }

    fn of(blocks: Box<[Block]>) -> Self {
        let additions_max = ADDITIONS_PER_ENTRY * (blocks.len() * ENTRIES_PER_BLOCK) as u64;
        Sketch { halved: blocks.len(), blocks, additions: 0, additions_max }
    }

    /// Entries that it counts without crowding.
    pub(super) fn entries(&self) -> usize {
        self.blocks.len() * ENTRIES_PER_BLOCK
    }

    /// Makes room for a multiple of the entries. Every block is copied into each of its successors, so
    /// that all estimates stay.
    pub(super) fn grow(&mut self, times: usize) {
        while self.halved < self.blocks.len() {
            self.halve_some();
        }
        *self = Self::of(self.blocks.iter().flat_map(|block| std::iter::repeat_n(*block, times)).collect());
    }

    /// Counts one more of `fingerprint`.
    #[inline]
    pub(super) fn add(&mut self, fingerprint: u32) {
        let (at, cells) = self.place(fingerprint);
        let Some(Block(words)) = self.blocks.get_mut(at) else { return };
        let counts = counts(words, &cells);
        let least = counts.into_iter().fold(MOST, u64::min);
        // Only the lowest of the four: the others count a neighbour as well.
        for (cell, count) in cells.iter().zip(counts) {
            words[cell.word % WORDS] += u64::from(count == least && count < MOST) << cell.shift;
        }
        self.additions += 1;
        if self.halved < self.blocks.len() {
            self.halve_some();
        } else if self.additions >= self.additions_max {
            self.additions /= 2;
            self.halved = 0;
            self.halve_some();
        }
    }

    /// How often `fingerprint` was added lately, at most 15.
    #[inline]
    pub(super) fn estimate(&self, fingerprint: u32) -> u8 {
        let (at, cells) = self.place(fingerprint);
        let Some(Block(words)) = self.blocks.get(at) else { return 0 };
        let least = counts(words, &cells).into_iter().fold(MOST, u64::min) as u8;
        if at >= self.halved { least / 2 } else { least }
    }

    fn halve_some(&mut self) {
        let end = (self.halved + HALVED_AT_ONCE).min(self.blocks.len());
        self.blocks[self.halved..end].iter_mut().for_each(halve);
        self.halved = end;
    }

    /// The block, and a counter in each of its rows.
    #[inline]
    fn place(&self, fingerprint: u32) -> (usize, [Cell; ROWS]) {
        let mixed = super::hash::mix(fingerprint, 0x9E6C_63D0_876A_3F35);
        let at = ((mixed >> 32) * self.blocks.len() as u64) >> 32;
        let cells = std::array::from_fn(|row| {
            let place = mixed >> (5 * row);
            Cell { word: 2 * row + (place >> 4 & 1) as usize, shift: (place as u32 & 15) * 4 }
        });
        (at as usize, cells)
    }
}

#[derive(Clone, Copy)]
struct Cell {
    word: usize,
    shift: u32,
}

#[inline]
fn counts(words: &[u64; WORDS], cells: &[Cell; ROWS]) -> [u64; ROWS] {
    cells.map(|cell| words[cell.word % WORDS] >> cell.shift & MOST)
}

fn halve(block: &mut Block) {
    for word in &mut block.0 {
        *word = (*word >> 1) & 0x7777_7777_7777_7777;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_saturates() {
        let mut sketch = Sketch::new(1000);
        assert_eq!(sketch.estimate(7), 0);
        for expected in 1..=20u8 {
            sketch.add(7);
            assert_eq!(sketch.estimate(7), expected.min(15));
        }
        assert_eq!(sketch.estimate(8), 0);
    }

    #[test]
    fn forgets_half_after_ten_additions_an_entry() {
        let mut sketch = Sketch::new(64);
        for _ in 0..14 {
            sketch.add(1);
        }
        for other in 0..700u32 {
            sketch.add(1000 + other);
        }
        // 714 of 640 additions: halved once, collisions aside.
        assert!((7..=15).contains(&sketch.estimate(1)), "{}", sketch.estimate(1));
        assert!(sketch.halved == sketch.blocks.len());
    }

    #[test]
    fn growing_keeps_estimates() {
        let mut sketch = Sketch::new(100);
        for key in 0..50 {
            for _ in 0..=key % 5 {
                sketch.add(key);
            }
        }
        let before: Vec<_> = (0..50).map(|key| sketch.estimate(key)).collect();
        sketch.grow(3);
        assert_eq!(before, (0..50).map(|key| sketch.estimate(key)).collect::<Vec<_>>());
        assert!(sketch.entries() >= 300);
    }
}
