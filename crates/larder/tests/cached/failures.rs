//! What a caller gets when the cache or the body fails.

use super::*;

static CLOCKED: LazyLock<Timed<usize>> = LazyLock::new(timed);
static TINY: LazyLock<Cache<EntryKey, u32>> =
    LazyLock::new(|| Cache::builder().flights_max(1).build().unwrap());
runs!(HANGS, PANICS);

#[cached(cache = CLOCKED.0, load_timeout_hard = "1s")]
async fn hangs_once() -> usize {
    match run(&HANGS) {
        1 => std::future::pending().await,
        runs => runs,
    }
}

#[cached(cache = CLOCKED.0, load_timeout_hard = "1s", namespace = "late")]
async fn hangs() -> std::io::Result<usize> {
    std::future::pending().await
}

#[cached(cache = *TINY)]
async fn inner(n: u32) -> u32 {
    n
}

#[cached(cache = *TINY)]
async fn outer(n: u32) -> u32 {
    inner(n).await + 1
}

#[cached]
async fn panics(_n: u32) -> u32 {
    run(&PANICS);
    panic!("on purpose")
}

#[cached]
fn panics_blocking(_n: u32) -> larder::Result<u32> {
    panic!("on purpose")
}

async fn after_a_second<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    let late = tokio::spawn(future);
    while CLOCKED.1.sleepers() == 0 {
        tokio::task::yield_now().await;
    }
    while !late.is_finished() {
        CLOCKED.1.advance(SECOND);
        tokio::task::yield_now().await;
    }
    late.await.unwrap()
}

#[tokio::test]
async fn a_late_load_is_run_directly_or_is_an_error() {
    assert_eq!(after_a_second(hangs_once()).await, 2);
    assert_eq!(after_a_second(hangs()).await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_bound_of_the_cache_does_not_fail_the_function() {
    assert_eq!(outer(1).await, 2);
    assert_eq!(outer_if_cached(1).await, Some(2));
    assert_eq!(inner_if_cached(1).await, None, "there was no flight left for it");
}

#[tokio::test]
async fn a_panic_reaches_the_caller_and_is_not_repeated() {
    let error = tokio::spawn(panics(1)).await.unwrap_err();
    let text = error.into_panic().downcast::<String>().unwrap();
    assert!(text.contains("panics panicked") && text.contains("on purpose"), "{text}");
    assert_eq!(PANICS.load(SeqCst), 1);
    assert_eq!(panics_blocking(1).unwrap_err().kind(), ErrorKind::LoaderPanicked);
}

#[tokio::test]
async fn a_key_that_cannot_be_encoded_does_not_fail_the_function() {
    struct Refuses;
    impl serde::Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }
    #[cached(key = Refuses)]
    async fn keyless(n: u32) -> u32 {
        n
    }
    assert_eq!(keyless(3).await, 3);
    assert_eq!(keyless_prime(3, 4).await.unwrap_err().kind(), ErrorKind::Key);
}
