//! Several processes on one file are as safe as several threads.
//!
//! The failure that this prevents: a process decides from something it remembers, a position or a fence,
//! and lets a write in that another process's removal should have refused.
//! A long run: `LARDER_TEST_PROCESS_SECONDS=60`.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "sqlite", target_os = "linux"))]

#[path = "sqlite_support/mod.rs"]
mod support;

use support::processes::{outlive_no_removal, read_and_write};

/// One of the processes.
#[test]
fn child_reads_and_writes() {
    read_and_write(support::OPEN);
}

#[test]
fn no_value_outlives_a_removal_by_another_process() {
    let folder = tempfile::tempdir().unwrap();
    outlive_no_removal(&folder.path().join("made at once by all").join("cache.db"));
}
