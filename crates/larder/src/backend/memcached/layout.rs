//! What larder keeps in memcached, byte for byte.
//!
//! A server orders everything that it holds by CAS numbers, which grow with each write to any item. They are the
//! positions of the protocol; so each server is a store of its own. `P` is the prefix:
//!
//! | key | holds |
//! |---|---|
//! | `P:m:<namespace>` | the record of a namespace on this server: its incarnation, 20 digits. Removed by a clear, so that the next is another; its CAS number is that of the last mark |
//! | `P:t:<namespace>/<tag>` | nothing but the CAS number of the tag's last mark |
//! | `P:e:<namespace>/<text>` | an entry: see [`Entry`]; empty, a placeholder: nothing is there, and its CAS number is the position of the last removal |
//! | `P:c:<id>:<n>` | a piece of a large envelope |
//!
//! A name that is too long, or has bytes that a key may not have, becomes `P:h<letter>:` and the SHA-256 of what it
//! stands for; entries repeat their whole key then.

use super::fault::NAME;
use super::wire::KEY_BYTES_MAX;
use crate::backend::{Miss, Put, Ticket};
use crate::clock::NEVER_MS;
use crate::entry::EntryKind;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace};
use crate::stamp::Stamp;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};

/// The key of a namespace's record.
pub(super) fn record_key(prefix: &str, namespace: &Namespace) -> Bytes {
    name(prefix, 'm', namespace, None).0
}

/// The key of a tag's marker.
pub(super) fn tag_key(prefix: &str, namespace: &Namespace, tag: &str) -> Bytes {
    name(prefix, 't', namespace, Some(tag.as_bytes())).0
}

/// The key of an entry, and whether it is hashed.
pub(super) fn entry_key(prefix: &str, key: &EntryKey) -> (Bytes, bool) {
    match key.decode_str() {
        Some(text) => name(prefix, 'e', key.namespace(), Some(text.as_bytes())),
        None => (hashed(prefix, 'b', key.namespace(), Some(key.as_bytes())), true),
    }
}

/// The key of a piece.
pub(super) fn piece_key(prefix: &str, id: u128, number: u32) -> Bytes {
    Bytes::from(format!("{prefix}:c:{id:032x}:{number}"))
}

fn name(prefix: &str, letter: char, namespace: &Namespace, rest: Option<&[u8]>) -> (Bytes, bool) {
    let rest_bytes = rest.unwrap_or_default();
    let length = prefix.len() + 4 + namespace.as_str().len() + rest_bytes.len();
    // Bytes above 0x7f are allowed, and would show as anything in a terminal.
    if length > KEY_BYTES_MAX || !rest_bytes.iter().all(u8::is_ascii_graphic) {
        return (hashed(prefix, letter, namespace, rest), true);
    }
    let mut out = Vec::with_capacity(length);
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(&[b':', letter as u8, b':']);
    out.extend_from_slice(namespace.as_str().as_bytes());
    if rest.is_some() {
        // No namespace has a slash in it, so that no two names are the same.
        out.push(b'/');
        out.extend_from_slice(rest_bytes);
    }
    (Bytes::from(out), false)
}

fn hashed(prefix: &str, letter: char, namespace: &Namespace, rest: Option<&[u8]>) -> Bytes {
    let mut hash = Sha256::new();
    hash.update(namespace.as_str().as_bytes());
    if let Some(rest) = rest {
        hash.update(b"/");
        hash.update(rest);
    }
    Bytes::from(format!("{prefix}:h{letter}:{}", URL_SAFE_NO_PAD.encode(hash.finalize())))
}

/// The record of a namespace on a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Random, new whenever the server may have forgotten a removal.
    pub(super) inc: u64,
    /// The position of the last mark.
    pub(super) marked: u64,
}

impl Record {
    /// The record in an item, if it is one.
    pub(super) fn parse(value: &[u8], cas: u64) -> Option<Record> {
        let inc = std::str::from_utf8(value).ok()?.trim_end().parse().ok()?;
        Some(Record { inc, marked: cas })
    }

    /// What a record of an incarnation holds: memcached adds nothing to it, and so leaves its length.
    pub(super) fn value(inc: u64) -> Bytes {
        Bytes::from(format!("{inc:020}"))
    }
}

