//! What is done to an entry so that a tier can't read or change it: AES-256-GCM, or HMAC-SHA256 alone.
//!
//! Knows no layout beyond the two parts that an envelope hands it; which keys there are is the
//! [`Keyring`]'s business.
//!
//! # What it protects, and what not
//! The threat is somebody who reads, or writes, what a tier stores: a stolen disk or backup, a shared server,
//! another tenant's program on it.
//!
//! | against | encrypted | signed |
//! | --- | --- | --- |
//! | reading a value, or what it was computed from | yes | no |
//! | changing a value, its tags, expiries, type or any other byte of an envelope | yes | yes |
//! | serving an entry for another key, namespace or tenant | yes | yes |
//! | planting an entry that was never written; taking protection off | yes | yes |
//! | guessing a value's length | no | no |
//! | reading names: namespace, tags, keys where they are not [hidden](crate::TierOptions) | no | no |
//! | reading when an entry was made, how long it lives, its type's fingerprint, codec, sizes | no | no |
//! | dropping an entry, or putting back an older one of the same key that was written once | no | no |
//! | seeing which entries are read, written and removed, and when | no | no |
//! | reading this process's memory: values and keys are there in plain | no | no |
//!
//! Against the last but one: what was removed by tag or clear can be put back together with the tier's own
//! counters, as with any backup; its expiries stand, because the envelope's own are the ones that count.
//!
//! Compression comes before encryption, and its gain shows in the length: where an attacker can put text of
//! his own beside a secret into one value and see the length, leave it off.
//!
//! # Cryptography
//! Every entry has a key of its own, derived from a random salt of 16 bytes, so that the nonce is all zeros
//! and no count of entries is a limit: a salt is expected to repeat after 2^64 entries of a namespace. Two
//! processes after a fork, or two copies of a virtual machine, have salts of their own by AWS-LC's generator.
//! Associated data: length of the namespace (2 bytes, little-endian), namespace, length of the key (4 bytes),
//! key, and the envelope's bytes before the extension. A signature covers the same and the payload.

use super::header::Frame;
use super::keyring::{Keyring, Ring, SpaceKeys, fill_random};
use super::{KeyId, Refused, Sealing};
use crate::key::EntryKey;
use aws_lc_rs::{aead, constant_time, hmac};
use std::borrow::Cow;
use std::sync::Arc;

/// Bytes that protection adds to an envelope: salt and authentication tag, or the signature.
pub(super) const EXTENSION_BYTES: usize = 32;
const SALT_BYTES: usize = 16;

/// How a cache protects what it stores in tiers. See the crate feature `encryption`.
///
/// An encrypting cache takes nothing that isn't encrypted; a signing one takes what is signed or encrypted.
/// Values in memory, in L1, are as they are.
#[derive(Clone, Debug)]
#[must_use]
pub struct Protection {
    keyring: Keyring,
    sealing: Sealing,
    on_tampering: OnTampering,
    reseals_on_read: bool,
}

/// What a reader gets who meets an entry whose authentication fails under a key that is known. It is
/// quarantined and counted in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTampering {
    /// A miss: the value is loaded anew. The default, because the service goes on with right values.
    #[default]
    Miss,
    /// The load fails with [`Authentication`](crate::ErrorKind::Authentication), once per such entry; reads
    /// that return no error miss. For services that would rather stop.
    Error,
}

impl Protection {
    /// AES-256-GCM.
    pub fn encrypt(keyring: Keyring) -> Self {
        Protection {
            keyring,
            sealing: Sealing::Encrypted,
            on_tampering: OnTampering::Miss,
            reseals_on_read: false,
        }
    }

    /// HMAC-SHA256: tiers can read values, but not change them.
    pub fn sign(keyring: Keyring) -> Self {
        Protection { sealing: Sealing::Signed, ..Self::encrypt(keyring) }
    }

    /// What a reader gets who meets an entry that was tampered with. Default: a miss.
    pub fn on_tampering(mut self, then: OnTampering) -> Self {
        self.on_tampering = then;
        self
    }

    /// Whether an entry that is found under an old key is written back under the current one. Default: no,
    /// since a read that writes costs more than entries that expire by themselves.
    pub fn reseal_on_read(mut self, reseals: bool) -> Self {
        self.reseals_on_read = reseals;
        self
    }

    /// Its keys.
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    pub(crate) fn encrypts(&self) -> bool {
        self.sealing == Sealing::Encrypted
    }

