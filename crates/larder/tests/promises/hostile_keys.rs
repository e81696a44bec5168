//! Failure: a key that is empty, huge, or full of separators and zero bytes is refused, cut off, or taken for
//! another key, and one user is served what belongs to another.

use super::memory;
use super::support::Faulty;
use larder::Cache;
use larder::backend::Backend;
use larder::clock::{Clock, ManualClock};
use std::collections::HashSet;
use std::sync::Arc;

fn keys() -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    keys.extend([b"".to_vec(), b"a\0b".to_vec(), b"a:b".to_vec(), b"a/../b".to_vec(), "ключ".into()]);
    keys.extend([b"%00".to_vec(), b"* ? [a]".to_vec(), b"\r\nset x".to_vec(), vec![0xff; 300]]);
    // Long ones are hashed by their whole length: these differ in their last byte alone.
    for last in 0..3 {
        let mut long = vec![b'x'; 1 << 20];
        long.push(last);
        keys.push(long);
    }
    keys
}

async fn each_key_has_its_own_value(clock: &ManualClock, tier: Option<Arc<dyn Backend>>) {
    let new = || {
        let builder = Cache::<Vec<u8>, u64>::builder().clock(Clock::from(clock.clone()));
        match &tier {
            Some(tier) => builder.tier(Arc::clone(tier)).build().unwrap(),
            None => builder.build().unwrap(),
        }
    };
    let cache = new();
    let keys = keys();
    assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
    for (value, key) in (0..).zip(&keys) {
        cache.set(key.clone(), value).await.unwrap();
    }
    let below = if tier.is_some() { new() } else { cache.clone() };
    for cache in [&cache, &below] {
        for (value, key) in (0..).zip(&keys) {
            assert_eq!(cache.get(key).await, Some(value), "{:?}", &key[..key.len().min(20)]);
        }
    }
    for (i, key) in keys.iter().enumerate() {
        assert!(cache.remove(key).await.unwrap().existed);
        if let Some(next) = keys.get(i + 1) {
            assert!(cache.get(next).await.is_some(), "removing one key removed another");
        }
    }
    assert_eq!(new().get(&keys[0]).await, None);
}

#[tokio::test]
async fn in_memory_and_in_every_tier() {
    let clock = ManualClock::new();
    each_key_has_its_own_value(&clock, None).await;
    each_key_has_its_own_value(&clock, Some(memory(&clock))).await;
    each_key_has_its_own_value(&clock, Some(Faulty::new(memory(&clock)))).await;
    #[cfg(feature = "sqlite")]
    {
        let (_folder, tier) = super::ttl_over_all_of_u64::sqlite(&clock).await;
        each_key_has_its_own_value(&clock, Some(tier)).await;
    }
}

/// Types are told apart where their values look the same.
#[tokio::test]
async fn namespaces_and_types_do_not_meet() {
    let clock = ManualClock::new();
    let tier = memory(&clock);
    let texts: Cache<String, u64> =
        Cache::builder().clock(Clock::from(clock.clone())).tier(tier.clone()).build().unwrap();
    let numbers: Cache<u64, u64> =
        Cache::builder().clock(Clock::from(clock.clone())).tier(tier.clone()).build().unwrap();
    texts.set("1".into(), 10).await.unwrap();
    assert_eq!(numbers.get(&1).await, None);
    let other = texts.namespace(&larder::key::Namespace::new("other").unwrap());
    assert_eq!(other.get("1").await, None);
    other.clear().await.unwrap();
    assert_eq!(texts.get("1").await, Some(10));
}
