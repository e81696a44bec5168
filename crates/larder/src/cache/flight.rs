//! Flights: the one load of a key, and who waits for it.
//!
//! Owns the table of what is in flight and the graph of who waits for whom. Does not run loads: see
//! `load.rs`.

use super::promise::{Promise, Promises, Wait, abandoned};
use crate::backend::Ticket;
use crate::entry::Meta;
use crate::error::{Error, ErrorKind, Result};
use crate::l1::Slot;
use crate::l1::table::hash::{KeyedState, keyed_at_random};
use crate::rules::{Rule, holds};
use crate::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use crate::sync::{Mutex, current_flight};
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use std::collections::HashMap;
use std::collections::hash_map;
use std::future::Future;
use std::hash::{BuildHasher, Hash};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};

/// Shards of the table: callers of different keys rarely meet.
const SHARDS: usize = if cfg!(larder_shuttle) { 1 } else { 16 };

/// What a flight is after. A get never waits for a loader, so the two don't share a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Purpose {
    /// The tiers below L1.
    Lookup,
    /// The tiers, then the loader.
    Load,
}

/// What a flight came back with: an answer, nothing (lookups only), or an error.
pub(crate) type Landed<V> = Result<Option<Answer<V>>>;

/// A value from below L1, or a remembered absence.
#[derive(Clone, Debug)]
pub(crate) struct Answer<V> {
    pub(crate) value: Option<V>,
    pub(crate) meta: Meta,
    pub(crate) is_stale: bool,
    /// 0: the loader; else the tier's position from 1.
    pub(crate) from_tier: u8,
}

pub(crate) struct Flight<K, V> {
    number: u64,
    /// L1's ticket, taken before anything was read.
    pub(crate) ticket: Ticket,
    /// When that was, on the monotonic clock.
    pub(crate) began_ms: u64,
    slot: Slot<K>,
    purpose: Purpose,
    /// Of slot and purpose, by the hasher of the table.
    hash: u64,
    landed: Promise<Landed<V>>,
}

impl<K, V: Clone> Promises for Flight<K, V> {
    type Output = Landed<V>;

    fn promise(&self) -> &Promise<Landed<V>> {
        &self.landed
    }
}

type Shard<K, V> = Mutex<HashTable<Arc<Flight<K, V>>>>;

pub(crate) struct Flights<K, V> {
    shards: Box<[Shard<K, V>]>,
    hasher: KeyedState,
    under_way: AtomicUsize,
    flights_max: usize,
    waiters_max: usize,
}

/// What a caller who needs a flight got.
pub(crate) enum Boarding<K: Hash + Eq, V: Clone, T> {
    /// It has to run the flight, and to land it.
    Started(Landing<K, V>),
    /// Somebody else runs it.
    Joined(Arc<Flight<K, V>>),
    /// The value appeared meanwhile.
    Found(T),
    /// The bound on flights or waiters is reached.
    Refused(Error),
}

impl<K: Hash + Eq + Clone, V: Clone> Flights<K, V> {
    pub(crate) fn new(flights_max: usize, waiters_max: usize) -> Self {
        Flights {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: keyed_at_random(),
            under_way: AtomicUsize::new(0),
            flights_max,
            waiters_max,
        }
    }