    pub(crate) fn is_strict(&self) -> bool {
        self.on_tampering == OnTampering::Error
    }

    pub(crate) fn reseals_on_read(&self) -> bool {
        self.reseals_on_read
    }

    /// The current key and how it is used, as one.
    pub(super) fn sealer(&self) -> Sealer {
        Sealer { ring: self.keyring.ring(), sealing: self.sealing }
    }

    /// Whether an entry is protected as new ones are.
    pub(super) fn is_current(&self, key_id: Option<KeyId>, sealing: Sealing) -> bool {
        key_id == Some(self.keyring.current()) && sealing == self.sealing
    }

    /// The payload of an envelope that was sealed for `key`. Before anything else in it is looked at: what
    /// its other fields say counts only when it is authentic.
    pub(super) fn open<'s>(&self, key: &EntryKey, frame: &Frame<'s>) -> Result<Cow<'s, [u8]>, Refused> {
        let Some(id) = frame.key_id() else {
            return Err(match self.sealing {
                Sealing::Signed => Refused::Unsigned,
                _ => Refused::Plaintext,
            });
        };
        let ring = self.keyring.ring();
        let keys = ring.find(id).ok_or(Refused::KeyId)?.space(key.namespace());
        let associated = associated(key, frame.head);
        if frame.is_signed() {
            let signature = sign(&keys, &associated, frame.payload);
            constant_time::verify_slices_are_equal(signature.as_ref(), frame.extension)
                .map_err(|_| Refused::Signature)?;
            return match self.sealing {
                Sealing::Encrypted => Err(Refused::Plaintext),
                _ => Ok(Cow::Borrowed(frame.payload)),
            };
        }
        let Some((salt, tag)) = frame.extension.split_at_checked(SALT_BYTES) else {
            return Err(Refused::Tampered);
        };
        let mut plain = vec![0; frame.payload.len()];
        cipher(&keys, salt)
            .open_separate_gather(nonce(), aead::Aad::from(&associated), frame.payload, tag, &mut plain)
            .map_err(|_| Refused::Tampered)?;
        Ok(Cow::Owned(plain))
    }
}

/// Protects one envelope.
pub(super) struct Sealer {
    ring: Arc<Ring>,
    sealing: Sealing,
}

impl Sealer {
    pub(super) fn key_id(&self) -> KeyId {
        self.ring.current().id
    }

    pub(super) fn sealing(&self) -> Sealing {
        self.sealing
    }

    /// Fills in the extension, and encrypts the payload in place.
    pub(super) fn protect(&self, key: &EntryKey, head: &[u8], extension: &mut [u8], payload: &mut [u8]) {
        let keys = self.ring.current().space(key.namespace());
        let associated = associated(key, head);
        if self.sealing == Sealing::Signed {
            extension.copy_from_slice(sign(&keys, &associated, payload).as_ref());
            return;
        }
        let (salt, tag) = extension.split_at_mut(SALT_BYTES);
        fill_random(salt);
        let made = cipher(&keys, salt)
            .seal_in_place_separate_tag(nonce(), aead::Aad::from(&associated), payload)
            .expect("a payload of 4 GiB is below the limit of GCM");
        tag.copy_from_slice(made.as_ref());
    }
}

/// Each key encrypts one entry.
fn nonce() -> aead::Nonce {
    aead::Nonce::assume_unique_for_key([0; aead::NONCE_LEN])
}

fn cipher(keys: &SpaceKeys, salt: &[u8]) -> aead::LessSafeKey {
    let key = aead::UnboundKey::new(&aead::AES_256_GCM, &*keys.entry(salt)).expect("a key of 32 bytes");
    aead::LessSafeKey::new(key)
}

fn sign(keys: &SpaceKeys, associated: &[u8], payload: &[u8]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(&keys.sign);
    context.update(associated);
    context.update(payload);
    context.sign()
}

fn associated(key: &EntryKey, head: &[u8]) -> Vec<u8> {
    let (namespace, key) = (key.namespace().as_str(), key.as_bytes());
    let namespace_bytes = u16::try_from(namespace.len()).expect("a namespace is short");
    let key_bytes = u32::try_from(key.len()).expect("an encoded key has at most 1024 bytes");
    let mut out = Vec::with_capacity(2 + namespace.len() + 4 + key.len() + head.len());
    out.extend_from_slice(&namespace_bytes.to_le_bytes());
    out.extend_from_slice(namespace.as_bytes());
    out.extend_from_slice(&key_bytes.to_le_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(head);
    out
}
