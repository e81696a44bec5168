//! Prevents: a secret that is stored in plain because nobody noticed that there was no key, that stays in
//! memory, or shows in a log; and "not there" for what a tier that is down may have.

#![cfg(feature = "encryption")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use larder::backend::{Backend, MemoryBackend, MemoryOptions};
use larder::envelope::{Keyring, SecretKey};
use larder::secrets::{Copies, Secret, SecretStore};
use larder::state::StateStore;
use larder::tenant::Tenant;
use larder::{Builder, Cache, ErrorKind};
use std::sync::Arc;
use std::time::Duration;
use support::{Faulty, Mood};

const CANARY: &str = "canary-5f1c";

fn keyring(first: u8) -> Keyring {
    let secret = std::array::from_fn(|at| first.wrapping_add(at as u8));
    Keyring::builder().encrypt_with(SecretKey::from_bytes(&secret).unwrap()).build().unwrap()
}

fn memory() -> Arc<MemoryBackend> {
    Arc::new(MemoryBackend::new(MemoryOptions::default()))
}

fn over(tier: &Arc<MemoryBackend>) -> Builder<String, Secret> {
    Cache::builder().tier(Arc::clone(tier) as Arc<dyn Backend>)
}

#[tokio::test]
async fn without_encryption_there_is_no_store() {
    let tier = memory();
    for builder in [over(&tier), over(&tier).signing(keyring(1)), Cache::builder().encryption(keyring(1))] {
        let error = SecretStore::new(builder, Copies::None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    }
    SecretStore::new(over(&tier).encryption(keyring(1)), Copies::None).unwrap();
}

#[tokio::test]
async fn a_secret_is_kept_listed_and_deleted_and_never_shown() {
    let tier = memory();
    let store = SecretStore::new(over(&tier).encryption(keyring(1)), Copies::None).unwrap();
    for name in ["db/a*b", "db/axb", "web/token"] {
        store.put(name, Secret::new(CANARY)).await.unwrap();
    }
    let secret = store.get("web/token").await.unwrap().unwrap();
    assert_eq!(secret.expose_str(), Some(CANARY));
    assert!(!format!("{secret:?} {store:?}").contains(CANARY));
    let mut names = store.list("db/", None, 10).await.unwrap().names;
    names.sort();
    assert_eq!(names, ["db/a*b", "db/axb"]);
    assert_eq!(store.list("db/a*", None, 10).await.unwrap().names, ["db/a*b"], "a prefix is no pattern");
    let first = store.list("", None, 2).await.unwrap();
    let rest = store.list("", first.next.clone(), 2).await.unwrap();
    assert_eq!((first.names.len(), rest.names.len(), rest.next), (2, 1, None));
    assert!(store.delete("db/axb").await.unwrap().existed);
    assert!(store.get("db/axb").await.unwrap().is_none());
    let other = store.with_view(|cache| cache.tenant(&Tenant::new("other").unwrap()));
    assert!(other.get("web/token").await.unwrap().is_none());
    assert_eq!(other.list("", None, 10).await.unwrap().names.len(), 0);
}

/// With the negative control: a store that was asked to keeps copies, and these are found.
#[tokio::test]
async fn memory_has_copies_only_where_they_are_asked_for() {
    for (copies, kept) in [(Copies::None, 0), (Copies::InMemory, 1)] {
        let store = SecretStore::new(over(&memory()).encryption(keyring(1)), copies).unwrap();
        store.put("a", Secret::new(CANARY)).await.unwrap();
        for _ in 0..3 {
            assert!(store.get("a").await.unwrap().is_some());
            assert_eq!(store.cache().stats().entries, kept, "{copies:?}");
        }
        assert_eq!(store.cache().peek("a").is_some(), kept == 1);
    }
}

#[tokio::test]
async fn a_secret_under_an_unknown_key_is_an_error_and_no_absence() {
    let tier = memory();
    let store = SecretStore::new(over(&tier).encryption(keyring(1)), Copies::None).unwrap();
    store.put("a", Secret::new(CANARY)).await.unwrap();
    let other = SecretStore::new(over(&tier).encryption(keyring(9)), Copies::None).unwrap();
    let error = other.get("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("key_id"), "{error}");
    assert!(store.get("a").await.unwrap().is_some(), "nothing was dropped");
}

#[tokio::test(start_paused = true)]
async fn a_tier_that_is_down_is_an_error_and_no_absence() {
    let tier = Faulty::new(memory());
    let state: StateStore<u64> =
        StateStore::new(Cache::builder().entries_max(1).tier(Arc::clone(&tier) as Arc<dyn Backend>)).unwrap();
    state.set("a", 1).await.unwrap();
    state.set_for("b", 2, Duration::from_secs(60)).await.unwrap();
    assert_eq!(state.get_many(&["b", "none", "a"]).await.unwrap(), [Some(2), None, Some(1)]);
    tier.feel(Mood::Down);
    assert_eq!(state.get("c").await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(state.get_many(&["c"]).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(state.set("d", 4).await.unwrap_err().kind(), ErrorKind::Unavailable);
    tier.feel(Mood::Well);
    state.cache().recover().await;
    assert_eq!(state.get("c").await.unwrap(), None);
    state.set("a", 9).await.unwrap();
    assert_eq!(state.get("a").await.unwrap(), Some(9));
    assert!(state.delete("a").await.unwrap().existed);
    assert_eq!(state.get("a").await.unwrap(), None);
}

#[tokio::test]
async fn what_can_not_be_a_store_is_refused() {
    assert_eq!(StateStore::<u8>::new(Cache::builder()).unwrap_err().kind(), ErrorKind::Config);
    let state: StateStore<u8> = StateStore::new(Cache::builder().tier(memory())).unwrap();
    let error = state.set(&"x".repeat(513), 1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}
