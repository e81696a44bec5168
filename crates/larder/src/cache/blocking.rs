//! The cache for callers that don't await.

use super::{Cache, Key, LoadContext, Loaded, Removal, Value, Written};
use crate::error::{BoxError, Result};
use crate::options::EntryOptions;
use std::borrow::Borrow;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A view of a [`Cache`] whose methods block the calling thread.
///
/// Loads and tier calls run on larder's own runtime, so it works in and outside of any other, on a
/// current-thread runtime too. On an async worker thread prefer the async methods: this one blocks the
/// worker.
#[derive(Debug)]
pub struct Blocking<K: Hash + Eq, V: Clone> {
    cache: Cache<K, V>,
}

impl<K: Hash + Eq, V: Clone> Clone for Blocking<K, V> {
    fn clone(&self) -> Self {
        Blocking { cache: self.cache.clone() }
    }
}

impl<K: Key, V: Value> Blocking<K, V> {
    pub(super) fn new(cache: Cache<K, V>) -> Self {
        Blocking { cache }
    }

    /// [`Cache::get`].
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        wait(self.cache.get(key))
    }

    /// [`Cache::get_or_load`] with a loader that blocks; it runs on a thread for blocking work, once for
    /// all callers.
    ///
    /// # Errors
    /// As there.
    pub fn get_or_load<Q, F, T, E>(&self, key: &Q, load: F) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce() -> Result<T, E> + Send + 'static,
        T: Into<Loaded<V>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        wait(self.cache.get_or_load(key, off_thread(load)))
    }

    /// [`Cache::get_or_load_with`] with a loader that blocks.
    ///
    /// # Errors
    /// As there.
    pub fn get_or_load_with<Q, F, T, E>(&self, key: &Q, options: &EntryOptions, load: F) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce() -> Result<T, E> + Send + 'static,
        T: Into<Loaded<V>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        wait(self.cache.get_or_load_with(key, options, off_thread(load)))
    }

    /// [`Cache::get_or_load_optional`] with a loader that blocks.
    ///
    /// # Errors
    /// As there.
    pub fn get_or_load_optional<Q, F, E>(&self, key: &Q, options: &EntryOptions, load: F) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce() -> Result<Option<V>, E> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        wait(self.cache.get_or_load_optional(key, options, off_thread(load)))
    }

    /// [`Cache::reload`] with a loader that blocks.
    ///
    /// # Errors
    /// As there.
    pub fn reload<Q, F, T, E>(&self, key: &Q, options: &EntryOptions, load: F) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce() -> Result<T, E> + Send + 'static,
        T: Into<Loaded<V>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        wait(self.cache.reload(key, options, off_thread(load)))
    }

    /// [`Cache::get_or_load_lazily`] with a loader that blocks.
    #[cfg(feature = "macros")]
    pub(crate) fn get_or_load_lazily<M, F, T, E>(
        &self,
        key: &K,
        options: &EntryOptions,
        make: M,
    ) -> Result<Option<V>>
    where
        M: FnOnce() -> F,
        F: FnOnce() -> Result<T, E> + Send + 'static,
        T: Into<Loaded<V>> + Send + 'static,
        E: Into<BoxError> + Send + 'static,
    {
        wait(self.cache.get_or_load_lazily(key, options, || off_thread(make())))
    }

    /// [`Cache::set`].
    ///
    /// # Errors
    /// As there.
    pub fn set(&self, key: K, value: V) -> Result<Written> {
        wait(self.cache.set(key, value))
    }

    /// [`Cache::set_with`].
    ///
    /// # Errors
    /// As there.
    pub fn set_with(&self, key: K, value: V, options: &EntryOptions) -> Result<Written> {
        wait(self.cache.set_with(key, value, options))
    }

    /// [`Cache::remove`].
    ///
    /// # Errors
    /// As there.
    pub fn remove<Q>(&self, key: &Q) -> Result<Removal>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        wait(self.cache.remove(key))
    }

    /// [`Cache::remove_tag`].
    ///
    /// # Errors
    /// As there.
    pub fn remove_tag(&self, tag: &str) -> Result<Removal> {
        wait(self.cache.remove_tag(tag))
    }

    /// [`Cache::clear`].
    ///
    /// # Errors
    /// As there.
    pub fn clear(&self) -> Result<Removal> {
        wait(self.cache.clear())
    }

    /// [`Cache::close`].
    ///
    /// # Errors
    /// As there.
    pub fn close(&self) -> Result<()> {
        wait(self.cache.close())
    }
}

/// A loader that runs a blocking one where it may block: on a thread of the runtime's pool, or where the
/// caller is itself a loader, on a thread of its own. The pool is bounded and its threads may all be busy
/// waiting for such inner loads, which would then never get one.
fn off_thread<V, T, E>(
    load: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> impl FnOnce(LoadContext<V>) -> BoxFuture<Result<T, BoxError>> + Send + 'static
where
    T: Send + 'static,
    E: Into<BoxError> + Send + 'static,
{
    let is_nested = crate::sync::current_flight::get() != 0;
    move |_| {
        Box::pin(async move {
            let flight = crate::sync::current_flight::get();
            let tenant = crate::tenant::current();
            let run = move || {
                // A load inside of the loader blocks this thread, and has to be known as this flight's.
                crate::sync::current_flight::set(flight);
                let load = || crate::tenant::maybe_with(tenant, load);
                let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
                crate::sync::current_flight::set(0);
                loaded
            };
            let ran =
                if is_nested { on_own_thread(run).await? } else { tokio::task::spawn_blocking(run).await? };
            match ran {
                Ok(loaded) => loaded.map_err(Into::into),
                // Goes on as a panic of the flight, which tells its waiters.
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

async fn on_own_thread<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T, BoxError> {
    let (done, wait) = tokio::sync::oneshot::channel();
    // What the load spawns or sleeps on must find the runtime that it would find on a thread of the pool.
    let runtime = tokio::runtime::Handle::current();
    let thread = std::thread::Builder::new().name("larder-nested".to_owned());
    thread.spawn(move || {
        let _runtime = runtime.enter();
        // An error: the flight was given up, and nobody waits for the value.
        drop(done.send(run()));
    })?;
    Ok(wait.await?)
}

#[cfg(not(larder_shuttle))]
fn wait<T>(future: impl Future<Output = T>) -> T {
    crate::runtime::block_on(future)
}

#[cfg(larder_shuttle)]
fn wait<T>(future: impl Future<Output = T>) -> T {
    shuttle::future::block_on(future)
}
