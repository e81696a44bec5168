//! One entry's file: its bytes, and the refusal of any other bytes.
//!
//! ```text
//! offset  bytes
//!      0      8  "LRDRENT", version 1
//!      8      8  inc: the incarnation it was written in
//!     16      8  seen: the position it is valid from, its ticket's
//!     24      8  gone_at: wall clock ms, u64::MAX is never
//!     32     12  stamp
//!     44      1  kind: 0 load, 1 set
//!     45      1  0
//!     46      2  bytes of the namespace
//!     48      4  bytes of the key
//!     52      4  bytes of the tags
//!     56      8  bytes of the body
//!     64      8  XXH3-64 of the body
//!     72      8  XXH3-64 of everything before and of namespace, key, tags
//!     80         namespace, key, tags (length u16, text), body
//! ```
//! Numbers are little-endian, the stamp is as everywhere. The file ends with the body: a shorter or a longer
//! one is refused. Two checksums, so that a scan need not read bodies.

use crate::backend::Put;
use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, TAG_BYTES_MAX, TAGS_MAX, Tags};
use crate::key::{ENTRY_KEY_BYTES_MAX, EntryKey, NAMESPACE_BYTES_MAX, Namespace};
use crate::stamp::Stamp;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

const MAGIC: [u8; 8] = *b"LRDRENT\x01";
const FIXED_BYTES: usize = 80;
const CHECKED_BYTES: usize = 72;
/// Longest head, with namespace, key and tags.
pub(super) const HEAD_BYTES_MAX: usize =
    FIXED_BYTES + NAMESPACE_BYTES_MAX + ENTRY_KEY_BYTES_MAX + TAGS_MAX * (TAG_BYTES_MAX + 2);
/// What a head takes in most cases: a scan reads this much first.
pub(super) const HEAD_BYTES_USUAL: usize = 512;

/// What a file says of its entry.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Head {
    pub(super) inc: u64,
    pub(super) seen: u64,
    pub(super) gone_at_ms: u64,
    pub(super) stamp: Stamp,
    pub(super) kind: EntryKind,
    pub(super) key: EntryKey,
    pub(super) tags: Tags,
    pub(super) body_bytes: u64,
    body_sum: u64,
    /// Where the body begins.
    pub(super) body_at: usize,
}

/// Why bytes are no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// So many bytes are needed to tell.
    TooShort(usize),
    /// Larder never wrote them.
    Damaged,
}

impl Head {
    pub(super) fn is_gone(&self, wall_ms: u64) -> bool {
        self.gone_at_ms != NEVER_MS && self.gone_at_ms <= wall_ms
    }

    /// The whole file's length.
    pub(super) fn file_bytes(&self) -> u64 {
        (self.body_at as u64).saturating_add(self.body_bytes)
    }

    /// Reads a head from the start of a file; total, whatever the bytes are.
    pub(super) fn decode(bytes: &[u8]) -> Result<Head, Refused> {
        let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else {
            return Err(Refused::TooShort(FIXED_BYTES));
        };
        let u64_at = |at: usize| u64::from_le_bytes(fixed[at..at + 8].try_into().expect("8 bytes"));
        let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("4 bytes")) as usize;
        let namespace_bytes = usize::from(u16::from_le_bytes([fixed[46], fixed[47]]));
        let (key_bytes, tags_bytes) = (u32_at(48), u32_at(52));
        if fixed[..8] != MAGIC
            || namespace_bytes > NAMESPACE_BYTES_MAX
            || key_bytes > ENTRY_KEY_BYTES_MAX
            || tags_bytes > TAGS_MAX * (TAG_BYTES_MAX + 2)
        {
            return Err(Refused::Damaged);
        }
        let body_at = FIXED_BYTES + namespace_bytes + key_bytes + tags_bytes;
        let Some(rest) = bytes.get(FIXED_BYTES..body_at) else { return Err(Refused::TooShort(body_at)) };
        if u64_at(CHECKED_BYTES) != head_sum(&fixed[..CHECKED_BYTES], rest) {
            return Err(Refused::Damaged);
        }
        let (namespace, rest) = rest.split_at(namespace_bytes);
        let (key, tags) = rest.split_at(key_bytes);
        let namespace = std::str::from_utf8(namespace).ok().and_then(|name| Namespace::new(name).ok());
        let namespace = namespace.ok_or(Refused::Damaged)?;
        let key = EntryKey::from_bytes(&namespace, Bytes::copy_from_slice(key));
        Ok(Head {
            inc: u64_at(8),
            seen: u64_at(16),
            gone_at_ms: u64_at(24),
            stamp: Stamp::from_bytes(fixed[32..44].try_into().expect("12 bytes")),
            kind: match fixed[44..46] {
                [0, 0] => EntryKind::Load,
                [1, 0] => EntryKind::Set,
                _ => return Err(Refused::Damaged),
            },
            key: key.map_err(|_| Refused::Damaged)?,
            tags: decode_tags(tags).ok_or(Refused::Damaged)?,
            body_bytes: u64_at(56),
            body_sum: u64_at(64),
            body_at,
        })
    }
}

