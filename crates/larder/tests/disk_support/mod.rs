//! Shorthands of the tests that look at a backend on disk from outside, whichever it is.

#![allow(dead_code, reason = "each test file uses its part")]

#[cfg(target_os = "linux")]
pub(crate) mod kills;
#[cfg(target_os = "linux")]
pub(crate) mod processes;

use bytes::Bytes;
use larder::backend::{Backend, Durability, Put, PutOutcome, Ticket};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// Opens the backend at a path.
pub(crate) type Open = fn(PathBuf, Durability) -> Pin<Box<dyn Future<Output = Arc<dyn Backend>>>>;

pub(crate) fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

pub(crate) fn key(name: &str) -> EntryKey {
    EntryKey::new(&namespace(), name).unwrap()
}

pub(crate) fn put(kind: EntryKind, name: &str, body: impl Into<Bytes>, ticket: Ticket, stamp: Stamp) -> Put {
    let meta = Meta {
        kind,
        stamp,
        created_ms: 0,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    Put { key: key(name), meta, sealed: body.into(), ticket }
}

/// Puts with a fresh ticket, as a load: no other key's write refuses it.
pub(crate) async fn store(
    backend: &impl Backend,
    name: &str,
    body: impl Into<Bytes>,
) -> larder::Result<PutOutcome> {
    let ticket = backend.ticket(&key(name)).await?;
    backend.put(put(EntryKind::Load, name, body, ticket, Stamp::MIN)).await
}

/// Runs one test of this same binary in a process of its own, which finds `variable` set. Its report goes
/// to its standard error, which nothing else writes to.
pub(crate) fn child(test: &str, variable: &str, value: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(variable, value)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// One line of a child's report, in one write.
pub(crate) fn report(line: &str) {
    use std::io::Write;
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}
