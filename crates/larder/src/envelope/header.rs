//! The layout of version 1 as code: what stands before and after the payload.

use super::protection::{EXTENSION_BYTES, Sealer};
use super::{Codec, Compression, Refused};
use crate::entry::{EntryKind, Meta, TAGS_MAX, Tags};
use crate::key::EntryKey;
use crate::stamp::Stamp;
use bytes::Bytes;
use std::fmt;
use std::num::NonZeroU32;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// The version that is written, and the only one that is read.
pub const VERSION: u8 = 1;

const MAGIC: &[u8; 4] = b"LRDR";
/// The fields up to the tags.
const FIXED_BYTES: usize = 84;
const CHECKSUM_BYTES: usize = 8;
const FLAG_NEGATIVE: u8 = 1;
const FLAG_SIGNED: u8 = 2;

/// Which key protects an entry: a fingerprint of it that tells nothing about it. Shown in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(NonZeroU32);

impl KeyId {
    /// `None` for 0, which says "no key".
    pub fn new(id: u32) -> Option<Self> {
        NonZeroU32::new(id).map(KeyId)
    }

    /// The number as it stands in an envelope.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// What keeps an entry from being read or changed by its tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Sealing {
    /// Nothing: the checksum only finds accidents.
    Plain,
    /// It can be read, but not changed.
    Signed,
    /// It can't be read or changed.
    Encrypted,
}

impl Sealing {
    /// "plain", "signed" or "encrypted".
    pub fn name(self) -> &'static str {
        match self {
            Sealing::Plain => "plain",
            Sealing::Signed => "signed",
            Sealing::Encrypted => "encrypted",
        }
    }
}

/// What an envelope says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Header {
    /// What larder keeps of the entry beside its value.
    pub meta: Meta,
    /// How the value became bytes.
    pub codec: Codec,
    /// How these were compressed; none where that gained nothing.
    pub compression: Compression,
    /// How it is protected.
    pub sealing: Sealing,
    /// The key that does so; `None` for what is plain.
    pub key_id: Option<KeyId>,
    /// A hash of the value's type or schema.
    pub fingerprint: u64,
    /// Size of the encoded value.
    pub plain_bytes: u32,
    /// Size of the payload, which is the encoded value after compression.
    pub payload_bytes: u32,
}

/// A buffer with the tags in it and room for header and extension; the payload is to be appended.
pub(super) fn reserve(tags: &Tags, sealer: Option<&Sealer>) -> Vec<u8> {
    let mut out = Vec::with_capacity(FIXED_BYTES + tags_bytes(tags) + EXTENSION_BYTES + 128);
    out.resize(FIXED_BYTES, 0);
    for tag in tags.iter() {
        let length = u16::try_from(tag.len()).expect("a tag has at most 256 bytes");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(tag.as_bytes());
    }
    out.resize(out.len() + extension_bytes(sealer), 0);
    out
}

fn extension_bytes(sealer: Option<&Sealer>) -> usize {
    sealer.map_or(0, |_| EXTENSION_BYTES)
}

fn tags_bytes(tags: &Tags) -> usize {
    tags.iter().map(|tag| 2 + tag.len()).sum()
}

