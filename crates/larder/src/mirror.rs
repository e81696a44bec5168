//! Collections of records that a source owns, mirrored to the tiers of a [`Cache`] and served from there when the
//! source is down: a database, say, with SQLite beside the process.
//!
//! A record is fresh for half an hour. After that the source is asked; while it doesn't answer, the mirror goes on
//! with what it has, and says that it is stale and how old. Whatever the tiers keep survives a restart, also one
//! during the outage. Everything else is the cache's: one load per key, removal, encryption, statistics.

use crate::cache::{Builder, Cache, KeysRequest, Removal, Stale, Value, Written};
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::key::Namespace;
use crate::options::EntryOptions;
use crate::tier::before;
use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

/// How many records one statement of a [warming](Collection::warm) asks the source for.
const PAGE: usize = 200;
/// How long the source may take to say that it is there.
const PROBE_MAX: Duration = Duration::from_secs(5);
/// How long a source that is down is left alone, at first and at last.
const AGAIN_MIN: Duration = Duration::from_millis(250);
const AGAIN_MAX: Duration = Duration::from_secs(15);

/// Where the records of a [`Collection`] come from: a table, a service, a file. Implemented by the application.
///
/// An error says that the source did not answer; that there is no such record is no error.
#[async_trait]
pub trait Source<V>: Send + Sync + 'static {
    /// The records of these keys. A key that is not in the answer has none.
    async fn fetch(&self, keys: &[String]) -> Result<HashMap<String, V>, BoxError>;

    /// The keys that follow `after`, in any fixed order of the source's, at most `limit` of them; none at the end.
    /// Also asked for one key, to see whether the source is back.
    async fn keys(&self, after: Option<&str>, limit: usize) -> Result<Vec<String>, BoxError>;
}

/// A record, and how sure it is.
#[derive(Clone, PartialEq, Eq)]
pub struct Mirrored<V> {
    /// The record.
    pub value: V,
    /// Whether it is past its TTL: the source did not answer since.
    pub is_stale: bool,
    /// How long ago it was read from the source, or set.
    pub age: Duration,
}

/// Shows everything but the record, which may be a secret.
impl<V> std::fmt::Debug for Mirrored<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mirrored {{ is_stale: {}, age: {:?} }}", self.is_stale, self.age)
    }
}

/// What a collection holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollectionStats {
    /// Its name.
    pub collection: String,
    /// Records.
    pub total: u64,
    /// Those past their TTL.
    pub stale: u64,
    /// The age of the oldest; `None` without any.
    pub oldest_age: Option<Duration>,
    /// Whether its source is known to be down.
    pub is_offline: bool,
}

/// What a warming did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warmed {
    /// Records that are fresh now, those that were before included.
    pub fresh: u64,
    /// Keys of the mirror that the source has no longer.
    pub gone: u64,
}

/// Records of one type, by a text key. Clones are cheap and share everything.
///
/// ```
/// # use async_trait::async_trait;
/// # use larder::{BoxError, Cache, mirror::{Collection, Source}};
/// # use larder::backend::{MemoryBackend, MemoryOptions};
/// # use std::{collections::HashMap, sync::Arc};
/// struct Rates;
///
/// #[async_trait]
/// impl Source<f64> for Rates {
///     async fn fetch(&self, keys: &[String]) -> Result<HashMap<String, f64>, BoxError> {
///         Ok(keys.iter().filter(|key| *key == "EUR").map(|key| (key.clone(), 1.1)).collect())
///     }
///     async fn keys(&self, after: Option<&str>, _: usize) -> Result<Vec<String>, BoxError> {
///         Ok(if after.is_none() { vec!["EUR".to_owned()] } else { Vec::new() })
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder::Result<()> {
/// let tier = Arc::new(MemoryBackend::new(MemoryOptions::default())); // A SqliteBackend, to survive a restart.
/// let rates = Collection::new("rates", Cache::builder().tier(tier), Rates)?;
/// let rate = rates.get("EUR").await?.expect("there is one");
/// assert!(rate.value == 1.1 && !rate.is_stale);
/// assert!(rates.get("XYZ").await?.is_none());
/// # Ok(()) }
/// ```
pub struct Collection<V: Value>(Arc<Inner<V>>);

struct Inner<V: Value> {
    name: String,
    cache: Cache<String, V>,
    options: EntryOptions,
    source: Arc<dyn Source<V>>,
    link: Arc<Link>,
}

/// What is known of the way to the source.
#[derive(Default)]
struct Link {
    is_offline: AtomicBool,
    /// Whether a task looks after it.
    is_watched: AtomicBool,
}

/// That somebody looks after the source. When the runtime of that task ends before the source is back, callers try
/// by themselves again.
struct Watching(Arc<Link>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.is_offline.store(false, SeqCst);
        self.0.is_watched.store(false, SeqCst);
    }
}

