//! Failure: what one request has loaded is served to another, outlives it, or is loaded once per use after all; and a
//! caller that leaves, fails or waits for itself takes the others along.

use super::{poll_once, promptly};
use larder::ErrorKind;
use larder::request::{self, Memo, Scope};
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use tokio::sync::Notify;

/// A loader that counts its runs and takes a turn.
fn counting<V>(runs: &AtomicUsize, value: V) -> impl Future<Output = Result<V, Infallible>> {
    runs.fetch_add(1, SeqCst);
    async {
        tokio::task::yield_now().await;
        Ok(value)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_and_its_children_load_once_and_no_other_request_sees_it() {
    static MEMO: Memo<String, usize> = Memo::new();
    static OF_SAME_TYPES: Memo<String, usize> = Memo::new();
    for request in 0..3 {
        let runs = Arc::new(AtomicUsize::new(0));
        request::scope(async {
            let load = || MEMO.get_or_load("a", || counting(&runs, request));
            let (one, other) = tokio::join!(load(), load());
            assert_eq!((one.unwrap(), other.unwrap()), (request, request));
            tokio::task::yield_now().await;
            let scope = Scope::current().unwrap();
            let children: Vec<_> = (0..50)
                .map(|_| {
                    let runs = Arc::clone(&runs);
                    let child = async move {
                        tokio::task::yield_now().await;
                        MEMO.get_or_load("b", || counting(&runs, request)).await.unwrap()
                    };
                    tokio::spawn(scope.in_scope(child))
                })
                .collect();
            for child in children {
                assert_eq!(child.await.unwrap(), request);
            }
            assert_eq!(MEMO.get("a"), Some(request));
            assert_eq!(OF_SAME_TYPES.get("a"), None);
            assert_eq!(tokio::spawn(async { MEMO.get("a") }).await.unwrap(), None, "a child of no scope");
        })
        .await;
        assert_eq!(runs.load(SeqCst), 2);
    }
    assert_eq!(MEMO.get("a"), None);
}

#[tokio::test]
async fn requests_that_are_polled_in_turns_on_one_thread_do_not_mix() {
    static MEMO: Memo<usize, usize> = Memo::new();
    let request = |number: usize| {
        request::scope(async move {
            for key in 0..100 {
                let load = || async move { Ok::<_, Infallible>(number) };
                assert_eq!(MEMO.get_or_load(&key, load).await.unwrap(), number);
                tokio::task::yield_now().await;
                assert_eq!(MEMO.get(&key), Some(number));
            }
        })
    };
    tokio::join!(request(1), request(2), request(3));
}

#[tokio::test]
async fn outside_of_a_request_each_call_loads_for_itself() {
    static MEMO: Memo<u8, u8> = Memo::new();
    let runs = AtomicUsize::new(0);
    for _ in 0..3 {
        assert_eq!(MEMO.get_or_load(&1, || counting(&runs, 7)).await.unwrap(), 7);
    }
    assert_eq!((runs.load(SeqCst), MEMO.get(&1), MEMO.remove(&1)), (3, None, false));
}

#[tokio::test]
async fn what_it_held_is_dropped_with_it_also_by_a_panic_or_a_cancellation() {
    static MEMO: Memo<u8, Arc<()>> = Memo::new();
    let value = Arc::new(());
    let keep = |value: &Arc<()>| {
        let value = Arc::clone(value);
        async move {
            MEMO.get_or_load(&1, || async { Ok::<_, Infallible>(value) }).await.unwrap();
            Scope::current().unwrap()
        }
    };
    // Its end, with a handle that is still held.
    let held = request::scope(async {
        let scope = keep(&value).await;
        assert_eq!((scope.len(), Arc::strong_count(&value)), (1, 2), "it is kept meanwhile");
        scope
    })
    .await;
    assert_eq!((held.len(), Arc::strong_count(&value)), (0, 1));
    // Nothing is kept by a scope that has ended.
    let late = held.in_scope(async {
        keep(&value).await;
        MEMO.get(&1)
    });
    assert_eq!(late.await, None);
    assert_eq!(Arc::strong_count(&value), 1);
    // A panic.
    let panics = tokio::spawn(request::scope({
        let kept = keep(&value);
        async move {
            let _scope = kept.await;
            panic!("a request that panics");
        }
    }));
    assert!(panics.await.unwrap_err().is_panic());
    assert_eq!(Arc::strong_count(&value), 1);
    // A cancellation.
    let mut cancelled = Box::pin(request::scope(async {
        keep(&value).await;
        std::future::pending::<()>().await;
    }));
    assert!(poll_once(&mut cancelled).is_pending());
    assert_eq!(Arc::strong_count(&value), 2);
    drop(cancelled);
    assert_eq!(Arc::strong_count(&value), 1);
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_stall_the_others() {
    static MEMO: Memo<u8, u8> = Memo::new();
    request::scope(async {
        let mut first = Box::pin(MEMO.get_or_load(&1, std::future::pending::<Result<u8, Infallible>>));
        assert!(poll_once(&mut first).is_pending());
        let mut second = Box::pin(MEMO.get_or_load(&1, || async { Ok::<_, Infallible>(2) }));
        assert!(poll_once(&mut second).is_pending(), "it waits for the first");
        drop(first);
        assert_eq!(promptly(second).await.unwrap(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_failure_or_panic_reaches_all_who_wait_and_is_not_kept() {
    static MEMO: Memo<u8, u8> = Memo::new();
    for panics in [false, true] {
        let runs = AtomicUsize::new(0);
        request::scope(async {
            let load = || {
                MEMO.get_or_load(&1, || async {
                    runs.fetch_add(1, SeqCst);
                    tokio::task::yield_now().await;
                    assert!(!panics, "a loader that panics");
                    Err::<u8, _>(std::io::Error::other("down"))
                })
            };
            let kind = if panics { ErrorKind::LoaderPanicked } else { ErrorKind::Loader };
            let (one, two, three) = tokio::join!(load(), load(), load());
            for outcome in [one, two, three] {
                assert_eq!(outcome.unwrap_err().kind(), kind);
            }
            assert_eq!(runs.load(SeqCst), 1);
            assert!(Scope::current().unwrap().is_empty());
            assert_eq!(MEMO.get_or_load(&1, || async { Ok::<_, Infallible>(2) }).await.unwrap(), 2);
        })
        .await;
    }
}

#[tokio::test]
async fn a_load_that_waits_for_itself_is_told_so() {
    static MEMO: Memo<u8, u8> = Memo::new();
    async fn asks(key: u8, for_key: u8) -> larder::Result<u8> {
        let inner = move || async move {
            tokio::task::yield_now().await;
            Box::pin(asks(for_key, key)).await
        };
        MEMO.get_or_load(&key, inner).await
    }
    request::scope(async {
        assert_eq!(promptly(asks(1, 1)).await.unwrap_err().kind(), ErrorKind::NestedLoad);
        assert_eq!(promptly(asks(1, 2)).await.unwrap_err().kind(), ErrorKind::NestedLoad);
        // Each waits for the other's.
        let (one, other) = promptly(async { tokio::join!(asks(1, 2), asks(2, 1)) }).await;
        assert!(one.is_err() && other.is_err(), "{one:?} {other:?}");
        let plain = || async { Ok::<_, Infallible>(3) };
        let nested = || async { MEMO.get_or_load(&4, plain).await };
        assert_eq!(MEMO.get_or_load(&3, nested).await.unwrap(), 3, "other keys nest");
    })
    .await;
}

#[tokio::test]
async fn what_is_removed_is_not_put_back_by_a_load_under_way() {
    static MEMO: Memo<u8, u8> = Memo::new();
    for removes in [true, false] {
        request::scope(async {
            let go = Notify::new();
            let mut load = Box::pin(MEMO.get_or_load(&1, || async {
                go.notified().await;
                Ok::<_, Infallible>(1)
            }));
            assert!(poll_once(&mut load).is_pending());
            if removes {
                assert!(!MEMO.remove(&1), "there was no value yet");
            }
            go.notify_one();
            assert_eq!(promptly(load).await.unwrap(), 1);
            assert_eq!(MEMO.get(&1), if removes { None } else { Some(1) });
            assert_eq!(Scope::current().unwrap().len(), usize::from(!removes));
        })
        .await;
    }
}

#[tokio::test]
async fn it_holds_no_more_than_its_limit() {
    static MEMO: Memo<u8, u8> = Memo::new();
    request::scope_with(2, async {
        for key in 0..5 {
            let load = || async move { Ok::<_, Infallible>(key) };
            assert_eq!(MEMO.get_or_load(&key, load).await.unwrap(), key);
        }
        assert_eq!(Scope::current().unwrap().len(), 2);
        assert_eq!((MEMO.get(&1), MEMO.get(&2)), (Some(1), None));
        assert!(MEMO.remove(&1));
        assert_eq!(MEMO.get_or_load(&9, || async { Ok::<_, Infallible>(9) }).await.unwrap(), 9);
        assert_eq!(MEMO.get(&9), Some(9));
    })
    .await;
}
