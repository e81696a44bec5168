//! The border between typed values and bytes: one self-describing, versioned, checked format.
//!
//! Owns the layout of what tiers store, and every reason for which stored bytes are not a value. Never
//! looks at the time: whether an entry is fresh is for its reader to say. All that it decodes is bounded
//! in size, nesting and ratio, and whatever the bytes are, the answer is the value that was sealed or a
//! [`Refused`] that names the reason.
//!
//! # Version 1
//! Numbers are little-endian, stamps big-endian as everywhere.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 4 | magic, `LRDR` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | flags: bit 0 is a remembered absence, bit 1 a signature; others are 0 |
//! | 6 | 1 | [codec](Codec): 1 postcard, 2 MessagePack, 3 JSON |
//! | 7 | 1 | [compression](Compression): 0 none, 1 LZ4 block, 2 zstd frame |
//! | 8 | 4 | key id: 0 is neither encrypted nor signed |
//! | 12 | 1 | kind: 0 load, 1 set |
//! | 13 | 1 | number of tags, at most 64 |
//! | 14 | 2 | length of all tags with their prefixes |
//! | 16 | 4 | length of the extension: 0 without a key id, else 32 |
//! | 20 | 12 | stamp |
//! | 32 | 8 | created, in milliseconds since 1970 like the next three |
//! | 40 | 8 | fresh until |
//! | 48 | 8 | revalidate until |
//! | 56 | 8 | gone at |
//! | 64 | 8 | fingerprint of the value's type |
//! | 72 | 4 | load time in milliseconds |
//! | 76 | 4 | length of the plain payload, before compression |
//! | 80 | 4 | length of the payload |
//! | 84 | | tags in ascending order, each a length of 2 bytes and UTF-8 |
//! | | | extension: salt and authentication tag of 16 bytes each, or the signature |
//! | | | payload, encrypted where it is |
//! | end | 8 | checksum |
//!
//! Without a key id, the checksum is XXH3-64 of: length of the namespace (1 byte), namespace, length of the
//! key (4 bytes), key, and all that precedes the checksum. An entry that was moved under another key is refused.
//!
//! With one, it is XXH3-64 of all that precedes it and nothing else: it finds bytes that were damaged by
//! accident, so that an entry which passes it and fails its authentication was changed, moved or made by
//! somebody. What is authenticated, how, and against whom, stands in [`Protection`] and its module
//! (feature `encryption`); a reader without that key refuses by [`Refused::KeyId`].
//!
//! # In which order a reader checks
//! Magic, version, lengths, checksum; key id and authentication; then the other fields, type, sizes against
//! the limits; decompression; decoding. Nothing is allocated for a value before its sizes have been checked, and
//! nothing is decoded whose checksum or authentication is wrong. The key id names the one key that is tried.

mod codec;
mod compress;
mod header;
#[cfg(feature = "encryption")]
mod keyring;
mod nesting;
#[cfg(feature = "encryption")]
mod protection;
#[cfg(not(feature = "encryption"))]
#[path = "protection_absent.rs"]
mod protection;
mod refused;
mod shape;

pub use codec::Codec;
pub use compress::Compression;
pub use header::{Header, KeyId, Sealing, VERSION};
#[cfg(feature = "encryption")]
pub use keyring::{KeySource, Keyring, KeyringBuilder, SECRET_KEY_BYTES, SecretKey};
pub use nesting::NESTING_MAX;
#[cfg(feature = "encryption")]
pub use protection::{OnTampering, Protection};
pub use refused::{Fate, Refused};
#[cfg(feature = "encryption")]
pub use zeroize::Zeroizing;

use crate::entry::Meta;
use crate::error::{Error, ErrorKind, Result};
use crate::key::EntryKey;
use bytes::Bytes;
use codec::Bounded;
use header::Frame;
#[cfg(not(feature = "encryption"))]
pub(crate) use protection::Protection;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shape::Shape;
use std::borrow::Cow;

/// How values are sealed. Reading depends on it only for the limits and the schema: an envelope says
/// itself how it was made, so codec and compression can be changed while entries of the old kind live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnvelopeOptions {
    /// How values become bytes. Default postcard: the smallest and fastest, always compiled in.
    ///
    /// Types that ask their format what comes next (`serde_json::Value`, `#[serde(untagged)]`,
    /// `#[serde(flatten)]`) need `msgpack` or `json`.
    pub codec: Codec,
    /// How the payload is compressed. Default none: what pays depends on the tier below.
    pub compression: Compression,
    /// A payload of at most so many bytes is left as it is. Default 1024: below it, a store's own cost of
    /// an entry is larger than what compression could save.
    pub compress_above_bytes: u32,
    /// zstd's level, -7 to 19. Default 1: sealing stands between a loader and its next caller, and the
    /// higher levels gain little on values of some KiB.
    pub zstd_level: i32,
    /// Largest encoded value in bytes before compression, written or read. Default 64 MiB: a value that a
    /// process can hold several of at once.
    pub value_bytes_max: u32,
    /// How many times larger than its payload a value may be. Default 1000: text gains 3 to 20. What
    /// gains more is stored as it is.
    pub ratio_max: u32,
    /// A name of the value's type and its version, "user/3". Default `None`: the Rust type's name, and for
    /// the outermost struct or enum, also inside `Option`, `Vec` and the like, the names of its fields or
    /// variants.
    ///
    /// With the default, a field that was added, renamed or removed is a miss named `type`; a change
    /// further inside may only be found by the codec, or, with postcard, not at all. A schema is for you
    /// to count up at any change, and lets types of two names share entries.
    pub schema: Option<String>,
}

