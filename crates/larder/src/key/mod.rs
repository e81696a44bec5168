//! Keys as tiers see them: canonical bytes of typed arguments, in a namespace.
//!
//! Owns what makes two keys equal, what a person reads, and what a glob matches. Never holds the typed
//! key itself: L1 keeps that.

mod encode;
mod namespace;
mod pattern;
mod walk;

pub use namespace::Namespace;
pub(crate) use namespace::is_allowed as is_allowed_in_names;
pub use pattern::{PATTERN_BYTES_MAX, Pattern};

use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use encode::tag;
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Longest canonical encoding that a tier sees; a longer one is replaced by its SHA-256 and the start of
/// its text.
///
/// 1 KiB: the smallest limit that any common store puts on an indexed column, and far above what people
/// type.
pub const ENTRY_KEY_BYTES_MAX: usize = 1024;
/// Longest name of a [`Namespace`] in bytes, without its tenant.
pub const NAMESPACE_BYTES_MAX: usize = 128;
/// Deepest nesting of a key: every list, struct, `Some`, ... around a value is one level.
pub const KEY_LEVELS_MAX: usize = 64;

/// How much of its text a long key keeps, in bytes.
const LONG_TEXT_BYTES_MAX: usize = 128;
const SHA256_BYTES: usize = 32;
/// How much of its SHA-256 the text of a long key shows, in bytes.
const LONG_HASH_BYTES_SHOWN: usize = 8;

/// A key in a namespace, canonically encoded, at most [`ENTRY_KEY_BYTES_MAX`] bytes. Cheap to clone.
///
/// # What is equal
/// Two keys are equal when serde sees the same types and the same values in them:
/// - `1u64`, `1i32`, `"1"`, `(1,)`, `[1]` as a list, `Some(1)` and a newtype around 1 are eight different
///   keys; structs and enums differ by their names, their fields' and their variants' (not by the module
///   they come from: two types of one name and shape belong in two namespaces);
/// - `&str`, `String`, `Box<str>`, `Cow<str>` are one type, and so are `T`, `&T`, `Box<T>` and `Arc<T>`;
/// - `Vec<u8>` is a list of numbers, [`Bytes`] is bytes; they differ;
/// - maps have no order; lists do. A `HashSet` looks like a list to serde, in an order that changes from
///   process to process: use a `BTreeSet`;
/// - `-0.0` equals `0.0`, and every NaN equals every other.
///
/// Types that serde writes differently for people and machines (`IpAddr`, `Uuid`) are taken in the form for
/// machines, so that they do not collide with strings.
///
/// ```
/// use larder::key::{EntryKey, Namespace};
/// let users = Namespace::new("users")?;
/// let key = EntryKey::new(&users, &("profile", 17u64))?;
/// assert_eq!(key.text(), "profile:17");
/// assert_ne!(key, EntryKey::new(&users, &("profile", "17"))?);
/// assert_ne!(key, EntryKey::new(&users, "profile:17")?);
/// # Ok::<(), larder::Error>(())
/// ```
#[derive(Clone)]
pub struct EntryKey {
    namespace: Namespace,
    bytes: Bytes,
    hash: u64,
}

impl EntryKey {
    /// Encodes a typed key.
    ///
    /// Any length is taken. Above [`ENTRY_KEY_BYTES_MAX`] the encoding is replaced by its SHA-256 and the
    /// first 128 bytes of its text, so that patterns that look at the start still match. A string costs
    /// one allocation.
    ///
    /// # Errors
    /// [`ErrorKind::Key`] when its `Serialize` fails, it is nested deeper than [`KEY_LEVELS_MAX`], or it is
    /// an `EntryKey` of another namespace; one of this namespace, or of its name without a tenant, is taken as
    /// it is.
    pub fn new<K: Serialize + ?Sized>(namespace: &Namespace, key: &K) -> Result<Self> {
        let mut bytes = encode::encode(key)?;
        if let Some(same) = Self::unwrap(namespace, &bytes) {
            return same;
        }
        if bytes.len() > ENTRY_KEY_BYTES_MAX {
            bytes = long(&bytes);
        }
        Ok(Self::assemble(namespace.clone(), Bytes::from(bytes.into_boxed_slice())))
    }

    /// Takes bytes that [`as_bytes`](Self::as_bytes) gave, after checking that they are canonical.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] when no key has that encoding.
    pub fn from_bytes(namespace: &Namespace, bytes: Bytes) -> Result<Self> {
        if !is_canonical(&bytes) {
            return Err(Error::new(ErrorKind::Corrupt, "decode").message("not the encoding of a key"));
        }
        Ok(Self::assemble(namespace.clone(), bytes))
    }

