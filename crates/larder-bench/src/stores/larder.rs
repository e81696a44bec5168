//! larder's backends as stores: called as a cache calls its tiers, a ticket before each put.

use super::{Durability, Result, Store};
use bytes::Bytes;
use larder::backend::{
    self, Backend, FilesBackend, FilesOptions, JsonlBackend, JsonlOptions, Put, PutOutcome, SqliteBackend,
    SqliteOptions, Ticket,
};
use larder::clock::NEVER_MS;
use larder::entry::{EntryKind, Meta, Tags};
use larder::envelope::{Envelope, EnvelopeOptions, Keyring, Protection, SecretKey};
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
    /// What encrypts values; without it they are stored as they are.
    envelope: Option<Envelope>,
}

/// Whether values are encrypted, in an envelope.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Values {
    Plain,
    Encrypted,
}

impl Larder {
    pub fn open<B: Backend>(
        values: Values,
        open: impl Future<Output = larder::Result<B>>,
    ) -> Result<Box<dyn Store>> {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let backend = Arc::new(runtime.block_on(open)?);
        let envelope = match values {
            Values::Plain => None,
            Values::Encrypted => Some(encrypting()?),
        };
        Ok(Box::new(Larder { runtime, backend, namespace: Namespace::new("bench")?, envelope }))
    }

    /// The value of what was found; a failed authentication is an error here.
    fn value(&self, key: &EntryKey, sealed: Bytes) -> Result<Bytes> {
        let Some(envelope) = &self.envelope else { return Ok(sealed) };
        let (_, value) = envelope.open::<Bytes>(key, &sealed).map_err(|why| why.to_string())?;
        Ok(value.ok_or("an absence was never put")?)
    }

    fn key(&self, key: &str) -> Result<EntryKey> {
        Ok(EntryKey::new(&self.namespace, &key)?)
    }

    fn keys(&self, keys: &[String]) -> Result<Vec<EntryKey>> {
        keys.iter().map(|key| self.key(key)).collect()
    }
}

/// An envelope that encrypts; with the same key in every process, for [`kill`](crate::kill).
fn encrypting() -> Result<Envelope> {
    // The same in the process that is killed and in the one that looks.
    let bytes: [u8; 32] = std::array::from_fn(|at| 7 * at as u8);
    let keyring = Keyring::builder().encrypt_with(SecretKey::from_bytes(&bytes)?).build()?;
    Ok(Envelope::new(EnvelopeOptions::default())?.protect(Protection::encrypt(keyring)))
}

fn of(durability: Durability) -> backend::Durability {
    match durability {
        Durability::Synced => backend::Durability::Power,
        Durability::Unsynced => backend::Durability::Process,
    }
}

pub fn sqlite(folder: &Path, durability: Durability, values: Values) -> Result<Box<dyn Store>> {
    let options =
        SqliteOptions { durability: of(durability), ..SqliteOptions::new(folder.join("larder.db")) };
    Larder::open(values, SqliteBackend::open(options))
}

pub fn files(folder: &Path, durability: Durability, values: Values) -> Result<Box<dyn Store>> {
    let options = FilesOptions { durability: of(durability), ..FilesOptions::new(folder) };
    Larder::open(values, FilesBackend::open(options))
}

pub fn jsonl(folder: &Path, durability: Durability, values: Values) -> Result<Box<dyn Store>> {
    let options = JsonlOptions { durability: of(durability), ..JsonlOptions::new(folder) };
    Larder::open(values, JsonlBackend::open(options))
}

impl Store for Larder {
    fn get(&self, key: &str, see: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let key = self.key(key)?;
        match self.runtime.block_on(self.backend.get(&key))?.found {
            Ok(sealed) => {
                see(&self.value(&key, sealed)?);
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    }

    fn put(&self, key: &str, value: &[u8]) -> Result<()> {
        let (key, value) = (self.key(key)?, Bytes::copy_from_slice(value));
        self.runtime.block_on(put(&*self.backend, self.envelope.as_ref(), key, &value))
    }

    fn get_many(&self, keys: &[String], see: &mut dyn FnMut(&[u8])) -> Result<usize> {
        let (keys, mut found) = (self.keys(keys)?, 0);
        for (read, key) in self.runtime.block_on(self.backend.get_many(&keys)).into_iter().zip(&keys) {
            if let Ok(sealed) = read?.found {
                see(&self.value(key, sealed)?);
                found += 1;
            }
        }
        Ok(found)
    }

    fn fill(&self, keys: &[String], value: &[u8]) -> Result<()> {
        let value = Bytes::copy_from_slice(value);
        for keys in self.keys(keys)?.chunks(1000) {
            // A ticket counts for the part of a store that its key is in.
            let mut puts = Vec::with_capacity(keys.len());
            for key in keys {
                let ticket = self.runtime.block_on(self.backend.ticket(key))?;
                puts.push(entry(self.envelope.as_ref(), key.clone(), &value, ticket)?);
            }
            for outcome in self.runtime.block_on(self.backend.put_many(puts)) {
                stored(outcome?)?;
            }
        }
        Ok(())
    }

    fn put_from(&self, callers: &[Vec<String>], value: &[u8]) -> Result<()> {
        let value = Bytes::copy_from_slice(value);
        let mut tasks = Vec::new();
        for keys in callers {
            let (keys, backend, value) = (self.keys(keys)?, self.backend.clone(), value.clone());
            let envelope = self.envelope.clone();
            tasks.push(self.runtime.spawn(async move {
                for key in keys {
                    put(&*backend, envelope.as_ref(), key, &value).await?;
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

async fn put(backend: &dyn Backend, envelope: Option<&Envelope>, key: EntryKey, value: &Bytes) -> Result<()> {
    let ticket = backend.ticket(&key).await?;
    stored(backend.put(entry(envelope, key, value, ticket)?).await?)
}

fn stored(outcome: PutOutcome) -> Result<()> {
    match outcome {
        PutOutcome::Stored => Ok(()),
        refused => Err(format!("a put was refused: {refused:?}").into()),
    }
}

fn entry(envelope: Option<&Envelope>, key: EntryKey, value: &Bytes, ticket: Ticket) -> Result<Put> {
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
    let sealed = match envelope {
        None => value.clone(),
        Some(envelope) => envelope.seal(&key, &meta, Some(value))?,
    };
    Ok(Put { key, meta, sealed, ticket })
}
