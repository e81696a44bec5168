//! The file stays within its limits, forgets markers safely, and says when it starts anew.
//!
//! The failure that this prevents: a cache that grows until the disk is full, or one that forgets a
//! removal to stay small.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(feature = "sqlite")]

#[path = "sqlite_support/mod.rs"]
mod support;

use larder::ErrorKind;
use larder::backend::{Backend, Durability, Mark, Miss, PutOutcome, SqliteBackend, SqliteOptions};
use larder::entry::{EntryKind, Tags};
use larder::stamp::Stamp;
use std::path::Path;
use support::{key, namespace, open, open_with, put, store};

fn query(path: &Path, sql: &str) -> i64 {
    rusqlite::Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
}

async fn store_tagged(backend: &SqliteBackend, name: &str, tag: &str) {
    let ticket = backend.ticket(&key(name)).await.unwrap();
    let mut write = put(EntryKind::Load, name, "v", ticket, Stamp::MIN);
    write.meta.tags = Tags::new([tag]).unwrap();
    assert_eq!(backend.put(write).await.unwrap(), PutOutcome::Stored);
}

#[tokio::test]
async fn entries_stay_below_their_limit_and_what_is_read_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let options = SqliteOptions {
        entries_max: Some(200),
        durability: Durability::Process,
        ..SqliteOptions::new(&path)
    };
    let backend = SqliteBackend::open(options).await.unwrap();
    store(&backend, "hot", "v").await.unwrap();
    for i in 0..1000 {
        store(&backend, &format!("k{i}"), "v").await.unwrap();
        assert!(
            backend.get(&key("hot")).await.unwrap().found.is_ok(),
            "what is read all the time is not evicted"
        );
        assert!(backend.usage().await.unwrap().entries <= 200);
    }
    let usage = backend.usage().await.unwrap();
    assert!(usage.entries >= 180, "{usage:?}: eviction frees a twentieth, not more");
    assert!(backend.get(&key("k999")).await.unwrap().found.is_ok(), "the newest stays");
    backend.close().await.unwrap();
    assert_eq!(query(&path, "SELECT count(*) FROM entry") as u64, usage.entries);
}

#[tokio::test]
async fn bytes_stay_below_their_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let options = SqliteOptions { bytes_max: Some(100_000), ..SqliteOptions::new(&path) };
    let backend = SqliteBackend::open(options).await.unwrap();
    let mut writes = Vec::new();
    for i in 0..400usize {
        let ticket = backend.ticket(&key("k")).await.unwrap();
        let body = vec![1; if i % 50 == 0 { 40_000 } else { i % 3000 }];
        writes.push(put(EntryKind::Load, &format!("k{}", i % 250), body, ticket, Stamp::MIN));
    }
    for outcome in backend.put_many(writes).await {
        assert_eq!(outcome.unwrap(), PutOutcome::Stored);
    }
    let usage = backend.usage().await.unwrap();
    assert!(usage.bytes <= 100_000 && usage.bytes > 50_000, "{usage:?}");
    let error = store(&backend, "huge", vec![0; 100_000]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    backend.close().await.unwrap();
    let counted = "SELECT sum(96 + length(key) + ifnull(length(tags), 0) + length(sealed)) FROM entry";
    assert_eq!(query(&path, counted) as u64, usage.bytes, "the totals are exact");
}

#[tokio::test]
async fn pruned_markers_invalidate_what_they_covered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let backend =
        SqliteBackend::open(SqliteOptions { markers_max: 10, ..SqliteOptions::new(&path) }).await.unwrap();
    store_tagged(&backend, "old", "t0").await;
    store_tagged(&backend, "bystander", "other").await;
    let ticket = backend.ticket(&key("late")).await.unwrap();
    for i in 0..8 {
        backend.mark(&namespace(), &Mark::Tag(format!("t{i}").into())).await.unwrap();
    }
    store_tagged(&backend, "new", "t0").await;
    assert!(backend.get(&key("bystander")).await.unwrap().found.is_ok());
    for i in 8..30 {
        backend.mark(&namespace(), &Mark::Tag(format!("t{i}").into())).await.unwrap();
        assert!(query(&path, "SELECT count(*) FROM mark") <= 10);
    }
    for name in ["old", "bystander", "new"] {
        assert_eq!(backend.get(&key(name)).await.unwrap().found, Err(Miss::Cleared), "{name}");
    }
    let mut late = put(EntryKind::Load, "late", "v", ticket, Stamp::MIN);
    late.meta.tags = Tags::new(["t0"]).unwrap();
    assert_eq!(backend.put(late).await.unwrap(), PutOutcome::Fenced);
}

