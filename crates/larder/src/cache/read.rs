//! The read path, top to bottom: L1, then a flight (`wait.rs`).
//!
//! The hit is synchronous inside and allocates nothing; everything else is boxed, so that the future of a
//! hit stays small.

use super::flight::{Answer, Purpose};
use super::load::Mode;
use super::loader::{LoadContext, Loaded, Source, from_option};
use super::{Cache, Key, Shared, Value};
use crate::clock::NEVER_MS;
use crate::entry::Tags;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::l1::{EvictReason, Freshness, Met, Resident, Seen, Space};
use crate::options::EntryOptions;
use crate::stamp::Stamp;
use crate::stats::Count;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::time::Duration;

/// Whether a read without a loader may be answered with a stale value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stale {
    /// No: what is past its TTL is a miss.
    #[default]
    Refuse,
    /// Yes, as long as it is not physically expired.
    Allow,
}

/// A value and what larder knows of it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Hit<V> {
    /// The value.
    pub value: V,
    /// Whether it is past its TTL.
    pub is_stale: bool,
    /// How long ago it was made, by the wall clock; 0 where the clock went back since.
    pub age: Duration,
    /// How long it stays fresh; `None`: for ever.
    pub ttl_left: Option<Duration>,
    /// For how long its TTL has been over; 0 for a fresh one.
    pub stale_for: Duration,
    /// Its tags.
    pub tags: Tags,
    /// Its version.
    pub stamp: Stamp,
    /// Where it was found: "l1" or the name of a tier.
    pub tier: String,
}

/// Shows everything but the value, which may be a secret.
impl<V> std::fmt::Debug for Hit<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Hit { value: _, is_stale, age, ttl_left, stale_for, tags, stamp, tier } = self;
        write!(
            f,
            "Hit {{ is_stale: {is_stale}, age: {age:?}, ttl_left: {ttl_left:?}, stale_for: {stale_for:?}, tags: {tags:?}, stamp: {stamp:?}, tier: {tier} }}"
        )
    }
}

/// What a read does with the entry it met in L1.
pub(super) enum Step<V> {
    /// Serve this; `None` is a remembered absence.
    Serve(Option<V>),
    /// Serve this and refresh in the background. Boxed, so that what a hit returns is small.
    Refresh(Box<Seen<V>>),
    /// Nothing may be served yet; the stale entry may be, should the load fail.
    Load(Option<Box<Seen<V>>>),
}

/// An entry that is not simply fresh.
type Aged<V> = (Freshness, Seen<V>);

