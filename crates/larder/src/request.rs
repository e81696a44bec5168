//! A cache that lives for one request: what is loaded twice while one request is served is loaded once.
//!
//! Owns the values of a [`scope`] and who waits for their loads. They need no TTL, no tags and no tiers: they go
//! with the scope, however it ends. Loads run in the caller's own task and may borrow from it. The loads of a
//! [`Cache`](crate::Cache) run in none: what outlives the request must not come from its cache.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> larder::Result<()> {
//! use larder::request::{self, Memo};
//!
//! static USERS: Memo<u64, String> = Memo::new();
//! async fn user(id: u64) -> larder::Result<String> {
//!     USERS.get_or_load(&id, || async { Ok::<_, std::io::Error>(format!("user {id}")) }).await
//! }
//!
//! request::scope(async {
//!     let (a, b) = tokio::join!(user(7), user(7)); // one load
//!     assert_eq!(a?, b?);
//!     // A child that is spawned takes the scope along.
//!     let scope = request::Scope::current().expect("inside of a scope");
//!     let child = tokio::spawn(scope.in_scope(user(7)));
//!     assert_eq!(child.await.expect("it does not panic")?, "user 7");
//!     Ok(())
//! })
//! .await
//! # }
//! ```

use crate::cache::{Edge, catch_panic, in_flight, next_flight};
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::sync::{Mutex, current_flight};
use std::any::Any;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use tokio::sync::OnceCell;

/// Most values of one [`scope`], over all memos: a request that loads more is a batch job, which a cache for
/// requests must not turn into a leak. Past it loads run each for itself and are not kept.
pub const VALUES_MAX: usize = 10_000;

tokio::task_local! {
    static CURRENT: Scope;
}

/// Runs a future with a cache of its own, which ends with it: when it is ready, panics or is dropped. From then
/// on the scope keeps nothing, also for children that still hold it. An inner scope hides the outer one.
pub async fn scope<F: Future>(future: F) -> F::Output {
    scope_with(VALUES_MAX, future).await
}

/// [`scope`] with another limit than [`VALUES_MAX`].
pub async fn scope_with<F: Future>(values_max: usize, future: F) -> F::Output {
    /// Ends the scope also when the future panics or is dropped.
    struct End(Scope);
    impl Drop for End {
        fn drop(&mut self) {
            self.0.0.end();
        }
    }
    let end = End(Scope(Arc::new(Values { values_max, ..Values::default() })));
    end.0.in_scope(future).await
}

/// A handle of a running [`scope`], to take along into children. It doesn't keep the scope alive.
#[derive(Clone)]
pub struct Scope(Arc<Values>);

impl Scope {
    /// The innermost scope around the call.
    pub fn current() -> Option<Scope> {
        CURRENT.try_with(Scope::clone).ok()
    }

    /// The future inside of this scope, wherever it runs: `tokio::spawn(scope.in_scope(child))`.
    pub fn in_scope<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        CURRENT.scope(self.clone(), future)
    }

    /// How many values it holds, loads under way included; none once it has ended.
    pub fn len(&self) -> usize {
        if self.0.has_ended.load(SeqCst) { 0 } else { self.0.count.load(SeqCst) }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Shows no values.
impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope").field("values", &self.len()).finish()
    }
}

/// What one kind of thing is called in every request: a static, with one map of values per [`scope`].
///
/// Two memos never share a value, also where their types are the same.
pub struct Memo<K, V> {
    id: OnceLock<u64>,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Memo<K, V>
where
    K: Hash + Eq + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A memo without values.
    #[expect(clippy::new_without_default, reason = "one that is made for a call has no values to find")]
    pub const fn new() -> Self {
        Memo { id: OnceLock::new(), types: PhantomData }
    }

    /// The value of a key in this request; where it is missing, the loader's, run once for all who ask meanwhile.
    ///
    /// Outside of a [`scope`], in one that has ended, or past its limit, the loader runs for this call alone and
    /// nothing is kept: what is right inside of a request is right outside, only slower.
    ///
    /// # Errors
    /// [`ErrorKind::Loader`] or [`LoaderPanicked`](ErrorKind::LoaderPanicked), the same for all who waited; it
    /// is not kept, and the next call loads again. [`NestedLoad`](ErrorKind::NestedLoad) when the loader waits
    /// for itself.
    ///
    /// # Cancellation
    /// Dropping the caller whose loader runs drops the load; the next who waits runs its own.
    pub async fn get_or_load<Q, F, Fut, E>(&self, key: &Q, load: F) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<V, E>>,
        E: Into<BoxError>,
    {
        let kept = self.values().and_then(|(values, table)| {
            let cell = values.cell(&table, key)?;
            Some((values, table, cell))
        });
        let Some((values, table, cell)) = kept else { return run(next_flight(), load).await };
        // A load that waits for itself, through any number of others, would wait for ever.
        let _edge = match current_flight::get() {
            0 => None,
            _ if cell.value.initialized() => None,
            from => Some(Edge::add(from, cell.flight)?),
        };
        let outcome = cell.value.get_or_init(|| run(cell.flight, load)).await.clone();
        if outcome.is_err() {
            values.forget(&table, key, &cell);
        }
        outcome
    }