    /// The key inside of the encoding of a key: see its [`Serialize`].
    fn unwrap(namespace: &Namespace, bytes: &[u8]) -> Option<Result<Self>> {
        let inner = encode::entry_key(bytes)?;
        let Some((name, bytes)) = inner else {
            return Some(Err(Error::new(ErrorKind::Corrupt, "encode").message("not the encoding of a key")));
        };
        // A key without a tenant is whoever's the cache is; one with a tenant is nobody else's.
        if name != namespace.as_str() && name != namespace.name() {
            let why = format!("it is a key of the namespace {name}, not of {namespace}");
            return Some(Err(Error::new(ErrorKind::Key, "encode").message(why)));
        }
        Some(Self::from_bytes(namespace, Bytes::copy_from_slice(bytes)))
    }

    fn assemble(namespace: Namespace, bytes: Bytes) -> Self {
        // The seed keeps namespaces apart without joining the two in a buffer.
        let hash = xxh3_64_with_seed(&bytes, xxh3_64(namespace.as_str().as_bytes()));
        EntryKey { namespace, bytes, hash }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The canonical encoding. A string is one byte and its UTF-8, so that common prefixes stay prefixes.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// A stable 64-bit hash of namespace and bytes, the same in every process and release:
    /// XXH3-64 of the bytes, seeded with XXH3-64 of the namespace's name.
    pub fn hash64(&self) -> u64 {
        self.hash
    }

    /// The string, if the key is a plain string that was not too long to be kept.
    pub fn decode_str(&self) -> Option<&str> {
        let rest = self.bytes.strip_prefix(&[tag::STR])?;
        Some(std::str::from_utf8(rest).expect("a string key is checked when it is made"))
    }

    /// What a person reads and a [`Pattern`] matches. Not unique: `("a", 1)` and `"a:1"` read the same.
    ///
    /// A string is itself. Numbers are decimal; `None` is `-`, `()` is `()`, an enum variant its name;
    /// bytes are ASCII with `\xNN` escapes. The parts of tuples, lists, structs and enum variants are
    /// joined with `:`, at any depth; field and type names don't show; the pairs of a map are `key=value`.
    /// A long key shows its first 128 bytes, `…#` and the start of its SHA-256 in hex.
    ///
    /// Borrowed for a string; otherwise one pass over at most [`ENTRY_KEY_BYTES_MAX`] bytes.
    pub fn text(&self) -> Cow<'_, str> {
        if let Some(text) = self.decode_str() {
            return Cow::Borrowed(text);
        }
        if let Some((hash, text)) = split_long(&self.bytes) {
            let mut shown = format!("{text}…#");
            for byte in &hash[..LONG_HASH_BYTES_SHOWN] {
                write!(shown, "{byte:02x}").expect("writing to a string can't fail");
            }
            return Cow::Owned(shown);
        }
        Cow::Owned(walk::text(&self.bytes, usize::MAX))
    }
}

impl PartialEq for EntryKey {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.bytes == other.bytes && self.namespace == other.namespace
    }
}

impl Eq for EntryKey {}

impl Hash for EntryKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// For caches whose typed key is an `EntryKey`: [`EntryKey::new`] finds the same key in it again. Inside of
/// another key it is a value like any other.
impl Serialize for EntryKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(encode::ENTRY_KEY, &(self.namespace.as_str(), &self.bytes))
    }
}

impl fmt::Debug for EntryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.text().escape_debug())
    }
}

/// The replacement of an encoding that is over the limit: tag, SHA-256, start of its text.
fn long(encoding: &[u8]) -> Vec<u8> {
    let text = walk::text(encoding, LONG_TEXT_BYTES_MAX);
    let mut bytes = Vec::with_capacity(1 + SHA256_BYTES + text.len());
    bytes.push(tag::LONG);
    bytes.extend_from_slice(&Sha256::digest(encoding));
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

fn split_long(bytes: &[u8]) -> Option<(&[u8], &str)> {
    let (hash, text) = bytes.strip_prefix(&[tag::LONG])?.split_at_checked(SHA256_BYTES)?;
    let text = std::str::from_utf8(text).ok()?;
    (text.len() <= LONG_TEXT_BYTES_MAX).then_some((hash, text))
}

fn is_canonical(bytes: &[u8]) -> bool {
    split_long(bytes).is_some() || bytes.len() <= ENTRY_KEY_BYTES_MAX && walk::is_canonical(bytes)
}
