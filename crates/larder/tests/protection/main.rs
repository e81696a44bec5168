//! What encryption and signing promise, one file per promise.

#![cfg(all(feature = "encryption", feature = "sqlite"))]
#![allow(clippy::unwrap_used, reason = "tests")]

mod golden;
mod hidden_names;
mod key_sources;
mod nothing_secret_is_shown;
mod refused_and_quarantined;
mod rotation_loses_nothing;
mod tampering_is_refused;

use bytes::Bytes;
use larder::Cache;
use larder::backend::{Backend, MemoryBackend, MemoryOptions};
use larder::clock::{Clock, ManualClock};
use larder::entry::{EntryKind, Meta, Tags};
use larder::envelope::{Envelope, EnvelopeOptions, Keyring, Protection, SecretKey};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

type Texts = Cache<String, String>;

fn secret(first: u8) -> SecretKey {
    SecretKey::from_bytes(&std::array::from_fn(|at| first.wrapping_add(at as u8))).unwrap()
}

fn ring(keys: &[u8]) -> Keyring {
    let builder = Keyring::builder().encrypt_with(secret(keys[0]));
    keys[1..].iter().fold(builder, |builder, key| builder.decrypt_with(secret(*key))).build().unwrap()
}

fn encrypting(keys: &[u8]) -> Envelope {
    Envelope::new(options()).unwrap().protect(Protection::encrypt(ring(keys)))
}

fn signing(keys: &[u8]) -> Envelope {
    Envelope::new(options()).unwrap().protect(Protection::sign(ring(keys)))
}

fn options() -> EnvelopeOptions {
    EnvelopeOptions { schema: Some("user/1".into()), ..EnvelopeOptions::default() }
}

fn key(text: &str) -> EntryKey {
    EntryKey::new(&Namespace::new("users").unwrap(), text).unwrap()
}

fn meta() -> Meta {
    Meta {
        kind: EntryKind::Set,
        stamp: Stamp::new(1_767_225_600_000, 3, 0xdead_beef),
        created_ms: 1_767_225_600_000,
        fresh_until_ms: 1_767_225_660_000,
        revalidate_until_ms: 1_767_225_720_000,
        gone_at_ms: u64::MAX,
        load_ms: 12,
        is_negative: false,
        tags: Tags::new(["user:7", "de"]).unwrap(),
    }
}

/// The same bytes with the checksum that somebody without a key can compute, too.
fn with_right_checksum(mut bytes: Vec<u8>) -> Bytes {
    let end = bytes.len() - 8;
    let checksum = xxh3_64(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    bytes.into()
}

fn memory(clock: &ManualClock) -> Arc<MemoryBackend> {
    let clock = Clock::from(clock.clone());
    Arc::new(MemoryBackend::new(MemoryOptions { clock, ..MemoryOptions::default() }))
}

fn cache(clock: &ManualClock, tier: &Arc<MemoryBackend>, protection: Protection) -> Texts {
    let tier = Arc::clone(tier) as Arc<dyn Backend>;
    Cache::builder().clock(Clock::from(clock.clone())).tier(tier).protection(protection).build().unwrap()
}