    /// The value of a key, if this request has loaded it.
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (_, table) = self.values()?;
        let cell = table.0.lock().get(key).map(Arc::clone)?;
        cell.value.get()?.as_ref().ok().cloned()
    }

    /// Forgets a value; a load under way is not kept either. Returns whether one was there.
    pub fn remove<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let Some((values, table)) = self.values() else { return false };
        let removed = table.0.lock().remove(key);
        if removed.is_some() {
            values.count.fetch_sub(1, SeqCst);
        }
        removed.is_some_and(|cell| cell.value.initialized())
    }

    /// The current scope and this memo's values in it.
    fn values(&self) -> Option<OfMemo<K, V>> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let values = Scope::current()?.0;
        let id = *self.id.get_or_init(|| NEXT.fetch_add(1, Relaxed));
        let table = {
            let mut tables = values.tables.lock();
            // Under the lock that the end of the scope takes: later nothing is kept.
            if values.has_ended.load(SeqCst) {
                return None;
            }
            Arc::clone(tables.entry(id).or_insert_with(|| Arc::new(Table::<K, V>::default())))
        };
        let table = table.downcast().expect("a memo has one type of key and value");
        Some((values, table))
    }
}

impl<K, V> fmt::Debug for Memo<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memo(..)")
    }
}

/// What a scope holds.
#[derive(Default)]
struct Values {
    /// By memo, each a [`Table`].
    tables: Mutex<HashMap<u64, Arc<dyn Any + Send + Sync>>>,
    count: AtomicUsize,
    values_max: usize,
    has_ended: AtomicBool,
}

/// A scope, and one memo's values in it.
type OfMemo<K, V> = (Arc<Values>, Arc<Table<K, V>>);

struct Table<K, V>(Mutex<HashMap<K, Arc<Cell<V>>>>);

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Table(Mutex::default())
    }
}

/// A value, or the load of it.
struct Cell<V> {
    flight: u64,
    /// An error stays only until those who waited have it.
    value: OnceCell<Result<V>>,
}

impl Values {
    /// The cell of a key; `None` past the limit.
    fn cell<K, V, Q>(&self, table: &Table<K, V>, key: &Q) -> Option<Arc<Cell<V>>>
    where
        K: Hash + Eq + Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let mut cells = table.0.lock();
        if let Some(cell) = cells.get(key) {
            return Some(Arc::clone(cell));
        }
        if self.count.fetch_add(1, SeqCst) >= self.values_max {
            self.count.fetch_sub(1, SeqCst);
            return None;
        }
        let cell = Arc::new(Cell { flight: next_flight(), value: OnceCell::new() });
        cells.insert(key.to_owned(), Arc::clone(&cell));
        Some(cell)
    }

    /// Drops a failed load, unless a later one has its place.
    fn forget<K, V, Q>(&self, table: &Table<K, V>, key: &Q, failed: &Arc<Cell<V>>)
    where
        K: Hash + Eq + Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let mut cells = table.0.lock();
        if cells.get(key).is_some_and(|cell| Arc::ptr_eq(cell, failed)) {
            cells.remove(key);
            self.count.fetch_sub(1, SeqCst);
        }
    }

    fn end(&self) {
        let tables = {
            let mut tables = self.tables.lock();
            self.has_ended.store(true, SeqCst);
            std::mem::take(&mut *tables)
        };
        // Outside of the lock: values may ask for others when they are dropped.
        drop(tables);
    }
}

/// Runs a loader as the flight of this number.
async fn run<V, F, Fut, E>(flight: u64, load: F) -> Result<V>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<V, E>>,
    E: Into<BoxError>,
{
    let call = async { load().await.map_err(Into::into) };
    match in_flight(flight, Box::pin(catch_panic(call))).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(crate::cache::loader_failed(source)),
        Err(panic) => Err(Error::new(ErrorKind::LoaderPanicked, "load").message(panic)),
    }
}
