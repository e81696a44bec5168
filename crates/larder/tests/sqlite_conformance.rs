//! The SQLite backend keeps every promise of the suite, whichever durability it has.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "conformance", feature = "sqlite"))]

use async_trait::async_trait;
use larder::backend::conformance::{Subject, check_all};
use larder::backend::{Backend, Durability, SqliteBackend, SqliteOptions};
use larder::clock::Clock;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

struct Sqlite {
    folder: TempDir,
    files: AtomicUsize,
    durability: Durability,
    inline_reads: bool,
}

impl Sqlite {
    fn new(durability: Durability) -> Self {
        Sqlite {
            folder: tempfile::tempdir().unwrap(),
            files: AtomicUsize::new(0),
            durability,
            inline_reads: true,
        }
    }

    async fn open(&self, path: PathBuf, clock: Clock) -> Arc<dyn Backend> {
        let options = SqliteOptions {
            clock,
            durability: self.durability,
            inline_reads: self.inline_reads,
            ..SqliteOptions::new(path)
        };
        let backend = SqliteBackend::open(options).await.unwrap();
        assert!(backend.incidents().is_empty(), "{:?}", backend.incidents());
        Arc::new(backend)
    }
}

#[async_trait]
impl Subject for Sqlite {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        let n = self.files.fetch_add(1, Ordering::Relaxed);
        self.open(self.folder.path().join(format!("{n}.db")), clock).await
    }

    async fn reopen(&self, _closed: Arc<dyn Backend>, clock: Clock) -> Option<Arc<dyn Backend>> {
        // Cases run one after the other: the closed one is the newest.
        let n = self.files.load(Ordering::Relaxed) - 1;
        Some(self.open(self.folder.path().join(format!("{n}.db")), clock).await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_passes_with_every_commit_synced() {
    check_all(&Sqlite::new(Durability::Power)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_passes_with_commits_unsynced() {
    check_all(&Sqlite::new(Durability::Process)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_passes_with_every_read_on_a_thread() {
    check_all(&Sqlite { inline_reads: false, ..Sqlite::new(Durability::Process) }).await;
}
