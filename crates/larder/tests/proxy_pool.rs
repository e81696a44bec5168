//! Prevents: an example that shows what is no longer true.

#![cfg(all(feature = "encryption", feature = "jsonl", feature = "sqlite", unix))]
#![allow(clippy::unwrap_used, reason = "tests")]

// `cargo test` builds examples as they are, so what it runs here is what a reader would run.
#[allow(dead_code, unreachable_pub, reason = "its `main` is run in a process of its own")]
#[path = "../examples/proxy_pool.rs"]
mod proxy_pool;

use std::process::Command;

/// The example itself, when this binary is told to be it.
#[test]
fn the_example() {
    if std::env::var_os("LARDER_PROXY_POOL").is_some() {
        proxy_pool::main().unwrap();
    }
}

#[test]
fn the_pool_survives_what_it_says() {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["the_example", "--exact", "--nocapture", "--test-threads=1"])
        .env("LARDER_PROXY_POOL", "1")
        .output()
        .unwrap();
    let shown = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success(), "{shown}{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(shown.matches("3 of 3 proxies").count(), 4, "{shown}");
    for line in [
        "6 entries sealed anew",
        "bad reports in a row: 3, evicted: true",
        "2 of 3 proxies",
        "2 known to be good",
        "found in 0 of",
        "on purpose: found in 1",
    ] {
        assert!(shown.contains(line), "{line} is missing in {shown}");
    }
    assert!(!shown.contains("canary") && !shown.contains(" 0 shards"), "{shown}");
}
