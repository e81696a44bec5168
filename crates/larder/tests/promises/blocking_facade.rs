//! Failure: synchronous code asks the cache from inside a runtime, and the thread that would run the load is
//! the one that waits for it.

use larder::{BoxError, Cache, EntryOptions, ErrorKind};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

fn all_of_it() {
    let cache: Cache<String, u64> = Cache::builder().build().unwrap();
    let blocking = cache.blocking();
    assert_eq!(blocking.get("a"), None);
    assert_eq!(blocking.get_or_load("a", || Ok::<_, Infallible>(1)).unwrap(), 1);
    assert_eq!(blocking.get("a"), Some(1));
    blocking.set("b".into(), 2).unwrap();
    assert!(blocking.remove("b").unwrap().existed);
    let absent = blocking.get_or_load_optional("c", &EntryOptions::default(), || Ok::<_, Infallible>(None));
    assert_eq!(absent.unwrap(), None);
    blocking.clear().unwrap();
    assert_eq!(blocking.get("a"), None);
    let error = blocking.get_or_load("d", || -> Result<u64, Infallible> { panic!("boom") }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LoaderPanicked);
    let outer = blocking.clone();
    let nested = blocking.get_or_load("e", move || outer.get_or_load("f", || Ok::<_, BoxError>(5)));
    assert_eq!(nested.unwrap(), 5);
    let outer = blocking.clone();
    let error = blocking.get_or_load("g", move || outer.get_or_load("g", || Ok::<_, BoxError>(6)));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NestedLoad);
}

#[test]
fn outside_of_any_runtime() {
    all_of_it();
}

#[tokio::test]
async fn on_a_current_thread_runtime() {
    all_of_it();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn on_the_only_worker_of_a_runtime() {
    all_of_it();
}

#[test]
fn many_threads_load_once() {
    let cache: Cache<String, u64> = Cache::builder().build().unwrap();
    let loads = Arc::new(AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..32 {
            let (blocking, loads) = (cache.blocking(), Arc::clone(&loads));
            scope.spawn(move || {
                let load = move || {
                    let load = loads.fetch_add(1, SeqCst) as u64;
                    (0..1000).for_each(|_| std::thread::yield_now());
                    Ok::<_, Infallible>(load)
                };
                assert_eq!(blocking.get_or_load("a", load).unwrap(), 0);
            });
        }
    });
    assert_eq!(loads.load(SeqCst), 1);
}

/// Larder's own runtime has two threads. Loaders that run there and block must not use them up: the loads
/// that they wait for, and all timers, would stand still.
#[test]
fn async_loaders_that_block_on_other_loads() {
    let cache: Cache<String, u64> = Cache::builder().build().unwrap();
    let threads: Vec<_> = (0..8)
        .map(|i| {
            let cache = cache.clone();
            std::thread::spawn(move || {
                let within = cache.blocking();
                let load = move |_| async move {
                    within.get_or_load(&format!("inner {i}"), move || Ok::<_, BoxError>(i))
                };
                poll_to_end(cache.get_or_load(&format!("outer {i}"), load)).unwrap()
            })
        })
        .collect();
    for (i, thread) in threads.into_iter().enumerate() {
        assert_eq!(thread.join().unwrap(), i as u64);
    }
}

/// An executor without a runtime: loads go to larder's own.
fn poll_to_end<F: Future>(future: F) -> F::Output {
    let mut future = Box::pin(future);
    for _ in 0..5_000_000 {
        if let std::task::Poll::Ready(output) = super::poll_once(&mut future) {
            return output;
        }
        std::thread::yield_now();
    }
    panic!("it never ends")
}