/// A ticket's position, and whether a write with it has to look first at what is there: it need not where the
/// position is the CAS number of a placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) at: u64,
    pub(super) looks_first: bool,
}

impl Position {
    pub(super) fn ticket(self, inc: u64) -> Ticket {
        Ticket { inc, pos: self.at << 1 | u64::from(self.looks_first) }
    }

    pub(super) fn of(ticket: Ticket) -> Position {
        Position { at: ticket.pos >> 1, looks_first: ticket.pos & 1 == 1 }
    }
}

/// What larder knows of an item at an entry's key without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) cas: u64,
    /// The position of the last removal: the CAS number of the placeholder that it all began with.
    pub(super) root: u64,
    /// The position of the last set, or `root`.
    pub(super) changed: u64,
}

impl Standing {
    /// Of a placeholder, and of anything that says nothing about positions here.
    pub(super) fn begun(cas: u64) -> Standing {
        Standing { cas, root: cas, changed: cas }
    }

    /// The ticket's position for a write that begins now.
    pub(super) fn position(self, record: Record) -> Position {
        let at = self.changed.max(record.marked);
        Position { at, looks_first: at != self.root }
    }
}

/// An entry. Fixed part, big-endian: version 1, what it is 1 (`l`oad, `s`et, `n`othing), whether its body is a
/// list of pieces 1, `inc` 8, `root` 8, `changed` 8 (0: its own CAS number), `seen` 8, stamp 12, gone at 8, bytes
/// of the key 2 (0 unless it is hashed), number of tags 1. Then the key, the tags, each with the position of its
/// marker 8 and its length 2, and the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) kind: Option<EntryKind>,
    pub(super) is_in_pieces: bool,
    pub(super) inc: u64,
    pub(super) root: u64,
    pub(super) changed: u64,
    /// No mark up to this position concerns it.
    pub(super) seen: u64,
    pub(super) stamp: Stamp,
    pub(super) gone_at_ms: u64,
    /// Its tags, and the positions of their markers when it was written.
    pub(super) tags: Vec<(Bytes, u64)>,
    /// The envelope, or a list of pieces.
    pub(super) body: Bytes,
}

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 58;
/// A namespace, a slash and a key: 128, a tenant's 128, a key's 1,024.
const FULL_KEY_BYTES_MAX: usize = 2048;
/// Most bytes of an entry that are not its body: 64 tags of 256 bytes, and its key.
pub(super) const ENTRY_HEAD_BYTES_MAX: usize = HEAD_BYTES + FULL_KEY_BYTES_MAX + 64 * (256 + 10);

