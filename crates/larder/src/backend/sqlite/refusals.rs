//! A thread that hangs, panics or can't keep up costs its callers an error in time, and nobody else
//! anything.
//!
//! The failure that this prevents: a cache call that never returns, because the one thread that could
//! answer it is stuck in a disk or gone; or that stops the caller's runtime with it.

use super::reader::{Request, ask};
use super::writer::{Op, Run};
use super::{SqliteBackend, SqliteOptions};
use crate::backend::{Backend, Miss, Put, PutOutcome};
use crate::clock::NEVER_MS;
use crate::entry::{EntryKind, Meta, Tags};
use crate::error::ErrorKind;
use crate::key::{EntryKey, Namespace};
use crate::stamp::Stamp;
use bytes::Bytes;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

fn key(name: &str) -> EntryKey {
    EntryKey::new(&Namespace::new("n").unwrap(), name).unwrap()
}

async fn put_of(backend: &SqliteBackend, name: &str, body: &'static str) -> Put {
    let meta = Meta {
        kind: EntryKind::Load,
        stamp: Stamp::MIN,
        created_ms: 0,
        fresh_until_ms: NEVER_MS,
        revalidate_until_ms: NEVER_MS,
        gone_at_ms: NEVER_MS,
        load_ms: 0,
        is_negative: false,
        tags: Tags::NONE,
    };
    let ticket = backend.ticket(&key(name)).await.unwrap();
    Put { key: key(name), meta, sealed: Bytes::from_static(body.as_bytes()), ticket }
}

async fn open(change: impl FnOnce(&mut SqliteOptions)) -> (TempDir, SqliteBackend) {
    let folder = tempfile::tempdir().unwrap();
    let mut options = SqliteOptions::new(folder.path().join("cache.db"));
    change(&mut options);
    let backend = SqliteBackend::open(options).await.unwrap();
    (folder, backend)
}

/// Something that says when it began and doesn't end before it is released.
fn stuck() -> (Run, Receiver<()>, Sender<()>) {
    let (began, has_begun) = channel();
    let (release, released) = channel();
    let ends = Mutex::new((began, released));
    let run = move || {
        let ends = ends.lock().unwrap();
        ends.0.send(()).unwrap();
        // Dropped is released, too.
        let _ = ends.1.recv();
    };
    (Arc::new(run), has_begun, release)
}

fn panics() -> Run {
    Arc::new(|| panic!("as the test wants it"))
}

#[tokio::test]
async fn a_full_write_queue_is_overloaded_in_time() {
    let (_folder, backend) = open(|options| options.busy_timeout = Duration::from_millis(50)).await;
    backend.put(put_of(&backend, "k", "v").await).await.unwrap();
    let (run, has_begun, release) = stuck();
    let running = backend.queue(Op::Run(run)).await.unwrap();
    has_begun.recv().unwrap();
    let big = Bytes::from(vec![0; 16 << 20]);
    let mut queued = Vec::new();
    for _ in 0..3 {
        queued.push(backend.queue(Op::Discard(key("k"), big.clone())).await.unwrap());
    }
    let error = backend.discard(&key("k"), &big).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error}");
    assert!(error.is_transient(), "{error}");
    assert_eq!(backend.get(&key("k")).await.unwrap().found.unwrap(), "v", "reads go on");
    release.send(()).unwrap();
    running.await.unwrap().unwrap();
    for answered in queued {
        answered.await.unwrap().unwrap();
    }
    backend.discard(&key("k"), &big).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_panics_answers_its_callers_and_reads_again() {
    let (_folder, backend) = open(|options| (options.readers, options.inline_reads) = (1, false)).await;
    backend.put(put_of(&backend, "k", "v").await).await.unwrap();
    for _ in 0..3 {
        let error = ask(&backend.reads, "get", |answer| Request::Run(panics(), answer)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert_eq!(backend.get(&key("k")).await.unwrap().found.unwrap(), "v");
    }
    assert!(
        backend.notes().iter().any(|note| note.contains("reader thread panicked")),
        "{:?}",
        backend.notes()
    );
    backend.close().await.unwrap();
}

#[tokio::test]
async fn a_writer_that_panics_answers_its_callers_and_loses_nothing_acknowledged() {
    let (_folder, backend) = open(|_| {}).await;
    backend.put(put_of(&backend, "before", "v").await).await.unwrap();
    let during = put_of(&backend, "during", "v").await;
    let (run, has_begun, release) = stuck();
    let running = backend.queue(Op::Run(run)).await.unwrap();
    has_begun.recv().unwrap();
    // One group: a put that is done when its neighbour panics.
    let put = backend.queue(Op::Put(during)).await.unwrap();
    let panicking = backend.queue(Op::Run(panics())).await.unwrap();
    release.send(()).unwrap();
    running.await.unwrap().unwrap();
    assert!(put.await.is_err() && panicking.await.is_err(), "both are answered, neither with success");
    assert_eq!(backend.get(&key("during")).await.unwrap().found, Err(Miss::Absent), "it was rolled back");
    assert_eq!(backend.get(&key("before")).await.unwrap().found.unwrap(), "v");
    assert_eq!(backend.put(put_of(&backend, "after", "v").await).await.unwrap(), PutOutcome::Stored);
    assert_eq!(backend.get(&key("after")).await.unwrap().found.unwrap(), "v");
    let error = backend.write(Op::Run(panics())).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        backend.notes().iter().any(|note| note.contains("writer thread panicked")),
        "{:?}",
        backend.notes()
    );
    backend.close().await.unwrap();
}

