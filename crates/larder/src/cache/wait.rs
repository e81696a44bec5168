//! Waiting for flights: who joins, who starts one, who goes on with a stale value.

use super::flight::{Answer, Boarding, Purpose};
use super::load::{Item, Mode};
use super::loader::Source;
use super::read::Step;
use super::{Cache, Key, Value};
use crate::clock::{Clock, NEVER_MS, millis};
use crate::error::{Error, ErrorKind, Result};
use crate::l1::{Freshness, Seen, Slot};
use crate::options::EntryOptions;
use crate::rules::{Rule, holds};
use crate::stats::Count;
use crate::tier::before;
use std::sync::Arc;
use std::time::Duration;

impl<K: Key, V: Value> Cache<K, V> {
    /// Goes on after L1 had no plain hit.
    pub(super) async fn after(
        &self,
        key: K,
        step: Step<V>,
        source: Source<K, V>,
        options: &EntryOptions,
    ) -> Result<Option<V>> {
        match step {
            Step::Serve(value) => Ok(value),
            Step::Refresh(seen) => {
                let value = seen.value.clone();
                self.refresh(key, source, options, seen);
                Ok(value)
            }
            Step::Load(stale) => {
                Ok(self.wait(key, source, options, stale, Mode::Fill).await?.and_then(|answer| answer.value))
            }
        }
    }

    /// Starts a load that nobody waits for, unless one is under way.
    pub(super) fn refresh(&self, key: K, source: Source<K, V>, options: &EntryOptions, met: Box<Seen<V>>) {
        let shared = &self.shared;
        let slot = Slot { space: self.space.id, key };
        let boarding =
            shared.flights.board(&slot, Purpose::Load, |_| true, || None::<()>, || shared.depart());
        if let Boarding::Started(landing) = boarding {
            shared.counters.add(Count::Refresh);
            let item = Item { key: slot.key, landing, met: Some(met), mode: Mode::Refresh };
            self.launch_one(item, source, options);
        }
    }

    fn launch(&self, items: Vec<Item<K, V>>, source: Source<K, V>, options: &EntryOptions) {
        let (shared, space) = (Arc::clone(&self.shared), Arc::clone(&self.space));
        crate::runtime::spawn(shared.fly(space, items, source, self.shared_options(options)));
    }

    fn launch_one(&self, item: Item<K, V>, source: Source<K, V>, options: &EntryOptions) {
        match source {
            Source::One(load) if self.shared.tiers.is_empty() => {
                let (shared, space) = (Arc::clone(&self.shared), Arc::clone(&self.space));
                crate::runtime::spawn(shared.fly_alone(space, item, load, self.shared_options(options)));
            }
            source => self.launch(vec![item], source, options),
        }
    }

    /// The options for a task; a copy only where they are not the cache's own.
    fn shared_options(&self, options: &EntryOptions) -> Arc<EntryOptions> {
        if std::ptr::eq(options, &raw const *self.defaults) {
            return Arc::clone(&self.defaults);
        }
        Arc::new(options.clone())
    }

    /// Asks the tiers, once for all callers.
    pub(super) async fn look_below(&self, key: K) -> Option<Answer<V>> {
        if self.shared.tiers.is_empty() {
            return None;
        }
        self.wait(key, Source::Tiers, &self.defaults, None, Mode::Fill).await.unwrap_or_default()
    }

