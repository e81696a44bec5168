//! `#[cached]`: what a function with it does, seen by its callers.

use larder::cached;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

static LOADS: AtomicUsize = AtomicUsize::new(0);

#[cached(ttl = "5m", tags = ["numbers", format!("n:{n}")])]
async fn double(n: u64, label: &str) -> String {
    LOADS.fetch_add(1, SeqCst);
    format!("{label}{}", n * 2)
}

#[cached(condition = n > 0)]
fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
}

#[cached]
async fn afib(n: u64) -> u64 {
    if n < 2 { n } else { afib(n - 1).await + afib(n - 2).await }
}

#[tokio::test]
async fn works() {
    assert_eq!(double(2, "a").await, "a4");
    assert_eq!(double(2, "a").await, "a4");
    assert_eq!(LOADS.load(SeqCst), 1);
    assert_eq!(fib(90), 2880067194370816120);
    assert_eq!(afib(90).await, 2880067194370816120);
}