impl Default for EnvelopeOptions {
    fn default() -> Self {
        EnvelopeOptions {
            codec: Codec::Postcard,
            compression: Compression::None,
            compress_above_bytes: 1024,
            zstd_level: 1,
            value_bytes_max: 64 << 20,
            ratio_max: 1000,
            schema: None,
        }
    }
}

/// Seals values with their [`Meta`] for a key, and opens them again.
///
/// ```
/// use larder::entry::{EntryKind, Meta, Tags};
/// use larder::envelope::{Envelope, EnvelopeOptions, Refused};
/// use larder::key::{EntryKey, Namespace};
///
/// let envelope = Envelope::new(EnvelopeOptions::default())?;
/// let key = EntryKey::new(&Namespace::default(), "answer")?;
/// # let meta = Meta { kind: EntryKind::Set, stamp: Default::default(), created_ms: 0, fresh_until_ms: 1,
/// #     revalidate_until_ms: 1, gone_at_ms: 1, load_ms: 0, is_negative: false, tags: Tags::NONE };
/// let sealed = envelope.seal(&key, &meta, Some(&42u64))?;
/// assert_eq!(envelope.open::<u64>(&key, &sealed), Ok((meta, Some(42))));
///
/// let other = EntryKey::new(&Namespace::default(), "question")?;
/// assert_eq!(envelope.open::<u64>(&other, &sealed), Err(Refused::Checksum));
/// assert_eq!(envelope.open::<String>(&key, &sealed), Err(Refused::Type));
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Envelope {
    options: EnvelopeOptions,
    protection: Option<Protection>,
}

impl Envelope {
    /// Checks the options.
    ///
    /// # Errors
    /// [`ErrorKind::Config`], naming the setting, when a codec or a compression is not compiled in or a
    /// number is out of range.
    pub fn new(options: EnvelopeOptions) -> Result<Self> {
        let config = |message: String| Err(Error::new(ErrorKind::Config, "build").message(message));
        let EnvelopeOptions { codec, compression, zstd_level, value_bytes_max, ratio_max, .. } = options;
        if !codec.is_built() {
            return config(format!("codec = {codec}: this program was built without the feature `{codec}`"));
        }
        if !compression.is_built() {
            return config(format!(
                "compression = {compression}: this program was built without the feature `{compression}`"
            ));
        }
        if !(-7..=19).contains(&zstd_level) {
            return config(format!("zstd_level = {zstd_level}: -7 to 19 are allowed"));
        }
        if value_bytes_max == 0 {
            return config("value_bytes_max = 0: 1 to 4294967295 are allowed".into());
        }
        if ratio_max == 0 {
            return config("ratio_max = 0: 1 to 4294967295 are allowed".into());
        }
        if options.schema.as_deref() == Some("") {
            return config("schema = \"\": it needs a name, or leave it out".into());
        }
        Ok(Envelope { options, protection: None })
    }

    /// The same with protection: what it seals is encrypted or signed, and it opens nothing that isn't.
    #[cfg(feature = "encryption")]
    #[must_use]
    pub fn protect(self, protection: Protection) -> Self {
        Envelope { protection: Some(protection), ..self }
    }

    pub(crate) fn protection(&self) -> Option<&Protection> {
        self.protection.as_ref()
    }

    /// The options.
    pub fn options(&self) -> &EnvelopeOptions {
        &self.options
    }

