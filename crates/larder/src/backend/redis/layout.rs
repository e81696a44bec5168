//! What larder keeps in Redis, byte for byte.
//!
//! A namespace is split over shards, each a store of its own with an incarnation and positions; a hash tag
//! keeps the keys of a shard in one slot, so that scripts are atomic in a cluster, too. `P` is the prefix:
//!
//! | key | type | holds |
//! |---|---|---|
//! | `{P:namespace:shard}m` | hash | `run` (which process it was begun on, and since when that was master: half of `run_id` and half of `master_replid`), `inc` (8 bytes), `pos`, `c` (clear), `f` (floor), `mp` (last tag marker), `n` (markers), `ls` (last stamp, 12 bytes), `r<stripe>`, `s<stripe>`, `t<tag>` |
//! | `{P:namespace:shard}e:<key>` | string | an entry: see [`Head`] |
//! | `{P:namespace:shard}l` | stream | the log: ids `0-<pos>`; `k` (`r`emove, `s`et, `t`ag, `c`lear, `f`loor, `p`attern), `n` (key, tag or pattern), `o` (origin: the backend that wrote it, new at each start), `s` (a set's stamp in hex). The same is published on a channel of that name |
//! | `P:shards` | string | how many shards a namespace has: two nodes that differ would never meet |
//! | `P:stores` | set | the hash tags in use |

use crate::backend::Miss;
use crate::clock::NEVER_MS;
use crate::entry::EntryKind;
use crate::key::{EntryKey, Namespace};
use crate::stamp::Stamp;
use bytes::Bytes;

/// Fences per shard. Two keys share one with probability 1/4096, which costs at worst a miss.
const STRIPES: u64 = 4096;
/// Hash slots of a cluster.
pub(super) const SLOTS: u16 = 16384;
/// The fixed part of an entry.
pub(super) const HEAD_BYTES: usize = 39;

/// The stripe of a key.
pub(super) fn stripe(key: &EntryKey) -> u64 {
    key.hash64() % STRIPES
}

/// A store: one shard of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Store {
    /// `{P:namespace:shard}`
    tag: Bytes,
    slot: u16,
}

impl Store {
    pub(super) fn new(prefix: &str, namespace: &Namespace, shard: u32) -> Self {
        let tag = format!("{{{prefix}:{namespace}:{shard}}}");
        let slot = slot(tag.as_bytes());
        Store { tag: Bytes::from(tag), slot }
    }

    /// The store of a key.
    pub(super) fn of(prefix: &str, shards: u32, key: &EntryKey) -> Self {
        // Not the bits that choose the stripe.
        let shard = (key.hash64() >> 32) as u32 % shards;
        Store::new(prefix, key.namespace(), shard)
    }

    /// The hash slot of all its keys.
    pub(super) fn slot(&self) -> u16 {
        self.slot
    }

    pub(super) fn tag(&self) -> &[u8] {
        &self.tag
    }

    pub(super) fn meta(&self) -> Vec<u8> {
        [&self.tag[..], b"m"].concat()
    }

    pub(super) fn log(&self) -> Vec<u8> {
        [&self.tag[..], b"l"].concat()
    }

    /// What the names of entries begin with.
    pub(super) fn entry_prefix(&self) -> Vec<u8> {
        [&self.tag[..], b"e:"].concat()
    }

    pub(super) fn entry(&self, key: &EntryKey) -> Vec<u8> {
        [&self.tag[..], b"e:", key.as_bytes()].concat()
    }
}

/// The pattern of all entries, or those of one namespace, for `SCAN`. Neither prefixes nor namespaces have
/// characters that are special in it.
pub(super) fn entries_pattern(prefix: &str, namespace: Option<&Namespace>) -> String {
    let namespace = namespace.map_or("*", Namespace::as_str);
    format!("{{{prefix}:{namespace}:*}}e:*")
}

/// The store and the key of an entry's name, if it is one under this prefix.
pub(super) fn parse_entry_name(prefix: &str, name: &[u8]) -> Option<(Store, EntryKey)> {
    let rest = name.strip_prefix(b"{")?.strip_prefix(prefix.as_bytes())?.strip_prefix(b":")?;
    let end = rest.iter().position(|byte| *byte == b'}')?;
    let (place, rest) = rest.split_at(end);
    let bytes = rest.strip_prefix(b"}e:")?;
    let (namespace, shard) = std::str::from_utf8(place).ok()?.rsplit_once(':')?;
    let namespace = Namespace::new(namespace).ok()?;
    let key = EntryKey::from_bytes(&namespace, Bytes::copy_from_slice(bytes)).ok()?;
    let shard: u32 = shard.parse().ok()?;
    let store = Store::new(prefix, &namespace, shard);
    // "01" names another key than "1".
    name.starts_with(store.tag()).then_some((store, key))
}

/// The namespace of a log's name, if it is one under this prefix.
pub(super) fn parse_log_name(prefix: &str, name: &[u8]) -> Option<Namespace> {
    let place = name.strip_prefix(b"{")?.strip_prefix(prefix.as_bytes())?.strip_prefix(b":")?;
    let place = place.strip_suffix(b"}l")?;
    let (namespace, shard) = std::str::from_utf8(place).ok()?.rsplit_once(':')?;
    let namespace = Namespace::new(namespace).ok()?;
    let store = Store::new(prefix, &namespace, shard.parse().ok()?);
    // "01" names another log than "1".
    (store.log() == name).then_some(namespace)
}

