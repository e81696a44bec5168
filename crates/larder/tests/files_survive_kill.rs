//! What was acknowledged is there after kill -9, and what was removed stays removed.
//!
//! The failure that this prevents: a writer process dies between any two of the steps of a write or a removal,
//! and the next process finds a torn value, an older one, or one that was removed.
//! A long run: `LARDER_TEST_KILLS=300`.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "files", target_os = "linux"))]

#[path = "files_support/mod.rs"]
mod support;

use support::kills::{lose_nothing, write_until_killed};

/// The process that is killed.
#[test]
fn child_writes_until_it_is_killed() {
    write_until_killed(support::OPEN);
}

#[test]
fn nothing_acknowledged_is_lost_over_many_kills() {
    let folder = support::folder();
    lose_nothing(60, folder.path(), support::OPEN, |path| {
        // What the killed process was writing is gone, but for the session that looked last.
        let orphans = std::fs::read_dir(path.join("tmp")).unwrap();
        assert!(orphans.count() <= 1, "a folder of unfinished files was left");
    });
}
