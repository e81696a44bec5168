//! Every system call of every operation fails once, and from there on, with each error a disk has.
//!
//! The failure that this prevents: a full or failing disk is reported as success, or leaves a truncated value,
//! an older one than was acknowledged, or one that was removed.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "controls.rs"]
mod controls;

use super::{FilesBackend, FilesOptions};
use crate::backend::{Backend, Durability, Mark, Put, PutOutcome, Removed, Ticket};
use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, Meta, Tags};
use crate::error::ErrorKind;
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use bytes::Bytes;
use rustix::io::Errno;
use std::path::Path;

/// Longer than what a short write takes.
const BODY_BYTES: usize = 5000;
/// A short write; above the size of a header or a record of the fences, which a page takes whole or not at all.
const SHORT_BYTES: usize = 300;

fn namespace() -> Namespace {
    Namespace::new("n").unwrap()
}

fn key(name: &str) -> EntryKey {
    EntryKey::new(&namespace(), name).unwrap()
}

fn body(byte: u8) -> Bytes {
    vec![byte; BODY_BYTES].into()
}

fn put(name: &str, byte: u8, kind: EntryKind, ticket: Ticket, tick: u64) -> Put {
    let meta = Meta {
        kind,
        stamp: Stamp::new(tick, 0, 1),
        created_ms: 0,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::new(["red"]).unwrap(),
    };
    Put { key: key(name), meta, sealed: body(byte), ticket }
}

async fn set(backend: &FilesBackend, name: &str, byte: u8, tick: u64) -> crate::Result<PutOutcome> {
    let ticket = backend.ticket(&key(name)).await?;
    backend.put(put(name, byte, EntryKind::Set, ticket, tick)).await
}

/// In memory where that is to be had: syncs are many.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn open(path: &Path) -> FilesBackend {
    let options = FilesOptions {
        durability: Durability::Power,
        readers: 1,
        busy_timeout: std::time::Duration::from_millis(200),
        ..FilesOptions::new(path)
    };
    FilesBackend::open_blocking(options).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operation {
    Get,
    GetMany,
    Set,
    Load,
    LateSet,
    Remove,
    Batch,
    Tag,
    Pattern,
    Discard,
    Quarantine,
    Sweep,
}

use Operation as O;

/// Runs it; the values of "a" that it may leave, by whether it was acknowledged.
async fn run(backend: &FilesBackend, operation: Operation, early: Ticket) -> (String, Vec<Option<u8>>) {
    let (old, new, none) = (Some(1), Some(2), None);
    let either = |error: crate::Error, other| {
        // "Nothing was written" is a promise, too.
        let is_unknown = matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable);
        (format!("{error}"), if is_unknown { vec![old, other] } else { vec![old] })
    };
    let removal = |error: crate::Error| (format!("{error}"), vec![old, none]);
    let ticket = || async { backend.store.ticket() };
    match operation {
        O::Get | O::GetMany => {
            let read = match operation {
                O::Get => backend.get(&key("a")).await,
                _ => backend.get_many(&[key("a"), key("b")]).await.swap_remove(0),
            };
            if let Ok(read) = &read {
                assert_eq!(read.found, Ok(body(1)), "a read that was answered is right");
            }
            (format!("{:?}", read.is_ok()), vec![old])
        }
        O::Set => match set(backend, "a", 2, 9).await {
            Ok(outcome) => {
                assert_eq!(outcome, PutOutcome::Stored);
                ("stored".to_owned(), vec![new])
            }
            Err(error) => either(error, new),
        },
        O::Load => {
            let Ok(ticket) = ticket().await else { return ("no ticket".to_owned(), vec![old]) };
            match backend.put(put("a", 2, EntryKind::Load, ticket, 9)).await {
                Ok(outcome) => {
                    assert_eq!(outcome, PutOutcome::Stored);
                    ("stored".to_owned(), vec![new])
                }
                Err(error) => either(error, new),
            }
        }
        // Its ticket is from before the set of "a", which is older by its stamp but a load by now.
        O::LateSet => {
            let stale = Ticket { inc: early.inc.wrapping_add(1), ..early };
            match backend.put(put("a", 2, EntryKind::Set, stale, 9)).await {
                Ok(outcome) => {
                    assert_eq!(outcome, PutOutcome::Fenced);
                    ("fenced".to_owned(), vec![none])
                }
                Err(error) => either(error, none),
            }
        }
        O::Remove => match backend.remove(&key("a")).await {
            Ok(removed) => {
                assert_eq!(removed, Removed::Existed);
                ("removed".to_owned(), vec![none])
            }
            Err(error) => removal(error),
        },
        O::Batch => {
            let Ok(ticket) = ticket().await else { return ("no ticket".to_owned(), vec![old]) };
            let puts = vec![
                put("c", 3, EntryKind::Load, ticket, 9),
                put("a", 2, EntryKind::Load, ticket, 9),
                put("d", 4, EntryKind::Load, ticket, 9),
            ];
            match backend.put_many(puts).await.swap_remove(1) {
                Ok(_) => ("stored".to_owned(), vec![new]),
                Err(error) => either(error, new),
            }
        }
        O::Tag => match backend.mark(&namespace(), &Mark::Tag("red".into())).await {
            Ok(()) => ("marked".to_owned(), vec![none]),
            Err(error) => removal(error),
        },
        O::Pattern => match backend.remove_matching(&namespace(), &Pattern::new("a").unwrap()).await {
            Ok(count) => {
                assert_eq!(count, 1);
                ("removed".to_owned(), vec![none])
            }
            Err(error) => removal(error),
        },
        O::Discard => match backend.discard(&key("a"), &body(1)).await {
            Ok(()) => ("discarded".to_owned(), vec![none]),
            Err(error) => removal(error),
        },
        O::Quarantine => match backend.quarantine(&key("a"), &body(1), "tag").await {
            Ok(()) => ("set aside".to_owned(), vec![none]),
            Err(error) => removal(error),
        },
        O::Sweep => {
            let swept = backend.sweep(100).await;
            (format!("{:?}", swept.is_ok()), vec![old])
        }
    }
}