/// The meta record's fields that every read needs, as `HMGET` gives them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meta {
    pub(super) inc: u64,
    pub(super) pos: u64,
    pub(super) clear: u64,
    pub(super) marked: u64,
}

/// `run`, then the fields of a [`Meta`] in its order.
pub(super) const META_FIELDS: [&str; 5] = ["run", "inc", "pos", "c", "mp"];

/// The fixed part of an entry, big-endian: `seen` 8, kind 1 (`l` or `s`), `inc` 8, stamp 12, gone at 8, bytes
/// of tags 2. The tags follow, each with its length in 2 bytes, then the envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) seen: u64,
    pub(super) inc: u64,
    pub(super) stamp: Stamp,
    pub(super) gone_at_ms: u64,
    pub(super) tags_bytes: usize,
}

impl Head {
    /// The head of an entry; `None` for what larder never wrote.
    pub(super) fn parse(entry: &[u8]) -> Option<Head> {
        let head = entry.get(..HEAD_BYTES)?;
        let u64_at = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        if !matches!(head[8], b'l' | b's') {
            return None;
        }
        Some(Head {
            seen: u64_at(0),
            inc: u64_at(9),
            stamp: Stamp::from_bytes(head[17..29].try_into().expect("12 bytes")),
            gone_at_ms: u64_at(29),
            tags_bytes: usize::from(u16::from_be_bytes([head[37], head[38]])),
        })
    }

    /// Rule A3 as far as it can be judged without the markers of its tags, then the clock.
    pub(super) fn why_invalid(&self, meta: &Meta, now_ms: u64) -> Option<Miss> {
        if self.inc != meta.inc {
            return Some(Miss::Incarnation);
        }
        if self.seen < meta.clear {
            return Some(Miss::Cleared);
        }
        if self.stamp.is_distrusted(now_ms) {
            return Some(Miss::Clock);
        }
        (self.gone_at_ms != NEVER_MS && self.gone_at_ms <= now_ms).then_some(Miss::Expired)
    }

    /// Whether a marker moved since it was written that may be one of its tags'.
    pub(super) fn needs_markers(&self, meta: &Meta) -> bool {
        self.tags_bytes > 0 && self.seen < meta.marked
    }
}

/// Everything of an entry but `seen`, which the script puts in front.
pub(super) fn encode_entry(put: &crate::backend::Put) -> Vec<u8> {
    let crate::entry::Meta { kind, stamp, gone_at_ms, tags, .. } = &put.meta;
    let tags_bytes: usize = tags.iter().map(|tag| 2 + tag.len()).sum();
    let mut out = Vec::with_capacity(HEAD_BYTES - 8 + tags_bytes + put.sealed.len());
    out.push(if *kind == EntryKind::Set { b's' } else { b'l' });
    out.extend_from_slice(&put.ticket.inc.to_be_bytes());
    out.extend_from_slice(&stamp.to_bytes());
    out.extend_from_slice(&gone_at_ms.to_be_bytes());
    // At most 64 tags of at most 256 bytes.
    out.extend_from_slice(&(tags_bytes as u16).to_be_bytes());
    for tag in tags.iter() {
        out.extend_from_slice(&(tag.len() as u16).to_be_bytes());
        out.extend_from_slice(tag.as_bytes());
    }
    out.extend_from_slice(&put.sealed);
    out
}

/// The tags of an entry, from the bytes after its head.
pub(super) fn decode_tags(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut tags = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<2>()
        && let Some((tag, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
    {
        tags.push(tag);
        bytes = rest;
    }
    tags
}

/// The hash slot of a key: that of its hash tag, if it has one.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let length = key[open + 1..].iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &key[open + 1..open + 1 + length])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM, by which a cluster assigns keys to slots.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    })
}

#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn slots_are_the_clusters() {
        // From the cluster specification, and CLUSTER KEYSLOT.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"{foo}bar"), 12182);
        assert_eq!(slot(b"{}foo"), crc16(b"{}foo") % SLOTS);
    }

    #[test]
    fn names_lead_back_to_their_keys() {
        for (prefix, namespace) in [("larder", "a:b"), ("p", "n@t-1")] {
            let namespace = Namespace::new(namespace).unwrap();
            let key = EntryKey::new(&namespace, &("}e:", 1)).unwrap();
            let store = Store::of(prefix, 4, &key);
            assert_eq!(parse_entry_name(prefix, &store.entry(&key)), Some((store.clone(), key)));
            assert_eq!(parse_entry_name(prefix, &store.meta()), None);
            assert_eq!(parse_entry_name("other", &store.meta()), None);
        }
        let name = b"{p:n:0}e:\x05some key of a test";
        for cut in 0..=name.len() {
            assert_eq!(parse_entry_name("p", &name[..cut]).is_some(), cut > 9, "{cut}");
        }
    }

    #[test]
    fn heads_and_tags_are_total() {
        let bytes: Vec<u8> = (0..=80).collect();
        for length in 0..bytes.len() {
            Head::parse(&bytes[..length]);
            decode_tags(&bytes[..length]);
        }
        assert_eq!(decode_tags(b"\0\x01a\0\x02bc"), [&b"a"[..], b"bc"]);
    }
}
