//! A server makes a namespace for every name that a client thinks of, and a batch may name a key twice: neither
//! may grow without a bound or blur whose answer is whose.

#![allow(clippy::unwrap_used, reason = "tests")]

use larder::backend::{MemoryBackend, MemoryOptions};
use larder::key::Namespace;
use larder::{Cache, Removal};
use std::sync::Arc;

fn tiered() -> Cache<String, u32> {
    Cache::builder().tier(Arc::new(MemoryBackend::new(MemoryOptions::default()))).build().unwrap()
}

#[tokio::test]
async fn each_key_of_a_batch_is_told_whether_it_was_there() {
    for cache in [tiered(), Cache::builder().build().unwrap()] {
        cache.set("a".into(), 1).await.unwrap();
        cache.set("c".into(), 3).await.unwrap();
        let keys = ["a", "b", "c", "a"].map(String::from);
        let removed = cache.remove_many(&keys).await;
        let existed: Vec<bool> =
            removed.into_iter().map(|removal: larder::Result<Removal>| removal.unwrap().existed).collect();
        assert_eq!(existed, [true, false, true, false]);
    }
}

#[tokio::test]
async fn namespaces_that_nobody_holds_are_forgotten_and_their_entries_stay_right() {
    let cache = tiered();
    let kept = cache.namespace(&Namespace::new("kept").unwrap());
    kept.set("a".into(), 1).await.unwrap();
    let of = |i: u32| cache.namespace(&Namespace::new(&format!("n{i}")).unwrap());
    of(0).set("a".into(), 7).await.unwrap();
    for i in 0..25_000 {
        assert_eq!(of(i).peek("a"), (i == 0).then_some(7));
    }
    assert_eq!(kept.peek("a"), Some(1), "a view that is held keeps its place in memory");
    assert_eq!(of(0).get("a").await, Some(7), "a forgotten one is found in the tier again");
    of(0).remove("a").await.unwrap();
    assert_eq!(of(0).get("a").await, None);
    assert!(cache.namespaces().await.unwrap().len() <= 10_001);
}
