//! Loads inside of loads, which must neither wait for themselves nor use up all threads.

use super::*;

runs!(FIB, NESTED, REFUSED);

#[cached]
fn fib(n: u64) -> u64 {
    run(&FIB);
    if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
}

#[cached]
async fn fib_async(n: u64) -> u64 {
    if n < 2 { n } else { fib_async(n - 1).await + fib_async(n - 2).await }
}

/// Asks for its own key, twice.
#[cached]
fn nested(n: u64) -> u64 {
    if run(&NESTED) < 3 { nested(n) + 1 } else { 0 }
}

#[cached]
async fn refused(n: u64) -> larder::Result<u64> {
    run(&REFUSED);
    refused(n).await
}

#[test]
fn loads_inside_of_loads_are_no_deadlock() {
    // Deeper than the pool of blocking threads is wide.
    #[cached(load_timeout_hard = "5m")]
    fn depth(n: u64) -> u64 {
        if n == 0 { 0 } else { depth(n - 1) + 1 }
    }
    assert_eq!(fib(90), 2_880_067_194_370_816_120);
    assert_eq!(FIB.load(SeqCst), 91);
    assert_eq!(depth(700), 700);
}

#[tokio::test]
async fn the_same_async() {
    assert_eq!(fib_async(90).await, 2_880_067_194_370_816_120);
}

#[tokio::test]
async fn a_function_that_asks_for_its_own_key_runs_as_without_a_cache_or_fails() {
    assert_eq!(nested(1), 2);
    assert_eq!(NESTED.load(SeqCst), 3);
    assert_eq!(refused(1).await.unwrap_err().kind(), ErrorKind::NestedLoad);
    assert_eq!(REFUSED.load(SeqCst), 1);
}
