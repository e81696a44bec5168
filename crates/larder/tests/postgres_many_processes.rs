//! Several processes on one PostgreSQL schema, which none of them finds, are as safe as several threads.
//!
//! The failure that this prevents: a process decides from something it remembers, a position or a namespace's number,
//! and lets a write in that another process's removal should have refused.
//! A long run: `LARDER_TEST_PROCESS_SECONDS=60`.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "postgres", feature = "sqlite", target_os = "linux"))]

#[path = "disk_support/mod.rs"]
mod disk;
mod postgres_support;

use disk::Open;
use disk::processes::{outlive_no_removal, read_and_write};
use larder::backend::{PostgresBackend, PostgresOptions};
use std::path::Path;
use std::sync::Arc;

/// The "path" is where the server is.
const OPEN: Open = |path, _| {
    Box::pin(async move {
        let options = PostgresOptions::new(path.to_str().unwrap());
        Arc::new(PostgresBackend::new(options).unwrap()) as _
    })
};

/// One of the processes.
#[test]
fn child_reads_and_writes() {
    read_and_write(OPEN);
}

#[test]
fn no_value_outlives_a_removal_by_another_process() {
    let server = postgres_support::Server::start(&[]);
    outlive_no_removal(Path::new(&server.url()));
}
