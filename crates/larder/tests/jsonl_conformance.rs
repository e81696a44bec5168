//! The JSONL backend keeps every promise of the suite, whichever durability it has.

#![allow(clippy::unwrap_used, reason = "a test may panic, its helpers too")]
#![cfg(all(feature = "conformance", feature = "jsonl", unix))]

use async_trait::async_trait;
use larder::backend::conformance::{Subject, check_all};
use larder::backend::{Backend, Durability, JsonlBackend, JsonlOptions};
use larder::clock::Clock;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

struct Jsonl {
    folder: TempDir,
    files: AtomicUsize,
    durability: Durability,
}

impl Jsonl {
    fn new(durability: Durability) -> Self {
        Jsonl { folder: tempfile::tempdir().unwrap(), files: AtomicUsize::new(0), durability }
    }

    async fn open(&self, path: PathBuf, clock: Clock) -> Arc<dyn Backend> {
        let options = JsonlOptions { clock, durability: self.durability, ..JsonlOptions::new(path) };
        let backend = JsonlBackend::open(options).await.unwrap();
        assert!(backend.notes().is_empty(), "{:?}", backend.notes());
        Arc::new(backend)
    }
}

#[async_trait]
impl Subject for Jsonl {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        let n = self.files.fetch_add(1, Ordering::Relaxed);
        self.open(self.folder.path().join(format!("{n}")), clock).await
    }

    async fn reopen(&self, _closed: Arc<dyn Backend>, clock: Clock) -> Option<Arc<dyn Backend>> {
        // Cases run one after the other: the closed one is the newest.
        let n = self.files.load(Ordering::Relaxed) - 1;
        Some(self.open(self.folder.path().join(format!("{n}")), clock).await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn jsonl_passes_with_every_group_synced() {
    check_all(&Jsonl::new(Durability::Power)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn jsonl_passes_with_groups_unsynced() {
    check_all(&Jsonl::new(Durability::Process)).await;
}