#[tokio::test]
async fn a_sweep_forgets_markers_that_nothing_is_older_than() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let backend = open(&path).await.unwrap();
    store_tagged(&backend, "first", "blue").await;
    let ticket = backend.ticket(&key("late")).await.unwrap();
    backend.mark(&namespace(), &Mark::Tag("red".into())).await.unwrap();
    backend.sweep(100).await.unwrap();
    assert_eq!(query(&path, "SELECT count(*) FROM mark"), 1, "an entry is older than the marker");
    store_tagged(&backend, "second", "red").await;
    backend.mark(&namespace(), &Mark::Tag("blue".into())).await.unwrap();
    assert_eq!(backend.sweep(100).await.unwrap(), 1);
    assert_eq!(
        query(&path, "SELECT count(*) FROM mark"),
        1,
        "what is left is older than the second marker only"
    );
    assert!(backend.get(&key("second")).await.unwrap().found.is_ok());
    let mut late = put(EntryKind::Load, "late", "v", ticket, Stamp::MIN);
    late.meta.tags = Tags::new(["red"]).unwrap();
    assert_eq!(backend.put(late).await.unwrap(), PutOutcome::Fenced, "the floor stands in for the marker");
}

#[tokio::test]
async fn dropped_without_close_it_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    for round in 0..10 {
        let backend = open(&path).await.unwrap();
        for i in 0..20 {
            store(&backend, &format!("{round} {i}"), "v").await.unwrap();
        }
        drop(backend);
    }
    let backend = open(&path).await.unwrap();
    assert!(backend.incidents().is_empty());
    assert_eq!(backend.usage().await.unwrap().entries, 200);
}

#[tokio::test]
async fn unsynced_commits_of_an_earlier_boot_are_not_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    for (durability, is_trusted) in [(Durability::Power, true), (Durability::Process, false)] {
        let backend = open_with(&path, durability).await.unwrap();
        store(&backend, "k", "v").await.unwrap();
        let ticket = backend.ticket(&key("k")).await.unwrap();
        backend.close().await.unwrap();
        // What a power loss leaves: a file that was not closed, last written during another boot.
        let unsynced = if is_trusted { 0 } else { 1 };
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute("UPDATE store SET boot = 'another', clean = 0, unsynced = ?1", [unsynced]).unwrap();
        drop(db);
        let backend = open(&path).await.unwrap();
        let found = backend.get(&key("k")).await.unwrap();
        assert_eq!(found.ticket.inc == ticket.inc, is_trusted);
        if is_trusted {
            assert!(found.found.is_ok());
        } else {
            assert_eq!(found.found, Err(Miss::Incarnation));
            assert_eq!(backend.incidents().len(), 1);
            assert_eq!(backend.sweep(10).await.unwrap(), 1);
        }
        backend.close().await.unwrap();
    }
}

#[tokio::test]
async fn the_file_shrinks_when_most_of_it_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.db");
    let backend = open_with(&path, Durability::Process).await.unwrap();
    for i in 0..400 {
        store(&backend, &format!("k{i}"), vec![7; 20_000]).await.unwrap();
    }
    for i in 0..300 {
        backend.remove(&key(&format!("k{i}"))).await.unwrap();
    }
    backend.sweep(10).await.unwrap();
    // Closing ends what is queued, and moves the log into the file.
    backend.close().await.unwrap();
    let (pages, free) = (query(&path, "PRAGMA page_count"), query(&path, "PRAGMA freelist_count"));
    assert!(pages < 1000 && free <= 256, "{free} of {pages} pages are free");
    let backend = open(&path).await.unwrap();
    for i in 300..400 {
        assert_eq!(backend.get(&key(&format!("k{i}"))).await.unwrap().found.unwrap().len(), 20_000);
    }
    assert!(backend.incidents().is_empty());
}
