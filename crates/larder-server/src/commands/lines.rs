//! A line of `larder export`, which `larder import` reads.

use super::transfer::{Carried, time};
use crate::value::{JsonBytes, StoredValue};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::envelope::{Envelope, Fate, Refused};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use serde::{Deserialize, Serialize};

/// One entry. Either `sealed`, or a value.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    namespace: String,
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The encoding of any other key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    tags: Tags,
    #[serde(default, skip_serializing_if = "is_false")]
    is_load: bool,
    stamp: String,
    /// Milliseconds since 1970, like the next three; without one of these it is for ever.
    created_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fresh_until_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revalidate_until_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gone_at_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<Box<str>>,
    #[serde(flatten)]
    value: JsonBytes,
    /// The envelope in base64, which says all of this itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sealed: Option<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Line {
    /// The envelope as it is.
    pub(super) fn sealed(entry: &Carried) -> Self {
        Line { sealed: Some(STANDARD.encode(&entry.sealed)), ..Line::head(entry) }
    }

    /// The value of the server's. A remembered absence is none.
    pub(super) fn plain(entry: &Carried, envelope: &Envelope) -> Result<Option<Self>, Refused> {
        let (_, value) = envelope.open::<StoredValue>(&entry.key, &entry.sealed)?;
        Ok(value.map(|value| Line {
            value: JsonBytes::of(&value.body),
            content_type: value.content_type,
            ..Line::head(entry)
        }))
    }

    fn head(Carried { key, meta, .. }: &Carried) -> Self {
        let text = key.decode_str().map(str::to_owned);
        Line {
            namespace: key.namespace().as_str().to_owned(),
            key_base64: text.is_none().then(|| STANDARD.encode(key.as_bytes())),
            key: text,
            tags: meta.tags.clone(),
            is_load: meta.kind == EntryKind::Load,
            stamp: meta.stamp.to_string(),
            created_ms: meta.created_ms,
            fresh_until_ms: time(meta.fresh_until_ms),
            revalidate_until_ms: time(meta.revalidate_until_ms),
            gone_at_ms: time(meta.gone_at_ms),
            content_type: None,
            value: JsonBytes::default(),
            sealed: None,
        }
    }

    /// The entry that the line describes; the error is for a person.
    pub(super) fn entry(self, envelope: &Envelope) -> Result<Carried, String> {
        let key = self.entry_key()?;
        if let Some(sealed) = &self.sealed {
            let sealed: Bytes = STANDARD.decode(sealed).map_err(|_| "sealed is no base64")?.into();
            let header = Envelope::header(&sealed).map_err(|why| format!("sealed is no envelope: {why}"))?;
            // Another program's type and what other keys encrypt are carried, too; damage is not.
            match envelope.verify(&key, &sealed) {
                Err(why) if why == Refused::Checksum || why.fate() == Fate::Quarantine => {
                    return Err("sealed is damaged, or another key's".to_owned());
                }
                _ => return Ok(Carried { key, meta: header.meta, sealed }),
            }
        }
        let meta = self.meta()?;
        let body = self.value.into_bytes()?;
        let value = StoredValue::new(self.content_type.as_deref(), body);
        let sealed = envelope.seal(&key, &meta, Some(&value)).map_err(|error| error.to_string())?;
        Ok(Carried { key, meta, sealed })
    }

    /// What a server is told of the entry: namespace, key, value, media type, the end of its freshness, tags.
    #[expect(clippy::type_complexity, reason = "it is taken apart at once")]
    pub(super) fn parts(
        self,
    ) -> Result<(Namespace, String, Bytes, Option<Box<str>>, (u64, u64), Tags), String> {
        if self.sealed.is_some() {
            return Err("a running server takes plain lines only; stop it, or export with --plain".to_owned());
        }
        let meta = self.meta()?;
        let namespace = Namespace::new(&self.namespace).map_err(|error| error.to_string())?;
        let key = self.key.ok_or("a running server takes keys of text only; stop it")?;
        let body = self.value.into_bytes()?;
        Ok((namespace, key, body, self.content_type, (meta.fresh_until_ms, meta.gone_at_ms), meta.tags))
    }

    fn entry_key(&self) -> Result<EntryKey, String> {
        let namespace = Namespace::new(&self.namespace).map_err(|error| error.to_string())?;
        match (&self.key, &self.key_base64) {
            (Some(text), None) => EntryKey::new(&namespace, &**text).map_err(|error| error.to_string()),
            (None, Some(bytes)) => {
                let bytes = STANDARD.decode(bytes).map_err(|_| "key_base64 is no base64")?;
                EntryKey::from_bytes(&namespace, bytes.into()).map_err(|error| error.to_string())
            }
            _ => Err("exactly one of key and key_base64 is allowed".to_owned()),
        }
    }

    fn meta(&self) -> Result<Meta, String> {
        let time = |ms: Option<u64>| ms.unwrap_or(NEVER_MS);
        let (fresh, revalidate, gone) =
            (time(self.fresh_until_ms), time(self.revalidate_until_ms), time(self.gone_at_ms));
        if fresh > revalidate || revalidate > gone {
            return Err(
                "fresh_until_ms, revalidate_until_ms and gone_at_ms must follow each other".to_owned()
            );
        }
        Ok(Meta {
            kind: if self.is_load { EntryKind::Load } else { EntryKind::Set },
            stamp: stamp(&self.stamp).ok_or("stamp has not 24 hexadecimal digits")?,
            created_ms: self.created_ms,
            fresh_until_ms: fresh,
            revalidate_until_ms: revalidate,
            gone_at_ms: gone,
            load_ms: 0,
            is_negative: false,
            tags: self.tags.clone(),
        })
    }
}

fn stamp(text: &str) -> Option<Stamp> {
    if text.len() != 24 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 12];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(Stamp::from_bytes(bytes))
}