/// The head of a file for this write. Valid from the ticket's position: whatever invalidates it and came
/// between ticket and write refuses the write, so that nothing is known later that the ticket didn't know.
pub(super) fn encode_head(put: &Put) -> Vec<u8> {
    let Put { key, meta, sealed, ticket } = put;
    let namespace = key.namespace().as_str().as_bytes();
    let tags: usize = meta.tags.iter().map(|tag| tag.len() + 2).sum();
    let mut head = Vec::with_capacity(FIXED_BYTES + namespace.len() + key.as_bytes().len() + tags);
    head.extend_from_slice(&MAGIC);
    for number in [ticket.inc, ticket.pos, meta.gone_at_ms] {
        head.extend_from_slice(&number.to_le_bytes());
    }
    head.extend_from_slice(&meta.stamp.to_bytes());
    head.extend_from_slice(&[u8::from(meta.kind == EntryKind::Set), 0]);
    // The limits of namespaces, keys and tags are far below what these fields hold.
    head.extend_from_slice(&(namespace.len() as u16).to_le_bytes());
    head.extend_from_slice(&(key.as_bytes().len() as u32).to_le_bytes());
    head.extend_from_slice(&(tags as u32).to_le_bytes());
    head.extend_from_slice(&(sealed.len() as u64).to_le_bytes());
    head.extend_from_slice(&xxh3_64(sealed).to_le_bytes());
    head.extend_from_slice(&[0; 8]);
    head.extend_from_slice(namespace);
    head.extend_from_slice(key.as_bytes());
    for tag in meta.tags.iter() {
        head.extend_from_slice(&(tag.len() as u16).to_le_bytes());
        head.extend_from_slice(tag.as_bytes());
    }
    let sum = head_sum(&head[..CHECKED_BYTES], &head[FIXED_BYTES..]);
    head[CHECKED_BYTES..FIXED_BYTES].copy_from_slice(&sum.to_le_bytes());
    head
}

/// Reads a whole file: its head, and its body without a copy.
pub(super) fn decode(file: Vec<u8>) -> Option<(Head, Bytes)> {
    let head = Head::decode(&file).ok()?;
    if head.file_bytes() != file.len() as u64 || xxh3_64(&file[head.body_at..]) != head.body_sum {
        return None;
    }
    let body = Bytes::from(file).slice(head.body_at..);
    Some((head, body))
}

/// Makes magic number and checksums right, whatever the bytes are.
pub(super) fn reseal(mut file: Vec<u8>) -> Vec<u8> {
    let Some(fixed) = file.first_chunk::<FIXED_BYTES>() else { return file };
    let u32_at = |at: usize| u32::from_le_bytes(fixed[at..at + 4].try_into().expect("4 bytes")) as usize;
    let names = usize::from(u16::from_le_bytes([fixed[46], fixed[47]]))
        .saturating_add(u32_at(48))
        .saturating_add(u32_at(52));
    let body_at = FIXED_BYTES.saturating_add(names).min(file.len());
    let (body_bytes, body_sum) = ((file.len() - body_at) as u64, xxh3_64(&file[body_at..]));
    file[..8].copy_from_slice(&MAGIC);
    file[56..64].copy_from_slice(&body_bytes.to_le_bytes());
    file[64..72].copy_from_slice(&body_sum.to_le_bytes());
    let sum = head_sum(&file[..CHECKED_BYTES], &file[FIXED_BYTES..body_at]);
    file[CHECKED_BYTES..FIXED_BYTES].copy_from_slice(&sum.to_le_bytes());
    file
}

/// Where an entry is: a folder of 256, and a name in it. Both come from a SHA-256 of namespace and key, so
/// that no key chooses its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) shard: u8,
    pub(super) name: String,
}