impl Header {
    /// Fills in the header of what began with [`reserve`] and has its payload, protects it by `sealer` (not
    /// by what the header says), and adds the checksum.
    pub(super) fn finish(&self, key: &EntryKey, mut out: Vec<u8>, sealer: Option<&Sealer>) -> Bytes {
        let Header { meta, codec, compression, fingerprint, plain_bytes, payload_bytes, .. } = self;
        let is_signed = sealer.is_some_and(|sealer| sealer.sealing() == Sealing::Signed);
        let flags =
            if meta.is_negative { FLAG_NEGATIVE } else { 0 } | if is_signed { FLAG_SIGNED } else { 0 };
        let key_id = sealer.map_or(0, |sealer| sealer.key_id().get());
        let extension_bytes = extension_bytes(sealer);
        let tags_bytes = u16::try_from(tags_bytes(&meta.tags)).expect("64 tags of 258 bytes");
        let mut fixed = Vec::with_capacity(FIXED_BYTES);
        fixed.extend_from_slice(MAGIC);
        fixed.extend_from_slice(&[VERSION, flags]);
        fixed.extend_from_slice(&[codec.id(), compression.id()]);
        fixed.extend_from_slice(&key_id.to_le_bytes());
        fixed.push(match meta.kind {
            EntryKind::Load => 0,
            EntryKind::Set => 1,
        });
        fixed.push(u8::try_from(meta.tags.iter().len()).expect("at most 64 tags"));
        fixed.extend_from_slice(&tags_bytes.to_le_bytes());
        fixed.extend_from_slice(&(extension_bytes as u32).to_le_bytes());
        fixed.extend_from_slice(&meta.stamp.to_bytes());
        for time in [meta.created_ms, meta.fresh_until_ms, meta.revalidate_until_ms, meta.gone_at_ms] {
            fixed.extend_from_slice(&time.to_le_bytes());
        }
        fixed.extend_from_slice(&fingerprint.to_le_bytes());
        for number in [meta.load_ms, *plain_bytes, *payload_bytes] {
            fixed.extend_from_slice(&number.to_le_bytes());
        }
        out[..FIXED_BYTES].copy_from_slice(&fixed);
        let checksum = match sealer {
            None => checksum(key, &out),
            Some(sealer) => {
                let (head, body) = out.split_at_mut(FIXED_BYTES + usize::from(tags_bytes));
                let (extension, payload) = body.split_at_mut(extension_bytes);
                sealer.protect(key, head, extension, payload);
                xxh3_64(&out)
            }
        };
        out.reserve_exact(CHECKSUM_BYTES);
        out.extend_from_slice(&checksum.to_le_bytes());
        // Entries live long in some stores: they should not keep the room that encoding needed.
        Bytes::from(out.into_boxed_slice())
    }
}

fn checksum(key: &EntryKey, sealed: &[u8]) -> u64 {
    let (namespace, key) = (key.namespace().as_str(), key.as_bytes());
    let namespace_bytes =
        u8::try_from(namespace.len()).expect("a namespace has at most 194 bytes with its tenant");
    let key_bytes = u32::try_from(key.len()).expect("an encoded key has at most 1024 bytes");
    let mut hash = Xxh3::new();
    hash.update(&[namespace_bytes]);
    hash.update(namespace.as_bytes());
    hash.update(&key_bytes.to_le_bytes());
    hash.update(key);
    hash.update(sealed);
    hash.digest()
}

/// An envelope of version 1 taken apart by its lengths; of its fields only these have been looked at.
pub(super) struct Frame<'a> {
    fixed: &'a [u8; FIXED_BYTES],
    tags: &'a [u8],
    /// All before the extension.
    #[cfg(feature = "encryption")]
    pub(super) head: &'a [u8],
    pub(super) extension: &'a [u8],
    pub(super) payload: &'a [u8],
    checked: &'a [u8],
    checksum: u64,
}

