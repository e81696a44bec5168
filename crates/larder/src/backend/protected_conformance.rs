//! Prevents: a store that keeps its promises for plain bodies alone. Every backend passes the suite with each
//! body sealed under a key, and with every key under its hidden name, as a tier keeps them.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::conformance::{Subject, check_all};
use super::{
    Backend, Capabilities, Durability, FilesBackend, FilesOptions, JsonlBackend, JsonlOptions, Listed, Mark,
    MemcachedBackend, MemcachedOptions, MemoryBackend, MemoryOptions, Page, PostgresBackend, PostgresOptions,
    Put, PutOutcome, Read, RedisBackend, Removed, Scan, SqliteBackend, SqliteOptions, Ticket, Usage,
};
use crate::clock::Clock;
use crate::envelope::{Envelope, EnvelopeOptions, Keyring, Protection, Sealing, SecretKey};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, Namespace, Pattern};
use crate::stamp::Stamp;
use crate::tier::{Tier, TierOptions};
use async_trait::async_trait;
use bytes::Bytes;
use redis_support::Server;
use redis_support::topologies::{Cluster, Pair};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tempfile::TempDir;

#[path = "../../tests/memcached_support/mod.rs"]
mod memcached_support;
#[path = "../../tests/postgres_support/mod.rs"]
mod postgres_support;
#[path = "../../tests/redis_support/mod.rs"]
mod redis_support;

fn keyring() -> Keyring {
    let secret = |first: u8| SecretKey::from_bytes(&std::array::from_fn(|at| first ^ at as u8)).unwrap();
    Keyring::builder().encrypt_with(secret(1)).hide_names_with(secret(2)).build().unwrap()
}

#[derive(Clone, Copy)]
enum Names {
    Shown,
    Hidden,
}

#[derive(Clone)]
enum Store {
    Memory,
    Sqlite,
    Files,
    Jsonl,
    Redis(Arc<Server>),
    Cluster(Arc<Cluster>),
    Sentinel(Arc<Pair>),
    Memcached(Arc<memcached_support::Server>),
    Postgres(Arc<postgres_support::Server>),
}

/// A backend that never sees a body, and with [`Names::Hidden`] no key either.
#[derive(Debug)]
struct Sealed {
    inner: Arc<dyn Backend>,
    /// Says how keys are named.
    tier: Tier,
    envelope: Envelope,
}

impl Sealed {
    fn name_of(&self, key: &EntryKey) -> EntryKey {
        self.tier.key(key)
    }

    fn open(&self, name: &EntryKey, sealed: &Bytes) -> Bytes {
        assert!(Envelope::header(sealed).unwrap().key_id.is_some(), "it is protected");
        let (_, body) = self.envelope.open::<Bytes>(name, sealed).expect("what was sealed opens");
        body.expect("no absence was put")
    }

    /// What is stored in place of this body.
    async fn stored(&self, name: &EntryKey, body: &Bytes) -> Result<Option<Bytes>> {
        let found = self.inner.get(name).await?.found.ok();
        Ok(found.filter(|sealed| self.open(name, sealed) == body))
    }
}