#[tokio::test]
async fn a_reader_that_hangs_holds_no_caller_past_its_deadline() {
    for inline_reads in [false, true] {
        let (_folder, backend) =
            open(|options| (options.readers, options.inline_reads) = (1, inline_reads)).await;
        backend.put(put_of(&backend, "k", "v").await).await.unwrap();
        let (run, has_begun, release) = stuck();
        let asking = ask(&backend.reads, "get", |answer| Request::Run(run, answer));
        let stuck = async {
            // This test's thread is the runtime: it stands still if a read does.
            while has_begun.try_recv().is_err() {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
            let served = backend.inline.counts().0;
            let late = tokio::time::timeout(Duration::from_millis(50), backend.get(&key("k"))).await;
            assert!(late.is_err(), "a caller's deadline ends its wait");
            assert_eq!(
                backend.inline.counts().0,
                served,
                "nothing is read inline beside a thread that hangs"
            );
            release.send(()).unwrap();
        };
        let (asked, ()) = tokio::join!(asking, stuck);
        asked.unwrap();
        assert_eq!(backend.get(&key("k")).await.unwrap().found.unwrap(), "v");
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod inline {
    use super::super::nowait::pretend_uncached;
    use super::*;

    /// `None` where the system can't tell what is in memory.
    async fn inline() -> Option<(TempDir, SqliteBackend)> {
        let (folder, backend) = open(|_| {}).await;
        backend.put(put_of(&backend, "k", "v").await).await.unwrap();
        // The first read after a write has its pages from the system.
        for _ in 0..3 {
            backend.get(&key("k")).await.unwrap();
        }
        if backend.inline.counts().0 == 0 {
            eprintln!("skipped: needs Linux 6.5 and a temporary folder on ext4, XFS or Btrfs");
            return None;
        }
        Some((folder, backend))
    }

    #[tokio::test]
    async fn a_read_that_would_wait_is_handed_over_and_answered_the_same() {
        let Some((_folder, backend)) = inline().await else { return };
        for body in ["a", "b", "c"] {
            backend.remove(&key("k")).await.unwrap();
            assert_eq!(backend.put(put_of(&backend, "k", body).await).await.unwrap(), PutOutcome::Stored);
            let (served, handed_over) = backend.inline.counts();
            // A commit by another connection empties the page cache of this one.
            pretend_uncached(true);
            let read = backend.get(&key("k")).await;
            pretend_uncached(false);
            assert_eq!(read.unwrap().found.unwrap(), body);
            assert_eq!(backend.inline.counts(), (served, handed_over + 1), "it would have waited");
            assert_eq!(backend.get(&key("k")).await.unwrap().found.unwrap(), body);
            let many = backend.get_many(&[key("k"), key("absent")]).await;
            assert_eq!(many[0].as_ref().unwrap().found.as_ref().unwrap(), body);
            assert_eq!(many[1].as_ref().unwrap().found, Err(Miss::Absent));
            assert_eq!(backend.inline.counts(), (served + 2, handed_over + 1), "all is in memory again");
        }
    }

    #[tokio::test]
    async fn large_values_and_batches_are_handed_over() {
        let Some((_folder, backend)) = inline().await else { return };
        let mut put = put_of(&backend, "large", "").await;
        put.sealed = Bytes::from(vec![7; 1 << 20]);
        backend.put(put).await.unwrap();
        let (served, handed_over) = backend.inline.counts();
        assert_eq!(backend.get(&key("large")).await.unwrap().found.unwrap().len(), 1 << 20);
        assert_eq!(backend.inline.counts(), (served, handed_over + 1));
        let keys: Vec<EntryKey> = (0..17).map(|i| key(&format!("k{i}"))).collect();
        assert_eq!(backend.get_many(&keys).await.len(), 17);
        assert_eq!(backend.inline.counts(), (served, handed_over + 1), "it is not even tried");
    }

    #[tokio::test]
    async fn a_connection_in_use_and_the_end_are_handed_over() {
        let Some((_folder, backend)) = inline().await else { return };
        let (served, handed_over) = backend.inline.counts();
        let inline = backend.inline.clone();
        let (run, has_begun, release) = stuck();
        // As if another thread were stuck in the kernel with it.
        let holder = std::thread::spawn(move || inline.hold(&*run));
        has_begun.recv().unwrap();
        assert_eq!(backend.get(&key("k")).await.unwrap().found.unwrap(), "v");
        assert_eq!(backend.inline.counts(), (served, handed_over + 1));
        release.send(()).unwrap();
        holder.join().unwrap();
        backend.close().await.unwrap();
        assert_eq!(backend.get(&key("k")).await.unwrap_err().kind(), ErrorKind::Closed);
    }
}

/// What a killed process left unsynced must not cost, after a power loss, what was acknowledged as safe from one
/// since.
#[tokio::test]
async fn a_durable_write_after_an_unsynced_one_makes_the_file_trusted() {
    let (folder, killed) = open(|options| {
        options.durability = crate::backend::Durability::Process;
        options.busy_timeout = Duration::MAX;
    })
    .await;
    killed.put(put_of(&killed, "a", "v").await).await.unwrap();
    let path = folder.path().join("cache.db");
    let is_unsynced = || {
        let db = rusqlite::Connection::open(&path).unwrap();
        db.query_row("SELECT unsynced FROM store", [], |row| row.get::<_, bool>(0)).unwrap()
    };
    assert!(is_unsynced());
    // What a closing would do is not done by who was killed.
    std::mem::forget(killed);
    let durable = SqliteBackend::open(SqliteOptions::new(&path)).await.unwrap();
    durable.put(put_of(&durable, "b", "w").await).await.unwrap();
    assert!(!is_unsynced(), "a power loss would take what was acknowledged as safe from it");
}
