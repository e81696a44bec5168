//! A small store of named values over a [`Cache`], for what must be told from "not there": cursors, flags,
//! sessions, what a job has done so far.
//!
//! A cache may answer "no" when a tier is down, and keep in memory what no tier could take. This store says
//! so with an error. Everything else is the cache's: tiers, encryption, tenants, removal on every node.

use crate::cache::{Builder, Cache, KeysRequest, Removal, Value, Written};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Pattern;
use crate::options::EntryOptions;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Longest name in bytes: the start of a longer key would be all that a listing could show.
pub const NAME_BYTES_MAX: usize = 512;

/// Names of a store, a page at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The names, in an order of the tier's. A page may be short, and even empty, although more follow.
    pub names: Vec<String>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
}

/// Named values in the tiers of a cache, without a TTL unless they are given one. Clones are cheap and share
/// everything.
///
/// A backend with a limit of its own (`entries_max`, `bytes_max`) may evict what is stored here: give it none.
/// There is no compare-and-set: of two sets of one name the later one stays.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder::Result<()> {
/// use larder::backend::{MemoryBackend, MemoryOptions};
/// use larder::{Cache, state::StateStore};
/// use std::sync::Arc;
///
/// let tier = Arc::new(MemoryBackend::new(MemoryOptions::default()));
/// let cursors: StateStore<u64> = StateStore::new(Cache::builder().tier(tier))?;
/// cursors.set("import", 42).await?;
/// assert_eq!(cursors.get("import").await?, Some(42));
/// assert_eq!(cursors.get_many(&["import", "export"]).await?, [Some(42), None]);
/// # Ok(()) }
/// ```
pub struct StateStore<V: Value> {
    cache: Cache<String, V>,
    options: EntryOptions,
}

impl<V: Value> Clone for StateStore<V> {
    fn clone(&self) -> Self {
        StateStore { cache: self.cache.clone(), options: self.options.clone() }
    }
}

impl<V: Value + Serialize + DeserializeOwned> StateStore<V> {
    /// A store over the cache that `builder` builds, which needs a tier. Its default options are the store's,
    /// but for the TTL, which is for ever.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] without a tier, since memory alone forgets when it is full; and as
    /// [`Builder::build`].
    pub fn new(builder: Builder<String, V>) -> Result<Self> {
        if !builder.has_tiers() {
            return Err(Error::new(ErrorKind::Config, "build")
                .message("the store has no tier; a cache in memory alone evicts what it has no room for"));
        }
        let cache = builder.build()?;
        let options = cache.options().ttl(Duration::MAX);
        Ok(StateStore { cache, options })
    }

    /// The cache below: for its statistics, maintenance and [`close`](Cache::close).
    pub fn cache(&self) -> &Cache<String, V> {
        &self.cache
    }

    /// The same store over another view of its cache: of a namespace, or a tenant.
    #[must_use]
    pub fn with_view(&self, view: impl FnOnce(&Cache<String, V>) -> Cache<String, V>) -> Self {
        StateStore { cache: view(&self.cache), options: self.options.clone() }
    }

    /// Stores a value in every tier.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when a tier could not take it: repeat the call. Otherwise as
    /// [`Cache::set_with`]. [`TooLarge`](ErrorKind::TooLarge) for a name over [`NAME_BYTES_MAX`].
    pub async fn set(&self, name: &str, value: V) -> Result<()> {
        self.set_for(name, value, self.options.ttl).await
    }

    /// [`set`](Self::set), with a TTL.
    ///
    /// # Errors
    /// As there.
    pub async fn set_for(&self, name: &str, value: V, ttl: Duration) -> Result<()> {
        check_name(name)?;
        let options = self.options.clone().ttl(ttl);
        let not_stored =
            |why: &'static str| Err(Error::new(ErrorKind::Unavailable, "set").key(name).message(why));
        match self.cache.set_with(name.to_owned(), value, &options).await? {
            Written::Stored | Written::NotStored => Ok(()),
            // A later set is there, or removals got in between at every try.
            Written::Superseded if self.get(name).await?.is_some() => Ok(()),
            Written::Superseded => not_stored("removals of names that share its fence came in between"),
            Written::Local => not_stored("a tier could not take the value"),
            Written::Refused => not_stored("no tier took the value for certain"),
        }
    }

    /// The value of a name.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when there may be one, in a tier that is set aside or gave no answer;
    /// [`Corrupt`](ErrorKind::Corrupt) when there is one that can't be opened, naming the reason: an unknown
    /// key first of all. What was tampered with is quarantined, and then not there.
    pub async fn get(&self, name: &str) -> Result<Option<V>> {
        match self.cache.get(name).await {
            Some(value) => Ok(Some(value)),
            None => self.is_absent(name).await,
        }
    }

    /// The values of many names, in their order. The tiers are asked once for all.
    ///
    /// # Errors
    /// As [`get`](Self::get), for the first of them that fails.
    pub async fn get_many(&self, names: &[&str]) -> Result<Vec<Option<V>>> {
        let keys: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut values = self.cache.get_many(&keys).await;
        for (name, value) in names.iter().zip(&mut values) {
            if value.is_none() {
                *value = self.is_absent(name).await?;
            }
        }
        Ok(values)
    }

    /// Deletes a name everywhere. A read or set that began before will not put it back.
    ///
    /// # Errors
    /// As [`Cache::remove`]. A tier that fails is no error: see [`Removal::is_queued`].
    pub async fn delete(&self, name: &str) -> Result<Removal> {
        self.cache.remove(name).await
    }

    /// Lists the names that begin with `prefix`, at most `limit` of a page.
    ///
    /// # Errors
    /// As [`Cache::keys`].
    pub async fn list(&self, prefix: &str, after: Option<String>, limit: usize) -> Result<Names> {
        let pattern = Some(Pattern::new(&format!("{}*", escaped(prefix)))?);
        let page = self.cache.keys(&KeysRequest { pattern, after, limit }).await?;
        let names = page.keys.iter().map(|info| info.key.text().into_owned()).collect();
        Ok(Names { names, next: page.next })
    }

    /// Confirms that what was not found is not there, or says why nobody knows.
    async fn is_absent(&self, name: &str) -> Result<Option<V>> {
        let failed = |kind, tier: String, why: String| {
            Err(Error::new(kind, "get").backend(tier).key(name).message(why))
        };
        for tier in self.cache.explain(name).await.tiers {
            match tier.state.as_str() {
                "absent" | "expired" | "stale" | "tag" | "cleared" | "incarnation" => {}
                // Stored since it was looked for, or promoted; the answer of now is as good.
                "fresh" => return Ok(self.cache.get(name).await),
                "aside" => {
                    return failed(ErrorKind::Unavailable, tier.tier, "it gave no answer".to_owned());
                }
                why => {
                    let why = format!("it has the value, which can't be opened: {why}");
                    return failed(ErrorKind::Corrupt, tier.tier, why);
                }
            }
        }
        Ok(None)
    }
}

impl<V: Value> std::fmt::Debug for StateStore<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateStore").field("cache", &self.cache).finish_non_exhaustive()
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(ErrorKind::TooLarge, "set")
        .key(name)
        .message(format!("the name has {} bytes; at most {NAME_BYTES_MAX} are allowed", name.len())))
}

/// A pattern that matches the text itself.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for char in text.chars() {
        if matches!(char, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern
}
