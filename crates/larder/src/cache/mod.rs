//! The typed front: what a service holds.
//!
//! `read.rs` is the read path from top to bottom, `wait.rs` who waits for a flight, `load.rs` what a flight
//! does, `turn.rs` whose turn it is among nodes, `write.rs` sets and removals. Everything here is shared by all clones and namespaces of one cache.

mod blocking;
mod builder;
mod explain;
mod flight;
mod follow;
mod format;
mod health;
mod keys;
mod load;
mod loader;
mod maintain;
mod promise;
mod read;
mod reports;
#[cfg(feature = "encryption")]
mod rotate;
#[cfg(all(test, larder_shuttle))]
mod schedules;
#[cfg(all(test, not(larder_shuttle)))]
#[allow(clippy::unwrap_used, clippy::print_stdout, clippy::field_reassign_with_default, reason = "tests")]
mod simulation;
mod tenants;
mod turn;
mod wait;
mod write;

pub use blocking::Blocking;
pub use builder::Builder;
pub use explain::{EntryState, Explanation, TierExplanation};
pub use keys::{KeyInfo, KeysPage, KeysRequest};
pub use loader::{LoadContext, Loaded};
pub use read::{Hit, Stale};
#[cfg(feature = "encryption")]
pub use rotate::{KeyUsage, Rotation, RotationProgress};
pub use turn::LoadLockOptions;
pub use write::{Removal, Written};

pub(crate) use flight::{Edge, in_flight, next_number as next_flight};
pub(crate) use format::Format;
pub(crate) use load::{catch_panic, loader_failed};

use crate::backend::Ticket;
use crate::bus::{Bus, Hub, Kept};
use crate::clock::{Clock, NEVER_MS, millis};
use crate::entry::{EntryKind, Meta, Tags};
use crate::error::Result;
use crate::guard::Sharing;
use crate::key::{EntryKey, Namespace};
use crate::l1::{Entry, L1, Now, Provenance, Published, Space};
use crate::options::EntryOptions;
use crate::rules::{Rule, holds};
use crate::stamp::StampClock;
use crate::stats::{Counters, Stats};
use crate::sync::{Mutex, Unscheduled};
use crate::tenant::TenantFrom;
use crate::tier::Tier;
use bytes::Bytes;
use flight::{Flight, Flights};
use reports::Streaks;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use turn::LoadLock;

/// A cache of typed values: in memory, and in any tiers below it.
///
/// Clones are cheap and share everything. A cache has two promises:
///
/// - **Invalidation wins.** What was removed, by key, tag, pattern or clear, is never put back by a load or
///   a set that began before the removal.
/// - **It never takes its service down.** Tiers and loaders may hang, fail or vanish: callers get a fresh
///   value, a stale one if they agreed to it, or a prompt error.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> larder::Result<()> {
/// use larder::Cache;
///
/// let users: Cache<u64, String> = Cache::builder().entries_max(10_000).build()?;
/// let name = users.get_or_load(&7, |_| async { Ok::<_, std::io::Error>("Ada".to_owned()) }).await?;
/// assert_eq!(name, "Ada");
/// users.remove(&7).await?;
/// assert_eq!(users.get(&7).await, None);
/// # Ok(()) }
/// ```
pub struct Cache<K: Hash + Eq, V: Clone> {
    shared: Arc<Shared<K, V>>,
    space: Arc<Space>,
    defaults: Arc<EntryOptions>,
}

/// What a key of a cache has to be; implemented for all that is.
pub trait Key: Hash + Eq + Clone + Send + Sync + 'static {}
impl<K: Hash + Eq + Clone + Send + Sync + 'static> Key for K {}

/// What a value of a cache has to be; implemented for all that is. A hit clones it: keep large values in an
/// [`Arc`] or as [`Bytes`].
pub trait Value: Clone + Send + Sync + 'static {}
impl<V: Clone + Send + Sync + 'static> Value for V {}

impl<K: Hash + Eq, V: Clone> Clone for Cache<K, V> {
    fn clone(&self) -> Self {
        Cache {
            shared: Arc::clone(&self.shared),
            space: Arc::clone(&self.space),
            defaults: Arc::clone(&self.defaults),
        }
    }
}

impl<K: Hash + Eq, V: Clone> std::fmt::Debug for Shared<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl<K: Hash + Eq, V: Clone> std::fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tiers: Vec<&str> = self.shared.tiers.iter().map(Tier::name).collect();
        f.debug_struct("Cache").field("namespace", &self.space.namespace).field("tiers", &tiers).finish()
    }
}

/// Most namespaces that are remembered without a view of them being held: a server makes one for every name
/// that a client thinks of.
const SPACES_MAX: usize = 10_000;

