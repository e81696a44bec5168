//! Runs flights: tiers from the top down, then the loader, then publishes upwards and lands.
//!
//! A flight runs in a task of its own, so that no caller's cancellation stops it. One flight of one key and
//! one batch of many keys are the same code.

use super::flight::{Answer, Boarding, Flight, Landing, Purpose};
use super::loader::{Found, LoadContext, LoadOne, Loaded, Source};
use super::{Key, Shared, Value};
use crate::backend::{Exchange, Put, Ticket};
use crate::clock::NEVER_MS;
use crate::clock::millis;
use crate::entry::{EntryKind, Meta, Tags};
use crate::envelope::{Fate, Protection};
use crate::error::{BoxError, Error, ErrorKind, Result};
use crate::key::EntryKey;
use crate::l1::{Now, Published, Seen, Slot, Space};
use crate::options::EntryOptions;
use crate::rules::{Rule, holds};
use crate::stamp::Stamp;
use crate::stats::Count;
use crate::tier::{TierRead, before};
use bytes::Bytes;
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

/// Most loaded values on their way to the tiers at once. Past it they stay in L1 only: a tier that can't
/// keep up must not fill the memory.
const WRITE_BACKS_MAX: usize = 1024;

/// One key of a flight.
pub(crate) struct Item<K: Hash + Eq, V: Clone> {
    pub(crate) key: K,
    pub(crate) landing: Landing<K, V>,
    /// A copy of the entry in L1 that the caller met.
    pub(crate) met: Option<Box<Seen<V>>>,
    pub(crate) mode: Mode,
}

/// A flight under way: what it has learned from the tiers.
pub(super) struct Pending<K: Hash + Eq, V: Clone> {
    pub(super) item: Item<K, V>,
    pub(super) entry_key: Option<EntryKey>,
    pub(super) tickets: Vec<Option<Ticket>>,
    /// While a refresh waits for another node's: what of a tier is its answer.
    pub(super) newer_than: Option<Stamp>,
    /// The latest entry of a tier that is not the answer; of the same one in two tiers, the lower.
    pub(super) stale: Option<Answer<V>>,
    previous: Option<Previous<V>>,
    /// The tier in which what is being refreshed was found with these tickets; 0 when it was L1.
    pub(super) refreshes_tier: u8,
}

impl<K: Hash + Eq, V: Clone> Pending<K, V> {
    fn new(item: Item<K, V>, entry_key: Option<EntryKey>, tiers: usize) -> Self {
        let tickets = vec![None; tiers];
        Pending { item, entry_key, tickets, newer_than: None, stale: None, previous: None, refreshes_tier: 0 }
    }

    /// Whether the lowest tier answered when it was last asked.
    pub(super) fn has_lowest_ticket(&self) -> bool {
        self.tickets.last().is_some_and(Option::is_some)
    }

    /// Whether a fresh entry of a tier is the answer.
    fn takes(&self, meta: &Meta) -> bool {
        self.item.mode == Mode::Fill || self.newer_than.is_some_and(|known| known < meta.stamp)
    }

    fn context(&self) -> LoadContext<V> {
        LoadContext {
            previous: self.previous.as_ref().map(|previous| previous.value.clone()),
            is_refresh: self.item.mode == Mode::Refresh,
        }
    }
}

/// What a loader found, of one key or by key.
enum Values<K, V> {
    One(Loaded<V>),
    Many(HashMap<K, Loaded<V>>),
}

impl<K: Hash + Eq, V> Values<K, V> {
    fn take(&mut self, key: &K) -> Option<Loaded<V>> {
        match self {
            Values::One(loaded) => Some(std::mem::replace(loaded, Loaded::absent())),
            Values::Many(by_key) => by_key.remove(key),
        }
    }
}

/// When a loader ran.
struct Load {
    start_ms: u64,
    /// When it returned. What it found is stored as of this moment.
    now: Now,
}

impl Load {
    fn took_ms(&self) -> u32 {
        u32::try_from(self.now.mono_ms.saturating_sub(self.start_ms)).unwrap_or(u32::MAX)
    }
}

