//! larder's backends as stores: called as a cache calls its tiers, a ticket before each put.

use super::{Durability, Result, Store};
use bytes::Bytes;
use larder::backend::{self, Backend, Put, PutOutcome, SqliteBackend, SqliteOptions, Ticket};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::key::{EntryKey, Namespace};
use larder::stamp::Stamp;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};

/// A backend, and the runtime of the service that would use it.
pub struct Larder {
    runtime: Runtime,
    backend: Arc<dyn Backend>,
    namespace: Namespace,
}

impl Larder {
    pub fn open<B: Backend>(open: impl Future<Output = larder::Result<B>>) -> Result<Box<dyn Store>> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let backend = Arc::new(runtime.block_on(open)?);
        Ok(Box::new(Larder { runtime, backend, namespace: Namespace::new("bench")? }))
    }

    fn key(&self, key: &str) -> Result<EntryKey> {
        Ok(EntryKey::new(&self.namespace, &key)?)
    }

    fn keys(&self, keys: &[String]) -> Result<Vec<EntryKey>> {
        keys.iter().map(|key| self.key(key)).collect()
    }
}

pub fn sqlite(folder: &Path, durability: Durability) -> Result<Box<dyn Store>> {
    let durability = match durability {
        Durability::Synced => backend::Durability::Power,
        Durability::Unsynced => backend::Durability::Process,
    };
    let options = SqliteOptions { durability, ..SqliteOptions::new(folder.join("larder.db")) };
    Larder::open(SqliteBackend::open(options))
}

impl Store for Larder {
    fn get(&self, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.runtime.block_on(self.backend.get(&self.key(key)?))?.found;
        Ok(found.is_ok_and(|sealed| {
            see(&sealed);
            true
        }))
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.runtime.block_on(put(&*self.backend, self.key(key)?, Bytes::copy_from_slice(value)))
    }

    fn get_many(&self, keys: &[String], see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut found = 0;
        for read in self.runtime.block_on(self.backend.get_many(&self.keys(keys)?)) {
            if let Ok(sealed) = read?.found {
                see(&sealed);
                found += 1;
            }
        }
        Ok(found)
    }

    fn fill(&self, keys: &[String], value: &[u8]) -> Result<()> {
        let value = Bytes::copy_from_slice(value);
        for keys in self.keys(keys)?.chunks(1000) {
            let Some(first) = keys.first() else { continue };
            let ticket = self.runtime.block_on(self.backend.ticket(first))?;
            let puts = keys.iter().map(|key| entry(key.clone(), value.clone(), ticket)).collect();
            for outcome in self.runtime.block_on(self.backend.put_many(puts)) {
                outcome?;
            }
        }
        Ok(())
    }

    fn put_from(&self, callers: &[Vec<String>], value: &[u8]) -> Result<()> {
        let value = Bytes::copy_from_slice(value);
        let mut tasks = Vec::new();
        for keys in callers {
            let (keys, backend, value) = (self.keys(keys)?, self.backend.clone(), value.clone());
            tasks.push(self.runtime.spawn(async move {
                for key in keys {
                    put(&*backend, key, value.clone()).await?;
                }
                Ok(())
            }));
        }
        tasks.into_iter().try_for_each(|task| self.runtime.block_on(task)?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.runtime.block_on(self.backend.close())?)
    }
}

async fn put(backend: &dyn Backend, key: EntryKey, value: Bytes) -> Result<()> {
    let ticket = backend.ticket(&key).await?;
    match backend.put(entry(key, value, ticket)).await? {
        PutOutcome::Stored => Ok(()),
        refused => Err(format!("a put was refused: {refused:?}").into()),
    }
}

fn entry(key: EntryKey, sealed: Bytes, ticket: Ticket) -> Put {
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
    Put { key, meta, sealed, ticket }
}
