//! The bytes of the file `fences`.
//!
//! ```text
//! offset     bytes
//!      0       256  header: "LRDRFNC", version 1; then u64s: inc, pos, next, reserved, boot, inode, marks_gen,
//!                   marks_base, marks_end, entries, bytes, disk, flags (1 unsynced, 2 drifted, 4 has stamp);
//!                   last_stamp (12); zeros; XXH3-64 of all before
//!   4096    131072  4,096 stripes: u64 of the last removal, of the last accepted set, 0, XXH3-64 of these,
//!                   seeded with inc and number
//! 135168      8192  256 folders of entries: u64 entries, bytes, disk, XXH3-64, seeded likewise
//! ```
//! No record crosses a sector, so that a kill never leaves half of one; a power loss might, and then its
//! checksum says so.

use super::super::entry::Head;
use super::super::folder::{SHARDS, disk_bytes};
use crate::backend::{Miss, Ticket};
use crate::l1::fence::Markers;
use crate::stamp::Stamp;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const MAGIC: [u8; 7] = *b"LRDRFNC";
pub(super) const VERSION: u8 = 1;
pub(super) const HEADER_BYTES: usize = 256;
pub(super) const STRIPES: u64 = 4096;
pub(super) const STRIPES_AT: u64 = 4096;
pub(super) const RECORD_BYTES: u64 = 32;
const SHARDS_AT: u64 = STRIPES_AT + STRIPES * RECORD_BYTES;
pub(super) const FILE_BYTES: u64 = SHARDS_AT + SHARDS as u64 * RECORD_BYTES;

/// The first part of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::backend::files) struct Header {
    pub(in crate::backend::files) inc: u64,
    pub(in crate::backend::files) pos: u64,
    pub(super) next: u64,
    pub(super) reserved: u64,
    pub(super) boot: u64,
    pub(super) inode: u64,
    pub(in crate::backend::files) marks_gen: u64,
    /// Where the log of markers ended when it was last rewritten.
    pub(in crate::backend::files) marks_base: u64,
    pub(in crate::backend::files) marks_end: u64,
    pub(in crate::backend::files) total: Amount,
    pub(in crate::backend::files) last_stamp: Option<Stamp>,
    /// Writes since the last close in peace were not synced one by one.
    pub(super) unsynced: bool,
    /// The amounts may be wrong: somebody was killed between a file and its count.
    pub(in crate::backend::files) drifted: bool,
}

/// How much is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::backend::files) struct Amount {
    pub(in crate::backend::files) entries: u64,
    /// The files' lengths.
    pub(in crate::backend::files) bytes: u64,
    /// The same in whole blocks.
    pub(in crate::backend::files) disk: u64,
}

impl Amount {
    pub(in crate::backend::files) fn of(length: u64) -> Amount {
        Amount { entries: 1, bytes: length, disk: disk_bytes(length) }
    }

    pub(in crate::backend::files) fn plus(self, more: Amount) -> Amount {
        Amount {
            entries: self.entries.saturating_add(more.entries),
            bytes: self.bytes.saturating_add(more.bytes),
            disk: self.disk.saturating_add(more.disk),
        }
    }

    pub(in crate::backend::files) fn minus(self, less: Amount) -> Amount {
        Amount {
            entries: self.entries.saturating_sub(less.entries),
            bytes: self.bytes.saturating_sub(less.bytes),
            disk: self.disk.saturating_sub(less.disk),
        }
    }
}