impl<V: Value> Clone for Collection<V> {
    fn clone(&self) -> Self {
        Collection(Arc::clone(&self.0))
    }
}

impl<V: Value + Serialize + DeserializeOwned> Collection<V> {
    /// The options of a mirror: fresh for 30 minutes; served stale for as long as the source is down, because an old
    /// record that says so is worth more than none; a caller that could have a stale one waits for the source for
    /// 1 second.
    pub fn options() -> EntryOptions {
        let options = EntryOptions::default()
            .ttl(Duration::from_secs(30 * 60))
            .stale_on_error(Duration::MAX)
            // What a source that is down is spared, the mirror itself knows.
            .stale_on_error_throttle(Duration::ZERO);
        EntryOptions { load_timeout_soft: Some(Duration::from_secs(1)), ..options }
    }

    /// A collection with the default [options](Self::options), in a namespace of its name.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for a name with a colon, or without a tier: a mirror in memory alone forgets what it has
    /// no room for, and all of it at a restart. Otherwise as [`Builder::build`].
    pub fn new(name: &str, builder: Builder<String, V>, source: impl Source<V>) -> Result<Self> {
        Self::with_options(name, builder, Self::options(), source)
    }

    /// [`new`](Self::new), with options.
    ///
    /// # Errors
    /// As there.
    pub fn with_options(
        name: &str,
        builder: Builder<String, V>,
        options: EntryOptions,
        source: impl Source<V>,
    ) -> Result<Self> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Config, "build").message(message));
        if name.contains([':', '@']) {
            return refuse(format!(
                "the collection's name is \"{}\"; it must have no : and no @",
                name.escape_debug()
            ));
        }
        if !builder.has_tiers() {
            return refuse(format!("the collection {name} has no tier to be mirrored to"));
        }
        let cache = builder.namespace(Namespace::new(name)?).defaults(options.clone()).build()?;
        let (name, source, link) = (name.to_owned(), Arc::new(source), Arc::default());
        Ok(Collection(Arc::new(Inner { name, cache, options, source, link })))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The cache below: for its statistics, maintenance and [`close`](Cache::close).
    pub fn cache(&self) -> &Cache<String, V> {
        &self.0.cache
    }

    /// Whether the source is known to be down. It is then asked again in the background, after 0.25 to 15 seconds,
    /// and by nobody else.
    pub fn is_offline(&self) -> bool {
        self.0.link.is_offline.load(SeqCst)
    }

    /// A record: from the mirror while it is fresh, else from the source, else from the mirror again. `None`: the
    /// source says that there is none.
    ///
    /// # Errors
    /// [`ErrorKind::Loader`] when the source doesn't answer and the mirror has nothing: that is no absence.
    pub async fn get(&self, key: &str) -> Result<Option<Mirrored<V>>> {
        let Inner { cache, options, .. } = &*self.0;
        if let Some(hit) = cache.lookup(key, Stale::Refuse).await {
            return Ok(Some(Mirrored { value: hit.value, is_stale: false, age: hit.age }));
        }
        let is_loaded = Arc::new(AtomicBool::new(false));
        let (this, name, loaded) = (self.clone(), key.to_owned(), Arc::clone(&is_loaded));
        let load = move |_| async move {
            let mut found = this.fetch(vec![name.clone()]).await?;
            loaded.store(true, SeqCst);
            Ok::<_, BoxError>(found.remove(&name))
        };
        let Some(value) = cache.get_or_load_optional(key, options, load).await? else { return Ok(None) };
        if is_loaded.load(SeqCst) {
            return Ok(Some(Mirrored { value, is_stale: false, age: Duration::ZERO }));
        }
        Ok(match cache.lookup(key, Stale::Allow).await {
            Some(hit) => Some(Mirrored { value: hit.value, is_stale: hit.is_stale, age: hit.age }),
            // Removed since: it may not be served as fresh.
            None => Some(Mirrored { value, is_stale: true, age: options.ttl }),
        })
    }

    /// Stores a record that was just written to the source.
    ///
    /// # Errors
    /// As [`Cache::set`].
    pub async fn set(&self, key: &str, value: V) -> Result<Written> {
        self.0.cache.set(key.to_owned(), value).await
    }

    /// Forgets a record: the next read asks the source.
    ///
    /// # Errors
    /// As [`Cache::remove`].
    pub async fn remove(&self, key: &str) -> Result<Removal> {
        self.0.cache.remove(key).await
    }

    /// Whether a record is past its TTL; `None` if the mirror doesn't have it. Doesn't ask the source.
    pub async fn is_stale(&self, key: &str) -> Option<bool> {
        self.age_of(key).await.map(|(is_stale, _)| is_stale)
    }

    /// Drops what is stale, also while the source is down and there is nothing else to serve; how many records that
    /// were.
    ///
    /// # Errors
    /// As [`Cache::keys`].
    pub async fn clear_stale(&self) -> Result<u64> {
        let (mut after, mut cleared) = (None, 0);
        loop {
            let (keys, next) = self.page(after).await?;
            let mut stale = Vec::new();
            for key in keys {
                if self.is_stale(&key).await == Some(true) {
                    stale.push(key);
                }
            }
            for removed in self.0.cache.remove_many(&stale).await {
                cleared += u64::from(removed?.existed);
            }
            if next.is_none() {
                return Ok(cleared);
            }
            after = next;
        }
    }

    /// What it holds. Looks at each record's head once.
    ///
    /// # Errors
    /// As [`Cache::keys`].
    pub async fn stats(&self) -> Result<CollectionStats> {
        let collection = self.0.name.clone();
        let mut stats =
            CollectionStats { collection, is_offline: self.is_offline(), ..CollectionStats::default() };
        let mut after = None;
        loop {
            let (keys, next) = self.page(after).await?;
            for key in keys {
                let Some((is_stale, age)) = self.age_of(&key).await else { continue };
                stats.total += 1;
                stats.stale += u64::from(is_stale);
                stats.oldest_age = stats.oldest_age.max(Some(age));
            }
            if next.is_none() {
                return Ok(stats);
            }
            after = next;
        }
    }

    /// Loads every record of the source that the mirror lacks or has stale, and asks again for those that the source
    /// may have no longer: at start, or by a schedule. After an outage it happens by itself. Each record is loaded
    /// as any other, so that a removal meanwhile wins.
    ///
    /// # Errors
    /// [`ErrorKind::Loader`] when the source doesn't answer; what was warmed stays.
    pub async fn warm(&self) -> Result<Warmed> {
        let mut warmed = Warmed::default();
        let mut after: Option<String> = None;
        loop {
            let keys = self.0.source.keys(after.as_deref(), PAGE).await;
            let keys = keys.map_err(|error| Error::new(ErrorKind::Loader, "warm").source(error))?;
            let Some(last) = keys.last().cloned() else { break };
            if after.as_ref() == Some(&last) {
                return Err(Error::new(ErrorKind::Loader, "warm").message("the source's pages don't go on"));
            }
            self.refresh(&keys, &mut warmed).await?;
            after = Some(last);
        }
        // What is left stale was not among them.
        let mut after = None;
        loop {
            let (keys, next) = self.page(after).await?;
            let mut stale = Vec::new();
            for key in keys {
                if self.is_stale(&key).await == Some(true) {
                    stale.push(key);
                }
            }
            self.refresh(&stale, &mut warmed).await?;
            if next.is_none() {
                return Ok(warmed);
            }
            after = next;
        }
    }

    async fn refresh(&self, keys: &[String], warmed: &mut Warmed) -> Result<()> {
        let Inner { cache, options, source, .. } = &*self.0;
        let options = EntryOptions { load_timeout_soft: None, ..options.clone() };
        let failed: Arc<OnceLock<Error>> = Arc::default();
        let (source, failure) = (Arc::clone(source), Arc::clone(&failed));
        let load = move |missing: Vec<String>| async move {
            source.fetch(&missing).await.map_err(|error| {
                let error = Error::new(ErrorKind::Loader, "warm").source(error);
                failure.get_or_init(|| error).clone()
            })
        };
        let found = cache.get_many_or_load(keys, &options, load).await;
        // What is stale is served then, and is no answer here.
        if let Some(error) = failed.get() {
            return Err(error.clone());
        }
        for found in found {
            match found? {
                Some(_) => warmed.fresh += 1,
                None => warmed.gone += 1,
            }
        }
        Ok(())
    }

    /// Asks the source, unless it is known to be down.
    async fn fetch(&self, keys: Vec<String>) -> Result<HashMap<String, V>, BoxError> {
        if self.is_offline() {
            return Err(Box::from("the source is down"));
        }
        let fetched = self.0.source.fetch(&keys).await;
        if fetched.is_err() {
            self.watch();
        }
        fetched
    }

    /// Looks after the source until it is back, in one task.
    fn watch(&self) {
        if !self.0.link.is_watched.swap(true, SeqCst) {
            let watching = Watching(Arc::clone(&self.0.link));
            crate::runtime::spawn(watch(Arc::downgrade(&self.0), watching));
        }
    }

    async fn age_of(&self, key: &str) -> Option<(bool, Duration)> {
        let entry = self.0.cache.entry(key).await.filter(|entry| !entry.is_negative)?;
        let age = self.0.cache.clock().wall_ms().saturating_sub(entry.created_ms);
        Some((entry.fresh_ms_left == Some(0), Duration::from_millis(age)))
    }

    async fn page(&self, after: Option<String>) -> Result<(Vec<String>, Option<String>)> {
        let page = self.0.cache.keys(&KeysRequest { pattern: None, after, limit: PAGE }).await?;
        let keys = page.keys.iter().filter_map(|info| info.key.decode_str().map(str::to_owned)).collect();
        Ok((keys, page.next))
    }
}

