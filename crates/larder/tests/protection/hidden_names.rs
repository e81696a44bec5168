//! Prevents: a shared tier that learns from its keys who a service's users are.

use super::{Texts, ring, secret};
use larder::backend::{Backend, MemoryBackend, Scan};
use larder::envelope::Keyring;
use larder::key::{Namespace, Pattern};
use larder::{Cache, ErrorKind, KeysRequest, TierOptions};
use std::sync::Arc;

fn keyring(keys: &[u8], names: u8) -> Keyring {
    let builder = Keyring::builder().encrypt_with(secret(keys[0])).hide_names_with(secret(names));
    keys[1..].iter().fold(builder, |builder, key| builder.decrypt_with(secret(*key))).build().unwrap()
}

fn hiding() -> TierOptions {
    let mut options = TierOptions::default();
    options.hide_keys = true;
    options
}

fn node(tier: &Arc<MemoryBackend>, keyring: Keyring) -> Texts {
    Cache::builder().tier_with(tier.clone(), hiding()).encryption(keyring).build().unwrap()
}

#[tokio::test]
async fn the_tier_sees_no_key_and_everything_else_works() {
    let tier = Arc::new(MemoryBackend::new(Default::default()));
    let (one, two) = (node(&tier, keyring(&[1], 9)), node(&tier, keyring(&[2, 1], 9)));
    one.set("alice@example.com".into(), "value".into()).await.unwrap();
    one.set("bob@example.com".into(), "value".into()).await.unwrap();
    let namespace = Namespace::default();
    let scan = || Scan { namespace: &namespace, pattern: None, after: None, limit: 10 };
    let listed = tier.scan(scan()).await.unwrap().entries;
    assert_eq!(listed.len(), 2);
    for entry in &listed {
        assert!(!format!("{:?}", entry.key).contains("example"), "{:?}", entry.key);
        assert_eq!(entry.key.as_bytes().len(), 33);
    }
    // Another node with the same key for names finds it, whatever key it encrypts with.
    assert_eq!(two.get("alice@example.com").await.as_deref(), Some("value"));
    let explained = two.explain("alice@example.com").await;
    assert!(explained.tiers[1].is_key_hidden && explained.tiers[1].state == "fresh", "{explained}");
    assert!(
        explained.to_string().contains("key hidden, load")
            || explained.to_string().contains("key hidden, set")
    );
    // And keys are rotated without knowing any name.
    let mut rotation = two.rotate_keys().await.unwrap();
    while rotation.step().await.unwrap().is_some() {}
    assert_eq!(rotation.progress().resealed, 2);
    assert!(two.remove("alice@example.com").await.unwrap().existed);
    assert_eq!(node(&tier, keyring(&[2], 9)).get("alice@example.com").await, None);
    assert_eq!(tier.scan(scan()).await.unwrap().entries.len(), 1);
    two.clear().await.unwrap();
    assert!(tier.scan(scan()).await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn what_needs_names_says_that_there_are_none() {
    let tier = Arc::new(MemoryBackend::new(Default::default()));
    let cache = node(&tier, keyring(&[1], 9));
    cache.set("alice".into(), "value".into()).await.unwrap();
    let refused = cache.remove_matching(&Pattern::new("ali*").unwrap()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("hidden"), "{refused}");
    assert_eq!(cache.get("alice").await.as_deref(), Some("value"), "nothing was removed");
    let refused = cache.keys(&KeysRequest::default()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
}

/// Between a tier with hidden names and one without, entries are copied under their other name.
#[tokio::test]
async fn entries_are_promoted_between_tiers_that_name_them_differently() {
    let upper = Arc::new(MemoryBackend::new(Default::default()));
    let lower = Arc::new(MemoryBackend::new(Default::default()));
    let build = || -> Texts {
        Cache::builder()
            .tier(upper.clone())
            .tier_with(lower.clone(), hiding())
            .encryption(keyring(&[1], 9))
            .build()
            .unwrap()
    };
    node(&lower, keyring(&[1], 9)).set("alice".into(), "value".into()).await.unwrap();
    let cache = build();
    assert_eq!(cache.get("alice").await.as_deref(), Some("value"));
    // The copy is written after the answer.
    let mut tries = 0;
    while upper.usage().await.unwrap().entries == 0 {
        tries += 1;
        assert!(tries < 1000, "it was not copied");
        tokio::task::yield_now().await;
    }
    assert_eq!(build().get("alice").await.as_deref(), Some("value"));
    assert_eq!(build().explain("alice").await.tiers[1].state, "fresh");
    assert!(cache.remove("alice").await.unwrap().existed);
    assert_eq!(build().get("alice").await, None);
}

#[test]
fn it_needs_a_key_for_names_which_stays() {
    let tier = Arc::new(MemoryBackend::new(Default::default()));
    let build = |ring: Option<Keyring>| {
        let builder = Cache::<String, String>::builder().tier_with(tier.clone(), hiding());
        match ring {
            Some(ring) => builder.encryption(ring).build(),
            None => builder.build(),
        }
    };
    for ring in [None, Some(ring(&[1]))] {
        assert_eq!(build(ring).unwrap_err().kind(), ErrorKind::Config);
    }
    let used = keyring(&[1], 9);
    for other in [keyring(&[1], 8), ring(&[1])] {
        assert_eq!(used.replace(&other).unwrap_err().kind(), ErrorKind::Config);
    }
    used.replace(&keyring(&[2, 1], 9)).unwrap();
    let both = Keyring::builder().encrypt_with(secret(1)).hide_names_with(secret(1)).build();
    assert_eq!(both.unwrap_err().kind(), ErrorKind::Config);
}
