//! The peers on the disk, as a user would call them.

use super::{Durability, Result, Store};
use foyer::{
    BlockEngineConfig, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder, HybridCachePolicy,
};
use redb::ReadableDatabase;
use rusqlite::{Connection, params};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::runtime::{Builder, Runtime};

/// Prepared statements on a rowid table, WAL, one commit per put.
pub struct Rusqlite(Mutex<Connection>);

impl Rusqlite {
    pub fn open(folder: &Path, durability: Durability) -> Result<Box<dyn Store>> {
        let db = Connection::open(folder.join("raw.db"))?;
        db.execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, key TEXT UNIQUE, value BLOB)",
        )?;
        let synchronous = if durability == Durability::Synced { "FULL" } else { "NORMAL" };
        db.pragma_update(None, "synchronous", synchronous)?;
        Ok(Box::new(Rusqlite(Mutex::new(db))))
    }

    fn db(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SELECT: &str = "SELECT value FROM entry WHERE key = ?1";
const UPSERT: &str =
    "INSERT INTO entry (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";

fn select(db: &Connection, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
    let mut select = db.prepare_cached(SELECT)?;
    let mut rows = select.query([key])?;
    let Some(row) = rows.next()? else { return Ok(false) };
    see(row.get_ref(0)?.as_blob()?);
    Ok(true)
}

impl Store for Rusqlite {
    fn get(&self, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        select(&self.db(), key, see)
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.db().prepare_cached(UPSERT)?.execute(params![key, value])?;
        Ok(())
    }

    fn get_many(&self, keys: &[String], see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let mut db = self.db();
        let reading = db.transaction()?;
        keys.iter().try_fold(0, |found, key| Ok(found + usize::from(select(&reading, key, see)?)))
    }

    fn fill(&self, keys: &[String], value: &[u8]) -> Result<()> {
        let mut db = self.db();
        let writing = db.transaction()?;
        for key in keys {
            writing.prepare_cached(UPSERT)?.execute(params![key, value])?;
        }
        Ok(writing.commit()?)
    }
}

/// One write transaction per put.
pub struct Redb {
    db: redb::Database,
    durability: redb::Durability,
}

const TABLE: redb::TableDefinition<'_, &str, &[u8]> = redb::TableDefinition::new("entry");

impl Redb {
    pub fn open(folder: &Path, durability: Durability) -> Result<Box<dyn Store>> {
        let durability = match durability {
            Durability::Synced => redb::Durability::Immediate,
            Durability::Unsynced => redb::Durability::None,
        };
        let db = redb::Database::create(folder.join("redb"))?;
        // Reads need the table.
        let writing = db.begin_write()?;
        writing.open_table(TABLE)?;
        writing.commit()?;
        Ok(Box::new(Redb { db, durability }))
    }
}

impl Store for Redb {
    fn get(&self, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.db.begin_read()?.open_table(TABLE)?.get(key)?;
        Ok(found.is_some_and(|value| {
            see(value.value());
            true
        }))
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let mut writing = self.db.begin_write()?;
        writing.set_durability(self.durability)?;
        writing.open_table(TABLE)?.insert(key, value)?;
        Ok(writing.commit()?)
    }

    fn get_many(&self, keys: &[String], see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let table = self.db.begin_read()?.open_table(TABLE)?;
        let mut found = 0;
        for key in keys {
            if let Some(value) = table.get(&**key)? {
                see(value.value());
                found += 1;
            }
        }
        Ok(found)
    }

    fn fill(&self, keys: &[String], value: &[u8]) -> Result<()> {
        let writing = self.db.begin_write()?;
        {
            let mut table = writing.open_table(TABLE)?;
            for key in keys {
                table.insert(&**key, value)?;
            }
        }
        Ok(writing.commit()?)
    }
}

/// Durable by a sync of the journal after each put, which concurrent puts may share.
pub struct Fjall {
    db: fjall::Database,
    entries: fjall::Keyspace,
    durability: Durability,
}

impl Fjall {
    pub fn open(folder: &Path, durability: Durability) -> Result<Box<dyn Store>> {
        let db = fjall::Database::builder(folder.join("fjall")).open()?;
        let entries = db.keyspace("entries", fjall::KeyspaceCreateOptions::default)?;
        Ok(Box::new(Fjall { db, entries, durability }))
    }
}

impl Store for Fjall {
    fn get(&self, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.entries.get(key)?.is_some_and(|value| {
            see(&value);
            true
        }))
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        self.entries.insert(key, value)?;
        if self.durability == Durability::Synced {
            self.db.persist(fjall::PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn fill(&self, keys: &[String], value: &[u8]) -> Result<()> {
        for key in keys {
            self.entries.insert(&**key, value)?;
        }
        Ok(self.db.persist(fjall::PersistMode::SyncAll)?)
    }
}

/// The disk engine of a hybrid cache with room for one entry in memory. A put is queued: nothing says when
/// it is on the disk, and a full queue drops it.
pub struct Foyer {
    runtime: Runtime,
    cache: HybridCache<String, Vec<u8>>,
}

const FOYER_BYTES: usize = 512 << 20;
/// What its queue of 32 MiB surely holds.
const FOYER_QUEUED_BYTES: usize = 8 << 20;

impl Foyer {
    pub fn open(folder: &Path) -> Result<Box<dyn Store>> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let device = FsDeviceBuilder::new(folder.join("foyer")).with_capacity(FOYER_BYTES).build()?;
        let cache = runtime.block_on(
            HybridCacheBuilder::new()
                .with_policy(HybridCachePolicy::WriteOnInsertion)
                .memory(1)
                .with_shards(1)
                .storage()
                .with_engine_config(BlockEngineConfig::new(device))
                .build(),
        )?;
        Ok(Box::new(Foyer { runtime, cache }))
    }
}

impl Store for Foyer {
    fn get(&self, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let found = self.runtime.block_on(async { self.cache.get(key).await })?;
        Ok(found.is_some_and(|entry| {
            see(entry.value());
            true
        }))
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let _entered = self.runtime.enter();
        self.cache.insert(key.to_owned(), value.to_vec());
        Ok(())
    }

    fn fill(&self, keys: &[String], value: &[u8]) -> Result<()> {
        for keys in keys.chunks((FOYER_QUEUED_BYTES / (value.len() + 4096)).max(1)) {
            keys.iter().try_for_each(|key| self.put(key, value))?;
            self.runtime.block_on(self.cache.storage().wait());
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.runtime.block_on(self.cache.close())?)
    }
}

/// A file per entry, written under another name and renamed.
pub struct Files {
    folder: PathBuf,
    durability: Durability,
}

impl Files {
    pub fn open(folder: &Path, durability: Durability) -> Result<Box<dyn Store>> {
        Ok(Box::new(Files { folder: folder.to_owned(), durability }))
    }
}

impl Store for Files {
    fn get(&self, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        match std::fs::read(self.folder.join(key)) {
            Ok(value) => see(&value),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let new = self.folder.join(format!("{key}.new"));
        let mut file = File::create(&new)?;
        file.write_all(value)?;
        if self.durability == Durability::Synced {
            file.sync_data()?;
        }
        std::fs::rename(new, self.folder.join(key))?;
        if self.durability == Durability::Synced {
            File::open(&self.folder)?.sync_all()?;
        }
        Ok(())
    }
}

/// Content-addressed files with an index; it syncs nothing.
pub struct Cacache(PathBuf);

impl Cacache {
    pub fn open(folder: &Path) -> Result<Box<dyn Store>> {
        Ok(Box::new(Cacache(folder.to_owned())))
    }
}

impl Store for Cacache {
    fn get(&self, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        match cacache::read_sync(&self.0, key) {
            Ok(value) => see(&value),
            Err(cacache::Error::EntryNotFound(..)) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        Ok(true)
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        cacache::write_sync(&self.0, key, value)?;
        Ok(())
    }
}
