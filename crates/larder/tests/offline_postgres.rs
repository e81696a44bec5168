//! Prevents: an example that shows what is no longer true, and a mirror that serves nothing while its source is down.

#![cfg(all(feature = "postgres", feature = "sqlite", unix))]
#![allow(clippy::unwrap_used, reason = "tests")]

// `cargo test` builds examples as they are, so what it runs here is what a reader would run.
#[allow(dead_code, unreachable_pub, reason = "its `main` is run in a process of its own")]
#[path = "../examples/offline_postgres.rs"]
mod offline_postgres;

use std::process::Command;

/// The example itself, when this binary is told to be it.
#[test]
fn the_example() {
    if std::env::var_os("LARDER_OFFLINE_POSTGRES").is_some() {
        offline_postgres::main().unwrap();
    }
}

#[test]
fn the_mirror_serves_what_it_says() {
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["the_example", "--exact", "--nocapture", "--test-threads=1"])
        .env("LARDER_OFFLINE_POSTGRES", "1")
        .output()
        .unwrap();
    let shown = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success(), "{shown}{}", String::from_utf8_lossy(&run.stderr));
    for line in [
        "3 vendors and 250 work items",
        "Acme, Oslo: fresh, 0 min old",
        "Nobody: there is none",
        "Acme, Oslo: fresh, 10 min old",
        "Acme, Oslo: STALE, 35 min old",
        "vendor Drum: loader",
        "is_stale(\"vendors:Acme\"): Some(true)",
        "a record is named collection:key",
        "stale: true",
        "vendors: 3 in all, 3 stale, oldest 35 min, offline: true",
        "work_items: 250 in all, 250 stale, oldest 35 min, offline: true",
        "Bolt, Bergen: STALE, 35 min old",
        "vendors: 2 in all, 0 stale, oldest 0 min, offline: false",
        "work_items: 250 in all, 0 stale, oldest 0 min, offline: false",
        "Bolt, Bodo: fresh, 0 min old",
        "Cask: there is none",
        "252 records cleared",
        "vendors: 0 in all, 0 stale, oldest none",
    ] {
        assert!(shown.contains(line), "{line} is missing in {shown}");
    }
}