impl Entry {
    /// The entry of this key in an item; `None` for a placeholder and for what larder never wrote.
    pub(super) fn parse(value: &Bytes, key: &EntryKey, is_hashed: bool) -> Option<Entry> {
        let head = value.get(..HEAD_BYTES)?;
        let u64_at = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("8 bytes"));
        let kind = match head[1] {
            b'l' => Some(EntryKind::Load),
            b's' => Some(EntryKind::Set),
            b'n' => None,
            _ => return None,
        };
        if head[0] != VERSION || head[2] > 1 {
            return None;
        }
        let key_bytes = usize::from(u16::from_be_bytes([head[55], head[56]]));
        let mut rest = value.slice(HEAD_BYTES..);
        let mut take = |bytes: usize| (rest.len() >= bytes).then(|| rest.split_to(bytes));
        let whole = take(key_bytes)?;
        if if is_hashed { whole != full_key(key) } else { !whole.is_empty() } {
            return None;
        }
        let mut tags = Vec::with_capacity(usize::from(head[57]));
        for _ in 0..head[57] {
            let fixed = take(10)?;
            let marker = u64::from_be_bytes(fixed[..8].try_into().expect("8 bytes"));
            tags.push((take(usize::from(u16::from_be_bytes([fixed[8], fixed[9]])))?, marker));
        }
        Some(Entry {
            kind,
            is_in_pieces: head[2] == 1,
            inc: u64_at(3),
            root: u64_at(11),
            changed: u64_at(19),
            seen: u64_at(27),
            stamp: Stamp::from_bytes(head[35..47].try_into().expect("12 bytes")),
            gone_at_ms: u64_at(47),
            tags,
            body: rest,
        })
    }

    /// Everything but the body.
    pub(super) fn encode_head(&self, key: &EntryKey, is_hashed: bool) -> Bytes {
        let whole = if is_hashed { full_key(key) } else { Vec::new() };
        let tags_bytes: usize = self.tags.iter().map(|(tag, _)| 10 + tag.len()).sum();
        let mut out = BytesMut::with_capacity(HEAD_BYTES + whole.len() + tags_bytes);
        out.put_u8(VERSION);
        out.put_u8(match self.kind {
            Some(EntryKind::Load) => b'l',
            Some(EntryKind::Set) => b's',
            None => b'n',
        });
        out.put_u8(u8::from(self.is_in_pieces));
        for number in [self.inc, self.root, self.changed, self.seen] {
            out.put_u64(number);
        }
        out.put_slice(&self.stamp.to_bytes());
        out.put_u64(self.gone_at_ms);
        // At most 2 KiB, and at most 64 tags of at most 256 bytes.
        out.put_u16(whole.len() as u16);
        out.put_u8(self.tags.len() as u8);
        out.put_slice(&whole);
        for (tag, marker) in &self.tags {
            out.put_u64(*marker);
            out.put_u16(tag.len() as u16);
            out.put_slice(tag);
        }
        out.freeze()
    }

    /// Where it stands, in an item with this CAS number. What another incarnation wrote says nothing.
    pub(super) fn standing(&self, cas: u64, record: Record) -> Standing {
        if self.inc != record.inc {
            return Standing::begun(cas);
        }
        Standing { cas, root: self.root, changed: if self.changed == 0 { cas } else { self.changed } }
    }

    /// Why it is not valid, as far as it can be judged without the markers of its tags: rule A3 and the clock.
    pub(super) fn why_invalid(&self, record: Record, now_ms: u64) -> Option<Miss> {
        if self.kind.is_none() {
            return Some(Miss::Absent);
        }
        if self.inc != record.inc {
            return Some(Miss::Cleared);
        }
        if self.stamp.is_distrusted(now_ms) {
            return Some(Miss::Clock);
        }
        (self.gone_at_ms != NEVER_MS && self.gone_at_ms <= now_ms).then_some(Miss::Expired)
    }

    /// Whether a tag was marked since it was written that may be one of its own.
    pub(super) fn needs_markers(&self, record: Record) -> bool {
        !self.tags.is_empty() && record.marked > self.seen
    }
}

fn full_key(key: &EntryKey) -> Vec<u8> {
    [key.namespace().as_str().as_bytes(), b"/", key.as_bytes()].concat()
}

/// The list of pieces that stands for a large envelope, big-endian: id 16, bytes of all 8, bytes of a piece (the
/// last may have fewer) 4, XXH3-64 of all 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    /// Random: pieces of two writes never meet.
    pub(super) id: u128,
    pub(super) bytes: u64,
    pub(super) piece_bytes: u32,
    pub(super) checksum: u64,
}

impl Pieces {
    pub(super) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(36);
        out.put_u128(self.id);
        out.put_u64(self.bytes);
        out.put_u32(self.piece_bytes);
        out.put_u64(self.checksum);
        out.freeze()
    }

    /// The list, unless it is none or stands for more than this.
    pub(super) fn parse(body: &[u8], bytes_max: u64) -> Option<Pieces> {
        let body: &[u8; 36] = body.try_into().ok()?;
        let pieces = Pieces {
            id: u128::from_be_bytes(body[..16].try_into().expect("16 bytes")),
            bytes: u64::from_be_bytes(body[16..24].try_into().expect("8 bytes")),
            piece_bytes: u32::from_be_bytes(body[24..28].try_into().expect("4 bytes")),
            checksum: u64::from_be_bytes(body[28..].try_into().expect("8 bytes")),
        };
        // Pieces of less than a KiB are no server's, and would be a great many.
        (pieces.bytes <= bytes_max && pieces.piece_bytes >= 1024).then_some(pieces)
    }

    pub(super) fn count(self) -> u32 {
        u32::try_from(self.bytes.div_ceil(u64::from(self.piece_bytes))).unwrap_or(u32::MAX)
    }

    /// The bytes of piece number `number`.
    pub(super) fn length(self, number: u32) -> usize {
        let before = u64::from(number) * u64::from(self.piece_bytes);
        self.bytes.saturating_sub(before).min(u64::from(self.piece_bytes)) as usize
    }
}