/// Everything that clones and namespaces share.
pub(crate) struct Shared<K: Hash + Eq, V: Clone> {
    l1: L1<K, V>,
    flights: Arc<Flights<K, V>>,
    tiers: Vec<Tier>,
    /// Where the lowest tier has a log.
    bus: Option<Arc<Bus>>,
    /// The caches of this process over the same lowest tier.
    hub: Option<Arc<Hub>>,
    /// Whether entries of L1 know the names of their keys, because somebody else may change them.
    is_named: AtomicBool,
    kept_cursors: Unscheduled<Kept>,
    format: Option<Arc<dyn Format<K, V>>>,
    weigh: Option<Weigh<K, V>>,
    l1_ttl_max: Duration,
    clock: Clock,
    stamps: StampClock,
    counters: Arc<Counters>,
    on_discard: Option<OnDiscard>,
    tag_ttls_max: HashMap<Box<str>, Duration>,
    tenants: Option<TenantFrom>,
    evict_after_bad: Option<u32>,
    health: health::Keeper,
    load_lock: Option<LoadLock>,
    sharing: Option<Sharing>,
    streaks: Streaks<K>,
    spaces: Mutex<HashMap<Namespace, Arc<Space>>>,
    next_space: AtomicU64,
    write_backs: AtomicUsize,
    /// Sets and removals in tasks of their own.
    writes: Arc<AtomicUsize>,
    is_closed: AtomicBool,
    has_adopted_stamps: AtomicBool,
}

/// The weight of an entry in bytes.
pub(crate) type Weigh<K, V> = Arc<dyn Fn(&K, &V) -> u64 + Send + Sync>;