/// What a loader may declare "not modified".
struct Previous<V> {
    value: V,
    tags: Tags,
    /// 0: L1; else the tier's position from 1.
    from_tier: u8,
}

/// How a flight treats what is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// A fresh entry of a tier is the answer.
    Fill,
    /// The loader is asked in any case; nobody waits.
    Refresh,
    /// The loader is asked in any case; the caller waits.
    Reload,
}

impl<K: Key, V: Value> Shared<K, V> {
    /// [`fly`](Self::fly) for one key of a cache without tiers, which needs no list of anything.
    // Not an `async fn`, whose future would have room for its arguments twice.
    pub(crate) fn fly_alone(
        self: Arc<Self>,
        space: Arc<Space>,
        item: Item<K, V>,
        load: LoadOne<V>,
        options: Arc<EntryOptions>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let mut one = Pending::new(item, None, 0);
        async move {
            one.previous = self.previous(&space, &one);
            let start_ms = self.clock.mono_ms();
            let call = load(one.context());
            let flight = one.item.landing.flight();
            let loaded = self.run_loader(&space, flight, &options, Duration::ZERO, call).await;
            let load = Load { start_ms, now: self.now() };
            match loaded {
                Ok(loaded) => drop(self.settle_one(&space, one, loaded, &options, &load)),
                Err(error) => self.settle_error(&space, one, &error, &options),
            }
        }
    }

    pub(crate) async fn fly(
        self: Arc<Self>,
        space: Arc<Space>,
        items: Vec<Item<K, V>>,
        source: Source<K, V>,
        options: Arc<EntryOptions>,
    ) {
        let mut pending = Vec::with_capacity(items.len());
        for item in items {
            match self.encode(&space, &item.key) {
                Ok(entry_key) => pending.push(Pending::new(item, entry_key, self.tiers.len())),
                Err(error) => item.landing.land(Err(error)),
            }
        }
        let mut pending = self.read_tiers(&space, pending, &options).await;
        if let Source::Tiers = source {
            for one in pending {
                one.item.landing.land(Ok(one.stale));
            }
            return;
        }
        let serve = |one| self.serve_while_revalidating(&space, one, &options);
        pending = pending.into_iter().filter_map(serve).collect();
        // A batch takes no leases: two that wait for each other's keys would both wait in vain.
        let mut turn = None;
        if pending.len() == 1
            && let Some(one) = pending.pop()
        {
            let Some((one, taken)) = self.take_turn(&space, one, &options).await else { return };
            pending.push(one);
            turn = Some(taken);
        }
        let waited = turn.as_ref().map_or(Duration::ZERO, |turn| turn.waited);
        for one in &mut pending {
            one.previous = self.previous(&space, one);
        }
        let Some(first) = pending.first() else { return };
        let start_ms = self.clock.mono_ms();
        let flight = Arc::clone(first.item.landing.flight());
        // All flights of a batch end with its loader, which runs in the first: who waits for one of them
        // inside of that loader waits for itself.
        let _batch: Vec<_> =
            pending[1..].iter().filter_map(|one| one.item.landing.flight().rides_on(&flight)).collect();
        let loaded = match source {
            Source::Tiers => unreachable!("a lookup has no loader"),
            Source::One(load) => {
                let call = load(first.context());
                self.run_loader(&space, &flight, &options, waited, call).await.map(Values::One)
            }
            Source::Many(load) => {
                let keys = pending.iter().map(|one| one.item.key.clone()).collect();
                self.run_loader(&space, &flight, &options, waited, load(keys)).await.map(Values::Many)
            }
        };
        let load = Load { start_ms, now: self.now() };
        match loaded {
            Ok(values) => {
                let is_stored = self.settle(&space, pending, values, &options, &load).await;
                if let Some(turn) = turn {
                    self.end_turn(turn, is_stored).await;
                }
            }
            Err(error) => {
                for one in pending {
                    self.settle_error(&space, one, &error, &options);
                }
            }
        }
    }