    /// Joins the flight of a key, or starts one.
    ///
    /// `may_join` refuses a flight that began too early for this caller; a new one takes its place in the
    /// table. `look_again` runs when there is none: a flight may have landed since the caller looked.
    pub(crate) fn board<T>(
        self: &Arc<Self>,
        slot: &Slot<K>,
        purpose: Purpose,
        may_join: impl FnOnce(&Flight<K, V>) -> bool,
        look_again: impl FnOnce() -> Option<T>,
        depart: impl FnOnce() -> (Ticket, u64),
    ) -> Boarding<K, V, T> {
        let hash = self.hasher.hash_one((slot, purpose));
        let mut shard = self.shard(hash).lock();
        let is_it = |there: &Arc<Flight<K, V>>| there.purpose == purpose && there.slot == *slot;
        let entry = shard.entry(hash, is_it, |there| there.hash);
        if let Entry::Occupied(there) = &entry
            && may_join(there.get())
        {
            if there.get().landed.waiting() >= self.waiters_max {
                return Boarding::Refused(overloaded("waiters of one load", self.waiters_max));
            }
            return Boarding::Joined(Arc::clone(there.get()));
        }
        if holds(Rule::LookAgain)
            && let Some(found) = look_again()
        {
            return Boarding::Found(found);
        }
        if self.under_way.fetch_add(1, SeqCst) >= self.flights_max {
            self.under_way.fetch_sub(1, SeqCst);
            return Boarding::Refused(overloaded("loads under way", self.flights_max));
        }
        let (ticket, began_ms) = depart();
        let flight = Arc::new(Flight {
            number: next_number(),
            ticket,
            began_ms,
            slot: slot.clone(),
            purpose,
            hash,
            landed: Promise::new(),
        });
        // A flight that was not joined lands by itself; what it is replaced by is dropped when the lock is free.
        let replaced = match entry {
            Entry::Occupied(mut there) => Some(std::mem::replace(there.get_mut(), Arc::clone(&flight))),
            Entry::Vacant(place) => {
                place.insert(Arc::clone(&flight));
                None
            }
        };
        drop(shard);
        drop(replaced);
        Boarding::Started(Landing { flights: Arc::clone(self), flight, has_landed: false })
    }

    pub(crate) fn under_way(&self) -> usize {
        self.under_way.load(SeqCst)
    }

    pub(crate) fn is_flying(&self, slot: &Slot<K>, purpose: Purpose) -> bool {
        let hash = self.hasher.hash_one((slot, purpose));
        let is_it = |there: &Arc<Flight<K, V>>| there.purpose == purpose && there.slot == *slot;
        self.shard(hash).lock().find(hash, is_it).is_some()
    }
}

impl<K, V> Flights<K, V> {
    fn shard(&self, hash: u64) -> &Shard<K, V> {
        // The table reads the lowest and the highest bits.
        &self.shards[(hash >> 32) as usize % SHARDS]
    }
}

fn overloaded(what: &str, max: usize) -> Error {
    Error::new(ErrorKind::Overloaded, "load").message(format!("{max} {what}, the most that is allowed"))
}

/// A number for a flight, of any cache of the process.
pub(crate) fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// The duty to land a flight. Dropping it lands the flight with an error: whoever ran it is gone, and
/// nobody may wait for ever.
pub(crate) struct Landing<K: Hash + Eq, V: Clone> {
    flights: Arc<Flights<K, V>>,
    flight: Arc<Flight<K, V>>,
    has_landed: bool,
}

impl<K: Hash + Eq, V: Clone> Landing<K, V> {
    pub(crate) fn flight(&self) -> &Arc<Flight<K, V>> {
        &self.flight
    }

    /// Takes the flight out of the table and tells its waiters. What it brought must be in L1 by now, or
    /// the next caller would load again.
    pub(crate) fn land(mut self, landed: Landed<V>) {
        self.finish(landed);
    }

    /// Ends a flight that nobody has joined, with nothing.
    ///
    /// # Errors
    /// The landing, if somebody has.
    pub(crate) fn abandon(mut self) -> Result<(), Self> {
        let mut shard = self.flights.shard(self.flight.hash).lock();
        let is_it = |there: &Arc<Flight<K, V>>| Arc::ptr_eq(there, &self.flight);
        let there = shard.find_entry(self.flight.hash, is_it).ok();
        // Who joins gets a copy under this lock. The table's and this landing's are the others.
        if Arc::strong_count(&self.flight) > 1 + usize::from(there.is_some()) {
            drop(shard);
            return Err(self);
        }
        if let Some(there) = there {
            there.remove();
        }
        drop(shard);
        self.finish(Err(abandoned("load")));
        Ok(())
    }

    fn finish(&mut self, landed: Landed<V>) {
        self.has_landed = true;
        {
            let mut shard = self.flights.shard(self.flight.hash).lock();
            // A caller who could not join may have put a later flight in its place.
            let is_it = |there: &Arc<Flight<K, V>>| Arc::ptr_eq(there, &self.flight);
            if let Ok(there) = shard.find_entry(self.flight.hash, is_it) {
                there.remove();
            }
        }
        self.flights.under_way.fetch_sub(1, SeqCst);
        self.flight.landed.fulfil(landed);
    }
}

