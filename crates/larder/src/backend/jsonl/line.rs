//! One line: its layout, as the parent module describes it. Knows no file and no rule of the protocol.

use crate::backend::Mark;
use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, Meta, Tags};
use crate::envelope::{Codec, Compression, Envelope, Sealing};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::borrow::Cow;
use xxhash_rust::xxh3::xxh3_64;

/// Longest line, in bytes. An entry may take a little less, for its key and tags.
pub(super) const LINE_BYTES_MAX: usize = 64 << 20;
/// What every line begins with: `{"len":"00000000","sum":"0000000000000000",`.
pub(super) const PREFIX_BYTES: usize = 43;
/// How a line begins, by which the scan finds its way again after a damaged one.
pub(super) const START: &[u8] = br#"{"len":""#;
const SUM: &[u8] = br#"","sum":""#;
/// The version of the layout.
pub(super) const VERSION: u32 = 1;

/// What a line does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Op {
    /// The first line of a file.
    Shard,
    /// An entry of a set. Moves the position, as the next four do.
    Set,
    /// A removal of a key, or a set that was refused.
    Remove,
    /// A removal of a tag.
    Tag,
    /// A removal of a namespace.
    Clear,
    /// A removal of what matches a pattern.
    Match,
    /// An entry of a load. Doesn't move the position, like all that follow.
    Load,
    /// An entry that could not be opened is no longer there.
    Drop,
    /// From here on lines are not synced one by one.
    Unsynced,
    /// All lines before this one are on the disk.
    Synced,
}

impl Op {
    /// Whether the line takes a position of its own.
    pub(super) fn moves(self) -> bool {
        matches!(self, Op::Set | Op::Remove | Op::Tag | Op::Clear | Op::Match)
    }
}

/// What the mover before a line did, so that its loss can be made good: the fence of its key.
pub(super) const WIDE: i32 = -1;

/// The fields of a line. Which ones are there depends on `op`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line<'a> {
    #[serde(skip_serializing, default, rename = "len")]
    _len: serde::de::IgnoredAny,
    #[serde(skip_serializing, default, rename = "sum")]
    _sum: serde::de::IgnoredAny,
    pub(super) op: Op,
    /// The store's position after this line.
    pub(super) at: u64,
    /// The fence of the last mover's key, or [`WIDE`].
    pub(super) prev: i32,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    ns: Option<Cow<'a, str>>,
    /// The key, if it is a string.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    /// The canonical bytes of any other key, and its text for people.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    key64: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    tag: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    glob: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    stamp: Option<Cow<'a, str>>,
    /// When it is physically gone, in milliseconds since 1970; absent is never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gone: Option<u64>,
    /// A plain JSON payload as it is, and the envelope's bytes before and after it.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    head: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    tail: Option<Cow<'a, str>>,
    /// Any other envelope.
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    sealed: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) shard: Option<ShardLine>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    pub(super) boot: Option<Cow<'a, str>>,
}

/// What the first line of a file says of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShardLine {
    pub(super) version: u32,
    pub(super) inc: u64,
    /// Bytes of the entries that follow, in no order of positions: what the last rewriting kept.
    pub(super) kept_bytes: u64,
    /// The latest stamp that was accepted.
    pub(super) last_stamp: Option<String>,
}

/// An entry, as the index needs it.
pub(super) struct EntryHead {
    pub(super) key: EntryKey,
    pub(super) kind: EntryKind,
    pub(super) stamp: Stamp,
    pub(super) gone_at_ms: u64,
    pub(super) tags: Tags,
    /// The size of the envelope.
    pub(super) sealed_bytes: u32,
}

/// A line that has the right sum and yet makes no sense.
#[derive(Debug)]
pub(super) struct Nonsense;

impl<'a> Line<'a> {
    pub(super) fn new(op: Op, at: u64, prev: i32) -> Self {
        Line {
            _len: serde::de::IgnoredAny,
            _sum: serde::de::IgnoredAny,
            op,
            at,
            prev,
            ns: None,
            key: None,
            key64: None,
            text: None,
            tag: None,
            glob: None,
            tags: Vec::new(),
            stamp: None,
            gone: None,
            value: None,
            head: None,
            tail: None,
            sealed: None,
            shard: None,
            boot: None,
        }
    }

