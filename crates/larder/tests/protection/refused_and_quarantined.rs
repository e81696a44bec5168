//! Prevents: an entry that was tampered with is served, or goes unnoticed; an entry under a key that this process
//! doesn't have yet is lost to those that do; and an alarm takes the service down.

use super::{Texts, cache, memory, ring, with_right_checksum};
use bytes::Bytes;
use larder::backend::{Backend, Put, PutOutcome, SqliteBackend, SqliteOptions};
use larder::clock::{Clock, ManualClock};
use larder::entry::{EntryKind, Meta};
use larder::envelope::{Envelope, OnTampering, Protection};
use larder::key::{EntryKey, Namespace};
use larder::{Cache, ErrorKind};
use std::convert::Infallible;
use std::sync::Arc;

fn key() -> EntryKey {
    EntryKey::new(&Namespace::default(), "a").unwrap()
}

async fn stored(tier: &dyn Backend) -> Option<Bytes> {
    tier.get(&key()).await.unwrap().found.ok()
}

/// Changes the last byte of the payload, and repairs the checksum.
async fn tamper(tier: &dyn Backend) {
    let mut bytes = stored(tier).await.unwrap().to_vec();
    let last = bytes.len() - 9;
    bytes[last] ^= 1;
    plant(tier, with_right_checksum(bytes)).await;
}

async fn plant(tier: &dyn Backend, sealed: Bytes) {
    let meta = Meta { kind: EntryKind::Load, ..Envelope::header(&sealed).unwrap().meta };
    let ticket = tier.ticket(&key()).await.unwrap();
    assert_eq!(tier.put(Put { key: key(), meta, sealed, ticket }).await.unwrap(), PutOutcome::Stored);
}

fn refusals(cache: &Texts) -> Vec<(String, u64)> {
    cache.stats().tiers[0].refused.clone()
}

#[tokio::test]
async fn tampering_is_a_counted_miss_and_the_entry_is_set_aside() {
    for (protection, reason) in
        [(Protection::encrypt(ring(&[1])), "tampered"), (Protection::sign(ring(&[1])), "signature")]
    {
        let clock = ManualClock::new();
        let tier = memory(&clock);
        cache(&clock, &tier, protection.clone()).set("a".into(), "value".into()).await.unwrap();
        tamper(&*tier).await;
        let reader = cache(&clock, &tier, protection);
        assert_eq!(reader.explain("a").await.tiers[1].state, reason);
        assert_eq!(reader.get("a").await, None);
        assert_eq!(refusals(&reader), [(reason.to_owned(), 1)]);
        assert_eq!(reader.stats().tiers[0].tampered, 1);
        assert_eq!(stored(&*tier).await, None);
        let quarantined = tier.quarantined();
        assert_eq!((quarantined.len(), &*quarantined[0].reason), (1, reason));
        assert_eq!(quarantined[0].key, key());
        let health = reader.health().await;
        assert!(health.tiers[0].reasons[0].detail.contains(reason), "{:?}", health.tiers[0].reasons);
        let load = |_| async { Ok::<_, Infallible>("new".to_owned()) };
        assert_eq!(reader.get_or_load("a", load).await.unwrap(), "new");
        tier.forget_quarantined();
        // An answer is kept for a second.
        clock.advance(std::time::Duration::from_secs(1));
        assert!(reader.health().await.tiers[0].reasons.is_empty());
    }
}

#[tokio::test]
async fn a_strict_cache_says_so_once_and_goes_on() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let strict = || Protection::encrypt(ring(&[1])).on_tampering(OnTampering::Error);
    cache(&clock, &tier, strict()).set("a".into(), "value".into()).await.unwrap();
    tamper(&*tier).await;
    let reader = cache(&clock, &tier, strict());
    let load = |_| async { Ok::<_, Infallible>("new".to_owned()) };
    let error = reader.get_or_load("a", load).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
    assert_eq!(reader.stats().tiers[0].tampered, 1);
    assert_eq!(reader.get_or_load("a", load).await.unwrap(), "new");
    // What is not tampering is no error in it either.
    let unknown = cache(&clock, &tier, Protection::encrypt(ring(&[2])).on_tampering(OnTampering::Error));
    assert_eq!(unknown.get("a").await, None);
}