    /// Asks the tiers for every key and lands those that are fresh somewhere; returns the others.
    pub(super) async fn read_tiers(
        &self,
        space: &Arc<Space>,
        mut pending: Vec<Pending<K, V>>,
        options: &EntryOptions,
    ) -> Vec<Pending<K, V>> {
        let mut fresh = Vec::new();
        for (position, tier) in self.tiers.iter().enumerate() {
            if pending.is_empty() {
                break;
            }
            let keys: Vec<EntryKey> = pending
                .iter()
                .map(|one| tier.key(one.entry_key.as_ref().expect("a cache with tiers encodes keys")))
                .collect();
            let reads = match self.may_read(position, &space.namespace) {
                true => tier.read(&keys).await,
                false => tier.pass_by(keys.len()),
            };
            // A suspicion that arose meanwhile makes the answer too old.
            let is_trusted = self.may_read(position, &space.namespace);
            let mut missing = Vec::with_capacity(pending.len());
            for ((mut one, key), read) in pending.into_iter().zip(&keys).zip(reads) {
                let found = match read {
                    TierRead::Unavailable => None,
                    _ if !is_trusted => None,
                    TierRead::Missed { ticket, why } => {
                        tracing::trace!(tier = tier.name(), ?why, "miss");
                        one.tickets[position] = Some(ticket);
                        None
                    }
                    TierRead::Found { ticket, sealed } => {
                        one.tickets[position] = Some(ticket);
                        match self.open(position, key, sealed).await {
                            Ok(found) => found,
                            Err(error) => {
                                tier.counters().misses.fetch_add(1, Relaxed);
                                one.item.landing.land(Err(error));
                                continue;
                            }
                        }
                    }
                };
                let counters = tier.counters();
                let Some((meta, value, sealed)) = found else {
                    counters.misses.fetch_add(1, Relaxed);
                    missing.push(one);
                    continue;
                };
                counters.hits.fetch_add(1, Relaxed);
                let is_stale = self.is_stale(&meta);
                let answer = Answer { value, meta, is_stale, from_tier: position as u8 + 1 };
                if is_stale || !one.takes(&answer.meta) {
                    if one.stale.as_ref().is_none_or(|other| other.meta.stamp <= answer.meta.stamp) {
                        one.stale = Some(answer);
                    }
                    missing.push(one);
                } else {
                    fresh.push((one, answer, sealed));
                }
            }
            pending = missing;
        }
        if !fresh.is_empty() {
            self.promote(space, fresh, options).await;
        }
        pending
    }

    /// Lands fresh entries of lower tiers and copies them upwards with what is left of their time.
    async fn promote(
        &self,
        space: &Arc<Space>,
        fresh: Vec<(Pending<K, V>, Answer<V>, Bytes)>,
        options: &EntryOptions,
    ) {
        let mut upwards: Vec<Vec<Put>> = self.tiers.iter().map(|_| Vec::new()).collect();
        let mut renewals = Vec::new();
        for (one, answer, sealed) in fresh {
            let from = usize::from(answer.from_tier) - 1;
            let key = one.entry_key.expect("it was found in a tier");
            // A copy is a load: it yields to every set and removal that came since.
            let meta = Meta { kind: EntryKind::Load, ..answer.meta.clone() };
            let entry = (answer.value.clone(), meta.clone(), answer.from_tier);
            self.publish(space, &one.item.key, entry, one.item.landing.flight(), options);
            let value = answer.value.clone();
            one.item.landing.land(Ok(Some(answer)));
            self.tiers[from].counters().promotions.fetch_add(1, Relaxed);
            let found_as = self.tiers[from].key(&key);
            let renewed = self.renew(&found_as, &sealed);
            if let (Some(new), Some(ticket)) = (&renewed, one.tickets[from]) {
                let exchange = Exchange { key: found_as.clone(), old: sealed.clone(), new: new.clone() };
                renewals.push((from, (exchange, ticket)));
            }
            let sealed = renewed.unwrap_or(sealed);
            for (position, puts) in upwards.iter_mut().enumerate().take(from) {
                if let Some(ticket) = one.tickets[position] {
                    let capped = self.tiers[position].cap(&meta);
                    let name = self.tiers[position].key(&key);
                    // The envelope tells the expiries, and is for the name that the tier knows.
                    let is_same = capped.fresh_until_ms == meta.fresh_until_ms && name == found_as;
                    let sealed = match is_same {
                        true => Ok(sealed.clone()),
                        false => self.seal(&name, &capped, value.as_ref()),
                    };
                    match sealed {
                        Ok(sealed) => puts.push(Put { key: name, meta: capped, sealed, ticket }),
                        Err(error) => tracing::warn!(%error, "a value is not copied upwards"),
                    }
                }
            }
        }
        self.write_back(upwards).await;
        for (from, renewal) in renewals {
            for outcome in self.tiers[from].exchange_many(vec![renewal]).await {
                if let Err(error) = outcome {
                    tracing::warn!(%error, "an entry stays under an old key");
                }
            }
        }
    }

