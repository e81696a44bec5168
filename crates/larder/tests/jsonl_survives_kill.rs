//! What was acknowledged is there after kill -9, and what was removed stays removed.
//!
//! The failure that this prevents: a writer process dies in the middle of a group of lines, a rewriting or
//! a rename, and the next process finds a torn value, an older one, or one that was removed.
//! A long run: `LARDER_TEST_KILLS=300`.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "jsonl", target_os = "linux"))]

#[path = "jsonl_support/mod.rs"]
mod support;

use support::kills::{lose_nothing, write_until_killed};

/// The process that is killed.
#[test]
fn child_writes_until_it_is_killed() {
    write_until_killed(support::OPEN);
}

#[test]
fn nothing_acknowledged_is_lost_over_many_kills() {
    let folder = tempfile::tempdir().unwrap();
    lose_nothing(60, folder.path(), support::OPEN, |_| ());
}