impl<'a> Frame<'a> {
    pub(super) fn split(sealed: &'a [u8]) -> Result<Self, Refused> {
        let Some((magic, after)) = sealed.split_first_chunk::<4>() else {
            return Err(if MAGIC.starts_with(sealed) { Refused::Truncated } else { Refused::Magic });
        };
        if magic != MAGIC {
            return Err(Refused::Magic);
        }
        match after.first() {
            Some(&VERSION) => {}
            Some(_) => return Err(Refused::Version),
            None => return Err(Refused::Truncated),
        }
        let (fixed, body) = sealed.split_first_chunk::<FIXED_BYTES>().ok_or(Refused::Truncated)?;
        let (body, checksum) = body.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Refused::Truncated)?;
        let fields = Fields(fixed);
        let (tags, body) = take(body, u32::from(fields.u16(14)))?;
        let (extension, body) = take(body, fields.u32(16))?;
        let (payload, body) = take(body, fields.u32(80))?;
        if !body.is_empty() {
            return Err(Refused::Length);
        }
        let checked = &sealed[..sealed.len() - CHECKSUM_BYTES];
        Ok(Frame {
            fixed,
            tags,
            #[cfg(feature = "encryption")]
            head: &sealed[..FIXED_BYTES + tags.len()],
            extension,
            payload,
            checked,
            checksum: u64::from_le_bytes(*checksum),
        })
    }

    /// The key that protects it, if it says so.
    pub(super) fn key_id(&self) -> Option<KeyId> {
        KeyId::new(Fields(self.fixed).u32(8))
    }

    pub(super) fn is_signed(&self) -> bool {
        self.fixed[5] & FLAG_SIGNED != 0
    }

    /// Finds accidents: what has a right checksum has the bytes that somebody wrote; without protection, for
    /// `key`.
    pub(super) fn verify(&self, key: &EntryKey) -> Result<(), Refused> {
        let computed = match self.key_id() {
            None => checksum(key, self.checked),
            Some(_) => xxh3_64(self.checked),
        };
        if computed == self.checksum { Ok(()) } else { Err(Refused::Checksum) }
    }

    pub(super) fn header(&self) -> Result<Header, Refused> {
        let fields = Fields(self.fixed);
        let flags = fields.u8(5);
        if flags & !(FLAG_NEGATIVE | FLAG_SIGNED) != 0 {
            return Err(Refused::Header);
        }
        let is_negative = flags & FLAG_NEGATIVE != 0;
        let kind = match fields.u8(12) {
            0 => EntryKind::Load,
            1 => EntryKind::Set,
            _ => return Err(Refused::Header),
        };
        let key_id = self.key_id();
        let sealing = match (key_id, self.is_signed()) {
            (None, false) if self.extension.is_empty() => Sealing::Plain,
            (None, _) => return Err(Refused::Header),
            (Some(_), true) => Sealing::Signed,
            (Some(_), false) => Sealing::Encrypted,
        };
        let meta = Meta {
            kind,
            stamp: Stamp::from_bytes(fields.array(20)),
            created_ms: fields.u64(32),
            fresh_until_ms: fields.u64(40),
            revalidate_until_ms: fields.u64(48),
            gone_at_ms: fields.u64(56),
            load_ms: fields.u32(72),
            is_negative,
            tags: parse_tags(self.tags, fields.u8(13))?,
        };
        Ok(Header {
            meta,
            codec: Codec::from_id(fields.u8(6)).ok_or(Refused::Codec)?,
            compression: Compression::from_id(fields.u8(7)).ok_or(Refused::Compression)?,
            sealing,
            key_id,
            fingerprint: fields.u64(64),
            plain_bytes: fields.u32(76),
            payload_bytes: fields.u32(80),
        })
    }
}

fn take(bytes: &[u8], length: u32) -> Result<(&[u8], &[u8]), Refused> {
    bytes.split_at_checked(length as usize).ok_or(Refused::Truncated)
}

fn parse_tags(mut bytes: &[u8], count: u8) -> Result<Tags, Refused> {
    if usize::from(count) > TAGS_MAX {
        return Err(Refused::Tags);
    }
    let mut tags: Vec<&str> = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let (length, rest) = bytes.split_first_chunk().ok_or(Refused::Tags)?;
        let length = usize::from(u16::from_le_bytes(*length));
        let (tag, rest) = rest.split_at_checked(length).ok_or(Refused::Tags)?;
        tags.push(std::str::from_utf8(tag).map_err(|_| Refused::Tags)?);
        bytes = rest;
    }
    let is_ascending = tags.windows(2).all(|pair| pair[0] < pair[1]);
    if !bytes.is_empty() || !is_ascending {
        return Err(Refused::Tags);
    }
    Tags::new(tags).map_err(|_| Refused::Tags)
}

/// The fixed part, read by the offsets of the table in the parent module.
struct Fields<'a>(&'a [u8; FIXED_BYTES]);

impl Fields<'_> {
    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.0[offset..offset + N].try_into().expect("a slice of N bytes")
    }

    fn u8(&self, offset: usize) -> u8 {
        self.0[offset]
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }
}