    /// A tier's entry that may be served while it is refreshed lands at once; the flight goes on as a new one
    /// that nobody waits for, unless somebody else has begun it.
    fn serve_while_revalidating(
        &self,
        space: &Arc<Space>,
        mut one: Pending<K, V>,
        options: &EntryOptions,
    ) -> Option<Pending<K, V>> {
        if one.item.mode != Mode::Fill {
            return Some(one);
        }
        let wall_ms = self.clock.wall_ms();
        let Some(stale) = one.stale.take_if(|stale| wall_ms < stale.meta.revalidate_until_ms) else {
            return Some(one);
        };
        let meta = Meta { kind: EntryKind::Load, ..stale.meta.clone() };
        let entry = (stale.value.clone(), meta, stale.from_tier);
        self.publish(space, &one.item.key, entry, one.item.landing.flight(), options);
        let met = self.l1.seen(space, &one.item.key, self.now()).map(Box::new);
        let is_met = met.as_ref().is_some_and(|met| met.meta.stamp == stale.meta.stamp);
        let refreshes_tier = if is_met { stale.from_tier } else { 0 };
        one.item.landing.land(Ok(Some(stale)));
        let slot = Slot { space: space.id, key: one.item.key.clone() };
        match self.flights.board(&slot, Purpose::Load, |_| true, || None::<()>, || self.depart()) {
            Boarding::Started(landing) => {
                self.counters.add(Count::Refresh);
                let item = Item { key: slot.key, landing, met, mode: Mode::Refresh };
                Some(Pending { item, refreshes_tier, ..one })
            }
            _ => None,
        }
    }

    async fn run_loader<T>(
        &self,
        space: &Space,
        flight: &Flight<K, V>,
        options: &EntryOptions,
        waited: Duration,
        call: impl Future<Output = Result<T, BoxError>>,
    ) -> Result<T> {
        self.counters.add(Count::Load);
        // What the loader asks of other caches is this tenant's too.
        let call = pin!(crate::tenant::maybe_scope(space.namespace.tenant(), call));
        let call = pin!(catch_panic(call));
        let call = flight.run(call);
        let error = |kind| Error::new(kind, "load");
        match before(&self.clock, options.load_timeout_hard.saturating_sub(waited), call).await {
            Some(Ok(Ok(loaded))) => Ok(loaded),
            Some(Ok(Err(source))) => {
                self.counters.add(Count::LoadFailed);
                Err(loader_failed(source))
            }
            Some(Err(panic)) => {
                self.counters.add(Count::LoadFailed);
                Err(error(ErrorKind::LoaderPanicked).message(panic))
            }
            None => {
                self.counters.add(Count::LoadTimedOut);
                Err(error(ErrorKind::Timeout)
                    .message(format!("no value within load_timeout_hard ({:?})", options.load_timeout_hard)))
            }
        }
    }