#[async_trait]
impl Backend for Sealed {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.inner.capabilities();
        Capabilities { scan: capabilities.scan && !self.tier.hides_keys(), ..capabilities }
    }

    async fn get(&self, key: &EntryKey) -> Result<Read> {
        let name = self.name_of(key);
        let read = self.inner.get(&name).await?;
        Ok(Read { found: read.found.map(|sealed| self.open(&name, &sealed)), ..read })
    }

    async fn ticket(&self, key: &EntryKey) -> Result<Ticket> {
        self.inner.ticket(&self.name_of(key)).await
    }

    async fn put(&self, put: Put) -> Result<PutOutcome> {
        self.put_many(vec![put]).await.remove(0)
    }

    async fn put_many(&self, puts: Vec<Put>) -> Vec<Result<PutOutcome>> {
        let seal = |put: Put| {
            let key = self.name_of(&put.key);
            let sealed = self.envelope.seal(&key, &put.meta, Some(&put.sealed)).expect("a sound value");
            let is_encrypted = Envelope::header(&sealed).unwrap().sealing == Sealing::Encrypted;
            let shows = |body: &Bytes| sealed.windows(body.len()).any(|at| at == body);
            assert!(!is_encrypted || !(8..1024).contains(&put.sealed.len()) || !shows(&put.sealed));
            Put { key, sealed, ..put }
        };
        self.inner.put_many(puts.into_iter().map(seal).collect()).await
    }

    async fn remove(&self, key: &EntryKey) -> Result<Removed> {
        self.inner.remove(&self.name_of(key)).await
    }

    async fn discard(&self, key: &EntryKey, body: &Bytes) -> Result<()> {
        let name = self.name_of(key);
        match self.stored(&name, body).await? {
            Some(sealed) => self.inner.discard(&name, &sealed).await,
            None => self.inner.discard(&name, body).await,
        }
    }

    async fn quarantine(&self, key: &EntryKey, body: &Bytes, why: &'static str) -> Result<()> {
        let name = self.name_of(key);
        match self.stored(&name, body).await? {
            Some(sealed) => self.inner.quarantine(&name, &sealed, why).await,
            None => self.inner.quarantine(&name, body, why).await,
        }
    }

    async fn mark(&self, namespace: &Namespace, mark: &Mark) -> Result<()> {
        self.inner.mark(namespace, mark).await
    }

    async fn remove_matching(&self, namespace: &Namespace, pattern: &Pattern) -> Result<u64> {
        if self.tier.hides_keys() {
            return Err(Error::new(ErrorKind::Unsupported, "remove_matching"));
        }
        self.inner.remove_matching(namespace, pattern).await
    }

    async fn scan(&self, scan: Scan<'_>) -> Result<Page> {
        if self.tier.hides_keys() {
            return Err(Error::new(ErrorKind::Unsupported, "scan"));
        }
        let page = self.inner.scan(scan).await?;
        let mut entries = Vec::new();
        for listed in page.entries {
            // The suite knows the sizes of its bodies.
            let Ok(body) = self.get(&listed.key).await?.found else { continue };
            assert!(listed.sealed_bytes > body.len() as u64);
            entries.push(Listed { sealed_bytes: body.len() as u64, ..listed });
        }
        Ok(Page { entries, ..page })
    }

    async fn namespaces(&self) -> Result<Vec<Namespace>> {
        self.inner.namespaces().await
    }

    async fn sweep(&self, limit: usize) -> Result<u64> {
        self.inner.sweep(limit).await
    }

    async fn usage(&self) -> Result<Usage> {
        self.inner.usage().await
    }

    async fn last_stamp(&self) -> Result<Option<Stamp>> {
        self.inner.last_stamp().await
    }

    async fn ping(&self) -> Result<()> {
        self.inner.ping().await
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

struct Protected {
    store: Store,
    names: Names,
    protection: Protection,
    folder: TempDir,
    made: AtomicUsize,
}

impl Protected {
    /// Of a case, among those of all suites on one server.
    fn name(&self, number: usize) -> String {
        let suite = xxhash_rust::xxh3::xxh3_64(self.folder.path().as_os_str().as_encoded_bytes());
        format!("suite_{suite:x}_{number}")
    }

    async fn open(&self, number: usize, clock: Clock) -> Arc<dyn Backend> {
        let path = self.folder.path().join(number.to_string());
        let tier_clock = clock.clone();
        // What a sync is good for is no matter of encryption.
        let durability = Durability::Process;
        let flush = |server: &Server| drop(server.command(&[b"FLUSHALL"]));
        let redis = |options| Arc::new(RedisBackend::new(options).unwrap());
        let inner: Arc<dyn Backend> = match &self.store {
            Store::Memory => Arc::new(MemoryBackend::new(MemoryOptions { clock, ..Default::default() })),
            Store::Sqlite => {
                let options = SqliteOptions { clock, durability, ..SqliteOptions::new(path) };
                Arc::new(SqliteBackend::open(options).await.unwrap())
            }
            Store::Files => {
                let options = FilesOptions { clock, durability, bytes_max: None, ..FilesOptions::new(path) };
                Arc::new(FilesBackend::open(options).await.unwrap())
            }
            Store::Jsonl => {
                let options = JsonlOptions { clock, durability, ..JsonlOptions::new(path) };
                Arc::new(JsonlBackend::open(options).await.unwrap())
            }
            Store::Redis(server) => {
                flush(server);
                redis(server.options(clock))
            }
            Store::Cluster(cluster) => {
                cluster.nodes.iter().for_each(flush);
                redis(cluster.options(clock))
            }
            Store::Sentinel(pair) => {
                flush(&pair.master);
                redis(pair.options(clock))
            }
            Store::Memcached(server) => {
                let options = MemcachedOptions {
                    clock,
                    prefix: self.name(number),
                    // The suite's clock stands still while the server's goes on.
                    expiry_slack: Duration::from_secs(600),
                    ..MemcachedOptions::new([server.url()])
                };
                Arc::new(MemcachedBackend::new(options).unwrap())
            }
            Store::Postgres(server) => {
                let schema = self.name(number);
                let options = PostgresOptions { schema, logged: true, ..server.options(clock) };
                Arc::new(PostgresBackend::new(options).unwrap())
            }
        };
        let tier = Tier::new(Arc::clone(&inner), TierOptions::default(), tier_clock);
        let tier = match self.names {
            Names::Shown => tier,
            Names::Hidden => tier.hiding(self.protection.keyring().clone()),
        };
        let envelope = Envelope::new(EnvelopeOptions::default()).unwrap().protect(self.protection.clone());
        Arc::new(Sealed { inner, tier, envelope })
    }
}

#[async_trait]
impl Subject for Protected {
    async fn fresh(&self, clock: Clock) -> Arc<dyn Backend> {
        self.open(self.made.fetch_add(1, Relaxed), clock).await
    }

    async fn reopen(&self, _closed: Arc<dyn Backend>, clock: Clock) -> Option<Arc<dyn Backend>> {
        // Cases run one after the other: the closed one is the newest.
        Some(self.open(self.made.load(Relaxed) - 1, clock).await)
    }
}

async fn check(store: Store) {
    let subject = |protection, names| Protected {
        store: store.clone(),
        names,
        protection,
        folder: tempfile::tempdir().unwrap(),
        made: AtomicUsize::new(0),
    };
    check_all(&subject(Protection::encrypt(keyring()), Names::Shown)).await;
    check_all(&subject(Protection::encrypt(keyring()), Names::Hidden)).await;
    check_all(&subject(Protection::sign(keyring()), Names::Shown)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_passes_protected() {
    check(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sqlite_passes_protected() {
    check(Store::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn files_pass_protected() {
    check(Store::Files).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn jsonl_passes_protected() {
    check(Store::Jsonl).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_passes_protected() {
    check(Store::Redis(Arc::new(Server::start(&[])))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_redis_cluster_passes_protected() {
    check(Store::Cluster(Arc::new(Cluster::start()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_behind_a_sentinel_passes_protected() {
    check(Store::Sentinel(Arc::new(Pair::start()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memcached_passes_protected() {
    check(Store::Memcached(Arc::new(memcached_support::Server::start(&[])))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn postgres_passes_protected() {
    check(Store::Postgres(Arc::new(postgres_support::Server::start(&[])))).await;
}