/// A failed load may be of its record alone: the source is down when it doesn't list a key either. Ends when it is
/// back and the mirror warm, or with the last clone of the collection.
async fn watch<V: Value + Serialize + DeserializeOwned>(collection: Weak<Inner<V>>, watching: Watching) {
    let (mut again, mut is_cold) = (AGAIN_MIN, false);
    loop {
        let Some(inner) = collection.upgrade() else { return };
        let clock = inner.cache.clock().clone();
        let probe = inner.source.keys(None, 1);
        let is_back = matches!(before(&clock, PROBE_MAX, probe).await, Some(Ok(_)));
        // Until a warming has come to its end: one that fails is no reason to stay cold.
        is_cold |= inner.link.is_offline.swap(!is_back, SeqCst);
        if is_back && (!is_cold || Collection(Arc::clone(&inner)).warm().await.is_ok()) {
            return drop(watching);
        }
        drop(inner);
        clock.sleep(again).await;
        again = (again * 2).min(AGAIN_MAX);
    }
}

impl<V: Value> std::fmt::Debug for Collection<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collection").field("name", &self.0.name).finish_non_exhaustive()
    }
}

/// Several collections as one: what an operator asks for all of them.
#[derive(Clone, Default)]
pub struct Mirror(Vec<Arc<dyn Kept>>);