/// Refuses an envelope that is over the limit.
pub(super) fn check_size(put: &Put, bytes_max: u64, why: &str) -> Result<()> {
    let bytes = put.sealed.len();
    if bytes as u64 <= bytes_max {
        return Ok(());
    }
    Err(Error::new(ErrorKind::TooLarge, "put")
        .backend(NAME)
        .key(&put.key.text())
        .message(format!("the envelope has {bytes} bytes; at most {bytes_max} are allowed ({why})")))
}

#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn shown(namespace: &str, key: &str) -> (String, bool) {
        let key = EntryKey::new(&Namespace::new(namespace).unwrap(), key).unwrap();
        let (name, is_hashed) = entry_key("p", &key);
        (String::from_utf8(name.to_vec()).unwrap(), is_hashed)
    }

    #[test]
    fn names_are_readable_where_they_can_be_and_never_meet() {
        assert_eq!(shown("users", "1"), ("p:e:users/1".to_owned(), false));
        assert_eq!(shown("users", "a b").0.len(), 5 + 43);
        let long = "k".repeat(300);
        let names = ["1", "", "a b", "a\r\nb", "\u{fc}", "m", "users/1", &long];
        let mut found = HashSet::new();
        for namespace in ["users", "users:1", "users:1:x@t", &"n".repeat(128)] {
            let namespace = Namespace::new(namespace).unwrap();
            assert!(found.insert(record_key("p", &namespace)));
            for text in names {
                let key = EntryKey::new(&namespace, text).unwrap();
                let (name, _) = entry_key("p", &key);
                assert!(name.len() <= KEY_BYTES_MAX && name.iter().all(u8::is_ascii_graphic), "{name:?}");
                assert!(found.insert(name), "{namespace} {text}");
                assert!(found.insert(tag_key("p", &namespace, text)), "{namespace} {text}");
            }
            for key in [EntryKey::new(&namespace, &1).unwrap(), EntryKey::new(&namespace, &("1", 1)).unwrap()]
            {
                assert!(found.insert(entry_key("p", &key).0));
            }
        }
    }

    #[test]
    fn entries_come_back_and_are_total() {
        let key = EntryKey::new(&Namespace::default(), "a b").unwrap();
        let other = EntryKey::new(&Namespace::default(), "a c").unwrap();
        let entry = Entry {
            kind: Some(EntryKind::Set),
            is_in_pieces: true,
            inc: 1,
            root: 2,
            changed: 3,
            seen: 4,
            stamp: Stamp::new(5, 6, 7),
            gone_at_ms: 8,
            tags: vec![(Bytes::from_static(b"red"), 9), (Bytes::from_static(b"blue"), u64::MAX)],
            body: Bytes::from_static(b"body"),
        };
        for is_hashed in [false, true] {
            let value = Bytes::from([&entry.encode_head(&key, is_hashed)[..], b"body"].concat());
            assert_eq!(Entry::parse(&value, &key, is_hashed), Some(entry.clone()));
            // A hash that two keys share is no entry of the other.
            assert_eq!(Entry::parse(&value, &other, true), None);
            for cut in 0..value.len() - 4 {
                assert_eq!(Entry::parse(&value.slice(..cut), &key, is_hashed), None);
            }
        }
    }

    #[test]
    fn lists_of_pieces_are_bounded() {
        let pieces = Pieces { id: 1, bytes: 2500, piece_bytes: 1024, checksum: 2 };
        assert_eq!(Pieces::parse(&pieces.encode(), 2500), Some(pieces));
        assert_eq!(Pieces::parse(&pieces.encode(), 2499), None);
        assert_eq!(Pieces::parse(&Pieces { piece_bytes: 0, ..pieces }.encode(), 2500), None);
        assert_eq!((pieces.count(), pieces.length(0), pieces.length(2), pieces.length(3)), (3, 1024, 452, 0));
    }
}
