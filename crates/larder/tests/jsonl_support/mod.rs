//! Shorthands of the tests that look at the JSONL folder from outside.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

#[path = "../disk_support/mod.rs"]
mod disk;

pub(crate) use disk::*;
use larder::backend::{Durability, JsonlBackend, JsonlOptions};
use std::path::Path;
use std::sync::Arc;

pub(crate) async fn open(path: &Path) -> larder::Result<JsonlBackend> {
    JsonlBackend::open(JsonlOptions::new(path)).await
}

pub(crate) async fn open_with(path: &Path, durability: Durability) -> larder::Result<JsonlBackend> {
    JsonlBackend::open(JsonlOptions { durability, ..JsonlOptions::new(path) }).await
}

pub(crate) const OPEN: Open =
    |path, durability| Box::pin(async move { Arc::new(open_with(&path, durability).await.unwrap()) as _ });