/// Called for each entry of a tier that could not be opened.
pub(crate) type OnDiscard = Arc<dyn Fn(&EntryKey, &str, &'static str) + Send + Sync>;

impl<K: Key, V: Value> Cache<K, V> {
    /// A builder with every setting at its default.
    pub fn builder() -> Builder<K, V> {
        Builder::new()
    }

    /// The same cache in another namespace: other keys, tags and clears; the same limits, tiers, loads and
    /// tenant. Costs one look-up; keep the view where it is used often.
    ///
    /// A namespace that names another tenant than the view's gives a view that refuses every call.
    #[must_use]
    pub fn namespace(&self, namespace: &Namespace) -> Self {
        Cache { space: self.shared.space_beside(&self.space, namespace), ..self.clone() }
    }

    /// The namespace of this view, with its tenant if it is one tenant's.
    pub fn namespace_name(&self) -> &Namespace {
        &self.space.namespace
    }

    /// The default options, without a copy.
    #[cfg(feature = "macros")]
    pub(crate) fn defaults(&self) -> &EntryOptions {
        &self.defaults
    }

    /// A copy of the default options, to change for a call.
    pub fn options(&self) -> EntryOptions {
        (*self.defaults).clone()
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// What was counted so far, over all namespaces.
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let counted = shared.counters.snapshot();
        Stats {
            demotions: if shared.tiers.is_empty() { 0 } else { counted.evicted.size },
            entries: shared.l1.len(),
            weight: shared.l1.weight(),
            weight_max: shared.l1.weight_max(),
            flights: shared.flights.under_way() as u64,
            tiers: shared.tiers.iter().map(Tier::stats).collect(),
            bus: shared.bus_stats(),
            ..counted
        }
    }

    /// The cache for callers that don't await, in and outside of a runtime.
    pub fn blocking(&self) -> Blocking<K, V> {
        Blocking::new(self.clone())
    }
}

impl<K: Key, V: Value> Shared<K, V> {
    fn space(&self, namespace: &Namespace) -> Arc<Space> {
        let mut spaces = self.spaces.lock();
        if let Some(space) = spaces.get(namespace) {
            return Arc::clone(space);
        }
        if spaces.len() >= SPACES_MAX {
            // Nobody holds a view of these. What L1 has of them is never found again, and goes in time.
            spaces.retain(|_, space| Arc::strong_count(space) > 1);
            if let Some(bus) = &self.bus {
                bus.keep(|followed| spaces.contains_key(followed));
            }
        }
        let id = self.next_space.fetch_add(1, Relaxed);
        let space = Arc::new(Space { id, namespace: namespace.clone() });
        spaces.insert(namespace.clone(), Arc::clone(&space));
        if let Some(bus) = &self.bus {
            bus.join(namespace);
        }
        space
    }

    /// The key as tiers see it; `None` in a cache without tiers.
    fn encode(&self, space: &Space, key: &K) -> Result<Option<EntryKey>> {
        self.format.as_ref().map(|format| format.encode(&space.namespace, key)).transpose()
    }

    fn seal(&self, key: &EntryKey, meta: &Meta, value: Option<&V>) -> Result<Bytes> {
        self.format.as_ref().expect("a cache with tiers has a format").seal(key, meta, value)
    }

    /// The expiries of something that is made at `created_ms`.
    fn meta(
        &self,
        created_ms: u64,
        kind: EntryKind,
        ttl: Duration,
        tags: Tags,
        options: &EntryOptions,
    ) -> Meta {
        let stamp = self.stamps.tick(created_ms);
        let of_tags = tags.iter().filter_map(|tag| self.tag_ttls_max.get(tag)).min();
        let ttl_ms = jittered(millis(ttl), options.ttl_jitter, stamp);
        let ttl_ms = of_tags.map_or(ttl_ms, |max| ttl_ms.min(millis(*max)));
        let fresh_until_ms = created_ms.saturating_add(ttl_ms);
        let after = |window: Duration| fresh_until_ms.saturating_add(millis(window));
        let revalidate_until_ms = after(options.stale_while_revalidate);
        Meta {
            kind,
            stamp,
            created_ms,
            fresh_until_ms,
            revalidate_until_ms,
            gone_at_ms: after(options.stale_on_error).max(revalidate_until_ms),
            load_ms: 0,
            is_negative: false,
            tags,
        }
    }

    /// Puts what a flight found into L1.
    fn publish(
        &self,
        space: &Space,
        key: &K,
        entry: (Option<V>, Meta, u8),
        flight: &Flight<K, V>,
        options: &EntryOptions,
    ) -> Published {
        let known_ms = self.known_ms(flight.began_ms, entry.2);
        self.publish_at(
            self.now(),
            space,
            key,
            entry,
            Some((self.promotion_ticket(flight), known_ms)),
            options,
        )
    }

    fn promotion_ticket(&self, flight: &Flight<K, V>) -> Ticket {
        if holds(Rule::TicketFirst) { flight.ticket } else { self.l1.ticket() }
    }

    /// Puts a value into L1 as of a moment that has just been, with a ticket and since when it is known not to be
    /// outdated. Without them it is taken while nobody else can write the key, so that only a later stamp can
    /// refuse it.
    fn publish_at(
        &self,
        now: Now,
        space: &Space,
        key: &K,
        (value, meta, from_tier): (Option<V>, Meta, u8),
        began: Option<(Ticket, u64)>,
        options: &EntryOptions,
    ) -> Published {
        let weight = match (&self.weigh, &value) {
            (Some(weigh), Some(value)) => weigh(key, value),
            _ => 1,
        };
        let meta = cap(meta, self.l1_ttl_max, now.wall_ms);
        let known_ms = began.map_or(now.mono_ms, |(_, known_ms)| known_ms);
        let provenance = self.name(space, key).map(|name| Provenance { name, known_ms });
        let ticket = began.map(|(ticket, _)| ticket);
        self.l1.publish(
            space,
            key,
            Entry { value, meta, ticket, weight, from_tier, provenance },
            options,
            now,
        )
    }

    /// The ticket and the moment with which something begins now.
    fn depart(&self) -> (Ticket, u64) {
        // The moment first: it says that whatever is older than the ticket is known since then.
        let began_ms = self.clock.coarse_ms();
        (self.l1.ticket(), began_ms)
    }

    fn now(&self) -> Now {
        Now { wall_ms: self.clock.wall_ms(), mono_ms: self.clock.mono_ms() }
    }
}

/// The entry's expiries where it may stay fresh for at most `ttl_max` from now on; the stale windows keep
/// their length. From now, not from its making: a copy of an old entry would never be fresh.
pub(crate) fn cap(mut meta: Meta, ttl_max: Duration, wall_ms: u64) -> Meta {
    let fresh_until_ms = wall_ms.saturating_add(millis(ttl_max));
    if fresh_until_ms < meta.fresh_until_ms {
        let moved = |until_ms: u64| match (until_ms, meta.fresh_until_ms) {
            (NEVER_MS, NEVER_MS) => fresh_until_ms,
            (NEVER_MS, _) => NEVER_MS,
            _ => fresh_until_ms + (until_ms - meta.fresh_until_ms),
        };
        meta.revalidate_until_ms = moved(meta.revalidate_until_ms);
        meta.gone_at_ms = moved(meta.gone_at_ms);
        meta.fresh_until_ms = fresh_until_ms;
    }
    meta
}

/// Scales a TTL by a factor in `1 ± jitter` that the stamp decides: random enough, and the same on a replay.
fn jittered(ttl_ms: u64, jitter: f64, stamp: crate::stamp::Stamp) -> u64 {
    if jitter == 0.0 || ttl_ms == NEVER_MS {
        return ttl_ms;
    }
    let unit = xxhash_rust::xxh3::xxh3_64(&stamp.to_bytes()) as f64 / u64::MAX as f64;
    ((ttl_ms as f64 * (1.0 + jitter * (2.0 * unit - 1.0))) as u64).max(1)
}