    /// Joins or starts the flight of a key and waits for it, within the options' timeouts.
    pub(super) async fn wait(
        &self,
        key: K,
        source: Source<K, V>,
        options: &EntryOptions,
        stale: Option<Box<Seen<V>>>,
        mode: Mode,
    ) -> Result<Option<Answer<V>>> {
        let shared = &self.shared;
        let purpose = if let Source::Tiers = source { Purpose::Lookup } else { Purpose::Load };
        let slot = Slot { space: self.space.id, key };
        let mut source = Some(source);
        let left = time_left(&shared.clock, options.load_timeout_hard);
        // A flight that began before this position was refused to this caller.
        let mut begins_at = 0;
        let name = shared.name(&self.space, &slot.key);
        loop {
            let joined_at = shared.l1.ticket().pos;
            let boarding = shared.flights.board(
                &slot,
                purpose,
                |flight| {
                    mode != Mode::Reload
                        && flight.ticket.pos >= begins_at
                        && shared.may_join(&self.space, &slot.key, name, flight)
                },
                || if mode == Mode::Fill { self.look_again(&slot.key, purpose) } else { None },
                || shared.depart(),
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
                    let item = Item { key: slot.key.clone(), landing, met: stale.clone(), mode };
                    let source =
                        source.take().expect("a caller starts one flight: it is always served by it");
                    self.launch_one(item, source, options);
                    (flight, true)
                }
            };
            let landed = match flight.wait() {
                Ok(mut waiting) => {
                    let mut landed = None;
                    if let (Some(soft), Some(_)) = (options.load_timeout_soft, &stale) {
                        landed = before(&shared.clock, soft, &mut waiting).await;
                        if let (None, Ok(answer)) =
                            (&landed, self.stale_or(&slot.key, &stale, timed_out(options)))
                        {
                            return Ok(answer);
                        }
                    }
                    match landed {
                        Some(landed) => Some(landed),
                        None => before(&shared.clock, left(), waiting).await,
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
                Some(Err(error)) => return self.stale_or(&slot.key, &stale, error),
                Some(landed) => return landed,
            }
        }
    }

    /// Whether a tag of the answer was removed after its load began and, as far as can be told, before this
    /// caller joined.
    fn came_too_early(&self, ticket: &crate::backend::Ticket, joined_at: u64, answer: &Answer<V>) -> bool {
        holds(Rule::Delivery)
            && joined_at > ticket.pos
            && self.shared.l1.tags_moved(&self.space, &answer.meta.tags, *ticket)
    }

    /// What appeared in L1 since the caller looked. Runs under a lock of the flights, so it drops nothing: that
    /// would call the eviction listener.
    fn look_again(&self, key: &K, purpose: Purpose) -> Option<Answer<V>> {
        let shared = &self.shared;
        let now = shared.now();
        let answer = shared.l1.peek(&self.space, key, now.mono_ms, |resident| {
            let (is_servable, is_stale) = match resident.freshness(now.mono_ms, &self.defaults) {
                Freshness::Fresh | Freshness::RefreshDue => (true, false),
                // It stands in for a load that has just failed, not for what a tier may have.
                Freshness::Throttled => (purpose == Purpose::Load, true),
                Freshness::Revalidate | Freshness::OnError | Freshness::Gone => (false, true),
            };
            is_servable.then(|| Answer { is_stale, ..resident.seen(now).into_stale() })
        });
        answer.flatten()
    }

    /// The stale entry, if it still may be served, else the error.
    fn stale_or(&self, key: &K, stale: &Option<Box<Seen<V>>>, error: Error) -> Result<Option<Answer<V>>> {
        let shared = &self.shared;
        match stale {
            Some(seen)
                if !holds(Rule::StaleIsCurrent)
                    || shared.l1.is_current(&self.space, key, seen.meta.stamp, shared.now()) =>
            {
                shared.counters.add(Count::StaleOnError);
                Ok(Some((**seen).clone().into_stale()))
            }
            _ => Err(error),
        }
    }

    /// Many keys: L1 first, then one flight for all that nobody else loads.
    pub(super) async fn many(
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
                    Step::Refresh(seen) => {
                        let value = seen.value.clone();
                        (Some(seen), Some(value))
                    }
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
            let name = shared.name(&self.space, key);
            let joined_at = shared.l1.ticket().pos;
            let boarding = shared.flights.board(
                &slot,
                purpose,
                |flight| shared.may_join(&self.space, key, name, flight),
                || self.look_again(key, purpose),
                || shared.depart(),
            );
            match boarding {
                Boarding::Started(landing) if is_served => {
                    // A refresh, in the same load as what is missing.
                    items.push(Item { key: key.clone(), landing, met: stale, mode: Mode::Refresh });
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
                    items.push(Item { key: key.clone(), landing, met: stale, mode: Mode::Fill });
                }
            }
        }
        if !items.is_empty() {
            self.launch(items, source, options);
        }
        let left = time_left(&shared.clock, options.load_timeout_hard);
        for (place, flight, stale, joined_at) in waiting {
            let landed = match flight.wait() {
                Ok(waiting) => before(&shared.clock, left(), waiting).await,
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
                Some(Err(error)) => self.stale_or(&keys[place], &stale, error),
                Some(landed) => landed,
            };
            results[place] = Some(landed.map(|answer| {
                answer.filter(|a| !a.is_stale || purpose == Purpose::Load).and_then(|a| a.value)
            }));
        }
        results.into_iter().map(|result| result.expect("every key was served or waited for")).collect()
    }
}

/// What is left of `timeout` from now on, whenever it is asked. By the coarse clock: it only says how long to
/// wait, and the waiting is timed by the precise one.
fn time_left(clock: &Clock, timeout: Duration) -> impl Fn() -> Duration {
    let until_ms = clock.coarse_ms().saturating_add(millis(timeout));
    move || match until_ms {
        NEVER_MS => Duration::MAX,
        _ => Duration::from_millis(until_ms.saturating_sub(clock.coarse_ms())),
    }
}

fn timed_out(options: &EntryOptions) -> Error {
    Error::new(ErrorKind::Timeout, "load")
        .message(format!("no value within load_timeout_hard ({:?})", options.load_timeout_hard))
}
