//! The backend of files keeps every promise of the suite, whichever durability it has.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "conformance", feature = "files", unix))]

#[path = "files_support/mod.rs"]
mod support;

use async_trait::async_trait;
use larder::backend::conformance::{Subject, check_all};
use larder::backend::{Backend, Durability, FilesBackend, FilesOptions};
use larder::clock::Clock;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

struct Files {
    folder: TempDir,
    folders: AtomicUsize,
    durability: Durability,
}

impl Files {
    fn new(durability: Durability) -> Self {
        Files { folder: support::folder(), folders: AtomicUsize::new(0), durability }
    }

    async fn open(&self, path: PathBuf, clock: Clock) -> Arc<dyn Backend> {
        let options =
            FilesOptions { clock, durability: self.durability, bytes_max: None, ..FilesOptions::new(path) };
        let backend = FilesBackend::open(options).await.unwrap();
        assert!(backend.notes().is_empty(), "{:?}", backend.notes());
        Arc::new(backend)
    }
}

#[async_trait]
impl Subject for Files {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        let n = self.folders.fetch_add(1, Ordering::Relaxed);
        self.open(self.folder.path().join(format!("{n}")), clock).await
    }

    async fn reopen(&self, _closed: Arc<dyn Backend>, clock: Clock) -> Option<Arc<dyn Backend>> {
        // Cases run one after the other: the closed one is the newest.
        let n = self.folders.load(Ordering::Relaxed) - 1;
        Some(self.open(self.folder.path().join(format!("{n}")), clock).await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_pass_with_every_write_synced() {
    check_all(&Files::new(Durability::Power)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_pass_with_writes_unsynced() {
    check_all(&Files::new(Durability::Process)).await;
}