    /// The latest value that is there now, after the tickets were taken: a removal that came before them has
    /// left nothing, and one that comes after them refuses the write-back.
    fn previous(&self, space: &Space, one: &Pending<K, V>) -> Option<Previous<V>> {
        let is_current = |met: &&Seen<V>| {
            !holds(Rule::PreviousIsCurrent)
                || self.l1.is_current(space, &one.item.key, met.meta.stamp, self.now())
        };
        let met = one.item.met.as_deref().filter(is_current);
        // Without the ticket that came with it, a removal may have come in between.
        let stale =
            one.stale.as_ref().filter(|stale| one.tickets[usize::from(stale.from_tier) - 1].is_some());
        let (value, tags, from_tier) = match (met, stale) {
            (Some(met), stale) if stale.is_none_or(|stale| stale.meta.stamp < met.meta.stamp) => {
                (&met.value, &met.meta.tags, one.refreshes_tier)
            }
            (_, Some(stale)) => (&stale.value, &stale.meta.tags, stale.from_tier),
            (_, None) => return None,
        };
        Some(Previous { value: value.clone()?, tags: tags.clone(), from_tier })
    }

    /// Publishes what the loader found, lands, then writes to the tiers; whether all of it is for the lowest.
    async fn settle(
        &self,
        space: &Arc<Space>,
        pending: Vec<Pending<K, V>>,
        mut values: Values<K, V>,
        options: &EntryOptions,
        load: &Load,
    ) -> bool {
        let count = pending.len();
        let mut downwards: Vec<Vec<Put>> = self.tiers.iter().map(|_| Vec::new()).collect();
        for mut one in pending {
            let loaded = values.take(&one.item.key).unwrap_or_else(Loaded::absent);
            let reach = self.reach(&one, &loaded);
            let (key, tickets) = (one.entry_key.take(), std::mem::take(&mut one.tickets));
            let stored = self.settle_one(space, one, loaded, options, load);
            let (Some(answer), Some(key)) = (stored, key) else { continue };
            for (position, puts) in downwards.iter_mut().enumerate().take(reach) {
                let Some(ticket) = tickets[position] else { continue };
                let meta = self.tiers[position].cap(&answer.meta);
                let key = self.tiers[position].key(&key);
                match self.seal(&key, &meta, answer.value.as_ref()) {
                    Ok(sealed) => puts.push(Put { key, meta, sealed, ticket }),
                    Err(error) => tracing::warn!(%error, "a loaded value stays in memory only"),
                }
            }
        }
        let is_stored = downwards.last().is_some_and(|puts| puts.len() == count);
        self.write_back(downwards).await;
        is_stored
    }

    /// Publishes in L1 and lands; returns what is for the tiers.
    fn settle_one(
        &self,
        space: &Arc<Space>,
        one: Pending<K, V>,
        loaded: Loaded<V>,
        options: &EntryOptions,
        load: &Load,
    ) -> Option<Answer<V>> {
        let (answer, is_stored) = match self.answer(&one, loaded, options, load) {
            Ok(answer) => answer,
            Err(error) => {
                self.settle_error(space, one, &error, options);
                return None;
            }
        };
        let Item { key, landing, .. } = one.item;
        if is_stored {
            let entry = (answer.value.clone(), answer.meta.clone(), 0);
            let began = Some((landing.flight().ticket, self.known_ms(landing.flight().began_ms, 0)));
            if self.publish_at(load.now, space, &key, entry, began, options) == Published::Fenced {
                self.counters.add(Count::LoadFenced);
            }
        } else {
            self.counters.add(Count::LoadDeclined);
        }
        let for_tiers = (is_stored && !self.tiers.is_empty()).then(|| answer.clone());
        landing.land(Ok(Some(answer)));
        for_tiers
    }

    /// To how many tiers it is written. A removal goes upwards: of a value that was found in one store, only
    /// the tickets of this store and of those above it are known to be older than a removal that it missed.
    fn reach(&self, one: &Pending<K, V>, loaded: &Loaded<V>) -> usize {
        match (&loaded.found, &one.previous) {
            (Found::NotModified, Some(previous)) if holds(Rule::PreviousGoesUp) => {
                usize::from(previous.from_tier)
            }
            _ => self.tiers.len(),
        }
    }

