//! Shorthands of the tests that look at a folder of files from outside.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

#[path = "../disk_support/mod.rs"]
mod disk;

pub(crate) use disk::*;
use larder::backend::{Durability, FilesBackend, FilesOptions};
use std::path::Path;
use std::sync::Arc;

/// In memory where that is to be had: what a sync is good for, no test but a pulled plug can see, and without
/// them far more happens.
pub(crate) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

pub(crate) async fn open(path: &Path) -> larder::Result<FilesBackend> {
    FilesBackend::open(FilesOptions::new(path)).await
}

pub(crate) async fn open_with(path: &Path, durability: Durability) -> larder::Result<FilesBackend> {
    FilesBackend::open(FilesOptions { durability, ..FilesOptions::new(path) }).await
}

pub(crate) const OPEN: Open =
    |path, durability| Box::pin(async move { Arc::new(open_with(&path, durability).await.unwrap()) as _ });
