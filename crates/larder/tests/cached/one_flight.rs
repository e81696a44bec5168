//! However many call, the body runs once.

use super::*;

runs!(ASYNC, BLOCKING);

#[cached]
async fn slow(id: u64) -> usize {
    tokio::time::sleep(Duration::from_millis(20)).await;
    run(&ASYNC) + id as usize
}

#[cached]
fn slow_blocking(id: u64) -> usize {
    std::thread::sleep(Duration::from_millis(20));
    run(&BLOCKING) + id as usize
}

#[tokio::test]
async fn a_hundred_callers_run_the_body_once() {
    let callers: Vec<_> = (0..100).map(|_| tokio::spawn(slow(7))).collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 8);
    }
    assert_eq!(ASYNC.load(SeqCst), 1);
}

#[test]
fn a_hundred_threads_run_a_blocking_body_once() {
    let callers: Vec<_> = (0..100).map(|_| std::thread::spawn(|| slow_blocking(7))).collect();
    for caller in callers {
        assert_eq!(caller.join().unwrap(), 8);
    }
    assert_eq!(BLOCKING.load(SeqCst), 1);
}

#[tokio::test(flavor = "current_thread")]
async fn a_blocking_function_works_on_a_current_thread_runtime() {
    #[cached]
    fn twice(n: u32) -> u32 {
        n * 2
    }
    assert_eq!(twice(4), 8);
    assert_eq!(twice_if_cached(4), Some(8));
}