impl<K: Hash + Eq, V: Clone> Drop for Landing<K, V> {
    fn drop(&mut self) {
        if !self.has_landed && holds(Rule::DroppedLands) {
            self.finish(Err(abandoned("load")));
        }
    }
}

impl<K, V: Clone> Flight<K, V> {
    /// Waits for the flight to land.
    ///
    /// # Errors
    /// [`ErrorKind::NestedLoad`] at once, when this flight waits, through any number of others, for the
    /// flight whose loader the caller runs in.
    pub(crate) fn wait(self: &Arc<Self>) -> Result<Waiting<K, V>> {
        let edge = match current_flight::get() {
            0 => None,
            from => Some(Edge::add(from, self.number)?),
        };
        Ok(Waiting { landed: Wait::new(self), _edge: edge })
    }

    /// Says that this flight ends with the loader of `leader`, for as long as the answer lives.
    pub(crate) fn rides_on(&self, leader: &Self) -> Option<Edge> {
        Edge::add(self.number, leader.number).ok()
    }

    /// Runs a loader such that waits within it are known to be this flight's.
    pub(crate) fn run<F: Future + Unpin>(&self, loader: F) -> InFlight<F> {
        in_flight(self.number, loader)
    }
}

/// Runs a loader such that waits within it are known to be those of the flight of this number.
pub(crate) fn in_flight<F: Future + Unpin>(number: u64, loader: F) -> InFlight<F> {
    InFlight { number, loader }
}

/// The future of [`Flight::wait`]. Dropping it neither stops nor delays the flight.
pub(crate) struct Waiting<K, V: Clone> {
    landed: Wait<Flight<K, V>>,
    _edge: Option<Edge>,
}

impl<K, V: Clone> Future for Waiting<K, V> {
    type Output = Landed<V>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Landed<V>> {
        pin!(&mut self.landed).poll(cx)
    }
}

/// The future of [`Flight::run`].
pub(crate) struct InFlight<F> {
    number: u64,
    loader: F,
}

impl<F: Future + Unpin> Future for InFlight<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        /// Puts the outer flight back, also when the loader panics.
        struct Outer(u64);
        impl Drop for Outer {
            fn drop(&mut self) {
                current_flight::set(self.0);
            }
        }
        let _outer = Outer(current_flight::replace(self.number));
        pin!(&mut self.loader).poll(cx)
    }
}

/// "The loader of flight `from` waits for flight `to`", for as long as it lives.
pub(crate) struct Edge {
    from: u64,
    to: u64,
}

/// Who waits for whom, over all caches of the process. Only touched by loads inside of loaders.
static WAITS: std::sync::Mutex<Option<HashMap<u64, Vec<u64>>>> = std::sync::Mutex::new(None);

fn with_waits<T>(then: impl FnOnce(&mut HashMap<u64, Vec<u64>>) -> T) -> T {
    let mut waits = WAITS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    then(waits.get_or_insert_default())
}

impl Edge {
    /// # Errors
    /// [`ErrorKind::NestedLoad`] when `to` waits, through any number of others, for `from`.
    pub(crate) fn add(from: u64, to: u64) -> Result<Self> {
        with_waits(|waits| {
            let mut reached = vec![to];
            let mut next = 0;
            while let Some(&flight) = reached.get(next) {
                if flight == from {
                    return Err(Error::new(ErrorKind::NestedLoad, "load")
                        .message("the loader waits for a load that waits for it"));
                }
                for &further in waits.get(&flight).into_iter().flatten() {
                    if !reached.contains(&further) {
                        reached.push(further);
                    }
                }
                next += 1;
            }
            waits.entry(from).or_default().push(to);
            Ok(Edge { from, to })
        })
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        with_waits(|waits| {
            if let hash_map::Entry::Occupied(mut edges) = waits.entry(self.from) {
                if let Some(place) = edges.get().iter().position(|&to| to == self.to) {
                    edges.get_mut().swap_remove(place);
                }
                if edges.get().is_empty() {
                    edges.remove();
                }
            }
        });
    }
}
