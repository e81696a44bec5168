//! How long what a function returned is kept, and who shares a cache.

use super::*;

static CLOCKED: LazyLock<Timed<usize>> = LazyLock::new(timed);
runs!(LITERAL, COMPUTED, REVALIDATED, STALE);

#[cached(ttl = "1m", cache = CLOCKED.0)]
async fn literal() -> usize {
    run(&LITERAL)
}

#[cached(ttl = SECOND * n, cache = CLOCKED.0, namespace = "computed")]
async fn computed(n: u32) -> usize {
    run(&COMPUTED)
}

#[cached(ttl = 10, stale_while_revalidate = "10s", cache = CLOCKED.0)]
async fn revalidated() -> usize {
    run(&REVALIDATED)
}

#[cached(ttl = 10, stale_on_error = "1h", cache = CLOCKED.0)]
async fn stale() -> std::io::Result<usize> {
    match run(&STALE) {
        1 => Ok(1),
        _ => Err(std::io::Error::other("the source is down")),
    }
}

#[tokio::test]
async fn entries_live_as_long_as_the_attribute_says() {
    let clock = &CLOCKED.1;
    assert_eq!((literal().await, computed(5).await, computed(90).await), (1, 1, 2));
    assert_eq!((revalidated().await, stale().await.unwrap()), (1, 1));
    clock.advance(9 * SECOND);
    assert_eq!((literal().await, computed(5).await, computed(90).await), (1, 3, 2));
    clock.advance(2 * SECOND);
    assert_eq!(revalidated().await, 1);
    while REVALIDATED.load(SeqCst) < 2 || revalidated_cache().stats().flights > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(revalidated().await, 2);
    assert_eq!(stale().await.unwrap(), 1, "an old value beats an error");
    assert_eq!(STALE.load(SeqCst), 2);
    clock.advance(50 * SECOND);
    assert_eq!((literal().await, computed(90).await), (2, 2));
    computed_prime(7, 70).await.unwrap();
    clock.advance(6 * SECOND);
    assert_eq!(computed_if_cached(7).await, Some(70));
    clock.advance(SECOND);
    assert_eq!(computed_if_cached(7).await, None, "a primed value has the TTL of a returned one");
}

#[tokio::test]
async fn a_shared_cache_keeps_functions_apart_and_shares_tags() {
    static SHARED: LazyLock<Timed<u32>> = LazyLock::new(timed);
    #[cached(cache = SHARED.0, tags = ["both"])]
    async fn one(n: u32) -> u32 {
        n + 1
    }
    #[cached(cache = SHARED.0, tags = ["both"])]
    async fn two(n: u32) -> u32 {
        n + 2
    }
    #[cached(cache = SHARED.0, namespace = "apart", tags = ["both"])]
    async fn three(n: u32) -> u32 {
        n + 3
    }
    assert_eq!((one(1).await, two(1).await, three(1).await), (2, 3, 4));
    SHARED.0.remove_tag("both").await.unwrap();
    assert_eq!((one_if_cached(1).await, two_if_cached(1).await), (None, None));
    assert_eq!(three_if_cached(1).await, Some(4), "a namespace has tags of its own");
    assert_eq!(three_cache().namespace_name().as_str(), "apart");
}
