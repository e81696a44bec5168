//! What stands beside a cached function.

use super::*;

runs!(ASYNC, BLOCKING);

/// Documented.
#[cached(tags = ["users", format!("user:{id}")], entries_max = 10)]
async fn user(id: u64) -> usize {
    run(&ASYNC)
}

#[cached(condition = *"skip" != *name, refresh_after = 0.8, ttl_jitter = 0.1, load_timeout_soft = 1)]
fn named(name: &str) -> usize {
    run(&BLOCKING)
}

#[tokio::test]
async fn bypass_prime_refresh_invalidate_and_inspect() {
    assert_eq!(user_if_cached(1).await, None);
    assert_eq!((user(1).await, user(1).await), (1, 1));
    assert_eq!(user_if_cached(1).await, Some(1));
    assert_eq!(user_uncached(1).await, 2);
    assert_eq!(user(1).await, 1, "a bypass stores nothing");
    assert_eq!((user_refresh(1).await, user(1).await), (3, 3));
    assert!(user_invalidate(1).await.unwrap().existed);
    assert_eq!(user(1).await, 4);
    user_prime(1, 100).await.unwrap();
    assert_eq!(user(1).await, 100);
    user_cache().remove_tag("user:1").await.unwrap();
    assert_eq!(user(1).await, 5, "a primed value has the tags of a returned one");
    assert!(user_cache().namespace_name().as_str().ends_with("companions::user"));
    let page = user_cache().keys(&larder::KeysRequest::default()).await.unwrap();
    assert_eq!(page.keys[0].key.text(), "1");
    assert_eq!(user_cache().stats().entries, 1);
}

#[test]
fn the_same_from_a_plain_thread() {
    assert_eq!(named_if_cached("a"), None);
    assert_eq!((named("a"), named("a")), (1, 1));
    assert_eq!(named_if_cached("a"), Some(1));
    assert_eq!((named_uncached("a"), named("a")), (2, 1));
    assert_eq!((named_refresh("a"), named("a")), (3, 3));
    assert!(named_invalidate("a").unwrap().existed);
    named_prime("a", 100).unwrap();
    assert_eq!(named("a"), 100);
    assert_eq!((named("skip"), named("skip")), (4, 5), "the condition bypasses the cache");
    assert_eq!(named_if_cached("skip"), None);
}