    /// Seals a value, or with `None` a remembered absence; [`Meta::is_negative`] follows from that.
    ///
    /// Encodes straight into the result; compression takes one buffer more.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] when the encoded value is over
    /// [`value_bytes_max`](EnvelopeOptions::value_bytes_max), [`ErrorKind::Codec`] when the codec can't
    /// encode it.
    pub fn seal<V>(&self, key: &EntryKey, meta: &Meta, value: Option<&V>) -> Result<Bytes>
    where
        V: Serialize + DeserializeOwned,
    {
        let EnvelopeOptions { codec, compression, compress_above_bytes, zstd_level, .. } = self.options;
        let shape = Shape::of::<V>(self.options.schema.as_deref());
        if codec == Codec::Postcard && shape.needs_self_describing {
            return Err(Error::new(ErrorKind::Codec, "seal").message(format!(
                "codec = postcard can't read {} back, since it asks what comes next; use msgpack or json",
                std::any::type_name::<V>()
            )));
        }
        let sealer = self.protection.as_ref().map(Protection::sealer);
        let mut out = header::reserve(&meta.tags, sealer.as_ref());
        let start = out.len();
        let mut header = Header {
            meta: Meta { is_negative: value.is_none(), ..meta.clone() },
            codec,
            compression: Compression::None,
            sealing: Sealing::Plain,
            key_id: None,
            fingerprint: shape.fingerprint,
            plain_bytes: 0,
            payload_bytes: 0,
        };
        if let Some(value) = value {
            let mut bounded = Bounded::new(&mut out, self.options.value_bytes_max);
            codec.encode(value, &mut bounded)?;
            header.plain_bytes = bounded.written();
            if header.plain_bytes > compress_above_bytes
                && let Some(packed) = compression.compress(&out[start..], zstd_level)
                && !self.is_bomb(header.plain_bytes, packed.len())
            {
                out.truncate(start);
                out.extend_from_slice(&packed);
                header.compression = compression;
            }
        }
        header.payload_bytes =
            u32::try_from(out.len() - start).expect("a payload is at most as long as its plain bytes");
        Ok(header.finish(key, out, sealer.as_ref()))
    }

    /// Opens an envelope that was sealed for `key`.
    ///
    /// # Errors
    /// The reason why it is not a value of type `V`. The caller counts it, does with the entry what
    /// [`Refused::fate`] says, and goes on as if there had been none.
    pub fn open<V: DeserializeOwned>(
        &self,
        key: &EntryKey,
        sealed: &Bytes,
    ) -> Result<(Meta, Option<V>), Refused> {
        let (header, payload) = self.authenticate(key, sealed)?;
        if header.fingerprint != Shape::of::<V>(self.options.schema.as_deref()).fingerprint {
            return Err(Refused::Type);
        }
        if header.meta.is_negative {
            return if payload.is_empty() && header.plain_bytes == 0 {
                Ok((header.meta, None))
            } else {
                Err(Refused::Length)
            };
        }
        if header.plain_bytes > self.options.value_bytes_max {
            return Err(Refused::TooLarge);
        }
        if header.compression != Compression::None && self.is_bomb(header.plain_bytes, payload.len()) {
            return Err(Refused::Bomb);
        }
        let plain = header.compression.decompress(&payload, header.plain_bytes as usize)?;
        let value = header.codec.decode(&plain)?;
        Ok((header.meta, Some(value)))
    }

    /// What an envelope says of itself, payload untouched, checksum and authentication unchecked.
    ///
    /// # Errors
    /// The reason why the header can't be read.
    pub fn header(sealed: &[u8]) -> Result<Header, Refused> {
        Frame::split(sealed)?.header()
    }

    /// What an envelope that was sealed for `key` says of itself, checksum and authentication checked.
    ///
    /// # Errors
    /// The reason why it is not what was sealed.
    pub fn verify(&self, key: &EntryKey, sealed: &[u8]) -> Result<Header, Refused> {
        self.authenticate(key, sealed).map(|(header, _)| header)
    }

    /// Whether an entry is protected as new ones are, by the current key.
    pub fn is_current(&self, header: &Header) -> bool {
        match &self.protection {
            None => header.key_id.is_none(),
            Some(protection) => protection.is_current(header.key_id, header.sealing),
        }
    }

    /// The same value with another [`Meta`], under the current key: the payload is neither decoded nor
    /// decompressed. Whether it is an absence stays as it was.
    ///
    /// # Errors
    /// The reason why the envelope is not one that was sealed for `key`.
    pub fn reseal(&self, key: &EntryKey, sealed: &Bytes, meta: &Meta) -> Result<Bytes, Refused> {
        let (old, payload) = self.authenticate(key, sealed)?;
        let sealer = self.protection.as_ref().map(Protection::sealer);
        let mut out = header::reserve(&meta.tags, sealer.as_ref());
        out.extend_from_slice(&payload);
        let header = Header { meta: Meta { is_negative: old.meta.is_negative, ..meta.clone() }, ..old };
        Ok(header.finish(key, out, sealer.as_ref()))
    }

    /// Header and payload as they were before they were protected.
    fn authenticate<'s>(&self, key: &EntryKey, sealed: &'s [u8]) -> Result<(Header, Cow<'s, [u8]>), Refused> {
        let frame = Frame::split(sealed)?;
        frame.verify(key)?;
        let payload = match &self.protection {
            Some(protection) => protection.open(key, &frame)?,
            None if frame.key_id().is_some() => return Err(Refused::KeyId),
            None => Cow::Borrowed(frame.payload),
        };
        Ok((frame.header()?, payload))
    }

    fn is_bomb(&self, plain_bytes: u32, payload_bytes: usize) -> bool {
        u64::from(plain_bytes) > (payload_bytes as u64).saturating_mul(u64::from(self.options.ratio_max))
    }
}
