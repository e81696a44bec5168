//! Failure: a cache in a static is used by one runtime (a test, a reloaded worker) that ends while a load is
//! under way; the next runtime waits for that load for ever.

use larder::{BoxError, Cache, ErrorKind};
use std::sync::LazyLock;
use std::time::Duration;

static CACHE: LazyLock<Cache<u64, u64>> = LazyLock::new(|| Cache::builder().build().unwrap());

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn a_static_cache_serves_two_runtimes_in_a_row() {
    for round in 0..2 {
        let value = runtime().block_on(CACHE.get_or_load(&1, |_| async { Ok::<_, BoxError>(7) }));
        assert_eq!(value.unwrap(), 7, "round {round}");
        runtime().block_on(async {
            CACHE.set(2, round).await.unwrap();
            assert_eq!(CACHE.get(&2).await, Some(round));
            CACHE.remove(&2).await.unwrap();
        });
    }
}

#[test]
fn waiters_elsewhere_go_on_when_the_runtime_of_a_load_ends() {
    let first = runtime();
    first.spawn(CACHE.get_or_load(&3, |_| std::future::pending::<Result<u64, BoxError>>()));
    while CACHE.stats().flights == 0 {
        std::thread::yield_now();
    }
    let second = runtime();
    let joined = CACHE.stats().joined;
    let waiter = second.spawn(CACHE.get_or_load(&3, |_| async { Ok::<_, BoxError>(9) }));
    while CACHE.stats().joined == joined {
        std::thread::yield_now();
    }
    first.shutdown_background();
    let value = second.block_on(async { tokio::time::timeout(Duration::from_secs(20), waiter).await });
    assert_eq!(value.expect("nobody waits for ever").unwrap().unwrap(), 9);
}

#[test]
fn a_caller_outlives_the_runtime_of_its_own_load_with_an_error() {
    let cache: Cache<u64, u64> = Cache::builder().build().unwrap();
    let first = runtime();
    let mut caller = Box::pin(cache.get_or_load(&4, |_| std::future::pending::<Result<u64, BoxError>>()));
    {
        let _inside = first.enter();
        assert!(super::poll_once(&mut caller).is_pending());
    }
    first.shutdown_background();
    let second = runtime();
    let error = second.block_on(async { tokio::time::timeout(Duration::from_secs(20), caller).await });
    assert_eq!(error.expect("nobody waits for ever").unwrap_err().kind(), ErrorKind::Closed);
}
