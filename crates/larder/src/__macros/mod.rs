//! What functions under `#[cached]` call. No part of the public interface: it changes with the attribute.

mod errors;

pub use errors::*;

use crate::cache::{Blocking, Builder, Cache, LoadContext, Loaded, Value};
use crate::entry::Tags;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{EntryKey, NAMESPACE_BYTES_MAX, Namespace};
use crate::options::EntryOptions;
use crate::tenant::TenantFrom;
use std::any::{Any, TypeId};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::time::Duration;

/// A body under way. Erased, so that an async function may call itself.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The cache of one function.
pub type FunctionCache<V> = Cache<EntryKey, V>;

/// A `Result` under any name.
pub trait Fallible {
    /// What `Ok` holds.
    type Value;
    /// What `Err` holds.
    type Error;
}

impl<V, E> Fallible for std::result::Result<V, E> {
    type Value = V;
    type Error = E;
}

/// Builds a function's own cache.
///
/// # Panics
/// When a setting is invalid: that is the program's mistake, and shows at the first call.
pub fn own_cache<V: Value>(
    namespace: Namespace,
    entries_max: Option<u64>,
    options: EntryOptions,
) -> FunctionCache<V> {
    let function = namespace.clone();
    build(&function, own_builder(namespace, entries_max, options))
}

/// [`own_cache`], whose calls are each about the entries of their task's tenant.
///
/// # Panics
/// As there.
pub fn own_cache_of_tenants<V: Value>(
    namespace: Namespace,
    entries_max: Option<u64>,
    options: EntryOptions,
) -> FunctionCache<V> {
    let function = namespace.clone();
    build(&function, own_builder(namespace, entries_max, options).tenants(TenantFrom::Context))
}

fn own_builder<V: Value>(
    namespace: Namespace,
    entries_max: Option<u64>,
    options: EntryOptions,
) -> Builder<EntryKey, V> {
    let builder = Cache::builder().namespace(namespace).defaults(options);
    match entries_max {
        Some(entries_max) => builder.entries_max(entries_max),
        None => builder,
    }
}

fn build<V: Value>(function: &Namespace, builder: Builder<EntryKey, V>) -> FunctionCache<V> {
    builder.build().unwrap_or_else(|error| panic!("#[cached] on {function}: {error}"))
}

/// The namespace that the attribute names.
///
/// # Panics
/// When it is none.
pub fn named(name: &str) -> Namespace {
    Namespace::new(name).unwrap_or_else(|error| panic!("#[cached]: {error}"))
}

/// The namespace of a function: its path, or where that is no namespace, what can be kept of it and a hash.
pub fn namespace_of(owner: &str, function: &str) -> Namespace {
    /// A hash in hex, and the `.` before it.
    const HASH_BYTES: usize = 17;
    let path = format!("{owner}::{function}");
    Namespace::new(&path).unwrap_or_else(|_| {
        let is_allowed = |c: &char| c.is_ascii_alphanumeric() || "_-.:".contains(*c);
        let mut kept: String = path.chars().filter(is_allowed).collect();
        let first = kept.len().saturating_sub(NAMESPACE_BYTES_MAX - HASH_BYTES);
        kept.drain(..first);
        let hash = xxhash_rust::xxh3::xxh3_64(path.as_bytes());
        write!(kept, ".{hash:016x}").expect("writing to a string can't fail");
        Namespace::new(&kept).expect("only what a namespace allows was kept")
    })
}

/// The caches of one method, one for each type that has it: a `static` in a generic `impl` is shared by all
/// types that fill it in, and two of them must not see each other's values.
pub struct Caches {
    first: OnceLock<Box<OfType>>,
}

struct OfType {
    owner: TypeId,
    cache: Box<dyn Any + Send + Sync>,
    rest: Caches,
}

impl Caches {
    /// No caches yet.
    #[expect(clippy::new_without_default, reason = "only ever made in a static")]
    pub const fn new() -> Self {
        Caches { first: OnceLock::new() }
    }

    /// The cache of `Owner`, built at its first use.
    pub fn of<Owner: 'static, V: Value>(
        &'static self,
        build: impl Fn() -> FunctionCache<V>,
    ) -> &'static FunctionCache<V> {
        let owner = TypeId::of::<Owner>();
        let mut caches = self;
        loop {
            let there = caches
                .first
                .get_or_init(|| Box::new(OfType { owner, cache: Box::new(build()), rest: Caches::new() }));
            if there.owner == owner {
                return there.cache.downcast_ref().expect("one type's method has one type of value");
            }
            caches = &there.rest;
        }
    }
}

/// How one value is kept: what the attribute computes for each load.
#[derive(Debug)]
pub struct Keep {
    /// In place of the options' TTL.
    pub ttl: Option<Duration>,
    /// In place of the options' TTL for absences.
    pub negative_ttl: Option<Duration>,
    /// Beside the options' tags.
    pub tags: Vec<String>,
    /// Whether an absence is remembered.
    pub keeps_none: bool,
}

impl Keep {
    /// What a function returned that can't fail.
    ///
    /// # Errors
    /// Never.
    pub fn plain<V>(self, value: V) -> std::result::Result<Loaded<V>, Infallible> {
        Ok(self.value(value))
    }

    /// What a function of a value that may not exist returned.
    ///
    /// # Errors
    /// Never.
    pub fn optional<V>(self, value: Option<V>) -> std::result::Result<Loaded<V>, Infallible> {
        Ok(self.value_or_none(value))
    }