    pub(super) fn with_key(mut self, key: &'a EntryKey) -> Self {
        self.ns = Some(key.namespace().as_str().into());
        match key.decode_str() {
            Some(text) => self.key = Some(text.into()),
            None => {
                self.key64 = Some(STANDARD.encode(key.as_bytes()).into());
                self.text = Some(key.text());
            }
        }
        self
    }

    pub(super) fn with_entry(self, key: &'a EntryKey, meta: &'a Meta, sealed: &'a [u8]) -> Self {
        let mut line = self.with_key(key);
        line.tags = meta.tags.iter().map(Cow::Borrowed).collect();
        line.stamp = Some(meta.stamp.to_string().into());
        line.gone = (meta.gone_at_ms != NEVER_MS).then_some(meta.gone_at_ms);
        match readable(sealed) {
            Some((head, value, tail)) => {
                line.head = Some(STANDARD.encode(head).into());
                line.value = Some(value);
                line.tail = Some(STANDARD.encode(tail).into());
            }
            None => line.sealed = Some(STANDARD.encode(sealed).into()),
        }
        line
    }

    pub(super) fn with_mark(mut self, namespace: &'a Namespace, mark: &'a Mark) -> Self {
        self.ns = Some(namespace.as_str().into());
        if let Mark::Tag(tag) = mark {
            self.tag = Some((&**tag).into());
        }
        self
    }

    pub(super) fn with_pattern(mut self, namespace: &'a Namespace, pattern: &'a Pattern) -> Self {
        self.ns = Some(namespace.as_str().into());
        self.glob = Some(pattern.as_str().into());
        self
    }

    /// Appends the line, newline included.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        // The brace that opens the fields becomes the comma that ends the prefix.
        out.resize(start + PREFIX_BYTES - 1, b' ');
        serde_json::to_writer(&mut *out, self).expect("strings and numbers can be written to memory");
        out.push(b'\n');
        let length = out.len() - start;
        let sum = xxh3_64(&out[start + PREFIX_BYTES..]);
        let prefix = format!("{{\"len\":\"{length:08x}\",\"sum\":\"{sum:016x}\",");
        out[start..start + PREFIX_BYTES].copy_from_slice(prefix.as_bytes());
    }

    /// Reads a line, its newline included, if it is whole.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let fields = bytes.get(PREFIX_BYTES..)?;
        let sum = bytes.get(16..)?.strip_prefix(SUM)?.get(..16)?;
        let is_whole = length(bytes) == Some(bytes.len())
            && hex(sum) == Some(xxh3_64(fields))
            && bytes.get(PREFIX_BYTES - 2..PREFIX_BYTES) == Some(b"\",")
            && fields.last() == Some(&b'\n');
        if is_whole { Self::read_unsummed(bytes) } else { None }
    }

    /// The same whatever its length and sum say.
    pub(super) fn read_unsummed(bytes: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    pub(super) fn namespace(&self) -> Result<Namespace, Nonsense> {
        Namespace::new(self.ns.as_deref().ok_or(Nonsense)?).map_err(|_| Nonsense)
    }

    pub(super) fn entry_key(&self) -> Result<EntryKey, Nonsense> {
        let namespace = self.namespace()?;
        match (&self.key, &self.key64) {
            (Some(text), None) => EntryKey::new(&namespace, &**text).map_err(|_| Nonsense),
            (None, Some(bytes)) => {
                EntryKey::from_bytes(&namespace, decode(bytes)?.into()).map_err(|_| Nonsense)
            }
            _ => Err(Nonsense),
        }
    }

    pub(super) fn entry(&self) -> Result<EntryHead, Nonsense> {
        Ok(EntryHead {
            key: self.entry_key()?,
            kind: if self.op == Op::Set { EntryKind::Set } else { EntryKind::Load },
            stamp: stamp(self.stamp.as_deref().ok_or(Nonsense)?)?,
            gone_at_ms: self.gone.unwrap_or(NEVER_MS),
            tags: Tags::new(&self.tags).map_err(|_| Nonsense)?,
            sealed_bytes: u32::try_from(self.sealed_bytes()).map_err(|_| Nonsense)?,
        })
    }

    fn sealed_bytes(&self) -> usize {
        let decoded = |text: &Option<Cow<'_, str>>| {
            text.as_deref().map_or(0, |text| {
                let padding = text.bytes().rev().take_while(|byte| *byte == b'=').count();
                (text.len() / 4 * 3).saturating_sub(padding)
            })
        };
        let value = self.value.map_or(0, |value| value.get().len());
        decoded(&self.sealed) + decoded(&self.head) + value + decoded(&self.tail)
    }

    pub(super) fn mark(&self) -> Result<Mark, Nonsense> {
        match self.op {
            Op::Tag => Ok(Mark::Tag(self.tag.as_deref().ok_or(Nonsense)?.into())),
            _ => Ok(Mark::Clear),
        }
    }

    pub(super) fn pattern(&self) -> Result<Pattern, Nonsense> {
        Pattern::new(self.glob.as_deref().ok_or(Nonsense)?).map_err(|_| Nonsense)
    }

    /// The envelope, byte for byte.
    pub(super) fn sealed(&self) -> Result<Bytes, Nonsense> {
        match (&self.sealed, &self.head, self.value, &self.tail) {
            (Some(sealed), None, None, None) => Ok(decode(sealed)?.into()),
            (None, Some(head), Some(value), Some(tail)) => {
                let mut sealed = decode(head)?;
                sealed.extend_from_slice(value.get().as_bytes());
                sealed.extend_from_slice(&decode(tail)?);
                Ok(sealed.into())
            }
            _ => Err(Nonsense),
        }
    }
}

