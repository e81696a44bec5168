//! The read path, top to bottom: L1, then a flight.
//!
//! The hit is synchronous inside and allocates nothing; everything else is boxed, so that the future of a
//! hit stays small.

use super::flight::{Answer, Boarding, Purpose};
use super::load::{Item, Mode};
use super::loader::{LoadContext, Loaded, Source, from_option};
use super::{Cache, Key, Shared, Value};
use crate::clock::NEVER_MS;
use crate::entry::Tags;
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::l1::{EvictReason, Freshness, Resident, Slot, Space};
use crate::options::EntryOptions;
use crate::stamp::Stamp;
use crate::stats::Count;
use crate::tier::before;
use std::borrow::Borrow;
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
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
        let Hit { value: _, is_stale, age, ttl_left, tags, stamp, tier } = self;
        write!(
            f,
            "Hit {{ is_stale: {is_stale}, age: {age:?}, ttl_left: {ttl_left:?}, tags: {tags:?}, stamp: {stamp:?}, tier: {tier} }}"
        )
    }
}

/// What a read does with the entry it met in L1.
enum Step<V> {
    /// Serve this; `None` is a remembered absence.
    Serve(Option<V>),
    /// Serve this and refresh in the background.
    Refresh(Option<V>, Arc<Resident<V>>),
    /// Nothing may be served yet; the stale entry may be, should the load fail.
    Load(Option<Arc<Resident<V>>>),
}