pub(super) enum Decoded {
    Sound(Header),
    Damaged,
    /// Written by a larder that this one doesn't know.
    Newer(u8),
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..7].copy_from_slice(&MAGIC);
        bytes[7] = VERSION;
        let flags = u64::from(self.unsynced)
            | u64::from(self.drifted) << 1
            | u64::from(self.last_stamp.is_some()) << 2;
        let numbers = [
            self.inc,
            self.pos,
            self.next,
            self.reserved,
            self.boot,
            self.inode,
            self.marks_gen,
            self.marks_base,
            self.marks_end,
            self.total.entries,
            self.total.bytes,
            self.total.disk,
            flags,
        ];
        for (i, number) in numbers.into_iter().enumerate() {
            bytes[8 + i * 8..][..8].copy_from_slice(&number.to_le_bytes());
        }
        bytes[112..124].copy_from_slice(&self.last_stamp.unwrap_or(Stamp::MIN).to_bytes());
        let sum = xxh3_64(&bytes[..HEADER_BYTES - 8]);
        bytes[HEADER_BYTES - 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Decoded {
        let number = |i: usize| u64::from_le_bytes(bytes[8 + i * 8..][..8].try_into().expect("8 bytes"));
        let sum = u64::from_le_bytes(bytes[HEADER_BYTES - 8..].try_into().expect("8 bytes"));
        if bytes[..7] != MAGIC || sum != xxh3_64(&bytes[..HEADER_BYTES - 8]) {
            return Decoded::Damaged;
        }
        if bytes[7] > VERSION {
            return Decoded::Newer(bytes[7]);
        }
        let flags = number(12);
        let stamp = Stamp::from_bytes(bytes[112..124].try_into().expect("12 bytes"));
        Decoded::Sound(Header {
            inc: number(0),
            pos: number(1),
            next: number(2),
            reserved: number(3),
            boot: number(4),
            inode: number(5),
            marks_gen: number(6),
            marks_base: number(7),
            marks_end: number(8),
            total: Amount { entries: number(9), bytes: number(10), disk: number(11) },
            unsynced: flags & 1 != 0,
            drifted: flags & 2 != 0,
            last_stamp: (flags & 4 != 0).then_some(stamp),
        })
    }

    pub(in crate::backend::files) fn ticket(&self) -> Ticket {
        Ticket { inc: self.inc, pos: self.pos }
    }

    /// Rule A3, then the clock.
    pub(in crate::backend::files) fn why_invalid(
        &self,
        markers: &Markers,
        head: &Head,
        now_ms: u64,
    ) -> Option<Miss> {
        if head.inc != self.inc || head.seen > self.reserved {
            return Some(Miss::Incarnation);
        }
        markers.invalid(head.key.namespace(), &head.tags, head.seen).or_else(|| {
            if head.stamp.is_distrusted(now_ms) {
                Some(Miss::Clock)
            } else {
                head.is_gone(now_ms).then_some(Miss::Expired)
            }
        })
    }
}

pub(super) fn encode_record(inc: u64, number: u64, values: [u64; 3]) -> [u8; RECORD_BYTES as usize] {
    let mut bytes = [0; RECORD_BYTES as usize];
    for (i, value) in values.into_iter().enumerate() {
        bytes[i * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }
    let sum = xxh3_64_with_seed(&bytes[..24], inc ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    bytes[24..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_of_header_or_record_is_refused() {
        let header = Header {
            inc: 1,
            pos: 2,
            next: 3,
            reserved: 4,
            boot: 5,
            inode: 6,
            marks_gen: 7,
            marks_base: 8,
            marks_end: 9,
            total: Amount { entries: 10, bytes: 11, disk: 12 },
            last_stamp: Some(Stamp::new(13, 14, 15)),
            unsynced: true,
            drifted: false,
        };
        let sound = header.encode();
        assert!(matches!(Header::decode(&sound), Decoded::Sound(decoded) if decoded == header));
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = sound;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Header::decode(&bytes), Decoded::Damaged), "bit {bit}");
        }
        // A record of another number or incarnation is none of this one's.
        assert_ne!(encode_record(1, 2, [3; 3]), encode_record(1, 3, [3; 3]));
        assert_ne!(encode_record(1, 2, [3; 3]), encode_record(2, 2, [3; 3]));
    }
}