async fn value(backend: &FilesBackend, name: &str) -> Option<u8> {
    let found = backend.get(&key(name)).await.unwrap().found.ok()?;
    assert!(found.len() == BODY_BYTES && found.iter().all(|byte| *byte == found[0]), "a damaged hit");
    Some(found[0])
}

/// One run with the fault at one step; whether the operation got that far.
async fn one(operation: Operation, step: i64, count: i64, errno: Errno, write_max: usize) -> bool {
    let folder = folder();
    let path = folder.path().join("cache");
    let backend = open(&path);
    let early = backend.ticket(&key("a")).await.unwrap();
    set(&backend, "b", 7, 1).await.unwrap();
    set(&backend, "a", 1, 1).await.unwrap();
    let faults = &backend.store.fence.folder.faults;
    faults.arm(step, count, errno.raw_os_error(), write_max);
    let (said, allowed) = run(&backend, operation, early).await;
    let met = faults.disarm();
    let what = format!("{operation:?}, step {step}, {count} times {errno:?}, write_max {write_max}: {said}");
    let left = value(&backend, "a").await;
    assert!(allowed.contains(&left), "{what}: left {left:?}, expected one of {allowed:?}");
    let bystander = if operation == O::Tag { value(&backend, "b").await } else { Some(7) };
    assert_eq!(value(&backend, "b").await, bystander, "{what}: another entry");
    drop(backend);
    let backend = open(&path);
    assert_eq!(value(&backend, "a").await, left, "{what}: after a restart");
    assert_eq!(value(&backend, "b").await, bystander, "{what}: another entry, after a restart");
    assert_eq!(set(&backend, "a", 5, 99).await.unwrap(), PutOutcome::Stored, "{what}: a later set");
    assert_eq!(value(&backend, "a").await, Some(5), "{what}: a later set");
    assert!(backend.notes().is_empty(), "{what}: {:?}", backend.notes());
    backend.close().await.unwrap();
    met
}

async fn at_every_step(operation: Operation) -> i64 {
    let mut steps = 0;
    for (errno, count, write_max) in [
        (Errno::NOSPC, 1, 0),
        (Errno::NOSPC, i64::MAX, SHORT_BYTES),
        (Errno::IO, 1, SHORT_BYTES),
        (Errno::IO, i64::MAX, 0),
        (Errno::ACCESS, 1, 0),
    ] {
        let mut step = 0;
        while one(operation, step, count, errno, write_max).await {
            step += 1;
            assert!(step < 2000, "{operation:?} doesn't end");
        }
        steps += step;
    }
    steps
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_at_any_step_is_never_a_success() {
    for operation in [
        O::Get,
        O::GetMany,
        O::Set,
        O::Load,
        O::LateSet,
        O::Remove,
        O::Batch,
        O::Tag,
        O::Discard,
        O::Quarantine,
    ] {
        let steps = at_every_step(operation).await;
        assert!(steps > 25, "{operation:?} met only {steps} faults: too few to mean anything");
    }
}

/// These visit 256 folders: some of their steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_during_a_long_operation_is_never_a_success() {
    for operation in [O::Pattern, O::Sweep] {
        for step in (0..40).chain((40..600).step_by(23)) {
            one(operation, step, 1, Errno::IO, 0).await;
            one(operation, step, i64::MAX, Errno::IO, 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_timeout_may_be_never() {
    let folder = folder();
    let options = FilesOptions {
        busy_timeout: std::time::Duration::MAX,
        ..FilesOptions::new(folder.path().join("cache"))
    };
    let backend = FilesBackend::open_blocking(options).unwrap();
    assert_eq!(set(&backend, "a", 1, 1).await.unwrap(), PutOutcome::Stored);
}

/// A tier whose removal fails is not used before it was delivered: it has to be possible some time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_by_tag_succeeds_again_after_the_log_of_markers_was_deleted() {
    let folder = folder();
    let path = folder.path().join("cache");
    let backend = FilesBackend::open_blocking(FilesOptions::new(&path)).unwrap();
    set(&backend, "a", 1, 1).await.unwrap();
    let red = Mark::Tag("red".into());
    backend.mark(&namespace(), &red).await.unwrap();
    set(&backend, "a", 1, 2).await.unwrap();
    for file in std::fs::read_dir(&path).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_string_lossy().starts_with("marks-") {
            std::fs::remove_file(file.path()).unwrap();
        }
    }
    let first = backend.mark(&namespace(), &red).await;
    assert_eq!(first.unwrap_err().kind(), ErrorKind::Unavailable);
    backend.mark(&namespace(), &red).await.unwrap();
    assert!(backend.get(&key("a")).await.unwrap().found.is_err());
    assert_eq!(set(&backend, "a", 1, 3).await.unwrap(), PutOutcome::Stored);
}