    /// What a function returned that can fail.
    ///
    /// # Errors
    /// Its own.
    pub fn fallible<V, E: Send + 'static>(
        self,
        returned: std::result::Result<V, E>,
        describe: fn(&E) -> String,
    ) -> std::result::Result<Loaded<V>, Carried<E>> {
        returned.map(|value| self.value(value)).map_err(|error| Carried::new(error, describe))
    }

    /// What a function returned that can fail, of a value that may not exist.
    ///
    /// # Errors
    /// Its own.
    pub fn fallible_optional<V, E: Send + 'static>(
        self,
        returned: std::result::Result<Option<V>, E>,
        describe: fn(&E) -> String,
    ) -> std::result::Result<Loaded<V>, Carried<E>> {
        returned.map(|value| self.value_or_none(value)).map_err(|error| Carried::new(error, describe))
    }

    /// The options of a value that is set and not loaded.
    ///
    /// # Errors
    /// For tags that are none.
    pub fn on(self, options: &EntryOptions) -> Result<EntryOptions> {
        let mut options = options.clone();
        if !self.tags.is_empty() {
            options.tags = Tags::new(options.tags.iter().chain(self.tags.iter().map(String::as_str)))?;
        }
        options.ttl = self.ttl.unwrap_or(options.ttl);
        Ok(options)
    }

    fn value<V>(self, value: V) -> Loaded<V> {
        let ttl = self.ttl;
        self.with_tags(Loaded::new(value), ttl)
    }

    fn value_or_none<V>(self, value: Option<V>) -> Loaded<V> {
        match value {
            Some(value) => self.value(value),
            None if self.keeps_none => {
                let ttl = self.negative_ttl;
                self.with_tags(Loaded::absent(), ttl)
            }
            None => Loaded::absent().do_not_store(),
        }
    }

    fn with_tags<V>(self, loaded: Loaded<V>, ttl: Option<Duration>) -> Loaded<V> {
        let loaded = self.tags.into_iter().fold(loaded, Loaded::tag);
        match ttl {
            Some(ttl) => loaded.ttl(ttl),
            None => loaded,
        }
    }
}

/// The options of a cache's entries, without a copy.
pub fn defaults<V: Value>(cache: &FunctionCache<V>) -> &EntryOptions {
    cache.defaults()
}

/// The value of a key, or the body's. `make` copies the arguments; a hit doesn't need it.
///
/// # Errors
/// Those of [`Cache::get_or_load_with`].
pub async fn load<V, F, Fut, E>(
    cache: &FunctionCache<V>,
    key: &EntryKey,
    options: &EntryOptions,
    make: impl FnOnce() -> F,
) -> Result<Option<V>>
where
    V: Value,
    F: FnOnce(LoadContext<V>) -> Fut + Send + 'static,
    Fut: Future<Output = std::result::Result<Loaded<V>, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    cache.get_or_load_lazily(key, options, make).await
}

/// The body's value, whatever is cached.
///
/// # Errors
/// Those of [`Cache::reload`].
pub async fn reload<V, F, Fut, E>(
    cache: &FunctionCache<V>,
    key: &EntryKey,
    options: &EntryOptions,
    make: impl FnOnce() -> F,
) -> Result<Option<V>>
where
    V: Value,
    F: FnOnce(LoadContext<V>) -> Fut + Send + 'static,
    Fut: Future<Output = std::result::Result<Loaded<V>, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    absence(cache.reload(key, options, make()).await)
}

/// [`load`] for a body that blocks.
///
/// # Errors
/// As there.
pub fn load_blocking<V, F, E>(
    cache: &FunctionCache<V>,
    key: &EntryKey,
    options: &EntryOptions,
    make: impl FnOnce() -> F,
) -> Result<Option<V>>
where
    V: Value,
    F: FnOnce() -> std::result::Result<Loaded<V>, E> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    blocking(cache).get_or_load_lazily(key, options, make)
}

/// [`reload`] for a body that blocks.
///
/// # Errors
/// As there.
pub fn reload_blocking<V, F, E>(
    cache: &FunctionCache<V>,
    key: &EntryKey,
    options: &EntryOptions,
    make: impl FnOnce() -> F,
) -> Result<Option<V>>
where
    V: Value,
    F: FnOnce() -> std::result::Result<Loaded<V>, E> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    absence(blocking(cache).reload(key, options, make()))
}

/// The cache for a function that doesn't await.
pub fn blocking<V: Value>(cache: &FunctionCache<V>) -> Blocking<EntryKey, V> {
    cache.blocking()
}

fn absence<V>(reloaded: Result<V>) -> Result<Option<V>> {
    match reloaded {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Called before a function that can't fail runs its body without the cache.
///
/// # Panics
/// When the body did: running it again would panic again.
pub fn fall_back(function: &'static str, error: &Error) {
    match error.kind() {
        ErrorKind::LoaderPanicked => panic!("{function} panicked: {error}"),
        _ => tracing::warn!(function, %error, "the cache failed; the function runs without it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_path_becomes_a_namespace_and_no_two_the_same() {
        assert_eq!(namespace_of("app::users", "find").as_str(), "app::users::find");
        let odd = namespace_of("app::Repo<(u8, &str)>", "find");
        assert!(odd.as_str().starts_with("app::Repou8str::find."), "{odd}");
        assert_ne!(odd, namespace_of("app::Repo<u8, &str>", "find"));
        let long = namespace_of(&"long::".repeat(100), "find");
        assert_eq!(long.as_str().len(), NAMESPACE_BYTES_MAX);
        assert_ne!(long, namespace_of(&"long::".repeat(101), "find"));
    }
}