#[tokio::test]
async fn an_unknown_key_leaves_the_entry_to_those_who_have_it() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let owner = || cache(&clock, &tier, Protection::encrypt(ring(&[1])));
    owner().set("a".into(), "value".into()).await.unwrap();
    let before = stored(&*tier).await;
    let stranger = cache(&clock, &tier, Protection::encrypt(ring(&[2])));
    assert_eq!(stranger.get("a").await, None);
    assert_eq!(refusals(&stranger), [("key_id".to_owned(), 1)]);
    assert_eq!(stranger.stats().tiers[0].tampered, 0);
    assert_eq!(stored(&*tier).await, before);
    assert_eq!(owner().get("a").await.as_deref(), Some("value"));
}

#[tokio::test]
async fn plaintext_is_refused_and_dropped() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let plain: Texts = Cache::builder().clock(Clock::from(clock.clone())).tier(tier.clone()).build().unwrap();
    plain.set("a".into(), "value".into()).await.unwrap();
    let reader = cache(&clock, &tier, Protection::encrypt(ring(&[1])));
    assert_eq!(reader.get("a").await, None);
    assert_eq!(refusals(&reader), [("plaintext".to_owned(), 1)]);
    assert_eq!(stored(&*tier).await, None);
}

/// Moved to another key by who can write to the tier.
#[tokio::test]
async fn an_entry_of_another_key_is_tampering() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let protection = Protection::encrypt(ring(&[1]));
    let writer = cache(&clock, &tier, protection.clone());
    writer.set("b".into(), "of b".into()).await.unwrap();
    let b = EntryKey::new(&Namespace::default(), "b").unwrap();
    plant(&*tier, tier.get(&b).await.unwrap().found.unwrap()).await;
    let reader = cache(&clock, &tier, protection);
    assert_eq!(reader.get("a").await, None);
    assert_eq!(reader.stats().tiers[0].tampered, 1);
}

#[tokio::test]
async fn sqlite_keeps_a_bounded_quarantine_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.sqlite");
    let open = || async { Arc::new(SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap()) };
    let tier = open().await;
    assert!(tier.notes().is_empty() && tier.quarantined().await.unwrap().is_empty());
    let protection = Protection::encrypt(ring(&[1]));
    let build = |tier: &Arc<SqliteBackend>| -> Texts {
        Cache::builder().tier(tier.clone()).protection(protection.clone()).build().unwrap()
    };
    for round in 0..70 {
        build(&tier).set("a".into(), format!("value {round}")).await.unwrap();
        tamper(&*tier).await;
        assert_eq!(build(&tier).get("a").await, None);
    }
    // Only if it still is what was read.
    build(&tier).set("a".into(), "kept".into()).await.unwrap();
    tier.quarantine(&key(), &Bytes::from_static(b"other"), "tampered").await.unwrap();
    assert_eq!(tier.quarantined().await.unwrap().len(), 64);
    assert_eq!(build(&tier).get("a").await.as_deref(), Some("kept"));
    tier.close().await.unwrap();
    drop(tier);
    let tier = open().await;
    let held = tier.quarantined().await.unwrap();
    assert_eq!((held.len(), &*held[0].reason), (64, "tampered"));
    assert!(held[0].sealed.is_some() && held[0].key == key());
    assert!(tier.notes()[0].starts_with("64 entries"), "{:?}", tier.notes());
    tier.forget_quarantined().await.unwrap();
    assert!(tier.notes().is_empty() && tier.quarantined().await.unwrap().is_empty());
    tier.close().await.unwrap();
}

#[test]
fn an_encrypting_cache_does_not_start_without_its_key() {
    let none = larder::envelope::Keyring::builder().decrypt_with(super::secret(1)).build();
    assert_eq!(none.unwrap_err().kind(), ErrorKind::Config);
}