    /// What the callers get for `loaded`, and whether it is to be stored.
    fn answer(
        &self,
        one: &Pending<K, V>,
        loaded: Loaded<V>,
        options: &EntryOptions,
        load: &Load,
    ) -> Result<(Answer<V>, bool)> {
        let mut tags = loaded.all_tags(&options.tags)?;
        let is_negative = matches!(loaded.found, Found::Absent);
        let ttl = loaded.ttl.unwrap_or(if is_negative { options.negative_ttl } else { options.ttl });
        let value = match loaded.found {
            Found::Value(value) => Some(value),
            Found::Absent => None,
            Found::NotModified => {
                self.counters.add(Count::LoadNotModified);
                let Some(previous) = &one.previous else {
                    return Err(Error::new(ErrorKind::Loader, "load")
                        .message("\"not modified\" was answered, but there is no previous value"));
                };
                tags = Tags::new(tags.iter().chain(previous.tags.iter()))?;
                Some(previous.value.clone())
            }
        };
        let mut meta = self.meta(load.now.wall_ms, EntryKind::Load, ttl, tags, options);
        meta.load_ms = load.took_ms();
        if is_negative {
            // Nothing is served in place of an absence that has expired.
            meta.is_negative = true;
            meta.revalidate_until_ms = meta.fresh_until_ms;
            meta.gone_at_ms = meta.fresh_until_ms;
        }
        // An absence that is not to be remembered still takes the place of the old value, expired at once.
        let replaces = is_negative && (one.item.met.is_some() || one.stale.is_some());
        let is_stored = loaded.is_stored && (!ttl.is_zero() || replaces);
        Ok((Answer { value, meta, is_stale: false, from_tier: 0 }, is_stored))
    }

    /// Serves what is stale but allowed and still valid, else the error.
    fn settle_error(&self, space: &Arc<Space>, one: Pending<K, V>, error: &Error, options: &EntryOptions) {
        let Item { key, landing, met, .. } = one.item;
        let now = self.now();
        let retry_at_ms = now.mono_ms.saturating_add(millis(options.stale_on_error_throttle));
        // In place, never inserted: what was removed meanwhile stays removed.
        if let Some(seen) = met
            && (self.l1.throttle(space, &key, seen.meta.stamp, now, retry_at_ms)
                || !holds(Rule::StaleIsCurrent))
        {
            self.counters.add(Count::StaleOnError);
            landing.land(Ok(Some((*seen).into_stale())));
            return;
        }
        let ticket = landing.flight().ticket;
        if let Some(stale) = one.stale
            && !stale.meta.is_gone(self.clock.wall_ms())
            && !self.l1.moved(space, &key, self.name(space, &key), ticket)
            && !self.l1.tags_moved(space, &stale.meta.tags, ticket)
        {
            self.counters.add(Count::StaleOnError);
            let meta = Meta { kind: EntryKind::Load, ..stale.meta.clone() };
            let entry = (stale.value.clone(), meta, stale.from_tier);
            if self.publish(space, &key, entry, landing.flight(), options) == Published::Stored {
                self.l1.throttle(space, &key, stale.meta.stamp, now, retry_at_ms);
            }
            landing.land(Ok(Some(stale)));
            return;
        }
        landing.land(Err(error.clone()));
    }

    /// Writes loaded values to the tiers, top first, unless too many writes are under way.
    async fn write_back(&self, puts: Vec<Vec<Put>>) {
        if puts.iter().all(Vec::is_empty) {
            return;
        }
        let Some(_permit) = WriteBack::begin(self) else {
            self.counters.add(Count::WriteBackDropped);
            return;
        };
        for (tier, puts) in self.tiers.iter().zip(puts) {
            tier.write_back(puts).await;
        }
    }