impl<K: Key, V: Value> Cache<K, V> {
    /// The fresh value of a key in L1, without asking the tiers. Never waits.
    pub fn peek<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
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
        let shared = &self.shared;
        let now_ms = shared.clock.mono_ms();
        let in_l1 = shared.l1.get(&self.space, key, &shared.counters).filter(|there| !there.is_gone(now_ms));
        if let Some(resident) = in_l1 {
            resident.touch(now_ms);
            let is_stale = resident.fresh_ms_left(now_ms) == Some(0);
            if !is_stale || (stale == Stale::Allow && shared.tiers.is_empty()) {
                shared.counters.add(if is_stale { Count::HitStale } else { Count::Hit });
                return self.hit(
                    resident.value.clone()?,
                    &resident.meta,
                    is_stale,
                    resident.fresh_ms_left(now_ms),
                    "l1",
                );
            }
            // A tier may have a fresher one; this one is the fallback.
            let below = Box::pin(self.look_below(key.to_owned())).await.filter(|answer| !answer.is_stale);
            if below.is_none() && stale == Stale::Allow {
                shared.counters.add(Count::HitStale);
                return self.hit(resident.value.clone()?, &resident.meta, true, Some(0), "l1");
            }
            return self.hit_below(below?);
        }
        shared.counters.add(Count::Miss);
        let answer = Box::pin(self.look_below(key.to_owned())).await?;
        if answer.is_stale && stale == Stale::Refuse { None } else { self.hit_below(answer) }
    }

    fn hit_below(&self, answer: Answer<V>) -> Option<Hit<V>> {
        let tier = &self.shared.tiers[usize::from(answer.from_tier) - 1];
        let left_ms = match answer.meta.fresh_until_ms {
            NEVER_MS => None,
            until => Some(until.saturating_sub(self.shared.clock.wall_ms())),
        };
        self.hit(answer.value?, &answer.meta, answer.is_stale, left_ms, tier.name())
    }

    #[expect(clippy::unnecessary_wraps, reason = "every caller returns an option")]
    fn hit(
        &self,
        value: V,
        meta: &crate::entry::Meta,
        is_stale: bool,
        fresh_ms_left: Option<u64>,
        tier: &str,
    ) -> Option<Hit<V>> {
        Some(Hit {
            value,
            is_stale,
            age: Duration::from_millis(self.shared.clock.wall_ms().saturating_sub(meta.created_ms)),
            ttl_left: fresh_ms_left.map(Duration::from_millis),
            tags: meta.tags.clone(),
            stamp: meta.stamp,
            tier: tier.to_owned(),
        })
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
        let values = self.many(keys, &self.defaults, Source::Tiers, Purpose::Lookup).await;
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
        let step = self.shared.look(&self.space, key, options);
        Box::pin(self.after(key.to_owned(), step, Source::one(load), options)).await?.ok_or_else(not_found)
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
        let step = self.shared.look(&self.space, key, options);
        let source = Source::one(|context| async move { load(context).await.map(from_option) });
        Box::pin(self.after(key.to_owned(), step, source, options)).await
    }

    /// [`get_or_load_with`](Self::get_or_load_with) with a loader that is made when it is needed: a hit
    /// costs nothing of what the loader will own. `None` is an absence.
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
        match self.shared.look(&self.space, key, options) {
            Step::Serve(value) => Ok(value),
            step => Box::pin(self.after(key.clone(), step, Source::one(make()), options)).await,
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
        let present = self.shared.l1.get(&self.space, key, &self.shared.counters);
        let wait = self.wait(key.to_owned(), Source::one(load), options, present, Mode::Reload);
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
        if ttl.is_zero() {
            return Ok(self.remove(key).await?.existed);
        }
        if self.lookup(key, Stale::Refuse).await.is_none() {
            return Ok(false);
        }
        let load =
            move |_: LoadContext<V>| async move { Ok::<_, BoxError>(Loaded::<V>::not_modified().ttl(ttl)) };
        match self.reload(key, &self.defaults, load).await {
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
        if let Err(error) = options.validate() {
            return keys.iter().map(|_| Err(error.clone())).collect();
        }
        let source = Source::Many(Box::new(move |missing| {
            Box::pin(async move {
                let found = load(missing).await.map_err(Into::into)?;
                Ok(found.into_iter().map(|(key, loaded)| (key, loaded.into())).collect())
            })
        }));
        self.many(keys, options, source, Purpose::Load).await
    }

    /// Goes on after L1 had no plain hit.
    async fn after(
        &self,
        key: K,
        step: Step<V>,
        source: Source<K, V>,
        options: &EntryOptions,
    ) -> Result<Option<V>> {
        match step {
            Step::Serve(value) => Ok(value),
            Step::Refresh(value, resident) => {
                self.refresh(key, source, options, resident);
                Ok(value)
            }
            Step::Load(stale) => {
                Ok(self.wait(key, source, options, stale, Mode::Fill).await?.and_then(|answer| answer.value))
            }
        }
    }

    /// Starts a load that nobody waits for, unless one is under way.
    fn refresh(&self, key: K, source: Source<K, V>, options: &EntryOptions, resident: Arc<Resident<V>>) {
        let shared = &self.shared;
        let slot = Slot { space: self.space.id, key };
        let boarding =
            shared.flights.board(&slot, Purpose::Load, |_| true, || None::<()>, || shared.l1.ticket());
        if let Boarding::Started(landing) = boarding {
            shared.counters.add(Count::Refresh);
            let item = Item { key: slot.key, landing, previous: Some(resident) };
            self.launch(vec![item], source, options.clone(), Mode::Refresh);
        }
    }

    fn launch(&self, items: Vec<Item<K, V>>, source: Source<K, V>, options: EntryOptions, mode: Mode) {
        let (shared, space) = (Arc::clone(&self.shared), Arc::clone(&self.space));
        crate::runtime::spawn(shared.fly(space, items, source, options, mode));
    }

    /// Asks the tiers, once for all callers.
    async fn look_below(&self, key: K) -> Option<Answer<V>> {
        if self.shared.tiers.is_empty() {
            return None;
        }
        self.wait(key, Source::Tiers, &self.defaults, None, Mode::Fill).await.unwrap_or_default()
    }

    /// Joins or starts the flight of a key and waits for it, within the options' timeouts.
    async fn wait(
        &self,
        key: K,
        source: Source<K, V>,
        options: &EntryOptions,
        stale: Option<Arc<Resident<V>>>,
        mode: Mode,
    ) -> Result<Option<Answer<V>>> {
        let shared = &self.shared;
        let purpose = if let Source::Tiers = source { Purpose::Lookup } else { Purpose::Load };
        let slot = Slot { space: self.space.id, key };
        let mut source = Some(source);
        // A flight that began before this position was refused to this caller.
        let mut begins_at = 0;
        loop {
            let joined_at = shared.l1.ticket().pos;
            let boarding = shared.flights.board(
                &slot,
                purpose,
                |flight| {
                    mode != Mode::Reload
                        && flight.ticket.pos >= begins_at
                        && !shared.l1.moved(&self.space, &slot.key, flight.ticket)
                },
                || if mode == Mode::Fill { self.look_again(&slot.key) } else { None },
                || shared.l1.ticket(),
            );
            let (flight, is_first) = match boarding {
                Boarding::Found(answer) => return Ok(Some(answer)),
                Boarding::Refused(error) => {
                    shared.counters.add(Count::Overloaded);
                    return self.stale_or(&slot.key, &stale, error);
                }
                Boarding::Joined(flight) => {
                    shared.counters.add(Count::Joined);
                    (flight, false)
                }
                Boarding::Started(landing) => {
                    let flight = Arc::clone(landing.flight());
                    let item = Item { key: slot.key.clone(), landing, previous: stale.clone() };
                    let source =
                        source.take().expect("a caller starts one flight: it is always served by it");
                    self.launch(vec![item], source, options.clone(), mode);
                    (flight, true)
                }
            };
            let landed = match flight.wait() {
                Ok(mut waiting) => {
                    let mut left = options.load_timeout_hard;
                    let mut landed = None;
                    if let (Some(soft), Some(_)) = (options.load_timeout_soft, &stale) {
                        landed = before(&shared.clock, soft, &mut waiting).await;
                        if let (None, Ok(answer)) =
                            (&landed, self.stale_or(&slot.key, &stale, timed_out(options)))
                        {
                            return Ok(answer);
                        }
                        left -= soft;
                    }
                    match landed {
                        Some(landed) => Some(landed),
                        None => before(&shared.clock, left, waiting).await,
                    }
                }
                Err(nested) => Some(Err(nested)),
            };
            match landed {
                None => return self.stale_or(&slot.key, &stale, timed_out(options)),
                // The runtime that ran it is gone: the load is this caller's now.
                Some(Err(error)) if error.kind() == ErrorKind::Closed && !is_first => begins_at = 0,
                Some(Ok(Some(answer)))
                    if !is_first && self.came_too_early(&flight.ticket, joined_at, &answer) =>
                {
                    begins_at = shared.l1.ticket().pos;
                }
                Some(landed) => return landed,
            }
        }
    }

    /// Whether a tag of the answer was removed after its load began and, as far as can be told, before this
    /// caller joined.
    fn came_too_early(&self, ticket: &crate::backend::Ticket, joined_at: u64, answer: &Answer<V>) -> bool {
        joined_at > ticket.pos
            && self.shared.l1.fences().tags_moved(&self.space.namespace, &answer.meta.tags, *ticket)
    }

    fn look_again(&self, key: &K) -> Option<Answer<V>> {
        let shared = &self.shared;
        let now_ms = shared.clock.mono_ms();
        let resident = shared.l1.get(&self.space, key, &shared.counters)?;
        let is_servable = !matches!(
            resident.freshness(now_ms, &self.defaults),
            Freshness::Revalidate | Freshness::OnError | Freshness::Gone
        );
        is_servable.then(|| Answer {
            value: resident.value.clone(),
            meta: resident.meta.clone(),
            is_stale: resident.fresh_ms_left(now_ms) == Some(0),
            from_tier: resident.from_tier,
        })
    }

    /// The stale entry, if it still may be served, else the error.
    fn stale_or(&self, key: &K, stale: &Option<Arc<Resident<V>>>, error: Error) -> Result<Option<Answer<V>>> {
        let shared = &self.shared;
        let now_ms = shared.clock.mono_ms();
        match stale {
            Some(resident)
                if !resident.is_gone(now_ms) && shared.l1.is_current(&self.space, key, &resident) =>
            {
                shared.counters.add(Count::StaleOnError);
                let (value, meta) = (resident.value.clone(), resident.meta.clone());
                Ok(Some(Answer { value, meta, is_stale: true, from_tier: resident.from_tier }))
            }
            _ => Err(error),
        }
    }

    /// Many keys: L1 first, then one flight for all that nobody else loads.
    async fn many(
        &self,
        keys: &[K],
        options: &EntryOptions,
        source: Source<K, V>,
        purpose: Purpose,
    ) -> Vec<Result<Option<V>>> {
        let shared = &self.shared;
        let mut results: Vec<Option<Result<Option<V>>>> = Vec::with_capacity(keys.len());
        let mut waiting = Vec::new();
        let mut items = Vec::new();
        for (place, key) in keys.iter().enumerate() {
            let (stale, served) = match purpose {
                Purpose::Lookup => (None, shared.look_fresh(&self.space, key, options)),
                Purpose::Load => match shared.look(&self.space, key, options) {
                    Step::Serve(value) => (None, Some(value)),
                    Step::Refresh(value, resident) => (Some(resident), Some(value)),
                    Step::Load(stale) => (stale, None),
                },
            };
            let is_served = served.is_some();
            results.push(served.map(Ok));
            if is_served && stale.is_none() || purpose == Purpose::Lookup && shared.tiers.is_empty() {
                results[place].get_or_insert(Ok(None));
                continue;
            }
            let slot = Slot { space: self.space.id, key: key.clone() };
            let joined_at = shared.l1.ticket().pos;
            let boarding = shared.flights.board(
                &slot,
                purpose,
                |flight| !shared.l1.moved(&self.space, key, flight.ticket),
                || self.look_again(key),
                || shared.l1.ticket(),
            );
            match boarding {
                Boarding::Started(landing) if is_served => {
                    // A refresh, in the same load as what is missing.
                    items.push(Item { key: key.clone(), landing, previous: stale });
                }
                _ if is_served => {}
                Boarding::Found(answer) => results[place] = Some(Ok(answer.value)),
                Boarding::Refused(error) => {
                    shared.counters.add(Count::Overloaded);
                    results[place] =
                        Some(self.stale_or(key, &stale, error).map(|answer| answer.and_then(|a| a.value)));
                }
                Boarding::Joined(flight) => {
                    shared.counters.add(Count::Joined);
                    waiting.push((place, flight, stale, Some(joined_at)));
                }
                Boarding::Started(landing) => {
                    waiting.push((place, Arc::clone(landing.flight()), stale.clone(), None));
                    items.push(Item { key: key.clone(), landing, previous: stale });
                }
            }
        }
        if !items.is_empty() {
            self.launch(items, source, options.clone(), Mode::Fill);
        }
        for (place, flight, stale, joined_at) in waiting {
            let landed = match flight.wait() {
                Ok(waiting) => before(&shared.clock, options.load_timeout_hard, waiting).await,
                Err(nested) => Some(Err(nested)),
            };
            let landed = match landed {
                None => self.stale_or(&keys[place], &stale, timed_out(options)),
                Some(Ok(Some(answer)))
                    if joined_at.is_some_and(|at| self.came_too_early(&flight.ticket, at, &answer)) =>
                {
                    Err(Error::new(ErrorKind::Unavailable, "load")
                        .message("a tag of the value was removed meanwhile"))
                }
                Some(landed) => landed,
            };
            results[place] = Some(landed.map(|answer| {
                answer.filter(|a| !a.is_stale || purpose == Purpose::Load).and_then(|a| a.value)
            }));
        }
        results.into_iter().map(|result| result.expect("every key was served or waited for")).collect()
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    /// The fresh value in L1, or the absence that is remembered there.
    #[inline]
    fn look_fresh<Q>(&self, space: &Space, key: &Q, options: &EntryOptions) -> Option<Option<V>>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let resident = self.l1.get(space, key, &self.counters);
        let now_ms = self.clock.coarse_ms();
        let is_fresh = |resident: &Resident<V>| {
            resident.is_plain(now_ms)
                || matches!(
                    resident.freshness(self.clock.mono_ms(), options),
                    Freshness::Fresh | Freshness::RefreshDue
                )
        };
        let Some(resident) = resident.filter(|resident| is_fresh(resident)) else {
            self.counters.add(Count::Miss);
            return None;
        };
        resident.touch(now_ms);
        self.counters.add(if resident.value.is_some() { Count::Hit } else { Count::HitNegative });
        Some(resident.value.clone())
    }

    /// Looks into L1 and decides what a read does with what is there.
    #[inline]
    fn look<Q>(&self, space: &Space, key: &Q, options: &EntryOptions) -> Step<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let Some(resident) = self.l1.get(space, key, &self.counters) else {
            self.counters.add(Count::Miss);
            return Step::Load(None);
        };
        let now_ms = self.clock.coarse_ms();
        resident.touch(now_ms);
        if resident.is_plain(now_ms) {
            self.counters.add(if resident.value.is_some() { Count::Hit } else { Count::HitNegative });
            return Step::Serve(resident.value.clone());
        }
        self.weigh_up(space, key, resident, options)
    }

    /// The slow half of [`look`](Self::look): something about the entry's time is to be decided.
    #[cold]
    fn weigh_up<Q>(
        &self,
        space: &Space,
        key: &Q,
        resident: Arc<Resident<V>>,
        options: &EntryOptions,
    ) -> Step<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let freshness = resident.freshness(self.clock.mono_ms(), options);
        self.counters.add(match freshness {
            Freshness::Fresh | Freshness::RefreshDue if resident.value.is_none() => Count::HitNegative,
            Freshness::Fresh | Freshness::RefreshDue => Count::Hit,
            Freshness::Revalidate | Freshness::Throttled => Count::HitStale,
            Freshness::OnError | Freshness::Gone => Count::Miss,
        });
        match freshness {
            Freshness::Fresh | Freshness::Throttled => Step::Serve(resident.value.clone()),
            Freshness::RefreshDue | Freshness::Revalidate => Step::Refresh(resident.value.clone(), resident),
            Freshness::OnError => Step::Load(Some(resident)),
            Freshness::Gone => {
                self.l1.evict_exact(space, key, &resident, EvictReason::Expired, &self.counters);
                Step::Load(None)
            }
        }
    }
}

fn not_found() -> Error {
    Error::new(ErrorKind::NotFound, "load").message("the loader found no such value")
}

fn timed_out(options: &EntryOptions) -> Error {
    Error::new(ErrorKind::Timeout, "load")
        .message(format!("no value within load_timeout_hard ({:?})", options.load_timeout_hard))
}