impl<K: Key, V: Value> Cache<K, V> {
    /// The fresh value of a key in L1, without asking the tiers. Never waits.
    pub fn peek<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        if self.space.is_unbound() {
            return self.view().ok()?.peek(key);
        }
        self.shared.look_fresh(&self.space, key, &self.defaults).flatten()
    }

    /// The fresh value of a key, from L1 or a tier. A tier that fails is a miss.
    ///
    /// # Cancellation
    /// Dropping the future stops nothing: the tiers are asked by a task of larder's, once for all callers.
    ///
    /// # Cost
    /// A hit in L1: no allocation, one clone of the value. A miss with no tier costs as much.
    pub async fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if self.space.is_unbound() {
            return Box::pin(self.lookup(key, Stale::Refuse)).await.map(|hit| hit.value);
        }
        if let Some(value) = self.shared.look_fresh(&self.space, key, &self.defaults) {
            return value;
        }
        if self.shared.tiers.is_empty() {
            return None;
        }
        let answer = Box::pin(self.look_below(key.to_owned())).await?;
        if answer.is_stale { None } else { answer.value }
    }

    /// [`get`](Self::get) with what larder knows of the value, and a choice about stale ones.
    pub async fn lookup<Q>(&self, key: &Q, stale: Stale) -> Option<Hit<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let this = &*self.view().ok()?;
        let shared = &this.shared;
        let now = shared.now();
        let in_l1 = shared.l1.get(&this.space, key, now.mono_ms, |resident| {
            resident.touch(now.mono_ms, || fastrand::u64(..));
            // Before the copy is taken, since it slides what slides.
            let freshness = resident.freshness(now.mono_ms, &this.defaults);
            (freshness, resident.seen(now), resident.fresh_ms_left(now.mono_ms))
        });
        let in_l1 = match in_l1 {
            Some((Freshness::Fresh | Freshness::RefreshDue, seen, left_ms)) => {
                shared.counters.add(Count::Hit);
                return seen.value.map(|value| this.hit(value, &seen.meta, false, left_ms, "l1"));
            }
            Some((Freshness::Gone, ..)) | None => None,
            Some((_, seen, _)) => Some(seen),
        };
        // A tier may have a fresher one; the stale one is the fallback.
        let below = Box::pin(this.look_below(key.to_owned())).await;
        match (below, in_l1.filter(|_| stale == Stale::Allow)) {
            (Some(answer), _) if !answer.is_stale => this.hit_below(answer),
            (_, Some(seen)) => {
                shared.counters.add(Count::HitStale);
                seen.value.map(|value| this.hit(value, &seen.meta, true, Some(0), "l1"))
            }
            (Some(answer), None) if stale == Stale::Allow => this.hit_below(answer),
            _ => {
                shared.counters.add(Count::Miss);
                None
            }
        }
    }

    fn hit_below(&self, answer: Answer<V>) -> Option<Hit<V>> {
        // Nothing below L1 has position 0: it was published there while this caller looked for a flight.
        let tier = match usize::from(answer.from_tier) {
            0 => "l1",
            position => self.shared.tiers[position - 1].name(),
        };
        let left_ms = match answer.meta.fresh_until_ms {
            NEVER_MS => None,
            until => Some(until.saturating_sub(self.shared.clock.wall_ms())),
        };
        Some(self.hit(answer.value?, &answer.meta, answer.is_stale, left_ms, tier))
    }

    fn hit(
        &self,
        value: V,
        meta: &crate::entry::Meta,
        is_stale: bool,
        fresh_ms_left: Option<u64>,
        tier: &str,
    ) -> Hit<V> {
        Hit {
            value,
            is_stale,
            age: Duration::from_millis(self.shared.clock.wall_ms().saturating_sub(meta.created_ms)),
            ttl_left: fresh_ms_left.map(Duration::from_millis),
            stale_for: Duration::from_millis(self.shared.clock.wall_ms().saturating_sub(meta.fresh_until_ms)),
            tags: meta.tags.clone(),
            stamp: meta.stamp,
            tier: tier.to_owned(),
        }
    }

    /// Whether a fresh value is in L1 or a tier.
    pub async fn exists<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.get(key).await.is_some()
    }

    /// The values of many keys, in their order. The tiers are asked once for all that L1 lacks.
    pub async fn get_many(&self, keys: &[K]) -> Vec<Option<V>> {
        let Ok(this) = self.view() else { return keys.iter().map(|_| None).collect() };
        let values = this.many(keys, &this.defaults, Source::Tiers, Purpose::Lookup).await;
        values.into_iter().map(|value| value.unwrap_or(None)).collect()
    }

    /// The value of a key; where it is missing, the loader's, run once for all callers.
    ///
    /// # Errors
    /// [`ErrorKind::Loader`] or [`LoaderPanicked`](ErrorKind::LoaderPanicked), the same for every caller
    /// that waited; [`Timeout`](ErrorKind::Timeout) after
    /// [`load_timeout_hard`](EntryOptions#structfield.load_timeout_hard);
    /// [`NotFound`](ErrorKind::NotFound) when the loader says that there is no such value;
    /// [`NestedLoad`](ErrorKind::NestedLoad) when the loader waits for itself;
    /// [`Overloaded`](ErrorKind::Overloaded) at a bound. None of them where a stale value may be served.
    ///
    /// # Cancellation
    /// The load runs in a task of its own: dropping this future, or all that wait, neither stops nor
    /// delays it.
    pub async fn get_or_load<Q, F, Fut, T, E>(&self, key: &Q, load: F) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce(LoadContext<V>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: Into<BoxError>,
    {
        if self.space.is_unbound() {
            return Box::pin(self.get_or_load_with(key, &self.defaults, load)).await;
        }
        match self.shared.look(&self.space, key, &self.defaults) {
            Step::Serve(Some(value)) => Ok(value),
            step => {
                let value =
                    Box::pin(self.after(key.to_owned(), step, Source::one(load), &self.defaults)).await?;
                value.ok_or_else(not_found)
            }
        }
    }

    /// [`get_or_load`](Self::get_or_load) with options for this call. A caller that joins a load under way
    /// waits by its own timeouts; the entry is kept by those of the caller that started it.
    ///
    /// # Errors
    /// As there, and [`ErrorKind::Config`] for invalid options.
    pub async fn get_or_load_with<Q, F, Fut, T, E>(
        &self,
        key: &Q,
        options: &EntryOptions,
        load: F,
    ) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce(LoadContext<V>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: Into<BoxError>,
    {
        options.validate()?;
        let this = &*self.view()?;
        let step = this.shared.look(&this.space, key, options);
        Box::pin(this.after(key.to_owned(), step, Source::one(load), options)).await?.ok_or_else(not_found)
    }

    /// [`get_or_load_with`](Self::get_or_load_with) for values that may not exist: `None` from the loader
    /// is remembered for [`negative_ttl`](EntryOptions#structfield.negative_ttl).
    ///
    /// # Errors
    /// As there, without [`ErrorKind::NotFound`].
    pub async fn get_or_load_optional<Q, F, Fut, E>(
        &self,
        key: &Q,
        options: &EntryOptions,
        load: F,
    ) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce(LoadContext<V>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<BoxError>,
    {
        options.validate()?;
        let this = &*self.view()?;
        let step = this.shared.look(&this.space, key, options);
        let source = Source::one(|context| async move { load(context).await.map(from_option) });
        Box::pin(this.after(key.to_owned(), step, source, options)).await
    }

    /// [`get_or_load_with`](Self::get_or_load_with) with a loader that is made when it is needed: a hit
    /// costs nothing of what the loader will own. `None` is an absence.
    #[cfg(feature = "macros")]
    pub(crate) async fn get_or_load_lazily<M, F, Fut, T, E>(
        &self,
        key: &K,
        options: &EntryOptions,
        make: M,
    ) -> Result<Option<V>>
    where
        M: FnOnce() -> F,
        F: FnOnce(LoadContext<V>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: Into<BoxError>,
    {
        options.validate()?;
        let this = &*self.view()?;
        match this.shared.look(&this.space, key, options) {
            Step::Serve(value) => Ok(value),
            step => Box::pin(this.after(key.clone(), step, Source::one(make()), options)).await,
        }
    }

    /// [`get_or_load`](Self::get_or_load) for a loader that can't fail.
    ///
    /// # Errors
    /// As there: the loader may still panic or take too long.
    pub async fn get_or_insert_with<Q, F, Fut>(&self, key: &Q, make: F) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = V> + Send + 'static,
    {
        self.get_or_load(key, |_| async move { Ok::<_, BoxError>(make().await) }).await
    }

    /// Runs the loader, whatever is cached, and returns what it found. Joins no load that is under way;
    /// callers who come later join this one.
    ///
    /// # Errors
    /// As [`get_or_load_with`](Self::get_or_load_with).
    pub async fn reload<Q, F, Fut, T, E>(&self, key: &Q, options: &EntryOptions, load: F) -> Result<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
        F: FnOnce(LoadContext<V>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: Into<BoxError>,
    {
        options.validate()?;
        let this = &*self.view()?;
        let met = this.shared.l1.seen(&this.space, key, this.shared.now()).map(Box::new);
        let wait = this.wait(key.to_owned(), Source::one(load), options, met, Mode::Reload);
        Box::pin(wait).await?.and_then(|answer| answer.value).ok_or_else(not_found)
    }

    /// Gives an entry a new TTL from now, in all tiers; returns whether there was one.
    ///
    /// # Errors
    /// As [`get_or_load`](Self::get_or_load), for the tiers.
    pub async fn expire<Q>(&self, key: &Q, ttl: Duration) -> Result<bool>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let this = &*self.view()?;
        if ttl.is_zero() {
            return Ok(this.remove(key).await?.existed);
        }
        if this.lookup(key, Stale::Refuse).await.is_none() {
            return Ok(false);
        }
        let load =
            move |_: LoadContext<V>| async move { Ok::<_, BoxError>(Loaded::<V>::not_modified().ttl(ttl)) };
        match this.reload(key, &this.defaults, load).await {
            Ok(_) => Ok(true),
            // It was removed since it was looked up: "not modified" had no previous value.
            Err(error) if error.kind() == ErrorKind::Loader => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The values of many keys; the loader is called once with all that are missing and not being loaded.
    /// A key that it doesn't return is remembered as absent.
    ///
    /// # Errors
    /// For each key on its own, as [`get_or_load`](Self::get_or_load).
    pub async fn get_many_or_load<F, Fut, T, E>(
        &self,
        keys: &[K],
        options: &EntryOptions,
        load: F,
    ) -> Vec<Result<Option<V>>>
    where
        F: FnOnce(Vec<K>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<HashMap<K, T>, E>> + Send + 'static,
        T: Into<Loaded<V>>,
        E: Into<BoxError>,
    {
        let view = options.validate().and_then(|()| self.view());
        let this = match &view {
            Ok(view) => &**view,
            Err(error) => return keys.iter().map(|_| Err(error.clone())).collect(),
        };
        let source = Source::Many(Box::new(move |missing| {
            Box::pin(async move {
                let found = load(missing).await.map_err(Into::into)?;
                Ok(found.into_iter().map(|(key, loaded)| (key, loaded.into())).collect())
            })
        }));
        this.many(keys, options, source, Purpose::Load).await
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    /// The fresh value in L1, or the absence that is remembered there.
    #[inline]
    pub(super) fn look_fresh<Q>(&self, space: &Space, key: &Q, options: &EntryOptions) -> Option<Option<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let now_ms = self.clock.coarse_ms();
        let met: Met<V, ()> = self.l1.hit(
            space,
            key,
            now_ms,
            || self.counters.mine().count(Count::Hit),
            |resident| self.weigh_fresh(resident, options),
        );
        match met {
            Met::Value(value) => {
                self.counters.add(Count::Hit);
                Some(Some(value))
            }
            Met::Absence => {
                self.counters.add(Count::HitNegative);
                Some(None)
            }
            Met::Aged(()) | Met::Invalid | Met::Nothing => {
                self.counters.add(Count::Miss);
                None
            }
        }
    }

    /// The slow half of [`look_fresh`](Self::look_fresh).
    #[cold]
    fn weigh_fresh(&self, resident: &Resident<V>, options: &EntryOptions) -> Met<V, ()> {
        let now_ms = self.clock.mono_ms();
        resident.touch(now_ms, || fastrand::u64(..));
        match resident.freshness(now_ms, options) {
            Freshness::Fresh | Freshness::RefreshDue => Met::fresh(&resident.value),
            _ => Met::Aged(()),
        }
    }

    /// Looks into L1 and decides what a read does with what is there.
    #[inline]
    pub(super) fn look<Q>(&self, space: &Space, key: &Q, options: &EntryOptions) -> Step<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let now_ms = self.clock.coarse_ms();
        let met = self.l1.hit(
            space,
            key,
            now_ms,
            || self.counters.mine().count(Count::Hit),
            |resident| self.weigh_up(resident, options),
        );
        match met {
            Met::Value(value) => {
                self.counters.add(Count::Hit);
                Step::Serve(Some(value))
            }
            Met::Absence => {
                self.counters.add(Count::HitNegative);
                Step::Serve(None)
            }
            Met::Aged(aged) => self.step(space, key, *aged),
            Met::Invalid | Met::Nothing => {
                self.counters.add(Count::Miss);
                Step::Load(None)
            }
        }
    }

    /// The value, if it is fresh and nothing else is to be done; else what is to be decided by.
    #[cold]
    fn weigh_up(&self, resident: &Resident<V>, options: &EntryOptions) -> Met<V, Box<Aged<V>>> {
        let now = self.now();
        resident.touch(now.mono_ms, || fastrand::u64(..));
        match resident.freshness(now.mono_ms, options) {
            Freshness::Fresh => Met::fresh(&resident.value),
            freshness => Met::Aged(Box::new((freshness, resident.seen(now)))),
        }
    }

    /// The slow half of [`look`](Self::look): something about the entry's time is to be decided.
    #[cold]
    fn step<Q>(&self, space: &Space, key: &Q, (freshness, seen): Aged<V>) -> Step<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.counters.add(match freshness {
            Freshness::Fresh | Freshness::RefreshDue if seen.value.is_none() => Count::HitNegative,
            Freshness::Fresh | Freshness::RefreshDue => Count::Hit,
            Freshness::Revalidate | Freshness::Throttled => Count::HitStale,
            Freshness::OnError | Freshness::Gone => Count::Miss,
        });
        match freshness {
            Freshness::Fresh | Freshness::Throttled => Step::Serve(seen.value),
            Freshness::RefreshDue | Freshness::Revalidate => Step::Refresh(Box::new(seen)),
            Freshness::OnError => Step::Load(Some(Box::new(seen))),
            Freshness::Gone => {
                self.l1.evict(space, key, seen.meta.stamp, EvictReason::Expired);
                Step::Load(None)
            }
        }
    }
}

fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "load").message("the loader found no such value")
}