    /// Opens an entry of a tier. What can't be opened is counted, and dropped, kept or quarantined there.
    ///
    /// # Errors
    /// [`ErrorKind::Authentication`] for an entry that was tampered with, where that is not to be a miss.
    async fn open(
        &self,
        position: usize,
        key: &EntryKey,
        mut sealed: Bytes,
    ) -> Result<Option<(Meta, Option<V>, Bytes)>> {
        let tier = &self.tiers[position];
        let format = self.format.as_ref().expect("a cache with tiers has a format");
        let mut opened = format.open(key, &sealed);
        if opened.as_ref().is_err_and(|refused| refused.fate() == Fate::Keep)
            && let Some(TierRead::Found { sealed: now, .. }) =
                tier.read(std::slice::from_ref(key)).await.pop()
            && now != sealed
        {
            // It was sealed anew since it was read, and the key that it was under was retired.
            opened = format.open(key, &now);
            sealed = now;
        }
        match opened {
            Ok((meta, value)) => {
                let wall_ms = self.clock.wall_ms();
                if meta.stamp.is_distrusted(wall_ms) {
                    tier.count_refused("clock");
                    return Ok(None);
                }
                self.stamps.advance(meta.stamp, wall_ms);
                Ok(Some((meta, value, sealed)))
            }
            Err(refused) => {
                let (name, reason) = (tier.name(), refused.name());
                tier.count_refused(reason);
                match refused.fate() {
                    Fate::Discard => {
                        tracing::warn!(tier = name, reason, "an entry was refused and dropped");
                        tier.discard(key, &sealed).await;
                        self.report_discarded(key, name, reason);
                    }
                    Fate::Keep => tracing::warn!(tier = name, reason, "an entry was refused and left alone"),
                    Fate::Quarantine => {
                        tracing::error!(tier = name, reason, "AN ENTRY WAS TAMPERED WITH; it is quarantined");
                        tier.quarantine(key, &sealed, reason).await;
                        self.report_discarded(key, name, reason);
                        if format.protection().is_some_and(Protection::is_strict) {
                            return Err(Error::new(ErrorKind::Authentication, "get")
                                .backend(name.to_owned())
                                .message("an entry was tampered with; it is quarantined"));
                        }
                    }
                }
                Ok(None)
            }
        }
    }

    fn report_discarded(&self, key: &EntryKey, tier: &str, reason: &'static str) {
        if let Some(on_discard) = &self.on_discard {
            let call = AssertUnwindSafe(|| on_discard(key, tier, reason));
            if std::panic::catch_unwind(call).is_err() {
                tracing::error!(reason, "a listener for discarded entries panicked");
            }
        }
    }

    /// An entry that was found, under the current key, where that is asked for and it isn't.
    fn renew(&self, key: &EntryKey, sealed: &Bytes) -> Option<Bytes> {
        let format = self.format.as_ref()?;
        format.protection().filter(|protection| protection.reseals_on_read())?;
        format.renew(key, sealed).ok().flatten()
    }

    /// Whether an entry of a tier is past its TTL. One that was made in the future, by a clock that was
    /// wrong, is fresh for at most its TTL after it was read: see [`Resident::new`].
    fn is_stale(&self, meta: &Meta) -> bool {
        meta.fresh_until_ms != NEVER_MS && meta.fresh_until_ms <= self.clock.wall_ms()
    }
}

impl<V> Seen<V> {
    /// The answer of a caller who has to do with a stale value.
    pub(crate) fn into_stale(self) -> Answer<V> {
        Answer { value: self.value, meta: self.meta, is_stale: true, from_tier: self.from_tier }
    }
}

/// The right to write to the tiers in the background.
struct WriteBack<'a>(&'a std::sync::atomic::AtomicUsize);

impl<'a> WriteBack<'a> {
    fn begin<K: Hash + Eq, V: Clone>(shared: &'a Shared<K, V>) -> Option<Self> {
        if shared.write_backs.fetch_add(1, Relaxed) >= WRITE_BACKS_MAX {
            shared.write_backs.fetch_sub(1, Relaxed);
            return None;
        }
        Some(WriteBack(&shared.write_backs))
    }
}

impl Drop for WriteBack<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// What the callers of a loader that failed get.
pub(crate) fn loader_failed(source: BoxError) -> Error {
    let error = Error::new(ErrorKind::Loader, "load");
    // A load inside of the loader waits for itself: its kind is worth more than "the loader failed".
    match source.downcast::<Error>() {
        Ok(inner) if inner.kind() == ErrorKind::NestedLoad => *inner,
        Ok(inner) => error.source(*inner),
        Err(source) => error.source(source),
    }
}

/// The output of `future`, or the message of its panic.
pub(crate) async fn catch_panic<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panic) => Poll::Ready(Err(panic_message(&*panic))),
    })
    .await
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message").to_owned()
}
