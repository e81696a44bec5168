//! What the server keeps under a key: bytes, what they are, and their validator.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use xxhash_rust::xxh3::Xxh3;

/// A value as it was put.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StoredValue {
    /// The media type, as the client gave it.
    pub(crate) content_type: Option<Box<str>>,
    etag: ETag,
    pub(crate) body: Bytes,
}

impl StoredValue {
    pub(crate) fn new(content_type: Option<&str>, body: Bytes) -> Self {
        StoredValue { content_type: content_type.map(Box::from), etag: ETag::of(content_type, &body), body }
    }

    pub(crate) fn etag(&self) -> ETag {
        self.etag
    }

    /// What it weighs in memory beside its key: the body, and about what the rest of an entry takes.
    pub(crate) fn weight(&self) -> u64 {
        const ENTRY_BYTES: usize = 200;
        (self.body.len() + self.content_type.as_ref().map_or(0, |text| text.len()) + ENTRY_BYTES) as u64
    }
}

/// A strong validator: a hash of media type and body, so that the answer to a PUT can carry it and equal
/// content keeps it. Not cryptographic: who can make two bodies collide could have put either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ETag([u8; 16]);

impl ETag {
    fn of(content_type: Option<&str>, body: &[u8]) -> Self {
        let mut hash = Xxh3::new();
        let content_type = content_type.unwrap_or_default().as_bytes();
        hash.update(&(content_type.len() as u64).to_le_bytes());
        hash.update(content_type);
        hash.update(body);
        ETag(hash.digest128().to_be_bytes())
    }
}

impl fmt::Display for ETag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{:032x}\"", u128::from_be_bytes(self.0))
    }
}

/// A key: any bytes. Text and the same bytes in base64url are one key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key(Box<[u8]>);

impl Key {
    /// The key of base64url without padding.
    pub(crate) fn from_base64url(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text).ok().map(Key::from)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The key as text, if it is.
    pub(crate) fn as_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }
}

impl From<Vec<u8>> for Key {
    fn from(bytes: Vec<u8>) -> Self {
        Key(bytes.into())
    }
}

impl From<&str> for Key {
    fn from(text: &str) -> Self {
        Key(text.as_bytes().into())
    }
}

/// As text where it is, so that patterns match it and lists show it.
impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_text() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.serialize_bytes(&self.0),
        }
    }
}

/// Shortened: keys may be long and may say more than a log should.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} bytes)", self.0.len())
    }
}

/// Bytes in JSON: text where it is, else base64 under another name.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct JsonBytes {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

impl JsonBytes {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => JsonBytes { value: Some(text.to_owned()), value_base64: None },
            Err(_) => JsonBytes { value: None, value_base64: Some(STANDARD.encode(bytes)) },
        }
    }

    pub(crate) fn new(value: Option<String>, value_base64: Option<String>) -> Self {
        JsonBytes { value, value_base64 }
    }

    /// The bytes; the error says what is allowed.
    pub(crate) fn into_bytes(self) -> Result<Bytes, &'static str> {
        match (self.value, self.value_base64) {
            (Some(text), None) => Ok(text.into()),
            (None, Some(text)) => {
                STANDARD.decode(text).map(Bytes::from).map_err(|_| "value_base64 is no base64 with padding")
            }
            _ => Err("exactly one of value and value_base64 is allowed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validators_tell_type_and_body_apart() {
        let etag = |content_type, body: &'static str| StoredValue::new(content_type, body.into()).etag();
        assert_eq!(etag(Some("a"), "b"), etag(Some("a"), "b"));
        assert_ne!(etag(Some("a"), "b"), etag(None, "ab"));
        assert_ne!(etag(Some("ab"), ""), etag(Some("a"), "b"));
    }
}