/// Characters of a file's name.
pub(super) const NAME_CHARS: usize = 32;

impl Place {
    pub(super) fn of(key: &EntryKey) -> Place {
        let namespace = key.namespace().as_str();
        let hash = Sha256::new()
            .chain_update([namespace.len() as u8])
            .chain_update(namespace)
            .chain_update(key.as_bytes())
            .finalize();
        let mut name = String::with_capacity(NAME_CHARS);
        for byte in &hash[..NAME_CHARS / 2] {
            write!(name, "{byte:02x}").expect("a string takes any text");
        }
        Place { shard: hash[0], name }
    }

    /// The place of a file that was found, if its name is one of larder's.
    pub(super) fn parse(shard: u8, name: &str) -> Option<Place> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let is_name = name.len() == NAME_CHARS
            && name.bytes().all(is_hex)
            && u8::from_str_radix(&name[..2], 16) == Ok(shard);
        is_name.then(|| Place { shard, name: name.to_owned() })
    }
}

fn head_sum(fixed: &[u8], rest: &[u8]) -> u64 {
    let mut sum = Xxh3::new();
    sum.update(fixed);
    sum.update(rest);
    sum.digest()
}

fn decode_tags(mut bytes: &[u8]) -> Option<Tags> {
    let mut tags = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (tag, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        tags.push(std::str::from_utf8(tag).ok()?);
        bytes = rest;
    }
    Tags::new(tags).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(super) mod tests {
    use super::*;
    use crate::backend::Ticket;
    use crate::entry::Meta;

    pub(in super::super) fn sample(body: &'static [u8]) -> Put {
        let meta = Meta {
            kind: EntryKind::Set,
            stamp: Stamp::new(5, 6, 7),
            created_ms: 0,
            fresh_until_ms: NEVER_MS,
            revalidate_until_ms: NEVER_MS,
            gone_at_ms: NEVER_MS - 1,
            load_ms: 0,
            is_negative: false,
            tags: Tags::new(["red", "blue"]).unwrap(),
        };
        let key = EntryKey::new(&Namespace::new("n").unwrap(), "key").unwrap();
        Put { key, meta, sealed: Bytes::from_static(body), ticket: Ticket { inc: 1, pos: 2 } }
    }

    fn file(body: &'static [u8]) -> Vec<u8> {
        let mut file = encode_head(&sample(body));
        file.extend_from_slice(body);
        file
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for body in [&b""[..], b"body"] {
            let (head, read) = decode(file(body)).unwrap();
            assert_eq!(read, body);
            assert_eq!((head.inc, head.seen, head.gone_at_ms), (1, 2, NEVER_MS - 1));
            assert_eq!((head.key.text().as_ref(), head.stamp), ("key", Stamp::new(5, 6, 7)));
            assert!(head.tags.contains("red") && head.tags.contains("blue"));
        }
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let file = file(b"body");
        for at in 0..file.len() {
            for bit in 0..8 {
                let mut flipped = file.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(decode(flipped), None, "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn every_truncation_and_every_addition_is_refused() {
        let file = file(b"body");
        for end in 0..file.len() {
            assert_eq!(decode(file[..end].to_vec()), None, "cut at {end}");
        }
        let mut longer = file;
        longer.push(0);
        assert_eq!(decode(longer), None);
    }

    /// What the fuzzer does for longer: behind the checksums, any bytes are taken or refused.
    #[test]
    fn any_bytes_behind_right_checksums_are_no_panic() {
        let (whole, mut accepted) = (file(b"body"), 0);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..20_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.usize(1..4) {
                let at = random.usize(..bytes.len());
                bytes[at] = random.u8(..);
            }
            bytes.truncate(random.usize(FIXED_BYTES..=bytes.len()));
            accepted += u32::from(decode(reseal(bytes)).is_some());
        }
        assert!(accepted > 1000, "{accepted}: the checksums were not made right");
    }

    #[test]
    fn a_place_is_parsed_only_in_its_own_folder() {
        let place = Place::of(&sample(b"").key);
        assert_eq!(Place::parse(place.shard, &place.name), Some(place.clone()));
        assert_eq!(Place::parse(place.shard ^ 1, &place.name), None);
        for name in ["", "..", "../../../../../../../../../../etc/", &place.name.to_uppercase()] {
            assert_eq!(Place::parse(place.shard, name), None);
        }
    }
}
