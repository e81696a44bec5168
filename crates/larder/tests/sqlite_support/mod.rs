//! Shorthands of the tests that look at the SQLite file from outside.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

#[path = "../disk_support/mod.rs"]
mod disk;

pub(crate) use disk::*;
use larder::backend::{Durability, SqliteBackend, SqliteOptions};
use std::path::Path;
use std::sync::Arc;

pub(crate) async fn open(path: &Path) -> larder::Result<SqliteBackend> {
    SqliteBackend::open(SqliteOptions::new(path)).await
}

pub(crate) async fn open_with(path: &Path, durability: Durability) -> larder::Result<SqliteBackend> {
    SqliteBackend::open(SqliteOptions { durability, ..SqliteOptions::new(path) }).await
}

pub(crate) const OPEN: Open =
    |path, durability| Box::pin(async move { Arc::new(open_with(&path, durability).await.unwrap()) as _ });