/// What a line says its length is, if it begins as a line does.
pub(super) fn length(bytes: &[u8]) -> Option<usize> {
    let digits = bytes.strip_prefix(START)?.get(..8)?;
    let length = usize::try_from(hex(digits)?).ok()?;
    (PREFIX_BYTES + 1..=LINE_BYTES_MAX).contains(&length).then_some(length)
}

pub(super) fn stamp(text: &str) -> Result<Stamp, Nonsense> {
    let mut bytes = [0; 12];
    if text.len() != 24 || !text.is_ascii() {
        return Err(Nonsense);
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = hex(digits).ok_or(Nonsense)? as u8;
    }
    Ok(Stamp::from_bytes(bytes))
}

/// Lower case only: one number has one spelling.
fn hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |number: u64, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

fn decode(text: &str) -> Result<Vec<u8>, Nonsense> {
    STANDARD.decode(text).map_err(|_| Nonsense)
}

/// The parts around a payload that may be shown: JSON in one line, neither compressed nor encrypted.
fn readable(sealed: &[u8]) -> Option<(&[u8], &RawValue, &[u8])> {
    const CHECKSUM_BYTES: usize = 8;
    let header = Envelope::header(sealed).ok()?;
    let is_plain = header.codec == Codec::Json
        && header.compression == Compression::None
        && header.sealing != Sealing::Encrypted;
    if !is_plain || header.payload_bytes == 0 {
        return None;
    }
    let end = sealed.len().checked_sub(CHECKSUM_BYTES)?;
    let start = end.checked_sub(header.payload_bytes as usize)?;
    let payload = &sealed[start..end];
    let value: &RawValue = serde_json::from_slice(payload).ok()?;
    // What surrounds the value would be lost, and a line has one newline.
    let is_exact = value.get().len() == payload.len() && !payload.iter().any(|byte| b"\n\r".contains(byte));
    is_exact.then_some((&sealed[..start], value, &sealed[end..]))
}

/// For the fuzz target: any bytes are refused, or are a line that comes back the same.
#[cfg(fuzzing)]
pub(super) fn check(bytes: &[u8]) {
    let Some(line) = Line::read(bytes) else { return };
    assert_eq!(bytes.len(), length(bytes).expect("a whole line has its length"));
    let mut again = Vec::new();
    line.write(&mut again);
    let second = Line::read(&again).expect("what was written is read");
    assert_eq!(second.at, line.at);
    if let (Ok(one), Ok(two)) = (line.sealed(), second.sealed()) {
        assert_eq!(one, two);
    }
    if let (Ok(one), Ok(two)) = (line.entry_key(), second.entry_key()) {
        assert_eq!(one, two);
    }
}