impl Mirror {
    /// Without collections.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more.
    #[must_use]
    pub fn with<V: Value + Serialize + DeserializeOwned>(mut self, collection: &Collection<V>) -> Self {
        self.0.push(Arc::new(collection.clone()));
        self
    }

    /// Whether the record `collection:key` is past its TTL; `None` if the mirror doesn't have it.
    ///
    /// # Errors
    /// [`ErrorKind::Key`] for a text without a colon, or of no collection of these.
    pub async fn is_stale(&self, record: &str) -> Result<Option<bool>> {
        let refuse =
            |message: String| Err(Error::new(ErrorKind::Key, "is_stale").key(record).message(message));
        let Some((name, key)) = record.split_once(':') else {
            return refuse("a record is named collection:key".to_owned());
        };
        match self.0.iter().find(|collection| collection.name() == name) {
            Some(collection) => Ok(collection.is_stale(key).await),
            None => {
                let known: Vec<&str> = self.0.iter().map(|collection| collection.name()).collect();
                refuse(format!("there is no such collection; known are: {}", known.join(", ")))
            }
        }
    }

    /// [`Collection::clear_stale`] of each; how many records that were.
    ///
    /// # Errors
    /// As there; the collections before are cleared.
    pub async fn clear_stale(&self) -> Result<u64> {
        let mut cleared = 0;
        for collection in &self.0 {
            cleared += collection.clear_stale().await?;
        }
        Ok(cleared)
    }

    /// Forgets everything, also while the sources are down.
    ///
    /// # Errors
    /// As [`Cache::clear`].
    pub async fn clear_all(&self) -> Result<()> {
        for collection in &self.0 {
            collection.clear_all().await?;
        }
        Ok(())
    }

    /// What each collection holds.
    ///
    /// # Errors
    /// As [`Collection::stats`].
    pub async fn stats(&self) -> Result<Vec<CollectionStats>> {
        let mut stats = Vec::with_capacity(self.0.len());
        for collection in &self.0 {
            stats.push(collection.stats().await?);
        }
        Ok(stats)
    }
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.iter().map(|collection| collection.name())).finish()
    }
}

/// A collection of whatever type.
#[async_trait]
trait Kept: Send + Sync {
    fn name(&self) -> &str;
    async fn is_stale(&self, key: &str) -> Option<bool>;
    async fn clear_stale(&self) -> Result<u64>;
    async fn clear_all(&self) -> Result<()>;
    async fn stats(&self) -> Result<CollectionStats>;
}

#[async_trait]
impl<V: Value + Serialize + DeserializeOwned> Kept for Collection<V> {
    fn name(&self) -> &str {
        self.name()
    }

    async fn is_stale(&self, key: &str) -> Option<bool> {
        self.is_stale(key).await
    }

    async fn clear_stale(&self) -> Result<u64> {
        self.clear_stale().await
    }

    async fn clear_all(&self) -> Result<()> {
        self.0.cache.clear().await.map(drop)
    }

    async fn stats(&self) -> Result<CollectionStats> {
        self.stats().await
    }
}
